//! Clients that count through sessions while everything befalls the nodes: a key is put, and its version is
//! how often that was done. What was acknowledged is what was done, no more and no less.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use statehouse::Client;
use statehouse::client::{Session, SessionOptions};
use statehouse::machine::batch::Numbered;
use statehouse::machine::outcome::Outcome;
use statehouse::node::request::Consistency;
use statehouse_kv::Call;
use statehouse_kv::messages::{PutRequest, RangeRequest};
use tokio::task::JoinHandle;

use super::cluster::{Cluster, MACHINE, PATIENCE};

/// Sessions, and the commands that each has under way.
const SESSIONS: usize = 4;
const UNDER_WAY: usize = 4;

/// Clients of one node, with one command at a time each.
const ASKERS: usize = 16;

/// Commands that must be acknowledged after a fault.
const COMMANDS: u64 = 50;

/// The key that is put.
const KEY: &str = "counted";

/// Clients at work.
pub struct Counters {
    sessions: Vec<Arc<Session>>,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Counters {
    pub async fn start(cluster: &Cluster) -> Counters {
        let mut counters = Counters {
            sessions: Vec::new(),
            acknowledged: Arc::default(),
            stop: Arc::default(),
            clients: Vec::new(),
        };
        // No session ends, and no command is given up, within any fault.
        let options = SessionOptions::default().with_ttl(2 * PATIENCE).with_patience(2 * PATIENCE);
        for first in 0..SESSIONS {
            let client = cluster.client_from(first);
            let session = Arc::new(client.session(MACHINE, options).await.expect("all is well"));
            for _ in 0..UNDER_WAY {
                let (session, acknowledged) = (session.clone(), counters.acknowledged.clone());
                counters.clients.push(tokio::spawn(count(session, acknowledged, counters.stop.clone())));
            }
            counters.sessions.push(session);
        }
        counters
    }

    /// Waits until more commands are acknowledged.
    pub async fn go_on(&self) {
        go_on(&self.acknowledged).await;
    }

    /// How often commands were sent again.
    pub fn repeated(&self) -> u64 {
        self.sessions.iter().map(|session| session.repeated()).sum()
    }

    /// Ends all, and says how many commands were acknowledged.
    pub async fn end(&mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients.drain(..) {
            client.await.expect("no command ends without its outcome");
        }
        self.acknowledged.load(Ordering::SeqCst)
    }
}

async fn go_on(acknowledged: &AtomicU64) {
    let (begun, before) = (Instant::now(), acknowledged.load(Ordering::SeqCst));
    while acknowledged.load(Ordering::SeqCst) < before + COMMANDS {
        assert!(begun.elapsed() < PATIENCE, "the counting does not go on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn count(session: Arc<Session>, acknowledged: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let put = PutRequest { key: KEY.into(), value: b"x".to_vec(), ..Default::default() }.to_envelope();
    while !stop.load(Ordering::SeqCst) {
        let applied = session.apply(put.clone()).await.expect("it is sent until it is done");
        assert!(matches!(applied.outcome, Outcome::Ok(_)), "{applied:?}");
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
}

/// How often the key was put.
pub async fn counted(cluster: &Cluster) -> u64 {
    let range = RangeRequest { key: KEY.into(), ..Default::default() }.to_envelope();
    let answered =
        cluster.client().query(MACHINE, range, Consistency::Linearizable).await.expect("well again");
    let found = RangeRequest::answer(&answered.outcome.expect("a range")).expect("an answer");
    found.kvs.first().map_or(0, |kv| kv.version as u64)
}

/// Commands of sessions that one node is asked for, each sent once: what comes of the leader is for the node
/// to see to.
pub struct Askers {
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    askers: Vec<JoinHandle<()>>,
}

impl Askers {
    pub fn start(cluster: &Cluster, node: usize) -> Askers {
        let mut askers = Askers { acknowledged: Arc::default(), stop: Arc::default(), askers: Vec::new() };
        let client = cluster.client_of(node).with_timeout(PATIENCE);
        for _ in 0..ASKERS {
            let (client, acknowledged) = (client.clone(), askers.acknowledged.clone());
            askers.askers.push(tokio::spawn(ask(client, acknowledged, askers.stop.clone())));
        }
        askers
    }

    /// Waits until more commands are acknowledged.
    pub async fn go_on(&self) {
        go_on(&self.acknowledged).await;
    }

    /// Ends all, and says how many commands were acknowledged.
    pub async fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for asker in self.askers {
            asker.await.expect("the node sees to it that each command is done");
        }
        self.acknowledged.load(Ordering::SeqCst)
    }
}

async fn ask(client: Client, acknowledged: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let put = PutRequest { key: KEY.into(), value: b"x".to_vec(), ..Default::default() }.to_envelope();
    let session = client.open_session(MACHINE, 2 * PATIENCE).await.expect("all is well").session;
    for number in 1.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let place = Numbered { session, number, acknowledged: number - 1 };
        let applied = client.apply_numbered(MACHINE, put.clone(), place).await;
        let applied = applied.expect("the node sees to it that it is done");
        assert!(matches!(applied.outcome, Outcome::Ok(_)), "{applied:?}");
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
}

/// How often a node has sent a session's command again by itself.
pub fn sent_again_by(cluster: &Cluster, node: usize) -> u64 {
    let (_, metrics) = cluster.process(node).page("/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix("statehouse_requests_repeated_total "));
    line.expect("it is counted").parse().expect("a number")
}
