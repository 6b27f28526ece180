//! Clients that read, write and swap the values of keys, at all nodes at once, and note what came of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use statehouse::Client;
use statehouse::error::Error;
use statehouse::machine::outcome::Outcome;
use statehouse::node::request::Consistency;
use statehouse_kv::Call;
use statehouse_kv::messages::{
    Compare, CompareResult, CompareTarget, PutRequest, RangeRequest, Request, RequestOp, Response,
    TargetUnion, TxnRequest,
};
use tokio::task::JoinHandle;

use super::chance::Chance;
use super::cluster::{Cluster, MACHINE, NODES};
use super::history::{Operation, Recorder, Swapped, Value};

/// Clients at a time.
const CLIENTS: usize = 9;

/// How long a client waits for an answer. Longer than an election, so that those who are held learn more.
const TIMEOUT: Duration = Duration::from_secs(4);

/// How long a client rests after a request that was not done, and between two that were: histories are to be
/// long in time, not in operations.
const REST: Duration = Duration::from_millis(4);

/// The next value that is written: each is written once.
static NEXT_VALUE: AtomicU64 = AtomicU64::new(1);

/// Clients at work.
pub struct Load {
    pub recorder: Arc<Recorder>,
    keys: std::ops::Range<u64>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Nobody at work yet.
    pub fn idle(keys: std::ops::Range<u64>) -> Load {
        Load { recorder: Arc::default(), keys, stop: Arc::default(), clients: Vec::new() }
    }

    /// Sets clients to work on `keys`, a third of them beginning at each node.
    pub fn start(cluster: &Cluster, keys: std::ops::Range<u64>, chance: &mut Chance) -> Load {
        let mut load = Load::idle(keys);
        for number in 0..CLIENTS {
            let session = load.session(cluster.client_from(number % NODES).with_timeout(TIMEOUT));
            let work = session.work(load.keys.clone(), chance.fork(), load.stop.clone());
            load.clients.push(tokio::spawn(work));
        }
        load
    }

    fn session(&self, client: Client) -> Session {
        Session { client, recorder: self.recorder.clone() }
    }

    /// Writes a key by way of one node: the value, if that is acknowledged.
    pub async fn write_once(&self, cluster: &Cluster, node: usize, key: u64) -> Option<Value> {
        self.session(cluster.client_of(node)).write(key).await
    }

    /// Reads a key at one node: what it is told, if anything.
    pub async fn read_once(
        &self,
        cluster: &Cluster,
        node: usize,
        key: u64,
        consistency: Consistency,
    ) -> Option<Value> {
        self.session(cluster.client_of(node).with_timeout(TIMEOUT)).read(key, consistency).await
    }

    /// Has `readers` read at one node, one read after the other, until `enough`. The answers are noted when
    /// they come, which may be later.
    pub fn read_at(&mut self, cluster: &Cluster, node: usize, readers: u64, enough: &Arc<AtomicBool>) {
        let client = cluster.client_of(node).with_timeout(TIMEOUT);
        for number in 0..readers {
            let (session, enough) = (self.session(client.clone()), enough.clone());
            let key = self.keys.start + number % (self.keys.end - self.keys.start);
            let consistency = [Consistency::Linearizable, Consistency::Lease][number as usize % 2];
            self.clients.push(tokio::spawn(async move {
                while !enough.load(Ordering::SeqCst) {
                    session.read(key, consistency).await;
                }
            }));
        }
    }

    /// Ends the load: whoever waits for an answer gets it, or gives up.
    pub async fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients.drain(..) {
            client.await.expect("a client found something that must not be");
        }
    }

    /// Reads all keys at all nodes, which must answer.
    pub async fn read_everywhere(&self, cluster: &Cluster) {
        for node in 0..NODES {
            let session = self.session(cluster.client_of(node));
            for key in self.keys.clone() {
                let answered = session.read(key, Consistency::Linearizable).await;
                assert!(answered.is_some(), "{} does not answer when all is well", cluster.name(node));
            }
        }
    }
}

/// One client, with one request at a time.
struct Session {
    client: Client,
    recorder: Arc<Recorder>,
}

impl Session {
    async fn work(self, keys: std::ops::Range<u64>, mut chance: Chance, stop: Arc<AtomicBool>) {
        // What was last seen of the keys: a swap that expects something else tells little.
        let mut seen = vec![0; (keys.end - keys.start) as usize];
        while !stop.load(Ordering::SeqCst) {
            let place = chance.below(seen.len() as u64);
            let (key, known) = (keys.start + place, seen[place as usize]);
            let found = match chance.below(10) {
                0..3 => self.read(key, Consistency::Linearizable).await,
                3 => self.read(key, Consistency::Lease).await,
                4..7 => self.write(key).await,
                _ => self.swap(key, known).await,
            };
            if let Some(value) = found {
                seen[place as usize] = value;
            }
            tokio::time::sleep(REST).await;
        }
    }

    /// What a key holds; none if there was no answer.
    async fn read(&self, key: u64, consistency: Consistency) -> Option<Value> {
        let request = RangeRequest { key: name(key), ..Default::default() }.to_envelope();
        let call = self.recorder.call(key);
        match self.client.query(MACHINE, request, consistency).await {
            Ok(answered) => {
                let answer = answered.outcome.expect("the guest refuses no range");
                let found = RangeRequest::answer(&answer).expect("an answer").kvs.pop();
                let value = found.map_or(0, |kv| value_of(&kv.value));
                self.recorder.done(call, Operation::Read(value));
                Some(value)
            }
            Err(error) => {
                self.fate(&error);
                self.recorder.not_done(call);
                None
            }
        }
    }

    async fn write(&self, key: u64) -> Option<Value> {
        let value = NEXT_VALUE.fetch_add(1, Ordering::SeqCst);
        let put = PutRequest { key: name(key), value: text(value), prev_kv: true, ..Default::default() };
        let call = self.recorder.call(key);
        match self.client.apply(MACHINE, put.to_envelope()).await {
            Ok(applied) => {
                let answer = PutRequest::answer(&done(applied.outcome)).expect("an answer");
                let before = answer.prev_kv.map_or(0, |kv| value_of(&kv.value));
                self.recorder.done(call, Operation::Write { value, before: Some(before) });
                return Some(value);
            }
            Err(error) if self.fate(&error) == Fate::Unknown => {
                self.recorder.unknown(call, Operation::Write { value, before: None });
            }
            Err(_) => self.recorder.not_done(call),
        }
        None
    }

    async fn swap(&self, key: u64, expected: Value) -> Option<Value> {
        let value = NEXT_VALUE.fetch_add(1, Ordering::SeqCst);
        let call = self.recorder.call(key);
        let operation = |found| Operation::Swap { expected, value, found };
        match self.client.apply(MACHINE, swap(key, expected, value).to_envelope()).await {
            Ok(applied) => {
                let mut answer = TxnRequest::answer(&done(applied.outcome)).expect("an answer");
                if answer.succeeded {
                    self.recorder.done(call, operation(Some(Swapped::Done)));
                    return Some(value);
                }
                let found = answer.responses.pop().and_then(|step| step.response);
                let Some(Response::ResponseRange(mut range)) = found else { panic!("a range was asked for") };
                let held = range.kvs.pop().map_or(0, |kv| value_of(&kv.value));
                self.recorder.done(call, operation(Some(Swapped::Held(held))));
                return Some(held);
            }
            Err(error) if self.fate(&error) == Fate::Unknown => self.recorder.unknown(call, operation(None)),
            Err(_) => self.recorder.not_done(call),
        }
        None
    }

    /// What an error says about a command. Errors that no fault of a node or a network explains end the test.
    fn fate(&self, error: &Error) -> Fate {
        self.recorder.error(format!("{error:?}"));
        match error {
            Error::Unavailable(_) | Error::NotLeader { .. } | Error::Overloaded(_) => Fate::NotDone,
            Error::Unknown(_) | Error::DeadlineExceeded(_) | Error::Fault(_) => Fate::Unknown,
            other => panic!("no client should be told this: {other:?}"),
        }
    }
}

fn swap(key: u64, expected: Value, value: Value) -> TxnRequest {
    let (target, union) = match expected {
        0 => (CompareTarget::Version, TargetUnion::Version(0)),
        expected => (CompareTarget::Value, TargetUnion::Value(text(expected))),
    };
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key: name(key),
        target_union: Some(union),
        ..Default::default()
    };
    let put = PutRequest { key: name(key), value: text(value), ..Default::default() };
    let range = RangeRequest { key: name(key), ..Default::default() };
    TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
        failure: vec![RequestOp { request: Some(Request::RequestRange(range)) }],
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    NotDone,
    Unknown,
}

fn done(outcome: Outcome) -> bytes::Bytes {
    match outcome {
        Outcome::Ok(answer) => answer,
        other => panic!("the guest does not do what it is asked to: {other:?}"),
    }
}

fn name(key: u64) -> Vec<u8> {
    format!("key-{key}").into_bytes()
}

fn text(value: Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn value_of(text: &[u8]) -> Value {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).expect("a value that was written here")
}
