//! Who leads which machine, as answers told: a client that knows sends its commands there, and spares them
//! the way through another node.
//!
//! What is known here is only ever a hint: a leader may have changed, and its address may lead nowhere from
//! here. One that gave no answer is left alone for a while, and the nodes that the client was given are asked
//! instead.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Peer;
use crate::time::Clock;

/// How long an address that gave no answer is left alone.
const LEFT_ALONE_MS: u64 = 10_000;

/// Machines whose leader is kept in mind. When there are more, it begins anew: a hint costs nothing to lose.
const MACHINES_MAX: usize = 10_000;

/// See the head of this file.
pub struct Leaders {
    clock: Clock,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_machine: HashMap<String, Arc<Peer>>,
    /// Addresses that gave no answer, and until when they are left alone.
    left_alone: HashMap<String, u64>,
}

impl Leaders {
    pub fn new() -> Leaders {
        Leaders { clock: Clock::start(), known: Mutex::default() }
    }

    /// The leader of a machine, if one is known.
    pub fn of(&self, machine: &str) -> Option<Arc<Peer>> {
        self.known.lock().by_machine.get(machine).cloned()
    }

    /// An answer told where a machine's leader is to be reached.
    pub fn told(&self, machine: &str, address: &str) {
        let now_ms = self.clock.now().monotonic_ms;
        let mut known = self.known.lock();
        known.left_alone.retain(|_, until_ms| *until_ms > now_ms);
        if known.left_alone.contains_key(address) {
            return;
        }
        let connected = known.by_machine.values().find(|peer| peer.address == address).cloned();
        // An address that is none comes from a node that was set up so: there is nothing to go to.
        let Some(peer) = connected.or_else(|| Peer::new(address).ok().map(Arc::new)) else { return };
        if known.by_machine.len() >= MACHINES_MAX {
            known.by_machine.clear();
        }
        known.by_machine.insert(machine.to_owned(), peer);
    }

    /// A leader gave no answer.
    pub fn leave_alone(&self, address: &str) {
        let until_ms = self.clock.now().monotonic_ms + LEFT_ALONE_MS;
        let mut known = self.known.lock();
        known.by_machine.retain(|_, peer| peer.address != address);
        known.left_alone.insert(address.to_owned(), until_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_word_counts_and_machines_of_a_node_share_its_connection() {
        let leaders = Leaders::new();
        assert!(leaders.of("a").is_none());
        leaders.told("a", "127.0.0.1:1");
        leaders.told("b", "127.0.0.1:1");
        assert!(Arc::ptr_eq(&leaders.of("a").unwrap(), &leaders.of("b").unwrap()));
        leaders.told("a", "127.0.0.1:2");
        assert_eq!(leaders.of("a").unwrap().address, "127.0.0.1:2");
        leaders.told("b", "nowhere");
        assert_eq!(leaders.of("b").unwrap().address, "127.0.0.1:1");
    }

    #[tokio::test]
    async fn who_gave_no_answer_is_left_alone() {
        let leaders = Leaders::new();
        leaders.told("a", "127.0.0.1:1");
        leaders.told("b", "127.0.0.1:2");
        leaders.leave_alone("127.0.0.1:1");
        leaders.told("a", "127.0.0.1:1");
        assert!(leaders.of("a").is_none());
        assert!(leaders.of("b").is_some());
    }

    #[tokio::test]
    async fn hints_are_bounded_in_number() {
        let leaders = Leaders::new();
        for machine in 0..=MACHINES_MAX {
            leaders.told(&machine.to_string(), "127.0.0.1:1");
        }
        assert!(leaders.of("0").is_none() && leaders.of(&MACHINES_MAX.to_string()).is_some());
    }
}
