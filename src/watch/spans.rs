//! An interval tree over byte strings: which spans contain a key.
//!
//! A treap (Seidel and Aragon, "Randomized Search Trees", 1996): a search tree by the spans' starts that is
//! also a heap by priorities drawn for each node, which keeps it shallow whatever the order of arrival. Each
//! node knows which span of its subtree reaches farthest (Cormen et al., "Introduction to Algorithms",
//! section 14.3), so a search leaves out subtrees in which every span ends before the key. Nodes are in one
//! vector and know each other by number; equal spans share a node.

use std::cmp::Ordering;

use super::matcher::Watching;

/// No node.
const NONE: u32 = u32::MAX;

/// Spans, and who watches them.
pub struct Spans<T> {
    nodes: Vec<Node<T>>,
    /// Places in `nodes` that are free.
    free: Vec<u32>,
    root: u32,
    /// The state of the generator of priorities (Marsaglia's xorshift). Never 0.
    random: u64,
}

struct Node<T> {
    start: Box<[u8]>,
    /// None: it has no end.
    end: Option<Box<[u8]>>,
    watching: Watching<T>,
    priority: u64,
    left: u32,
    right: u32,
    /// Of this node and those below it, the one whose span reaches farthest.
    farthest: u32,
}

impl<T> Spans<T> {
    pub fn new(seed: u64) -> Spans<T> {
        Spans { nodes: Vec::new(), free: Vec::new(), root: NONE, random: seed | 1 }
    }

    /// Visits who watches each span that contains `key`.
    pub fn visit<'s>(&'s self, key: &[u8], visit: &mut impl FnMut(&'s Watching<T>)) {
        self.visit_below(self.root, key, visit);
    }

    fn visit_below<'s>(&'s self, at: u32, key: &[u8], visit: &mut impl FnMut(&'s Watching<T>)) {
        let Some(node) = self.nodes.get(at as usize) else { return };
        if !self.ends_after(node.farthest, key) {
            return;
        }
        self.visit_below(node.left, key, visit);
        if *node.start <= *key {
            if self.ends_after(at, key) {
                visit(&node.watching);
            }
            self.visit_below(node.right, key, visit);
        }
    }

    fn ends_after(&self, at: u32, key: &[u8]) -> bool {
        self.nodes[at as usize].end.as_deref().is_none_or(|end| key < end)
    }

    pub fn clear(&mut self) {
        self.nodes.clear();
        self.free.clear();
        self.root = NONE;
    }

    /// Everybody who watches a span.
    pub fn iter(&self) -> impl Iterator<Item = &Watching<T>> {
        self.nodes.iter().map(|node| &node.watching)
    }

    pub fn insert(&mut self, start: &[u8], end: Option<&[u8]>, number: u64, watcher: T) {
        if let Some(at) = self.find(start, end) {
            return self.nodes[at as usize].watching.insert(number, watcher);
        }
        let mut watching = Watching::default();
        watching.insert(number, watcher);
        let priority = self.draw();
        let (start, end) = (start.into(), end.map(Into::into));
        let node = Node { start, end, watching, priority, left: NONE, right: NONE, farthest: NONE };
        let new = match self.free.pop() {
            Some(free) => {
                self.nodes[free as usize] = node;
                free
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("a node's limit on watches is far below 2^32")
            }
        };
        self.nodes[new as usize].farthest = new;
        self.root = self.insert_below(self.root, new);
    }

    pub fn remove(&mut self, start: &[u8], end: Option<&[u8]>, number: u64) -> Option<T> {
        let at = self.find(start, end)?;
        let node = &mut self.nodes[at as usize];
        let removed = node.watching.remove(number);
        if node.watching.is_empty() {
            self.root = self.remove_below(self.root, at);
            self.free.push(at);
            // What it holds is not needed any more; its place is.
            let node = &mut self.nodes[at as usize];
            (node.start, node.end, node.watching) = (Box::default(), None, Watching::default());
        }
        removed
    }

    fn find(&self, start: &[u8], end: Option<&[u8]>) -> Option<u32> {
        let mut at = self.root;
        while let Some(node) = self.nodes.get(at as usize) {
            match order((start, end), node.span()) {
                Ordering::Less => at = node.left,
                Ordering::Equal => return Some(at),
                Ordering::Greater => at = node.right,
            }
        }
        None
    }

    /// Puts the node `new` into the subtree of `at`; answers its new root.
    fn insert_below(&mut self, at: u32, new: u32) -> u32 {
        let Some(node) = self.nodes.get(at as usize) else { return new };
        let (left, right) = (node.left, node.right);
        let added = &self.nodes[new as usize];
        let goes_left = order(added.span(), node.span()) == Ordering::Less;
        if added.priority > node.priority {
            let (left, right) = self.split(at, new);
            (self.nodes[new as usize].left, self.nodes[new as usize].right) = (left, right);
            self.note_farthest(new);
            return new;
        }
        if goes_left {
            self.nodes[at as usize].left = self.insert_below(left, new);
        } else {
            self.nodes[at as usize].right = self.insert_below(right, new);
        }
        self.note_farthest(at);
        at
    }

    /// Parts the subtree of `at` into what comes before and after the node `by`.
    fn split(&mut self, at: u32, by: u32) -> (u32, u32) {
        let Some(node) = self.nodes.get(at as usize) else { return (NONE, NONE) };
        let (left, right) = (node.left, node.right);
        if order(self.nodes[by as usize].span(), node.span()) == Ordering::Less {
            let (before, after) = self.split(left, by);
            self.nodes[at as usize].left = after;
            self.note_farthest(at);
            (before, at)
        } else {
            let (before, after) = self.split(right, by);
            self.nodes[at as usize].right = before;
            self.note_farthest(at);
            (at, after)
        }
    }

    /// Takes the node `gone` out of the subtree of `at`; answers its new root.
    fn remove_below(&mut self, at: u32, gone: u32) -> u32 {
        let node = &self.nodes[at as usize];
        let (left, right) = (node.left, node.right);
        if at == gone {
            return self.join(left, right);
        }
        if order(self.nodes[gone as usize].span(), node.span()) == Ordering::Less {
            self.nodes[at as usize].left = self.remove_below(left, gone);
        } else {
            self.nodes[at as usize].right = self.remove_below(right, gone);
        }
        self.note_farthest(at);
        at
    }

    /// One subtree of two, of which all of the first comes before all of the second.
    fn join(&mut self, left: u32, right: u32) -> u32 {
        let (Some(a), Some(b)) = (self.nodes.get(left as usize), self.nodes.get(right as usize)) else {
            return if left == NONE { right } else { left };
        };
        let (inner_left, inner_right) = (a.right, b.left);
        if a.priority > b.priority {
            self.nodes[left as usize].right = self.join(inner_left, right);
            self.note_farthest(left);
            left
        } else {
            self.nodes[right as usize].left = self.join(left, inner_right);
            self.note_farthest(right);
            right
        }
    }

    fn note_farthest(&mut self, at: u32) {
        let node = &self.nodes[at as usize];
        let mut farthest = at;
        for below in [node.left, node.right] {
            let Some(below) = self.nodes.get(below as usize) else { continue };
            let end = |at: u32| self.nodes[at as usize].end.as_deref();
            if reaches_past(end(below.farthest), end(farthest)) {
                farthest = below.farthest;
            }
        }
        self.nodes[at as usize].farthest = farthest;
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

impl<T> Node<T> {
    fn span(&self) -> (&[u8], Option<&[u8]>) {
        (&self.start, self.end.as_deref())
    }
}

/// By start; spans of the same start by their end, with those that have none last.
fn order((start, end): (&[u8], Option<&[u8]>), other: (&[u8], Option<&[u8]>)) -> Ordering {
    start.cmp(other.0).then_with(|| match (end, other.1) {
        (Some(end), Some(other)) => end.cmp(other),
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (None, None) => Ordering::Equal,
    })
}

fn reaches_past(end: Option<&[u8]>, other: Option<&[u8]>) -> bool {
    match (end, other) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(end), Some(other)) => end > other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_stays_short_whatever_the_order_of_arrival() {
        let mut spans = Spans::new(7);
        for number in 0..10_000_u64 {
            let start = number.to_be_bytes();
            spans.insert(&start, Some(&(number + 1).to_be_bytes()), number, number);
        }
        fn depth<T>(spans: &Spans<T>, at: u32) -> usize {
            let Some(node) = spans.nodes.get(at as usize) else { return 0 };
            1 + depth(spans, node.left).max(depth(spans, node.right))
        }
        // A balanced tree would have 14 levels; a list has 10,000.
        let levels = depth(&spans, spans.root);
        assert!(levels < 50, "{levels} levels");
        let mut found = Vec::new();
        spans.visit(&4_321_u64.to_be_bytes(), &mut |watching| found.extend(watching.iter().copied()));
        assert_eq!(found, [4_321]);
    }

    #[test]
    fn the_places_of_spans_that_went_are_used_again() {
        let mut spans = Spans::new(1);
        for round in 0..100_u64 {
            spans.insert(&round.to_be_bytes(), None, round, ());
            assert_eq!(spans.remove(&round.to_be_bytes(), None, round), Some(()));
        }
        assert_eq!(spans.nodes.len(), 1);
        assert_eq!(spans.root, NONE);
    }
}
