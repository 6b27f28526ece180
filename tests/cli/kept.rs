//! Leases and watches on the wire: what a client in any language relies on.

use std::time::Duration;

use rustix::process::Signal;
use statehouse::client::Client;
use statehouse::error::Error;
use statehouse::id::Revision;
use statehouse::node::request::{KeySpan, WatchSpec};
use statehouse::proto::v1;
use statehouse::proto::v1::watch_request::Request as Asked;
use statehouse::proto::v1::watch_response::Response as Told;
use statehouse::proto::v1::watches_client::WatchesClient;

use super::killed::{ThreeNodes, wait_for_replicas};
use super::process::{Node, directory};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

async fn node_with_kv(directory: &tempfile::TempDir) -> (Node, Client) {
    let node = Node::serve(directory.path(), &[]);
    let client = Client::connect([&node.client]).await.unwrap();
    client.create_machine("kv", "builtin:kv", "").await.unwrap();
    (node, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_on_a_stream_are_renewed_and_one_bad_message_ends_nothing() {
    const MESSAGES: u64 = 500;
    let directory = directory();
    let (_node, client) = node_with_kv(&directory).await;
    let [a, b, gone] = [None, Some(77), None].map(|id| client.grant_lease("kv", HOUR, id));
    let (a, b, gone) = (a.await.unwrap(), b.await.unwrap(), gone.await.unwrap());
    client.revoke_lease("kv", gone).await.unwrap();
    let (sender, mut answers) = client.keep_alive().await.unwrap();
    let sending = tokio::spawn(async move {
        for id in 0..MESSAGES {
            // The machine is that of the message before, where it is not named.
            let machine = if id == 0 { "kv" } else { "" };
            sender.send(id, machine, vec![a, gone, b]).await.unwrap();
        }
        sender.send(MESSAGES, "nobody", vec![a]).await.unwrap();
        sender.send(MESSAGES + 1, "kv", vec![b]).await.unwrap();
    });
    let mut answered = std::collections::BTreeMap::new();
    let all = async {
        while let Some((id, result)) = answers.next().await.unwrap() {
            assert!(answered.insert(id, result).is_none(), "two answers to {id}");
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("the stream ends when everything is answered");
    sending.await.unwrap();
    assert_eq!(answered.len() as u64, MESSAGES + 2);
    let whole = HOUR.as_millis() as u64;
    // One that follows another within a hundredth of the lease's time is told what is left of that.
    let renewed = |left: u64| (whole - whole / 100..=whole).contains(&left);
    for id in 0..MESSAGES {
        let [first, second, third] = answered[&id].as_ref().unwrap()[..] else { panic!("message {id}") };
        assert!(renewed(first) && second == 0 && renewed(third), "message {id}: {first} {second} {third}");
    }
    assert!(matches!(&answered[&MESSAGES], Err(Error::NotFound(text)) if text.contains("nobody")));
    assert!(matches!(answered[&(MESSAGES + 1)].as_ref().unwrap()[..], [left] if renewed(left)));
    let left = client.lease("kv", a).await.unwrap().remaining_ms;
    assert!(renewed(left), "{left} ms are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_node_ends_a_stream_of_renewals_and_says_so() {
    let directory = directory();
    let (node, client) = node_with_kv(&directory).await;
    let id = client.grant_lease("kv", HOUR, None).await.unwrap();
    let (sender, mut answers) = client.keep_alive().await.unwrap();
    sender.send(1, "kv", vec![id]).await.unwrap();
    let first = answers.next().await.unwrap().expect("an answer");
    assert_eq!(first.1.unwrap(), [HOUR.as_millis() as u64]);
    node.signal(Signal::TERM);
    let end = tokio::time::timeout(PATIENCE, answers.next()).await.expect("the stream ends");
    assert!(matches!(&end, Err(Error::Unavailable(text)) if text.contains("stopping")), "{end:?}");
    let (code, told) = node.end();
    assert_eq!(code, Some(0), "{told}");
    // The lease is there, with its time, when the node comes back.
    let node = Node::serve(directory.path(), &[]);
    let client = Client::connect([&node.client]).await.unwrap();
    assert_eq!(client.renew_leases("kv", &[id]).await.unwrap(), [Some(HOUR)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn times_to_live_that_cannot_be_are_refused_at_the_node_with_the_limit() {
    let directory = directory();
    let (_node, client) = node_with_kv(&directory).await;
    let longest = Duration::from_secs(100 * 365 * 86_400);
    for ttl in [Duration::ZERO, longest + Duration::from_millis(1)] {
        let lease = client.grant_lease("kv", ttl, None).await.unwrap_err();
        let session = client.open_session("kv", ttl).await.map(|_| ()).unwrap_err();
        for why in [lease, session] {
            let named =
                |text: &str| text.contains(&format!("{} ms", ttl.as_millis())) && text.contains("100 years");
            assert!(matches!(&why, Error::Invalid(text) if named(text)), "{why:?}");
        }
    }
    client.grant_lease("kv", longest, None).await.unwrap();
    let why = client.grant_lease("kv", HOUR, Some(u64::MAX)).await.unwrap_err();
    assert!(matches!(&why, Error::Invalid(text) if text.contains(&u64::MAX.to_string())), "{why:?}");
    let many: Vec<u64> = (1..=100_001).collect();
    let why = client.renew_leases("kv", &many).await.unwrap_err();
    let named = |text: &str| text.contains("100001") && text.contains("100000");
    assert!(matches!(&why, Error::TooLarge(text) if named(text)), "{why:?}");
}

/// What a node says of a watch, when it is asked for nothing else.
async fn told_of(node: &Node, create: v1::CreateWatch) -> Told {
    let address = format!("http://{}", node.client);
    let mut client = WatchesClient::connect(address).await.unwrap();
    let request = v1::WatchRequest { request: Some(Asked::Create(create)) };
    let mut responses = client.watch(tokio_stream::once(request)).await.unwrap().into_inner();
    let next = tokio::time::timeout(PATIENCE, responses.message()).await.expect("in time").unwrap();
    next.expect("an answer").response.expect("it says something")
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_cannot_be_are_refused_at_the_node_too() {
    let directory = directory();
    let (node, _client) = node_with_kv(&directory).await;
    let range = |start: &'static str, end: &'static str| {
        let keys = v1::KeyRange { start: start.into(), end: Some(end.into()) };
        v1::create_watch::Keys::Range(keys)
    };
    let of = |keys| v1::CreateWatch { id: 1, machine: "kv".into(), keys: Some(keys), ..Default::default() };
    let blind = v1::CreateWatch { no_puts: true, no_deletes: true, ..of(range("a", "b")) };
    for (create, words) in
        [(of(range("b", "a")), "inverted"), (of(range("a", "a")), "empty"), (blind, "see nothing")]
    {
        let Told::Canceled(canceled) = told_of(&node, create).await else {
            panic!("{words}: it was not refused")
        };
        let failure = canceled.failure.expect("a reason");
        assert!(failure.reason == "INVALID" && failure.message.contains(words), "{failure:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn history_that_is_kept_for_bytes_or_for_a_time_is_told_with_its_first_revision() {
    let directory = directory();
    let (node, client) = node_with_kv(&directory).await;
    node.run(["machine", "create", "short", "--module", "builtin:kv"]).ok();
    node.run(["machine", "set", "kv", "history_bytes=20000"]).ok();
    node.run(["machine", "set", "short", "history_age=1s"]).ok();
    let value = "x".repeat(1_000);
    for machine in ["kv", "short"] {
        for _ in 0..60 {
            node.run(["kv", "--machine", machine, "put", "k", &value]).ok();
        }
        let from_the_first =
            || v1::CreateWatch { id: 1, machine: machine.into(), from_revision: 2, ..Default::default() };
        let deadline = std::time::Instant::now() + PATIENCE;
        let first = loop {
            match told_of(&node, from_the_first()).await {
                Told::Canceled(canceled) => {
                    let failure = canceled.failure.expect("a reason");
                    assert_eq!(failure.reason, "COMPACTED", "{failure:?}");
                    break failure.metadata["first-revision"].parse::<u64>().expect("a revision");
                }
                _ => assert!(std::time::Instant::now() < deadline, "{machine}: all history is kept"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert!(first > 2 && first <= 62, "{machine} keeps history from {first}");
        let asked = Revision(2);
        let spec = WatchSpec { from: Some(asked), ..WatchSpec::of(KeySpan::all()) };
        let told = match client.watch(machine, spec).await {
            Ok(mut watch) => watch.next().await.map(drop),
            Err(why) => Err(why),
        };
        assert!(
            matches!(&told, Err(Error::Compacted { asked: at, first }) if *at == asked && first.0 > 2),
            "{told:?}"
        );
        let shown = node.run(["watch", machine, "--from", "2"]);
        shown.failed(1, &["revision 2", "first"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_lease_outlives_its_nodes_and_its_client_knows_when_it_may_have_ended() {
    const TTL: Duration = Duration::from_secs(4);
    let mut three = ThreeNodes::start();
    let client = Client::connect(three.addresses()).await.unwrap();
    let lease = client.keep_lease("kv", TTL, None).await.unwrap();
    let other = client.keep_lease("kv", TTL, Some(77)).await.unwrap();
    // Each node once, so the one that leads and the one that is asked are among them; longer than it lives.
    for killed in [0, 1, 2] {
        three.kill(killed);
        tokio::time::sleep(TTL / 2).await;
        three.restart(killed);
        wait_for_replicas(three.node(killed), "kv");
        client.lease("kv", lease.id()).await.expect("it lives");
    }
    // Somebody else ends one of them.
    client.revoke_lease("kv", 77).await.unwrap();
    let why = tokio::time::timeout(TTL, other.ended()).await.expect("it is noticed with the next renewal");
    assert!(matches!(&why, Error::NotFound(text) if text.contains("77")), "{why:?}");
    other.revoke().await.expect("it has ended already");
    // Nobody can say whether it lives when a majority is gone: the client counts its time.
    [0, 1].into_iter().for_each(|number| three.kill(number));
    let begun = std::time::Instant::now();
    let why = tokio::time::timeout(PATIENCE, lease.ended()).await.expect("in time");
    assert!(matches!(&why, Error::Unavailable(text) if text.contains("4s")), "{why:?}");
    assert!(
        begun.elapsed() > TTL / 3 && begun.elapsed() <= TTL + Duration::from_millis(500),
        "{:?}",
        begun.elapsed()
    );
    [0, 1].into_iter().for_each(|number| three.restart(number));
    let id = lease.id();
    drop(lease);
    let gone = async {
        while !matches!(client.lease("kv", id).await, Err(Error::NotFound(_))) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("a lease that nobody keeps ends");
}
