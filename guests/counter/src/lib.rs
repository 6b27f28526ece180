//! A number that is added to: the smallest machine that keeps its state in its own memory (world
//! `resident`).
//!
//! A command is a whole number in decimal, with or without a sign; the answer is the sum so far. A query
//! answers the sum, whatever it asks. The configuration, if there is any, is the number to start from.

use std::cell::Cell;

wit_bindgen::generate!({ world: "resident", path: "../../wit" });

use exports::statehouse::machine::{behavior, snapshot};
use statehouse::machine::{events, snapshot_stream, types};

thread_local! {
    // The state of the machine. A guest has one thread.
    static SUM: Cell<i64> = const { Cell::new(0) };
}

struct Counter;

impl behavior::Guest for Counter {
    fn apply(_: types::Context, input: types::Input) -> Result<Vec<u8>, types::Refusal> {
        let sum = match input {
            types::Input::Created(start) if start.is_empty() => 0,
            types::Input::Created(start) => number(&start)?,
            types::Input::Command(step) => add(SUM.get(), number(&step)?)?,
            types::Input::LeaseEnded(_) | types::Input::Upgraded(_) => return Ok(Vec::new()),
        };
        // Nothing was changed before this line: a refusal must leave no trace, and only we can see to that.
        SUM.set(sum);
        let text = sum.to_string().into_bytes();
        events::emit(events::Kind::Put, b"sum", &text);
        Ok(text)
    }

    fn query(_: types::View, _: Vec<u8>) -> Result<Vec<u8>, types::Refusal> {
        Ok(SUM.get().to_string().into_bytes())
    }
}

impl snapshot::Guest for Counter {
    fn save() -> Result<(), String> {
        snapshot_stream::write(&SUM.get().to_le_bytes());
        Ok(())
    }

    fn restore() -> Result<(), String> {
        let mut bytes = Vec::new();
        loop {
            match snapshot_stream::read(8) {
                chunk if chunk.is_empty() => break,
                chunk => bytes.extend(chunk),
            }
        }
        let bytes =
            <[u8; 8]>::try_from(bytes).map_err(|bytes| format!("{} bytes, 8 are expected", bytes.len()))?;
        SUM.set(i64::from_le_bytes(bytes));
        Ok(())
    }
}

fn number(text: &[u8]) -> Result<i64, types::Refusal> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok());
    number.ok_or_else(|| refusal(1, "a whole number between -2^63 and 2^63-1 is expected, like 5 or -5"))
}

fn add(sum: i64, step: i64) -> Result<i64, types::Refusal> {
    sum.checked_add(step).ok_or_else(|| refusal(2, "the sum would leave the range of -2^63 to 2^63-1"))
}

fn refusal(code: u32, message: &str) -> types::Refusal {
    types::Refusal { code, message: message.to_owned() }
}

export!(Counter);
