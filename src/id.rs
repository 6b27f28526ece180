//! Names of things: nodes, groups, replicas, log positions, revisions, leases, module digests.
//!
//! Each is a type of its own, so that the compiler tells a group from a node. All are plain values: no clock,
//! no randomness, no allocation beyond their own bytes.

use std::fmt;
use std::str::FromStr;

/// Declares a newtype over `u64` that prints as its number.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// One running `statehouse` process with one data directory. Drawn at random when the directory is made.
    NodeId
}
number! {
    /// The Raft group that orders one machine's inputs. Assigned by the catalog, from 1, never used twice.
    GroupId
}
number! {
    /// One life of a group's copy on one node. A node that lost its data comes back under a new one.
    ReplicaId
}
number! {
    /// A position in a group's log, from 1; 0 is "before the first entry".
    Index
}
number! {
    /// A Raft term.
    Term
}
number! {
    /// Counts the inputs of a machine that emitted events. Starts at 1; the first event carries 2.
    Revision
}
number! {
    /// The log's clock: milliseconds since the Unix epoch, stamped by the leader, never going back.
    LogTime
}

impl GroupId {
    /// The group that orders the catalog.
    pub const CATALOG: GroupId = GroupId(0);
}

impl Index {
    /// The position after this one.
    pub fn next(self) -> Index {
        Index(self.0 + 1)
    }
}

impl Revision {
    /// The revision of a machine that has emitted nothing yet.
    pub const FIRST: Revision = Revision(1);

    /// The revision after this one.
    pub fn next(self) -> Revision {
        Revision(self.0 + 1)
    }
}

/// The sha256 of a module's bytes: a module's name. Written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        use sha2::Digest as _;
        Digest(sha2::Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not a [`Digest`].
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is not a module digest: 64 hexadecimal digits are expected, as printed by `statehouse module \
     list`"
)]
pub struct NotADigest {
    text: String,
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Digest, NotADigest> {
        let mut bytes = [0; 32];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) => Ok(Digest(bytes)),
            Err(_) => Err(NotADigest { text: text.chars().take(80).collect() }),
        }
    }
}

/// The rolling blake3 hash over everything a machine's batches did, in order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct StateHash(pub [u8; 32]);

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_back_what_it_prints() {
        let digest = Digest::of(b"module");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
    }

    #[test]
    fn a_wrong_digest_is_named_in_the_error() {
        let error = "abc".parse::<Digest>().unwrap_err().to_string();
        assert!(error.contains("\"abc\"") && error.contains("64"), "{error}");
    }
}
