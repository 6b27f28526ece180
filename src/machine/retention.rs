//! How much history is kept: where a leader cuts it, and which rows may then go.
//!
//! History is kept by number of revisions, by age in log time and by bytes of events, whichever is reached
//! first; the leader proposes the cut, so it falls at the same revision on all replicas. Cuts are of whole
//! rows, and are put off until an eighth more than what is to be kept has come together: so a cut takes a few
//! reads, and a machine that writes all the time is not cut all the time.
//!
//! Must never be asked to decide at apply time: what it finds depends on the clock of who asks.

use super::batch::Head;
use super::event::{self, RowHead};
use super::view::View;
use crate::error::Fault;
use crate::id::Revision;

/// What a leader finds when it looks at a machine's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Cut it: events before this revision need not be kept.
    Cut(Revision),
    /// It is within its bounds. If nothing happens to the machine, it is until this time of the log's clock.
    Within {
        /// Milliseconds since the Unix epoch; `u64::MAX`: there is no history.
        until_ms: u64,
    },
}

/// What is kept of a machine's history at a moment.
struct Bounds {
    /// Rows that begin before it are of too many revisions ago.
    first: Revision,
    /// Rows of before it are too old.
    since_ms: u64,
    /// Rows with so many bytes of events before them, or fewer, are too far back.
    after_bytes: u64,
}

impl Bounds {
    /// With `more` eighths more than what is to be kept.
    fn of(head: &Head, now_ms: u64, more: u64) -> Bounds {
        let kept = head.settings.in_force();
        let with_more = |kept: u64| kept.saturating_add((kept / 8).saturating_mul(more));
        let revisions = with_more(kept.history_revisions);
        Bounds {
            first: Revision(head.revision.next().0.saturating_sub(revisions)),
            since_ms: now_ms.saturating_sub(with_more(kept.history_ms)),
            after_bytes: head.event_bytes.saturating_sub(with_more(kept.history_bytes)),
        }
    }

    /// Whether all of a row may go, which ends where `next` begins.
    fn passes_over(&self, row: &RowHead, next: Revision) -> bool {
        next <= self.first || row.time_ms < self.since_ms || row.bytes_before < self.after_bytes
    }
}

/// Looks at the history of a machine that stands at `head`, with `view` as its tables, at `now_ms` of the
/// log's clock.
pub fn look(view: &dyn View, head: &Head, now_ms: u64) -> Result<Found, Fault> {
    let Some(first) = first_row(view, head)? else {
        return Ok(Found::Within { until_ms: u64::MAX });
    };
    if !passes_over(view, head, &first, &Bounds::of(head, now_ms, 1))? {
        let kept_ms = head.settings.in_force().history_ms;
        let until_ms = first.time_ms.saturating_add(kept_ms).saturating_add(kept_ms / 8).saturating_add(1);
        return Ok(Found::Within { until_ms });
    }
    let cut = first_kept(view, head, first, &Bounds::of(head, now_ms, 0))?;
    Ok(Found::Cut(cut))
}

/// The first row with events that are kept. Each revision has events, so a row ends where the next begins.
fn first_row(view: &dyn View, head: &Head) -> Result<Option<RowHead>, Fault> {
    let first = head.history_first;
    if first > head.revision {
        return Ok(None);
    }
    match event::row_holding(view, first)? {
        Some(row) => Ok(Some(row)),
        None => event::row_after(view, first),
    }
}

/// Whether all of a row may go.
fn passes_over(view: &dyn View, head: &Head, row: &RowHead, bounds: &Bounds) -> Result<bool, Fault> {
    let next = event::row_after(view, row.first)?.map_or(head.revision.next(), |next| next.first);
    Ok(bounds.passes_over(row, next))
}

/// The first revision of the first row that is kept, or the one that comes next if none is; found by halving,
/// as the rows that go are those before it. `low` may go.
fn first_kept(view: &dyn View, head: &Head, low: RowHead, bounds: &Bounds) -> Result<Revision, Fault> {
    // All rows up to the one that holds `gone` go; the one that begins with `kept` stays, if there is one.
    let (mut gone, mut kept) = (low.first, head.revision.next());
    while gone.next() < kept {
        let middle = Revision(gone.0 + (kept.0 - gone.0) / 2);
        match event::row_holding(view, middle)?.filter(|row| row.first > gone) {
            Some(row) if passes_over(view, head, &row, bounds)? => gone = middle,
            Some(row) => kept = row.first,
            // It is in the row of `gone`.
            None => gone = middle,
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::event::{EventKind, EventRows, row_key};
    use crate::machine::outcome::Context;
    use crate::machine::settings::Settings;
    use crate::machine::view::{MemoryView, Table};
    use proptest::prelude::*;

    /// A row: its first revision, its time, and the bytes before it.
    type Row = (u64, u64, u64);

    /// A machine after batches of so many revisions, each with a value of so many bytes, so many milliseconds
    /// apart; and its rows.
    fn machine(batches: &[(u8, u16, u16)], settings: Settings) -> (MemoryView, Head, Vec<Row>) {
        let (mut view, mut rows) = (MemoryView::default(), Vec::new());
        let mut head = Head { settings, ..Head::default() };
        let mut time_ms = 1_000_000;
        for &(revisions, bytes, later_ms) in batches {
            time_ms += u64::from(later_ms);
            let mut events = EventRows::after(head.event_bytes);
            for _ in 0..revisions {
                head.revision = head.revision.next();
                events.savepoint();
                let context = Context { index: 1, offset: 0, time: time_ms, revision: head.revision.0 };
                events.push(&context, EventKind::Put, b"k".to_vec(), vec![b'v'; usize::from(bytes)]);
            }
            let before = head.event_bytes;
            head.event_bytes = events.bytes();
            for (number, (key, row)) in events.into_rows().enumerate() {
                let first = u64::from_be_bytes(key[..].try_into().unwrap());
                let bytes_before = if number == 0 { before } else { u64::MAX };
                rows.push((first, time_ms, bytes_before));
                view.put(Table::Events, key, Some(row));
            }
        }
        (view, head, rows)
    }

    fn keep(revisions: u64, ms: u64, bytes: u64) -> Settings {
        Settings {
            history_revisions: Some(revisions),
            history_ms: Some(ms),
            history_bytes: Some(bytes),
            ..Settings::default()
        }
    }

    const LONG: u64 = 1 << 40;

    #[test]
    fn history_is_cut_by_each_of_its_bounds_and_only_well_over_it() {
        // Forty rows of one revision and about 100 bytes, ten milliseconds apart.
        let batches = [(1, 93, 10); 40];
        let look_at = |settings, later_ms| {
            let (view, head, rows) = machine(&batches, settings);
            look(&view, &head, rows[39].1 + later_ms).unwrap()
        };
        assert_eq!(look_at(keep(16, LONG, LONG), 0), Found::Cut(Revision(26)));
        assert_eq!(look_at(keep(36, LONG, LONG), 0), Found::Within { until_ms: 1_000_011 + LONG / 8 * 9 });
        assert_eq!(look_at(keep(LONG, 100, LONG), 0), Found::Cut(Revision(31)));
        assert!(matches!(look_at(keep(LONG, 360, LONG), 0), Found::Within { .. }));
        assert_eq!(look_at(keep(LONG, 100, LONG), 101), Found::Cut(Revision(42)));
        let Found::Cut(cut) = look_at(keep(LONG, LONG, 1_000), 0) else { panic!("it is over its bytes") };
        assert!((31..=33).contains(&cut.0), "{cut}");
        assert!(matches!(look_at(keep(LONG, LONG, 4_000), 0), Found::Within { .. }));
        assert_eq!(look_at(Settings::default(), 0), Found::Within { until_ms: 1_000_011 + 97_200_000 });
    }

    #[test]
    fn a_machine_without_history_is_left_alone_for_ever() {
        let (view, head, _) = machine(&[], keep(1, 1, 1));
        assert_eq!(look(&view, &head, LONG).unwrap(), Found::Within { until_ms: u64::MAX });
        let (view, mut head, _) = machine(&[(3, 10, 10)], keep(1, 1, 1));
        head.history_first = head.revision.next();
        assert_eq!(look(&view, &head, LONG).unwrap(), Found::Within { until_ms: u64::MAX });
    }

    proptest! {
        #[test]
        fn a_cut_takes_all_rows_that_are_over_the_bounds_and_no_other(
            batches in proptest::collection::vec((1..5_u8, 0..200_u16, 0..50_u16), 1..60),
            (revisions, ms, bytes) in (1..100_u64, 1..1_000_u64, 1..6_000_u64),
            (trimmed, later_ms) in (0..40_u64, 0..200_u64),
        ) {
            let (view, mut head, rows) = machine(&batches, keep(revisions, ms, bytes));
            head.history_first = Revision((trimmed + 1).min(head.revision.next().0));
            let now_ms = rows.last().unwrap().1 + later_ms;
            let next = |number: usize| rows.get(number + 1).map_or(head.revision.next().0, |row| row.0);
            let over = |number: usize, eighths: u64| {
                let more = |kept: u64| kept + kept / 8 * eighths;
                let (_, time_ms, bytes_before) = rows[number];
                next(number) + more(revisions) <= head.revision.next().0
                    || time_ms + more(ms) < now_ms
                    || bytes_before + more(bytes) < head.event_bytes
            };
            let kept = (0..rows.len()).find(|number| next(*number) > head.history_first.0);
            match (look(&view, &head, now_ms).unwrap(), kept) {
                (Found::Cut(cut), Some(first)) => {
                    prop_assert!(over(first, 1));
                    let due = (first..rows.len()).find(|number| !over(*number, 0));
                    prop_assert_eq!(cut.0, due.map_or(head.revision.next().0, |number| rows[number].0));
                }
                (Found::Cut(cut), None) => panic!("nothing is there, and {cut} is cut"),
                (Found::Within { until_ms }, Some(first)) => {
                    prop_assert!(!over(first, 1));
                    prop_assert_eq!(until_ms, rows[first].1 + ms + ms / 8 + 1);
                }
                (Found::Within { until_ms }, None) => prop_assert_eq!(until_ms, u64::MAX),
            }
        }
    }

    #[test]
    fn the_row_that_holds_the_first_kept_revision_stays() {
        let (view, head, rows) = machine(&[(3, 10, 10), (3, 10, 10)], Settings::default());
        assert_eq!((rows[0].0, rows[1].0, head.revision), (2, 5, Revision(7)));
        for (first, end) in [(1, 2), (2, 2), (4, 2), (5, 5), (7, 5), (8, 5)] {
            assert_eq!(
                event::rows_end(&view, Revision(first)).unwrap(),
                Some(row_key(Revision(end)).to_vec())
            );
        }
    }
}
