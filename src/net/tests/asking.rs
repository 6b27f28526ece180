//! Requests: their answers, and what is known of those that get none.

use super::*;

/// Two nodes, the second reached through a proxy by the first.
async fn through_proxy(two: NetConfig) -> (Net, Proxy, Arc<TestHost>, Net) {
    let [(_, one), (host, two)] = pair(config(ONE), two).await;
    let proxy = Proxy::start(two.address()).await;
    one.locate(TWO, Some(proxy.address.clone()));
    connected(&one, TWO).await;
    (one, proxy, host, two)
}

async fn asked(host: &TestHost, count: usize) {
    host.wait("the request", |seen| (seen.asked >= count).then_some(())).await;
}

#[test]
fn each_request_gets_its_own_answer_in_whatever_order() {
    run(async {
        let [(_, one), (host, _two)] = pair(config(ONE), config(TWO)).await;
        let late = one.ask(TWO, "wait".into(), DEADLINE);
        let early = async {
            for number in 0..500 {
                let request = format!("number {number}");
                let answer = one.ask(TWO, request.clone().into(), DEADLINE).await.unwrap();
                assert_eq!(answer, format!("1: {request}"));
            }
            host.gate.add_permits(1);
        };
        let (late, ()) = tokio::join!(late, early);
        assert_eq!(late.unwrap(), "1: wait");
        let many = (0..500).map(|number| one.ask(TWO, format!("{number}").into(), DEADLINE));
        let answers = futures_util::future::join_all(many).await;
        let right = |(number, answer): (usize, Result<Bytes, _>)| answer.unwrap() == format!("1: {number}");
        assert!(answers.into_iter().enumerate().all(right));
        assert_eq!(peer(&one, TWO).asks_under_way, 0);
    });
}

#[test]
fn a_request_that_cannot_leave_was_not_sent() {
    run(async {
        let (_, one) = start(config(ONE)).await;
        let told = one.ask(TWO, "x".into(), DEADLINE).await.unwrap_err();
        assert!(matches!(&told, AskError::NotSent(why) if why.contains("node 2")), "{told}");
        // Nobody listens there: known after the first attempt, without waiting for the patience's end.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        one.locate(TWO, Some(closed.to_string()));
        for _ in 0..3 {
            let told = one.ask(TWO, "x".into(), DEADLINE * 9).await.unwrap_err();
            let named = |why: &str| why.contains(&closed.to_string()) || why.contains("no connection");
            assert!(matches!(&told, AskError::NotSent(why) if named(why)), "{told}");
        }
        // Somebody listens, but does not greet: it waits in the queue until its patience ends.
        let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        one.locate(TWO, Some(mute.local_addr().unwrap().to_string()));
        let told = one.ask(TWO, "x".into(), Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(&told, AskError::NotSent(why) if why.contains("50 ms")), "{told}");
        assert_eq!((peer(&one, TWO).asks_under_way, peer(&one, TWO).queued_bytes), (0, 0));
        one.shutdown().await;
        let told = one.ask(TWO, "x".into(), DEADLINE).await.unwrap_err();
        assert!(matches!(told, AskError::NotSent(_)), "{told}");
    });
}

#[test]
fn of_a_request_whose_link_breaks_nobody_knows() {
    run(async {
        let (one, proxy, host, _two) = through_proxy(config(TWO)).await;
        let (answer, ()) = tokio::join!(one.ask(TWO, "wait".into(), DEADLINE), async {
            asked(&host, 1).await;
            proxy.cut();
        });
        let told = answer.unwrap_err();
        let at_once = |why: &str| !why.contains("no answer came within");
        assert!(matches!(&told, AskError::Unknown(why) if at_once(why)), "{told}");
        // The next goes over a new link.
        connected(&one, TWO).await;
        assert_eq!(one.ask(TWO, "x".into(), DEADLINE).await.unwrap(), "1: x");
        assert_eq!(peer(&one, TWO).connects, 2);
    });
}

#[test]
fn of_a_request_without_an_answer_in_time_nobody_knows() {
    run(async {
        let [(_, one), (host, _two)] = pair(config(ONE), config(TWO)).await;
        connected(&one, TWO).await;
        let told = one.ask(TWO, "wait".into(), Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(&told, AskError::Unknown(why) if why.contains("50 ms")), "{told}");
        assert_eq!(peer(&one, TWO).asks_under_way, 0);
        // Its late answer reaches nobody else.
        host.gate.add_permits(1);
        assert_eq!(one.ask(TWO, "x".into(), DEADLINE).await.unwrap(), "1: x");
    });
}

#[test]
fn a_handler_that_breaks_is_told_and_takes_nobody_with_it() {
    run(async {
        let [(_, one), _two] = pair(config(ONE), config(TWO)).await;
        let told = one.ask(TWO, "panic".into(), DEADLINE).await.unwrap_err();
        assert!(matches!(&told, AskError::Unknown(why) if why.contains("broke off")), "{told}");
        assert_eq!(one.ask(TWO, "x".into(), DEADLINE).await.unwrap(), "1: x");
        assert_eq!(peer(&one, TWO).connects, 1);
    });
}

#[test]
fn requests_over_the_bounds_are_refused_and_messages_pass_them() {
    run(async {
        let narrow = NetConfig { asks_max: 2, ..config(TWO) };
        let [(_, one), (host, _two)] = pair(NetConfig { asks_max: 3, ..config(ONE) }, narrow).await;
        let wait = || one.ask(TWO, "wait".into(), DEADLINE);
        let rest = async {
            asked(&host, 2).await;
            // The other takes no third; this one sends no fourth.
            let refused = one.ask(TWO, "wait".into(), DEADLINE).await.unwrap_err();
            assert!(matches!(&refused, AskError::Refused(why) if why.contains("2 requests")), "{refused}");
            one.send(vec![numbered(TWO, 1, 4)]);
            assert_eq!(number_of(&host.wait_for_messages(1).await[0].2), 4);
            host.gate.add_permits(2);
        };
        let (first, second, ()) = tokio::join!(wait(), wait(), rest);
        assert_eq!((first.unwrap(), second.unwrap()), ("1: wait".into(), "1: wait".into()));
    });
}

#[test]
fn requests_over_the_own_bounds_are_not_sent() {
    run(async {
        let narrow = NetConfig { asks_max: 3, ask_bytes_max: 1_000, ..config(ONE) };
        let [(_, one), (host, _two)] = pair(narrow, config(TWO)).await;
        let wait = || one.ask(TWO, "wait".into(), DEADLINE);
        let rest = async {
            asked(&host, 3).await;
            let told = one.ask(TWO, "x".into(), DEADLINE).await.unwrap_err();
            assert!(matches!(&told, AskError::NotSent(why) if why.contains("3 requests")), "{told}");
            host.gate.add_permits(1);
            until("a free place", || (peer(&one, TWO).asks_under_way == 2).then_some(())).await;
            let told = one.ask(TWO, vec![0; 1_000].into(), DEADLINE).await.unwrap_err();
            assert!(matches!(&told, AskError::NotSent(why) if why.contains("limit of 1000")), "{told}");
            assert_eq!(one.ask(TWO, "x".into(), DEADLINE).await.unwrap(), "1: x");
            host.gate.add_permits(2);
        };
        let (first, second, third, ()) = tokio::join!(wait(), wait(), wait(), rest);
        assert!([first, second, third].iter().all(Result::is_ok));
        assert_eq!(host.seen.lock().asked, 4);
    });
}

#[test]
fn a_request_comes_after_the_messages_sent_before_it() {
    run(async {
        for _ in 0..10 {
            let ((_, one), (host, two)) = (start(config(ONE)).await, start(config(TWO)).await);
            // All of it is queued before there is a connection, so that it arrives together.
            one.locate(TWO, Some(two.advertised().to_owned()));
            one.send((0..100).map(|number| numbered(TWO, 1, number)).collect());
            let late = async { one.send((100..20_000).map(|number| numbered(TWO, 1, number)).collect()) };
            let (answer, ()) = tokio::join!(biased; one.ask(TWO, "x".into(), DEADLINE), late);
            assert_eq!(answer.unwrap(), "1: x");
            let before = host.seen.lock().messages_before_last_ask;
            assert!(before >= 100, "{before} of 100 messages");
            host.wait_for_messages(20_000).await;
        }
    });
}

#[test]
fn what_is_too_large_is_told_with_its_size() {
    run(async {
        let small = NetConfig { frame_bytes_max: 100_000, ..config(TWO) };
        let [(_, one), _two] = pair(config(ONE), small).await;
        let request = |bytes: usize| one.ask(TWO, Bytes::from(vec![0; bytes]), DEADLINE);
        let told = request(64 << 20).await.unwrap_err();
        assert!(matches!(&told, AskError::NotSent(why) if why.contains("67108864")), "{told}");
        // Only the greeting tells what the other takes.
        let told = request(100_000).await.unwrap_err();
        assert!(matches!(&told, AskError::NotSent(why) if why.contains("frames of 100000")), "{told}");
        assert_eq!(request(99_000).await.unwrap().len(), 99_003);
    });
}

#[test]
fn an_answer_that_is_too_large_is_told_as_lost() {
    run(async {
        let small = NetConfig { frame_bytes_max: 100_000, ..config(ONE) };
        let [(_, one), _two] = pair(small, config(TWO)).await;
        let told = one.ask(TWO, "large".into(), DEADLINE).await.unwrap_err();
        assert!(matches!(&told, AskError::Unknown(why) if why.contains("200000")), "{told}");
    });
}

#[test]
fn requests_that_wait_for_a_link_fail_as_not_sent_when_there_is_none() {
    run(async {
        let wary = NetConfig { silent_after_ms: 3_000, ..config(ONE) };
        let [(_, one), (host, two)] = pair(wary, config(TWO)).await;
        let proxy = Proxy::start(two.address()).await;
        one.locate(TWO, Some(proxy.address.clone()));
        connected(&one, TWO).await;
        // The connection stands still: what fits into the system's buffers may have been sent, the rest not.
        proxy.hold(true);
        let many = (0..40).map(|_| one.ask(TWO, Bytes::from(vec![7; 1 << 20]), DEADLINE));
        let answers = futures_util::future::join_all(many).await;
        let (mut unknown, mut not_sent) = (0, 0);
        for answer in answers {
            match answer.unwrap_err() {
                AskError::Unknown(_) => unknown += 1,
                AskError::NotSent(_) => not_sent += 1,
                AskError::Refused(why) => panic!("refused: {why}"),
            }
        }
        assert!(unknown >= 1 && not_sent >= 1, "{unknown} unknown, {not_sent} not sent");
        proxy.hold(false);
        two.shutdown().await;
        assert!(host.seen.lock().asked <= unknown, "one that was not sent was done");
    });
}

#[test]
fn a_node_that_stops_answers_what_it_took_up_and_the_rest_was_certainly_not_done() {
    run(async {
        for _ in 0..20 {
            let [(_, one), (host, two)] = pair(config(ONE), config(TWO)).await;
            connected(&one, TWO).await;
            let asking = (0..50).map(|asker| {
                let one = &one;
                async move {
                    let mut answered = 0;
                    loop {
                        match one.ask(TWO, format!("{asker}").into(), DEADLINE).await {
                            Ok(_) => answered += 1,
                            Err(why) => {
                                assert!(!why.perhaps_done(), "{why}");
                                return answered;
                            }
                        }
                    }
                }
            });
            let stop = async {
                asked(&host, 500).await;
                two.shutdown().await;
            };
            let (answered, ()) = tokio::join!(futures_util::future::join_all(asking), stop);
            // None was done of which the asker did not learn.
            assert_eq!(answered.iter().sum::<usize>(), host.seen.lock().asked);
        }
    });
}

#[test]
fn a_stop_waits_a_while_for_what_was_taken_up() {
    run(async {
        let [(_, one), (host, two)] = pair(config(ONE), config(TWO)).await;
        connected(&one, TWO).await;
        let (answer, ()) = tokio::join!(one.ask(TWO, "wait".into(), DEADLINE), async {
            asked(&host, 1).await;
            tokio::join!(two.shutdown(), async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                host.gate.add_permits(1);
            });
        });
        assert_eq!(answer.unwrap(), "1: wait");
    });
}
