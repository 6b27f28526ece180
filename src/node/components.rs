//! The components of a machine, from the shelf of modules: the one that it runs, those that it ran when it
//! wrote what is replayed now, and the one that an upgrade gives it.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::request::World;
use super::shelf::Shelf;
use crate::error::Error;
use crate::id::{Digest, GroupId};
use crate::machine::guest::{Components, Guest, Unready};
use crate::wasm::{GuestSettings, QueryPool};

/// Makes the components of one machine ready.
#[derive(Clone)]
pub struct ShelfComponents {
    shelf: Arc<Shelf>,
    world: World,
    /// The machine's own, the same on every replica.
    seed: [u8; 32],
    settings: GuestSettings,
}

impl ShelfComponents {
    /// The components of the machine that `group` orders.
    pub fn new(shelf: Arc<Shelf>, group: GroupId, world: World, settings: GuestSettings) -> ShelfComponents {
        let seed = *blake3::hash(&group.0.to_be_bytes()).as_bytes();
        ShelfComponents { shelf, world, seed, settings }
    }
}

impl Components for ShelfComponents {
    fn component(&mut self, module: Digest) -> Result<Box<dyn Guest>, Unready> {
        if !self.shelf.has(module) {
            return Err(Unready::Absent(module));
        }
        match self.shelf.load(module, self.world) {
            Ok(loaded) => Ok(loaded.guest(self.seed, self.settings)),
            Err(Error::Fault(fault)) => Err(Unready::Fault(fault)),
            Err(why) => Err(Unready::Unfit(why.to_string())),
        }
    }
}

/// The warm instances for a stored machine's queries: of the component that wrote what they read.
pub struct Pools {
    components: ShelfComponents,
    present: ArcSwapOption<(Digest, QueryPool)>,
}

impl Pools {
    /// Pools that are made when first needed.
    pub fn new(components: ShelfComponents) -> Pools {
        Pools { components, present: ArcSwapOption::empty() }
    }

    /// The pool of a component, if it is the one that was asked for last.
    pub fn present(&self, module: Digest) -> Option<Arc<(Digest, QueryPool)>> {
        self.present.load_full().filter(|present| present.0 == module)
    }

    /// The pool of a component, made ready. Blocks.
    pub fn ready(&self, module: Digest) -> Result<Arc<(Digest, QueryPool)>, Error> {
        if let Some(present) = self.present(module) {
            return Ok(present);
        }
        let ShelfComponents { shelf, world, seed, .. } = &self.components;
        let made = Arc::new((module, shelf.load(module, *world)?.queries(*seed)));
        self.present.store(Some(made.clone()));
        Ok(made)
    }
}
