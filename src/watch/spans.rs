//! An interval tree over byte strings: which spans contain a key.
//!
//! A B-tree (Bayer and McCreight, "Organization and Maintenance of Large Ordered Indices", 1972) of the spans
//! in the order of their starts, in which each entry knows which span at or below it reaches farthest (Cormen
//! et al., "Introduction to Algorithms", section 14.3), so that a search leaves out what ends before the key.
//!
//! # How
//! A search compares numbers. What the starts in a node have in common is cut off, and of what then is left
//! of a start or an end the first 16 bytes are in the node, as a number: its head. The keys themselves, which
//! are elsewhere in memory, are looked at only where two heads are equal. So a search for a key that no span
//! contains reads some lines of memory on each of three or four levels. Keys that somebody chose so that
//! their heads are equal cost what they cost in any tree: a logarithm of comparisons.
//!
//! # Layout
//! - this file: the spans by number, and who watches them
//! - `node`: the tree, whose nodes know spans by their numbers

mod node;

use self::node::Node;
use super::matcher::Watching;

/// Spans, and who watches them.
pub struct Spans<T> {
    slab: Slab<T>,
    /// None: there are no spans. Most machines have none, and a node is large.
    root: Option<Box<Node>>,
}

impl<T> Spans<T> {
    pub fn new() -> Spans<T> {
        Spans { slab: Slab { spans: Vec::new(), free: Vec::new() }, root: None }
    }

    /// Visits who watches each span that contains `key`.
    pub fn visit<'s>(&'s self, key: &[u8], visit: &mut impl FnMut(&'s Watching<T>)) {
        if let Some(root) = &self.root {
            root.visit(&self.slab, key, visit);
        }
    }

    pub fn clear(&mut self) {
        *self = Spans::new();
    }

    /// Everybody who watches a span.
    pub fn iter(&self) -> impl Iterator<Item = &Watching<T>> {
        self.slab.spans.iter().map(|span| &span.watching)
    }

    pub fn insert(&mut self, start: &[u8], end: Option<&[u8]>, number: u64, watcher: T) {
        if let Some(known) = self.find(start, end) {
            return self.slab.spans[known as usize].watching.insert(number, watcher);
        }
        let mut watching = Watching::default();
        watching.insert(number, watcher);
        let span = self.slab.add(Span { start: start.into(), end: end.map(Into::into), watching });
        let root = self.root.get_or_insert_with(|| Box::new(Node::empty()));
        if let Some(right) = root.insert(&self.slab, span) {
            let left = std::mem::replace(&mut **root, Node::empty());
            **root = Node::above(&self.slab, [left, right]);
        }
    }

    pub fn remove(&mut self, start: &[u8], end: Option<&[u8]>, number: u64) -> Option<T> {
        let span = self.find(start, end)?;
        let watching = &mut self.slab.spans[span as usize].watching;
        let removed = watching.remove(number);
        if watching.is_empty() {
            let root = self.root.as_mut()?;
            root.remove(&self.slab, span);
            root.skip_single();
            self.root.take_if(|root| root.is_empty());
            self.slab.give_up(span);
        }
        removed
    }

    fn find(&self, start: &[u8], end: Option<&[u8]>) -> Option<u32> {
        self.root.as_ref()?.find(&self.slab, (start, end))
    }
}

/// The spans by number. A place that is free has nobody who watches.
struct Slab<T> {
    spans: Vec<Span<T>>,
    free: Vec<u32>,
}

struct Span<T> {
    start: Box<[u8]>,
    /// None: it has no end.
    end: Option<Box<[u8]>>,
    watching: Watching<T>,
}

impl<T> Slab<T> {
    fn start(&self, span: u32) -> &[u8] {
        &self.spans[span as usize].start
    }

    fn end(&self, span: u32) -> Option<&[u8]> {
        self.spans[span as usize].end.as_deref()
    }

    fn bounds(&self, span: u32) -> (&[u8], Option<&[u8]>) {
        (self.start(span), self.end(span))
    }

    fn ends_after(&self, span: u32, key: &[u8]) -> bool {
        self.end(span).is_none_or(|end| key < end)
    }

    fn give_up(&mut self, span: u32) {
        self.spans[span as usize] = Span { start: Box::default(), end: None, watching: Watching::default() };
        self.free.push(span);
    }

    fn add(&mut self, span: Span<T>) -> u32 {
        match self.free.pop() {
            Some(free) => {
                self.spans[free as usize] = span;
                free
            }
            None => {
                self.spans.push(span);
                u32::try_from(self.spans.len() - 1).expect("a node's limit on watches is far below 2^32")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a step of the test below does.
    #[derive(Clone, Debug)]
    enum Step {
        Insert(Vec<u8>, Option<Vec<u8>>),
        Remove(proptest::sample::Index),
        Visit(Vec<u8>),
    }

    /// Keys with much in common and without, whose heads are often equal.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        let letters = || prop_oneof![Just(b'a'), Just(b'b'), Just(0), Just(0xff)];
        let short = proptest::collection::vec(letters(), 0..7);
        let tail = proptest::collection::vec(letters(), 0..5);
        let long = (prop_oneof![Just(3_usize), Just(20), Just(40)], tail)
            .prop_map(|(common, tail)| [vec![b'p'; common], tail].concat());
        prop_oneof![short, long]
    }

    fn step(inserts: u32) -> impl Strategy<Value = Step> {
        let span = (key(), proptest::option::weighted(0.8, key()))
            .prop_filter("empty", |(start, end)| end.as_ref().is_none_or(|end| end > start));
        prop_oneof![
            inserts => span.prop_map(|(start, end)| Step::Insert(start, end)),
            10 - inserts => any::<proptest::sample::Index>().prop_map(Step::Remove),
            1 => key().prop_map(Step::Visit),
        ]
    }

    /// A tree that grows to some levels, and shrinks again.
    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let grown = proptest::collection::vec(step(8), 0..3_000);
        (grown, proptest::collection::vec(step(2), 0..3_000)).prop_map(|(a, b)| [a, b].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn the_same_spans_are_found_as_by_asking_each_of_them(steps in steps()) {
            let mut spans = Spans::new();
            let mut all: Vec<(u64, Vec<u8>, Option<Vec<u8>>)> = Vec::new();
            for (number, step) in (0..).zip(steps) {
                match step {
                    Step::Insert(start, end) => {
                        spans.insert(&start, end.as_deref(), number, number);
                        all.push((number, start, end));
                    }
                    Step::Remove(which) if !all.is_empty() => {
                        let (number, start, end) = all.swap_remove(which.index(all.len()));
                        prop_assert_eq!(spans.remove(&start, end.as_deref(), number), Some(number));
                        prop_assert_eq!(spans.remove(&start, end.as_deref(), number), None);
                    }
                    Step::Remove(_) => {}
                    Step::Visit(key) => {
                        let contains = |(number, start, end): &(u64, Vec<u8>, Option<Vec<u8>>)| {
                            (*start <= key && end.as_ref().is_none_or(|end| key < *end)).then_some(*number)
                        };
                        let mut expected: Vec<u64> = all.iter().filter_map(contains).collect();
                        expected.sort_unstable();
                        prop_assert_eq!(found(&spans, &key), expected);
                    }
                }
                if number % 512 == 0 {
                    check(&spans);
                }
            }
            check(&spans);
            for (number, start, end) in all {
                prop_assert_eq!(spans.remove(&start, end.as_deref(), number), Some(number));
            }
            prop_assert!(spans.root.is_none());
            prop_assert!(spans.iter().all(Watching::is_empty));
        }
    }

    /// Compares all that the nodes say with the spans, and tells how many there are from the root to a leaf.
    fn check<T>(spans: &Spans<T>) -> usize {
        let Some(root) = &spans.root else { return 0 };
        let found = root.check(&spans.slab).len();
        assert_eq!(found, spans.iter().filter(|watching| !watching.is_empty()).count());
        root.levels()
    }

    fn found(spans: &Spans<u64>, key: &[u8]) -> Vec<u64> {
        let mut found = Vec::new();
        spans.visit(key, &mut |watching| found.extend(watching.iter().copied()));
        found.sort_unstable();
        found
    }

    #[test]
    fn a_search_stays_short_whatever_the_order_of_arrival() {
        let orders: [fn(u64) -> u64; 3] =
            [|number| number, |number| 9_999 - number, |number| number * 7_919 % 10_000];
        for order in orders {
            let mut spans = Spans::new();
            for number in (0..10_000).map(order) {
                spans.insert(&number.to_be_bytes(), Some(&(number + 1).to_be_bytes()), number, number);
            }
            // With full nodes it would have three.
            assert_eq!(check(&spans), 3);
            assert_eq!(found(&spans, &4_321_u64.to_be_bytes()), [4_321]);
            for number in (0..10_000_u64).filter(|number| number % 100 != 21) {
                let end = Some(&(number + 1).to_be_bytes()[..]);
                assert_eq!(spans.remove(&number.to_be_bytes(), end, number), Some(number));
            }
            assert_eq!(check(&spans), 2, "nodes with few entries become one");
            assert_eq!(found(&spans, &4_321_u64.to_be_bytes()), [4_321]);
            assert!(found(&spans, &4_322_u64.to_be_bytes()).is_empty());
        }
    }

    #[test]
    fn the_places_of_spans_that_went_are_used_again() {
        let mut spans = Spans::new();
        for round in 0..100_u64 {
            spans.insert(&round.to_be_bytes(), None, round, ());
            assert_eq!(spans.remove(&round.to_be_bytes(), None, round), Some(()));
        }
        assert_eq!(spans.slab.spans.len(), 1);
        assert_eq!(spans.slab.free, [0]);
    }
}
