//! How two nodes make sure of each other before anything else is said.
//!
//! Whoever connects sends eight bytes that name the protocol, then a greeting: version, cluster, who it is,
//! whom it takes the other for, which life of its process this is, and what the connection is for. The other
//! answers with a welcome, or with a refusal that says why, and closes.
//!
//! Promises: the form of greetings and refusals stays readable for all versions, so that a mismatch is told
//! with both numbers; until the welcome neither side takes more than a small frame from the other.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;

use super::NotAdmitted;
use super::frame::{self, Kind};
use super::socket::{Socket, Trouble, write_all};
use crate::id::NodeId;

/// The version of everything that is said after the greeting. Raised with every change that the version
/// before would not understand.
pub(super) const VERSION: u32 = 3;
/// What every connection begins with.
pub(super) const MAGIC: [u8; 8] = *b"\x8fSHpeer\n";
/// The largest payload until the welcome.
pub(super) const PAYLOAD_BYTES_MAX: usize = 4 << 10;
/// How much of a reason is sent.
const TEXT_CHARS_MAX: usize = 800;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub(super) enum Purpose {
    /// Messages and requests: one for each pair and direction.
    Link = 1,
    /// One file.
    Bulk = 2,
}

/// Who connects, and what for.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Greeting {
    #[prost(uint32, tag = "1")]
    pub(super) version: u32,
    #[prost(fixed64, tag = "2")]
    pub(super) cluster: u64,
    #[prost(fixed64, tag = "3")]
    pub(super) from: u64,
    #[prost(fixed64, tag = "4")]
    pub(super) to: u64,
    /// Drawn at the start of the process.
    #[prost(fixed64, tag = "5")]
    pub(super) incarnation: u64,
    #[prost(uint32, tag = "6")]
    pub(super) purpose: u32,
    /// The largest frame that it takes.
    #[prost(uint64, tag = "7")]
    pub(super) frame_bytes_max: u64,
    /// How old its data directory is.
    #[prost(uint64, tag = "8")]
    pub(super) age: u64,
    /// The name of the life of the node in which it is.
    #[prost(fixed64, tag = "9")]
    pub(super) life: u64,
}

/// How old a node's data is by now.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct AgeFrame {
    #[prost(uint64, tag = "1")]
    pub(super) age: u64,
}

/// How old the data is with which a node comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAge {
    /// Which process it is: another number at each start.
    pub incarnation: u64,
    /// Which life of the data it is: another number at each start after one that the cluster heard of.
    pub life: u64,
    /// Counted up durably with each life, and while the node runs. Whoever comes with an age that another
    /// life of it had already comes with an old copy of its data.
    pub age: u64,
}

impl Greeting {
    /// How old the greeting node's data is.
    pub(super) fn data_age(&self) -> DataAge {
        DataAge { incarnation: self.incarnation, life: self.life, age: self.age }
    }

    /// The purpose, if it is one of this version.
    pub(super) fn purpose(&self) -> Option<Purpose> {
        [Purpose::Link, Purpose::Bulk].into_iter().find(|&known| known as u32 == self.purpose)
    }
}

/// Come in.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Welcome {
    /// The largest frame that is taken.
    #[prost(uint64, tag = "1")]
    pub(super) frame_bytes_max: u64,
}

/// Why a peer turned this node away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It belongs to another cluster.
    #[error(
        "it belongs to cluster {theirs:016x}, this node to {ours:016x}: one of the addresses or data \
         directories is mistaken"
    )]
    OtherCluster {
        /// This node's.
        ours: u64,
        /// The peer's.
        theirs: u64,
    },
    /// It speaks another version.
    #[error(
        "it speaks version {theirs} of the peer protocol, this node {ours}: run the same release on both"
    )]
    OtherVersion {
        /// This node's.
        ours: u32,
        /// The peer's.
        theirs: u32,
    },
    /// It is not the node that was expected at its address.
    #[error("node {found} answers there, node {expected} was expected: its address has changed")]
    OtherNode {
        /// Who was expected.
        expected: NodeId,
        /// Who is there.
        found: NodeId,
    },
    /// Its host does not admit this node any more, in its words.
    #[error("{0}")]
    Removed(String),
    /// It starts, or has too many connections at the moment.
    #[error("{0}")]
    Busy(String),
}

/// A refusal on the wire: a code, and what the codes need.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RefusalFrame {
    #[prost(uint32, tag = "1")]
    code: u32,
    /// The refusing node's.
    #[prost(uint32, tag = "2")]
    version: u32,
    #[prost(fixed64, tag = "3")]
    cluster: u64,
    #[prost(fixed64, tag = "4")]
    node: u64,
    #[prost(string, tag = "5")]
    text: String,
}

const OTHER_CLUSTER: u32 = 1;
const OTHER_VERSION: u32 = 2;
const OTHER_NODE: u32 = 3;
const REMOVED: u32 = 4;
const BUSY: u32 = 5;
/// Cannot happen between two of the same version; told by its text.
const UNKNOWN_PURPOSE: u32 = 6;

/// Who this node is, for those who greet it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) cluster: u64,
    pub(super) node: NodeId,
    /// Drawn at the start of the process.
    pub(super) incarnation: u64,
    pub(super) frame_bytes_max: usize,
    /// How old its data is, and in which life.
    pub(super) age: u64,
    pub(super) life: u64,
}

/// What is wrong with a greeting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Objection {
    #[error("it is of cluster {theirs:016x}, this node of {ours:016x}")]
    Cluster { theirs: u64, ours: u64 },
    #[error("it speaks version {theirs} of the peer protocol, this node {VERSION}")]
    Version { theirs: u32 },
    #[error("it looks for node {wanted}, this is node {own}")]
    Node { wanted: NodeId, own: NodeId },
    #[error("it connects for the unknown purpose {0}")]
    Purpose(u32),
    #[error("{0}")]
    Removed(String),
    #[error("{0}")]
    Busy(String),
}

impl From<NotAdmitted> for Objection {
    fn from(why: NotAdmitted) -> Objection {
        match why {
            NotAdmitted::ForGood(why) => Objection::Removed(why),
            NotAdmitted::ForNow(why) => Objection::Busy(why),
        }
    }
}

impl Identity {
    /// The greeting to `to`.
    pub(super) fn greeting(&self, to: NodeId, purpose: Purpose) -> Greeting {
        Greeting {
            version: VERSION,
            cluster: self.cluster,
            from: self.node.0,
            to: to.0,
            incarnation: self.incarnation,
            purpose: purpose as u32,
            frame_bytes_max: self.frame_bytes_max as u64,
            age: self.age,
            life: self.life,
        }
    }

    /// Whether the greeting is meant for this node, and by one whom it understands.
    pub(super) fn check(&self, greeting: &Greeting) -> Result<Purpose, Objection> {
        if greeting.version != VERSION {
            return Err(Objection::Version { theirs: greeting.version });
        }
        if greeting.cluster != self.cluster {
            return Err(Objection::Cluster { theirs: greeting.cluster, ours: self.cluster });
        }
        if greeting.to != self.node.0 {
            return Err(Objection::Node { wanted: NodeId(greeting.to), own: self.node });
        }
        greeting.purpose().ok_or(Objection::Purpose(greeting.purpose))
    }

    fn refusal(&self, objection: &Objection) -> RefusalFrame {
        let code = match objection {
            Objection::Cluster { .. } => OTHER_CLUSTER,
            Objection::Version { .. } => OTHER_VERSION,
            Objection::Node { .. } => OTHER_NODE,
            Objection::Removed(_) => REMOVED,
            Objection::Busy(_) => BUSY,
            Objection::Purpose(_) => UNKNOWN_PURPOSE,
        };
        let text = objection.to_string().chars().take(TEXT_CHARS_MAX).collect();
        RefusalFrame { code, version: VERSION, cluster: self.cluster, node: self.node.0, text }
    }

    /// What a refusal means to this node; `None` if it is of a kind unknown here.
    fn refused_by(&self, expected: NodeId, frame: RefusalFrame) -> Option<Refusal> {
        Some(match frame.code {
            OTHER_CLUSTER => Refusal::OtherCluster { ours: self.cluster, theirs: frame.cluster },
            OTHER_VERSION => Refusal::OtherVersion { ours: VERSION, theirs: frame.version },
            OTHER_NODE => Refusal::OtherNode { expected, found: NodeId(frame.node) },
            REMOVED => Refusal::Removed(frame.text),
            BUSY => Refusal::Busy(frame.text),
            _ => return None,
        })
    }
}

/// How greeting another node went wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotWelcome {
    #[error(transparent)]
    Trouble(#[from] Trouble),
    #[error("it turned this node away: {0}")]
    Refused(Refusal),
    #[error("it turned this node away for the unknown reason {code}: {text}")]
    RefusedStrangely { code: u32, text: String },
}

/// Greets whoever is at the other end and waits for the answer. Without a deadline: the caller has one.
pub(super) async fn greet(
    socket: &mut Socket,
    me: &Identity,
    to: NodeId,
    purpose: Purpose,
    patience: Duration,
) -> Result<Welcome, NotWelcome> {
    let mut out = BytesMut::from(&MAGIC[..]);
    frame::put(&mut out, Kind::Greeting, &me.greeting(to, purpose));
    write_all(socket.stream(), &out, patience).await?;
    let frame = socket.frame().await?;
    match frame.kind {
        Kind::Welcome => Ok(decode("a welcome", frame.payload)?),
        Kind::Refusal => {
            let refusal: RefusalFrame = decode("a refusal", frame.payload)?;
            let (code, text) = (refusal.code, refusal.text.clone());
            Err(match me.refused_by(to, refusal) {
                Some(refusal) => NotWelcome::Refused(refusal),
                None => NotWelcome::RefusedStrangely { code, text },
            })
        }
        other => Err(Trouble::Misplaced(other).into()),
    }
}

/// Waits for the greeting of whoever connected. Without a deadline: the caller has one.
pub(super) async fn receive(socket: &mut Socket) -> Result<Greeting, Trouble> {
    if socket.raw(MAGIC.len()).await? != MAGIC {
        return Err(Trouble::OtherProtocol);
    }
    let frame = socket.frame().await?;
    match frame.kind {
        Kind::Greeting => decode("a greeting", frame.payload),
        other => Err(Trouble::Misplaced(other)),
    }
}

/// Lets whoever greeted come in.
pub(super) async fn welcome(socket: &Socket, me: &Identity, patience: Duration) -> Result<(), Trouble> {
    let mut out = BytesMut::new();
    frame::put(&mut out, Kind::Welcome, &Welcome { frame_bytes_max: me.frame_bytes_max as u64 });
    write_all(socket.stream(), &out, patience).await
}

/// Turns whoever greeted away.
pub(super) async fn refuse(
    socket: &Socket,
    me: &Identity,
    objection: &Objection,
    patience: Duration,
) -> Result<(), Trouble> {
    let mut out = BytesMut::new();
    frame::put(&mut out, Kind::Refusal, &me.refusal(objection));
    write_all(socket.stream(), &out, patience).await
}

/// Reads a message, or says what was wrong.
pub(super) fn decode<M: Message + Default>(what: &'static str, payload: Bytes) -> Result<M, Trouble> {
    M::decode(payload).map_err(|error| Trouble::Malformed { what, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Identity =
        Identity { cluster: 7, node: NodeId(1), incarnation: 5, frame_bytes_max: 1 << 20, age: 1, life: 1 };
    const OTHER: Identity = Identity { cluster: 7, node: NodeId(2), incarnation: 6, ..ME };

    #[test]
    fn each_objection_reaches_the_other_as_what_it_means_there() {
        let greeting = OTHER.greeting(ME.node, Purpose::Link);
        assert_eq!(ME.check(&greeting), Ok(Purpose::Link));
        let removed = "node 2 was removed";
        let cases = [
            (ME.check(&Greeting { cluster: 8, ..greeting }), Refusal::OtherCluster { ours: 8, theirs: 7 }),
            (
                ME.check(&Greeting { version: 9, cluster: 8, ..greeting }),
                Refusal::OtherVersion { ours: VERSION, theirs: VERSION },
            ),
            (
                ME.check(&Greeting { to: 3, ..greeting }),
                Refusal::OtherNode { expected: NodeId(3), found: NodeId(1) },
            ),
            (Err(Objection::Removed(removed.into())), Refusal::Removed(removed.into())),
            (Err(Objection::Busy("full".into())), Refusal::Busy("full".into())),
        ];
        for (checked, expected) in cases {
            let frame = ME.refusal(&checked.unwrap_err());
            let frame = RefusalFrame::decode(&frame.encode_to_vec()[..]).unwrap();
            let greeter = Identity { cluster: 8, ..OTHER };
            assert_eq!(greeter.refused_by(NodeId(3), frame), Some(expected));
        }
        let objection = ME.check(&Greeting { purpose: 9, ..greeting }).unwrap_err();
        assert_eq!(OTHER.refused_by(ME.node, ME.refusal(&objection)), None);
        let unknown = RefusalFrame { code: 99, ..RefusalFrame::default() };
        assert_eq!(OTHER.refused_by(ME.node, unknown), None);
    }

    #[test]
    fn a_refusal_fits_into_what_is_read_before_the_welcome() {
        let frame = ME.refusal(&Objection::Removed("\u{10ffff}".repeat(5_000)));
        assert!(frame.encoded_len() <= PAYLOAD_BYTES_MAX, "{}", frame.encoded_len());
    }
}
