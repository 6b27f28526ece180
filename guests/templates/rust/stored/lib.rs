//! A number that is added to, with its state in the host's store.
//!
//! A command is a whole number in decimal (`5`, `-5`) to add, or one to add for a time in milliseconds (`5
//! for 1500`), after which it is taken back. The answer is the sum. A query answers the sum, whatever it
//! asks. The configuration is the number to start from, if there is any. Watchers see the sum under the key
//! `sum`, whenever something is added or taken back.

mod counter;

use statehouse_guest::{Answer, Change, LeaseEnd, Refusal, Store, Stored, Table, View};

use counter::{Command, add};

/// The state: one row.
const SUM: Table<(), i64> = Table::new(b"sum");

struct Counter;

impl Stored for Counter {
    fn created(change: &Change, store: &mut Store, start: &[u8]) -> Answer {
        become_sum(change, store, if start.is_empty() { 0 } else { counter::number(start)? })
    }

    fn command(change: &Change, store: &mut Store, command: &[u8]) -> Answer {
        let Command { step, hold_ms } = counter::command(command)?;
        let sum = add(sum(store), step)?;
        if let Some(ms) = hold_ms {
            counter::hold(change, step, ms)?;
        }
        become_sum(change, store, sum)
    }

    fn lease_ended(change: &Change, store: &mut Store, ended: &LeaseEnd) -> Answer {
        if ended.keys.is_empty() {
            return Ok(Vec::new()); // a client's own lease: it held nothing here
        }
        let sum = counter::without(sum(store), ended)?;
        become_sum(change, store, sum)
    }

    fn query(_: &View, store: &Store, _: &[u8]) -> Answer {
        Ok(sum(store).to_string().into_bytes())
    }
}

fn sum(store: &Store) -> i64 {
    SUM.get(store, &()).unwrap_or(0)
}

fn become_sum(change: &Change, store: &mut Store, sum: i64) -> Result<Vec<u8>, Refusal> {
    SUM.set(store, &(), &sum);
    let text = sum.to_string().into_bytes();
    change.put(b"sum", &text);
    Ok(text)
}

statehouse_guest::stored!(Counter);

#[cfg(test)]
mod tests;
