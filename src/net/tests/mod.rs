//! Nodes on loopback: real sockets, real time, every wait with a deadline.

mod asking;
mod doors;
mod fetching;
mod proxy;
mod talking;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use self::proxy::Proxy;
use super::*;
use crate::id::{Index, ReplicaId, Term};
use crate::raft::message::PeerBody;
use crate::storage::entry::{Entry, EntryKind};

const CLUSTER: u64 = 0xc1;
const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);
/// Far over what anything takes here, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// A host that writes down what it is told.
struct TestHost {
    seen: Mutex<Seen>,
    news: Notify,
    /// Requests that begin with `wait` wait for one of these.
    gate: Arc<Semaphore>,
    removed: Mutex<Vec<NodeId>>,
    file: Mutex<Option<Bytes>>,
    /// Whether files are handed out from a disk.
    on_disk: bool,
}

#[derive(Default)]
struct Seen {
    messages: Vec<(NodeId, GroupId, PeerMessage)>,
    silent: Vec<NodeId>,
    turned_away: Vec<(NodeId, Refusal)>,
    asked: usize,
    ages: Vec<(NodeId, u64)>,
    /// How many messages had come when the last request did.
    messages_before_last_ask: usize,
}

impl TestHost {
    fn new() -> Arc<TestHost> {
        TestHost::with(None, false)
    }

    fn with(file: Option<Bytes>, on_disk: bool) -> Arc<TestHost> {
        Arc::new(TestHost {
            seen: Mutex::default(),
            news: Notify::new(),
            gate: Arc::new(Semaphore::new(0)),
            removed: Mutex::default(),
            file: Mutex::new(file),
            on_disk,
        })
    }

    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock());
        self.news.notify_waiters();
    }

    /// Waits until `found` finds something in what the host was told.
    async fn wait<T>(&self, what: &str, found: impl Fn(&Seen) -> Option<T>) -> T {
        let wait = async {
            loop {
                let news = self.news.notified();
                let mut news = std::pin::pin!(news);
                news.as_mut().enable();
                if let Some(found) = found(&self.seen.lock()) {
                    return found;
                }
                news.await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{what} never came"))
    }

    async fn wait_for_messages(&self, count: usize) -> Vec<(NodeId, GroupId, PeerMessage)> {
        let what = format!("{count} messages");
        self.wait(&what, |seen| (seen.messages.len() >= count).then(|| seen.messages.clone())).await
    }
}

impl Host for TestHost {
    fn messages(&self, from: NodeId, messages: Vec<(GroupId, PeerMessage)>) {
        let messages = messages.into_iter().map(|(group, message)| (from, group, message));
        self.note(|seen| seen.messages.extend(messages));
    }

    fn ask(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes> {
        self.note(|seen| {
            seen.asked += 1;
            seen.messages_before_last_ask = seen.messages.len();
        });
        let (gate, waits) = (self.gate.clone(), request.starts_with(b"wait"));
        let answer = match &request[..] {
            b"large" => Bytes::from(vec![1; 200_000]),
            _ => Bytes::from([format!("{from}: ").as_bytes(), &request].concat()),
        };
        async move {
            assert!(request != "panic", "it was told to");
            if waits {
                gate.acquire().await.expect("it is never closed").forget();
            }
            answer
        }
        .boxed()
    }

    fn silent(&self, node: NodeId) {
        self.note(|seen| seen.silent.push(node));
    }

    fn admit(&self, node: NodeId, age: DataAge) -> Result<(), NotAdmitted> {
        self.note(|seen| seen.ages.push((node, age.age)));
        match self.removed.lock().contains(&node) {
            true => Err(NotAdmitted::ForGood(format!("node {node} was removed from the cluster"))),
            false => Ok(()),
        }
    }

    fn turned_away(&self, by: NodeId, refusal: Refusal) {
        self.note(|seen| seen.turned_away.push((by, refusal)));
    }

    fn open_bulk(&self, _from: NodeId, name: BulkName) -> Result<BulkSource, Error> {
        match self.file.lock().clone() {
            Some(bytes) if self.on_disk => {
                let mut file = tempfile::tempfile().unwrap();
                std::io::Write::write_all(&mut file, &bytes).unwrap();
                Ok(file.into())
            }
            Some(bytes) => Ok(bytes.into()),
            None => Err(Error::NotFound(format!("{name:?} is not here"))),
        }
    }
}

/// Patient enough for a busy machine.
fn config(node: NodeId) -> NetConfig {
    NetConfig { beat_ms: 50, silent_after_ms: 10_000, ..NetConfig::new(CLUSTER, node, "127.0.0.1:0") }
}

/// Quick to notice silence.
fn alert(node: NodeId) -> NetConfig {
    NetConfig { silent_after_ms: 1_000, ..config(node) }
}

async fn start(config: NetConfig) -> (Arc<TestHost>, Net) {
    let host = TestHost::new();
    let net = Net::start(config, host.clone()).await.unwrap();
    (host, net)
}

/// Two nodes that know where the other is.
async fn pair(one: NetConfig, two: NetConfig) -> [(Arc<TestHost>, Net); 2] {
    let (one, two) = (start(one).await, start(two).await);
    one.1.locate(TWO, Some(two.1.advertised().to_owned()));
    two.1.locate(ONE, Some(one.1.advertised().to_owned()));
    [one, two]
}

/// Runs a test on two threads, and ends it if it hangs.
fn run(test: impl Future<Output = ()>) {
    // What was logged is shown with a test that fails. Another test may have set it up.
    let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_test_writer().try_init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE * 2, test).await.expect("the test ends in time");
    });
    runtime.shutdown_background();
}

/// Waits until `found` finds something.
async fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = found() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{what} never came about"))
}

fn peer(net: &Net, node: NodeId) -> PeerCounters {
    net.counters().peers.into_iter().find(|peer| peer.node == node).expect("the node is located")
}

async fn connected(net: &Net, node: NodeId) {
    until("a connection", || peer(net, node).connected.then_some(())).await;
}

fn message(to: NodeId, group: u64, body: PeerBody) -> PeerOut {
    let message = PeerMessage { from: ReplicaId(10), to: ReplicaId(20), term: Term(3), body };
    PeerOut { to, group: GroupId(group), message }
}

/// A heartbeat with a number that tells it from others.
fn numbered(to: NodeId, group: u64, number: u64) -> PeerOut {
    message(to, group, PeerBody::Heartbeat { commit: Index(number), context: Bytes::new() })
}

fn number_of(message: &PeerMessage) -> u64 {
    match &message.body {
        PeerBody::Heartbeat { commit, .. } => commit.0,
        other => panic!("{other:?} is not numbered"),
    }
}

fn append(to: NodeId, entries: u64, bytes: usize) -> PeerOut {
    let entries = (8..8 + entries).map(|index| Entry {
        index: Index(index),
        term: Term(2),
        kind: EntryKind::Batch,
        data: Bytes::from(vec![index as u8; bytes]),
    });
    let previous = (Index(7), Term(2));
    message(to, 1, PeerBody::Append { previous, entries: entries.collect(), commit: Index(5) })
}
