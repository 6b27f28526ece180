//! Between the heart and an instance: notes what each input did, tells the guest the place that the input is
//! to have, and cuts inputs off that are to fail.
//!
//! Promises: what the heart sees is what the instance did, except for inputs that are to fail, which always
//! fail. An input that is called again in a replay must do what it did at first; the first that does not is
//! noted.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::Fault;
use crate::machine::frame::Frame;
use crate::machine::guest::{Ending, Guest, Input, Instance, QueryView};
use crate::machine::outcome::{Context, HostCode, Outcome};
use crate::machine::overlay::Write;
use crate::time::Clock;
use crate::wasm::GuestSettings;
use crate::wasm::instance::{WasmGuest, WasmInstance};

/// What inputs are told of their place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Places {
    /// The one that they would have in a run of one batch each.
    OneEach,
    /// The one that they have.
    Own,
}

/// How an input is made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Its budget is this fuel, which ends in the middle.
    Fuel(u64),
    /// It traps when it has done everything.
    AtEnd,
}

/// What one input did.
#[derive(Clone, Debug)]
pub struct Step {
    /// Which of the machine's inputs it was, from 1. One that is to fail has the number of the next.
    pub number: u64,
    /// The input.
    pub input: Input,
    /// What became of it.
    pub outcome: Outcome,
    /// Why the host ended it: never compared.
    pub why: Option<String>,
    /// The rows that it left written.
    pub writes: Vec<Write>,
    /// The revision of its events, if it has any.
    pub revision: u64,
    /// Whether it was to fail.
    pub was_cut: bool,
    /// Fuel that it used.
    pub fuel: u64,
    /// Time that it took.
    pub took_ns: u64,
    /// Memory of its instance afterwards.
    pub memory_bytes: usize,
}

impl Step {
    /// Whether another one did the same.
    pub fn agrees(&self, other: &Step) -> bool {
        self.outcome == other.outcome && self.writes == other.writes
    }
}

/// What a run's inputs did, by the index and offset at which the heart ran them.
pub struct Ledger {
    places: Places,
    /// The number of the first input of each batch.
    firsts: BTreeMap<u64, u64>,
    cuts: BTreeMap<(u64, u32), Cut>,
    steps: BTreeMap<(u64, u32), Step>,
    /// Batches up to this one are applied: what is called again of them is a replay.
    done: u64,
    /// The first input that did something else in a replay: as it was, and as it is.
    contradiction: Option<(Step, Step)>,
}

/// What a query was answered.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The number of the last input before it.
    pub after: u64,
    /// The query.
    pub request: Bytes,
    /// What became of it.
    pub outcome: Outcome,
    /// Why the host ended it: never compared.
    pub why: Option<String>,
}

/// The ledger of a run, in the hands of all its instances.
pub type Shared = Arc<Mutex<Ledger>>;

/// What an instance is to do with an input.
struct Turn {
    number: u64,
    context: Context,
    cut: Option<Cut>,
}

impl Ledger {
    /// An empty one.
    pub fn new(places: Places) -> Ledger {
        Ledger {
            places,
            firsts: BTreeMap::new(),
            cuts: BTreeMap::new(),
            steps: BTreeMap::new(),
            done: 0,
            contradiction: None,
        }
    }

    /// The input at this place is to fail.
    pub fn cut(&mut self, index: u64, offset: u32, cut: Cut) {
        self.cuts.insert((index, offset), cut);
    }

    /// The batches up to `index` are applied.
    pub fn done(&mut self, index: u64) {
        self.done = index;
    }

    /// The number of the next input after those that ran.
    pub fn next_number(&self) -> u64 {
        let Some((&index, &first)) = self.firsts.last_key_value() else { return 1 };
        let ran = self.steps.range((index, 0)..=(index, u32::MAX));
        first + ran.filter(|(_, step)| !step.was_cut).count() as u64
    }

    /// The index that a query is told of a machine that stands at `own`: that of the last input.
    pub fn told_index(&self, own: u64) -> u64 {
        match self.places {
            Places::OneEach => self.next_number() - 1,
            Places::Own => own,
        }
    }

    /// The first input that did something else in a replay, as it was and as it is.
    pub fn take_contradiction(&mut self) -> Option<(Step, Step)> {
        self.contradiction.take()
    }

    /// All inputs but those that were to fail, in order; and how many were to.
    pub fn take_steps(&mut self) -> (Vec<Step>, usize) {
        let steps = std::mem::take(&mut self.steps);
        let all = steps.len();
        let steps: Vec<Step> = steps.into_values().filter(|step| !step.was_cut).collect();
        let cut = all - steps.len();
        (steps, cut)
    }

    fn turn(&mut self, own: Context) -> Turn {
        let next = self.next_number();
        let first = *self.firsts.entry(own.index).or_insert(next);
        let failed_before = self.cuts.range((own.index, 0)..(own.index, own.offset)).count() as u64;
        let number = first + u64::from(own.offset) - failed_before;
        let context = match self.places {
            Places::OneEach => Context { index: number, offset: 0, ..own },
            Places::Own => own,
        };
        Turn { number, context, cut: self.cuts.get(&(own.index, own.offset)).copied() }
    }

    fn note(&mut self, own: Context, step: Step) {
        let place = (own.index, own.offset);
        let latest = self.firsts.last_key_value().map_or(0, |(&index, _)| index);
        let is_replay = own.index <= self.done || own.index < latest;
        match self.steps.get(&place) {
            Some(before) if is_replay => {
                if !before.agrees(&step) && self.contradiction.is_none() {
                    self.contradiction = Some((before.clone(), step));
                }
            }
            // After a trap the inputs of a batch run again, each alone: that is what counts.
            _ => {
                self.steps.insert(place, step);
            }
        }
    }
}

/// An ending as an outcome, with the reason if the host ended it.
///
/// # Errors
/// If this computer failed.
pub fn what_became(ending: &Ending) -> Result<(Outcome, Option<String>), Fault> {
    Ok(match ending {
        Ending::Answer(answer) => (Outcome::Ok(answer.clone()), None),
        Ending::Refused(refusal) => (Outcome::Refused(refusal.clone()), None),
        Ending::Trapped(why) => (Outcome::Host(HostCode::Trapped), Some(why.clone())),
        Ending::Exhausted(why) => (Outcome::Host(HostCode::Exhausted), Some(why.clone())),
        Ending::Fault(fault) => return Err(fault.clone()),
    })
}

/// An instance whose budget can be set, and that tells what an input used.
pub trait Metered: Instance {
    /// Fuel that each input from now on may use.
    fn set_input_fuel(&mut self, fuel: u64);
    /// Fuel that the last input used.
    fn fuel_used(&self) -> u64;
    /// Memory that it has now.
    fn memory_bytes(&self) -> usize;
}

impl Metered for WasmInstance {
    fn set_input_fuel(&mut self, fuel: u64) {
        WasmInstance::set_input_fuel(self, fuel);
    }

    fn fuel_used(&self) -> u64 {
        WasmInstance::fuel_used(self)
    }

    fn memory_bytes(&self) -> usize {
        WasmInstance::memory_bytes(self)
    }
}

/// Makes the instances of a component.
pub trait Source: Send {
    /// As [`Guest::instance`].
    fn fresh(&mut self) -> Result<Box<dyn Metered>, Fault>;
    /// As [`Guest::prepare`].
    fn prepare(&mut self);
}

impl Source for WasmGuest {
    fn fresh(&mut self) -> Result<Box<dyn Metered>, Fault> {
        Ok(Box::new(WasmGuest::fresh(self)?))
    }

    fn prepare(&mut self) {
        Guest::prepare(self);
    }
}

/// A component whose instances are recorded.
pub struct RecordedGuest {
    /// The component.
    pub inner: Box<dyn Source>,
    /// Where to.
    pub ledger: Shared,
    /// For what inputs cost.
    pub clock: Clock,
}

impl Guest for RecordedGuest {
    fn instance(&mut self) -> Result<Box<dyn Instance>, Fault> {
        let (ledger, clock) = (self.ledger.clone(), self.clock);
        Ok(Box::new(Recorded { inner: self.inner.fresh()?, ledger, clock }))
    }

    fn prepare(&mut self) {
        self.inner.prepare();
    }
}

struct Recorded {
    inner: Box<dyn Metered>,
    ledger: Shared,
    clock: Clock,
}

impl Recorded {
    /// What the heart is to believe of an input that is to fail: it failed. A budget that did not end it, or
    /// a trap of its own, make no difference.
    fn failed(ending: Ending) -> Ending {
        match ending {
            Ending::Answer(_) | Ending::Refused(_) => {
                Ending::Trapped("it was made to trap at its end".into())
            }
            ended => ended,
        }
    }
}

impl Instance for Recorded {
    fn apply(&mut self, frame: Frame, own: Context, input: &Input) -> (Frame, Ending) {
        let Turn { number, context, cut } = self.ledger.lock().turn(own);
        self.inner.set_input_fuel(match cut {
            Some(Cut::Fuel(fuel)) => fuel,
            _ => GuestSettings::default().input_fuel,
        });
        let begun_ns = self.clock.elapsed_ns();
        let (frame, ending) = self.inner.apply(frame, context, input);
        let took_ns = self.clock.elapsed_ns() - begun_ns;
        let ending = if cut.is_some() { Recorded::failed(ending) } else { ending };
        let Ok((outcome, why)) = what_became(&ending) else { return (frame, ending) };
        let writes = if matches!(outcome, Outcome::Ok(_)) { frame.written() } else { Vec::new() };
        let step = Step {
            number,
            input: input.clone(),
            outcome,
            why,
            writes,
            revision: context.revision,
            was_cut: cut.is_some(),
            fuel: self.inner.fuel_used(),
            took_ns,
            memory_bytes: self.inner.memory_bytes(),
        };
        self.ledger.lock().note(own, step);
        (frame, ending)
    }

    fn scale_budget(&mut self, factor: u32) {
        self.inner.scale_budget(factor);
    }

    fn query(&mut self, frame: Frame, own: QueryView, request: &[u8]) -> (Frame, Ending) {
        let view = QueryView { index: self.ledger.lock().told_index(own.index), ..own };
        self.inner.query(frame, view, request)
    }

    fn save(&mut self, frame: Frame) -> (Frame, Ending) {
        self.inner.save(frame)
    }

    fn restore(&mut self, frame: Frame) -> (Frame, Ending) {
        self.inner.restore(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64, offset: u32) -> Context {
        Context { index, offset, time: 5, revision: 2 }
    }

    fn step(number: u64, was_cut: bool) -> Step {
        Step {
            number,
            input: Input::Command("c".into()),
            outcome: Outcome::Ok("".into()),
            why: None,
            writes: Vec::new(),
            revision: 2,
            was_cut,
            fuel: 0,
            took_ns: 0,
            memory_bytes: 0,
        }
    }

    #[test]
    fn inputs_have_the_place_of_a_run_of_one_batch_each() {
        let mut ledger = Ledger::new(Places::OneEach);
        ledger.cut(7, 1, Cut::AtEnd);
        let mut places = Vec::new();
        for own in [at(3, 0), at(3, 1), at(7, 0), at(7, 1), at(7, 2), at(9, 0)] {
            let turn = ledger.turn(own);
            places.push((turn.context.index, turn.context.offset, turn.cut.is_some()));
            ledger.note(own, step(turn.number, turn.cut.is_some()));
        }
        let told = [(1, 0, false), (2, 0, false), (3, 0, false), (4, 0, true), (4, 0, false), (5, 0, false)];
        assert_eq!(places, told);
        assert_eq!(ledger.turn(at(7, 2)).number, 4, "also in a replay");
        let (steps, cut) = ledger.take_steps();
        let numbers: Vec<u64> = steps.iter().map(|step| step.number).collect();
        assert_eq!((numbers, cut), (vec![1, 2, 3, 4, 5], 1));
    }

    #[test]
    fn a_replay_that_differs_is_noted_and_a_second_try_is_not() {
        let mut ledger = Ledger::new(Places::Own);
        let other = || Step { outcome: Outcome::Host(HostCode::Trapped), ..step(1, false) };
        for step in [step(1, false), other()] {
            ledger.turn(at(1, 0));
            ledger.note(at(1, 0), step);
        }
        assert!(ledger.take_contradiction().is_none(), "a batch may run again before it is done");
        ledger.done(1);
        ledger.note(at(1, 0), other());
        assert!(ledger.take_contradiction().is_none());
        ledger.note(at(1, 0), step(1, false));
        let (was, is) = ledger.take_contradiction().unwrap();
        assert_eq!((was.outcome, is.outcome), (other().outcome, step(1, false).outcome));
    }
}
