//! Watches of a node in this process.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use statehouse::error::Error;
use statehouse::id::Revision;
use statehouse::machine::event::EventKind;
use statehouse::node::Node;
use statehouse::node::config::NodeConfig;
use statehouse::node::request::{KeySpan, Selection, WatchEvents, WatchSpec, Watched};
use statehouse::node::watches::Watch;
use statehouse_kv::Call;
use statehouse_kv::messages::{DeleteRangeRequest, KeyValue};

use super::guests::*;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn from(span: KeySpan, revision: u64) -> WatchSpec {
    WatchSpec { from: Some(Revision(revision)), ..WatchSpec::of(span) }
}

async fn next(watch: &mut Watch) -> Watched {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("in time").unwrap()
}

async fn events(watch: &mut Watch) -> WatchEvents {
    match next(watch).await {
        Watched::Events(events) => events,
        Watched::Progress(revision) => panic!("nobody asked how far it is: {revision}"),
    }
}

/// What was put, by an event of the kv machine.
fn value(encoded: &Bytes) -> String {
    let pair: KeyValue = prost::Message::decode(encoded.clone()).unwrap();
    String::from_utf8(pair.value).unwrap()
}

async fn delete(node: &Node, key: &str) {
    let request = DeleteRangeRequest { key: key.into(), ..Default::default() };
    node.apply("kv", request.to_envelope().into()).await.unwrap();
}

async fn node_with_kv(directory: &tempfile::TempDir) -> Node {
    let node = Node::open(config(directory)).await.unwrap();
    create_kv(&node).await;
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn history_comes_first_then_what_happens_and_nothing_is_missed_in_between() {
    const WRITES: u64 = 2_000;
    let directory = tempfile::tempdir().unwrap();
    let node = node_with_kv(&directory).await;
    for number in 0..100 {
        must_put(&node, "k", &number.to_string()).await;
    }
    let writer = node.clone();
    let writing = tokio::spawn(async move {
        for number in 100..WRITES {
            must_put(&writer, "k", &number.to_string()).await;
        }
    });
    // Some begin before the writes end, some after; from the first revision on and from the midst.
    let mut watching = Vec::new();
    for begun in [2, 2, 50, 101, 102] {
        let node = node.clone();
        watching.push(tokio::spawn(async move {
            let mut watch = node.watch("kv", from(KeySpan::key("k").unwrap(), begun)).await.unwrap();
            assert_eq!(watch.first(), Revision(begun));
            for revision in begun..WRITES + 2 {
                let told = events(&mut watch).await;
                assert_eq!((told.revision, told.events.len()), (Revision(revision), 1));
                assert_eq!(value(&told.events[0].value), (revision - 2).to_string());
                assert!(told.index.0 > 0 && told.time.0 > 0);
            }
        }));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    writing.await.unwrap();
    for watching in watching {
        watching.await.unwrap();
    }
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_what_it_is_about_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let node = node_with_kv(&directory).await;
    let selection = |span, puts, deletes| Selection::new(span, puts, deletes).unwrap();
    let spec = |selection| WatchSpec { selection, ..WatchSpec::of(KeySpan::all()) };
    let prefix = KeySpan::prefix("user/").unwrap();
    let mut puts = node.watch("kv", spec(selection(prefix.clone(), true, false))).await.unwrap();
    let mut deletes = node.watch("kv", spec(selection(prefix.clone(), false, true))).await.unwrap();
    let mut span = node.watch("kv", from(KeySpan::range("a", Some("c".into())).unwrap(), 1)).await.unwrap();
    let mut before = node.watch("kv", WatchSpec { previous: true, ..WatchSpec::of(prefix) }).await.unwrap();
    assert_eq!(puts.first(), Revision(2));
    for (key, value) in [("user/1", "x"), ("other", "y"), ("b", "z"), ("c", "z"), ("user/1", "w")] {
        must_put(&node, key, value).await;
    }
    delete(&node, "user/1").await;

    let told = [events(&mut puts).await, events(&mut puts).await];
    let values: Vec<_> = told.iter().map(|told| (told.revision.0, value(&told.events[0].value))).collect();
    assert_eq!(values, [(2, "x".to_owned()), (6, "w".to_owned())]);
    let deleted = events(&mut deletes).await;
    assert_eq!((deleted.revision, deleted.events[0].kind), (Revision(7), EventKind::Delete));
    assert_eq!(events(&mut span).await.events[0].key, "b");
    let mut previous = Vec::new();
    for _ in 0..3 {
        previous.push(events(&mut before).await.events[0].previous.as_ref().map(value));
    }
    assert_eq!(previous, [None, Some("x".into()), Some("w".into())]);
    // Each has said all that it has to say.
    for watch in [&mut puts, &mut deletes, &mut span, &mut before] {
        watch.asker().want_progress();
        assert_eq!(next(watch).await, Watched::Progress(Revision(7)));
    }
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_it_is_told_now_and_then_up_to_where_it_has_everything() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(NodeConfig { watch_progress_ms: 50, ..config(&directory) }).await.unwrap();
    create_kv(&node).await;
    let spec = WatchSpec { progress: true, ..WatchSpec::of(KeySpan::key("silent").unwrap()) };
    let mut watch = node.watch("kv", spec).await.unwrap();
    let mut told = Revision(0);
    for number in 0..3 {
        must_put(&node, "loud", &number.to_string()).await;
        // A mark of before may still be on its way.
        while told < Revision(number + 2) {
            let Watched::Progress(revision) = next(&mut watch).await else {
                panic!("nothing happened to it")
            };
            assert!(revision >= told);
            told = revision;
        }
    }
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_watches_that_nobody_reads_hold_nothing_and_slow_no_writer() {
    const WATCHES: usize = 10_000;
    const WRITES: u64 = 600;
    const BEFORE: usize = 200;
    let directory = tempfile::tempdir().unwrap();
    let node = node_with_kv(&directory).await;
    let large = "x".repeat(1_000);
    let mut alone = Vec::new();
    for _ in 0..BEFORE {
        alone.push(timed_put(&node, &large).await);
    }
    let mut watches = Vec::new();
    for number in 0..WATCHES {
        let span = if number % 2 == 0 { KeySpan::key("k").unwrap() } else { KeySpan::prefix("k").unwrap() };
        let mut watch = node.watch("kv", WatchSpec::of(span)).await.unwrap();
        assert!(watch.next().now_or_never().is_none(), "nothing happened yet");
        watches.push(watch);
    }
    let queued = || async {
        let metrics = node.metrics().await;
        let line = metrics.lines().find_map(|line| line.strip_prefix("statehouse_watch_queue_bytes "));
        line.expect("it is told").parse::<u64>().unwrap()
    };
    let (mut most, mut watched) = (0, Vec::new());
    for number in 0..WRITES {
        watched.push(timed_put(&node, &large).await);
        if number % 10 == 9 {
            most = most.max(queued().await);
        }
    }
    // They share what is queued, and were sent away when their queues were full.
    assert!(most > 10_000 && most < 1 << 20, "{most} bytes");
    assert_eq!(queued().await, 0);
    // While all of them are sent the events, and while they are away.
    for watched in watched.chunks_mut(BEFORE) {
        let (alone, watched) = (median(&mut alone), median(watched));
        assert!(watched < 3 * alone + Duration::from_millis(10), "{watched:?}, {alone:?} without watches");
    }
    let first = 2 + BEFORE as u64;
    for watch in [0, 1, 5_000, WATCHES - 1] {
        for revision in first..first + WRITES {
            assert_eq!(events(&mut watches[watch]).await.revision, Revision(revision));
        }
    }
    // Those who read again keep up again.
    must_put(&node, "k", "last").await;
    assert_eq!(value(&events(&mut watches[1]).await.events[0].value), "last");
    node.shutdown().await;
}

async fn timed_put(node: &Node, value: &str) -> Duration {
    let begun = Instant::now();
    must_put(node, "k", value).await;
    begun.elapsed()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_cannot_be_are_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(NodeConfig { watches_max: 2, ..config(&directory) }).await.unwrap();
    create_kv(&node).await;
    create(&node, "notes", NOTES).await;
    must_put(&node, "k", "v").await;
    let all = || WatchSpec::of(KeySpan::all());
    let refused =
        async |machine: &str, spec: WatchSpec| node.watch(machine, spec).await.err().expect("refused");
    let told = refused("kv", from(KeySpan::all(), 4)).await;
    assert!(matches!(told, Error::Invalid(_)), "{told:?}");
    let text = told.to_string();
    assert!(["revision 4", "at 2", "at 3"].iter().all(|part| text.contains(part)), "{text}");
    let told = refused("nobody", all()).await;
    assert!(matches!(told, Error::NotFound(_)), "{told:?}");
    let told = refused("notes", WatchSpec { previous: true, ..all() }).await;
    assert!(matches!(&told, Error::Invalid(text) if text.contains("builtin:kv")), "{told:?}");
    let both =
        [node.watch("kv", from(KeySpan::all(), 3)).await.unwrap(), node.watch("kv", all()).await.unwrap()];
    let told = refused("kv", all()).await;
    let named = |text: &str| text.contains("2 watches") && text.contains("limits.watches_max");
    assert!(matches!(&told, Error::Overloaded(text) if named(text)), "{told:?}");
    drop(both);
    node.watch("kv", all()).await.unwrap();
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_when_its_machine_is_deleted_or_its_node_stops() {
    let directory = tempfile::tempdir().unwrap();
    let node = node_with_kv(&directory).await;
    let kv = node.builtin("kv").await.unwrap();
    node.create_machine("other", kv, Bytes::new()).await.unwrap();
    let mut deleted = node.watch("kv", WatchSpec::of(KeySpan::all())).await.unwrap();
    let mut stopped = node.watch("other", WatchSpec::of(KeySpan::all())).await.unwrap();
    let ended = tokio::spawn(async move { deleted.next().await });
    node.delete_machine("kv").await.unwrap();
    let told = tokio::time::timeout(PATIENCE, ended).await.expect("it ends").unwrap().unwrap_err();
    assert!(matches!(&told, Error::Unavailable(text) if text.contains("deleted")), "{told:?}");
    assert!(matches!(node.watch("kv", WatchSpec::of(KeySpan::all())).await.err(), Some(Error::NotFound(_))));
    let ended = tokio::spawn(async move { stopped.next().await });
    node.shutdown().await;
    let told = tokio::time::timeout(PATIENCE, ended).await.expect("it ends").unwrap().unwrap_err();
    assert!(matches!(told, Error::Unavailable(_)), "{told:?}");
}
