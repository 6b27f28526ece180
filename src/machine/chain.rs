//! The rolling hash: every replica folds what each batch did into one blake3 chain, so that two replicas that
//! agree on a hash agree on everything before it.

use prost::Message;

use super::batch::Head;
use super::lease::Tally;
use super::outcome::{Outcome, OutcomeAt};
use super::overlay::Write;
use crate::id::StateHash;

/// The hash after a batch. `head` is the machine's head after it, with the hash from before it.
pub fn next(head: &Head, outcomes: &[OutcomeAt], writes: &[Write]) -> StateHash {
    let size: usize = writes.iter().map(|w| 16 + w.key.len() + w.value.as_ref().map_or(0, |v| v.len())).sum();
    let mut text = Text(Vec::with_capacity(128 + size + 32 * outcomes.len()));
    text.0.extend_from_slice(&head.hash.0);
    text.number(head.index.0);
    text.number(head.time.0);
    text.number(head.revision.0);
    let Tally { last, live, sessions } = head.leases;
    let numbers = [last, live, sessions, head.term_began.0, head.history_first.0, head.event_bytes];
    numbers.into_iter().for_each(|number| text.number(number));
    text.bytes(&head.settings.encode_to_vec());
    text.bytes(head.module.as_ref().map_or(&[], |digest| digest.0.as_slice()));
    text.number(outcomes.len() as u64);
    for first in outcomes {
        text.number(first.index.0);
        text.number(first.revision.0);
        text.outcome(&first.outcome);
    }
    text.number(writes.len() as u64);
    for write in writes {
        text.0.push(write.table as u8);
        text.bytes(&write.key);
        match &write.value {
            Some(value) => {
                text.0.push(1);
                text.bytes(value);
            }
            None => text.0.push(0),
        }
    }
    StateHash(*blake3::hash(&text.0).as_bytes())
}

/// What is hashed: every part with its length or tag in front, so that no two batches have the same text.
struct Text(Vec<u8>);

impl Text {
    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Ok(answer) => {
                self.0.push(0);
                self.bytes(answer);
            }
            Outcome::Refused(refusal) => {
                self.0.push(1);
                self.number(u64::from(refusal.code));
                self.bytes(refusal.message.as_bytes());
            }
            Outcome::Host(code) => {
                self.0.push(2);
                self.number(*code as u64);
            }
        }
    }
}
