//! Sessions, by hand and by the client library: commands that are applied once, however often they are sent.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use rustix::process::Signal;
use serde_json::json;
use statehouse::client::{Client, SessionOptions};
use statehouse::error::Error;
use statehouse::machine::batch::Numbered;
use statehouse::machine::outcome::Outcome;

use super::process::{Done, Node, component, directory};

fn node_with_counter(directory: &tempfile::TempDir) -> Node {
    let node = Node::serve(directory.path(), &[]);
    node.run(["machine", "create", "sum", "--module", &component("counter")]).ok();
    node
}

fn open(node: &Node, ttl: &str) -> String {
    node.run(["session", "open", "--machine", "sum", "--ttl", ttl]).ok().to_owned()
}

/// Adds `step` as a command of a session; `place` is its number and what is acknowledged.
fn add(node: &Node, session: &str, step: &str, place: [&str; 2]) -> Done {
    let [number, acknowledged] = place;
    let place = ["--session", session, "--number", number, "--acknowledged", acknowledged, "--json"];
    let [a, b, c, d, e, f, g] = place;
    node.run(["apply", "sum", step, a, b, c, d, e, f, g])
}

/// The reason of an error told as JSON.
fn reason(done: &Done) -> serde_json::Value {
    assert_eq!((done.code, done.stdout.len()), (1, 0), "{done:?}");
    let told: serde_json::Value = serde_json::from_str(&done.stderr).expect("an error as JSON");
    told["error"]["reason"].clone()
}

#[test]
fn a_command_sent_again_has_its_first_outcome_and_is_applied_once_also_after_a_crash() {
    let directory = directory();
    let node = node_with_counter(&directory);
    let session = open(&node, "1h");
    let first = add(&node, &session, "5", ["1", "0"]).json();
    assert_eq!(first["ok"], "5");
    node.run(["apply", "sum", "100"]).ok();
    let refused = add(&node, &session, "many", ["2", "0"]).json();
    assert_eq!(refused["refused"]["code"], 1);
    for _ in 0..3 {
        assert_eq!(add(&node, &session, "5", ["1", "0"]).json(), first, "index and revision too");
        assert_eq!(add(&node, &session, "many", ["2", "0"]).json(), refused);
    }
    node.kill();
    let node = Node::serve(directory.path(), &[]);
    assert_eq!(add(&node, &session, "5", ["1", "0"]).json(), first);
    assert_eq!(add(&node, &session, "7", ["3", "2"]).json()["ok"], "112");
    assert_eq!(node.run(["query", "sum", ""]).ok(), "112");
    assert_eq!(reason(&add(&node, &session, "5", ["1", "0"])), "NUMBER_PASSED");
    assert_eq!(node.run(["query", "sum", ""]).ok(), "112");
}

#[test]
fn numbers_that_cannot_be_are_told_apart() {
    let directory = directory();
    let node = node_with_counter(&directory);
    let opened = node.run(["session", "open", "--machine", "sum", "--ttl", "1h", "--json"]).json();
    assert_eq!((&opened["ttl_ms"], &opened["window"]), (&json!(3_600_000), &json!(256)));
    let session = opened["session"].to_string();
    for place in [["0", "0"], ["1", "1"], ["3", "7"]] {
        assert_eq!(reason(&add(&node, &session, "5", place)), "INVALID", "{place:?}");
    }
    assert_eq!(reason(&add(&node, "0", "5", ["1", "0"])), "INVALID");
    let ahead = add(&node, &session, "5", ["257", "0"]);
    assert_eq!(reason(&ahead), "NUMBER_AHEAD");
    assert!(ahead.stderr.contains("256") && ahead.stderr.contains("session_window"), "{ahead:?}");
    assert_eq!(add(&node, &session, "5", ["257", "1"]).json()["ok"], "5");
    assert_eq!(add(&node, &session, "6", ["256", "0"]).json()["ok"], "11");
    assert_eq!(node.run(["query", "sum", ""]).ok(), "11");
    node.run(["session", "open", "--machine", "nobody"]).failed(1, &["nobody"]);
    node.run(["session", "open", "--machine", "sum", "--ttl", "0s"]).failed(2, &["0s", "1ms"]);
}

#[test]
fn a_session_that_has_ended_is_an_error_of_its_own_and_nothing_is_applied_again() {
    let directory = directory();
    let node = node_with_counter(&directory);
    let (closed, expires, kept) = (open(&node, "1h"), open(&node, "1s"), open(&node, "3s"));
    let begun = Instant::now();
    for session in [&closed, &expires, &kept] {
        add(&node, session, "1", ["1", "0"]).ok();
    }
    node.run(["session", "close", &closed, "--machine", "sum"]).ok();
    node.run(["session", "close", &closed, "--machine", "sum"]).failed(1, &[&closed, "has ended"]);
    for session in [closed.as_str(), "999999"] {
        let done = add(&node, session, "1", ["1", "0"]);
        assert_eq!(reason(&done), "SESSION_EXPIRED");
        assert!(done.stderr.contains("was not applied now") && done.stderr.contains("unknown"), "{done:?}");
    }
    while begun.elapsed() < Duration::from_secs(5) {
        node.run(["lease", "renew", &kept, "--machine", "sum"]).ok();
        std::thread::sleep(Duration::from_millis(250));
    }
    assert_eq!(reason(&add(&node, &expires, "1", ["1", "0"])), "SESSION_EXPIRED");
    assert_eq!(reason(&add(&node, &expires, "1", ["2", "1"])), "SESSION_EXPIRED");
    assert_eq!(node.run(["lease", "renew", &expires, "--machine", "sum"]).code, 1);
    assert_eq!(add(&node, &kept, "1", ["1", "0"]).json()["ok"], "3");
    assert_eq!(node.run(["query", "sum", ""]).ok(), "3");
}

/// Stands between clients and a node; keeps the answers to itself when told so.
struct Between {
    address: String,
    mute: Arc<AtomicBool>,
}

impl Between {
    fn start(node: &str) -> Between {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let (node, mute) = (node.to_owned(), Arc::new(AtomicBool::new(false)));
        let is_mute = mute.clone();
        std::thread::spawn(move || {
            while let Ok((mut from, _)) = listener.accept() {
                let mut to = TcpStream::connect(&node).expect("the node listens");
                let (answers, back) =
                    (to.try_clone().expect("a socket"), from.try_clone().expect("a socket"));
                let is_mute = is_mute.clone();
                std::thread::spawn(move || pass(answers, back, &is_mute));
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            }
        });
        Between { address, mute }
    }

    fn mute(&self, mute: bool) {
        self.mute.store(mute, Ordering::SeqCst);
    }
}

/// Either end may go first.
fn pass(mut from: TcpStream, mut to: TcpStream, mute: &AtomicBool) {
    let mut bytes = [0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if !mute.load(Ordering::SeqCst) && to.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_got_by_sending_again_which_counts_twice_without_a_session() {
    let directory = directory();
    let node = node_with_counter(&directory);
    let between = Between::start(&node.client);
    let sum = || node.run(["query", "sum", ""]).ok().to_owned();
    let client = || Client::new([&between.address, &node.client]).expect("addresses");

    between.mute(true);
    let hasty = client().with_timeout(Duration::from_secs(1));
    let lost = hasty.apply("sum", "1").await.expect_err("nothing comes back");
    assert!(matches!(lost, Error::DeadlineExceeded(_)), "{lost:?}");
    hasty.apply("sum", "1").await.expect("the other address answers");
    assert_eq!(sum(), "2", "sent twice by hand, it counts twice");

    let session = open(&node, "1h").parse().expect("an id");
    let numbered = Numbered { session, number: 1, acknowledged: 0 };
    let hasty = client().with_timeout(Duration::from_secs(1));
    let lost = hasty.apply_numbered("sum", "1", numbered).await.expect_err("nothing comes back");
    assert!(matches!(lost, Error::DeadlineExceeded(_)), "{lost:?}");
    let applied = hasty.apply_numbered("sum", "1", numbered).await.expect("the other address answers");
    assert_eq!((applied.outcome, sum().as_str()), (Outcome::Ok("3".into()), "3"));

    between.mute(false);
    let session = client().session("sum", SessionOptions::default()).await.expect("opened");
    between.mute(true);
    let applied = session.apply("1").await.expect("it is sent again");
    assert_eq!((applied.outcome, sum().as_str()), (Outcome::Ok("4".into()), "4"));
    assert_eq!(session.repeated(), 1);
    node.signal(Signal::STOP);
    let given_up = session.apply_within("0", Duration::from_millis(50)).await;
    node.signal(Signal::CONT);
    let given_up = given_up.expect_err("nobody answers within this time");
    assert!(matches!(given_up, Error::DeadlineExceeded(_) | Error::Unavailable(_)), "{given_up:?}");
    session.close().await.expect("it is open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_kept_alive_acknowledges_by_itself_and_ends_as_an_error_of_its_own() {
    let directory = directory();
    let node = node_with_counter(&directory);
    let client = Client::new([&node.client]).expect("an address");
    let options = SessionOptions::default().with_ttl(Duration::from_secs(2));
    let session = Arc::new(client.session("sum", options).await.expect("opened"));
    // Four times the window, sixty-four under way at a time.
    let adding = (0..1024).map(|_| {
        let session = session.clone();
        async move { session.apply("1").await.map(drop) }
    });
    let all: Vec<_> = futures_util::stream::iter(adding).buffer_unordered(64).collect().await;
    assert!(all.into_iter().all(|added| added.is_ok()));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(session.apply("1").await.expect("it lives").outcome, Outcome::Ok("1025".into()));
    // Ended by somebody else, as its time would have: what is under way and what comes learns of it.
    let under_way: Vec<_> = (0..8)
        .map(|_| {
            let session = session.clone();
            tokio::spawn(async move {
                loop {
                    if let Err(why) = session.apply("1").await {
                        return why;
                    }
                }
            })
        })
        .collect();
    client.close_session("sum", session.id()).await.expect("it is open");
    for ended in under_way {
        let why = ended.await.expect("no panic");
        assert!(matches!(why, Error::SessionExpired(_)), "{why:?}");
    }
    assert!(session.has_ended());
    let why = session.apply("1").await.expect_err("it has ended");
    assert!(matches!(why, Error::SessionExpired(_)), "{why:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_dropped_is_closed_and_one_whose_client_is_gone_expires() {
    let directory = directory();
    let node = node_with_counter(&directory);
    let client = Client::new([&node.client]).expect("an address");
    let options = SessionOptions::default().with_ttl(Duration::from_secs(1));
    let session = client.session("sum", options.with_ttl(Duration::from_secs(3_600))).await.expect("opened");
    let dropped = session.id();
    drop(session);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let (address, lost) = (node.client.clone(), tokio::sync::oneshot::channel());
    runtime.spawn(async move {
        let session =
            Client::new([address]).expect("an address").session("sum", options).await.expect("opened");
        lost.0.send(session.id()).expect("the test waits");
        std::mem::forget(session);
    });
    let lost = lost.1.await.expect("opened");
    runtime.shutdown_background();
    for session in [dropped, lost] {
        let begun = Instant::now();
        while client.renew_leases("sum", &[session]).await.expect("the node is there") != [None] {
            assert!(begun.elapsed() < Duration::from_secs(20), "the session {session} lives on");
            // Renewed, the one whose client is gone lives another second.
            tokio::time::sleep(Duration::from_millis(1_500)).await;
        }
    }
}
