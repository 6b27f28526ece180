//! Runs scripts: blocks of a directive, its input lines, `----`, and what it is expected to print.
//!
//! | directive | what it does |
//! | --- | --- |
//! | `new stored`, `new resident` | begins a machine |
//! | `new resident whimsical` | one whose guest may differ when it is made again |
//! | `batch TIME` | applies the lines below as one batch: commands, or acts of the host that begin with `!` |
//! | `term TIME` | the same, as the first batch of a new leader's term |
//! | `query ACTIONS` | asks, at the state after the last batch |
//! | `state` | prints all rows |
//! | `save` | resident: takes a snapshot and drops the log that it covers |
//! | `restart` | resident: loses everything but the state, the log and the snapshot |
//!
//! Every batch of a stored machine is applied twice and must give the same both times. After every batch of a
//! resident machine, an instance rebuilt from its history must have the memory of the live one.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::guest::{ABSENT, Memory, ScriptedGuest, short, text_of};
use crate::error::Fault;
use crate::id::{Digest, Index};
use crate::machine::apply::{Applied, Note};
use crate::machine::batch::{
    Act, Batch, Expire, Grant, Head, Numbered, Operation, Renew, Renewed, Upgrade, Verdict,
};
use crate::machine::event::{self, Event, EventKind};
use crate::machine::frame::Frame;
use crate::machine::guest::{Ending, Guest, QueryView};
use crate::machine::lease::{Lease, Tally};
use crate::machine::outcome::{HostCode, Outcome, OutcomeAt, OutcomeRow};
use crate::machine::resident::{Halt, History, Reader, Resident, Saved, Sink};
use crate::machine::settings::Settings;
use crate::machine::settled::{self, Settled};
use crate::machine::stored::Stored;
use crate::machine::view::{MemoryView, Table};

/// Runs the script at `path` and compares, or with `UPDATE` in the environment rewrites.
pub fn check(path: &Path) {
    let text = std::fs::read_to_string(path).expect("the script is readable text");
    let actual = run(&text);
    if actual == text {
        return;
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, actual).expect("the script is writable");
        return;
    }
    panic!(
        "{}: what it prints has changed. Read the difference; if it is right, repeat with UPDATE=1.\n{}",
        path.display(),
        difference(&text, &actual)
    );
}

/// The lines around the first that differ.
fn difference(expected: &str, actual: &str) -> String {
    let same = expected.lines().zip(actual.lines()).take_while(|(e, a)| e == a).count();
    let part = |text: &str, sign: char| -> String {
        let lines = text.lines().enumerate().skip(same.saturating_sub(6)).take(20);
        lines.map(|(n, line)| format!("{}{sign} {line}\n", n + 1)).collect()
    };
    format!("expected:\n{}actual:\n{}", part(expected, ' '), part(actual, '+'))
}

/// The script as it would be if it expected what it prints.
fn run(text: &str) -> String {
    let mut world = None;
    let mut out = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        writeln!(out, "{line}").expect("a string takes all");
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut input = Vec::new();
        for below in lines.by_ref() {
            writeln!(out, "{below}").expect("a string takes all");
            if below == "----" {
                break;
            }
            input.push(below);
        }
        while lines.peek().is_some_and(|line| !line.is_empty()) {
            lines.next();
        }
        out.push_str(&directive(&mut world, line, &input));
    }
    out
}

fn directive(world: &mut Option<World>, line: &str, input: &[&str]) -> String {
    let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
    if name == "new" {
        *world = Some(World::new(rest));
        return String::new();
    }
    let world = world.as_mut().expect("a script begins with new");
    match name {
        "batch" | "term" => {
            world.batch(rest.parse().expect("a batch is given its time"), input, name == "term")
        }
        "query" => world.query(rest),
        "state" => world.state(),
        "save" => world.save(),
        "restart" => world.restart(),
        _ => panic!("there is no directive {line:?}"),
    }
}

/// The last snapshot of a resident machine.
#[derive(Clone)]
struct Snapshot {
    head: Head,
    rows: MemoryView,
    state: Bytes,
}

/// What outlives an instance.
#[derive(Clone, Default)]
struct Log {
    saved: Option<Snapshot>,
    batches: Vec<(Index, Batch)>,
    settled: BTreeMap<Index, Settled>,
}

impl History for Log {
    fn saved(&self) -> Result<Option<Saved>, Fault> {
        Ok(self.saved.clone().map(|Snapshot { head, rows, state }| Saved {
            head,
            rows,
            state: Box::new(std::io::Cursor::new(state)),
        }))
    }

    fn batches(&self, after: Index, up_to: Index) -> Result<Vec<(Index, Batch)>, Fault> {
        let within = |(index, _): &&(Index, Batch)| (after.next()..=up_to).contains(index);
        Ok(self.batches.iter().filter(within).cloned().collect())
    }

    fn settled(&self, after: Index) -> Result<BTreeMap<Index, Settled>, Fault> {
        Ok(self.settled.range(after.next()..).map(|(index, settled)| (*index, settled.clone())).collect())
    }
}

/// One machine and what is around it.
struct World {
    guest: ScriptedGuest,
    stored: Stored,
    head: Head,
    view: MemoryView,
    log: Log,
    /// A resident machine's instance and reader.
    resident: Option<(Resident, Reader)>,
    is_whimsical: bool,
    /// Batches that wait for a verdict on the first of them.
    stalled: VecDeque<(Index, Batch)>,
}

impl World {
    fn new(kind: &str) -> World {
        let guest = ScriptedGuest::default();
        World {
            resident: kind.starts_with("resident").then(|| live(&guest)),
            is_whimsical: kind.ends_with("whimsical"),
            stored: Stored::new(Box::new(guest.clone())),
            guest,
            head: Head::default(),
            view: MemoryView::default(),
            log: Log::default(),
            stalled: VecDeque::new(),
        }
    }

    fn batch(&mut self, time_ms: u64, input: &[&str], begins_term: bool) -> String {
        let operations = input.iter().map(|line| operation(line.trim())).collect();
        let batch = Batch { time_ms, operations, begins_term };
        let waiting = self.stalled.back().map_or(self.head.index, |(index, _)| *index);
        let index = waiting.next();
        self.log.batches.push((index, batch.clone()));
        self.obey(&batch);
        self.stalled.push_back((index, batch));
        let mut out = String::new();
        while let Some((index, batch)) = self.stalled.pop_front() {
            let made = self.guest.instances.load(Ordering::Relaxed);
            match self.apply(index, &batch) {
                Ok(applied) => {
                    let made = self.guest.instances.load(Ordering::Relaxed) - made;
                    print_applied(&mut out, &applied, made);
                    self.keep(applied);
                }
                Err(Halt::NeedsVerdict { offset }) => {
                    line(&mut out, format!("batch {index} waits for a verdict on its input {offset}"));
                    self.stalled.push_front((index, batch));
                    break;
                }
                Err(halt) => {
                    line(&mut out, format!("batch {index} halts the machine: {halt:?}"));
                    break;
                }
            }
        }
        out
    }

    /// Obeys the verdicts of a new entry before those that wait for them are tried again.
    fn obey(&mut self, batch: &Batch) {
        let Some((resident, _)) = &mut self.resident else { return };
        for operation in &batch.operations {
            if let Some(Act::Verdict(Verdict { index, offset, exhausted: true })) = operation.act {
                resident.settle(Index(index), offset, HostCode::Exhausted);
            }
        }
    }

    fn apply(&mut self, index: Index, batch: &Batch) -> Result<Applied, Halt> {
        let view = Arc::new(self.view.clone());
        let Some((resident, _)) = &mut self.resident else {
            let applied = self.stored.apply(&self.head, index, batch, view.clone())?;
            // On guests of its own, so that the count of instances is that of the first time.
            let mut others = Stored::new(Box::new(ScriptedGuest::default()));
            let again = others.apply(&self.head, index, batch, view)?;
            assert_eq!(applied.head, again.head);
            assert_eq!((&applied.writes, &applied.outcomes), (&again.writes, &again.outcomes));
            return Ok(applied);
        };
        resident.apply(&self.head, index, batch, view, &self.log)
    }

    fn keep(&mut self, applied: Applied) {
        for write in applied.writes {
            self.view.put(write.table, write.key, write.value);
        }
        self.head = applied.head;
        self.log.settled = settled::read(&self.view, Index(0)).expect("memory has no faults");
        if self.resident.is_some() && !self.is_whimsical {
            let live = self.memory();
            assert_eq!(self.rebuilt_memory(), live, "a rebuilt instance differs from the live one");
        }
    }

    fn memory(&self) -> Memory {
        self.guest.memory.lock().expect("no test thread panics while it holds the memory").clone()
    }

    /// The memory of an instance that is made again from the history, by a query that answers all of it.
    fn rebuilt_memory(&self) -> Memory {
        let mut reader = Reader::new(Box::new(ScriptedGuest::default()));
        let asked = reader.query(&self.log, self.head.index, 0, b"memory");
        let (head, ending) = asked.expect("a guest that was there can be rebuilt");
        assert_eq!(head, self.head);
        let Ending::Answer(text) = ending else { panic!("{ending:?}") };
        let text = text_of(&text);
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn query(&mut self, request: &str) -> String {
        let time = self.head.time.0;
        let seen = QueryView { index: self.head.index.0, time, revision: self.head.revision.0 };
        let ending = match &mut self.resident {
            Some((_, reader)) => {
                let answered = reader.query(&self.log, self.head.index, time, request.as_bytes());
                answered.expect("a guest that could be rebuilt before can be again").1
            }
            None => {
                let frame = Frame::for_query(Arc::new(self.view.clone()), seen, &self.head);
                let mut instance = self.guest.instance().expect("the scripted guest has no faults");
                instance.query(frame, seen, request.as_bytes()).1
            }
        };
        let mut out = String::new();
        match ending {
            Ending::Answer(answer) => line(&mut out, format!("ok {}", text_of(&answer))),
            Ending::Refused(refusal) => {
                line(&mut out, format!("refused {} {}", refusal.code, refusal.message))
            }
            Ending::Trapped(why) => line(&mut out, format!("trapped: {why}")),
            Ending::Exhausted(why) => line(&mut out, format!("exhausted: {why}")),
            Ending::Fault(fault) => panic!("a query met a fault: {fault}"),
        }
        out
    }

    fn state(&self) -> String {
        let mut out = String::new();
        for (table, key, value) in self.view.rows() {
            row_texts(table, key, Some(value)).iter().for_each(|text| line(&mut out, text));
        }
        out
    }

    fn save(&mut self) -> String {
        let (_, reader) = self.resident.as_mut().expect("only resident machines are saved");
        let sink = Sink::default();
        let mut rows = MemoryView::default();
        let made = reader.save(&self.log, self.head.index, |_, host_rows| {
            rows = host_rows.clone();
            Ok(Box::new(sink.clone()))
        });
        let mut out = String::new();
        match made {
            Ok(head) => {
                let state = sink.take();
                line(&mut out, format!("saved {} bytes at index {}", state.len(), head.index));
                self.log.batches.retain(|(index, _)| *index > head.index);
                self.log.saved = Some(Snapshot { head, rows, state });
                for key in settled::keys_up_to(&self.view, head.index).expect("memory has no faults") {
                    self.view.put(Table::Head, key, None);
                }
            }
            Err(halt) => line(&mut out, format!("not saved: {halt:?}")),
        }
        out
    }

    fn restart(&mut self) -> String {
        self.resident = Some(live(&self.guest));
        let waits = |(index, _): &&(Index, Batch)| *index > self.head.index;
        self.stalled = self.log.batches.iter().filter(waits).cloned().collect();
        String::new()
    }
}

fn live(guest: &ScriptedGuest) -> (Resident, Reader) {
    // The reader shares no memory with the test, which compares that of the instance that applies.
    (Resident::new(Box::new(guest.clone())), Reader::new(Box::new(ScriptedGuest::default())))
}

/// The module that every scripted machine is created from.
const MODULE: Digest = Digest([7; 32]);

fn operation(text: &str) -> Operation {
    let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
    let numbers = || rest.split(' ').filter_map(|word| word.parse::<u64>().ok());
    let act = match name {
        "!create" => return Operation::create(MODULE, Bytes::from(rest.to_owned())),
        "!upgrade" => {
            let (module, argument) = rest.split_once(' ').unwrap_or((rest, ""));
            let module = match module {
                "absent" => ABSENT.0.to_vec(),
                "short" => vec![8; 31],
                number => vec![number.parse().expect("a component is a number"); 32],
            };
            Act::Upgrade(Upgrade { module, argument: Bytes::from(argument.to_owned()) })
        }
        "!create-short" => {
            let mut operation = Operation::create(MODULE, Bytes::new());
            if let Some(Act::Create(create)) = &mut operation.act {
                create.module.truncate(31);
            }
            return operation;
        }
        "!expire" => Act::Expire(Expire { leases: numbers().collect() }),
        "!verdict" => {
            let [index, offset] = numbers().collect::<Vec<_>>()[..] else {
                panic!("{text:?}: INDEX OFFSET WORD")
            };
            Act::Verdict(Verdict { index, offset: offset as u32, exhausted: rest.ends_with("exhausted") })
        }
        "!grant" | "!session" => {
            let numbers: Vec<u64> = numbers().collect();
            let grant = Grant { ttl_ms: numbers[0], id: numbers.get(1).copied().unwrap_or_default() };
            if name == "!grant" { Act::Grant(grant) } else { Act::OpenSession(grant) }
        }
        "!renew" => Act::Renew(Renew { leases: numbers().collect() }),
        "!revoke" => Act::Revoke(numbers().next().expect("a lease")),
        "!trim" => Act::Trim(numbers().next().expect("a revision")),
        "!limit" => {
            let numbers: Vec<Option<u64>> = rest.split(' ').map(|word| word.parse().ok()).collect();
            Act::Configure(Settings {
                leases_max: numbers[0],
                sessions_max: numbers[1],
                session_window: numbers[2],
                ..Settings::default()
            })
        }
        "!numbered" => {
            let (numbers, command) = rest.split_once(": ").expect("numbers: command");
            let numbers: Vec<u64> = numbers.split(' ').filter_map(|word| word.parse().ok()).collect();
            let [session, number, acknowledged] = numbers[..] else { panic!("{text:?}: three numbers") };
            let numbered = Numbered { session, number, acknowledged };
            return Operation::numbered(Bytes::from(command.to_owned()), numbered);
        }
        "!unknown" => return Operation::default(),
        _ => Act::Command(Bytes::from(text.to_owned())),
    };
    act.into()
}

fn line(out: &mut String, text: impl AsRef<str>) {
    out.push_str(text.as_ref().trim_end());
    out.push('\n');
}

fn print_applied(out: &mut String, applied: &Applied, instances: u32) {
    for OutcomeAt { index, revision, outcome } in &applied.outcomes {
        let before = if *index == applied.head.index { String::new() } else { format!(" of index {index}") };
        line(out, format!("{} @{revision}{before}", outcome_text(outcome)));
    }
    for write in &applied.writes {
        for text in row_texts(write.table, &write.key, write.value.as_deref()) {
            line(out, format!("  {text}"));
        }
    }
    let notes: Vec<String> = applied.notes.iter().map(note_text).collect();
    for same in notes.chunk_by(|a, b| a == b) {
        let times = if same.len() > 1 { format!(", {} times", same.len()) } else { String::new() };
        line(out, format!("  {}{times}", same[0]));
    }
    let Head { index, time, hash, leases, module, .. } = &applied.head;
    let Tally { last, live, sessions } = leases;
    let created = match module {
        Some(MODULE) => "created".to_owned(),
        Some(Digest(other)) => format!("runs {}", other[0]),
        None => "not created".to_owned(),
    };
    let hash = &hash.to_string()[..8];
    line(
        out,
        format!(
            "index {index} time {time} leases {live}/{last} sessions {sessions} {created} hash {hash} \
             instances {instances}"
        ),
    );
}

fn note_text(note: &Note) -> String {
    match note {
        Note::Line(offset, logged) => {
            format!("input {offset} logs {:?} {}", logged.level, short(&logged.message))
        }
        Note::Ended(offset, why) => format!("input {offset} ended: {why}"),
    }
}

fn outcome_text(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Ok(answer) if answer.is_empty() => "ok".to_owned(),
        Outcome::Ok(answer) if answer.len() == 8 && answer[0] == 0 => {
            format!("granted {}", Operation::granted(answer).unwrap_or_default())
        }
        Outcome::Ok(answer) if answer[0] == 0x0a => {
            let renewed: Renewed = prost::Message::decode(answer.clone()).expect("the answer to a renewal");
            format!("renewed {:?}", renewed.ttls_ms)
        }
        Outcome::Ok(answer) => format!("ok {}", short(&text_of(answer))),
        Outcome::Refused(refusal) => format!("refused {} {}", refusal.code, short(&refusal.message)),
        Outcome::Host(code) => format!("{code:?}"),
    }
}

/// A row in words: a line for each event, one line for any other row.
fn row_texts(table: Table, key: &[u8], value: Option<&[u8]>) -> Vec<String> {
    if table != Table::Events {
        return vec![row_text(table, key, value)];
    }
    let row = value.expect("events are never deleted");
    event::read_row(key, row).expect("a row of events").iter().map(event_text).collect()
}

fn event_text(event: &Event) -> String {
    let Event { revision, ordinal, kind, key, value, index, time_ms } = event;
    let kind = if *kind == EventKind::Put { "put" } else { "delete" };
    let (key, value) = (short(&text_of(key)), short(&text_of(value)));
    format!("event {revision}.{ordinal} {kind} {key} {value} (index {index}, time {time_ms})")
}

fn row_text(table: Table, key: &[u8], value: Option<&[u8]>) -> String {
    let text = |bytes: &[u8]| short(&text_of(bytes));
    match table {
        Table::Leases => lease_text(key, value),
        Table::Head => {
            let (index, offset) = key[8..].split_at(8);
            let index = u64::from_be_bytes(index.try_into().expect("8 bytes"));
            let offset = u32::from_be_bytes(offset.try_into().expect("4 bytes"));
            format!(
                "input {offset} of batch {index} is settled{}",
                if value.is_some() {
                    ""
                } else {
                    " no \
                more"
                }
            )
        }
        table => {
            let value = value.map_or("gone".to_owned(), |value| format!("= {}", text(value)));
            format!("{} {} {value}", format!("{table:?}").to_lowercase(), text(key))
        }
    }
}

fn lease_text(key: &[u8], value: Option<&[u8]>) -> String {
    let number = |at: usize| u64::from_be_bytes(key[at..at + 8].try_into().expect("8 bytes"));
    let gone = if value.is_some() { "" } else { " gone" };
    match (key[0], value) {
        (b'l', Some(value)) => {
            let lease: Lease = prost::Message::decode(value).expect("a lease's row");
            let Lease { ttl_ms, deadline_ms, .. } = lease;
            let whose = if lease.of_machine { "timer" } else { "lease" };
            format!("{whose} {} for {ttl_ms} ends at {deadline_ms}", number(1))
        }
        (b'l', None) => format!("lease {} gone", number(1)),
        (b's', Some(value)) => format!("session {} acknowledged {}", number(1), value.get(1).unwrap_or(&0)),
        (b's', None) => format!("session {} gone", number(1)),
        (b'o', Some(value)) => {
            let OutcomeAt { index, outcome, .. } = OutcomeRow::read(value).expect("an outcome's row");
            format!("outcome {} of session {}: {} at {index}", number(9), number(1), outcome_text(&outcome))
        }
        (b'o', None) => format!("outcome {} of session {} gone", number(9), number(1)),
        (b'd', _) => format!("due {} lease {}{gone}", number(1), number(9)),
        (b'a', _) => format!("attached to {}: {}{gone}", number(1), text_of(&key[9..])),
        (b'k', Some(value)) => {
            let lease = u64::from_be_bytes(value.try_into().expect("8 bytes"));
            format!("holder of {}: {lease}", text_of(&key[1..]))
        }
        (b'k', None) => format!("holder of {} gone", text_of(&key[1..])),
        _ => panic!("a row of leases that no script knows: {key:?}"),
    }
}
