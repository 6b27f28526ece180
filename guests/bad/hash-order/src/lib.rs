//! What not to do: answer in the order of a hash map. `module check` catches it.
//!
//! A command is words, and its answer how often each of them was said so far in that command. The words come
//! in the order of a `HashMap`, which is that of its seed: every map has another one, made from the last.
//!
//! Right: a `BTreeMap`.

use std::collections::HashMap;

use statehouse_guest::{Answer, Change, Refusal, Store, Stored, View};

struct Words;

impl Stored for Words {
    fn command(_: &Change, store: &mut Store, text: &[u8]) -> Answer {
        let mut counts: HashMap<&[u8], u64> = HashMap::new();
        for word in text.split(|byte| *byte == b' ').filter(|word| !word.is_empty()) {
            *counts.entry(word).or_default() += 1;
        }
        if counts.is_empty() {
            return Err(Refusal::new(1, "words are expected"));
        }
        let counted: Vec<String> =
            counts.iter().map(|(word, count)| format!("{}={count}", word.escape_ascii())).collect();
        let answer = counted.join(" ").into_bytes();
        store.set(b"last", &answer);
        Ok(answer)
    }

    fn query(_: &View, store: &Store, _: &[u8]) -> Answer {
        store.get(b"last").ok_or_else(|| Refusal::new(2, "nothing was counted"))
    }
}

statehouse_guest::stored!(Words);
