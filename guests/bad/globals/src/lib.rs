//! What not to do: tickets, numbered from a global. `module check` catches it.
//!
//! A command is a name, and its answer the number of its ticket. The last number is in memory, where it looks
//! safe in tests: they have one instance. A stored machine has a new one for each batch of commands, so the
//! numbers begin again, depending on which commands came together.
//!
//! Right: keep the last number in the store.

use std::sync::atomic::{AtomicU64, Ordering};

use statehouse_guest::{Answer, Change, Refusal, Store, Stored, View};

static LAST: AtomicU64 = AtomicU64::new(0);

struct Tickets;

impl Stored for Tickets {
    fn command(_: &Change, store: &mut Store, name: &[u8]) -> Answer {
        if name.is_empty() {
            return Err(Refusal::new(1, "a name is expected"));
        }
        let ticket = (LAST.fetch_add(1, Ordering::Relaxed) + 1).to_string().into_bytes();
        store.set(name, &ticket);
        Ok(ticket)
    }

    fn query(_: &View, store: &Store, name: &[u8]) -> Answer {
        store.get(name).ok_or_else(|| Refusal::new(2, "there is no such ticket"))
    }
}

statehouse_guest::stored!(Tickets);
