//! Inputs of a resident machine whose fate is known: whoever makes its instance again passes over them.
//!
//! Each is a row of `Table::Head`, written with the batch that it belongs to. So what a replay passes over is
//! what was passed over at first, whichever entry of the log the verdict came with, and no input is found to
//! trap twice. The rows are a function of the log, and so part of the hash chain. Those that a snapshot
//! covers are dropped by the node, which must never drop others.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::outcome::HostCode;
use super::view::{Direction, Span, Table, View};
use crate::error::{Fault, REPAIR};
use crate::id::Index;

/// Inputs of one batch, by offset, with what became of them.
pub type Settled = BTreeMap<u32, HostCode>;

/// What comes before an input's index and offset, both big-endian, in the key of its row.
const PREFIX: &[u8] = b"settled/";

/// The row of one input: key and value.
pub fn row(index: Index, offset: u32, code: HostCode) -> (Vec<u8>, Bytes) {
    let key = [PREFIX, &index.0.to_be_bytes(), &offset.to_be_bytes()].concat();
    (key, Bytes::from(vec![code as u8]))
}

/// All inputs of the batches after `after`.
pub fn read(view: &dyn View, after: Index) -> Result<BTreeMap<Index, Settled>, Fault> {
    let mut settled: BTreeMap<Index, Settled> = BTreeMap::new();
    let mut broken = false;
    let start = [PREFIX, &after.0.saturating_add(1).to_be_bytes()].concat();
    let span = Span { start: &start, end: Some(b"settled0") };
    view.scan(Table::Head, span, Direction::Forward, &mut |key, value| match parse(key, value) {
        Some((index, offset, code)) => {
            settled.entry(index).or_default().insert(offset, code);
            ControlFlow::Continue(())
        }
        None => {
            broken = true;
            ControlFlow::Break(())
        }
    })?;
    if broken {
        return Err(Fault::new(format!("a row of settled inputs is damaged. {REPAIR}")));
    }
    Ok(settled)
}

/// The keys of the rows that a snapshot at `index` covers.
pub fn keys_up_to(view: &dyn View, index: Index) -> Result<Vec<Vec<u8>>, Fault> {
    let mut keys = Vec::new();
    let end = [PREFIX, &index.0.saturating_add(1).to_be_bytes()].concat();
    let span = Span { start: PREFIX, end: Some(&end) };
    view.scan(Table::Head, span, Direction::Forward, &mut |key, _| {
        keys.push(key.to_vec());
        ControlFlow::Continue(())
    })?;
    Ok(keys)
}

fn parse(key: &[u8], value: &[u8]) -> Option<(Index, u32, HostCode)> {
    let (index, offset) = key.strip_prefix(PREFIX)?.split_at_checked(8)?;
    let code = match value {
        [1] => HostCode::Trapped,
        [2] => HostCode::Exhausted,
        _ => return None,
    };
    let index = Index(u64::from_be_bytes(index.try_into().ok()?));
    Some((index, u32::from_be_bytes(offset.try_into().ok()?), code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::view::MemoryView;

    fn view_of(rows: &[(u64, u32, HostCode)]) -> MemoryView {
        let mut view = MemoryView::default();
        view.put(Table::Head, b"head".to_vec(), Some(Bytes::from_static(b"not a settled input")));
        view.put(Table::Head, b"settler".to_vec(), Some(Bytes::from_static(b"neither")));
        for &(index, offset, code) in rows {
            let (key, value) = row(Index(index), offset, code);
            view.put(Table::Head, key, Some(value));
        }
        view
    }

    #[test]
    fn rows_read_back_from_where_they_are_asked_for() {
        let view =
            view_of(&[(3, 0, HostCode::Trapped), (300, 7, HostCode::Exhausted), (300, 1, HostCode::Trapped)]);
        let all = read(&view, Index(0)).unwrap();
        assert_eq!(all[&Index(3)], Settled::from([(0, HostCode::Trapped)]));
        assert_eq!(all[&Index(300)], Settled::from([(1, HostCode::Trapped), (7, HostCode::Exhausted)]));
        assert_eq!(read(&view, Index(3)).unwrap().len(), 1);
        assert!(read(&view, Index(u64::MAX)).unwrap().is_empty());
    }

    #[test]
    fn a_snapshot_covers_the_rows_up_to_its_index() {
        let view = view_of(&[(3, 0, HostCode::Trapped), (4, 0, HostCode::Trapped)]);
        assert_eq!(keys_up_to(&view, Index(3)).unwrap(), [row(Index(3), 0, HostCode::Trapped).0]);
    }

    #[test]
    fn a_damaged_row_is_a_fault() {
        let mut view = view_of(&[]);
        view.put(Table::Head, row(Index(1), 0, HostCode::Trapped).0, Some(Bytes::from_static(&[9])));
        assert!(read(&view, Index(0)).is_err());
    }
}
