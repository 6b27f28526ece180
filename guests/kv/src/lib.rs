//! Statehouse's default machine: the data model of etcd v3 as a guest of the world `stored`.
//!
//! Keys have revisions, versions and leases; ranges read the present or the past; transactions compare and
//! write; compactions give up history. Requests and answers are the protobuf messages of etcd's v3 KV
//! service, so a client's bytes pass through unchanged.
//!
//! # The envelope
//! A command or query is one byte, a [`Kind`], and then the bytes of etcd's request:
//!
//! | byte | request, answer | in a command | in a query |
//! | --- | --- | --- | --- |
//! | 1 | `RangeRequest`, `RangeResponse` | yes | yes |
//! | 2 | `PutRequest`, `PutResponse` | yes | |
//! | 3 | `DeleteRangeRequest`, `DeleteRangeResponse` | yes | |
//! | 4 | `TxnRequest`, `TxnResponse` | yes | if no branch writes |
//! | 5 | `CompactionRequest`, `CompactionResponse` | yes | |
//! | 6 | [`StatusRequest`](messages::StatusRequest), [`StatusResponse`](messages::StatusResponse) | | yes |
//!
//! ```
//! use statehouse_kv::memory::Memory;
//! use statehouse_kv::messages::{PutRequest, RangeRequest};
//! use statehouse_kv::{Call, Input, Moment, apply, query};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut host = Memory::default();
//! let put = PutRequest { key: b"colour".into(), value: b"green".into(), ..Default::default() };
//! let moment = |revision| Moment { revision, time_ms: 1_000 };
//! let answer = apply(&mut host, moment(2), Input::Command(&put.to_envelope()))?;
//! assert_eq!(PutRequest::answer(&answer)?.header.unwrap_or_default().revision, 2);
//!
//! let get = RangeRequest { key: b"colour".into(), ..Default::default() };
//! let found = RangeRequest::answer(&query(&host, moment(2), &get.to_envelope())?)?;
//! assert_eq!(found.kvs[0].value, b"green");
//! # Ok(())
//! # }
//! ```
//!
//! # Revisions
//! The host's revision of the machine is etcd's: a fresh store is at 1, and an input that changes a key
//! takes the next one. All changes of a transaction share it; their order is the order of their events. An
//! event is a `put` with the encoded `KeyValue` as its value, or a `delete` with a `KeyValue` of only the
//! key and the revision that deleted it. Headers of answers carry the revision alone: cluster, member and
//! term are for whoever serves etcd's protocol.
//!
//! # Where it differs from etcd
//! - A transaction that deletes to the end of the keys (`range_end` of one zero byte) and puts one of them
//!   is refused as `duplicate key`; etcd overlooks it, and with `ignore_value` crashes. An unknown target
//!   or result of a compare is refused; etcd takes it for true.
//! - Keys that sort as equals come in key order; in etcd their order is undefined.
//! - A put may give its key a time to live of its own ([below](#time-to-live)).
//! - One input changes at most 10,000 keys and writes at most 16 MiB; what would be more is refused, with a
//!   word about the limit. The same holds for an answer over 4 MiB. What an ended lease leaves beyond that,
//!   and superseded versions after a compaction, are removed in steps with later inputs.
//! - A range always counts its keys, so it reads all of them: a limit bounds the answer, not the work.
//!
//! # Time to live
//! A put with [`ttl_ms`](messages::PutRequest::ttl_ms), a field that etcd does not have, gives its key an end
//! of its own: the machine grants a lease for it and keeps the deadline in the key's row. In answers and
//! events the key is an ordinary `KeyValue` with that lease as its `lease`, and with the deadline in a field
//! that clients of etcd skip.
//!
//! - From its deadline on the key is invisible: to queries by the time of the view, to commands by that of
//!   the input, in reads, comparisons and deletions. A put then finds it absent, so it starts at version 1.
//! - It is removed, and watchers are told by a deletion, when the end of its lease arrives as an input, a
//!   moment later.
//! - A read at a revision that it names shows the store as it was at that revision, expired keys too: so what
//!   was read once can be read again, and watchers can be told what a deletion deleted.
//! - Each put says anew: without `ttl_ms` the time to live is over; `ignore_lease` keeps it as it is.
//! - The lease is the key's own: to tie another key to it is refused, it goes when the key does, and clients
//!   can neither renew nor revoke it at the host.
//! - A key with a *client's* lease stays visible until that lease's end is in the log: a new leader prolongs
//!   clients' leases, and a key must not come back.
//!
//! # Layout
//! - [`messages`]: etcd's messages; [`Kind`], [`Call`]: their envelope; [`Refusal`]: its errors
//! - [`Read`], [`Host`], [`Input`]: what the machine asks of its host; [`memory`]: one for tests
//! - `rows`: the stored layout; `wire`: rows as protobuf; `read`, `write`, `txn`: what requests do;
//!   `upkeep`: what is done by and by; `component`: the bindings and `arena` the memory, in WebAssembly only

#[cfg(any(test, target_arch = "wasm32"))]
mod arena;
mod command;
#[cfg(target_arch = "wasm32")]
mod component;
mod host;
pub mod memory;
pub mod messages;
mod read;
mod refusal;
mod rows;
mod txn;
mod upkeep;
mod wire;
mod write;

pub use command::{Call, Kind};
pub use host::{EventKind, Host, Input, Moment, Pair, Read, TooManyLeases, UnknownLease};
pub use refusal::{Refusal, code};

use command::decode;
use messages::{CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest};
use read::Reader;
use rows::Meta;
use write::Writer;

/// Steps in one list of a transaction (etcd's default), and compares.
pub const OPERATIONS_MAX: usize = 128;
/// Changes of keys in one input: the contract's limit on events.
pub const EVENTS_MAX: usize = 10_000;
/// The contract's limit on attachments changed in one input.
pub const LEASE_CHANGES_MAX: usize = 10_000;
/// The contract's limit on keys and values written in one input.
pub const WRITE_BYTES_MAX: usize = 16 << 20;
/// The contract's limit on one value: a row with its key, value and numbers.
pub const VALUE_BYTES_MAX: usize = 4 << 20;
/// The contract's limit on an answer.
pub const ANSWER_BYTES_MAX: usize = 4 << 20;
/// The longest time to live of a key: 10 years of 365 days.
pub const TTL_MS_MAX: u64 = 10 * 365 * 24 * 3_600 * 1_000;
/// The memory that sorting may take before the limit of a range has thinned it out.
const SORT_BYTES_MAX: usize = 32 << 20;

/// Changes the machine by one input.
///
/// # Errors
/// A refusal; the host then undoes what was written.
pub fn apply<H: Host>(host: &mut H, moment: Moment, input: Input<'_>) -> Result<Vec<u8>, Refusal> {
    let mut writer = Writer::new(host, i64::try_from(moment.revision).unwrap_or(i64::MAX), moment.time_ms);
    match input {
        Input::Created(configuration) => {
            if !configuration.is_empty() {
                return Err(Refusal::unknown_configuration());
            }
            let fresh = Meta { format: Meta::FORMAT, ..Meta::default() };
            writer.set_meta(&fresh)?;
            Ok(Vec::new())
        }
        Input::Command(bytes) => {
            let answer = command(&mut writer, bytes)?;
            upkeep::step(&mut writer)?;
            Ok(answer)
        }
        Input::LeaseEnded { lease, keys } => {
            upkeep::lease_ended(&mut writer, lease, keys)?;
            Ok(Vec::new())
        }
        Input::Upgraded => {
            let mut meta = Meta::read(writer.host)?;
            if meta.format > Meta::FORMAT {
                return Err(Refusal::newer_format(meta.format, Meta::FORMAT));
            }
            if meta.format < Meta::FORMAT {
                // Every row of an older format is one of this; a component of the older must not come back.
                meta.format = Meta::FORMAT;
                writer.set_meta(&meta)?;
            }
            Ok(Vec::new())
        }
    }
}

fn command<H: Host>(writer: &mut Writer<'_, H>, bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
    let (kind, request) = Kind::split(bytes)?;
    match kind {
        Kind::Put => {
            let put: PutRequest = decode(request)?;
            txn::check_put(&put)?;
            writer.put(&put).map_err(|refusal| first_fault(writer, &put, refusal))
        }
        Kind::DeleteRange => {
            let delete: DeleteRangeRequest = decode(request)?;
            txn::check_delete(&delete)?;
            writer.delete_range(&delete)
        }
        Kind::Txn => {
            let transaction: TxnRequest = decode(request)?;
            txn::check_txn(&transaction)?;
            txn::execute(writer, &transaction)
        }
        Kind::Compaction => upkeep::compact(writer, &decode::<CompactionRequest>(request)?),
        Kind::Range => range(&writer.reader(), request),
        Kind::Status => Err(Refusal::malformed("a status is asked for by a query")),
    }
}

/// Of two faults etcd names the lease's first, but in a transaction the key's.
fn first_fault<H: Host>(writer: &Writer<'_, H>, put: &PutRequest, refusal: Refusal) -> Refusal {
    let lease_fault = put.lease != 0 && writer.host.remaining_ms(put.lease as u64).is_err();
    if lease_fault && refusal == Refusal::KEY_NOT_FOUND { Refusal::LEASE_NOT_FOUND } else { refusal }
}

/// Answers from the machine's state.
///
/// # Errors
/// A refusal.
pub fn query<R: Read>(host: &R, moment: Moment, request: &[u8]) -> Result<Vec<u8>, Refusal> {
    let revision = i64::try_from(moment.revision).unwrap_or(i64::MAX);
    let reader = Reader { host, begin: revision, now: revision, time_ms: moment.time_ms, hide_ended: true };
    let (kind, request) = Kind::split(request)?;
    match kind {
        Kind::Range => range(&reader, request),
        Kind::Txn => {
            let transaction: TxnRequest = decode(request)?;
            txn::check_txn(&transaction)?;
            txn::read_only(&reader, &transaction)
        }
        Kind::Status => status(&reader),
        Kind::Put | Kind::DeleteRange | Kind::Compaction => Err(Refusal::WRITE_IN_QUERY),
    }
}

fn range<R: Read>(reader: &Reader<'_, R>, request: &[u8]) -> Result<Vec<u8>, Refusal> {
    let range: RangeRequest = decode(request)?;
    txn::check_range(&range)?;
    reader.range(&range)
}

fn status<R: Read>(reader: &Reader<'_, R>) -> Result<Vec<u8>, Refusal> {
    let meta = Meta::read(reader.host)?;
    let mut answer = Vec::new();
    wire::header(&mut answer, reader.now);
    wire::int_field(&mut answer, 2, meta.compact_revision());
    wire::bool_field(&mut answer, 3, meta.removing.is_some());
    wire::bool_field(&mut answer, 4, meta.purging);
    Ok(answer)
}
