//! A guest written in words: its inputs are lists of actions, and it does what they say.
//!
//! An input is text: actions joined by `;`, each a word with its arguments. `@100` stands for a hundred times
//! `x` and `""` for nothing at all. What an action reads becomes part of the answer. A lease's end runs the
//! actions kept under the key `on-end` (`$lease` and `$keys` are filled in), or else deletes the lease's keys
//! and tells of it.
//!
//! Like a component, it has a memory of its own that dies with the instance, and a budget: each action costs
//! 1 of 100 units, twice as much in an instance that was restored, so that budgets depend on where an
//! instance began.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::error::Fault;
use crate::id::Digest;
use crate::machine::event::EventKind;
use crate::machine::frame::{CallError, Frame, LeaseFailure, LogLevel};
use crate::machine::guest::{Components, Ending, Guest, Input, Instance, QueryView, Unready};
use crate::machine::outcome::{Context, Refusal};
use crate::machine::view::Direction;

/// What an input may cost in a fresh instance.
const BUDGET: u64 = 100;

/// What a live instance keeps between calls.
pub type Memory = BTreeMap<String, String>;

/// The component: makes instances, and shows tests what they cannot see otherwise.
#[derive(Clone, Default)]
pub struct ScriptedGuest {
    /// How many instances were made.
    pub instances: Arc<AtomicU32>,
    /// The memory of whichever instance applied an input last.
    pub memory: Arc<Mutex<Memory>>,
}

/// All components of a scripted machine are the same program: what differs is the digest.
impl Components for ScriptedGuest {
    fn component(&mut self, module: Digest) -> Result<Box<dyn Guest>, Unready> {
        match module {
            ABSENT => Err(Unready::Absent(module)),
            _ => Ok(Box::new(self.clone())),
        }
    }
}

/// A component whose bytes have not arrived.
pub const ABSENT: Digest = Digest([0xab; 32]);

impl Guest for ScriptedGuest {
    fn instance(&mut self) -> Result<Box<dyn Instance>, Fault> {
        self.instances.fetch_add(1, Ordering::Relaxed);
        let instance = ScriptedInstance {
            shown: self.memory.clone(),
            memory: Memory::new(),
            calls: 0,
            factor: 1,
            restored: false,
            dead: false,
        };
        instance.show();
        Ok(Box::new(instance))
    }
}

struct ScriptedInstance {
    shown: Arc<Mutex<Memory>>,
    memory: Memory,
    calls: u32,
    factor: u32,
    restored: bool,
    dead: bool,
}

/// Why a call ends before its last action.
enum Early {
    Refused(Refusal),
    Trapped(String),
    Exhausted,
    Fault(Fault),
}

impl From<CallError> for Early {
    fn from(error: CallError) -> Early {
        match error {
            CallError::Limit(what) => Early::Trapped(what),
            CallError::Fault(fault) => Early::Fault(fault),
        }
    }
}

/// One call under way.
struct Call<'a> {
    instance: &'a mut ScriptedInstance,
    frame: &'a mut Frame,
    context: Context,
    budget: u64,
    answer: Vec<String>,
}

impl Instance for ScriptedInstance {
    fn apply(&mut self, mut frame: Frame, context: Context, input: &Input) -> (Frame, Ending) {
        let actions = match input {
            Input::Created(text) | Input::Command(text) => text_of(text),
            Input::LeaseEnded { lease, keys } => self.on_end(&frame, *lease, keys),
            Input::Upgraded { previous, argument } => text_of(argument).replace("$previous", &previous[..8]),
        };
        let ending = self.run(&mut frame, context, &actions);
        self.show();
        (frame, ending)
    }

    fn scale_budget(&mut self, factor: u32) {
        self.factor = factor;
    }

    fn query(&mut self, mut frame: Frame, view: QueryView, request: &[u8]) -> (Frame, Ending) {
        let context = Context { index: view.index, offset: 0, time: view.time, revision: view.revision };
        let ending = self.run(&mut frame, context, &text_of(request));
        (frame, ending)
    }

    fn save(&mut self, mut frame: Frame) -> (Frame, Ending) {
        let actions = self.memory.get("on-save").map_or(String::new(), |actions| unpack(actions));
        let mut ending = self.run(&mut frame, Context::default(), &actions);
        if let Ending::Answer(_) = ending {
            for chunk in self.text().as_bytes().chunks(10) {
                if let Err(error) = frame.write_chunk(chunk) {
                    ending = self.end(Err(error.into()), Vec::new());
                    break;
                }
            }
        }
        (frame, ending)
    }

    fn restore(&mut self, mut frame: Frame) -> (Frame, Ending) {
        let mut text = Vec::new();
        loop {
            match frame.read_chunk(7) {
                Ok(chunk) if chunk.is_empty() => break,
                Ok(chunk) => text.extend(chunk),
                Err(error) => return (frame, self.end(Err(error.into()), Vec::new())),
            }
        }
        self.restored = true;
        for line in text_of(&text).lines() {
            let (key, value) = line.split_once(' ').expect("save writes a key and a value on each line");
            self.memory.insert(key.to_owned(), value.to_owned());
        }
        self.show();
        let actions = self.memory.get("on-restore").map_or(String::new(), |actions| unpack(actions));
        let ending = self.run(&mut frame, Context::default(), &actions);
        (frame, ending)
    }
}

impl ScriptedInstance {
    /// All of the memory, a line for each pair.
    fn text(&self) -> String {
        self.memory.iter().map(|(key, value)| format!("{key} {value}\n")).collect()
    }

    fn show(&self) {
        *self.shown.lock().expect("no test thread panics while it holds the memory") = self.memory.clone();
    }

    fn on_end(&self, frame: &Frame, lease: u64, keys: &[Vec<u8>]) -> String {
        let keys: Vec<String> = keys.iter().map(|key| text_of(key)).collect();
        let kept = frame.get(b"on-end").ok().flatten().map(|text| text_of(&text));
        let kept = kept.or_else(|| self.memory.get("on-end").cloned());
        match kept {
            Some(actions) => unpack(&actions)
                .replace("$lease", &lease.to_string())
                .replace("$keys", &format!("[{}]", keys.join(","))),
            None => keys.iter().map(|key| format!("emit-delete {key};")).collect(),
        }
    }

    fn run(&mut self, frame: &mut Frame, context: Context, actions: &str) -> Ending {
        assert!(!self.dead, "a dead instance was called again");
        self.calls += 1;
        let budget = BUDGET * u64::from(self.factor);
        let mut call = Call { instance: self, frame, context, budget, answer: Vec::new() };
        let mut result = Ok(());
        for action in actions.split(';').map(str::trim).filter(|action| !action.is_empty()) {
            result = call.action(action);
            if result.is_err() {
                break;
            }
        }
        let answer = call.answer;
        self.end(result, answer)
    }

    fn end(&mut self, result: Result<(), Early>, answer: Vec<String>) -> Ending {
        self.dead = !matches!(result, Ok(()) | Err(Early::Refused(_)));
        match result {
            Ok(()) => Ending::Answer(Bytes::from(answer.join(" "))),
            Err(Early::Refused(refusal)) => Ending::Refused(refusal),
            Err(Early::Trapped(what)) => Ending::Trapped(what),
            Err(Early::Exhausted) => Ending::Exhausted("out of budget".to_owned()),
            Err(Early::Fault(fault)) => Ending::Fault(fault),
        }
    }
}

impl Call<'_> {
    fn action(&mut self, action: &str) -> Result<(), Early> {
        let words: Vec<String> = action.split_whitespace().map(expand).collect();
        let (name, arguments) = words.split_first().expect("an action has at least its name");
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        if name == "repeat" {
            let (_, what) = action.split_once(arguments[0]).expect("repeat is given a number and an action");
            // A repetition costs once: the limits that it is for are in the thousands.
            self.charge(1)?;
            let budget = self.budget;
            for _ in 0..number(arguments[0]) {
                self.budget = budget;
                self.action(what)?;
            }
            return Ok(());
        }
        self.charge(1)?;
        let known = self.own(name, &arguments)?
            || self.store(name, &arguments)?
            || self.events_and_leases(name, &arguments)?
            || self.snapshot(name, &arguments)?;
        assert!(known, "the scripted guest does not know {action:?}");
        Ok(())
    }

    fn charge(&mut self, cost: u64) -> Result<(), Early> {
        let cost = if self.instance.restored { 2 * cost } else { cost };
        self.budget = self.budget.checked_sub(cost).ok_or(Early::Exhausted)?;
        Ok(())
    }

    fn say(&mut self, word: impl ToString) {
        self.answer.push(word.to_string());
    }

    /// What an instance does by itself.
    fn own(&mut self, name: &str, arguments: &[&str]) -> Result<bool, Early> {
        match (name, arguments) {
            ("answer", words) => self.say(words.join(" ")),
            ("refuse", [code, message]) => {
                let refusal = Refusal { code: number(code) as u32, message: (*message).to_owned() };
                return Err(Early::Refused(refusal));
            }
            ("trap", []) => return Err(Early::Trapped("as the script says".to_owned())),
            ("loop", []) => return Err(Early::Exhausted),
            ("fault", []) => return Err(Early::Fault(Fault::new("as the script says"))),
            ("burn", [cost]) => self.charge(number(cost))?,
            ("calls", []) => self.say(self.instance.calls),
            // What no guest should be able to do: an answer that depends on how its instance was made.
            ("whim", []) => self.say(if self.instance.restored { "restored" } else { "fresh" }),
            ("context", []) => {
                let Context { index, offset, time, revision } = self.context;
                self.say(format!("index={index} offset={offset} time={time} revision={revision}"));
            }
            ("remember", [key, value]) => {
                self.instance.memory.insert((*key).to_owned(), (*value).to_owned());
            }
            ("memory", []) => {
                let text = self.instance.text();
                self.say(text);
            }
            ("recall", [key]) => {
                self.say(self.instance.memory.get(*key).cloned().unwrap_or("nothing".to_owned()));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn store(&mut self, name: &str, arguments: &[&str]) -> Result<bool, Early> {
        match (name, arguments) {
            ("set", [key, value]) => self.frame.set((*key).into(), (*value).into())?,
            ("delete", [key]) => self.frame.delete((*key).into())?,
            ("delete-span", [start, end]) => {
                let deleted = self.frame.delete_span(start.as_bytes(), bound(end))?;
                self.say(deleted);
            }
            ("get", [key]) => {
                let value = self.frame.get(key.as_bytes())?;
                self.say(value.map_or("nothing".to_owned(), |value| short(&text_of(&value))));
            }
            ("get-many", [key, times]) => {
                let keys = vec![key.as_bytes().to_vec(); number(times) as usize];
                let values = self.frame.get_many(&keys)?;
                self.say(format!("{} of {}", values.iter().flatten().count(), values.len()));
            }
            ("scan", [start, end, limit, direction]) => {
                let direction = if *direction == "back" { Direction::Backward } else { Direction::Forward };
                let pairs = self.frame.scan(start.as_bytes(), bound(end), number(limit) as u32, direction)?;
                let text = |bytes: &[u8]| short(&text_of(bytes));
                let pairs: Vec<_> = pairs.iter().map(|(k, v)| format!("{}={}", text(k), text(v))).collect();
                self.say(format!("[{}]", pairs.join(" ")));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn events_and_leases(&mut self, name: &str, arguments: &[&str]) -> Result<bool, Early> {
        match (name, arguments) {
            ("emit", [key, value]) => self.frame.emit(EventKind::Put, (*key).into(), (*value).into())?,
            ("emit-delete", [key]) => self.frame.emit(EventKind::Delete, (*key).into(), Vec::new())?,
            ("log", [level, message]) => {
                let level = match *level {
                    "debug" => LogLevel::Debug,
                    "info" => LogLevel::Info,
                    "warn" => LogLevel::Warn,
                    _ => LogLevel::Error,
                };
                self.frame.log(level, (*message).to_owned())?;
            }
            ("grant", [ttl]) => {
                let granted = self.frame.grant(number(ttl))?;
                self.say_lease(granted);
            }
            ("revoke", [lease]) => {
                let revoked = self.frame.revoke(number(lease))?;
                self.say_lease(revoked.map(|()| 0));
            }
            ("attach", [lease, key]) => {
                let attached = self.frame.attach(number(lease), key.as_bytes())?;
                self.say_lease(attached.map(|()| 0));
            }
            ("detach", [key]) => self.frame.detach(key.as_bytes())?,
            ("remaining", [lease]) => {
                let remaining = self.frame.remaining(number(lease))?;
                self.say_lease(remaining);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn snapshot(&mut self, name: &str, arguments: &[&str]) -> Result<bool, Early> {
        match (name, arguments) {
            ("write-chunk", [bytes]) => self.frame.write_chunk(bytes.as_bytes())?,
            ("read-chunk", [limit]) => {
                let chunk = self.frame.read_chunk(number(limit) as u32)?;
                self.say(chunk.len());
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn say_lease(&mut self, result: Result<u64, LeaseFailure>) {
        match result {
            Ok(0) => {}
            Ok(number) => self.say(number),
            Err(failure) => self.say(format!("{failure:?}")),
        }
    }
}

/// Actions that were the argument of an action themselves: with `+` in place of `;` and `_` in place of
/// spaces.
fn unpack(actions: &str) -> String {
    actions.replace('+', ";").replace('_', " ")
}

fn expand(word: &str) -> String {
    match word.strip_prefix('@').and_then(|count| count.parse().ok()) {
        Some(count) => "x".repeat(count),
        None if word == "\"\"" => String::new(),
        None => word.to_owned(),
    }
}

fn bound(word: &str) -> Option<&[u8]> {
    (word != "-").then_some(word.as_bytes())
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word:?} is not the number that the action needs"))
}

/// Bytes of a script, which are text.
pub fn text_of(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("scripts are text")
}

/// Text for a script's output: long runs of one letter are counted.
pub fn short(text: &str) -> String {
    let first = text.chars().next();
    match first {
        Some(letter) if text.len() > 40 && text.chars().all(|c| c == letter) => {
            format!("{letter}*{}", text.len())
        }
        _ => text.to_owned(),
    }
}
