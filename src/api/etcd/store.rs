//! What the services for locks and elections do with the machine: the same that clients of etcd do who bring
//! their own, so both can share a lock.
//!
//! Who wants a turn at `name` puts the key `name/LEASE`. The key that was created first has the turn; the
//! others each wait until those before their own are gone.

use std::sync::Arc;

use prost::Message;
use statehouse_kv::messages::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest,
    RangeResponse, Request, RequestOp, Response as Answered, ResponseHeader, SortOrder, SortTarget,
    TargetUnion, TxnRequest, TxnResponse,
};
use statehouse_kv::{Call, Kind};
use tonic::Status;

use super::lease::lifetime_ms;
use super::raw::Answer;
use super::{Front, odd, status};
use crate::error::Error;
use crate::id::Revision;
use crate::node::request::{KeySpan, Selection, WatchSpec, Watched};

/// The lifetime of a lease that is granted to who brings none, in seconds: that of etcd's sessions.
const SESSION_S: u64 = 60;

/// What these services say of an error.
pub fn said(why: &Error) -> Status {
    status::of_client_inside(status::of(why))
}

/// A place in the queue for a name.
pub struct Turn {
    /// Its key.
    pub key: Vec<u8>,
    /// The revision that created the key: whose is lowest has the turn.
    pub revision: i64,
    /// The value that the key has.
    pub value: Vec<u8>,
}

/// The keys of all who want a turn at a name begin with this.
pub fn prefix(name: &[u8]) -> Vec<u8> {
    [name, b"/"].concat()
}

/// The first key past all that begin with a prefix that [`prefix`] made.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// Holds if a key was created at a revision; 0: if it is not there.
pub fn created_at(key: &[u8], revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.to_vec(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        range_end: Vec::new(),
    }
}

/// One step of a transaction.
pub fn step(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// Machine and leases, for who takes turns.
#[derive(Clone)]
pub struct Store(pub Arc<Front>);

impl Store {
    /// The lease that was brought, or a new one.
    pub async fn lease(&self, brought: i64) -> Result<i64, Status> {
        if brought != 0 {
            return Ok(brought);
        }
        let granted = self.0.node().grant_lease(&self.0.machine, lifetime_ms(SESSION_S), 0).await;
        granted.map(|id| id as i64).map_err(|why| said(&why))
    }

    async fn answer(&self, kind: Kind, request: &[u8]) -> Result<Answer, Status> {
        self.0.answer(kind, request).await.map_err(status::of_client_inside)
    }

    /// Does a transaction. Its answer has a full header.
    pub async fn txn(&self, txn: &TxnRequest) -> Result<TxnResponse, Status> {
        let answer = self.answer(Kind::Txn, &txn.encode_to_vec()).await?;
        TxnResponse::decode(&*answer.into_bytes()).map_err(|why| odd(&why))
    }

    /// Reads keys, with everything that was acknowledged.
    pub async fn range(&self, range: &RangeRequest) -> Result<RangeResponse, Status> {
        let answer = self.answer(Kind::Range, &range.encode_to_vec()).await?;
        RangeResponse::decode(&*answer.into_bytes()).map_err(|why| odd(&why))
    }

    /// Deletes a key: the header of the answer.
    pub async fn delete(&self, key: &[u8]) -> Result<Option<ResponseHeader>, Status> {
        let request = DeleteRangeRequest { key: key.to_vec(), ..DeleteRangeRequest::default() };
        let answer = self.0.apply(Kind::DeleteRange, &request.encode_to_vec()).await;
        let answer = answer.map_err(status::of_client_inside)?;
        let deleted = DeleteRangeRequest::answer(&answer).map_err(|why| odd(&why))?;
        Ok(deleted.header.map(|header| self.0.header_at(header.revision)))
    }

    /// The key that was created first of those that begin with a prefix.
    pub async fn first(&self, prefix: &[u8]) -> Result<RangeResponse, Status> {
        self.range(&by_creation(prefix, SortOrder::Ascend)).await
    }

    /// Takes a place in the queue for a name, or finds the one that the lease has.
    pub async fn take_place(&self, name: &[u8], value: &[u8], lease: i64) -> Result<Turn, Status> {
        let mut key = prefix(name);
        key.extend_from_slice(format!("{lease:x}").as_bytes());
        let put = PutRequest { key: key.clone(), value: value.to_vec(), lease, ..PutRequest::default() };
        let get = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let txn = TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![step(Request::RequestPut(put))],
            failure: vec![step(Request::RequestRange(get))],
        };
        let done = self.txn(&txn).await?;
        let revision = done.header.unwrap_or_default().revision;
        if done.succeeded {
            return Ok(Turn { key, revision, value: value.to_vec() });
        }
        let found = found(&done).ok_or_else(|| odd(&"a transaction without its answer"))?;
        Ok(Turn { key, revision: found.create_revision, value: found.value })
    }

    /// Waits until no key of the name is left that was created before the turn's. The header of the answer
    /// that showed it.
    ///
    /// # Errors
    /// The turn's own key is gone: its lease has ended.
    pub async fn wait(&self, name: &[u8], turn: &Turn) -> Result<Option<ResponseHeader>, Status> {
        let prefix = prefix(name);
        loop {
            let before = RangeRequest {
                max_create_revision: turn.revision - 1,
                ..by_creation(&prefix, SortOrder::Descend)
            };
            let found = self.range(&before).await?;
            let header = found.header;
            let Some(last) = found.kvs.into_iter().next() else { break };
            self.wait_deleted(last.key, header.unwrap_or_default().revision).await?;
        }
        let own = RangeRequest { key: turn.key.clone(), ..RangeRequest::default() };
        let found = self.range(&own).await?;
        match found.kvs.first() {
            Some(own) if own.create_revision == turn.revision => Ok(found.header),
            _ => Err(Status::unknown("mutex: session is expired")),
        }
    }

    /// Waits until a key that was there at a revision is deleted.
    async fn wait_deleted(&self, key: Vec<u8>, revision: i64) -> Result<(), Status> {
        let span = KeySpan::key(key).map_err(|why| said(&why))?;
        let selection = Selection::new(span, false, true).map_err(|why| said(&why))?;
        let from = Some(Revision(revision.unsigned_abs() + 1));
        let spec = WatchSpec { selection, from, progress: false, previous: false };
        let mut watch = self.0.node().watch(&self.0.machine, spec).await.map_err(|why| said(&why))?;
        loop {
            if let Watched::Events(_) = watch.next().await.map_err(|why| said(&why))? {
                return Ok(());
            }
        }
    }

    /// Runs what waits for a turn, and gives up the turn's place if the client goes away, or if it fails.
    pub async fn wait_or_leave(&self, name: &[u8], turn: &Turn) -> Result<Option<ResponseHeader>, Status> {
        let mut place = Place { store: Some(self.clone()), key: turn.key.clone() };
        let waited = self.wait(name, turn).await;
        if waited.is_ok() {
            place.store = None;
        }
        waited
    }
}

/// A place in a queue that nobody waits in any more is given up.
struct Place {
    store: Option<Store>,
    key: Vec<u8>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(store) = self.store.take() else { return };
        let key = std::mem::take(&mut self.key);
        tokio::spawn(async move {
            if let Err(why) = store.delete(&key).await {
                // It goes with its lease.
                tracing::debug!(%why, "a place that was given up stays until its lease ends");
            }
        });
    }
}

fn by_creation(prefix: &[u8], order: SortOrder) -> RangeRequest {
    RangeRequest {
        key: prefix.to_vec(),
        range_end: end_of(prefix),
        limit: 1,
        sort_order: order.into(),
        sort_target: SortTarget::Create.into(),
        ..RangeRequest::default()
    }
}

/// The key that the first step of a transaction found.
pub fn found(done: &TxnResponse) -> Option<KeyValue> {
    match done.responses.first()?.response.as_ref()? {
        Answered::ResponseRange(range) => range.kvs.first().cloned(),
        _ => None,
    }
}
