//! What an instance's store carries for the host's functions: the frame of the call at hand, the clock and
//! randomness of that call, and the limits.

use wasmtime::{Result, Trap, bail};

use super::limits::{BYTE_FUEL, CALL_FUEL, Limiter};
use super::wasi::Wasi;
use crate::error::Fault;
use crate::machine::frame::{CallError, Frame};

/// The data of an instance's store.
pub struct Data {
    /// There during a call, and only then.
    pub frame: Option<Frame>,
    /// Memory and tables.
    pub limiter: Limiter,
    /// The small part of WASI.
    pub wasi: Wasi,
    /// Why this computer failed in a host call: then that is the call's ending, whatever wasmtime reports.
    pub fault: Option<Fault>,
    /// Epochs that the call at hand may still run after the next look at the clock.
    pub epochs_left: u64,
}

impl Data {
    /// The frame of the call at hand.
    pub fn frame(&mut self) -> Result<&mut Frame> {
        match &mut self.frame {
            Some(frame) => Ok(frame),
            None => bail!(
                "a host function was called while the instance was being made; only calls may use the host"
            ),
        }
    }

    /// Turns what a frame reports into a trap. A fault is kept for the ending.
    pub fn trap<R>(&mut self, result: Result<R, CallError>) -> Result<R> {
        match result {
            Ok(value) => Ok(value),
            Err(CallError::Limit(what)) => bail!("over a limit of the contract: {what}"),
            Err(CallError::Fault(fault)) => {
                self.fault = Some(fault.clone());
                bail!("this computer failed: {fault}")
            }
        }
    }
}

/// A host function's view of the store.
pub type Caller<'a> = wasmtime::StoreContextMut<'a, Data>;

/// Charges a host call with `bytes` going in or out.
pub fn charge_call(caller: &mut Caller, bytes: usize) -> Result<()> {
    charge(caller, CALL_FUEL + bytes as u64 * BYTE_FUEL)
}

/// Takes fuel; without enough the guest traps as if it had run out by itself.
pub fn charge(caller: &mut Caller, fuel: u64) -> Result<()> {
    match caller.get_fuel()?.checked_sub(fuel) {
        Some(left) => caller.set_fuel(left),
        None => {
            caller.set_fuel(0)?;
            Err(Trap::OutOfFuel.into())
        }
    }
}
