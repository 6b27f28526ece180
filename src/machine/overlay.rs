//! What the inputs of a batch have written so far, over the view they started from, with a savepoint per
//! input.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::iter::{Peekable, Rev};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use super::view::{Direction, Span, Table, View, Visitor};
use crate::error::Fault;

/// A row as a batch leaves it: a value, or gone.
type Row = Option<Bytes>;

/// One write of a batch: the last one to its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The table.
    pub table: Table,
    /// The key within the table.
    pub key: Vec<u8>,
    /// The new value; `None` deletes.
    pub value: Option<Bytes>,
}

/// The writes of a batch in memory, over an immutable base.
pub struct Overlay {
    base: Arc<dyn View>,
    /// Indexed by the number of the table.
    rows: [BTreeMap<Vec<u8>, Row>; Table::ALL.len()],
    /// How to take back what was written since the savepoint, newest last. The inner `None`: the overlay had
    /// no row.
    undo: Vec<(Table, Vec<u8>, Option<Row>)>,
}

impl Overlay {
    /// An empty overlay over `base`.
    pub fn over(base: Arc<dyn View>) -> Overlay {
        Overlay { base, rows: Default::default(), undo: Vec::new() }
    }

    /// The value of `key` as the writes so far have it.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        match self.rows[table as usize].get(key) {
            Some(row) => Ok(row.clone()),
            None => Ok(self.base.get(table, key)?.map(Bytes::from)),
        }
    }

    /// Writes or deletes one row.
    pub fn put(&mut self, table: Table, key: Vec<u8>, value: Option<Bytes>) {
        let former = self.rows[table as usize].insert(key.clone(), value);
        self.undo.push((table, key, former));
    }

    /// From here on, [`rollback`](Overlay::rollback) takes back only what follows.
    pub fn savepoint(&mut self) {
        self.undo.clear();
    }

    /// Takes back everything since the savepoint.
    pub fn rollback(&mut self) {
        while let Some((table, key, former)) = self.undo.pop() {
            match former {
                Some(row) => self.rows[table as usize].insert(key, row),
                None => self.rows[table as usize].remove(&key),
            };
        }
    }

    /// What was written since the savepoint: the last write to each key, by table and key.
    pub fn since_savepoint(&self) -> Vec<Write> {
        let mut keys: Vec<(Table, &[u8])> =
            self.undo.iter().map(|(table, key, _)| (*table, key.as_slice())).collect();
        keys.sort_unstable();
        keys.dedup();
        let last = |table: Table, key: &[u8]| self.rows[table as usize].get(key).cloned().flatten();
        keys.into_iter()
            .map(|(table, key)| Write { table, key: key.to_vec(), value: last(table, key) })
            .collect()
    }

    /// Visits the pairs of `span` until the visitor breaks.
    pub fn scan(
        &self,
        table: Table,
        span: Span,
        direction: Direction,
        visit: &mut Visitor,
    ) -> Result<(), Fault> {
        if span.end.is_some_and(|end| end <= span.start) {
            return Ok(());
        }
        let mut own = Own::of(&self.rows[table as usize], span, direction);
        let mut ended = false;
        self.base.scan(table, span, direction, &mut |key, value| {
            // Rows of the overlay that come before this key go first; one at the key hides it.
            while let Some((own_key, row)) = own.next_up_to(key) {
                let hides = own_key == key;
                if let Some(row) = row
                    && visit(own_key, row).is_break()
                {
                    ended = true;
                    return ControlFlow::Break(());
                }
                if hides {
                    return ControlFlow::Continue(());
                }
            }
            let flow = visit(key, value);
            ended = flow.is_break();
            flow
        })?;
        while let Some((key, row)) = own.next().filter(|_| !ended) {
            if let Some(row) = row {
                ended = visit(key, row).is_break();
            }
        }
        Ok(())
    }

    /// All writes, by table and key.
    pub fn into_writes(self) -> Vec<Write> {
        let tables = Table::ALL.into_iter().zip(self.rows);
        tables
            .flat_map(|(table, rows)| rows.into_iter().map(move |(key, value)| Write { table, key, value }))
            .collect()
    }
}

/// The overlay's own rows of a span, in the direction of a scan.
enum Own<'a> {
    Forward(Peekable<Range<'a, Vec<u8>, Row>>),
    Backward(Peekable<Rev<Range<'a, Vec<u8>, Row>>>),
}

impl<'a> Own<'a> {
    fn of(rows: &'a BTreeMap<Vec<u8>, Row>, span: Span, direction: Direction) -> Own<'a> {
        let end = span.end.map_or(Bound::Unbounded, Bound::Excluded);
        let range = rows.range::<[u8], _>((Bound::Included(span.start), end));
        match direction {
            Direction::Forward => Own::Forward(range.peekable()),
            Direction::Backward => Own::Backward(range.rev().peekable()),
        }
    }

    fn next(&mut self) -> Option<(&'a [u8], &'a Row)> {
        let pair = match self {
            Own::Forward(range) => range.next(),
            Own::Backward(range) => range.next(),
        };
        pair.map(|(key, row)| (key.as_slice(), row))
    }

    /// The next row, if it comes no later than `key` in the scan's order.
    fn next_up_to(&mut self, key: &[u8]) -> Option<(&'a [u8], &'a Row)> {
        let pair = match self {
            Own::Forward(range) => range.next_if(|(own, _)| own.as_slice() <= key),
            Own::Backward(range) => range.next_if(|(own, _)| own.as_slice() >= key),
        };
        pair.map(|(key, row)| (key.as_slice(), row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::view::MemoryView;
    use proptest::prelude::*;

    fn all(overlay: &Overlay, span: Span, direction: Direction) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut pairs = Vec::new();
        overlay
            .scan(Table::Store, span, direction, &mut |key, value| {
                pairs.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            })
            .unwrap();
        pairs
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, Option<u8>),
        Savepoint,
        Rollback,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (0..12u8, proptest::option::of(any::<u8>())).prop_map(|(k, v)| Step::Put(k, v)),
            1 => Just(Step::Savepoint),
            1 => Just(Step::Rollback),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn behaves_like_a_map_with_savepoints(
            base in proptest::collection::btree_map(0..12u8, any::<u8>(), 0..8),
            steps in steps(),
            (start, end) in (0..13u8, proptest::option::of(0..13u8)),
        ) {
            let mut model: BTreeMap<u8, u8> = base.clone();
            let mut saved = model.clone();
            let mut view = MemoryView::default();
            for (key, value) in base {
                view.put(Table::Store, vec![key], Some(Bytes::from(vec![value])));
            }
            let mut overlay = Overlay::over(Arc::new(view));
            for step in steps {
                match step {
                    Step::Put(key, value) => {
                        overlay.put(Table::Store, vec![key], value.map(|v| Bytes::from(vec![v])));
                        match value { Some(v) => model.insert(key, v), None => model.remove(&key) };
                    }
                    Step::Savepoint => { overlay.savepoint(); saved = model.clone(); }
                    Step::Rollback => { overlay.rollback(); model = saved.clone(); }
                }
            }
            let end_key = end.map(|e| vec![e]);
            let span = Span { start: &[start], end: end_key.as_deref() };
            let mut expected: Vec<_> = model
                .iter()
                .filter(|(k, _)| **k >= start && end.is_none_or(|e| **k < e))
                .map(|(k, v)| (vec![*k], vec![*v]))
                .collect();
            prop_assert_eq!(all(&overlay, span, Direction::Forward), expected.clone());
            expected.reverse();
            prop_assert_eq!(all(&overlay, span, Direction::Backward), expected);
            for key in 0..12u8 {
                let found = overlay.get(Table::Store, &[key]).unwrap().map(|v| v[0]);
                prop_assert_eq!(found, model.get(&key).copied());
            }
        }
    }
}
