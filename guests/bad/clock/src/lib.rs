//! What not to do: keep what a clock told, without saving it. `module check` catches it.
//!
//! A command is a name, and its answer how many milliseconds after the machine's start it came. That there is
//! a clock at all does no harm: a component that asks WASI for the time gets the log's, which is the same on
//! every replica. But the start is not saved, and after it was restored from a snapshot a machine takes that
//! moment for its start.
//!
//! Right: save it. And ask `change.time_ms()`, which needs no WASI.

use std::io::{Read, Write};
use std::time::SystemTime;

use statehouse_guest::{Answer, Change, Refusal, Resident, View};

struct Race {
    started: SystemTime,
    last: Vec<u8>,
}

impl Default for Race {
    fn default() -> Race {
        Race { started: SystemTime::now(), last: Vec::new() }
    }
}

impl Resident for Race {
    fn command(&mut self, _: &Change, name: &[u8]) -> Answer {
        if name.is_empty() {
            return Err(Refusal::new(1, "a name is expected"));
        }
        let after = SystemTime::now().duration_since(self.started).unwrap_or_default();
        self.last = name.to_vec();
        Ok(after.as_millis().to_string().into_bytes())
    }

    fn query(&self, _: &View, _: &[u8]) -> Answer {
        Ok(self.last.clone())
    }

    fn save(&self, snapshot: &mut dyn Write) -> Result<(), String> {
        snapshot.write_all(&self.last).map_err(|error| error.to_string())
    }

    fn restore(snapshot: &mut dyn Read) -> Result<Race, String> {
        let mut race = Race::default();
        snapshot.read_to_end(&mut race.last).map_err(|error| error.to_string())?;
        Ok(race)
    }
}

statehouse_guest::resident!(Race);
