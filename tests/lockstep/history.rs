//! What clients did to each key and what came of it, and whether one register can have done so.
//!
//! The verdict is that of `todc-utils`, an implementation of Wing and Gong's search with Lowe's memory
//! ("Testing for linearizability", 2017). An operation whose fate is unknown may take effect at any time
//! after its call, or never: it ends after everything else, where it harms nobody. One that was certainly not
//! done is left out, so that whoever sees its effect is at fault.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

/// What a key holds; 0: nothing. Every write of a run has a value of its own.
pub type Value = u64;

/// How long the search for a verdict on one key may take. Undecided is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// An operation on one key, with what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Found this.
    Read(Value),
    /// Wrote `value`, over this if that is known.
    Write { value: Value, before: Option<Value> },
    /// Was to write `value` over `expected` and nothing else.
    Swap { expected: Value, value: Value, found: Option<Swapped> },
}

/// What became of a swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// It was done.
    Done,
    /// The key held this instead.
    Held(Value),
}

/// A key that holds a value.
struct Register;

impl Specification for Register {
    type State = Value;
    type Operation = Operation;

    fn init() -> Value {
        0
    }

    fn apply(operation: &Operation, state: &Value) -> (bool, Value) {
        match *operation {
            Operation::Read(found) => (found == *state, *state),
            Operation::Write { value, before } => (before.is_none_or(|before| before == *state), value),
            Operation::Swap { expected, value, found } => {
                let held = *state == expected;
                let said = match found {
                    None => true,
                    Some(Swapped::Done) => held,
                    Some(Swapped::Held(other)) => !held && other == *state,
                };
                (said, if held { value } else { *state })
            }
        }
    }
}

/// One operation of a history.
#[derive(Clone, Copy, Debug)]
struct Event {
    key: u64,
    operation: Operation,
    called: u64,
    /// None: its fate is unknown.
    returned: Option<u64>,
}

/// Collects operations from any thread.
#[derive(Default)]
pub struct Recorder {
    /// Counts calls and returns in the order in which they happen.
    moment: AtomicU64,
    events: Mutex<Vec<Event>>,
    acknowledged_writes: AtomicU64,
    unknown: AtomicU64,
    errors: Mutex<Vec<String>>,
    in_flight: AtomicU64,
}

/// An operation that was called.
pub struct Call {
    key: u64,
    called: u64,
}

impl Recorder {
    /// An operation is about to be sent.
    pub fn call(&self, key: u64) -> Call {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        Call { key, called: self.moment.fetch_add(1, Ordering::SeqCst) }
    }

    /// It was done.
    pub fn done(&self, call: Call, operation: Operation) {
        let returned = self.moment.fetch_add(1, Ordering::SeqCst);
        self.push(&call, operation, Some(returned));
        if !matches!(operation, Operation::Read(_)) {
            self.acknowledged_writes.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// It may have been done, or may yet be.
    pub fn unknown(&self, call: Call, operation: Operation) {
        self.unknown.fetch_add(1, Ordering::SeqCst);
        self.push(&call, operation, None);
    }

    /// It was certainly not done, or was a read without an answer.
    pub fn not_done(&self, _call: Call) {
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
    }

    fn push(&self, call: &Call, operation: Operation, returned: Option<u64>) {
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        let event = Event { key: call.key, operation, called: call.called, returned };
        self.events.lock().expect("nobody panics with it").push(event);
    }

    /// Writes that were acknowledged so far.
    pub fn acknowledged_writes(&self) -> u64 {
        self.acknowledged_writes.load(Ordering::SeqCst)
    }

    /// Writes whose fate is unknown.
    pub fn unknown_fates(&self) -> u64 {
        self.unknown.load(Ordering::SeqCst)
    }

    /// A client was told this instead of an answer.
    pub fn error(&self, error: String) {
        self.errors.lock().expect("nobody panics with it").push(error);
    }

    /// What clients were told instead of answers.
    pub fn errors(&self) -> Vec<String> {
        self.errors.lock().expect("nobody panics with it").clone()
    }

    /// Operations that wait for an answer now.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Operations that were recorded.
    pub fn recorded(&self) -> usize {
        self.events.lock().expect("nobody panics with it").len()
    }

    /// Checks the history of every key.
    ///
    /// # Errors
    /// The key and its history, if no register can have done so, or if that was not found out in time.
    pub fn check(&self) -> Result<(), String> {
        let mut of_keys: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
        for event in self.events.lock().expect("nobody panics with it").iter() {
            of_keys.entry(event.key).or_default().push(*event);
        }
        for (key, mut events) in of_keys {
            events.sort_by_key(|event| event.called);
            let history = history(&events);
            let (send, verdict) = mpsc::channel();
            // Nobody listens any more if it took too long.
            std::thread::spawn(move || send.send(WGLChecker::<Register>::is_linearizable(history)));
            match verdict.recv_timeout(PATIENCE) {
                Ok(true) => {}
                Ok(false) => return Err(format!("key {key} is not linearizable:\n{}", told(&events))),
                Err(_) => return Err(format!("key {key}: no verdict in {PATIENCE:?}:\n{}", told(&events))),
            }
        }
        Ok(())
    }
}

fn history(events: &[Event]) -> History<Operation> {
    let mut moments = Vec::new();
    // Every operation is a process of its own: those of unknown fate never return to their client.
    for (process, event) in events.iter().enumerate() {
        moments.push((event.called, (process, Action::Call(event.operation))));
        let returned = event.returned.unwrap_or(u64::MAX);
        moments.push((returned, (process, Action::Response(event.operation))));
    }
    moments.sort_by_key(|(moment, _)| *moment);
    History::from_actions(moments.into_iter().map(|(_, action)| action).collect())
}

fn told(events: &[Event]) -> String {
    let mut text = String::new();
    for Event { operation, called, returned, .. } in events {
        let returned = returned.map_or("?".to_owned(), |returned| returned.to_string());
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {called:>7} ..{returned:>7}  {operation:?}");
    }
    text
}

/// The checker sees what it is there for: histories of each kind of fault, by hand.
mod tests {
    use super::*;

    fn verdict(events: &[(Operation, u64, Option<u64>)]) -> bool {
        let recorder = Recorder::default();
        for &(operation, called, returned) in events {
            recorder.in_flight.fetch_add(1, Ordering::SeqCst);
            recorder.push(&Call { key: 1, called }, operation, returned);
        }
        recorder.check().is_ok()
    }

    fn write(value: Value) -> Operation {
        Operation::Write { value, before: None }
    }

    fn swap(expected: Value, value: Value, found: Option<Swapped>) -> Operation {
        Operation::Swap { expected, value, found }
    }

    #[test]
    fn a_lost_write_and_a_stale_read_are_not_linearizable() {
        assert!(verdict(&[(write(1), 0, Some(1)), (Operation::Read(1), 2, Some(3))]));
        assert!(!verdict(&[(write(1), 0, Some(1)), (Operation::Read(0), 2, Some(3))]));
        let stale =
            [(write(1), 0, Some(5)), (Operation::Read(1), 1, Some(2)), (Operation::Read(0), 3, Some(4))];
        assert!(!verdict(&stale));
    }

    #[test]
    fn a_fate_that_is_unknown_may_be_either_but_not_both() {
        let (one, none) = (Operation::Read(1), Operation::Read(0));
        assert!(verdict(&[(write(1), 0, None), (none, 1, Some(2)), (one, 3, Some(4))]));
        assert!(verdict(&[(write(1), 0, None), (none, 1, Some(2)), (none, 3, Some(4))]));
        assert!(!verdict(&[(write(1), 0, None), (one, 1, Some(2)), (none, 3, Some(4))]));
        // A command that is done twice.
        let twice = [
            (swap(0, 1, None), 0, None),
            (Operation::Read(1), 1, Some(2)),
            (swap(1, 0, Some(Swapped::Done)), 3, Some(4)),
            (Operation::Read(1), 5, Some(6)),
        ];
        assert!(!verdict(&twice));
    }

    #[test]
    fn a_swap_is_held_to_what_it_said() {
        let done = Some(Swapped::Done);
        assert!(verdict(&[(write(1), 0, Some(1)), (swap(1, 2, done), 2, Some(3))]));
        assert!(!verdict(&[(write(1), 0, Some(1)), (swap(3, 2, done), 2, Some(3))]));
        assert!(verdict(&[(write(1), 0, Some(1)), (swap(3, 2, Some(Swapped::Held(1))), 2, Some(3))]));
        assert!(!verdict(&[(write(1), 0, Some(1)), (swap(1, 2, Some(Swapped::Held(1))), 2, Some(3))]));
        let over = Operation::Write { value: 2, before: Some(0) };
        assert!(!verdict(&[(write(1), 0, Some(1)), (over, 2, Some(3))]));
    }
}
