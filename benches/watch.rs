//! What watchers cost whom: a batch with watchers that it does not concern and with some that it does, and
//! how long an event takes from its commit to a subscriber in the same process.
//!
//! What a batch costs without watchers is in `benches/apply.rs`; here is what is added to it. Each figure is
//! the median of several rounds.

use std::hint::black_box;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use statehouse::id::Revision;
use statehouse::machine::event::{EventKind, EventRows};
use statehouse::machine::outcome::Context;
use statehouse::machine::view::MemoryView;
use statehouse::node::config::NodeConfig;
use statehouse::node::request::{KeySpan, Selection, WatchSpec, Watched};
use statehouse::watch::{Bounds, Budget, Hub, Standing, Step, Watcher};
use statehouse::{Node, time};
use statehouse_kv::Call;
use statehouse_kv::messages::PutRequest;

const ROUNDS: usize = 15;

/// The key that is written.
const WRITTEN: &str = "watched/00050000/written";

/// A machine with nothing but a hub.
struct Machine {
    hub: Arc<Hub>,
    revision: u64,
    written: Written,
}

/// The key that a revision writes.
type Written = fn(u64) -> String;

fn one_key(_: u64) -> String {
    WRITTEN.to_owned()
}

/// Keys in no order: what a search reads is seldom what the last one has read. Of even numbers: those with
/// odd ones concern who watches prefixes.
fn any_key(revision: u64) -> String {
    format!("watched/{:08}/written", revision * 15_838 % 100_000)
}

impl Machine {
    fn new(written: Written) -> Machine {
        let hub = Hub::new(Revision::FIRST, Budget::new(1 << 30), Bounds::default(), time::seed());
        Machine { hub: Arc::new(hub), revision: 1, written }
    }

    /// A watcher that keeps up.
    fn watch(&self, span: KeySpan) -> Watcher {
        let revision = Revision(self.revision);
        let mut watcher = Watcher::new(self.hub.clone(), Selection::of(span), revision.next());
        let (first, view) = (Revision(2), MemoryView::default());
        watcher.read(Standing { revision, first, view: &view }).expect("nothing is to be read");
        watcher
    }

    /// The rows of the next batch: one put of a value of 256 bytes.
    fn batch(&mut self) -> Vec<(Vec<u8>, Bytes)> {
        self.revision += 1;
        let mut rows = EventRows::default();
        rows.savepoint();
        let context = Context { index: 1, offset: 0, time: 1, revision: self.revision };
        let key = (self.written)(self.revision).into_bytes();
        rows.push(&context, EventKind::Put, key, vec![b'v'; 256]);
        rows.into_rows().collect()
    }

    fn publish(&self, rows: &[(Vec<u8>, Bytes)]) {
        self.hub.publish(Revision(self.revision), rows.iter().map(|(key, row)| (&key[..], row)));
    }
}

/// What watchers watch that nothing is written to, by their number; what is written is in their midst.
type Elsewhere = fn(usize) -> KeySpan;

/// Half of them watch a key, half a prefix.
fn keys_and_prefixes(number: usize) -> KeySpan {
    let key = format!("watched/{number:08}");
    if number.is_multiple_of(2) { KeySpan::key(key) } else { KeySpan::prefix(key) }.expect("a short key")
}

/// Each watches a span of its own.
fn spans(number: usize) -> KeySpan {
    let (start, end) = (format!("watched/{number:08}"), format!("watched/{number:08}/k"));
    KeySpan::range(start, Some(end.into())).expect("it is not empty")
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// What publishing a batch costs, in nanoseconds: the median of many short times, so that other work on the
/// computer does not count.
fn publish_ns(machine: &mut Machine, mut drain: impl FnMut(), step: usize) -> f64 {
    let mut times = Vec::new();
    for _ in 0..ROUNDS * 50 {
        let first = machine.revision;
        let made: Vec<_> = (0..step).map(|_| machine.batch()).collect();
        machine.revision = first;
        let begun = Instant::now();
        for rows in &made {
            machine.revision += 1;
            machine.publish(black_box(rows));
        }
        times.push(begun.elapsed().as_nanos() as f64 / step as f64);
        drain();
    }
    median(times)
}

fn not_concerned(of: &str, elsewhere: Elsewhere, written: Written) {
    println!("publishing a batch of one put, with watchers that it does not concern, of {of}:");
    let mut none = 0.0;
    for count in [0, 1, 10, 100, 100_000] {
        let mut machine = Machine::new(written);
        let watchers: Vec<Watcher> = (0..count).map(|number| machine.watch(elsewhere(number))).collect();
        assert_eq!(machine.hub.present(), count);
        let ns = publish_ns(&mut machine, || (), 200);
        if count == 0 {
            none = ns;
        }
        println!("{count:>9} watchers {ns:>9.1} ns   {:>+7.1} ns", ns - none);
        drop(watchers);
    }
}

fn concerned() {
    println!("publishing a batch of one put, with watchers of its key:");
    for count in [1, 10, 100, 1_000] {
        let mut machine = Machine::new(one_key);
        let span = || KeySpan::key(WRITTEN).expect("a short key");
        let mut watchers: Vec<Watcher> = (0..count).map(|_| machine.watch(span())).collect();
        let drain = || {
            for watcher in &mut watchers {
                let told = watcher.poll(Waker::noop());
                assert!(matches!(told, Poll::Ready(Ok(Step::Events(_)))), "it keeps up");
                assert!(watcher.poll(Waker::noop()).is_pending());
            }
        };
        let ns = publish_ns(&mut machine, drain, 1);
        println!("{count:>9} watchers {:>9.2} us", ns / 1e3);
    }
}

fn shown(what: &str, mut all: Vec<Duration>) {
    all.sort();
    let at = |part: f64| all[(all.len() as f64 * part) as usize].as_nanos() as f64 / 1e3;
    println!("{what}: median {:.1} us, p99 {:.1} us", at(0.5), at(0.99));
}

/// From the moment at which an applied batch is published until a task has its event.
async fn delivery() {
    let mut machine = Machine::new(one_key);
    let mut watcher = machine.watch(KeySpan::all());
    let (received, told) = std::sync::mpsc::channel();
    tokio::spawn(async move {
        while let Ok(Step::Events(_)) = std::future::poll_fn(|context| watcher.poll(context.waker())).await {
            if received.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    let measure = move || {
        let mut all = Vec::new();
        for _ in 0..5_000 {
            std::thread::sleep(Duration::from_micros(200));
            let rows = machine.batch();
            let begun = Instant::now();
            machine.publish(&rows);
            all.push(told.recv().expect("the task goes on") - begun);
        }
        all
    };
    let all = tokio::task::spawn_blocking(measure).await.expect("it does not panic");
    shown("from the commit to a subscriber", all);
}

/// A node with a machine `kv`.
async fn node_with_kv(directory: &tempfile::TempDir) -> Node {
    let config = NodeConfig { bootstrap: true, ..NodeConfig::new(directory.path(), "bench") };
    let node = Node::open(config).await.expect("it opens");
    let kv = node.builtin("kv").await.expect("it is built in");
    node.create_machine("kv", kv, Bytes::new()).await.expect("it is created");
    node
}

/// The same of a whole node: what subscribers of a key have to wait longer than the one who wrote it.
async fn beside_the_writer(subscribers: usize, puts: usize) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let node = node_with_kv(&directory).await;
    let (told, mut received) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..subscribers {
        let span = KeySpan::key("k").expect("a short key");
        let mut watch = node.watch("kv", WatchSpec::of(span)).await.expect("it is watched");
        let told = told.clone();
        tokio::spawn(async move {
            while let Ok(Watched::Events(_)) = watch.next().await {
                if told.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
    }
    let (mut written, mut behind) = (Vec::new(), Vec::new());
    for number in 0..puts {
        let put = PutRequest { key: b"k".into(), value: format!("{number}").into(), ..Default::default() };
        let begun = Instant::now();
        node.apply("kv", put.to_envelope().into()).await.expect("it is applied");
        let answered = Instant::now();
        written.push(answered - begun);
        for _ in 0..subscribers {
            let at = received.recv().await.expect("the tasks go on");
            behind.push(at.saturating_duration_since(answered));
        }
    }
    shown("a put, until its writer is answered", written);
    shown(&format!("from then until {subscribers} subscribers have it (0: before)"), behind);
    node.shutdown().await;
}

fn main() {
    not_concerned("keys and prefixes", keys_and_prefixes, one_key);
    not_concerned("keys and prefixes, another key each time", keys_and_prefixes, any_key);
    not_concerned("spans", spans, one_key);
    not_concerned("spans, another key each time", spans, any_key);
    concerned();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(delivery());
    runtime.block_on(beside_the_writer(1, 2_000));
    runtime.block_on(beside_the_writer(1_000, 200));
}
