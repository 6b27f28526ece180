//! Notes by name: the smallest machine whose state is in the host's store (world `stored`).
//!
//! The command `NAME=TEXT` keeps a note, `NAME=` drops it; the query `NAME` answers its text. The
//! configuration is the first note, if there is any.

wit_bindgen::generate!({ world: "stored", path: "../../wit" });

use exports::statehouse::machine::behavior::Guest;
use statehouse::machine::{events, store, types};

struct Notes;

impl Guest for Notes {
    fn apply(_: types::Context, input: types::Input) -> Result<Vec<u8>, types::Refusal> {
        let (types::Input::Command(note) | types::Input::Created(note)) = input else {
            return Ok(Vec::new());
        };
        if note.is_empty() {
            return Ok(Vec::new());
        }
        let equals =
            note.iter().position(|&byte| byte == b'=').filter(|&at| (1..=NAME_BYTES_MAX).contains(&at));
        let at = equals.ok_or_else(|| refusal(1, "NAME=TEXT is expected, with a name of 1 to 1000 bytes"))?;
        let (name, text) = (&note[..at], &note[at + 1..]);
        if text.is_empty() {
            store::delete(name);
            events::emit(events::Kind::Delete, name, &[]);
        } else {
            store::set(name, text);
            events::emit(events::Kind::Put, name, text);
        }
        Ok(text.to_vec())
    }

    fn query(_: types::View, name: Vec<u8>) -> Result<Vec<u8>, types::Refusal> {
        let text = if (1..=NAME_BYTES_MAX).contains(&name.len()) { store::get(&name) } else { None };
        text.ok_or_else(|| refusal(2, "there is no such note"))
    }
}

const NAME_BYTES_MAX: usize = 1_000;

fn refusal(code: u32, message: &str) -> types::Refusal {
    types::Refusal { code, message: message.to_owned() }
}

export!(Notes);
