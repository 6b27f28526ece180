//! Who comes in, who is turned away, and what garbage does.

use std::io::{Read, Write};

use bytes::BytesMut;

use super::super::frame::{self, Kind};
use super::super::greeting::{Greeting, Purpose};
use super::*;

async fn turned_away(one: NetConfig, two: NetConfig) -> Refusal {
    let [(host, one), (other, two)] = pair(one, two).await;
    let (by, refusal) = host.wait("the refusal", |seen| seen.turned_away.first().cloned()).await;
    assert_eq!(by, TWO);
    let told = until("the trouble", || peer(&one, TWO).trouble).await;
    assert!(told.contains(&refusal.to_string()), "{told:?} does not say {refusal:?}");
    // It goes on asking, but the host is told once.
    until("another attempt", || (two.counters().greetings_refused >= 3).then_some(())).await;
    assert_eq!(host.seen.lock().turned_away.len(), 1);
    one.send(vec![numbered(TWO, 1, 1)]);
    assert!(other.seen.lock().messages.is_empty());
    refusal
}

#[test]
fn a_node_of_another_cluster_is_turned_away() {
    run(async {
        let refusal = turned_away(NetConfig { cluster: 0xc2, ..config(ONE) }, config(TWO)).await;
        assert_eq!(refusal, Refusal::OtherCluster { ours: 0xc2, theirs: 0xc1 });
    });
}

#[test]
fn a_node_that_is_not_the_one_expected_says_who_it_is() {
    run(async {
        let refusal = turned_away(config(ONE), config(NodeId(3))).await;
        assert_eq!(refusal, Refusal::OtherNode { expected: TWO, found: NodeId(3) });
    });
}

#[test]
fn a_removed_node_is_shown_out_and_told_why_when_it_comes_back() {
    run(async {
        let [(host, one), (other, two)] = pair(config(ONE), config(TWO)).await;
        connected(&one, TWO).await;
        other.removed.lock().push(ONE);
        two.locate(ONE, None);
        let (by, refusal) = host.wait("the refusal", |seen| seen.turned_away.first().cloned()).await;
        assert_eq!((by, refusal), (TWO, Refusal::Removed("node 1 was removed from the cluster".into())));
        // Admitted again, it comes in by itself; another refusal would be told again.
        other.removed.lock().clear();
        connected(&one, TWO).await;
        other.removed.lock().push(ONE);
        two.locate(ONE, Some(one.advertised().to_owned()));
        two.locate(ONE, None);
        host.wait("the second refusal", |seen| (seen.turned_away.len() == 2).then_some(())).await;
    });
}

/// A greeting as another process could send it.
fn greeting(change: impl FnOnce(&mut Greeting)) -> Vec<u8> {
    let me =
        Identity { cluster: CLUSTER, node: ONE, incarnation: 1, frame_bytes_max: 1 << 20, age: 1, life: 1 };
    let mut greeting = me.greeting(TWO, Purpose::Link);
    change(&mut greeting);
    let mut out = BytesMut::from(&greeting::MAGIC[..]);
    frame::put(&mut out, Kind::Greeting, &greeting);
    out.to_vec()
}

/// Sends bytes to a node and reads until it closes the connection (true), or has not done so for long, but
/// for less time than its patience with silence.
async fn told(net: &Net, bytes: Vec<u8>) -> (Vec<u8>, bool) {
    const LONG_MS: u64 = 5_000;
    let address = net.address();
    let told = tokio::task::spawn_blocking(move || {
        let clock = Clock::start();
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        // It may close before all of it is written.
        let _ = stream.write_all(&bytes);
        let (mut told, mut buffer) = (Vec::new(), [0; 4_096]);
        while clock.now().monotonic_ms < LONG_MS {
            match stream.read(&mut buffer) {
                Ok(0) => return (told, true),
                Ok(bytes) => told.extend(&buffer[..bytes]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return (told, true),
            }
        }
        (told, false)
    });
    told.await.unwrap()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn another_version_is_turned_away_with_both_numbers() {
    run(async {
        let (_, two) = start(config(TWO)).await;
        let (answer, closed) = told(&two, greeting(|greeting| greeting.version = 77)).await;
        assert!(closed && contains(&answer, "speaks version 77"), "{answer:?}");
        let (answer, closed) = told(&two, greeting(|greeting| greeting.purpose = 77)).await;
        assert!(closed && contains(&answer, "unknown purpose 77"), "{answer:?}");
    });
}

#[test]
fn garbage_closes_its_own_connection_and_nothing_else() {
    run(async {
        let [(_, one), (host, two)] = pair(config(ONE), config(TWO)).await;
        connected(&one, TWO).await;
        let frame_of = |kind: u8, payload: &[u8]| {
            let mut bytes = BytesMut::new();
            let open = frame::begin(&mut bytes);
            bytes.extend_from_slice(payload);
            open.end(&mut bytes, Kind::Beat);
            // The sum is right for the kind it had.
            bytes[4] = kind;
            bytes.to_vec()
        };
        let mut damaged = greeting(|_| {});
        damaged[20] ^= 1;
        let as_three = || greeting(|greeting| greeting.from = 3);
        let garbage: Vec<(&str, Vec<u8>)> = vec![
            ("http", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
            ("zeros", vec![0; 100_000]),
            ("a damaged greeting", damaged),
            ("a long greeting", [&greeting::MAGIC[..], &[255; 4], &[1]].concat()),
            ("silence", Vec::new()),
            ("half a greeting", greeting(|_| {})[..30].to_vec()),
            ("an unknown kind", [as_three(), frame_of(99, b"")].concat()),
            ("a wrong sum", [as_three(), frame_of(Kind::Messages as u8, b"x")].concat()),
            ("a length over the limit", [as_three(), vec![255, 255, 255, 255, 5]].concat()),
            ("a second greeting", [as_three(), greeting(|_| {})[8..].to_vec()].concat()),
        ];
        for (what, bytes) in garbage {
            let (_, closed) = told(&two, bytes).await;
            assert!(closed, "{what} was listened to");
        }
        assert_eq!(two.counters().greetings_refused, 6);
        one.send(vec![numbered(TWO, 1, 8)]);
        assert_eq!(number_of(&host.wait_for_messages(1).await[0].2), 8);
        assert_eq!(peer(&one, TWO).connects, 1, "the good link was touched");
    });
}

#[test]
fn a_newer_connection_of_a_node_takes_the_place_of_its_older_one() {
    run(async {
        // It must not be silence that ends the older one.
        let (_, two) = start(NetConfig { silent_after_ms: 600_000, ..config(TWO) }).await;
        let address = two.address();
        let first = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.write_all(&greeting(|_| {})).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut welcome = [0; frame::HEADER_BYTES];
            stream.read_exact(&mut welcome).unwrap();
            assert_eq!(welcome[4], Kind::Welcome as u8);
            stream
        });
        let mut first = first.await.unwrap();
        let (_, closed) = told(&two, greeting(|greeting| greeting.incarnation = 2)).await;
        assert!(!closed, "the newer one does not stand");
        let ended = tokio::task::spawn_blocking(move || first.read_to_end(&mut Vec::new()).is_ok());
        assert!(ended.await.unwrap(), "the older one stands");
    });
}

#[test]
fn an_address_in_use_and_one_for_all_are_told_by_name() {
    run(async {
        let (_, one) = start(config(ONE)).await;
        let address = one.address().to_string();
        let start = |config| Net::start(config, TestHost::new());
        let same = NetConfig { listen: address.clone(), ..config(TWO) };
        let told = start(same).await.err().expect("the address is in use").to_string();
        assert!(told.contains(&address), "{told}");
        let all = NetConfig { listen: "0.0.0.0:0".into(), ..config(TWO) };
        let told = start(all.clone()).await.err().expect("nobody can connect to that").to_string();
        assert!(told.contains("0.0.0.0:0") && told.contains("advertise"), "{told}");
        let named = NetConfig { advertise: Some("node-two:7".into()), ..all };
        assert_eq!(start(named).await.unwrap().advertised(), "node-two:7");
    });
}

#[test]
fn a_node_tells_how_old_its_data_is_when_it_comes_and_when_that_grows() {
    run(async {
        let [(_, one), (host, _two)] = pair(NetConfig { age: 7, ..config(ONE) }, config(TWO)).await;
        connected(&one, TWO).await;
        one.grow_older(8);
        assert_eq!(one.age().age, 8);
        let told = host.wait("the ages", |seen| (seen.ages.len() >= 2).then(|| seen.ages.clone())).await;
        assert_eq!(told[..2], [(ONE, 7), (ONE, 8)]);
        // Who may not stay with it is not heard any more.
        host.removed.lock().push(ONE);
        one.grow_older(9);
        until("the end of the connection", || (!peer(&one, TWO).connected).then_some(())).await;
    });
}
