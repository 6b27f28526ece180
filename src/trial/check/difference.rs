//! Two runs compared: the first input at which they differ, and both sides.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::course::Run;
use super::recorder::{Asked, Step};
use crate::machine::event::{Event, EventKind};
use crate::machine::frame::ONLY_APPLY_WRITES;
use crate::machine::guest::Input;
use crate::machine::outcome::Outcome;
use crate::machine::overlay::Write;
use crate::machine::view::Table;

/// Bytes of a value that are shown.
const SHOWN_BYTES_MAX: usize = 160;

/// Where two runs part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which of the machine's inputs it was, from 1: its creation.
    pub number: u64,
    /// The input, as text.
    pub input: String,
    /// Whether it is a query, asked after that input.
    pub is_query: bool,
    /// What differs.
    pub what: String,
    /// How it is in the run that the other is compared with.
    pub expected: String,
    /// How it is in the other.
    pub found: String,
}

/// What differs between two sides.
struct Sides {
    what: String,
    expected: String,
    found: String,
}

impl Sides {
    fn of(what: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Option<Sides> {
        Some(Sides { what: what.into(), expected: expected.into(), found: found.into() })
    }

    fn at(self, number: u64, input: String) -> Difference {
        let Sides { what, expected, found } = self;
        Difference { number, input, is_query: false, what, expected, found }
    }

    fn of_query(self, asked: &Asked) -> Difference {
        let query = format!("the query {}", shown(&asked.request));
        Difference { is_query: true, ..self.at(asked.after, query) }
    }
}

/// What is wrong with a run by itself.
pub fn within(run: &Run) -> Option<Difference> {
    if let Some((was, is)) = &run.contradiction {
        let sides = step_sides(was, is, &[], &[])?;
        let what = format!("in a replay from the same state, {}", sides.what);
        return Some(Sides { what, ..sides }.at(was.number, shown_input(&was.input)));
    }
    if let Some((number, why)) = &run.halted {
        return Some(
            Sides::of("the machine cannot go on", "it goes on", why)?.at(*number, "the next".into()),
        );
    }
    let writes = |asked: &&Asked| asked.why.as_ref().is_some_and(|why| why.contains(ONLY_APPLY_WRITES));
    if let Some(asked) = run.asked.iter().find(writes) {
        let found = shown_outcome(&asked.outcome, asked.why.as_deref());
        return Some(Sides::of("a query only reads", "it answers or refuses", found)?.of_query(asked));
    }
    let (before, again) = run.wavered.as_ref()?;
    let sides =
        outcome_sides((&before.outcome, before.why.as_deref()), (&again.outcome, again.why.as_deref()))?;
    let what = format!("asked again of the same state, {}", sides.what);
    Some(Sides { what, ..sides }.of_query(before))
}

/// Queries of the same states.
fn of_queries(expected: &Run, found: &Run) -> Option<Difference> {
    expected.asked.iter().zip(&found.asked).find_map(|(left, right)| {
        let sides =
            outcome_sides((&left.outcome, left.why.as_deref()), (&right.outcome, right.why.as_deref()))?;
        Some(sides.of_query(left))
    })
}

/// Compares runs of one machine whose inputs came in different batches.
pub fn of_ways(expected: &Run, found: &Run) -> Option<Difference> {
    let rows = || {
        let sides = row_sides(&expected.rows, &found.rows)?;
        Some(sides.at(last_number(found), "the last".into()))
    };
    within(found)
        .or_else(|| of_steps(expected, found, false))
        .or_else(|| of_queries(expected, found))
        .or_else(|| of_saved(expected, found))
        .or_else(rows)
}

/// Compares runs of the same batches.
pub fn of_replicas(expected: &Run, found: &Run) -> Option<Difference> {
    let found_first = within(found).or_else(|| of_steps(expected, found, true));
    found_first.or_else(|| of_queries(expected, found)).or_else(|| {
        let mut pairs = expected.hashes.iter().zip(&found.hashes);
        let (left, right) = pairs.find(|(left, right)| left != right)?;
        let what = format!("the hash of the state after batch {}", left.0);
        Some(Sides::of(what, left.1.to_string(), right.1.to_string())?.at(last_number(found), "all".into()))
    })
}

fn last_number(run: &Run) -> u64 {
    run.steps.last().map_or(0, |step| step.number)
}

fn of_steps(expected: &Run, found: &Run, exactly: bool) -> Option<Difference> {
    let none: &[Event] = &[];
    for (left, right) in expected.steps.iter().zip(&found.steps) {
        let events = |run: &'_ Run, step: &Step| -> Vec<Event> {
            let has_some = matches!(step.outcome, Outcome::Ok(_));
            run.events.get(&step.revision).filter(|_| has_some).map_or(none, Vec::as_slice).to_vec()
        };
        let sides = step_sides(left, right, &events(expected, left), &events(found, right));
        let sides = sides.or_else(|| match exactly && left.fuel != right.fuel {
            true => Sides::of("the fuel that it took", left.fuel.to_string(), right.fuel.to_string()),
            false => None,
        });
        if let Some(sides) = sides {
            return Some(sides.at(left.number, shown_input(&left.input)));
        }
    }
    let longer = [expected, found].into_iter().max_by_key(|run| run.steps.len())?;
    let next = longer.steps.get(expected.steps.len().min(found.steps.len()))?;
    let told = |run: &Run| format!("{} inputs", run.steps.len());
    let sides = Sides::of("how many inputs there are", told(expected), told(found))?;
    Some(sides.at(next.number, shown_input(&next.input)))
}

fn step_sides(left: &Step, right: &Step, left_events: &[Event], right_events: &[Event]) -> Option<Sides> {
    if left.input != right.input {
        return Sides::of("the input itself", shown_input(&left.input), shown_input(&right.input));
    }
    outcome_sides((&left.outcome, left.why.as_deref()), (&right.outcome, right.why.as_deref()))
        .or_else(|| write_sides(&left.writes, &right.writes))
        .or_else(|| event_sides(left_events, right_events))
}

/// An outcome, and why the host ended the call if it did.
type Became<'a> = (&'a Outcome, Option<&'a str>);

fn outcome_sides(left: Became, right: Became) -> Option<Sides> {
    if left.0 == right.0 {
        return None;
    }
    let what = match (left.0, right.0) {
        (Outcome::Ok(left), Outcome::Ok(right)) => {
            format!("the answer, from byte {} on", first_difference(left, right))
        }
        _ => "the outcome".to_owned(),
    };
    Sides::of(what, shown_outcome(left.0, left.1), shown_outcome(right.0, right.1))
}

fn write_sides(left: &[Write], right: &[Write]) -> Option<Sides> {
    let (left, right) = (by_row(left), by_row(right));
    let key = left.keys().chain(right.keys()).filter(|key| left.get(*key) != right.get(*key)).min()?;
    let shown = |row: Option<&&Option<Bytes>>| match row {
        None => "not written".to_owned(),
        Some(None) => "deleted".to_owned(),
        Some(Some(value)) => shown(value),
    };
    let what = format!("what it wrote to {}", shown_row(key));
    Sides::of(what, shown(left.get(key)), shown(right.get(key)))
}

fn by_row(writes: &[Write]) -> BTreeMap<(Table, Vec<u8>), &Option<Bytes>> {
    writes.iter().map(|write| ((write.table, write.key.clone()), &write.value)).collect()
}

fn event_sides(left: &[Event], right: &[Event]) -> Option<Sides> {
    // The index is that of the batch, which may differ.
    let same = |left: &Event, right: &Event| {
        (left.revision, left.ordinal, left.kind, &left.key, &left.value)
            == (right.revision, right.ordinal, right.kind, &right.key, &right.value)
    };
    let longest = left.len().max(right.len());
    let at = (0..longest).find(|&at| match (left.get(at), right.get(at)) {
        (Some(left), Some(right)) => !same(left, right),
        _ => true,
    })?;
    let shown = |event: Option<&Event>| match event {
        None => "there is none".to_owned(),
        Some(Event { kind: EventKind::Put, key, value, .. }) => {
            format!("put {} to {}", self::shown(key), self::shown(value))
        }
        Some(Event { key, value, .. }) => format!("delete {} with {}", self::shown(key), self::shown(value)),
    };
    Sides::of(format!("its event {}", at + 1), shown(left.get(at)), shown(right.get(at)))
}

/// What resident machines saved at the same places.
fn of_saved(expected: &Run, found: &Run) -> Option<Difference> {
    let mut pairs = expected.saved.iter().filter_map(|(at, left)| Some((at, left, found.saved.get(at)?)));
    let (at, left, right) = pairs.find(|(_, left, right)| left != right)?;
    let from = first_difference(left, right);
    let part =
        |state: &Bytes| format!("{} bytes, there {}", state.len(), shown(&state[from.min(state.len())..]));
    let what = format!("what it saves after line {} of the commands, from byte {from} on", at + 1);
    Some(Sides::of(what, part(left), part(right))?.at(last_number(found), "a snapshot".into()))
}

fn row_sides(
    left: &BTreeMap<(Table, Vec<u8>), Bytes>,
    right: &BTreeMap<(Table, Vec<u8>), Bytes>,
) -> Option<Sides> {
    let mut keys = left.keys().chain(right.keys());
    let key = keys.find(|key| left.get(*key) != right.get(*key))?;
    let shown = |row: Option<&Bytes>| row.map_or("not there".to_owned(), |value| shown(value));
    let what = format!("in the end, {}", shown_row(key));
    Sides::of(what, shown(left.get(key)), shown(right.get(key)))
}

fn first_difference(left: &[u8], right: &[u8]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

fn shown_row((table, key): &(Table, Vec<u8>)) -> String {
    match table {
        Table::Store => format!("the key {}", shown(key)),
        table => format!("the row {} of {table:?}", shown(key)),
    }
}

fn shown_outcome(outcome: &Outcome, why: Option<&str>) -> String {
    match (outcome, why) {
        (Outcome::Ok(answer), _) => format!("answered {}", shown(answer)),
        (Outcome::Refused(refusal), _) => {
            format!("refused with code {}: {}", refusal.code, shown(refusal.message.as_bytes()))
        }
        (Outcome::Host(code), Some(why)) => {
            format!("{code:?}: {}", shown_why(why))
        }
        (Outcome::Host(code), None) => format!("{code:?}"),
    }
}

/// The end of why the host ended a call: before it comes where in the code that was.
pub fn shown_why(why: &str) -> String {
    why.lines().last().unwrap_or_default().trim().as_bytes().escape_ascii().to_string()
}

/// An input as text.
pub fn shown_input(input: &Input) -> String {
    match input {
        Input::Created(configuration) => format!("created with {}", shown(configuration)),
        Input::Command(command) => format!("command {}", shown(command)),
        Input::LeaseEnded { lease, keys } => format!("the end of lease {lease} with {} keys", keys.len()),
        Input::Upgraded { previous, argument } => {
            format!("upgraded from {previous} with {}", shown(argument))
        }
    }
}

/// Bytes as text that moves no cursor, cut where it gets long.
fn shown(bytes: &[u8]) -> String {
    if bytes.len() <= SHOWN_BYTES_MAX {
        return format!("\"{}\"", bytes.escape_ascii());
    }
    format!("\"{}\"... ({} bytes)", bytes[..SHOWN_BYTES_MAX].escape_ascii(), bytes.len())
}
