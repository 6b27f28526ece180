//! What went wrong, in the two kinds that are never mixed.
//!
//! A [`Fault`] is about this computer: disk, memory, corruption. It stops the node or the group and never
//! enters the log. Facts about a guest or a request are data, the same on every replica, and live in
//! `machine`. [`Error`] is what callers of the library see.

use std::fmt;
use std::sync::Arc;

use crate::id::{NodeId, Revision};

/// What to do about a data directory that is damaged. An old copy of it would be turned away by a cluster.
pub(crate) const REPAIR: &str = "In a cluster, remove this node (statehouse member remove), empty the \
    directory and start the node with --join; if it is alone, restore the directory from a backup";

/// This computer failed: the operation was neither done nor refused. Never replicated.
#[derive(Clone, Debug)]
pub struct Fault {
    what: Arc<str>,
}

impl Fault {
    /// A fault told in a sentence that names the file or value and what to do.
    pub fn new(what: impl Into<String>) -> Fault {
        Fault { what: what.into().into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Fault {}

/// What a caller of the library sees: about a dozen kinds that call for different reactions.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request itself is wrong; sending it again does not help.
    #[error("{0}")]
    Invalid(String),
    /// There is no such machine, module or lease.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request is over a limit; the message names the value and the limit.
    #[error("{0}")]
    TooLarge(String),
    /// The state does not allow it (a module in use, a machine that is halted).
    #[error("{0}")]
    FailedPrecondition(String),
    /// There are as many of these as the machine may have; the message names the limit and the setting.
    #[error("{0}")]
    LimitReached(String),
    /// The session has ended: this command was not applied now, and whether it and others without an outcome
    /// were applied before cannot be known any more.
    #[error("{0}")]
    SessionExpired(String),
    /// A session's number goes back: its outcome was acknowledged and is forgotten. Not applied again.
    #[error("{0}")]
    NumberPassed(String),
    /// A session's number is further ahead of what was acknowledged than its window. Not applied.
    #[error("{0}")]
    NumberAhead(String),
    /// The node holds as many requests as it may. Try again later.
    #[error("{0}")]
    Overloaded(String),
    /// No leader, starting, or stopping. The request was not done; try again, perhaps elsewhere.
    #[error("{0}")]
    Unavailable(String),
    /// This node does not lead the machine's group. The request was not done: the leader's node, if it is
    /// known, takes it.
    #[error("this node does not lead the machine's group; {}", match .leader {
        Some(node) => format!("node {node} does"),
        None => "no leader is known at the moment: try again".to_owned(),
    })]
    NotLeader {
        /// The leader's node.
        leader: Option<NodeId>,
    },
    /// The events from the revision on that was asked for are not kept any more.
    #[error(
        "the events of revision {asked} are not kept any more: the first that is kept is {first}; read the \
         state as it is now and watch from the revision after it"
    )]
    Compacted {
        /// What was asked for.
        asked: Revision,
        /// The first revision whose events are kept.
        first: Revision,
    },
    /// The request was sent into the log and its fate is unknown: it may or may not be applied.
    #[error("{0}")]
    Unknown(String),
    /// The deadline passed first. For a command the fate is unknown.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// The guest trapped, or ran out of fuel, time or memory in a query.
    #[error("{0}")]
    Guest(String),
    /// The data directory is damaged, of another node, or of a format that this version does not read.
    #[error("{0}")]
    Damaged(String),
    /// This computer failed; the node has stopped serving.
    #[error(transparent)]
    Fault(#[from] Fault),
}
