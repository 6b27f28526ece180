//! Why a request is refused: etcd's own words with gRPC's numbers, so that a client of etcd recognises
//! them.
//!
//! A refusal is a value on every path: nothing in this crate may panic, whatever bytes it is given.

use std::borrow::Cow;
use std::fmt;

/// gRPC's status numbers, as far as the machine uses them.
pub mod code {
    /// The request itself is wrong.
    pub const INVALID_ARGUMENT: u32 = 3;
    /// There is no such lease.
    pub const NOT_FOUND: u32 = 5;
    /// The request is larger than one input may be; no lease is left.
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    /// The store was left by a newer version; a lease that is a key's own.
    pub const FAILED_PRECONDITION: u32 = 9;
    /// A revision that is gone or not there yet.
    pub const OUT_OF_RANGE: u32 = 11;
    /// A row of the store does not read back.
    pub const DATA_LOSS: u32 = 15;
}

/// A request that changed nothing, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One of [`code`]; never 0.
    pub code: u32,
    /// For people; etcd's text where etcd has one.
    pub message: Cow<'static, str>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    const fn etcd(code: u32, message: &'static str) -> Refusal {
        Refusal { code, message: Cow::Borrowed(message) }
    }

    /// A time to live together with a lease, named or kept.
    pub const TTL_AND_LEASE: Refusal = Refusal::etcd(
        code::INVALID_ARGUMENT,
        "statehouse: a put has either ttl_ms or a lease (lease, ignore_lease): a time to live is its own \
         lease",
    );
    /// A request without a key.
    pub const EMPTY_KEY: Refusal = Refusal::etcd(code::INVALID_ARGUMENT, "etcdserver: key is not provided");
    /// `ignore_value` or `ignore_lease` on a key that is not there; a transaction step without a request.
    pub const KEY_NOT_FOUND: Refusal = Refusal::etcd(code::INVALID_ARGUMENT, "etcdserver: key not found");
    /// A value together with `ignore_value`.
    pub const VALUE_PROVIDED: Refusal =
        Refusal::etcd(code::INVALID_ARGUMENT, "etcdserver: value is provided");
    /// A lease together with `ignore_lease`.
    pub const LEASE_PROVIDED: Refusal =
        Refusal::etcd(code::INVALID_ARGUMENT, "etcdserver: lease is provided");
    /// More than [`OPERATIONS_MAX`](crate::OPERATIONS_MAX) steps.
    pub const TOO_MANY_OPERATIONS: Refusal =
        Refusal::etcd(code::INVALID_ARGUMENT, "etcdserver: too many operations in txn request");
    /// A transaction that writes one key twice.
    pub const DUPLICATE_KEY: Refusal =
        Refusal::etcd(code::INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request");
    /// A sort order or target that does not exist.
    pub const INVALID_SORT: Refusal =
        Refusal::etcd(code::INVALID_ARGUMENT, "etcdserver: invalid sort option");
    /// A comparison that does not exist. etcd takes it for one that holds; refusing is the safe reading.
    pub const INVALID_COMPARE: Refusal = Refusal::etcd(
        code::INVALID_ARGUMENT,
        "statehouse: unknown target or result in a compare of a txn request",
    );
    /// A value that no row can hold.
    pub const TOO_LARGE: Refusal = Refusal::etcd(code::INVALID_ARGUMENT, "etcdserver: request is too large");
    /// A revision before the last compaction.
    pub const COMPACTED: Refusal =
        Refusal::etcd(code::OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted");
    /// A revision that is not reached yet.
    pub const FUTURE_REVISION: Refusal =
        Refusal::etcd(code::OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision");
    /// A lease that never was, or is gone.
    pub const LEASE_NOT_FOUND: Refusal =
        Refusal::etcd(code::NOT_FOUND, "etcdserver: requested lease not found");
    /// A write in a query.
    pub const WRITE_IN_QUERY: Refusal = Refusal::etcd(
        code::INVALID_ARGUMENT,
        "statehouse: a query reads only: send a txn request with puts or deletes as a command",
    );
    /// A row that does not read back.
    pub const DAMAGED: Refusal = Refusal::etcd(
        code::DATA_LOSS,
        "statehouse: a row of the kv store is damaged: restore the machine from a snapshot or a backup",
    );

    /// The bytes are no request.
    pub fn malformed(what: impl fmt::Display) -> Refusal {
        Refusal {
            code: code::INVALID_ARGUMENT,
            message: format!("statehouse: malformed kv request: {what}").into(),
        }
    }

    /// A time to live of no time, or of too much.
    pub fn ttl_out_of_range(ttl_ms: u64, max: u64) -> Refusal {
        let message =
            format!("statehouse: a time to live of {ttl_ms} ms: it may be 1 to {max} ms (10 years)");
        Refusal { code: code::INVALID_ARGUMENT, message: message.into() }
    }

    /// A put that names the lease of another put's time to live.
    pub fn owned_lease(lease: i64) -> Refusal {
        let message = format!(
            "statehouse: lease {lease} belongs to the time to live of one key: grant a lease for others, \
             or keep it on its key with ignore_lease"
        );
        Refusal { code: code::FAILED_PRECONDITION, message: message.into() }
    }

    /// No lease is left for a time to live.
    pub fn too_many_leases() -> Refusal {
        let message = "statehouse: the machine has as many leases as its limit allows, and a time to live \
                       takes one: delete keys with a time to live, revoke leases, or raise the limit";
        Refusal { code: code::RESOURCE_EXHAUSTED, message: message.into() }
    }

    /// A key that no row can hold.
    pub fn key_too_long(bytes: usize, max: usize) -> Refusal {
        let message = format!(
            "statehouse: the key takes {bytes} bytes in the store, where zeros count twice: at most {max}"
        );
        Refusal { code: code::INVALID_ARGUMENT, message: message.into() }
    }

    /// An answer over the limit of the contract.
    pub fn answer_too_large(max: usize) -> Refusal {
        let message = format!(
            "statehouse: the answer is over {max} bytes: set a limit and continue after the last key"
        );
        Refusal { code: code::RESOURCE_EXHAUSTED, message: message.into() }
    }

    /// A request that would do more than one input may.
    pub fn too_much(what: &str, max: usize) -> Refusal {
        let message =
            format!("statehouse: the request makes more than {max} {what}, the limit of one input: split it");
        Refusal { code: code::RESOURCE_EXHAUSTED, message: message.into() }
    }

    /// A creation with a configuration.
    pub fn unknown_configuration() -> Refusal {
        let message = "statehouse: the kv machine takes no configuration: create it with an empty one";
        Refusal { code: code::INVALID_ARGUMENT, message: message.into() }
    }

    /// A store of a format that this version does not know.
    pub fn newer_format(found: u32, known: u32) -> Refusal {
        let message = format!(
            "statehouse: the kv store has format {found}, this version knows {known}: use a newer component"
        );
        Refusal { code: code::FAILED_PRECONDITION, message: message.into() }
    }
}
