//! A stored machine's component: the one that its head names, and another from an upgrade on.

use std::sync::Arc;

use super::apply::{self, Applied};
use super::batch::{Batch, Head};
use super::guest::{Components, Guest, Nobody};
use super::resident::Halt;
use super::view::View;
use crate::id::{Digest, Index};

/// Applies a stored machine's batches.
pub struct Stored {
    components: Box<dyn Components>,
    /// The component that the last batch ran in.
    present: Option<(Digest, Box<dyn Guest>)>,
}

impl Stored {
    /// A machine whose component is made ready when first needed.
    pub fn new(components: Box<dyn Components>) -> Stored {
        Stored { components, present: None }
    }

    /// Applies the batch at `index`.
    pub fn apply(
        &mut self,
        head: &Head,
        index: Index,
        batch: &Batch,
        view: Arc<dyn View>,
    ) -> Result<Applied, Halt> {
        let guest: &mut dyn Guest = match batch.component(head) {
            Some(module) => self.component(module)?,
            None => &mut Nobody,
        };
        Ok(apply::stored(head, index, batch, view, guest)?)
    }

    /// Makes the next batch's instance ready, if it is of the component that the last one ran in.
    pub fn prepare(&mut self) {
        if let Some((_, guest)) = &mut self.present {
            guest.prepare();
        }
    }

    fn component(&mut self, module: Digest) -> Result<&mut dyn Guest, Halt> {
        if self.present.as_ref().is_none_or(|(present, _)| *present != module) {
            self.present = Some((module, self.components.component(module)?));
        }
        let (_, guest) = self.present.as_mut().expect("it was just put there");
        Ok(guest.as_mut())
    }
}
