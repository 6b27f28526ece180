//! The two kinds of machine, and what goes in and out of one.
//!
//! A machine is a function of its state and its inputs. It gets one method for each kind of input, and
//! answers or refuses. Refuse rather than panic: a panic traps, and tells the client nothing.

use std::fmt;
use std::io::{Read, Write};

use crate::{Change, Store, View};

/// What an input or a query is answered: bytes, or why not.
pub type Answer = Result<Vec<u8>, Refusal>;

/// A no, with a reason for the client. The input changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The machine's own code, never 0: that counts as a trap.
    pub code: u32,
    /// For people; at most 4 KiB.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    ///
    /// # Panics
    /// If the code is 0, which the contract keeps for uncaught exceptions.
    pub fn new(code: u32, message: impl Into<String>) -> Refusal {
        assert!(code != 0, "a refusal's code is never 0: the host would take it for a trap");
        Refusal { code, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused with {}: {}", self.code, self.message)
    }
}

impl std::error::Error for Refusal {}

/// A lease that has ended, by time or because a client revoked it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseEnd {
    /// Its id, which is never used again.
    pub lease: u64,
    /// The keys that were attached to it, in order. They are names: the host did nothing to the store.
    pub keys: Vec<Vec<u8>>,
}

/// The machine now runs this component in place of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// The sha256 of the former component, in hexadecimal.
    pub previous: String,
    /// What the operator gave for the migration.
    pub argument: Vec<u8>,
}

/// A machine whose state is in the host's ordered map. Each batch of inputs runs in a fresh instance, so
/// nothing may be kept in globals; that is why no method has a `self`.
pub trait Stored {
    /// The machine is created, with its creator's configuration. After a refusal there is no machine.
    fn created(change: &Change, store: &mut Store, configuration: &[u8]) -> Answer {
        let _ = (change, store, configuration);
        Ok(Vec::new())
    }

    /// A client's command.
    fn command(change: &Change, store: &mut Store, command: &[u8]) -> Answer;

    /// A lease of this machine has ended. A refusal undoes what is done here, not the end of the lease.
    fn lease_ended(change: &Change, store: &mut Store, ended: &LeaseEnd) -> Answer {
        let _ = (change, store, ended);
        Ok(Vec::new())
    }

    /// This component takes over. A refusal cancels the upgrade.
    fn upgraded(change: &Change, store: &mut Store, upgrade: &Upgrade) -> Answer {
        let _ = (change, store, upgrade);
        Ok(Vec::new())
    }

    /// An answer from the state, which stays as it is.
    fn query(view: &View, store: &Store, request: &[u8]) -> Answer;
}

/// A machine that keeps its state in its own memory. It begins as its `Default`. A method that refuses must
/// not have changed anything: only the machine itself can see to that ([`TestHost`](crate::TestHost) checks
/// it).
pub trait Resident: Default {
    /// The machine is created, with its creator's configuration. After a refusal there is no machine.
    fn created(&mut self, change: &Change, configuration: &[u8]) -> Answer {
        let _ = (change, configuration);
        Ok(Vec::new())
    }

    /// A client's command.
    fn command(&mut self, change: &Change, command: &[u8]) -> Answer;

    /// A lease of this machine has ended.
    fn lease_ended(&mut self, change: &Change, ended: &LeaseEnd) -> Answer {
        let _ = (change, ended);
        Ok(Vec::new())
    }

    /// This component takes over; what the former one saved was restored before. A refusal cancels the
    /// upgrade.
    fn upgraded(&mut self, change: &Change, upgrade: &Upgrade) -> Answer {
        let _ = (change, upgrade);
        Ok(Vec::new())
    }

    /// An answer from the state, which stays as it is.
    fn query(&self, view: &View, request: &[u8]) -> Answer;

    /// Writes the whole state, in the same bytes for the same state.
    ///
    /// # Errors
    /// Why it cannot be saved: the former snapshot stays.
    fn save(&self, snapshot: &mut dyn Write) -> Result<(), String>;

    /// Reads what [`save`](Resident::save) wrote.
    ///
    /// # Errors
    /// Why it cannot be read: the replica halts this machine.
    fn restore(snapshot: &mut dyn Read) -> Result<Self, String>;
}
