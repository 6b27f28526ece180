//! What not to do: a call for each level of what a client sends. `module check` catches it.
//!
//! A command is a text of brackets, and its answer how deep they are nested. Each bracket is a call within a
//! call, so a long command goes to the end of the stack. That is a trap on every node, as all run the same
//! code; but where the end is depends on how that code was made, and a client can choose to go there.
//!
//! Right: count the brackets that are open, and refuse what is nested deeper than anybody needs.

use statehouse_guest::{Answer, Change, Refusal, Store, Stored, View};

struct Brackets;

/// How deep the brackets from `at` on are nested; leaves `at` behind them.
fn nested(text: &[u8], at: &mut usize) -> usize {
    let mut deepest = 0;
    while text.get(*at) == Some(&b'(') {
        *at += 1;
        deepest = deepest.max(1 + nested(text, at));
        if text.get(*at) != Some(&b')') {
            break;
        }
        *at += 1;
    }
    deepest
}

impl Stored for Brackets {
    fn command(_: &Change, store: &mut Store, text: &[u8]) -> Answer {
        let mut at = 0;
        let deepest = nested(text, &mut at);
        if at < text.len() {
            return Err(Refusal::new(1, "brackets are expected, each closed"));
        }
        let answer = deepest.to_string().into_bytes();
        store.set(b"last", &answer);
        Ok(answer)
    }

    fn query(_: &View, store: &Store, _: &[u8]) -> Answer {
        Ok(store.get(b"last").unwrap_or_default())
    }
}

statehouse_guest::stored!(Brackets);
