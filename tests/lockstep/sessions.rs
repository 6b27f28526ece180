//! Clients that count through sessions while everything befalls the nodes: a key is put, and its version is
//! how often that was done. What was acknowledged is what was done, no more and no less.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use statehouse::client::{Session, SessionOptions};
use statehouse::machine::outcome::Outcome;
use statehouse::node::request::Consistency;
use statehouse_kv::Call;
use statehouse_kv::messages::{PutRequest, RangeRequest};
use tokio::task::JoinHandle;

use super::cluster::{Cluster, MACHINE, PATIENCE};

/// Sessions, and the commands that each has under way.
const SESSIONS: usize = 4;
const UNDER_WAY: usize = 4;

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
        let (begun, before) = (Instant::now(), self.acknowledged.load(Ordering::SeqCst));
        while self.acknowledged.load(Ordering::SeqCst) < before + COMMANDS {
            assert!(begun.elapsed() < PATIENCE, "the counting does not go on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
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
