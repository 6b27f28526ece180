//! The words in which nodes ask each other what comes next of a watch.

use bytes::Bytes;
use prost::Message;

use crate::error::Error;
use crate::id::Revision;
use crate::machine::event::{Event, EventKind};
use crate::watch::{KeySpan, Revised, Selection};

/// What comes next of a watch?
#[derive(Clone, PartialEq, Message)]
pub struct WatchWords {
    /// The machine.
    #[prost(string, tag = "1")]
    pub machine: String,
    /// The next revision; 0: from now on.
    #[prost(uint64, tag = "2")]
    from: u64,
    /// The key, or the first that may be in the span.
    #[prost(bytes = "bytes", tag = "3")]
    start: Bytes,
    /// The first key past the span; none: to the last key.
    #[prost(bytes = "bytes", optional, tag = "4")]
    end: Option<Bytes>,
    /// Whether `start` is the only key.
    #[prost(bool, tag = "5")]
    key_only: bool,
    #[prost(bool, tag = "6")]
    puts: bool,
    #[prost(bool, tag = "7")]
    deletes: bool,
    /// How long the answer may wait for something to tell.
    #[prost(uint64, tag = "8")]
    pub wait_ms: u64,
}

impl WatchWords {
    /// Of a watch that has everything before `from`.
    pub fn new(machine: &str, selection: &Selection, from: Revision, wait_ms: u64) -> WatchWords {
        let (start, end, key_only) = match &selection.span {
            KeySpan::Key(key) => (key.clone(), None, true),
            KeySpan::Range { start, end } => (start.clone(), end.clone(), false),
        };
        WatchWords {
            machine: machine.to_owned(),
            from: from.0,
            start,
            end,
            key_only,
            puts: selection.takes(EventKind::Put),
            deletes: selection.takes(EventKind::Delete),
            wait_ms,
        }
    }

    /// Which events it is about.
    ///
    /// # Errors
    /// As of [`KeySpan`] and [`Selection`].
    pub fn selection(&self) -> Result<Selection, Error> {
        let span = match self.key_only {
            true => KeySpan::key(self.start.clone())?,
            false => KeySpan::range(self.start.clone(), self.end.clone())?,
        };
        Selection::new(span, self.puts, self.deletes)
    }

    /// The next revision; none: from now on.
    pub fn from(&self) -> Option<Revision> {
        (self.from > 0).then_some(Revision(self.from))
    }
}

/// What comes next of a watch.
#[derive(Clone, PartialEq, Message)]
pub struct WatchedWords {
    /// The revision that was asked for, or that came next when it began.
    #[prost(uint64, tag = "1")]
    begun: u64,
    #[prost(message, repeated, tag = "2")]
    revised: Vec<RevisedWords>,
    /// The revision after what is told here.
    #[prost(uint64, tag = "3")]
    next: u64,
    /// Whether that is all there was.
    #[prost(bool, tag = "4")]
    pub complete: bool,
}

#[derive(Clone, PartialEq, Message)]
struct RevisedWords {
    #[prost(uint64, tag = "1")]
    revision: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
    #[prost(uint64, tag = "3")]
    time_ms: u64,
    #[prost(message, repeated, tag = "4")]
    events: Vec<EventWords>,
}

#[derive(Clone, PartialEq, Message)]
struct EventWords {
    #[prost(bool, tag = "1")]
    delete: bool,
    #[prost(bytes = "bytes", tag = "2")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    value: Bytes,
    #[prost(uint32, tag = "4")]
    ordinal: u32,
}

impl WatchedWords {
    /// All events from `begun` up to, not including, `next` that the watch is about.
    pub fn new(begun: Revision, revised: Vec<Revised>, next: Revision, complete: bool) -> WatchedWords {
        let revised = revised.into_iter().map(RevisedWords::from).collect();
        WatchedWords { begun: begun.0, revised, next: next.0, complete }
    }

    /// The revision that was asked for, or that came next when it began.
    pub fn begun(&self) -> Revision {
        Revision(self.begun)
    }

    /// The revision after what is told here.
    pub fn next(&self) -> Revision {
        Revision(self.next)
    }

    /// The events.
    pub fn revised(self) -> impl Iterator<Item = Revised> {
        self.revised.into_iter().map(Revised::from)
    }
}

impl From<Revised> for RevisedWords {
    fn from(revised: Revised) -> RevisedWords {
        let Revised { revision, index, time_ms, events } = revised;
        let words = |event: Event| EventWords {
            delete: event.kind == EventKind::Delete,
            key: event.key,
            value: event.value,
            ordinal: event.ordinal,
        };
        RevisedWords { revision: revision.0, index, time_ms, events: events.into_iter().map(words).collect() }
    }
}

impl From<RevisedWords> for Revised {
    fn from(words: RevisedWords) -> Revised {
        let RevisedWords { revision, index, time_ms, events } = words;
        let revision = Revision(revision);
        let event = |words: EventWords| {
            let EventWords { delete, key, value, ordinal } = words;
            let kind = if delete { EventKind::Delete } else { EventKind::Put };
            Event { revision, ordinal, kind, key, value, index, time_ms }
        };
        Revised { revision, index, time_ms, events: events.into_iter().map(event).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_the_same_on_both_sides() {
        let spans = [
            KeySpan::key("k").unwrap(),
            KeySpan::prefix("k").unwrap(),
            KeySpan::range("k", None).unwrap(),
            KeySpan::all(),
        ];
        for span in spans {
            for (puts, deletes) in [(true, true), (true, false), (false, true)] {
                let selection = Selection::new(span.clone(), puts, deletes).unwrap();
                let words = WatchWords::new("m", &selection, Revision(7), 5);
                let back = WatchWords::decode(&*words.encode_to_vec()).unwrap();
                assert_eq!((back.selection().unwrap(), back.from()), (selection, Some(Revision(7))));
            }
        }
    }

    #[test]
    fn events_are_the_same_on_both_sides() {
        let event = |ordinal, kind| Event {
            revision: Revision(4),
            ordinal,
            kind,
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            index: 9,
            time_ms: 11,
        };
        let events = vec![event(1, EventKind::Put), event(3, EventKind::Delete)];
        let revised = Revised { revision: Revision(4), index: 9, time_ms: 11, events };
        let words = WatchedWords::new(Revision(2), vec![revised.clone()], Revision(6), true);
        let back = WatchedWords::decode(&*words.encode_to_vec()).unwrap();
        assert_eq!((back.begun(), back.next(), back.complete), (Revision(2), Revision(6), true));
        assert_eq!(back.revised().collect::<Vec<_>>(), [revised]);
    }
}
