//! Which watchers a key concerns: those of the key itself by hash, those of a prefix by the hash of as much
//! of the key, those of other spans by an interval tree.
//!
//! Costs by the watchers that are found, by the number of different lengths of prefixes, which is bounded,
//! and by the logarithm of the number of different other spans; not by the number of watchers.

use std::collections::HashMap;

use foldhash::quality::FixedState;

use super::selection::{KeySpan, end_of_prefix};
use super::spans::Spans;

/// Different lengths of prefixes that are looked up by hash. Those of further lengths are in the tree.
const PREFIX_LENGTHS_MAX: usize = 8;

/// Watchers by what they watch. Each has a number, given out in rising order.
pub struct Matcher<T> {
    keys: ByBytes<T>,
    /// By their length, in the order in which the lengths came.
    prefixes: Vec<(usize, ByBytes<T>)>,
    spans: Spans<T>,
    seed: u64,
}

/// Hashed with a seed, so that nobody who does not know it can choose keys that collide.
type ByBytes<T> = HashMap<Box<[u8]>, Watching<T>, FixedState>;

fn insert_into<T>(all: &mut ByBytes<T>, bytes: &[u8], number: u64, watcher: T) {
    match all.get_mut(bytes) {
        Some(watching) => watching.insert(number, watcher),
        None => {
            let mut watching = Watching::default();
            watching.insert(number, watcher);
            all.insert(bytes.into(), watching);
        }
    }
}

fn remove_from<T>(all: &mut ByBytes<T>, bytes: &[u8], number: u64) -> Option<T> {
    let watching = all.get_mut(bytes)?;
    let removed = watching.remove(number);
    if watching.is_empty() {
        all.remove(bytes);
    }
    removed
}

/// Those that watch the same, in the order of their numbers.
pub struct Watching<T>(Vec<(u64, T)>);

impl<T> Default for Watching<T> {
    fn default() -> Watching<T> {
        Watching(Vec::new())
    }
}

impl<T> Watching<T> {
    pub fn insert(&mut self, number: u64, watcher: T) {
        match self.0.binary_search_by_key(&number, |(number, _)| *number) {
            Ok(at) => self.0[at].1 = watcher,
            Err(at) => self.0.insert(at, (number, watcher)),
        }
    }

    pub fn remove(&mut self, number: u64) -> Option<T> {
        let at = self.0.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(self.0.remove(at).1)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, watcher)| watcher)
    }
}

impl<T> Matcher<T> {
    /// Without watchers. `seed` keeps keys that somebody chose from costing more than others.
    pub fn new(seed: u64) -> Matcher<T> {
        let keys = HashMap::with_hasher(FixedState::with_seed(seed));
        Matcher { keys, prefixes: Vec::new(), spans: Spans::new(), seed }
    }

    /// Adds a watcher of `span`; in place of the one of this number, if that watched the same.
    pub fn insert(&mut self, span: &KeySpan, number: u64, watcher: T) {
        match span {
            KeySpan::Key(key) => insert_into(&mut self.keys, key, number, watcher),
            KeySpan::Range { start, end } => match self.prefixes_of_length(start, end.as_deref()) {
                Some(prefixes) => insert_into(prefixes, start, number, watcher),
                None => self.spans.insert(start, end.as_deref(), number, watcher),
            },
        }
    }

    /// Where a span belongs if it is a prefix and there is room for its length.
    fn prefixes_of_length(&mut self, start: &[u8], end: Option<&[u8]>) -> Option<&mut ByBytes<T>> {
        if end_of_prefix(start).as_deref() != end {
            return None;
        }
        let length = start.len();
        let at = match self.prefixes.iter().position(|(known, _)| *known == length) {
            Some(at) => at,
            None if self.prefixes.len() < PREFIX_LENGTHS_MAX => {
                self.prefixes.push((length, HashMap::with_hasher(FixedState::with_seed(self.seed))));
                self.prefixes.len() - 1
            }
            None => return None,
        };
        Some(&mut self.prefixes[at].1)
    }

    /// Takes out the watcher of this number and span.
    pub fn remove(&mut self, span: &KeySpan, number: u64) -> Option<T> {
        match span {
            KeySpan::Key(key) => remove_from(&mut self.keys, key, number),
            KeySpan::Range { start, end } => {
                let is_prefix = end_of_prefix(start).as_deref() == end.as_deref();
                let removed = if is_prefix { self.remove_prefix(start, number) } else { None };
                removed.or_else(|| self.spans.remove(start, end.as_deref(), number))
            }
        }
    }

    fn remove_prefix(&mut self, prefix: &[u8], number: u64) -> Option<T> {
        let at = self.prefixes.iter().position(|(length, _)| *length == prefix.len())?;
        let removed = remove_from(&mut self.prefixes[at].1, prefix, number);
        if self.prefixes[at].1.is_empty() {
            self.prefixes.swap_remove(at);
        }
        removed
    }

    /// Visits all that watch `key`.
    pub fn visit<'m>(&'m self, key: &[u8], visit: &mut impl FnMut(&'m T)) {
        if let Some(watching) = self.keys.get(key) {
            watching.iter().for_each(&mut *visit);
        }
        for (length, prefixes) in &self.prefixes {
            if let Some(watching) = key.get(..*length).and_then(|prefix| prefixes.get(prefix)) {
                watching.iter().for_each(&mut *visit);
            }
        }
        self.spans.visit(key, &mut |watching| watching.iter().for_each(&mut *visit));
    }

    /// Takes out all.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.prefixes.clear();
        self.spans.clear();
    }

    /// All watchers.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let prefixes = self.prefixes.iter().flat_map(|(_, prefixes)| prefixes.values());
        self.keys.values().chain(prefixes).chain(self.spans.iter()).flat_map(Watching::iter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Short keys of few letters, so that spans overlap, nest, touch and are equal.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(0), Just(0xff)], 0..4)
    }

    /// Of more lengths than are looked up by hash.
    fn prefix() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![key(), (0..12_usize).prop_map(|length| vec![b'a'; length])]
    }

    fn span() -> impl Strategy<Value = KeySpan> {
        let range = (key(), key())
            .prop_filter_map("empty", |(start, end)| KeySpan::range(start, Some(end.into())).ok());
        prop_oneof![
            key().prop_map(|key| KeySpan::key(key).unwrap()),
            prefix().prop_map(|prefix| KeySpan::prefix(prefix).unwrap()),
            key().prop_map(|start| KeySpan::range(start, None).unwrap()),
            range,
        ]
    }

    proptest! {
        /// Watchers come and go; in between and at the end, keys are looked up.
        #[test]
        fn the_same_watchers_are_found_as_by_asking_each_of_them(
            seed in any::<u64>(),
            steps in proptest::collection::vec(
                (proptest::option::weighted(0.6, span()), any::<proptest::sample::Index>(), prefix()),
                1..120,
            ),
        ) {
            let mut matcher = Matcher::new(seed);
            let mut all: Vec<(u64, KeySpan)> = Vec::new();
            for (number, (added, removed, probe)) in steps.into_iter().enumerate() {
                match added {
                    Some(span) => {
                        matcher.insert(&span, number as u64, number as u64);
                        all.push((number as u64, span));
                    }
                    None if !all.is_empty() => {
                        let (number, span) = all.swap_remove(removed.index(all.len()));
                        prop_assert_eq!(matcher.remove(&span, number), Some(number));
                        prop_assert_eq!(matcher.remove(&span, number), None);
                    }
                    None => {}
                }
                let mut found = Vec::new();
                matcher.visit(&probe, &mut |number| found.push(*number));
                found.sort_unstable();
                let asked = all.iter().filter(|(_, span)| span.contains(&probe));
                let mut expected: Vec<u64> = asked.map(|(number, _)| *number).collect();
                expected.sort_unstable();
                prop_assert_eq!(found, expected);
            }
            let mut left: Vec<u64> = matcher.iter().copied().collect();
            left.sort_unstable();
            all.sort_unstable_by_key(|(number, _)| *number);
            prop_assert_eq!(left, all.iter().map(|(number, _)| *number).collect::<Vec<_>>());
        }
    }
}
