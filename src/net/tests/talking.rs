//! Messages: their order, what is too much, what breaks, and who is silent.

use super::*;

#[test]
fn messages_of_all_groups_arrive_in_order() {
    run(async {
        const COUNT: u64 = 20_000;
        let [(_, one), (host, _two)] = pair(config(ONE), config(TWO)).await;
        for first in (0..COUNT).step_by(10) {
            one.send((first..first + 10).map(|number| numbered(TWO, number % 7, number)).collect());
        }
        let messages = host.wait_for_messages(COUNT as usize).await;
        assert!(messages.iter().all(|(from, ..)| *from == ONE));
        assert!(messages.iter().map(|(.., message)| number_of(message)).eq(0..COUNT));
        assert!(messages.iter().all(|(_, group, message)| group.0 == number_of(message) % 7));
        let counters = peer(&one, TWO);
        assert_eq!((counters.messages_dropped, counters.queued_bytes), (0, 0));
        assert!(
            counters.frames_sent < COUNT / 5,
            "{} frames: messages do not share them",
            counters.frames_sent
        );
    });
}

#[test]
fn threads_that_send_at_once_keep_their_own_order() {
    run(async {
        const COUNT: u64 = 5_000;
        let [(_, one), (host, _two)] = pair(config(ONE), config(TWO)).await;
        connected(&one, TWO).await;
        std::thread::scope(|scope| {
            for group in 0..4 {
                let one = &one;
                scope.spawn(move || {
                    (0..COUNT).for_each(|number| one.send(vec![numbered(TWO, group, number)]))
                });
            }
        });
        let messages = host.wait_for_messages(4 * COUNT as usize).await;
        for group in 0..4 {
            let of_group = messages.iter().filter(|(_, found, _)| found.0 == group);
            assert!(of_group.map(|(.., message)| number_of(message)).eq(0..COUNT), "group {group}");
        }
    });
}

#[test]
fn large_appends_go_whole_or_in_pieces_and_one_entry_over_the_limit_is_dropped_alone() {
    run(async {
        const LIMIT: usize = 1 << 20;
        let small = |node| NetConfig { frame_bytes_max: LIMIT, ..config(node) };
        let [(_, one), (host, _two)] = pair(small(ONE), config(TWO)).await;
        // More than sockets hold, so that writes are left to the pump.
        let large = [append(TWO, 3, 900_000), append(TWO, 1, LIMIT), append(TWO, 200, 100_000)];
        one.send(large.clone().into());
        one.send(vec![numbered(TWO, 9, 77)]);
        let entries = |out: &PeerOut| match &out.message.body {
            PeerBody::Append { entries, .. } => entries.clone(),
            other => panic!("{other:?}"),
        };
        let expected = [entries(&large[0]), entries(&large[2])].concat();
        let messages = host
            .wait("the last message", |seen| {
                let last = seen.messages.last().is_some_and(|(_, group, _)| group.0 == 9);
                last.then(|| seen.messages.clone())
            })
            .await;
        let found = messages.iter().flat_map(|(.., message)| match &message.body {
            PeerBody::Append { entries, .. } => entries.clone(),
            _ => Vec::new(),
        });
        assert!(found.eq(expected));
        assert_eq!(peer(&one, TWO).messages_dropped, 1);
    });
}

#[test]
fn a_peer_with_a_smaller_limit_gets_smaller_frames() {
    run(async {
        let small = NetConfig { frame_bytes_max: 128 << 10, ..config(TWO) };
        let [(_, one), (host, _two)] = pair(config(ONE), small).await;
        one.send(vec![append(TWO, 10, 100_000), numbered(TWO, 9, 1)]);
        let messages = host.wait_for_messages(11).await;
        assert_eq!(number_of(&messages[10].2), 1);
        assert_eq!(peer(&one, TWO).connects, 1);
    });
}

#[test]
fn what_is_over_the_bound_is_dropped_and_counted() {
    run(async {
        // Nobody answers the greeting, so everything waits.
        let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (_, one) = start(NetConfig { queue_bytes_max: 10_000, ..config(ONE) }).await;
        one.locate(TWO, Some(mute.local_addr().unwrap().to_string()));
        one.send((0..10).map(|_| append(TWO, 1, 2_000)).collect());
        let counters = peer(&one, TWO);
        assert_eq!(counters.messages_dropped, 6);
        assert!((8_000..=10_000).contains(&counters.queued_bytes), "{}", counters.queued_bytes);
        one.send(vec![numbered(NodeId(9), 1, 1)]);
        assert_eq!(one.counters().unlocated_dropped, 1);
    });
}

#[test]
fn a_peer_that_comes_back_is_found_again() {
    run(async {
        let [(_, one), (_, two)] = pair(config(ONE), config(TWO)).await;
        connected(&one, TWO).await;
        let address = two.address().to_string();
        two.shutdown().await;
        drop(two);
        let told = until("the end", || peer(&one, TWO).trouble).await;
        // It takes leave, and then nobody is there.
        assert!(told.contains("the other stops") || told.contains("connection"), "{told}");
        // Dropped, at the latest once an attempt has failed.
        until("a dropped message", || {
            one.send(vec![numbered(TWO, 1, 1)]);
            (peer(&one, TWO).messages_dropped > 0).then_some(())
        })
        .await;
        let (host, two) = start(NetConfig { listen: address, ..config(TWO) }).await;
        two.locate(ONE, Some(one.advertised().to_owned()));
        connected(&one, TWO).await;
        one.send(vec![numbered(TWO, 1, 2)]);
        let messages = host.wait_for_messages(1).await;
        assert_eq!(number_of(&messages.last().unwrap().2), 2);
        assert_eq!(peer(&one, TWO).connects, 2);
    });
}

#[test]
fn a_node_that_falls_silent_is_told_once_each_time() {
    run(async {
        let [(host, one), (_, two)] = pair(alert(ONE), alert(TWO)).await;
        // What TWO sends goes through a proxy that can stop.
        let proxy = Proxy::start(one.address()).await;
        two.locate(ONE, Some(proxy.address.clone()));
        connected(&two, ONE).await;
        for times in 1..=2 {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            assert_eq!(host.seen.lock().silent.len(), times - 1, "it was heard all the time");
            proxy.hold(true);
            host.wait("its silence", |seen| (seen.silent.len() >= times).then_some(())).await;
            assert!(peer(&one, TWO).silent);
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            assert_eq!(host.seen.lock().silent, vec![TWO; times], "it was told again");
            proxy.hold(false);
            until("news", || (!peer(&one, TWO).silent).then_some(())).await;
        }
        // A node that was forgotten is no longer listened for.
        one.locate(TWO, None);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(host.seen.lock().silent.len(), 2);
    });
}

#[test]
fn a_link_on_which_nothing_comes_back_is_made_again() {
    run(async {
        let [(_, one), (host, two)] = pair(alert(ONE), alert(TWO)).await;
        let proxy = Proxy::start(two.address()).await;
        one.locate(TWO, Some(proxy.address.clone()));
        connected(&one, TWO).await;
        proxy.hold(true);
        let told = until("the end", || peer(&one, TWO).trouble).await;
        assert!(told.contains("nothing came for"), "{told}");
        proxy.hold(false);
        connected(&one, TWO).await;
        one.send(vec![numbered(TWO, 1, 5)]);
        assert_eq!(number_of(&host.wait_for_messages(1).await[0].2), 5);
    });
}

#[test]
fn an_idle_link_stays_for_longer_than_any_patience() {
    run(async {
        let [(host, one), (_, two)] = pair(alert(ONE), alert(TWO)).await;
        connected(&one, TWO).await;
        connected(&two, ONE).await;
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert_eq!((peer(&one, TWO).connects, peer(&two, ONE).connects), (1, 1));
        assert!(host.seen.lock().silent.is_empty());
        let counters = peer(&one, TWO);
        assert!((10..=200).contains(&counters.frames_sent), "{} beats", counters.frames_sent);
    });
}
