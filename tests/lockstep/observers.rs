//! Clients that watch, and clients that take a lock, while everything befalls the nodes. Each watcher must
//! have seen what its keys' history says in the end, at each node: all of it, once, in order. That history
//! must lead to the keys that there are, and show that nobody wrote under a lock that another had by then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use statehouse::Client;
use statehouse::error::Error;
use statehouse::id::Revision;
use statehouse::machine::event::EventKind;
use statehouse::machine::outcome::Outcome;
use statehouse::node::request::{KeySpan, Selection, WatchEvents, WatchSpec, Watched};
use statehouse_kv::Call;
use statehouse_kv::messages::{
    Compare, CompareResult, CompareTarget, PutRequest, RangeRequest, Request, RequestOp, TargetUnion,
    TxnRequest,
};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};
use tokio::task::JoinHandle;

use super::chance::Chance;
use super::cluster::{Cluster, MACHINE, NODES, until};

/// The key that is the lock, and the one that is written by who has it.
const LOCK: &[u8] = b"lock";
const GUARDED: &[u8] = b"guarded";

/// Who wants the lock.
const HOLDERS: usize = 4;

/// A lock outlives its holder's last word by so much. Some hold it for longer, and must be refused then.
const TTL: Duration = Duration::from_millis(700);

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(4);

/// One event: the revision, what happened, and to which key, with which value.
type Seen = (u64, bool, Vec<u8>, Vec<u8>);

/// Watchers and holders at work.
pub struct Observers {
    stop: Arc<AtomicBool>,
    /// Held by each holder while it is at work: whoever takes it for writing has them rest.
    at_work: Arc<RwLock<()>>,
    holders: Vec<JoinHandle<()>>,
    watchers: Vec<Watcher>,
    written: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
}

/// A watcher at work.
struct Watcher {
    selection: Selection,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

/// What is watched: everything, and parts of it.
fn selections() -> Vec<Selection> {
    let part = |span, puts, deletes| Selection::new(span, puts, deletes).expect("it sees something");
    let mut all = vec![Selection::of(KeySpan::all()); NODES];
    all.push(part(KeySpan::key(GUARDED).expect("a key"), true, true));
    all.push(part(KeySpan::range(GUARDED, Some(LOCK.into())).expect("a span"), true, true));
    all.push(part(KeySpan::prefix("l").expect("a prefix"), false, true));
    all.push(part(KeySpan::all(), true, false));
    all
}

impl Observers {
    /// Sets watchers from the first event on to work, beginning at each node, and holders.
    pub async fn start(cluster: &Cluster, chance: &mut Chance) -> Observers {
        let mut observers = Observers {
            stop: Arc::default(),
            at_work: Arc::default(),
            holders: Vec::new(),
            watchers: Vec::new(),
            written: Arc::default(),
            refused: Arc::default(),
        };
        for (number, selection) in selections().into_iter().enumerate() {
            let (client, seen) = (cluster.client_from(number % NODES), Arc::new(Mutex::new(Vec::new())));
            let task = tokio::spawn(watch(client, selection.clone(), seen.clone()));
            observers.watchers.push(Watcher { selection, seen, task });
        }
        for holder in 0..HOLDERS {
            let worker = Holder {
                client: cluster.client_from(holder).with_timeout(TIMEOUT),
                chance: chance.fork(),
                written: observers.written.clone(),
                refused: observers.refused.clone(),
            };
            let (stop, at_work) = (observers.stop.clone(), observers.at_work.clone());
            observers.holders.push(tokio::spawn(worker.work(stop, at_work)));
        }
        observers
    }

    /// Has the holders rest for as long as the answer is kept: the replicas come to a stand.
    pub async fn rest(&self) -> OwnedRwLockWriteGuard<()> {
        self.at_work.clone().write_owned().await
    }

    /// Ends all, once every watcher has seen everything, and holds what they saw against each other and
    /// against the lock. How many revisions there were, how often something was written under the lock, and
    /// how often that was refused.
    pub async fn end(mut self, cluster: &Cluster) -> (usize, u64, u64) {
        self.stop.store(true, Ordering::SeqCst);
        for holder in self.holders.drain(..) {
            holder.await.expect("a holder found something that must not be");
        }
        // Leases that are left end within their time.
        tokio::time::sleep(2 * TTL).await;
        cluster.together().await;
        let machine = cluster.client().machine(MACHINE).await.expect("all is well");
        let last = machine.replica.expect("each node has one").revision.0;
        let history = history_of(&cluster.client_from(0), last).await;
        for node in 1..NODES {
            check_same(&history_of(&cluster.client_from(node), last).await, &history);
        }
        for Watcher { selection, seen, task } in &self.watchers {
            let expected = selected(selection, &history);
            until("the watchers see everything", async || seen.lock().len() >= expected.len()).await;
            task.abort();
            check_same(&seen.lock(), &expected);
        }
        check_order(&history);
        check_keys(cluster, &history).await;
        check_lock(&history);
        let counts = [&self.written, &self.refused].map(|count| count.load(Ordering::SeqCst));
        (history.len(), counts[0], counts[1])
    }
}

fn from_the_first(selection: Selection) -> WatchSpec {
    let first = Revision(Revision::FIRST.0 + 1);
    WatchSpec { selection, from: Some(first), ..WatchSpec::of(KeySpan::all()) }
}

fn seen_of(told: WatchEvents) -> impl Iterator<Item = Seen> {
    told.events.into_iter().map(move |event| {
        (told.revision.0, event.kind == EventKind::Put, event.key.to_vec(), event.value.to_vec())
    })
}

/// What a node's history says in the end, up to a revision with events.
async fn history_of(client: &Client, last: u64) -> Vec<Seen> {
    let all = from_the_first(Selection::of(KeySpan::all()));
    let mut watch = client.watch(MACHINE, all).await.expect("all is well");
    let mut history = Vec::new();
    loop {
        let Watched::Events(told) = watch.next().await.expect("all is well") else { continue };
        let revision = told.revision.0;
        history.extend(seen_of(told));
        if revision >= last {
            return history;
        }
    }
}

/// The part of a history that a selection sees.
fn selected(selection: &Selection, history: &[Seen]) -> Vec<Seen> {
    let kind = |put| if put { EventKind::Put } else { EventKind::Delete };
    let sees = |(_, put, key, _): &&Seen| selection.takes(kind(*put)) && selection.span.contains(key);
    history.iter().filter(sees).cloned().collect()
}

fn check_same(seen: &[Seen], history: &[Seen]) {
    let differs = seen.iter().zip(history).find(|(one, other)| one != other);
    assert_eq!(differs, None, "seen, and what the history says");
    assert_eq!(seen.len(), history.len(), "one has more than the other");
}

/// The history leads to the keys that there are, at each node.
async fn check_keys(cluster: &Cluster, history: &[Seen]) {
    let mut keys = BTreeMap::new();
    for (revision, put, key, _) in history {
        match put {
            true => keys.insert(key.clone(), *revision as i64),
            false => keys.remove(key),
        };
    }
    let all = RangeRequest { key: vec![0], range_end: vec![0], keys_only: true, ..RangeRequest::default() };
    for node in 0..NODES {
        let client = cluster.client_from(node);
        let answered =
            client.query(MACHINE, all.to_envelope(), Default::default()).await.expect("all is well");
        let found = RangeRequest::answer(&answered.outcome.expect("no refusal")).expect("an answer");
        let found: BTreeMap<_, _> = found.kvs.into_iter().map(|kv| (kv.key, kv.mod_revision)).collect();
        assert!(found == keys, "node {node} has {} keys, the history leads to {}", found.len(), keys.len());
    }
}

/// Sees everything that is selected from the first event on, for ever.
async fn watch(client: Client, selection: Selection, seen: Arc<Mutex<Vec<Seen>>>) {
    let mut watch = client.watch(MACHINE, from_the_first(selection)).await.expect("all is well");
    loop {
        match watch.next().await {
            Ok(Watched::Events(told)) => seen.lock().extend(seen_of(told)),
            Ok(Watched::Progress(_)) => {}
            // Nodes are away for a while: it is asked again.
            Err(Error::Unavailable(_)) => {}
            Err(why) => panic!("a watch ends: {why}"),
        }
    }
}

/// The machine counts only revisions with events, so none may be missing.
fn check_order(history: &[Seen]) {
    let mut last = Revision::FIRST.0;
    for (revision, ..) in history {
        assert!(*revision == last || *revision == last + 1, "revision {revision} comes after {last}");
        last = *revision;
    }
}

/// Whatever was written under the lock was written while its writer had it: the value is the fencing token.
fn check_lock(history: &[Seen]) {
    // Since which revision somebody has the lock.
    let mut held = None;
    let (mut takers, mut ends) = (BTreeMap::new(), 0);
    for (revision, put, key, value) in history {
        match (&key[..], put) {
            (LOCK, true) => {
                assert_eq!(held, None, "the lock is taken at {revision} from who has it");
                held = Some(*revision);
                takers.insert(*revision, ());
            }
            (LOCK, false) => {
                held = None;
                ends += 1;
            }
            (GUARDED, true) => {
                let pair = <statehouse_kv::messages::KeyValue as prost::Message>::decode(&value[..]);
                let token = String::from_utf8(pair.expect("a pair").value).expect("a number");
                let token = token.parse::<u64>().expect("a number");
                assert_eq!(held, Some(token), "written at {revision} under the token {token}");
            }
            _ => {}
        }
    }
    assert!(!takers.is_empty() && ends > 0, "the lock was not used");
}

struct Holder {
    client: Client,
    chance: Chance,
    written: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
}

impl Holder {
    async fn work(mut self, stop: Arc<AtomicBool>, at_work: Arc<RwLock<()>>) {
        while !stop.load(Ordering::SeqCst) {
            let _at_work = at_work.read().await;
            let rest = Duration::from_millis(20 + self.chance.below(60));
            if let Some((lease, token)) = self.take().await {
                // Some are away for longer than the lock waits for them.
                tokio::time::sleep(TTL.mul_f64(self.chance.below(20) as f64 / 10.0)).await;
                self.write(token).await;
                // Not all let go: then the lock ends by itself.
                if self.chance.below(2) == 0 {
                    // Whether or not it is done, the lease ends.
                    let _ = self.client.revoke_lease(MACHINE, lease).await;
                }
            }
            tokio::time::sleep(rest).await;
        }
    }

    /// Takes the lock, if nobody has it: the lease, and the token.
    async fn take(&self) -> Option<(u64, u64)> {
        let lease = self.client.grant_lease(MACHINE, TTL, None).await.ok()?;
        let put = PutRequest { key: LOCK.into(), lease: lease as i64, ..Default::default() };
        let txn = txn(LOCK, TargetUnion::CreateRevision(0), put);
        let applied = self.client.apply(MACHINE, txn.to_envelope()).await.ok()?;
        // The lease may have ended on the way: then there is no lock.
        let Outcome::Ok(answer) = applied.outcome else { return None };
        let answer = TxnRequest::answer(&answer).expect("an answer");
        answer.succeeded.then_some((lease, applied.revision.0))
    }

    /// Writes, if the lock is still that of the token.
    async fn write(&self, token: u64) {
        let value = token.to_string().into_bytes();
        let put = PutRequest { key: GUARDED.into(), value, ..Default::default() };
        let txn = txn(LOCK, TargetUnion::CreateRevision(token as i64), put);
        let Ok(applied) = self.client.apply(MACHINE, txn.to_envelope()).await else { return };
        let Outcome::Ok(answer) = applied.outcome else { panic!("{:?}", applied.outcome) };
        let done = TxnRequest::answer(&answer).expect("an answer").succeeded;
        let count = if done { &self.written } else { &self.refused };
        count.fetch_add(1, Ordering::SeqCst);
    }
}

/// Does `put` if the revision at which `key` was made is this one; 0: it is not there.
fn txn(key: &[u8], made_at: TargetUnion, put: PutRequest) -> TxnRequest {
    let compare = Compare {
        key: key.to_vec(),
        target: CompareTarget::Create as i32,
        result: CompareResult::Equal as i32,
        target_union: Some(made_at),
        ..Default::default()
    };
    let request = Some(Request::RequestPut(put));
    TxnRequest { compare: vec![compare], success: vec![RequestOp { request }], failure: Vec::new() }
}

mod tests {
    //! What must be noticed is.

    use super::*;

    fn refuses(history: &[Seen], check: fn(&[Seen])) -> bool {
        std::panic::catch_unwind(|| check(history)).is_err()
    }

    fn seen(revision: u64, put: bool, key: &[u8], token: u64) -> Seen {
        let pair =
            statehouse_kv::messages::KeyValue { value: token.to_string().into(), ..Default::default() };
        (revision, put, key.to_vec(), prost::Message::encode_to_vec(&pair))
    }

    #[test]
    fn a_gap_and_a_step_back_are_noticed() {
        let at = |revisions: &[u64]| revisions.iter().map(|r| seen(*r, true, b"k", 0)).collect::<Vec<_>>();
        assert!(!refuses(&at(&[2, 2, 3]), check_order));
        assert!(refuses(&at(&[2, 4]), check_order) && refuses(&at(&[3]), check_order));
        assert!(refuses(&at(&[2, 3, 2]), check_order));
    }

    #[test]
    fn an_event_that_is_missing_or_comes_twice_is_noticed_within_a_revision_and_at_the_end() {
        let history: Vec<Seen> =
            [(2, b"a"), (2, b"b"), (3, b"a")].iter().map(|(at, key)| seen(*at, true, *key, 0)).collect();
        let differs = |seen: &[Seen]| std::panic::catch_unwind(|| check_same(seen, &history)).is_err();
        assert!(!differs(&history));
        assert!(differs(&history[..2]) && differs(&history[1..]));
        assert!(differs(&[&history[..2], &history[1..]].concat()));
        assert!(differs(&[&history[..], &history[2..]].concat()));
        let of_a = Selection::of(KeySpan::key("a").unwrap());
        assert_eq!(selected(&of_a, &history).iter().map(|seen| seen.0).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn a_write_under_a_lock_that_is_gone_is_noticed() {
        let taken = [seen(2, true, LOCK, 0), seen(3, true, GUARDED, 2), seen(4, false, LOCK, 0)];
        assert!(!refuses(&taken, check_lock));
        let late = [&taken[..], &[seen(5, true, GUARDED, 2)]].concat();
        assert!(refuses(&late, check_lock));
        let other = [&taken[..], &[seen(5, true, LOCK, 0), seen(6, true, GUARDED, 2)]].concat();
        assert!(refuses(&other, check_lock));
        let twice = [seen(2, true, LOCK, 0), seen(3, true, LOCK, 0), seen(4, false, LOCK, 0)];
        assert!(refuses(&twice, check_lock));
    }
}
