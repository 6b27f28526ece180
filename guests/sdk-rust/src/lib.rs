//! Write a machine for Statehouse in Rust, and test it without a cluster.
//!
//! A machine is a type with one of two traits: [`Stored`] keeps its state in the host's ordered map, the
//! usual choice; [`Resident`] keeps it in its own memory and saves it itself. The macros [`stored!`] and
//! [`resident!`] make a component of it. Everything else here is what a machine may ask of its host: its
//! place in the log ([`Change`], [`View`]), the map ([`Store`], and [`Table`] for typed rows), events and
//! leases.
//!
//! ```
//! use statehouse_guest::{Answer, Change, Refusal, Store, Stored, TestHost, View};
//!
//! /// Names, and what was said about them.
//! struct Notes;
//!
//! impl Stored for Notes {
//!     fn command(change: &Change, store: &mut Store, command: &[u8]) -> Answer {
//!         let equals = command.iter().position(|byte| *byte == b'=').filter(|at| *at > 0);
//!         let at = equals.ok_or_else(|| Refusal::new(1, "NAME=TEXT is expected"))?;
//!         store.set(&command[..at], &command[at + 1..]);
//!         change.put(&command[..at], &command[at + 1..]);
//!         Ok(Vec::new())
//!     }
//!
//!     fn query(_: &View, store: &Store, name: &[u8]) -> Answer {
//!         store.get(name).ok_or_else(|| Refusal::new(2, "there is no such note"))
//!     }
//! }
//!
//! statehouse_guest::stored!(Notes);
//!
//! let mut host = TestHost::stored::<Notes>(b"").unwrap();
//! host.apply(b"milk=two pints").unwrap();
//! assert_eq!(host.query(b"milk").unwrap(), b"two pints");
//! assert_eq!(host.apply(b"what?").unwrap_err().code, 1);
//! ```
//!
//! # Promises
//! What a machine can reach through this crate is the same on every replica. Compiled for another target than
//! WebAssembly there is only [`TestHost`], which keeps the contract's rules: a refused input leaves no trace,
//! leases end in order, limits are limits.
//!
//! Never: a clock, chance, or anything that a replica could see differently.
//!
//! # Layout
//! - `machine`: the traits, and what goes in and out of a machine
//! - `place`: where an input or a query stands, with events, leases and log; `store`: the map; `table`: typed
//!   rows
//! - `host`: what is asked of a host; `testing`: one for tests; `component`: the real one, in a component
//! - `json`: typed commands by serde, with the feature of that name

#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub mod component;
mod host;
#[cfg(feature = "json")]
pub mod json;
mod machine;
mod place;
mod store;
mod table;
#[cfg(not(target_family = "wasm"))]
mod testing;

pub use self::host::{EventKind, LeaseFailure, LogLevel};
pub use self::machine::{Answer, LeaseEnd, Refusal, Resident, Stored, Upgrade};
pub use self::place::{Change, View};
pub use self::store::{Pair, Store, after_prefix};
pub use self::table::{Key, Rows, Table, Value};
#[cfg(not(target_family = "wasm"))]
pub use self::testing::{Ended, Event, Snapshot, TestHost};

/// Makes a component of a machine: `stored!(Type);`, once in the crate. Does nothing on other targets.
#[macro_export]
macro_rules! stored {
    ($machine:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Exported = $crate::component::StoredComponent<$machine>;
    $crate::component::both::export_behavior!(Exported with_types_in $crate::component::both);
        };
        #[cfg(not(target_family = "wasm"))]
        const _: () = {
            fn is_a_machine<M: $crate::Stored>() {}
            let _ = is_a_machine::<$machine>;
        };
    };
}

/// Makes a component of a machine: `resident!(Type);`, once in the crate. Does nothing on other targets.
#[macro_export]
macro_rules! resident {
    ($machine:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            ::std::thread_local! {
                // A component has one thread.
                static STATE: ::std::cell::RefCell<Option<$machine>> =
                    const { ::std::cell::RefCell::new(None) };
            }
            struct Slot;
            impl $crate::component::ResidentSlot for Slot {
                type Machine = $machine;
                fn with<T>(use_it: impl FnOnce(&mut Option<$machine>) -> T) -> T {
                    STATE.with_borrow_mut(use_it)
                }
            }
            type Exported = $crate::component::ResidentComponent<Slot>;
    $crate::component::both::export_behavior!(Exported with_types_in $crate::component::both);
    $crate::component::resident::export_snapshot!(Exported with_types_in $crate::component::resident);
        };
        #[cfg(not(target_family = "wasm"))]
        const _: () = {
            fn is_a_machine<M: $crate::Resident>() {}
            let _ = is_a_machine::<$machine>;
        };
    };
}
