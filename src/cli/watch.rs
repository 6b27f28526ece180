//! `statehouse watch`: what happens to the keys of a machine, a line an event.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use bytes::Bytes;
use clap::{ArgGroup, Args};
use prost::Message;
use serde_json::{Value, json};
use statehouse_kv::messages::KeyValue;

use super::{Global, output};
use crate::client::Client;
use crate::id::Revision;
use crate::machine::event::EventKind;
use crate::node::request::{KeySpan, Selection, WatchEvent, WatchEvents, WatchSpec, Watched};

/// The module whose values we know.
const KV: &str = "builtin:kv";

/// Watch a machine: a line for each event, as it happens or from any revision that is kept
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("keys"))]
#[command(after_help = "A line has the revision, put or delete, the key and the value. Without --key, \
        --prefix or --span all keys are\nwatched. Goes on at another of the --endpoints when a node fails, \
        without losing an event.\n\n\
        Examples:\n  \
        statehouse watch kv\n  \
        statehouse watch kv --prefix user/ --from 2 --json\n  \
        statehouse watch kv --key colour --prev --limit 1\n  \
        statehouse watch notes --span a m --no-deletes")]
pub struct Watch {
    /// The machine
    #[arg(value_name = "NAME")]
    machine: String,
    /// Only this key
    #[arg(long, group = "keys")]
    key: Option<OsString>,
    /// Only keys that begin with this
    #[arg(long, group = "keys")]
    prefix: Option<OsString>,
    /// Only keys from the first up to, not including, the second
    #[arg(long, group = "keys", num_args = 2, value_names = ["START", "END"])]
    span: Option<Vec<OsString>>,
    /// Begin with this revision instead of the next one
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(u64).range(1..))]
    from: Option<u64>,
    /// Say now and then, when nothing happens, up to which revision everything was shown
    #[arg(long)]
    progress: bool,
    /// Leave out new values
    #[arg(long)]
    no_puts: bool,
    /// Leave out keys that are gone
    #[arg(long)]
    no_deletes: bool,
    /// Show the value before, too; for machines of builtin:kv
    #[arg(long)]
    prev: bool,
    /// End after so many events
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

impl Watch {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let mut watch = client.watch(&self.machine, self.spec()?).await?;
        let shown_as = Shape { kv: runs_kv(&client, &self.machine).await?, json: global.json };
        let mut left = self.limit.unwrap_or(u64::MAX);
        while left > 0 {
            match watch.next().await? {
                Watched::Events(told) => left -= shown_as.show(&told, left)?,
                Watched::Progress(revision) => shown_as.show_progress(revision)?,
            }
        }
        Ok(())
    }

    fn spec(&self) -> anyhow::Result<WatchSpec> {
        let bytes = |text: &OsString| Bytes::from(text.clone().into_vec());
        let span = match (&self.key, &self.prefix, self.span.as_deref()) {
            (Some(key), ..) => KeySpan::key(bytes(key))?,
            (_, Some(prefix), _) => KeySpan::prefix(bytes(prefix))?,
            (.., Some([start, end])) => KeySpan::range(bytes(start), Some(bytes(end)))?,
            _ => KeySpan::all(),
        };
        Ok(WatchSpec {
            selection: Selection::new(span, !self.no_puts, !self.no_deletes)?,
            from: self.from.map(Revision),
            progress: self.progress,
            previous: self.prev,
        })
    }
}

async fn runs_kv(client: &Client, machine: &str) -> anyhow::Result<bool> {
    let module = client.machine(machine).await?.module;
    Ok(client.module(module).await?.label == KV)
}

/// How events are shown.
struct Shape {
    /// Values are encoded `KeyValue`s.
    kv: bool,
    json: bool,
}

impl Shape {
    /// Shows at most `limit` events of a revision; answers how many it showed.
    fn show(&self, told: &WatchEvents, limit: u64) -> anyhow::Result<u64> {
        let events = told.events.iter().take(usize::try_from(limit).unwrap_or(usize::MAX));
        let mut shown = 0;
        for event in events {
            if self.json {
                output::json(&self.event_json(told, event)?)?;
            } else {
                output::line(self.event_line(told.revision, event)?)?;
            }
            shown += 1;
        }
        Ok(shown)
    }

    fn show_progress(&self, revision: Revision) -> anyhow::Result<()> {
        match self.json {
            true => output::json(&json!({ "progress": revision.0 }))?,
            false => output::line(format_args!("{revision}\tprogress"))?,
        }
        Ok(())
    }

    fn event_line(&self, revision: Revision, event: &WatchEvent) -> anyhow::Result<String> {
        let mut cells = vec![revision.to_string(), kind(event.kind).into(), output::printable(&event.key)];
        if event.kind == EventKind::Put {
            cells.push(output::printable(&self.value(&event.value)?));
        }
        if let Some(previous) = &event.previous {
            cells.push(format!("before: {}", output::printable(&self.value(previous)?)));
        }
        Ok(cells.join("\t"))
    }

    fn value(&self, value: &Bytes) -> anyhow::Result<Bytes> {
        match self.kv {
            true => Ok(KeyValue::decode(value.clone())?.value.into()),
            false => Ok(value.clone()),
        }
    }

    fn event_json(&self, told: &WatchEvents, event: &WatchEvent) -> anyhow::Result<Value> {
        let mut value = json!({
            "revision": told.revision.0,
            "index": told.index.0,
            "time_ms": told.time.0,
            "type": kind(event.kind),
            "key": output::bytes_json(&event.key),
        });
        if event.kind == EventKind::Put || !self.kv {
            self.add_value(&mut value, &event.value)?;
        }
        if let Some(previous) = &event.previous {
            let mut before = json!({});
            self.add_value(&mut before, previous)?;
            value["previous"] = before;
        }
        Ok(value)
    }

    fn add_value(&self, to: &mut Value, value: &Bytes) -> anyhow::Result<()> {
        if !self.kv {
            to["value"] = output::bytes_json(value);
            return Ok(());
        }
        let pair = KeyValue::decode(value.clone())?;
        to["value"] = output::bytes_json(&pair.value);
        to["create_revision"] = json!(pair.create_revision);
        to["mod_revision"] = json!(pair.mod_revision);
        to["version"] = json!(pair.version);
        to["lease"] = json!(pair.lease);
        Ok(())
    }
}

fn kind(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Put => "put",
        EventKind::Delete => "delete",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Index, LogTime};

    fn told(kind: EventKind, value: &[u8], previous: Option<&[u8]>) -> WatchEvents {
        let (key, value) = (Bytes::from_static(b"a\tb"), Bytes::copy_from_slice(value));
        let previous = previous.map(Bytes::copy_from_slice);
        let events = vec![WatchEvent { kind, key, value, previous }];
        WatchEvents { revision: Revision(4), index: Index(9), time: LogTime(11), events }
    }

    #[test]
    fn events_of_any_machine_are_a_line_or_an_object() {
        let told = told(EventKind::Put, b"x\xff", None);
        let shape = Shape { kv: false, json: false };
        assert_eq!(shape.event_line(told.revision, &told.events[0]).unwrap(), "4\tput\ta\\tb\tx\\xff");
        let due = json!({
            "revision": 4, "index": 9, "time_ms": 11, "type": "put", "key": "a\tb", "value": {"hex": "78ff"},
        });
        assert_eq!(shape.event_json(&told, &told.events[0]).unwrap(), due);
    }

    #[test]
    fn events_of_the_kv_machine_show_what_was_put() {
        let pair = KeyValue { key: b"k".into(), value: b"new".into(), version: 2, ..KeyValue::default() };
        let before = KeyValue { value: b"old".into(), version: 1, ..pair.clone() };
        let told = told(EventKind::Put, &pair.encode_to_vec(), Some(&before.encode_to_vec()));
        let shape = Shape { kv: true, json: false };
        let line = shape.event_line(told.revision, &told.events[0]).unwrap();
        assert_eq!(line, "4\tput\ta\\tb\tnew\tbefore: old");
        let shown = shape.event_json(&told, &told.events[0]).unwrap();
        assert_eq!((&shown["value"], &shown["version"]), (&json!("new"), &json!(2)));
        assert_eq!((&shown["previous"]["value"], &shown["previous"]["version"]), (&json!("old"), &json!(1)));
        assert!(shape.event_line(told.revision, &told_of_garbage()).is_err());
    }

    fn told_of_garbage() -> WatchEvent {
        let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"\xff"));
        WatchEvent { kind: EventKind::Put, key, value, previous: None }
    }
}
