//! `statehouse module run`: a prompt on one machine in memory.
//!
//! On a terminal a line that fails is told, and the next one is read. From a pipe or a file the first line
//! that fails ends the command with 1, so that scripts can be tests; a line that begins with `!` is to fail,
//! and fails the script if it does not.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};

use super::super::{Global, Usage, duration, output, payload};
use crate::id::{LogTime, Revision};
use crate::machine::apply::Note;
use crate::machine::batch::{Act, Grant, Operation, Renew, Renewed};
use crate::machine::event::{Event, EventKind};
use crate::machine::view::Table;
use crate::trial::{Done, EndedLease, Host, Inspected, LeaseLine, START_MS, Snapshot, engine};
use crate::wasm::{Codegen, Compiler};

/// Try a component at a prompt, on one machine in memory: no node, no files
#[derive(Debug, Args)]
#[command(after_help = "\
        Lines of the prompt, or of standard input:\n  \
        apply [--hex] TEXT|@FILE     a command; the rest of the line is its text\n  \
        query [--hex] TEXT|@FILE     a question\n  \
        advance TIME                 lets time pass: 500ms, 10s, 5m, 2h, 30d; leases end\n  \
        grant TIME [ID]              a client's lease; also renew ID, revoke ID, leases\n  \
        events [REVISION]            the events kept, from a revision on\n  \
        watch [PREFIX], unwatch      show events as they happen\n  \
        state [PREFIX]               the rows of a stored machine\n  \
        snapshot [NAME]              remembers the state; restore [NAME] goes back to it\n  \
        hash                         where the machine stands, and the hash over all it did\n  \
        help, quit\n\n\
        Empty lines and lines that begin with # are passed over. From a pipe, the first line that fails ends \
        the command with 1;\na line that begins with ! is to fail. The clock begins at 2026-01-01 and only \
        `advance` moves it, so a script gives the\nsame answers every time.\n\n\
        Examples:\n  \
        statehouse module run notes.component.wasm\n  \
        statehouse module run counter.component.wasm --argument 40 < session.txt\n  \
        printf 'apply a=1\\nquery a\\n' | statehouse module run notes.component.wasm --json")]
pub struct Run {
    /// The component, or a core module that carries component metadata
    file: PathBuf,
    /// The configuration that the machine is created with
    #[arg(long, visible_alias = "init", value_name = "TEXT|@FILE", allow_negative_numbers = true)]
    argument: Option<String>,
}

/// Reads a module's file.
pub fn read_file(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The compiler that a node has: this program, in a process with limits.
pub fn compiler() -> anyhow::Result<Compiler> {
    let program = std::env::current_exe().context("cannot find this program, which compiles modules")?;
    Ok(Compiler::Process { program, limits: Default::default() })
}

impl Run {
    pub fn run(self, global: &Global) -> anyhow::Result<()> {
        let configuration = payload::read(self.argument.as_deref().unwrap_or_default(), false)?;
        let compiler = compiler()?;
        let inspected = Inspected::of(&read_file(&self.file)?, &compiler)?;
        let module = inspected.load(&engine(Codegen::Optimised)?, &compiler)?;
        let mut session = Session::begin(Host::of_module(&module, inspected.digest, START_MS), global.json);
        session.create(configuration)?;
        if std::io::stdin().is_terminal() {
            let name = self.file.display();
            output::tell(format_args!("{name}: a {} machine in memory. Try `help`.", inspected.world.name()));
            session.prompt()
        } else {
            session.script(std::io::stdin().lock())
        }
    }
}

/// A machine with who sits before it.
struct Session {
    host: Host,
    json: bool,
    /// Events of keys that begin with this are shown as they happen.
    watched: Option<Vec<u8>>,
    snapshots: BTreeMap<String, Snapshot>,
}

/// Whether there is to be another line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Line,
    End,
}

impl Session {
    fn begin(host: Host, json: bool) -> Session {
        Session { host, json, watched: None, snapshots: BTreeMap::new() }
    }

    fn create(&mut self, configuration: Bytes) -> anyhow::Result<()> {
        let done = self.host.create(configuration)?;
        tell_notes(&done.notes);
        output::answer(&done.last().outcome).context("the machine was not created").map(drop)
    }

    /// Lines of a terminal: a failure is told, and the next line is read.
    fn prompt(mut self) -> anyhow::Result<()> {
        let mut lines = std::io::stdin().lock().lines();
        loop {
            let mut out = std::io::stderr().lock();
            // Without a terminal to write to, nobody reads the prompt either.
            let _ = out.write_all(b"> ").and_then(|()| out.flush());
            drop(out);
            let Some(line) = lines.next() else { return Ok(()) };
            match self.line(&line.context("cannot read standard input")?) {
                Ok(Next::Line) => {}
                Ok(Next::End) => return Ok(()),
                Err(error) => output::tell(format_args!("error: {error:#}")),
            }
        }
    }

    /// Lines of a script: the first that fails is the end.
    fn script(mut self, lines: impl BufRead) -> anyhow::Result<()> {
        for (number, line) in lines.lines().enumerate() {
            let line = line.context("cannot read standard input")?;
            let place = || format!("line {}, {:?}", number + 1, line.trim());
            match self.line(&line).with_context(place)? {
                Next::Line => {}
                Next::End => return Ok(()),
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> anyhow::Result<Next> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(Next::Line);
        }
        let Some(failing) = line.strip_prefix('!') else { return self.command(line) };
        match self.command(failing.trim_start()) {
            Ok(_) => bail!("it was to fail, and was done"),
            Err(error) if error.downcast_ref::<Usage>().is_some() => Err(error),
            Err(error) => {
                output::tell(format_args!("as it was to: {error:#}"));
                Ok(Next::Line)
            }
        }
    }

    fn command(&mut self, line: &str) -> anyhow::Result<Next> {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim_start();
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
}

const HELP: &str = "\
apply [--hex] TEXT|@FILE   query [--hex] TEXT|@FILE   advance TIME\n\
grant TIME [ID]            renew ID                   revoke ID        leases\n\
events [REVISION]          watch [PREFIX]             unwatch          state [PREFIX]\n\
snapshot [NAME]            restore [NAME]             hash             quit";

/// The lines, one function each.
impl Session {
    fn apply(&mut self, rest: &str) -> anyhow::Result<()> {
        let (command, hex) = bytes(rest)?;
        let done = self.host.apply(command)?;
        let at = done.last().clone();
        self.tell(&done)?;
        output::outcome(&at.outcome, (at.index, at.revision), self.json, hex)
    }

    fn query(&mut self, rest: &str) -> anyhow::Result<()> {
        let (request, hex) = bytes(rest)?;
        let answered = self.host.query(&request)?;
        let place = (answered.index, answered.revision);
        output::outcome(&answered.outcome.into(), place, self.json, hex)
    }

    fn advance(&mut self, rest: &str) -> anyhow::Result<()> {
        let by_ms = duration::milliseconds(rest).map_err(Usage)?;
        let ended = self.host.advance(by_ms)?;
        for (_, done) in &ended {
            self.tell(done)?;
        }
        let ended: Vec<EndedLease> = ended.into_iter().map(|(lease, _)| lease).collect();
        if self.json {
            let leases = ended.iter().map(|lease| json!({ "id": lease.id, "time_ms": lease.at_ms }));
            let leases: Vec<Value> = leases.collect();
            return Ok(output::json(&json!({ "time_ms": self.host.now_ms(), "ended": leases }))?);
        }
        for lease in ended {
            output::line(format_args!("lease {} ended at {}", lease.id, time(lease.at_ms)))?;
        }
        Ok(output::line(time(self.host.now_ms()))?)
    }

    fn grant(&mut self, rest: &str) -> anyhow::Result<()> {
        let (ttl, id) = rest.split_once(char::is_whitespace).unwrap_or((rest, "0"));
        let ttl_ms = duration::lease_ttl_ms(ttl).map_err(Usage)?;
        let id = lease_number(id)?;
        let done = self.host.submit(vec![Act::Grant(Grant { ttl_ms, id }).into()])?;
        self.tell(&done)?;
        let granted = Operation::granted(output::answer(&done.last().outcome)?);
        let id = granted.context("a lease was granted without an id")?;
        if self.json {
            return Ok(output::json(&json!({ "id": id, "ttl_ms": ttl_ms }))?);
        }
        Ok(output::line(id)?)
    }

    fn renew(&mut self, id: u64) -> anyhow::Result<()> {
        let done = self.host.submit(vec![Act::Renew(Renew { leases: vec![id] }).into()])?;
        let answer = output::answer(&done.last().outcome)?.clone();
        let renewed: Renewed = prost::Message::decode(answer)?;
        match renewed.ttls_ms.first() {
            Some(&ttl_ms) if ttl_ms > 0 && self.json => {
                Ok(output::json(&json!({ "id": id, "ttl_ms": ttl_ms }))?)
            }
            Some(&ttl_ms) if ttl_ms > 0 => Ok(output::line(duration::shown(ttl_ms))?),
            _ => bail!("there is no lease {id} of a client"),
        }
    }

    /// An operation whose answer says nothing but that it was done.
    fn act(&mut self, act: Act) -> anyhow::Result<()> {
        let done = self.host.submit(vec![act.into()])?;
        self.tell(&done)?;
        output::answer(&done.last().outcome).map(drop)
    }

    fn leases(&self) -> anyhow::Result<()> {
        let leases = self.host.leases()?;
        if self.json {
            let lines: Vec<Value> = leases.iter().map(lease_json).collect();
            return Ok(output::json(&Value::Array(lines))?);
        }
        let row = |line: &LeaseLine| {
            let keys: Vec<String> = line.keys.iter().map(|key| output::printable(key)).collect();
            let (ttl, left) = (duration::shown(line.lease.ttl_ms), duration::shown(line.remaining_ms));
            vec![line.id.to_string(), ttl, left, kind(line).to_owned(), keys.join(" ")]
        };
        let rows: Vec<Vec<String>> = leases.iter().map(row).collect();
        Ok(output::table(&["ID", "TTL", "REMAINING", "KIND", "KEYS"], &rows)?)
    }

    fn events(&self, rest: &str) -> anyhow::Result<()> {
        let from = match rest {
            "" => 1,
            number => number.parse().map_err(|_| Usage(format!("{number:?} is no revision")))?,
        };
        self.host.events(Revision(from))?.iter().try_for_each(|event| self.show_event(event))
    }

    fn state(&self, prefix: &[u8]) -> anyhow::Result<()> {
        let store = self.host.rows().rows().filter(|row| row.0 == Table::Store);
        for (_, key, value) in store.filter(|row| row.1.starts_with(prefix)) {
            match self.json {
                true => output::json(&json!({
                    "key": output::bytes_json(key), "value": output::bytes_json(value)
                }))?,
                false => {
                    output::line(format_args!("{}\t{}", output::printable(key), output::printable(value)))?
                }
            }
        }
        Ok(())
    }

    fn snapshot(&mut self, name: &str) -> anyhow::Result<()> {
        let snapshot = self.host.snapshot()?;
        let (rows, bytes) = (snapshot.rows.rows().count(), snapshot.state.len());
        match self.json {
            true => output::json(&json!({
                "index": snapshot.head.index.0, "rows": rows, "state_bytes": bytes
            }))?,
            false => output::line(format_args!(
                "index {}: {rows} rows, {bytes} bytes of its own",
                snapshot.head.index
            ))?,
        }
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

    fn hash(&self) -> anyhow::Result<()> {
        let head = self.host.head();
        if self.json {
            return Ok(output::json(&json!({
                "index": head.index.0,
                "revision": head.revision.0,
                "time_ms": self.host.now_ms(),
                "hash": head.hash.to_string(),
            }))?);
        }
        let (index, revision, now) = (head.index, head.revision, time(self.host.now_ms()));
        Ok(output::line(format_args!("index {index}, revision {revision}, {now}\n{}", head.hash))?)
    }

    /// What a batch did besides its answer.
    fn tell(&self, done: &Done) -> anyhow::Result<()> {
        tell_notes(&done.notes);
        let Some(prefix) = &self.watched else { return Ok(()) };
        let mut watched = done.events.iter().filter(|event| event.key.starts_with(prefix));
        watched.try_for_each(|event| self.show_event(event))
    }

    /// As `statehouse watch` shows it.
    fn show_event(&self, event: &Event) -> anyhow::Result<()> {
        let kind = if event.kind == EventKind::Put { "put" } else { "delete" };
        if self.json {
            return Ok(output::json(&json!({
                "revision": event.revision.0,
                "index": event.index,
                "time_ms": event.time_ms,
                "type": kind,
                "key": output::bytes_json(&event.key),
                "value": output::bytes_json(&event.value),
            }))?);
        }
        let mut line = format!("{}\t{kind}\t{}", event.revision, output::printable(&event.key));
        if event.kind == EventKind::Put {
            line.push('\t');
            line.push_str(&output::printable(&event.value));
        }
        Ok(output::line(line)?)
    }
}

/// What the guest logged, and why the host ended inputs: on standard error, as a node has it in its log.
fn tell_notes(notes: &[Note]) {
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
