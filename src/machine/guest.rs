//! What the heart asks of a running component. `wasm` implements it; tests have their own.

use bytes::Bytes;

use super::frame::Frame;
use super::outcome::{Context, Refusal};
use crate::error::Fault;
use crate::id::Digest;

/// Which of the contract's two worlds a module implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// All state in the host's ordered map.
    Stored,
    /// State in the component's own memory.
    Resident,
}

impl World {
    /// Its name in the contract.
    pub fn name(self) -> &'static str {
        match self {
            World::Stored => "stored",
            World::Resident => "resident",
        }
    }
}

/// Everything that can change a machine: the contract's `input`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The machine was created, with its creator's configuration.
    Created(Bytes),
    /// A client's command.
    Command(Bytes),
    /// A lease ended; the keys that were attached, in key order.
    LeaseEnded {
        /// The lease that is gone.
        lease: u64,
        /// The keys that were attached to it.
        keys: Vec<Vec<u8>>,
    },
    /// The machine now runs another component.
    Upgraded {
        /// The sha256 of the former component, in hex.
        previous: String,
        /// Whatever the operator gave for the migration.
        argument: Bytes,
    },
}

/// What a query reads: the state after the batch at `index`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueryView {
    /// The index of the last batch in the state.
    pub index: u64,
    /// The clock that expiry is judged by: at least the batch's own.
    pub time: u64,
    /// Of the last input that emitted events; 1 before the first.
    pub revision: u64,
}

/// How one call into a guest ended.
#[derive(Debug)]
pub enum Ending {
    /// The guest's answer.
    Answer(Bytes),
    /// The guest refused.
    Refused(Refusal),
    /// The guest trapped or broke a limit of the contract. The text is for this node's log and never
    /// replicated.
    Trapped(String),
    /// The guest used up its fuel (or, in a query only, its time or memory).
    Exhausted(String),
    /// This computer failed.
    Fault(Fault),
}

/// Where a machine's components come from.
pub trait Components: Send {
    /// A component by its digest, ready to run.
    fn component(&mut self, module: Digest) -> Result<Box<dyn Guest>, Unready>;
}

/// Why a component cannot be run here now.
#[derive(Debug)]
pub enum Unready {
    /// Its bytes are not here yet.
    Absent(Digest),
    /// This node cannot run it.
    Unfit(String),
    /// This computer failed.
    Fault(Fault),
}

/// Stands for the component, and for the instance, of a machine that was not created: no input reaches it.
pub struct Nobody;

impl Guest for Nobody {
    fn instance(&mut self) -> Result<Box<dyn Instance>, Fault> {
        Ok(Box::new(Nobody))
    }
}

impl Instance for Nobody {
    fn apply(&mut self, frame: Frame, _: Context, _: &Input) -> (Frame, Ending) {
        let mistake = "an input reached a machine that was not created: a mistake of this program";
        (frame, Ending::Fault(Fault::new(mistake)))
    }

    fn scale_budget(&mut self, _: u32) {}

    fn query(&mut self, frame: Frame, _: QueryView, _: &[u8]) -> (Frame, Ending) {
        (frame, not_created())
    }

    fn save(&mut self, frame: Frame) -> (Frame, Ending) {
        (frame, not_created())
    }

    fn restore(&mut self, frame: Frame) -> (Frame, Ending) {
        (frame, not_created())
    }
}

fn not_created() -> Ending {
    Ending::Trapped("the machine was not created".into())
}

/// A component that is ready to run.
pub trait Guest: Send {
    /// A fresh instance: its memory is the component's initial memory. The answer of every call into it is a
    /// function of the component, the frame's state and the calls before it.
    fn instance(&mut self) -> Result<Box<dyn Instance>, Fault>;

    /// Takes back an instance whose batch is over. Letting it go takes time: it may be put off until
    /// [`prepare`](Guest::prepare), when nobody waits.
    fn retire(&mut self, instance: Box<dyn Instance>) {
        drop(instance);
    }

    /// Makes the next instance ready ahead of its batch, if that saves time later.
    fn prepare(&mut self) {}
}

/// One instance of a component. After `Trapped`, `Exhausted` or `Fault` it is dead: it must not be called
/// again.
pub trait Instance: Send {
    /// One input, with a budget of its own. The frame comes back with what the guest did.
    fn apply(&mut self, frame: Frame, context: Context, input: &Input) -> (Frame, Ending);

    /// Resident machines: from now on each input has `factor` times the usual budget.
    fn scale_budget(&mut self, factor: u32);

    /// One query, with a budget of its own.
    fn query(&mut self, frame: Frame, view: QueryView, request: &[u8]) -> (Frame, Ending);

    /// Resident machines: write the whole state as chunks into the frame's `saved`. `Answer` is empty on
    /// success; a guest's own error is `Refused` with code 0.
    fn save(&mut self, frame: Frame) -> (Frame, Ending);

    /// Resident machines: become the state that the frame's snapshot source reads. `Answer` is empty on
    /// success.
    fn restore(&mut self, frame: Frame) -> (Frame, Ending);
}
