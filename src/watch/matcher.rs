//! Which watchers a key concerns: those of the key itself by hash, those of spans by an interval tree.
//!
//! Costs by the watchers that are found, and by the logarithm of the number of different spans; not by the
//! number of watchers.

use std::collections::HashMap;
use std::hash::{BuildHasher, DefaultHasher, Hasher};

use super::selection::KeySpan;
use super::spans::Spans;

/// Watchers by what they watch. Each has a number, given out in rising order.
pub struct Matcher<T> {
    keys: HashMap<Box<[u8]>, Watching<T>, Seeded>,
    spans: Spans<T>,
}

/// Hashes keys so that nobody who does not know the seed can choose keys that collide.
struct Seeded(u64);

impl BuildHasher for Seeded {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
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
        Matcher { keys: HashMap::with_hasher(Seeded(seed)), spans: Spans::new(seed) }
    }

    /// Adds a watcher of `span`; in place of the one of this number, if that watched the same.
    pub fn insert(&mut self, span: &KeySpan, number: u64, watcher: T) {
        match span {
            KeySpan::Key(key) => match self.keys.get_mut(&**key) {
                Some(watching) => watching.insert(number, watcher),
                None => {
                    let mut watching = Watching::default();
                    watching.insert(number, watcher);
                    self.keys.insert((**key).into(), watching);
                }
            },
            KeySpan::Range { start, end } => self.spans.insert(start, end.as_deref(), number, watcher),
        }
    }

    /// Takes out the watcher of this number and span.
    pub fn remove(&mut self, span: &KeySpan, number: u64) -> Option<T> {
        match span {
            KeySpan::Key(key) => {
                let watching = self.keys.get_mut(&**key)?;
                let removed = watching.remove(number);
                if watching.is_empty() {
                    self.keys.remove(&**key);
                }
                removed
            }
            KeySpan::Range { start, end } => self.spans.remove(start, end.as_deref(), number),
        }
    }

    /// Visits all that watch `key`.
    pub fn visit<'m>(&'m self, key: &[u8], visit: &mut impl FnMut(&'m T)) {
        if let Some(watching) = self.keys.get(key) {
            watching.iter().for_each(&mut *visit);
        }
        self.spans.visit(key, &mut |watching| watching.iter().for_each(&mut *visit));
    }

    /// Takes out all.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.spans.clear();
    }

    /// All watchers.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.keys.values().flat_map(Watching::iter).chain(self.spans.iter().flat_map(Watching::iter))
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

    fn span() -> impl Strategy<Value = KeySpan> {
        let range = (key(), key())
            .prop_filter_map("empty", |(start, end)| KeySpan::range(start, Some(end.into())).ok());
        prop_oneof![
            key().prop_map(|key| KeySpan::key(key).unwrap()),
            key().prop_map(|prefix| KeySpan::prefix(prefix).unwrap()),
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
                (proptest::option::weighted(0.6, span()), any::<proptest::sample::Index>(), key()), 1..120),
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
