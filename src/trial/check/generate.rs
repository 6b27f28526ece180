//! Inputs from a seed. Random bytes say nothing to most machines, so commands are made by changing examples
//! and earlier commands, with words that the component itself has in its data.
//!
//! Promises: the same seed, examples and words give the same deeds on every computer.

use std::ops::Range;

use bytes::Bytes;

use super::deed::Deed;

/// Commands kept to be changed again: the last so many.
const POOL_MAX: usize = 256;

/// Bytes of a command that is made up.
const COMMAND_BYTES_MAX: usize = 4_096;

/// Numbers at which machines go wrong.
const NUMBERS: [&str; 10] =
    ["0", "1", "-1", "2", "10", "255", "65536", "4294967295", "9223372036854775807", "-9223372036854775808"];

/// What stands between words.
const SEPARATORS: [&str; 9] = [" ", "=", ":", "/", ",", "\n", "\t", "\0", "-"];

/// How far the clock moves at once, in milliseconds: a moment, a lease's usual time, and longer.
const ADVANCES_MS: [u64; 6] = [1, 100, 1_000, 10_000, 60_000, 3_600_000];

/// Times to live of clients' leases.
const TTLS_MS: [u64; 3] = [500, 10_000, 600_000];

/// Chance that can be repeated (splitmix64).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The same seed gives the same numbers.
    pub fn of(seed: u64) -> Chance {
        Chance(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// `count` commands with some leases, queries and time between them. The examples come first, as they are.
pub fn generate(examples: &[Deed], words: &[Vec<u8>], seed: u64, count: usize) -> Vec<Deed> {
    let mut chance = Chance::of(seed);
    // Of its own, so that queries do not change which commands there are.
    let mut asking = Chance::of(seed ^ 0x7175_6572_7900);
    let mut maker = Maker { words, pool: Vec::new(), asked: Vec::new() };
    let mut deeds: Vec<Deed> = examples.to_vec();
    for example in examples {
        match example {
            Deed::Command(command) => maker.keep(command.to_vec(), &mut chance),
            Deed::Query(request) => maker.asked.push(request.to_vec()),
            _ => {}
        }
    }
    for _ in 0..count {
        match chance.below(60) {
            0..=2 => deeds.push(Deed::Advance(ADVANCES_MS[chance.below(ADVANCES_MS.len())])),
            3 => deeds.push(Deed::Grant { ttl_ms: TTLS_MS[chance.below(TTLS_MS.len())], id: 0 }),
            // Of the first few there are, or were.
            4 => deeds.push(Deed::Revoke(1 + chance.below(8) as u64)),
            5..=9 => deeds.push(Deed::Query(maker.query(&mut asking).into())),
            _ => {}
        }
        let command = maker.command(&mut chance);
        deeds.push(Deed::Command(Bytes::from(command.clone())));
        maker.keep(command, &mut chance);
    }
    deeds
}

struct Maker<'a> {
    words: &'a [Vec<u8>],
    /// Commands to be changed.
    pool: Vec<Vec<u8>>,
    /// Examples of queries.
    asked: Vec<Vec<u8>>,
}

impl Maker<'_> {
    fn keep(&mut self, command: Vec<u8>, chance: &mut Chance) {
        if self.pool.len() < POOL_MAX {
            self.pool.push(command);
        } else {
            let at = chance.below(POOL_MAX);
            self.pool[at] = command;
        }
    }

    fn command(&mut self, chance: &mut Chance) -> Vec<u8> {
        let mut command = match self.pool.is_empty() || chance.one_in(12) {
            true => self.fresh(chance),
            false => self.pool[chance.below(self.pool.len())].clone(),
        };
        // A quarter as it was: machines do something else the second time.
        if !chance.one_in(4) {
            for _ in 0..=chance.below(3) {
                self.change(&mut command, chance);
            }
        }
        command.truncate(COMMAND_BYTES_MAX);
        command
    }

    /// An example, changed or not, or else what a command might be: machines are often asked by the same
    /// names.
    fn query(&mut self, chance: &mut Chance) -> Vec<u8> {
        if self.asked.is_empty() || chance.one_in(4) {
            return if chance.one_in(2) { self.word(chance) } else { self.command(chance) };
        }
        let mut query = self.asked[chance.below(self.asked.len())].clone();
        if chance.one_in(2) {
            self.change(&mut query, chance);
        }
        query.truncate(COMMAND_BYTES_MAX);
        query
    }

    /// Words with something between them.
    fn fresh(&self, chance: &mut Chance) -> Vec<u8> {
        let mut command = Vec::new();
        for at in 0..=chance.below(4) {
            if at > 0 {
                command.extend_from_slice(SEPARATORS[chance.below(SEPARATORS.len())].as_bytes());
            }
            command.extend_from_slice(&self.word(chance));
        }
        command
    }

    fn word(&self, chance: &mut Chance) -> Vec<u8> {
        match chance.below(4) {
            0 => NUMBERS[chance.below(NUMBERS.len())].into(),
            1 => format!("k{}", chance.below(16)).into(),
            2 => chance.below(1_000).to_string().into(),
            _ if self.words.is_empty() => b"k".to_vec(),
            _ => self.words[chance.below(self.words.len())].clone(),
        }
    }

    fn change(&self, command: &mut Vec<u8>, chance: &mut Chance) {
        match chance.below(8) {
            0..=2 => {
                if let Some(span) = span_of_word(command, chance) {
                    command.splice(span, self.word(chance));
                }
            }
            3 => {
                let number = span_of_number(command, chance);
                let other = NUMBERS[chance.below(NUMBERS.len())].bytes();
                let span = number.unwrap_or(command.len()..command.len());
                command.splice(span, other);
            }
            4 => {
                let span = some_span(command, chance);
                command.splice(span, []);
            }
            5 => {
                let span = some_span(command, chance);
                let again = command[span.clone()].to_vec();
                command.splice(span.end..span.end, again);
            }
            6 if !command.is_empty() => {
                let at = chance.below(command.len());
                command[at] = chance.number() as u8;
            }
            _ if !self.pool.is_empty() => {
                let other = &self.pool[chance.below(self.pool.len())];
                let (keep, from) = (some_span(command, chance).end, some_span(other, chance).start);
                command.truncate(keep);
                command.extend_from_slice(&other[from..]);
            }
            _ => {}
        }
    }
}

/// Some part of a command; may be empty.
fn some_span(command: &[u8], chance: &mut Chance) -> Range<usize> {
    let start = chance.below(command.len() + 1);
    start..start + chance.below(command.len() - start + 1)
}

fn span_of_word(command: &[u8], chance: &mut Chance) -> Option<Range<usize>> {
    span_of(command, chance, u8::is_ascii_alphanumeric)
}

fn span_of_number(command: &[u8], chance: &mut Chance) -> Option<Range<usize>> {
    span_of(command, chance, u8::is_ascii_digit)
}

/// One of the longest runs of bytes that are `of`.
fn span_of(command: &[u8], chance: &mut Chance, of: fn(&u8) -> bool) -> Option<Range<usize>> {
    let mut spans: Vec<Range<usize>> = Vec::new();
    for (at, byte) in command.iter().enumerate() {
        match spans.last_mut().filter(|span| span.end == at) {
            _ if !of(byte) => {}
            Some(span) => span.end += 1,
            None => spans.push(at..at + 1),
        }
    }
    if spans.is_empty() { None } else { Some(spans.swap_remove(chance.below(spans.len()))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(deeds: &[Deed]) -> Vec<&Bytes> {
        deeds
            .iter()
            .filter_map(|deed| match deed {
                Deed::Command(bytes) => Some(bytes),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_deeds_and_examples_come_first() {
        let examples = [Deed::Command("put colour 7".into()), Deed::Advance(5)];
        let words = [b"get".to_vec(), b"delete".to_vec()];
        let deeds = generate(&examples, &words, 7, 500);
        assert_eq!(deeds, generate(&examples, &words, 7, 500));
        assert_ne!(deeds, generate(&examples, &words, 8, 500));
        assert_eq!(deeds[..2], examples);
        assert_eq!(commands(&deeds).len(), 501);
        assert!(deeds[2..].iter().any(|deed| matches!(deed, Deed::Advance(_))));
        assert!(deeds[2..].iter().any(|deed| matches!(deed, Deed::Query(_))));
        assert!(commands(&deeds).iter().all(|command| command.len() <= COMMAND_BYTES_MAX));
    }

    #[test]
    fn commands_are_near_to_the_examples_and_use_the_words() {
        let deeds = generate(&[Deed::Command("put colour 7".into())], &[b"delete".to_vec()], 1, 500);
        let with = |text: &str| {
            let has = |command: &&Bytes| command.windows(text.len()).any(|window| window == text.as_bytes());
            commands(&deeds).into_iter().filter(has).count()
        };
        assert!(with("put") > 50 && with("colour") > 50 && with("delete") > 10, "{deeds:?}");
    }

    #[test]
    fn there_are_commands_without_examples_and_words() {
        let deeds = generate(&[], &[], 3, 50);
        assert_eq!(commands(&deeds).len(), 50);
        assert!(commands(&deeds).iter().filter(|command| command.is_empty()).count() < 10);
    }

    #[test]
    fn runs_are_found() {
        let mut chance = Chance::of(1);
        let mut found: Vec<_> =
            (0..50).filter_map(|_| span_of_number(b"a12b3", &mut chance)).map(|s| (s.start, s.end)).collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, [(1, 3), (4, 5)]);
        assert_eq!(span_of_number(b"ab", &mut chance), None);
    }
}
