//! Which events a watch is about: a key or a span of keys, puts, deletes or both.
//!
//! Promises: a selection that exists makes sense: its span is not empty, and it asks for some kind of event.

use bytes::Bytes;

use crate::error::Error;
use crate::machine::event::{Event, EventKind};
use crate::machine::frame::limits::KEY_BYTES_MAX;

/// The keys that a watch is about. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySpan {
    /// One key.
    Key(Bytes),
    /// From a key up to, not including, another; without an end, to the last key.
    Range {
        /// The first key that may be in it.
        start: Bytes,
        /// The first key past it.
        end: Option<Bytes>,
    },
}

impl KeySpan {
    /// One key.
    ///
    /// # Errors
    /// `TooLarge`: no key can be so long.
    pub fn key(key: impl Into<Bytes>) -> Result<KeySpan, Error> {
        Ok(KeySpan::Key(checked("key", key.into())?))
    }

    /// All keys that begin with `prefix`; all keys, if it is empty.
    ///
    /// # Errors
    /// `TooLarge`: no key can be so long.
    pub fn prefix(prefix: impl Into<Bytes>) -> Result<KeySpan, Error> {
        let start = checked("prefix", prefix.into())?;
        let end = end_of_prefix(&start).map(Bytes::from);
        Ok(KeySpan::Range { start, end })
    }

    /// From `start` up to, not including, `end`; without one, to the last key.
    ///
    /// # Errors
    /// `Invalid` if no key can be in it, `TooLarge` if no key can be so long.
    pub fn range(start: impl Into<Bytes>, end: Option<Bytes>) -> Result<KeySpan, Error> {
        let start = checked("start", start.into())?;
        let end = end.map(|end| checked("end", end)).transpose()?;
        if let Some(end) = end.as_ref().filter(|end| **end <= start) {
            let what = if *end == start { "empty" } else { "inverted" };
            return Err(Error::Invalid(format!(
                "the span from \"{}\" to \"{}\" is {what}: its end must come after its start in the order of \
                 bytes; leave the end out to watch all keys from the start on",
                start.escape_ascii(),
                end.escape_ascii()
            )));
        }
        Ok(KeySpan::Range { start, end })
    }

    /// All keys.
    pub fn all() -> KeySpan {
        KeySpan::Range { start: Bytes::new(), end: None }
    }

    /// Whether `key` is in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            KeySpan::Key(only) => only == key,
            KeySpan::Range { start, end } => **start <= *key && end.as_ref().is_none_or(|end| *key < **end),
        }
    }
}

/// The first key past those that begin with `prefix`: the last byte that can be counted up is, and those
/// behind it go. `None`: there is no such key.
pub(super) fn end_of_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

fn checked(what: &str, key: Bytes) -> Result<Bytes, Error> {
    if key.len() <= KEY_BYTES_MAX {
        return Ok(key);
    }
    Err(Error::TooLarge(format!(
        "the {what} of the watch has {} bytes, and a key at most {KEY_BYTES_MAX}: watch a shorter one",
        key.len()
    )))
}

/// Which events a watch is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Of these keys.
    pub span: KeySpan,
    puts: bool,
    deletes: bool,
}

impl Selection {
    /// All events of these keys.
    pub fn of(span: KeySpan) -> Selection {
        Selection { span, puts: true, deletes: true }
    }

    /// The events of these keys of the kinds that are asked for.
    ///
    /// # Errors
    /// `Invalid` if that is none.
    pub fn new(span: KeySpan, puts: bool, deletes: bool) -> Result<Selection, Error> {
        if !puts && !deletes {
            let text = "a watch without puts and without deletes would see nothing: leave one of them in";
            return Err(Error::Invalid(text.into()));
        }
        Ok(Selection { span, puts, deletes })
    }

    /// Whether events of this kind are asked for.
    pub fn takes(&self, kind: EventKind) -> bool {
        match kind {
            EventKind::Put => self.puts,
            EventKind::Delete => self.deletes,
        }
    }

    /// Whether the watch is about this event.
    pub fn matches(&self, event: &Event) -> bool {
        self.takes(event.kind) && self.span.contains(&event.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_the_keys_that_begin_with_it_and_no_others() {
        let prefix = |bytes: &'static [u8]| KeySpan::prefix(bytes).unwrap();
        for (span, inside, outside) in [
            (prefix(b"ab"), &[&b"ab"[..], b"ab\xff\xff"][..], &[&b"aa\xff"[..], b"ac", b"a", b""][..]),
            (prefix(b"a\xff"), &[b"a\xff", b"a\xff\xff"], &[b"a\xfe", b"b"]),
            (prefix(b"\xff\xff"), &[b"\xff\xff", b"\xff\xff\xff"], &[b"\xff", b"\xff\xfe\xff"]),
            (prefix(b""), &[b"", b"\xff\xff"], &[]),
        ] {
            assert!(inside.iter().all(|key| span.contains(key)), "{span:?}");
            assert!(!outside.iter().any(|key| span.contains(key)), "{span:?}");
        }
        assert_eq!(prefix(b""), KeySpan::all());
    }

    #[test]
    fn a_span_without_keys_is_refused_and_named() {
        let told = |start: &'static str, end: &'static str| {
            let error = KeySpan::range(start, Some(end.into())).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)));
            error.to_string()
        };
        let text = told("b", "a");
        assert!(text.contains("inverted") && text.contains("\"b\"") && text.contains("\"a\""), "{text}");
        assert!(told("b", "b").contains("empty"));
        assert!(KeySpan::range("a", Some("b".into())).unwrap().contains(b"a\xff"));
        assert!(KeySpan::range("a", None).unwrap().contains(b"\xff"));
        let long = KeySpan::key(vec![b'k'; KEY_BYTES_MAX + 1]).unwrap_err();
        assert!(matches!(&long, Error::TooLarge(text) if text.contains("65537") && text.contains("65536")));
    }

    #[test]
    fn a_watch_that_asks_for_no_kind_of_event_is_refused() {
        assert!(matches!(Selection::new(KeySpan::all(), false, false), Err(Error::Invalid(_))));
        let puts = Selection::new(KeySpan::all(), true, false).unwrap();
        assert!(puts.takes(EventKind::Put) && !puts.takes(EventKind::Delete));
    }
}
