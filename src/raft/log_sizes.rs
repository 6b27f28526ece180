//! How many bytes the entries of a log have, from any index on: what remains of entries that are no longer in
//! memory, so that a log can be cut by its size.
//!
//! Entries are counted together in pieces of some size: it is known to within a piece where a number of bytes
//! ends, and a log of many small entries costs little.

use std::collections::VecDeque;

/// Entries are counted together up to so many bytes.
const PIECE_BYTES: u64 = 64 << 10;

/// The sizes of a log's entries.
#[derive(Debug, Default)]
pub(super) struct LogSizes {
    /// Oldest first; entries without gaps.
    pieces: VecDeque<Piece>,
}

#[derive(Debug)]
struct Piece {
    first: u64,
    last: u64,
    bytes: u64,
}

impl LogSizes {
    /// An entry was added at the end.
    pub(super) fn push(&mut self, index: u64, bytes: u64) {
        match self.pieces.back_mut() {
            Some(piece) if piece.bytes + bytes <= PIECE_BYTES => {
                piece.last = index;
                piece.bytes += bytes;
            }
            _ => self.pieces.push_back(Piece { first: index, last: index, bytes }),
        }
    }

    /// The last entry was taken back.
    pub(super) fn pop(&mut self, index: u64, bytes: u64) {
        let Some(piece) = self.pieces.back_mut().filter(|piece| piece.last == index) else { return };
        if piece.first == index {
            self.pieces.pop_back();
        } else {
            piece.last = index - 1;
            piece.bytes = piece.bytes.saturating_sub(bytes);
        }
    }

    /// The log was cut up to and including an entry. A piece that it lies in counts as a whole on.
    pub(super) fn cut(&mut self, to: u64) {
        while self.pieces.front().is_some_and(|piece| piece.last <= to) {
            self.pieces.pop_front();
        }
    }

    /// The last entry behind which the others have no more than so many bytes; 0 if all together have not.
    pub(super) fn end_of_rest(&self, bytes_max: u64) -> u64 {
        let mut bytes = 0u64;
        let fits = |piece: &&Piece| {
            bytes = bytes.saturating_add(piece.bytes);
            bytes <= bytes_max
        };
        let kept = self.pieces.iter().rev().take_while(fits).count();
        self.pieces.len().checked_sub(kept + 1).map_or(0, |last| self.pieces[last].last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sizes: &[u64]) -> LogSizes {
        let mut log = LogSizes::default();
        (1..).zip(sizes).for_each(|(index, bytes)| log.push(index, *bytes));
        log
    }

    #[test]
    fn large_entries_are_counted_one_by_one() {
        let mut log = of(&[PIECE_BYTES; 10]);
        assert_eq!(log.end_of_rest(3 * PIECE_BYTES), 7);
        assert_eq!(log.end_of_rest(3 * PIECE_BYTES - 1), 8);
        assert_eq!(log.end_of_rest(0), 10);
        assert_eq!(log.end_of_rest(10 * PIECE_BYTES), 0);
        log.cut(8);
        assert_eq!((log.end_of_rest(PIECE_BYTES), log.end_of_rest(2 * PIECE_BYTES)), (9, 0));
        log.pop(10, PIECE_BYTES);
        assert_eq!((log.end_of_rest(0), log.end_of_rest(PIECE_BYTES)), (9, 0));
    }

    #[test]
    fn small_entries_are_counted_together_and_never_too_few() {
        let sizes = [PIECE_BYTES / 8; 80];
        let log = of(&sizes);
        assert_eq!(log.pieces.len(), 10);
        for bytes_max in [0, PIECE_BYTES / 2, PIECE_BYTES, 4 * PIECE_BYTES + 1, 9 * PIECE_BYTES] {
            let end = log.end_of_rest(bytes_max) as usize;
            let rest: u64 = sizes[end..].iter().sum();
            assert!(rest <= bytes_max && rest + PIECE_BYTES > bytes_max, "{bytes_max}: {end}");
        }
    }

    #[test]
    fn what_is_taken_back_and_written_again_counts_once() {
        let mut log = of(&[1_000; 50]);
        (31..=50).rev().for_each(|index| log.pop(index, 1_000));
        (31..=50).for_each(|index| log.push(index, 1_000));
        assert_eq!(log.end_of_rest(50_000), 0);
        assert_eq!(log.end_of_rest(49_999), 50);
    }
}
