//! A node of the tree of spans.
//!
//! Promises: each number in it says what the keys say that it stands for, after every change. Must never look
//! at a key where two numbers decide.

use std::cmp::Ordering;

use super::Slab;
use crate::watch::matcher::Watching;

/// Entries of a node.
const ENTRIES_MAX: usize = 64;
/// A node that has fewer is made one with its neighbour, or shares out with it.
const ENTRIES_MIN: usize = ENTRIES_MAX / 4;

/// One entry of a node: a span in a leaf, a node below it in others.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// The first span there, in the order of spans.
    first: u32,
    /// The span there that reaches farthest.
    farthest: u32,
}

/// A node below another. In a box, as it is large and others move when one comes between them.
type Below = Box<Node>;

/// A node of the tree, with its entries in the order of spans.
pub(super) struct Node {
    count: usize,
    /// What the starts of the entries' first spans have in common.
    prefix: Box<[u8]>,
    /// Of each entry the head of its first span's start, behind the prefix.
    starts: [u128; ENTRIES_MAX],
    /// Of each entry the head of its farthest span's end. One that does not begin with the prefix comes after
    /// all keys that do, because it comes after a start that does or is past them.
    ends: [u128; ENTRIES_MAX],
    /// Of each entry which one reaches farthest up to and with it.
    reach: [u8; ENTRIES_MAX],
    entries: [Entry; ENTRIES_MAX],
    /// The nodes below, one an entry. Empty: it is a leaf.
    below: Vec<Below>,
}

impl Node {
    pub(super) fn empty() -> Node {
        Node {
            count: 0,
            prefix: Box::default(),
            starts: [0; ENTRIES_MAX],
            ends: [0; ENTRIES_MAX],
            reach: [0; ENTRIES_MAX],
            entries: [Entry::default(); ENTRIES_MAX],
            below: Vec::new(),
        }
    }

    fn of<T>(slab: &Slab<T>, entries: &[Entry], below: Vec<Below>) -> Node {
        let mut node = Node { count: entries.len(), below, ..Node::empty() };
        node.entries[..entries.len()].copy_from_slice(entries);
        node.cut_prefix(slab);
        node
    }

    /// A node of two: the new root, when the old one became too large.
    pub(super) fn above<T>(slab: &Slab<T>, halves: [Node; 2]) -> Node {
        let entries = halves.each_ref().map(Node::entry);
        Node::of(slab, &entries, halves.map(Box::new).into())
    }

    /// A root with a single node below makes room for that one.
    pub(super) fn skip_single(&mut self) {
        while self.below.len() == 1 {
            *self = *self.below.remove(0);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn entries(&self) -> &[Entry] {
        &self.entries[..self.count]
    }

    /// Visits who watches the spans at or below this node that contain a key.
    pub(super) fn visit<'s, T>(
        &self,
        slab: &'s Slab<T>,
        key: &[u8],
        visit: &mut impl FnMut(&'s Watching<T>),
    ) {
        let Some(head) = self.head_of(key) else { return };
        let mut at = self.count_until(head, |span| slab.start(span) <= key);
        let ends_after = |at: usize| {
            let end = self.ends[at];
            end > head || end == head && slab.ends_after(self.entries[at].farthest, key)
        };
        while at > 0 && ends_after(self.reach[at - 1].into()) {
            at -= 1;
            if !ends_after(at) {
                continue;
            }
            match self.below.get(at) {
                Some(node) => node.visit(slab, key, visit),
                None => visit(&slab.spans[self.entries[at].first as usize].watching),
            }
        }
    }

    /// The head of a key. One behind all that begin with the prefix has the last there is; None: it is before
    /// them, and so before all entries.
    fn head_of(&self, key: &[u8]) -> Option<u128> {
        match key.strip_prefix(&*self.prefix) {
            Some(rest) => Some(head(rest)),
            None if *key < *self.prefix => None,
            None => Some(u128::MAX),
        }
    }

    /// How many entries there are before a key with this head, or at it: of those that have the same head,
    /// the ones whose first span `is_until`.
    fn count_until(&self, head: u128, is_until: impl Fn(u32) -> bool) -> usize {
        let starts = &self.starts[..self.count];
        let before = starts.partition_point(|start| *start < head);
        if starts.get(before) != Some(&head) {
            return before;
        }
        let same = starts[before..].partition_point(|start| *start == head);
        let same = &self.entries()[before..before + same];
        before + same.partition_point(|entry| is_until(entry.first))
    }

    /// How many entries begin with a span that is this one or comes before it.
    fn count_until_span<T>(&self, slab: &Slab<T>, span: (&[u8], Option<&[u8]>)) -> usize {
        let Some(head) = self.head_of(span.0) else { return 0 };
        self.count_until(head, |first| order(slab.bounds(first), span) != Ordering::Greater)
    }

    /// The number of a span that is at or below this node.
    pub(super) fn find<T>(&self, slab: &Slab<T>, span: (&[u8], Option<&[u8]>)) -> Option<u32> {
        let at = self.count_until_span(slab, span).checked_sub(1)?;
        match self.below.get(at) {
            Some(node) => node.find(slab, span),
            None => Some(self.entries[at].first).filter(|found| slab.bounds(*found) == span),
        }
    }

    /// Adds a span at or below this node. Answers the second half of the node, if it became too large.
    pub(super) fn insert<T>(&mut self, slab: &Slab<T>, span: u32) -> Option<Node> {
        let at = self.count_until_span(slab, slab.bounds(span));
        if self.below.is_empty() {
            return self.insert_entry(slab, at, Entry { first: span, farthest: span }, None);
        }
        let at = at.saturating_sub(1);
        let added = self.below[at].insert(slab, span);
        if let Some(added) = added {
            self.entries[at] = self.below[at].entry();
            self.renew(slab, at);
            let entry = added.entry();
            return self.insert_entry(slab, at + 1, entry, Some(Box::new(added)));
        }
        let entry = &mut self.entries[at];
        entry.first = self.below[at].entries[0].first;
        if reaches_past(slab.end(span), slab.end(entry.farthest)) {
            entry.farthest = span;
        }
        self.renew(slab, at);
        None
    }

    /// Adds an entry, and the node that it is in others than leaves. Answers the second half of this node, if
    /// it was full.
    fn insert_entry<T>(
        &mut self,
        slab: &Slab<T>,
        at: usize,
        entry: Entry,
        below: Option<Below>,
    ) -> Option<Node> {
        if self.count < ENTRIES_MAX {
            self.make_room(at);
            self.entries[at] = entry;
            if let Some(below) = below {
                self.below.insert(at, below);
            }
            self.renew(slab, at);
            return None;
        }
        let mut entries = self.entries.to_vec();
        let mut nodes = std::mem::take(&mut self.below);
        entries.insert(at, entry);
        if let Some(below) = below {
            nodes.insert(at, below);
        }
        // Spans that arrive in their order leave full nodes behind them.
        let half = if at == self.count { at } else { self.count / 2 };
        let beyond = nodes.split_off(half.min(nodes.len()));
        *self = Node::of(slab, &entries[..half], nodes);
        Some(Node::of(slab, &entries[half..], beyond))
    }

    /// Takes out a span, which is there.
    pub(super) fn remove<T>(&mut self, slab: &Slab<T>, span: u32) {
        let at = self.count_until_span(slab, slab.bounds(span)) - 1;
        let Some(node) = self.below.get_mut(at) else { return self.remove_entry(slab, at) };
        node.remove(slab, span);
        if node.count == 0 {
            self.below.remove(at);
            return self.remove_entry(slab, at);
        }
        let entry = &mut self.entries[at];
        entry.first = node.entries[0].first;
        if entry.farthest == span {
            entry.farthest = node.farthest();
        }
        let is_small = node.count < ENTRIES_MIN;
        self.renew(slab, at);
        if is_small && self.count > 1 {
            self.share(slab, at.saturating_sub(1));
        }
    }

    /// Makes one node of two neighbours, or shares out evenly what they have.
    fn share<T>(&mut self, slab: &Slab<T>, at: usize) {
        let right = self.below.remove(at + 1);
        let left = &mut self.below[at];
        let entries = [left.entries(), right.entries()].concat();
        let mut nodes = std::mem::take(&mut left.below);
        nodes.extend(right.below);
        self.remove_entry(slab, at + 1);
        let half = if entries.len() > ENTRIES_MAX * 3 / 4 { entries.len() / 2 } else { entries.len() };
        let beyond = nodes.split_off(half.min(nodes.len()));
        *self.below[at] = Node::of(slab, &entries[..half], nodes);
        self.entries[at] = self.below[at].entry();
        self.renew(slab, at);
        if half < entries.len() {
            let right = Node::of(slab, &entries[half..], beyond);
            let entry = right.entry();
            // There is room for it: there were two before.
            self.insert_entry(slab, at + 1, entry, Some(Box::new(right)));
        }
    }

    /// This node as an entry of the one above. It has entries itself.
    fn entry(&self) -> Entry {
        Entry { first: self.entries[0].first, farthest: self.farthest() }
    }

    fn farthest(&self) -> u32 {
        self.entries[usize::from(self.reach[self.count - 1])].farthest
    }

    /// Moves the entries from here on. What reaches farthest among them is to be found anew.
    fn make_room(&mut self, at: usize) {
        let moved = at..self.count;
        self.starts.copy_within(moved.clone(), at + 1);
        self.ends.copy_within(moved.clone(), at + 1);
        self.entries.copy_within(moved, at + 1);
        self.count += 1;
    }

    /// Takes out an entry; the node that it is has gone already.
    fn remove_entry<T>(&mut self, slab: &Slab<T>, at: usize) {
        let moved = at + 1..self.count;
        self.starts.copy_within(moved.clone(), at);
        self.ends.copy_within(moved.clone(), at);
        self.entries.copy_within(moved, at);
        self.count -= 1;
        self.renew(slab, at);
    }

    /// Notes all numbers of this entry, which is another than before, and of those behind it, which may have
    /// moved, what reaches farthest.
    fn renew<T>(&mut self, slab: &Slab<T>, at: usize) {
        let [first, .., last] = self.entries() else { return self.cut_prefix(slab) };
        let first = slab.start(first.first);
        let shared = shared_bytes(first, slab.start(last.first));
        if first[..shared] != *self.prefix {
            return self.cut_prefix(slab);
        }
        if at < self.count {
            self.note_heads(slab, at);
        }
        self.note_reach(slab, at);
    }

    /// Finds what the starts have in common, and with it all numbers anew.
    fn cut_prefix<T>(&mut self, slab: &Slab<T>) {
        let (Some(first), Some(last)) = (self.entries().first(), self.entries().last()) else { return };
        let first = slab.start(first.first);
        self.prefix = first[..shared_bytes(first, slab.start(last.first))].into();
        (0..self.count).for_each(|at| self.note_heads(slab, at));
        self.note_reach(slab, 0);
    }

    /// The heads of an entry.
    fn note_heads<T>(&mut self, slab: &Slab<T>, at: usize) {
        let Entry { first, farthest } = self.entries[at];
        self.starts[at] = head(&slab.start(first)[self.prefix.len()..]);
        let end = slab.end(farthest).and_then(|end| end.strip_prefix(&*self.prefix));
        self.ends[at] = end.map_or(u128::MAX, head);
    }

    /// Finds what reaches farthest, from this entry on.
    fn note_reach<T>(&mut self, slab: &Slab<T>, from: usize) {
        let mut reach = if from == 0 { 0 } else { self.reach[from - 1].into() };
        for at in from..self.count {
            if self.reaches_past(slab, at, reach) {
                reach = at;
            }
            self.reach[at] = u8::try_from(reach).expect("a node has fewer entries than 256");
        }
    }

    /// Whether an entry reaches past another one.
    fn reaches_past<T>(&self, slab: &Slab<T>, at: usize, other: usize) -> bool {
        let (end, known) = (self.ends[at], self.ends[other]);
        let span = |at: usize| slab.end(self.entries[at].farthest);
        end > known || end == known && reaches_past(span(at), span(other))
    }
}

/// The first 16 bytes as a number. If two are in an order, so are the bytes; if they are equal, the bytes may
/// differ all the same: by what follows, or by zeros at the end.
fn head(bytes: &[u8]) -> u128 {
    match bytes.first_chunk() {
        Some(first) => u128::from_be_bytes(*first),
        None => {
            let mut padded = [0; 16];
            padded[..bytes.len()].copy_from_slice(bytes);
            u128::from_be_bytes(padded)
        }
    }
}

/// How many bytes two keys have in common.
fn shared_bytes(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
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
impl Node {
    /// How many there are from the root to a leaf.
    pub(super) fn levels(&self) -> usize {
        1 + self.below.first().map_or(0, |node| node.levels())
    }

    /// Compares every number with the keys that it stands for. Answers the spans at or below this node.
    pub(super) fn check<T>(&self, slab: &Slab<T>) -> Vec<u32> {
        let mut spans = Vec::new();
        for (at, entry) in self.entries().iter().enumerate() {
            let here = self.below.get(at).map_or(vec![entry.first], |node| node.check(slab));
            let is_behind = |span: &u32, other: u32| !reaches_past(slab.end(*span), slab.end(other));
            assert_eq!(here[0], entry.first);
            assert!(here.contains(&entry.farthest));
            assert!(here.iter().all(|span| is_behind(span, entry.farthest)));
            spans.extend(here);
            let reach = self.entries[usize::from(self.reach[at])].farthest;
            assert!(spans.contains(&reach) && spans.iter().all(|span| is_behind(span, reach)));
            let (start, end) = slab.bounds(entry.first);
            let start = start.strip_prefix(&*self.prefix).expect("all starts begin with it");
            assert_eq!(self.starts[at], head(start));
            assert!(end.is_none_or(|end| end.starts_with(&self.prefix) || *end > *self.prefix));
            let end = slab.end(entry.farthest).and_then(|end| end.strip_prefix(&*self.prefix));
            assert_eq!(self.ends[at], end.map_or(u128::MAX, head));
            let levels = |at: usize| self.below.get(at).map(|node| node.levels());
            assert_eq!(levels(at), levels(0), "all leaves are at one level");
        }
        let in_order = |pair: &[u32]| order(slab.bounds(pair[0]), slab.bounds(pair[1])).is_lt();
        assert!(spans.windows(2).all(in_order));
        if let (Some(first), Some(last)) = (self.entries().first(), self.entries().last()) {
            let first = slab.start(first.first);
            assert_eq!(first[..shared_bytes(first, slab.start(last.first))], *self.prefix);
        }
        spans
    }
}
