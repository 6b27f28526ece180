//! The protobuf messages of etcd's v3 KV service, with etcd's names and field numbers.
//!
//! They are written by hand instead of generated, so that the guest needs no protobuf compiler to build.
//! What must never change here is a field number: clients of etcd have these bytes. What is not etcd's has
//! numbers from 1000 on, far from those that etcd may still use: its clients never send them, and skip them
//! in answers.
//!
//! Hosts that generate other messages around these need them to have what generated ones have: `Hash`. The
//! guest does not.

use prost::{Enumeration, Message, Oneof};

/// One key at one point of its history (`mvccpb.KeyValue`).
#[derive(Clone, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct KeyValue {
    /// The key; never empty.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// The revision that created the key, after its last deletion if there was one.
    #[prost(int64, tag = "2")]
    pub create_revision: i64,
    /// The revision that wrote this version.
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    /// 1 at creation, one more with every put.
    #[prost(int64, tag = "4")]
    pub version: i64,
    /// The value.
    #[prost(bytes = "vec", tag = "5")]
    pub value: Vec<u8>,
    /// The lease that the key is attached to, 0 for none.
    #[prost(int64, tag = "6")]
    pub lease: i64,
    /// Not etcd's: when the key's own time to live ends, in milliseconds of the log's clock; 0 for a key
    /// without one. `lease` is then the key's own, which ends with it.
    #[prost(uint64, tag = "1000")]
    pub expires_at_ms: u64,
}

/// What happened to a key (`mvccpb.Event`).
#[derive(Clone, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct Event {
    /// Put or delete.
    #[prost(enumeration = "EventType", tag = "1")]
    pub r#type: i32,
    /// The new version; of a deletion only the key and the revision that deleted it.
    #[prost(message, optional, tag = "2")]
    pub kv: Option<KeyValue>,
    /// The version before, if it was asked for and is still kept.
    #[prost(message, optional, tag = "3")]
    pub prev_kv: Option<KeyValue>,
}

/// The kinds of [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub enum EventType {
    /// The key has a new version.
    Put = 0,
    /// The key is gone.
    Delete = 1,
}

/// What every answer starts with. The guest fills `revision`; the rest belongs to whoever serves etcd's
/// protocol.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct ResponseHeader {
    /// 0 from the guest.
    #[prost(uint64, tag = "1")]
    pub cluster_id: u64,
    /// 0 from the guest.
    #[prost(uint64, tag = "2")]
    pub member_id: u64,
    /// The store's revision after the request.
    #[prost(int64, tag = "3")]
    pub revision: i64,
    /// 0 from the guest.
    #[prost(uint64, tag = "4")]
    pub raft_term: u64,
}

/// Reads keys.
#[derive(Clone, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct RangeRequest {
    /// The key, or the first key of the range.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// Empty: only `key`. One zero byte: to the last key. Else: up to, not including, this key.
    #[prost(bytes = "vec", tag = "2")]
    pub range_end: Vec<u8>,
    /// At most so many keys; 0 or less: no limit.
    #[prost(int64, tag = "3")]
    pub limit: i64,
    /// Read the store as it was at this revision; 0 or less: now.
    #[prost(int64, tag = "4")]
    pub revision: i64,
    /// Which way to sort.
    #[prost(enumeration = "SortOrder", tag = "5")]
    pub sort_order: i32,
    /// What to sort by.
    #[prost(enumeration = "SortTarget", tag = "6")]
    pub sort_target: i32,
    /// Whether a stale answer will do. The guest has no say in it: it is for whoever chooses the replica.
    #[prost(bool, tag = "7")]
    pub serializable: bool,
    /// Leave the values out.
    #[prost(bool, tag = "8")]
    pub keys_only: bool,
    /// Only the count.
    #[prost(bool, tag = "9")]
    pub count_only: bool,
    /// Leave out keys written before this revision.
    #[prost(int64, tag = "10")]
    pub min_mod_revision: i64,
    /// Leave out keys written after this revision.
    #[prost(int64, tag = "11")]
    pub max_mod_revision: i64,
    /// Leave out keys created before this revision.
    #[prost(int64, tag = "12")]
    pub min_create_revision: i64,
    /// Leave out keys created after this revision.
    #[prost(int64, tag = "13")]
    pub max_create_revision: i64,
    /// Not etcd's: give no count. A range in key order with a limit then costs by the keys that it gives, not
    /// by those there are.
    #[prost(bool, tag = "1000")]
    pub uncounted: bool,
}

/// The order of a range's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub enum SortOrder {
    /// By key, as stored; or ascending if the target is not the key.
    None = 0,
    /// Smallest first.
    Ascend = 1,
    /// Largest first.
    Descend = 2,
}

/// What a range is sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub enum SortTarget {
    /// The key's bytes.
    Key = 0,
    /// The number of puts since the key's creation.
    Version = 1,
    /// The revision of its creation.
    Create = 2,
    /// The revision of its last put.
    Mod = 3,
    /// The value's bytes.
    Value = 4,
}

/// The keys that were asked for.
#[derive(Clone, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct RangeResponse {
    /// The store's revision.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// The keys; empty if only the count was asked for.
    #[prost(message, repeated, tag = "2")]
    pub kvs: Vec<KeyValue>,
    /// Whether the limit left keys out.
    #[prost(bool, tag = "3")]
    pub more: bool,
    /// The keys in the range, whatever limit and revision filters left out.
    #[prost(int64, tag = "4")]
    pub count: i64,
}

/// Writes a key.
#[derive(Clone, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct PutRequest {
    /// The key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// The value.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
    /// Attach the key to this lease; 0: to none.
    #[prost(int64, tag = "3")]
    pub lease: i64,
    /// Answer with the version before.
    #[prost(bool, tag = "4")]
    pub prev_kv: bool,
    /// Keep the value; the key must exist.
    #[prost(bool, tag = "5")]
    pub ignore_value: bool,
    /// Keep the lease, and with it the time to live; the key must exist.
    #[prost(bool, tag = "6")]
    pub ignore_lease: bool,
    /// Not etcd's: the key's own time to live in milliseconds, 1 to [`TTL_MS_MAX`](crate::TTL_MS_MAX); none:
    /// the key has no such end, also if it had one before. Excludes `lease` and `ignore_lease`.
    #[prost(uint64, optional, tag = "1000")]
    pub ttl_ms: Option<u64>,
}

/// The answer to a put.
#[derive(Clone, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct PutResponse {
    /// The revision of the put.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// The version before, if it was asked for and there was one.
    #[prost(message, optional, tag = "2")]
    pub prev_kv: Option<KeyValue>,
}

/// Deletes keys.
#[derive(Clone, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct DeleteRangeRequest {
    /// The key, or the first key of the range.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// As in [`RangeRequest`].
    #[prost(bytes = "vec", tag = "2")]
    pub range_end: Vec<u8>,
    /// Answer with what was deleted.
    #[prost(bool, tag = "3")]
    pub prev_kv: bool,
}

/// The answer to a deletion.
#[derive(Clone, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct DeleteRangeResponse {
    /// The revision of the deletion, or the store's if there was nothing to delete.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// How many keys were deleted.
    #[prost(int64, tag = "2")]
    pub deleted: i64,
    /// What they were, if it was asked for.
    #[prost(message, repeated, tag = "3")]
    pub prev_kvs: Vec<KeyValue>,
}

/// One step of a transaction.
#[derive(Clone, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct RequestOp {
    /// Which.
    #[prost(oneof = "Request", tags = "1, 2, 3, 4")]
    pub request: Option<Request>,
}

/// The kinds of [`RequestOp`].
#[derive(Clone, PartialEq, Eq, Oneof)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub enum Request {
    /// Read keys.
    #[prost(message, tag = "1")]
    RequestRange(RangeRequest),
    /// Write a key.
    #[prost(message, tag = "2")]
    RequestPut(PutRequest),
    /// Delete keys.
    #[prost(message, tag = "3")]
    RequestDeleteRange(DeleteRangeRequest),
    /// A transaction within the transaction.
    #[prost(message, tag = "4")]
    RequestTxn(TxnRequest),
}

/// The answer to one step of a transaction.
#[derive(Clone, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct ResponseOp {
    /// Which.
    #[prost(oneof = "Response", tags = "1, 2, 3, 4")]
    pub response: Option<Response>,
}

/// The kinds of [`ResponseOp`].
#[derive(Clone, PartialEq, Eq, Oneof)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub enum Response {
    /// To a range.
    #[prost(message, tag = "1")]
    ResponseRange(RangeResponse),
    /// To a put.
    #[prost(message, tag = "2")]
    ResponsePut(PutResponse),
    /// To a deletion.
    #[prost(message, tag = "3")]
    ResponseDeleteRange(DeleteRangeResponse),
    /// To a nested transaction.
    #[prost(message, tag = "4")]
    ResponseTxn(TxnResponse),
}

/// A condition on one key, or on every key of a range.
#[derive(Clone, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct Compare {
    /// The relation that must hold.
    #[prost(enumeration = "CompareResult", tag = "1")]
    pub result: i32,
    /// What of the key is compared.
    #[prost(enumeration = "CompareTarget", tag = "2")]
    pub target: i32,
    /// The key. An absent key has the revisions, version and lease 0, and no value at all.
    #[prost(bytes = "vec", tag = "3")]
    pub key: Vec<u8>,
    /// What it is compared with.
    #[prost(oneof = "TargetUnion", tags = "4, 5, 6, 7, 8")]
    pub target_union: Option<TargetUnion>,
    /// As in [`RangeRequest`].
    #[prost(bytes = "vec", tag = "64")]
    pub range_end: Vec<u8>,
}

/// The relations of a [`Compare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub enum CompareResult {
    /// The key's equals the given.
    Equal = 0,
    /// The key's is greater than the given.
    Greater = 1,
    /// The key's is less than the given.
    Less = 2,
    /// The key's differs from the given.
    NotEqual = 3,
}

/// What a [`Compare`] looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub enum CompareTarget {
    /// The version.
    Version = 0,
    /// The revision of creation.
    Create = 1,
    /// The revision of the last put.
    Mod = 2,
    /// The value.
    Value = 3,
    /// The lease.
    Lease = 4,
}

/// What a [`Compare`] compares with.
#[derive(Clone, PartialEq, Eq, Oneof)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub enum TargetUnion {
    /// A version.
    #[prost(int64, tag = "4")]
    Version(i64),
    /// A revision of creation.
    #[prost(int64, tag = "5")]
    CreateRevision(i64),
    /// A revision of the last put.
    #[prost(int64, tag = "6")]
    ModRevision(i64),
    /// A value.
    #[prost(bytes = "vec", tag = "7")]
    Value(Vec<u8>),
    /// A lease.
    #[prost(int64, tag = "8")]
    Lease(i64),
}

/// Conditions, and what to do when all of them hold or not: as one revision.
#[derive(Clone, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct TxnRequest {
    /// The conditions.
    #[prost(message, repeated, tag = "1")]
    pub compare: Vec<Compare>,
    /// Done in order if all conditions hold.
    #[prost(message, repeated, tag = "2")]
    pub success: Vec<RequestOp>,
    /// Done in order if one does not.
    #[prost(message, repeated, tag = "3")]
    pub failure: Vec<RequestOp>,
}

/// The answer to a transaction.
#[derive(Clone, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct TxnResponse {
    /// The store's revision after it.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// Whether the conditions held.
    #[prost(bool, tag = "2")]
    pub succeeded: bool,
    /// The answers to the steps that were done, in order.
    #[prost(message, repeated, tag = "3")]
    pub responses: Vec<ResponseOp>,
}

/// Gives up the history before a revision.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct CompactionRequest {
    /// The oldest revision that can still be read.
    #[prost(int64, tag = "1")]
    pub revision: i64,
    /// Remove more at once instead of by and by.
    #[prost(bool, tag = "2")]
    pub physical: bool,
}

/// The answer to a compaction.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct CompactionResponse {
    /// The store's revision, which a compaction does not change.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
}

/// Asks how the store stands. Not etcd's: its status belongs to a server, this one to a machine.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct StatusRequest {}

/// How the store stands.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
#[cfg_attr(not(target_arch = "wasm32"), derive(Hash))]
pub struct StatusResponse {
    /// The store's revision.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// The oldest revision that can be read; -1 if nothing was ever compacted.
    #[prost(int64, tag = "2")]
    pub compact_revision: i64,
    /// Whether superseded versions are still being removed after a compaction.
    #[prost(bool, tag = "3")]
    pub compacting: bool,
    /// Whether keys of ended leases are still being deleted.
    #[prost(bool, tag = "4")]
    pub purging: bool,
}
