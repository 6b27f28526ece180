//! Mistakes made on purpose: a server that ignores a part of what it is asked must be told from one that
//! does not, or the comparison proves nothing.

use statehouse_kv::messages::{DeleteRangeRequest, PutRequest, RangeRequest, Request as Step, TxnRequest};

use super::request::Request;

/// What the second server ignores, or gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Limit,
    Revision,
    SortOrder,
    SortTarget,
    KeysOnly,
    MaxCreateRevision,
    PrevKvOfPut,
    PrevKvOfDelete,
    IgnoreValue,
    LeaseOfPut,
    NestedTxn,
    CompareResult,
    Granted,
    KeptAlive,
    Revoked,
    WatchFilter,
    WatchPrevKv,
    WatchStart,
    WatchEnd,
    Canceled,
}

pub const ALL: [Fault; 20] = [
    Fault::Limit,
    Fault::Revision,
    Fault::SortOrder,
    Fault::SortTarget,
    Fault::KeysOnly,
    Fault::MaxCreateRevision,
    Fault::PrevKvOfPut,
    Fault::PrevKvOfDelete,
    Fault::IgnoreValue,
    Fault::LeaseOfPut,
    Fault::NestedTxn,
    Fault::CompareResult,
    Fault::Granted,
    Fault::KeptAlive,
    Fault::Revoked,
    Fault::WatchFilter,
    Fault::WatchPrevKv,
    Fault::WatchStart,
    Fault::WatchEnd,
    Fault::Canceled,
];

impl Fault {
    /// The request as the faulty server takes it.
    pub fn mistaken(self, mut request: Request) -> Request {
        match &mut request {
            Request::Range(range) | Request::RangeStream(range) => self.range(range),
            Request::Put(put) => self.put(put),
            Request::DeleteRange(delete) => self.delete(delete),
            Request::Txn(txn) => self.txn(txn),
            Request::LeaseGrant(grant) if self == Fault::Granted => grant.ttl = grant.ttl.saturating_add(1),
            Request::KeepAlive(ids) if self == Fault::KeptAlive => _ = ids.pop(),
            Request::LeaseRevoke(revoke) if self == Fault::Revoked => revoke.id = 12_345,
            Request::Watch(_, create) => match self {
                Fault::WatchFilter => create.filters.clear(),
                Fault::WatchPrevKv => create.prev_kv = false,
                Fault::WatchStart if create.start_revision > 0 => {
                    create.start_revision = create.start_revision.saturating_add(1);
                }
                Fault::WatchEnd => create.range_end = "".into(),
                _ => {}
            },
            Request::CancelWatch(_, id) if self == Fault::Canceled => *id = 77_777,
            _ => {}
        }
        request
    }

    fn range(self, range: &mut RangeRequest) {
        match self {
            Fault::Limit => range.limit = 0,
            Fault::Revision => range.revision = 0,
            Fault::SortOrder if range.sort_order == 2 => range.sort_order = 1,
            Fault::SortTarget if (1..=4).contains(&range.sort_target) => range.sort_target = 0,
            Fault::KeysOnly => range.keys_only = false,
            Fault::MaxCreateRevision => range.max_create_revision = 0,
            _ => {}
        }
    }

    fn put(self, put: &mut PutRequest) {
        match self {
            Fault::PrevKvOfPut => put.prev_kv = false,
            Fault::IgnoreValue if put.value.is_empty() => put.ignore_value = false,
            Fault::LeaseOfPut => put.lease = 0,
            _ => {}
        }
    }

    fn delete(self, delete: &mut DeleteRangeRequest) {
        if self == Fault::PrevKvOfDelete {
            delete.prev_kv = false;
        }
    }

    fn txn(self, txn: &mut TxnRequest) {
        if self == Fault::CompareResult {
            txn.compare.iter_mut().for_each(|compare| compare.result = compare.result.min(2));
        }
        for step in txn.success.iter_mut().chain(&mut txn.failure) {
            match &mut step.request {
                Some(Step::RequestRange(range)) => self.range(range),
                Some(Step::RequestPut(put)) => self.put(put),
                Some(Step::RequestDeleteRange(delete)) => self.delete(delete),
                Some(Step::RequestTxn(inner)) if self == Fault::NestedTxn => inner.success.clear(),
                Some(Step::RequestTxn(inner)) => self.txn(inner),
                None => {}
            }
        }
    }
}
