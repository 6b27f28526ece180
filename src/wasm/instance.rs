//! Instances: one wasmtime store each, and the calls into it.
//!
//! Promises: the frame goes in with a call and comes out with what the guest did, however the call ended. A
//! result counts only after the guest's own clean-up (post-return) has ended. An instance that trapped is
//! never called again. Text in an ending is for this node's log; the heart turns endings into fixed codes.

use std::time::Duration;

use bytes::Bytes;
use wasmtime::{Store, Trap, UpdateDeadline};

use super::bindings::{resident, stored};
use super::data::Data;
use super::engine::{EPOCH_MS, Engine};
use super::limits::{
    HANDLES_MAX, HOSTCALL_BYTES_MAX, INPUT_FUEL, INSTANTIATION_FUEL, Limiter, Place, QUERY_FUEL, QUERY_TIME,
};
use super::module::{Exports, Module};
use super::wasi::{Occasion, Wasi};
use crate::error::Fault;
use crate::machine::frame::Frame;
use crate::machine::frame::limits::{ANSWER_BYTES_MAX, REFUSAL_BYTES_MAX};
use crate::machine::guest::{Ending, Guest, Input, Instance, QueryView};
use crate::machine::outcome::{Context, Refusal};

use stored::statehouse::machine::types as wit;

/// A deadline that no epoch reaches: for inputs, which only fuel may end, because replicas share fuel and not
/// time.
const NO_DEADLINE: u64 = 1 << 62;

/// After so many epochs a call that goes on looks whether the engine was told to end all calls.
const LOOK_EPOCHS: u64 = 2;

/// What one call may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Fuel: about one a wasm instruction, some hundreds a host call.
    pub fuel: u64,
    /// Epochs of [`EPOCH_MS`] until the call is stopped.
    pub epoch_ticks: u64,
}

impl Budget {
    /// For a call that is bounded in fuel and in time, whichever ends first.
    pub fn new(fuel: u64, time: Duration) -> Budget {
        let ticks = time.as_millis() as u64 / EPOCH_MS;
        // The epoch under way may end at once, so it does not count.
        Budget { fuel, epoch_ticks: ticks.clamp(1, NO_DEADLINE - 1) + 1 }
    }

    /// For a call that is only bounded in time.
    pub fn of_time(limit: Duration) -> Budget {
        Budget::new(u64::MAX, limit)
    }
}

/// What a machine may set for its instances. The same on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestSettings {
    /// Fuel of one input.
    pub input_fuel: u64,
    /// Of a query that runs in a machine's instance (a resident machine's reader).
    pub query: Budget,
    /// Time for one save or restore.
    pub snapshot: Duration,
}

impl Default for GuestSettings {
    fn default() -> GuestSettings {
        GuestSettings {
            input_fuel: INPUT_FUEL,
            query: Budget::new(QUERY_FUEL, QUERY_TIME),
            snapshot: Duration::from_secs(60),
        }
    }
}

/// The component of one machine, from which its instances are made.
pub struct WasmGuest {
    module: Module,
    seed: [u8; 32],
    settings: GuestSettings,
    /// Made ahead of its batch.
    prepared: Option<(Live, Place)>,
    /// The last batch's, until there is time to let it go.
    retired: Option<Box<dyn Instance>>,
}

impl WasmGuest {
    pub(super) fn new(module: Module, seed: [u8; 32], settings: GuestSettings) -> WasmGuest {
        WasmGuest { module, seed, settings, prepared: None, retired: None }
    }

    /// A fresh instance, by its own type.
    pub fn fresh(&mut self) -> Result<WasmInstance, Fault> {
        let live = match self.prepared.take() {
            Some((live, _)) => live,
            None => self.make()?,
        };
        Ok(WasmInstance { live, settings: self.settings, factor: 1 })
    }

    fn make(&self) -> Result<Live, Fault> {
        let memory_bytes_max = self.module.engine().settings().memory_bytes_max;
        Live::make(&self.module, self.seed, memory_bytes_max)
    }
}

impl Guest for WasmGuest {
    fn instance(&mut self) -> Result<Box<dyn Instance>, Fault> {
        Ok(Box::new(self.fresh()?))
    }

    fn retire(&mut self, instance: Box<dyn Instance>) {
        self.retired = Some(instance);
    }

    /// Does nothing if the node has as many prepared instances as it may, or cannot make one now: the next
    /// batch makes its own and reports what fails.
    fn prepare(&mut self) {
        self.retired = None;
        if self.prepared.is_some() {
            return;
        }
        if let Some(place) = self.module.engine().prepared().take()
            && let Ok(live) = self.make()
        {
            self.prepared = Some((live, place));
        }
    }
}

/// One instance of a machine's component.
pub struct WasmInstance {
    live: Live,
    settings: GuestSettings,
    factor: u32,
}

impl WasmInstance {
    /// Fuel that the last call used: equal on every replica for the same calls into a fresh instance.
    pub fn fuel_used(&self) -> u64 {
        self.live.fuel_used
    }

    /// Bytes that its memories have: a memory grows and never shrinks.
    pub fn memory_bytes(&self) -> usize {
        self.live.store.data().limiter.memory_bytes()
    }

    /// The inputs from now on have this fuel instead of the usual. For whoever tries what a machine leaves
    /// behind when it is cut off: on a node the usual is the same on every replica.
    pub fn set_input_fuel(&mut self, fuel: u64) {
        self.settings.input_fuel = fuel;
    }
}

impl Instance for WasmInstance {
    fn apply(&mut self, frame: Frame, context: Context, input: &Input) -> (Frame, Ending) {
        let fuel = self.settings.input_fuel.saturating_mul(self.factor.into());
        let budget = Budget { fuel, epoch_ticks: NO_DEADLINE };
        self.live.apply(frame, context, input, budget)
    }

    fn scale_budget(&mut self, factor: u32) {
        self.factor = factor;
    }

    fn query(&mut self, frame: Frame, view: QueryView, request: &[u8]) -> (Frame, Ending) {
        self.live.query(frame, view, request, self.settings.query)
    }

    fn save(&mut self, frame: Frame) -> (Frame, Ending) {
        self.live.snapshot(frame, Budget::of_time(self.settings.snapshot), |exports, store| {
            exports.statehouse_machine_snapshot().call_save(store)
        })
    }

    fn restore(&mut self, frame: Frame) -> (Frame, Ending) {
        self.live.snapshot(frame, Budget::of_time(self.settings.snapshot), |exports, store| {
            exports.statehouse_machine_snapshot().call_restore(store)
        })
    }
}

/// A store and the exports of the instance in it.
pub(super) struct Live {
    engine: Engine,
    store: Store<Data>,
    exports: Exported,
    fuel_used: u64,
}

/// What can be called.
enum Exported {
    Stored(stored::Stored),
    Resident(resident::Resident),
    /// The component trapped while the instance was made, which is the same on every replica: every call
    /// traps.
    Broken(String),
    /// A call trapped.
    Dead,
}

/// What a call into `behavior` gives back.
type Returned = Result<Vec<u8>, wit::Refusal>;

impl Live {
    /// Makes an instance within its own fixed budget.
    pub fn make(module: &Module, seed: [u8; 32], memory_bytes_max: usize) -> Result<Live, Fault> {
        let limiter = Limiter::new(memory_bytes_max);
        let data = Data { frame: None, limiter, wasi: Wasi::new(seed), fault: None, epochs_left: 0 };
        let mut store = Store::new(module.engine().wasmtime(), data);
        store.limiter(|data| &mut data.limiter);
        let engine = module.engine().clone();
        let looked_at = engine.clone();
        store.epoch_deadline_callback(move |mut caller| Ok(at_epoch(&looked_at, caller.data_mut())));
        store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
        store.set_max_component_handles(HANDLES_MAX);
        set_budget(&mut store, Budget { fuel: INSTANTIATION_FUEL, epoch_ticks: NO_DEADLINE });
        let made = match module.exports() {
            Exports::Stored(pre) => pre.instantiate(&mut store).map(Exported::Stored),
            Exports::Resident(pre) => pre.instantiate(&mut store).map(Exported::Resident),
        };
        let exports = match made {
            Ok(exports) => exports,
            Err(error) => match ending_of(&error, store.data_mut()) {
                Ending::Fault(fault) => return Err(fault),
                Ending::Trapped(why) | Ending::Exhausted(why) => {
                    Exported::Broken(format!("the component cannot be instantiated: {why}"))
                }
                Ending::Answer(_) | Ending::Refused(_) => Exported::Dead,
            },
        };
        Ok(Live { engine, store, exports, fuel_used: 0 })
    }

    /// Why no call can succeed, if the component trapped while the instance was made.
    pub fn broken(&self) -> Option<&str> {
        match &self.exports {
            Exported::Broken(why) => Some(why),
            _ => None,
        }
    }

    /// One input.
    pub fn apply(
        &mut self,
        frame: Frame,
        context: Context,
        input: &Input,
        budget: Budget,
    ) -> (Frame, Ending) {
        let occasion = Occasion::Input(context.index, context.offset);
        let Context { index, offset, time, revision } = context;
        let context = wit::Context { index, offset, time, revision };
        self.call(frame, budget, time, occasion, |exports, store| {
            let keys: Vec<&[u8]>;
            let input = match input {
                Input::Created(configuration) => wit::Input::Created(configuration),
                Input::Command(command) => wit::Input::Command(command),
                Input::LeaseEnded { lease, keys: ended } => {
                    keys = ended.iter().map(Vec::as_slice).collect();
                    wit::Input::LeaseEnded(wit::LeaseEnd { lease: *lease, keys: &keys })
                }
                Input::Upgraded { previous, argument } => {
                    wit::Input::Upgraded(wit::Upgrade { previous, argument })
                }
            };
            match exports {
                Exported::Stored(it) => it.statehouse_machine_behavior().call_apply(store, context, input),
                Exported::Resident(it) => it.statehouse_machine_behavior().call_apply(store, context, input),
                Exported::Broken(_) | Exported::Dead => Err(never_called()),
            }
            .map(ending_of_returned)
        })
    }

    /// One query.
    pub fn query(
        &mut self,
        frame: Frame,
        view: QueryView,
        request: &[u8],
        budget: Budget,
    ) -> (Frame, Ending) {
        let QueryView { index, time, revision } = view;
        let view = wit::View { index, time, revision };
        self.call(frame, budget, time, Occasion::Query(index), |exports, store| {
            match exports {
                Exported::Stored(it) => it.statehouse_machine_behavior().call_query(store, view, request),
                Exported::Resident(it) => it.statehouse_machine_behavior().call_query(store, view, request),
                Exported::Broken(_) | Exported::Dead => Err(never_called()),
            }
            .map(ending_of_returned)
        })
    }

    /// Save or restore.
    fn snapshot(
        &mut self,
        frame: Frame,
        budget: Budget,
        call: impl FnOnce(&resident::Resident, &mut Store<Data>) -> wasmtime::Result<Result<(), String>>,
    ) -> (Frame, Ending) {
        self.call(frame, budget, 0, Occasion::Snapshot, |exports, store| match exports {
            Exported::Resident(exports) => Ok(match call(exports, store)? {
                Ok(()) => Ending::Answer(Bytes::new()),
                Err(message) => Ending::Refused(Refusal { code: 0, message: shortened(message) }),
            }),
            _ => Err(wasmtime::format_err!("a machine of the world stored has no snapshot of its own")),
        })
    }

    /// Any call: puts the frame in, sets the budget, and takes the frame out.
    fn call(
        &mut self,
        mut frame: Frame,
        budget: Budget,
        time_ms: u64,
        occasion: Occasion,
        call: impl FnOnce(&Exported, &mut Store<Data>) -> wasmtime::Result<Ending>,
    ) -> (Frame, Ending) {
        match &self.exports {
            Exported::Broken(why) => return (frame, Ending::Trapped(why.clone())),
            Exported::Dead => return (frame, Ending::Fault(Fault::new("a dead instance was called again"))),
            Exported::Stored(_) | Exported::Resident(_) => {}
        }
        let data = self.store.data_mut();
        data.limiter.begin();
        data.wasi.begin(time_ms, occasion);
        data.frame = Some(frame);
        set_budget(&mut self.store, budget);
        let under_way = self.engine.call_begins();
        let result = call(&self.exports, &mut self.store);
        drop(under_way);
        self.fuel_used = budget.fuel - self.store.get_fuel().unwrap_or(0).min(budget.fuel);
        let data = self.store.data_mut();
        frame = data.frame.take().expect("nothing but this function takes the frame out");
        data.wasi.finish(&mut frame);
        let ending = match result {
            Ok(ending) => ending,
            Err(error) => ending_of(&error, data),
        };
        if !matches!(ending, Ending::Answer(_) | Ending::Refused(_)) {
            self.exports = Exported::Dead;
        }
        (frame, ending)
    }

    /// Whether it can be called again.
    pub fn is_alive(&self) -> bool {
        matches!(self.exports, Exported::Stored(_) | Exported::Resident(_))
    }

    /// Whether memory was denied in the last call.
    pub fn was_denied_memory(&self) -> bool {
        self.store.data().limiter.denied()
    }
}

fn never_called() -> wasmtime::Error {
    wasmtime::format_err!("an instance without exports was called")
}

fn set_budget(store: &mut Store<Data>, budget: Budget) {
    // The engine's one configuration has fuel on, which is the only thing that can be missing.
    store.set_fuel(budget.fuel).expect("fuel is on in every engine of this project");
    let epochs = budget.epoch_ticks.min(LOOK_EPOCHS);
    store.set_epoch_deadline(epochs);
    store.data_mut().epochs_left = budget.epoch_ticks.min(NO_DEADLINE) - epochs;
}

/// What becomes of a call that is still running some epochs after the last look. Whether it goes on depends
/// on the time only if its budget does, or if the node stops; then its ending is a fault, which no replica
/// takes for a fact about the guest.
fn at_epoch(engine: &Engine, data: &mut Data) -> UpdateDeadline {
    if engine.is_interrupted() {
        data.fault = Some(Fault::new("the node is stopping and waits for no guest"));
        return UpdateDeadline::Interrupt;
    }
    let epochs = data.epochs_left.min(LOOK_EPOCHS);
    data.epochs_left -= epochs;
    if epochs == 0 { UpdateDeadline::Interrupt } else { UpdateDeadline::Continue(epochs) }
}

/// What the guest gave back, if it keeps to the contract.
fn ending_of_returned(returned: Returned) -> Ending {
    match returned {
        Ok(answer) if answer.len() > ANSWER_BYTES_MAX => {
            Ending::Trapped(format!("an answer of {} bytes, at most {ANSWER_BYTES_MAX}", answer.len()))
        }
        Ok(answer) => Ending::Answer(answer.into()),
        Err(wit::Refusal { code: 0, message }) => {
            Ending::Trapped(format!("a refusal with code 0, which counts as a trap: {}", shortened(message)))
        }
        Err(wit::Refusal { message, .. }) if message.len() > REFUSAL_BYTES_MAX => {
            Ending::Trapped(format!("a refusal of {} bytes, at most {REFUSAL_BYTES_MAX}", message.len()))
        }
        Err(wit::Refusal { code, message }) => Ending::Refused(Refusal { code, message }),
    }
}

/// Why a call did not return.
fn ending_of(error: &wasmtime::Error, data: &mut Data) -> Ending {
    if let Some(fault) = data.fault.take().or_else(|| data.limiter.take_fault()) {
        return Ending::Fault(fault);
    }
    if let Some(what) = fault_of(error) {
        return Ending::Fault(Fault::new(what));
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Ending::Exhausted("the budget of fuel was used up".into()),
        Some(Trap::Interrupt) => Ending::Exhausted("the time limit passed".into()),
        _ => Ending::Trapped(shortened(format!("{error:#}"))),
    }
}

/// What this computer could not do, if that is why wasmtime failed.
fn fault_of(error: &wasmtime::Error) -> Option<String> {
    if error.is::<wasmtime::PoolConcurrencyLimitError>() {
        return Some(format!("all places for instances are taken: {error}. Raise instances_max"));
    }
    let of_system = |cause: &&(dyn std::error::Error + 'static)| {
        cause.is::<std::io::Error>() || cause.is::<rustix::io::Errno>() || cause.is::<wasmtime::OutOfMemory>()
    };
    let system = error.chain().find(of_system)?;
    Some(format!("the operating system failed under a guest: {error}: {system}"))
}

/// A guest's words, cut where a log line would be.
fn shortened(mut text: String) -> String {
    if text.len() > REFUSAL_BYTES_MAX {
        let end = (0..=REFUSAL_BYTES_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests;
