//! Watches as messages, and messages as watches.

use super::convert::odd;
use super::v1::{self, create_watch};
use crate::error::Error;
use crate::id::{Index, LogTime, Revision};
use crate::machine::event::EventKind;
use crate::node::request::{KeySpan, Selection, WatchEvent, WatchEvents, WatchSpec};

/// About this much of the events of a revision goes into one message.
const FRAGMENT_BYTES: usize = 1 << 20;

/// Room for the fields of an event beside its key and values.
const EVENT_BYTES: usize = 16;

impl TryFrom<v1::CreateWatch> for WatchSpec {
    type Error = Error;

    fn try_from(create: v1::CreateWatch) -> Result<WatchSpec, Error> {
        let span = match create.keys {
            None => KeySpan::all(),
            Some(create_watch::Keys::Key(key)) => KeySpan::key(key)?,
            Some(create_watch::Keys::Prefix(prefix)) => KeySpan::prefix(prefix)?,
            Some(create_watch::Keys::Range(v1::KeyRange { start, end })) => KeySpan::range(start, end)?,
        };
        Ok(WatchSpec {
            selection: Selection::new(span, !create.no_puts, !create.no_deletes)?,
            from: (create.from_revision > 0).then_some(Revision(create.from_revision)),
            progress: create.progress,
            previous: create.previous,
        })
    }
}

/// The message that asks for a watch.
pub fn create(id: u64, machine: &str, spec: &WatchSpec) -> v1::CreateWatch {
    let keys = match spec.selection.span.clone() {
        KeySpan::Key(key) => create_watch::Keys::Key(key),
        KeySpan::Range { start, end } => create_watch::Keys::Range(v1::KeyRange { start, end }),
    };
    v1::CreateWatch {
        id,
        machine: machine.into(),
        keys: Some(keys),
        from_revision: spec.from.unwrap_or_default().0,
        no_puts: !spec.selection.takes(EventKind::Put),
        no_deletes: !spec.selection.takes(EventKind::Delete),
        previous: spec.previous,
        progress: spec.progress,
    }
}

/// The messages of a revision: one, or several if it is large.
pub fn fragments(told: WatchEvents) -> Vec<v1::WatchEvents> {
    let WatchEvents { revision, index, time, events } = told;
    let mut messages: Vec<v1::WatchEvents> = Vec::with_capacity(1);
    let mut bytes = 0;
    for event in events {
        let previous = event.previous.as_ref().map_or(0, |previous| previous.len());
        let size = event.key.len() + event.value.len() + previous + EVENT_BYTES;
        match messages.last_mut() {
            Some(message) if bytes + size <= FRAGMENT_BYTES => message.events.push(event.into()),
            before => {
                if let Some(before) = before {
                    before.more = true;
                }
                bytes = 0;
                messages.push(v1::WatchEvents {
                    revision: revision.0,
                    index: index.0,
                    time_ms: time.0,
                    events: vec![event.into()],
                    more: false,
                });
            }
        }
        bytes += size;
    }
    messages
}

impl From<WatchEvent> for v1::WatchEvent {
    fn from(event: WatchEvent) -> v1::WatchEvent {
        let kind = match event.kind {
            EventKind::Put => v1::EventKind::Put,
            EventKind::Delete => v1::EventKind::Delete,
        };
        v1::WatchEvent { kind: kind.into(), key: event.key, value: event.value, previous: event.previous }
    }
}

impl TryFrom<v1::WatchEvent> for WatchEvent {
    type Error = Error;

    fn try_from(event: v1::WatchEvent) -> Result<WatchEvent, Error> {
        let kind = match v1::EventKind::try_from(event.kind) {
            Ok(v1::EventKind::Put) => EventKind::Put,
            Ok(v1::EventKind::Delete) => EventKind::Delete,
            Ok(v1::EventKind::Unspecified) | Err(_) => {
                return Err(odd(format_args!("an event of the kind {}", event.kind)));
            }
        };
        Ok(WatchEvent { kind, key: event.key, value: event.value, previous: event.previous })
    }
}

/// The revisions of a watch, put together from their messages.
#[derive(Default)]
pub struct Fragments {
    begun: Option<WatchEvents>,
}

impl Fragments {
    /// Takes a message; answers the revision, if this was the last of it.
    ///
    /// # Errors
    /// The messages do not go together.
    pub fn take(&mut self, message: v1::WatchEvents) -> Result<Option<WatchEvents>, Error> {
        let v1::WatchEvents { revision, index, time_ms, events, more } = message;
        let (revision, index, time) = (Revision(revision), Index(index), LogTime(time_ms));
        let mut told =
            self.begun.take().unwrap_or_else(|| WatchEvents { revision, index, time, events: Vec::new() });
        if told.revision != revision {
            return Err(odd(format_args!("events of revision {revision} in the midst of {}", told.revision)));
        }
        for event in events {
            told.events.push(event.try_into()?);
        }
        if more {
            self.begun = Some(told);
            return Ok(None);
        }
        Ok(Some(told))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn told(sizes: &[usize]) -> WatchEvents {
        let event = |(number, size): (usize, &usize)| WatchEvent {
            kind: if number % 2 == 0 { EventKind::Put } else { EventKind::Delete },
            key: Bytes::from(number.to_string()),
            value: vec![b'v'; *size].into(),
            previous: (number % 3 == 0).then(|| Bytes::from_static(b"before")),
        };
        let events = sizes.iter().enumerate().map(event).collect();
        WatchEvents { revision: Revision(4), index: Index(7), time: LogTime(9), events }
    }

    #[test]
    fn a_large_revision_goes_in_fragments_that_are_marked_and_comes_back_whole() {
        const KIB: usize = 1 << 10;
        for (sizes, fragments_due) in [
            (vec![0], 1),
            (vec![10; 100], 1),
            (vec![400 * KIB; 5], 3),
            (vec![2_048 * KIB, 1, 2_048 * KIB], 3),
        ] {
            let told = told(&sizes);
            let messages = fragments(told.clone());
            assert_eq!(messages.len(), fragments_due, "{sizes:?}");
            let marks: Vec<bool> = messages.iter().map(|message| message.more).collect();
            assert!(marks[..marks.len() - 1].iter().all(|more| *more) && !marks[marks.len() - 1]);
            let mut back = Fragments::default();
            let whole: Vec<_> =
                messages.into_iter().filter_map(|message| back.take(message).unwrap()).collect();
            assert_eq!(whole, [told]);
        }
    }

    #[test]
    fn revisions_that_are_mixed_up_are_noticed() {
        let mut fragments = Fragments::default();
        let message = |revision, more| v1::WatchEvents { revision, more, ..v1::WatchEvents::default() };
        assert!(fragments.take(message(2, true)).unwrap().is_none());
        assert!(matches!(fragments.take(message(3, false)), Err(Error::Invalid(_))));
    }

    #[test]
    fn a_watch_is_the_same_on_both_sides() {
        for span in [KeySpan::key("").unwrap(), KeySpan::prefix("a").unwrap(), KeySpan::all()] {
            let selection = Selection::new(span, true, false).unwrap();
            let spec = WatchSpec { selection, from: Some(Revision(3)), progress: true, previous: true };
            assert_eq!(WatchSpec::try_from(create(1, "m", &spec)).unwrap(), spec);
        }
        let all = v1::CreateWatch::default();
        assert_eq!(WatchSpec::try_from(all).unwrap(), WatchSpec::of(KeySpan::all()));
    }
}
