//! One instance of a component: a wasmtime `Store` of its own, a budget for every call.
//!
//! Promises: the frame always comes back, whatever the guest does; a result counts only after the guest's own
//! clean-up has ended; no text of this computer gets further than this node's log.

use bytes::Bytes;
use wasmtime::component::TypedFunc;
use wasmtime::{ResourceLimiter, Store, Trap};

use super::contract::{Context, Input, Refusal, View};
use super::engine::TABLE_ELEMENTS_MAX;
use super::module::Module;
use crate::error::Fault;
use crate::machine::frame::Frame;
use crate::machine::frame::limits::{ANSWER_BYTES_MAX, REFUSAL_BYTES_MAX};
use crate::machine::guest::{self, Ending, Guest, Instance, QueryView};
use crate::machine::outcome;

/// Fuel for making an instance, its start function included. Fixed, because instances are made ahead of their
/// batch.
const INSTANTIATE_FUEL: u64 = 200_000_000;

/// Fuel for a save or restore, which the contract bounds by time: about the time that this much fuel takes.
const SNAPSHOT_FUEL: u64 = 300_000_000_000;

/// What an operator may choose for all guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestSettings {
    /// Fuel for each input. A guest burns about one unit for each instruction.
    pub input_fuel: u64,
}

impl Default for GuestSettings {
    fn default() -> GuestSettings {
        GuestSettings { input_fuel: 1_000_000_000 }
    }
}

/// What the host's functions find in the store.
pub struct Data {
    /// The call's frame; none while the instance is being made.
    pub frame: Option<Frame>,
    /// The fault that a host call met.
    pub fault: Option<Fault>,
    /// What the small part of WASI is answered from.
    pub world: Surroundings,
    memory_bytes_max: usize,
}

/// What a guest can learn of the time and of chance: the same on every replica.
#[derive(Clone, Copy, Debug, Default)]
pub struct Surroundings {
    /// The log's clock in milliseconds.
    pub time_ms: u64,
    /// Where the stream of random bytes of this call begins.
    pub seed: [u8; 32],
    /// How far the stream was read.
    pub random_position: u64,
}

impl ResourceLimiter for Data {
    fn memory_growing(&mut self, _now: usize, desired: usize, _max: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= self.memory_bytes_max)
    }

    fn table_growing(&mut self, _now: usize, desired: usize, _max: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }
}

type Answer = (Result<Vec<u8>, Refusal>,);
type Done = (Result<(), String>,);

/// The functions that a resident machine exports besides.
struct SnapshotFuncs {
    save: TypedFunc<(), Done>,
    restore: TypedFunc<(), Done>,
}

/// A live instance.
pub struct Live {
    store: Store<Data>,
    apply: TypedFunc<(Context, Input), Answer>,
    query: TypedFunc<(View, Vec<u8>), Answer>,
    snapshot: Option<SnapshotFuncs>,
    input_fuel: u64,
    budget_factor: u64,
    machine_seed: [u8; 32],
}

/// Makes a live instance, or says why the guest does not let itself be made.
pub fn make(module: &Module, seed: [u8; 32], settings: GuestSettings) -> Result<Result<Live, Ending>, Fault> {
    let data = Data {
        frame: None,
        fault: None,
        world: Surroundings::default(),
        memory_bytes_max: module.memory_bytes_max,
    };
    let mut store = Store::new(module.pre.component().engine(), data);
    store.limiter(|data| data);
    // Host calls copy at most what the contract allows in one value, many times over.
    store.set_hostcall_fuel(64 << 20);
    let fuel = |store: &mut Store<Data>, fuel| {
        store.set_fuel(fuel).map_err(|e| Fault::new(format!("fuel is not on in this engine: {e:#}")))
    };
    fuel(&mut store, INSTANTIATE_FUEL)?;
    let instance = match module.pre.instantiate(&mut store) {
        Ok(instance) => instance,
        Err(error) if error.is::<wasmtime::PoolConcurrencyLimitError>() => {
            return Err(Fault::new(format!("as many instances as this node allows are running: {error:#}")));
        }
        Err(error) => return Ok(Err(ending_of(&error))),
    };
    let typed = |e: wasmtime::Error| Fault::new(format!("an export is not of the contract's type: {e:#}"));
    let exports = &module.exports;
    let apply = instance.get_typed_func(&mut store, exports.apply).map_err(typed)?;
    let query = instance.get_typed_func(&mut store, exports.query).map_err(typed)?;
    let snapshot = match exports.snapshot {
        Some((save, restore)) => Some(SnapshotFuncs {
            save: instance.get_typed_func(&mut store, save).map_err(typed)?,
            restore: instance.get_typed_func(&mut store, restore).map_err(typed)?,
        }),
        None => None,
    };
    Ok(Ok(Live {
        store,
        apply,
        query,
        snapshot,
        input_fuel: settings.input_fuel,
        budget_factor: 1,
        machine_seed: seed,
    }))
}

impl Live {
    /// Runs one query with `fuel`.
    pub fn query_with(
        &mut self,
        frame: Frame,
        view: QueryView,
        request: &[u8],
        fuel: u64,
    ) -> (Frame, Ending) {
        self.surround(view.time, view.index, u32::MAX);
        let query = self.query;
        self.call(frame, fuel, |store| query.call(store, (view.into(), request.to_vec())).map(answer_of))
    }

    /// Sets what the guest can learn of time and chance in the call that follows.
    fn surround(&mut self, time_ms: u64, index: u64, offset: u32) {
        let mut hasher = blake3::Hasher::new_keyed(&self.machine_seed);
        hasher.update(&index.to_be_bytes()).update(&offset.to_be_bytes());
        let seed = *hasher.finalize().as_bytes();
        self.store.data_mut().world = Surroundings { time_ms, seed, random_position: 0 };
    }

    fn call(
        &mut self,
        frame: Frame,
        fuel: u64,
        run: impl FnOnce(&mut Store<Data>) -> wasmtime::Result<Ending>,
    ) -> (Frame, Ending) {
        self.store.data_mut().frame = Some(frame);
        let ran = match self.store.set_fuel(fuel) {
            Ok(()) => run(&mut self.store),
            Err(error) => Err(error),
        };
        let data = self.store.data_mut();
        let frame = data.frame.take().expect("host functions borrow the frame and leave it in its place");
        let ending = match (data.fault.take(), ran) {
            (Some(fault), _) => Ending::Fault(fault),
            (None, Ok(ending)) => ending,
            (None, Err(error)) => ending_of(&error),
        };
        (frame, ending)
    }
}

impl Instance for Live {
    fn apply(&mut self, frame: Frame, context: outcome::Context, input: &guest::Input) -> (Frame, Ending) {
        self.surround(context.time, context.index, context.offset);
        let (apply, fuel) = (self.apply, self.input_fuel.saturating_mul(self.budget_factor));
        self.call(frame, fuel, |store| apply.call(store, (context.into(), input.into())).map(answer_of))
    }

    fn scale_budget(&mut self, factor: u32) {
        self.budget_factor = u64::from(factor);
    }

    fn query(&mut self, frame: Frame, view: QueryView, request: &[u8]) -> (Frame, Ending) {
        self.query_with(frame, view, request, self.input_fuel)
    }

    fn save(&mut self, frame: Frame) -> (Frame, Ending) {
        match self.snapshot.as_ref().map(|snapshot| snapshot.save) {
            Some(save) => self.call(frame, SNAPSHOT_FUEL, |store| save.call(store, ()).map(done_of)),
            None => (frame, Ending::Trapped("a stored machine does not save its state".into())),
        }
    }

    fn restore(&mut self, frame: Frame) -> (Frame, Ending) {
        match self.snapshot.as_ref().map(|snapshot| snapshot.restore) {
            Some(restore) => self.call(frame, SNAPSHOT_FUEL, |store| restore.call(store, ()).map(done_of)),
            None => (frame, Ending::Trapped("a stored machine does not restore its state".into())),
        }
    }
}

fn answer_of((answer,): Answer) -> Ending {
    match answer {
        Ok(answer) if answer.len() > ANSWER_BYTES_MAX => {
            Ending::Trapped(format!("an answer of {} bytes, at most {ANSWER_BYTES_MAX}", answer.len()))
        }
        Ok(answer) => Ending::Answer(Bytes::from(answer)),
        Err(refusal) if refusal.code == 0 => {
            let said: String = refusal.message.chars().take(200).collect();
            Ending::Trapped(format!("a refusal with code 0: {said}"))
        }
        Err(refusal) if refusal.message.len() > REFUSAL_BYTES_MAX => Ending::Trapped(format!(
            "a refusal of {} bytes, at most {REFUSAL_BYTES_MAX}",
            refusal.message.len()
        )),
        Err(Refusal { code, message }) => Ending::Refused(outcome::Refusal { code, message }),
    }
}

fn done_of((done,): Done) -> Ending {
    match done {
        Ok(()) => Ending::Answer(Bytes::new()),
        Err(message) => Ending::Refused(outcome::Refusal { code: 0, message }),
    }
}

fn ending_of(error: &wasmtime::Error) -> Ending {
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Ending::Exhausted("out of fuel".into()),
        Some(trap) => Ending::Trapped(trap.to_string()),
        None => Ending::Trapped(error.root_cause().to_string()),
    }
}

/// Makes a machine's instances, the next one ahead of its batch.
pub struct ModuleGuest {
    module: Module,
    seed: [u8; 32],
    settings: GuestSettings,
    prepared: Option<Box<dyn Instance>>,
}

impl ModuleGuest {
    /// A maker of instances of `module`. `seed` begins the machine's streams of random bytes.
    pub fn new(module: Module, seed: [u8; 32], settings: GuestSettings) -> ModuleGuest {
        ModuleGuest { module, seed, settings, prepared: None }
    }

    fn make(&self) -> Result<Box<dyn Instance>, Fault> {
        Ok(match make(&self.module, self.seed, self.settings)? {
            Ok(live) => Box::new(live),
            Err(ending) => Box::new(Stillborn { why: why(&ending) }),
        })
    }
}

impl Guest for ModuleGuest {
    fn instance(&mut self) -> Result<Box<dyn Instance>, Fault> {
        match self.prepared.take() {
            Some(instance) => Ok(instance),
            None => self.make(),
        }
    }

    fn prepare(&mut self) {
        if self.prepared.is_none() {
            // A fault is met again, and told, when the instance is needed.
            self.prepared = self.make().ok();
        }
    }
}

fn why(ending: &Ending) -> String {
    match ending {
        Ending::Trapped(why) | Ending::Exhausted(why) => {
            format!("the component cannot be instantiated: {why}")
        }
        _ => "the component cannot be instantiated".into(),
    }
}

/// A component whose start function does not end, or traps: every call into it traps.
struct Stillborn {
    why: String,
}

impl Stillborn {
    fn ending(&self) -> Ending {
        Ending::Trapped(self.why.clone())
    }
}

impl Instance for Stillborn {
    fn apply(&mut self, frame: Frame, _context: outcome::Context, _input: &guest::Input) -> (Frame, Ending) {
        (frame, self.ending())
    }

    fn scale_budget(&mut self, _factor: u32) {
        // It never runs.
    }

    fn query(&mut self, frame: Frame, _view: QueryView, _request: &[u8]) -> (Frame, Ending) {
        (frame, self.ending())
    }

    fn save(&mut self, frame: Frame) -> (Frame, Ending) {
        (frame, self.ending())
    }

    fn restore(&mut self, frame: Frame) -> (Frame, Ending) {
        (frame, self.ending())
    }
}
