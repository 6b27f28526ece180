//! Typed commands, answers and rows by serde, as JSON.
//!
//! JSON is read by every client and every language. Derive `Serialize` on structs and enums, and keep maps in
//! a `BTreeMap`: the bytes are then the same on every replica.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Answer, Refusal, Value};

/// Reads a command or a request.
///
/// # Errors
/// A refusal with `code` that says what is wrong and where.
pub fn read<T: DeserializeOwned>(bytes: &[u8], code: u32) -> Result<T, Refusal> {
    serde_json::from_slice(bytes)
        .map_err(|error| Refusal::new(code, format!("this is not understood: {error}")))
}

/// Writes an answer.
///
/// # Errors
/// None: the signature is that of a machine's methods.
///
/// # Panics
/// If the type cannot be written as JSON, as maps with keys that are no text: a mistake of its author.
pub fn answer<T: Serialize>(value: &T) -> Answer {
    Ok(bytes(value))
}

fn bytes<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("answers and rows are plain structs that JSON can hold")
}

/// A row's value as JSON: `Table<u64, Json<Job>>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T: Serialize + DeserializeOwned> Value for Json<T> {
    fn to_bytes(&self) -> Vec<u8> {
        bytes(&self.0)
    }

    fn from_bytes(bytes: &[u8]) -> Option<Json<T>> {
        serde_json::from_slice(bytes).ok().map(Json)
    }
}
