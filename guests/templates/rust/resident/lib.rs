//! A number that is added to, with its state in the component's own memory.
//!
//! A command is a whole number in decimal (`5`, `-5`) to add, or one to add for a time in milliseconds (`5
//! for 1500`), after which it is taken back. The answer is the sum. A query answers the sum, whatever it
//! asks. The configuration is the number to start from, if there is any. Watchers see the sum under the key
//! `sum`, whenever something is added or taken back.

mod counter;

use std::io::{Read, Write};

use statehouse_guest::{Answer, Change, LeaseEnd, Resident, View};

use counter::{Command, add};

/// The state.
#[derive(Default)]
struct Counter {
    sum: i64,
}

impl Counter {
    fn become_sum(&mut self, change: &Change, sum: i64) -> Answer {
        self.sum = sum;
        let text = sum.to_string().into_bytes();
        change.put(b"sum", &text);
        Ok(text)
    }
}

impl Resident for Counter {
    fn created(&mut self, change: &Change, start: &[u8]) -> Answer {
        let start = if start.is_empty() { 0 } else { counter::number(start)? };
        self.become_sum(change, start)
    }

    fn command(&mut self, change: &Change, command: &[u8]) -> Answer {
        let Command { step, hold_ms } = counter::command(command)?;
        let sum = add(self.sum, step)?;
        if let Some(ms) = hold_ms {
            counter::hold(change, step, ms)?;
        }
        // Nothing was changed before this line: a refusal must leave no trace, and only we can see to that.
        self.become_sum(change, sum)
    }

    fn lease_ended(&mut self, change: &Change, ended: &LeaseEnd) -> Answer {
        if ended.keys.is_empty() {
            return Ok(Vec::new()); // a client's own lease: it held nothing here
        }
        let sum = counter::without(self.sum, ended)?;
        self.become_sum(change, sum)
    }

    fn query(&self, _: &View, _: &[u8]) -> Answer {
        Ok(self.sum.to_string().into_bytes())
    }

    fn save(&self, snapshot: &mut dyn Write) -> Result<(), String> {
        snapshot.write_all(&self.sum.to_le_bytes()).map_err(|error| error.to_string())
    }

    fn restore(snapshot: &mut dyn Read) -> Result<Counter, String> {
        let mut bytes = Vec::new();
        snapshot.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        let bytes =
            <[u8; 8]>::try_from(bytes).map_err(|bytes| format!("{} bytes, 8 are expected", bytes.len()))?;
        Ok(Counter { sum: i64::from_le_bytes(bytes) })
    }
}

statehouse_guest::resident!(Counter);

#[cfg(test)]
mod tests;
