//! The lines of `module run`, one function each.
//!
//! Each says what it has to say through `say`, so that a script can compare it.

use anyhow::{Context, bail};
use bytes::Bytes;
use serde_json::{Value, json};

use super::super::super::{Usage, duration, output, payload};
use super::{Next, Session};
use crate::id::{Index, LogTime, Revision};
use crate::machine::apply::Note;
use crate::machine::batch::{Act, Grant, Operation, Renew, Renewed};
use crate::machine::event::{Event, EventKind};
use crate::machine::outcome::Outcome;
use crate::machine::view::Table;
use crate::trial::{Done, LeaseLine};

const HELP: &str = "\
apply [--hex] TEXT|@FILE   query [--hex] TEXT|@FILE   advance TIME\n\
grant TIME [ID]            renew ID                   revoke ID        leases\n\
events [REVISION]          watch [PREFIX]             unwatch          state [PREFIX]\n\
snapshot [NAME]            restore [NAME]             hash             quit";

impl Session {
    /// Does what a line says.
    pub(super) fn command(&mut self, word: &str, rest: &str) -> anyhow::Result<Next> {
        match word {
            "apply" => self.apply(rest)?,
            "query" => self.query(rest)?,
            "advance" => self.advance(rest)?,
            "grant" => self.grant(rest)?,
            "renew" => self.renew(lease_id(rest)?)?,
            "revoke" => self.act(Act::Revoke(lease_id(rest)?))?,
            "leases" => self.leases()?,
            "events" => self.events(rest)?,
            "watch" => self.watched = Some(rest.as_bytes().to_vec()),
            "unwatch" => self.watched = None,
            "state" => self.state(rest.as_bytes())?,
            "snapshot" => self.snapshot(rest)?,
            "restore" => self.restore(rest)?,
            "hash" => self.hash()?,
            "help" => output::line(HELP)?,
            "quit" | "exit" => return Ok(Next::End),
            _ => return Err(Usage(format!("there is no command {word:?}; `help` lists them")).into()),
        }
        Ok(Next::Line)
    }

    /// Says a line: as it is, or as JSON.
    fn say(&mut self, text: &str, as_json: impl FnOnce() -> Value) -> anyhow::Result<()> {
        self.said.say(text);
        let written = if self.json { output::json(&as_json()) } else { output::line(text) };
        Ok(written?)
    }

    /// Says what became of a command or a query.
    fn outcome(&mut self, outcome: &Outcome, at: (Index, Revision), hex: bool) -> anyhow::Result<()> {
        match output::answer(outcome) {
            Ok(answer) if hex => self.said.say(&hex::encode(answer)),
            Ok(answer) => self.said.say(&output::printable(answer)),
            Err(why) => self.failure = Some(why.to_string()),
        }
        if let Outcome::Refused(refusal) = outcome {
            self.refused = Some(refusal.code);
        }
        output::outcome(outcome, at, self.json, hex)
    }

    fn apply(&mut self, rest: &str) -> anyhow::Result<()> {
        let (command, hex) = bytes(rest)?;
        let done = self.host.apply(command)?;
        let at = done.last().clone();
        self.tell(&done)?;
        self.outcome(&at.outcome, (at.index, at.revision), hex)
    }

    fn query(&mut self, rest: &str) -> anyhow::Result<()> {
        let (request, hex) = bytes(rest)?;
        let answered = self.host.query(&request)?;
        let place = (answered.index, answered.revision);
        self.outcome(&answered.outcome.into(), place, hex)
    }

    fn advance(&mut self, rest: &str) -> anyhow::Result<()> {
        let by_ms = duration::milliseconds(rest).map_err(Usage)?;
        let ended = self.host.advance(by_ms)?;
        for (_, done) in &ended {
            self.tell(done)?;
        }
        let now_ms = self.host.now_ms();
        for (lease, _) in &ended {
            self.said.say(&format!("lease {} ended at {}", lease.id, time(lease.at_ms)));
        }
        self.said.say(&time(now_ms));
        if self.json {
            let leases = ended.iter().map(|(lease, _)| json!({ "id": lease.id, "time_ms": lease.at_ms }));
            let leases: Vec<Value> = leases.collect();
            return Ok(output::json(&json!({ "time_ms": now_ms, "ended": leases }))?);
        }
        for (lease, _) in ended {
            output::line(format_args!("lease {} ended at {}", lease.id, time(lease.at_ms)))?;
        }
        Ok(output::line(time(now_ms))?)
    }

    fn grant(&mut self, rest: &str) -> anyhow::Result<()> {
        let (ttl, id) = rest.split_once(char::is_whitespace).unwrap_or((rest, "0"));
        let ttl_ms = duration::lease_ttl_ms(ttl).map_err(Usage)?;
        let id = lease_number(id)?;
        let done = self.host.submit(vec![Act::Grant(Grant { ttl_ms, id }).into()])?;
        self.tell(&done)?;
        let granted = Operation::granted(output::answer(&done.last().outcome)?);
        let id = granted.context("a lease was granted without an id")?;
        self.say(&id.to_string(), || json!({ "id": id, "ttl_ms": ttl_ms }))
    }

    fn renew(&mut self, id: u64) -> anyhow::Result<()> {
        let done = self.host.submit(vec![Act::Renew(Renew { leases: vec![id] }).into()])?;
        let answer = output::answer(&done.last().outcome)?.clone();
        let renewed: Renewed = prost::Message::decode(answer)?;
        match renewed.ttls_ms.first() {
            Some(&ttl_ms) if ttl_ms > 0 => {
                self.say(&duration::shown(ttl_ms), || json!({ "id": id, "ttl_ms": ttl_ms }))
            }
            _ => bail!("there is no lease {id} of a client"),
        }
    }

    /// An operation whose answer says nothing but that it was done.
    fn act(&mut self, act: Act) -> anyhow::Result<()> {
        let done = self.host.submit(vec![act.into()])?;
        self.tell(&done)?;
        output::answer(&done.last().outcome).map(drop)
    }

    fn leases(&mut self) -> anyhow::Result<()> {
        let leases = self.host.leases()?;
        let row = |line: &LeaseLine| {
            let keys: Vec<String> = line.keys.iter().map(|key| output::printable(key)).collect();
            let (ttl, left) = (duration::shown(line.lease.ttl_ms), duration::shown(line.remaining_ms));
            vec![line.id.to_string(), ttl, left, kind(line).to_owned(), keys.join(" ")]
        };
        let rows: Vec<Vec<String>> = leases.iter().map(row).collect();
        rows.iter().for_each(|row| self.said.say(row.join(" ").trim_end()));
        if self.json {
            let lines: Vec<Value> = leases.iter().map(lease_json).collect();
            return Ok(output::json(&Value::Array(lines))?);
        }
        Ok(output::table(&["ID", "TTL", "REMAINING", "KIND", "KEYS"], &rows)?)
    }

    fn events(&mut self, rest: &str) -> anyhow::Result<()> {
        let from = match rest {
            "" => 1,
            number => number.parse().map_err(|_| Usage(format!("{number:?} is no revision")))?,
        };
        self.host.events(Revision(from))?.iter().try_for_each(|event| self.show_event(event))
    }

    fn state(&mut self, prefix: &[u8]) -> anyhow::Result<()> {
        let rows = self.host.rows().rows().filter(|row| row.0 == Table::Store && row.1.starts_with(prefix));
        let rows: Vec<(Vec<u8>, Vec<u8>)> = rows.map(|(_, key, value)| (key.into(), value.into())).collect();
        for (key, value) in rows {
            let text = format!("{}\t{}", output::printable(&key), output::printable(&value));
            let as_json = || json!({ "key": output::bytes_json(&key), "value": output::bytes_json(&value) });
            self.say(&text, as_json)?;
        }
        Ok(())
    }

    fn snapshot(&mut self, name: &str) -> anyhow::Result<()> {
        let snapshot = self.host.snapshot()?;
        let (rows, bytes) = (snapshot.rows.rows().count(), snapshot.state.len());
        let text = format!("index {}: {rows} rows, {bytes} bytes of its own", snapshot.head.index);
        let index = snapshot.head.index.0;
        self.say(&text, || json!({ "index": index, "rows": rows, "state_bytes": bytes }))?;
        self.snapshots.insert(name.to_owned(), snapshot);
        Ok(())
    }

    fn restore(&mut self, name: &str) -> anyhow::Result<()> {
        let Some(snapshot) = self.snapshots.get(name) else {
            let known: Vec<String> = self.snapshots.keys().map(|name| format!("{name:?}")).collect();
            bail!("there is no snapshot {name:?}; there are: [{}]", known.join(", "));
        };
        Ok(self.host.restore(snapshot)?)
    }

    fn hash(&mut self) -> anyhow::Result<()> {
        let (head, now_ms) = (*self.host.head(), self.host.now_ms());
        let (index, revision, hash) = (head.index, head.revision, head.hash.to_string());
        self.said.say(&format!("index {index}, revision {revision}, {}", time(now_ms)));
        self.said.say(&hash);
        if self.json {
            let (index, revision) = (index.0, revision.0);
            return Ok(output::json(&json!({
                "index": index, "revision": revision, "time_ms": now_ms, "hash": hash
            }))?);
        }
        Ok(output::line(format_args!("index {index}, revision {revision}, {}\n{hash}", time(now_ms)))?)
    }

    /// What a batch did besides its answer.
    fn tell(&mut self, done: &Done) -> anyhow::Result<()> {
        tell_notes(&done.notes);
        let Some(prefix) = self.watched.clone() else { return Ok(()) };
        let mut watched = done.events.iter().filter(|event| event.key.starts_with(&prefix));
        watched.try_for_each(|event| self.show_event(event))
    }

    /// As `statehouse watch` shows it.
    fn show_event(&mut self, event: &Event) -> anyhow::Result<()> {
        let kind = if event.kind == EventKind::Put { "put" } else { "delete" };
        let mut line = format!("{}\t{kind}\t{}", event.revision, output::printable(&event.key));
        if event.kind == EventKind::Put {
            line.push('\t');
            line.push_str(&output::printable(&event.value));
        }
        self.say(&line, || {
            json!({
                "revision": event.revision.0,
                "index": event.index,
                "time_ms": event.time_ms,
                "type": kind,
                "key": output::bytes_json(&event.key),
                "value": output::bytes_json(&event.value),
            })
        })
    }
}

/// What the guest logged, and why the host ended inputs: on standard error, as a node has it in its log.
pub(super) fn tell_notes(notes: &[Note]) {
    for note in notes {
        match note {
            Note::Line(_, line) => {
                let message = output::printable(line.message.as_bytes());
                output::tell(format_args!("log {:?}: {message}", line.level));
            }
            Note::Ended(_, why) => {
                output::tell(format_args!("the host ended the input: {}", output::printable(why.as_bytes())));
            }
        }
    }
}

/// The bytes that the rest of a line stands for, and whether they are given as digits.
fn bytes(rest: &str) -> anyhow::Result<(Bytes, bool)> {
    let (text, hex) = match rest.strip_prefix("--hex") {
        Some(digits) if digits.is_empty() || digits.starts_with(char::is_whitespace) => (digits.trim(), true),
        _ => (rest.strip_prefix("-- ").unwrap_or(rest), false),
    };
    if text == "-" {
        // Standard input is where the lines come from.
        return Ok((Bytes::from_static(b"-"), false));
    }
    Ok((payload::read(text, hex)?, hex))
}

fn lease_id(text: &str) -> anyhow::Result<u64> {
    match lease_number(text)? {
        0 => Err(Usage("leases have numbers from 1".into()).into()),
        id => Ok(id),
    }
}

fn lease_number(text: &str) -> anyhow::Result<u64> {
    text.trim().parse().map_err(|_| Usage(format!("{text:?} is no lease: its number is expected")).into())
}

fn kind(line: &LeaseLine) -> &'static str {
    match (line.lease.of_machine, line.lease.is_session) {
        (true, _) => "machine",
        (false, true) => "session",
        (false, false) => "client",
    }
}

fn lease_json(line: &LeaseLine) -> Value {
    let keys: Vec<Value> = line.keys.iter().map(|key| output::bytes_json(key)).collect();
    json!({
        "id": line.id,
        "ttl_ms": line.lease.ttl_ms,
        "remaining_ms": line.remaining_ms,
        "kind": kind(line),
        "keys": keys,
    })
}

fn time(ms: u64) -> String {
    let shown = output::time(LogTime(ms));
    format!("{}.{:03}Z", shown.trim_end_matches('Z'), ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::START_MS;

    #[test]
    fn the_rest_of_a_line_is_text_or_digits() {
        let text = |rest| bytes(rest).unwrap();
        assert_eq!(text("a = 1"), (Bytes::from("a = 1"), false));
        assert_eq!(text("--hex 00 ff"), (Bytes::from(&b"\x00\xff"[..]), true));
        assert_eq!(text("--hexen"), (Bytes::from("--hexen"), false));
        assert_eq!(text("-- --hex"), (Bytes::from("--hex"), false));
        assert_eq!(text("-"), (Bytes::from("-"), false));
        assert!(bytes("--hex 0").is_err());
    }

    #[test]
    fn leases_are_numbers_from_1() {
        assert_eq!(lease_id(" 7 ").unwrap(), 7);
        for text in ["", "0", "-1", "x"] {
            assert!(lease_id(text).unwrap_err().downcast_ref::<Usage>().is_some(), "{text}");
        }
    }

    #[test]
    fn times_are_told_to_the_millisecond() {
        assert_eq!(time(START_MS + 1_007), "2026-01-01T00:00:01.007Z");
    }
}
