//! Leases against a model: whatever clients, the machine, the clock and new leaders do to them in whatever
//! order, and wherever the state is saved and restored between.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::guest::ScriptedGuest;
use crate::id::Digest;
use crate::machine::apply::{self, Applied};
use crate::machine::batch::{Act, Batch, Expire, Grant, Head, Operation, Renew, Renewed};
use crate::machine::event;
use crate::machine::lease;
use crate::machine::outcome::Outcome;
use crate::machine::view::{Direction, MemoryView, Span, Table, View};

/// Something that happens to leases.
#[derive(Clone, Debug)]
enum Step {
    Grant(u64),
    Timer(u64),
    Renew(Vec<usize>),
    Revoke(usize),
    MachineRevokes(usize),
    Attach(usize, u8),
    Detach(u8),
    /// The leader proposes the end of so many of what is due by its clock.
    Expire(usize),
    /// The leader is wrong about what is due.
    ExpireAnything(Vec<usize>),
}

/// A batch: how much later it is stamped, whether a new leader made it, and what it does; then, whether the
/// state is saved and restored.
type Round = (u64, bool, Vec<Step>, bool);

fn step() -> impl Strategy<Value = Step> {
    let some = || 0..12_usize;
    prop_oneof![
        4 => (1..60u64).prop_map(Step::Grant),
        2 => (0..60u64).prop_map(Step::Timer),
        3 => proptest::collection::vec(some(), 0..4).prop_map(Step::Renew),
        1 => some().prop_map(Step::Revoke),
        1 => some().prop_map(Step::MachineRevokes),
        4 => (some(), 0..4u8).prop_map(|(lease, key)| Step::Attach(lease, key)),
        1 => (0..4u8).prop_map(Step::Detach),
        4 => (1..4usize).prop_map(Step::Expire),
        1 => proptest::collection::vec(some(), 0..4).prop_map(Step::ExpireAnything),
    ]
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let round = (0..25u64, prop::bool::weighted(0.2), proptest::collection::vec(step(), 0..6), any::<bool>());
    proptest::collection::vec(round, 1..25)
}

/// A lease as promised.
#[derive(Clone, Debug)]
struct Promise {
    ttl_ms: u64,
    deadline_ms: u64,
    timer: bool,
}

#[derive(Default)]
struct Model {
    leases: BTreeMap<u64, Promise>,
    keys: BTreeMap<u8, u64>,
    term_began_ms: u64,
}

impl Model {
    fn end_ms(&self, id: u64) -> Option<u64> {
        let Promise { ttl_ms, deadline_ms, timer } = self.leases.get(&id)?;
        let least_ms = if *timer { 0 } else { self.term_began_ms + ttl_ms / 3 };
        Some(least_ms.max(*deadline_ms))
    }

    /// Clients' leases are dead at their end, timers when it is told.
    fn lives(&self, id: u64, now_ms: u64) -> bool {
        self.leases.get(&id).is_some_and(|promise| promise.timer)
            || self.end_ms(id).is_some_and(|end_ms| end_ms > now_ms)
    }

    fn is_clients(&self, id: u64, now_ms: u64) -> bool {
        self.lives(id, now_ms) && !self.leases[&id].timer
    }

    fn drop_lease(&mut self, id: u64) {
        self.leases.remove(&id);
        self.keys.retain(|_, lease| *lease != id);
    }
}

struct Machine {
    head: Head,
    rows: MemoryView,
    model: Model,
    now_ms: u64,
}

impl Machine {
    fn new() -> Machine {
        let head = Head { module: Some(Digest([7; 32])), ..Head::default() };
        let mut machine =
            Machine { head, rows: MemoryView::default(), model: Model::default(), now_ms: 1_000 };
        // The ends of leases are told in the order in which they come.
        machine.apply(false, vec![command("set on-end emit_ended_$lease")]);
        machine
    }

    fn apply(&mut self, begins_term: bool, operations: Vec<Operation>) -> Applied {
        let batch = Batch { time_ms: self.now_ms, operations, begins_term };
        let view = Arc::new(std::mem::take(&mut self.rows));
        let (index, mut guest) = (self.head.index.next(), ScriptedGuest::default());
        let applied = apply::stored(&self.head, index, &batch, view.clone(), &mut guest);
        let applied = applied.expect("the scripted guest has no faults");
        self.rows = Arc::into_inner(view).expect("no guest keeps its view");
        for write in &applied.writes {
            self.rows.put(write.table, write.key.clone(), write.value.clone());
        }
        self.head = applied.head;
        applied
    }

    /// An id that was given, or will be.
    fn id(&self, place: usize) -> u64 {
        let ids: Vec<u64> = self.model.leases.keys().copied().collect();
        ids.get(place).copied().unwrap_or(self.head.leases.last + place as u64 % 2)
    }

    fn operation(&self, step: &Step) -> Operation {
        let ids = |places: &[usize]| places.iter().map(|place| self.id(*place)).collect();
        match step {
            Step::Grant(ttl_ms) => Act::Grant(Grant { ttl_ms: *ttl_ms, id: 0 }).into(),
            Step::Timer(ttl_ms) => command(&format!("grant {ttl_ms}")),
            Step::Renew(places) => Act::Renew(Renew { leases: ids(places) }).into(),
            Step::Revoke(place) => Act::Revoke(self.id(*place)).into(),
            Step::MachineRevokes(place) => command(&format!("revoke {}", self.id(*place))),
            Step::Attach(place, key) => command(&format!("attach {} {}", self.id(*place), name(*key))),
            Step::Detach(key) => command(&format!("detach {}", name(*key))),
            Step::Expire(limit) => {
                let leases = lease::due(&self.rows, self.now_ms, *limit).expect("memory has no faults");
                Act::Expire(Expire { leases }).into()
            }
            Step::ExpireAnything(places) => Act::Expire(Expire { leases: ids(places) }).into(),
        }
    }

    /// One operation a batch, so that each is held against the model by itself.
    fn take(&mut self, step: &Step, begins_term: bool) {
        let operation = self.operation(step);
        if begins_term {
            self.model.term_began_ms = self.now_ms;
        }
        let applied = self.apply(begins_term, vec![operation.clone()]);
        let (model, now_ms) = (&mut self.model, self.now_ms);
        let outcome = &applied.outcomes[0].outcome;
        let done = !matches!(outcome, Outcome::Host(_)) && !answers(outcome, "UnknownLease");
        match (step, operation.act) {
            (Step::Grant(ttl_ms), _) | (Step::Timer(ttl_ms), _) => {
                let timer = matches!(step, Step::Timer(_));
                let promise = Promise { ttl_ms: *ttl_ms, deadline_ms: now_ms + ttl_ms, timer };
                let id = applied.head.leases.last;
                assert!(model.leases.insert(id, promise).is_none());
            }
            (_, Some(Act::Renew(renew))) => {
                let Outcome::Ok(answer) = outcome else { panic!("{outcome:?}") };
                let renewed: Renewed = prost::Message::decode(answer.clone()).unwrap();
                for (id, ttl_ms) in renew.leases.iter().zip(renewed.ttls_ms) {
                    assert_eq!(ttl_ms > 0, model.is_clients(*id, now_ms), "{id}");
                    if let Some(promise) = model.leases.get_mut(id).filter(|_| ttl_ms > 0) {
                        promise.deadline_ms = now_ms + promise.ttl_ms;
                    }
                }
            }
            (_, Some(Act::Revoke(id))) => {
                assert_eq!(done, model.is_clients(id, now_ms), "{id}");
                if done {
                    model.drop_lease(id);
                }
            }
            (_, Some(Act::Expire(expire))) => self.check_ends(&expire, &applied),
            (Step::MachineRevokes(_), Some(Act::Command(text))) => {
                let id = word(&text, 1).parse().unwrap();
                assert_eq!(done, model.lives(id, now_ms), "{id}");
                if done {
                    model.drop_lease(id);
                }
            }
            (Step::Attach(_, key), Some(Act::Command(text))) => {
                let id = word(&text, 1).parse().unwrap();
                assert_eq!(done, model.lives(id, now_ms), "{id}");
                if done {
                    model.keys.insert(*key, id);
                }
            }
            (Step::Detach(key), _) => drop(model.keys.remove(key)),
            (step, act) => panic!("{step:?} became {act:?}"),
        }
    }

    /// Those of the list that have come to their end, and no others, end by deadline, then id.
    fn check_ends(&mut self, expire: &Expire, applied: &Applied) {
        let listed: BTreeSet<u64> = expire.leases.iter().copied().collect();
        let mut due: Vec<(u64, u64)> =
            listed.into_iter().filter_map(|id| Some((self.model.end_ms(id)?, id))).collect();
        due.retain(|(end_ms, _)| *end_ms <= self.now_ms);
        due.sort_unstable();
        let mut told = Vec::new();
        for write in applied.writes.iter().filter(|write| write.table == Table::Events) {
            let row = write.value.clone().expect("events are never deleted");
            let events = event::read_row(&write.key, row).expect("a row of events");
            told.extend(events.iter().map(|event| word(&event.value, 0).parse::<u64>().unwrap()));
        }
        assert_eq!(told, due.iter().map(|(_, id)| *id).collect::<Vec<_>>());
        due.into_iter().for_each(|(_, id)| self.model.drop_lease(id));
    }

    /// The rows say what was promised, and nothing is left of what has ended.
    fn check_rows(&self) {
        let ids = lease::ids_after(&self.rows, 0, usize::MAX).unwrap();
        assert_eq!(ids, self.model.leases.keys().copied().collect::<Vec<_>>());
        assert_eq!(self.head.leases.live, ids.len() as u64);
        let mut attached = BTreeMap::new();
        for id in &ids {
            for key in lease::attached_in(&self.rows, *id, None, usize::MAX).unwrap() {
                assert!(attached.insert(key[0] - b'a', *id).is_none(), "a key is attached twice");
            }
            let due = lease::due(&self.rows, self.model.end_ms(*id).unwrap(), usize::MAX).unwrap();
            assert!(due.contains(id), "lease {id} would never be looked at");
        }
        assert_eq!(attached, self.model.keys);
        let (mut rows, whole) = (0, Span { start: b"", end: None });
        let count = &mut |_: &[u8], _: &[u8]| {
            rows += 1;
            ControlFlow::Continue(())
        };
        self.rows.scan(Table::Leases, whole, Direction::Forward, count).unwrap();
        assert_eq!(rows, 2 * ids.len() + 2 * attached.len(), "a row of what has ended is left");
    }

    /// The state goes through its stored form.
    fn restore(&mut self) {
        self.head = Head::decode(&self.head.encode()).unwrap();
        let mut copy = MemoryView::default();
        for (table, key, value) in self.rows.rows() {
            copy.put(table, key.to_vec(), Some(Bytes::copy_from_slice(value)));
        }
        self.rows = copy;
    }
}

fn command(text: &str) -> Operation {
    Operation::command(Bytes::from(text.to_owned()))
}

fn name(key: u8) -> char {
    char::from(b'a' + key)
}

fn word(text: &[u8], place: usize) -> &str {
    let text = std::str::from_utf8(text).expect("scripts are text");
    text.split(' ').nth(place).expect("so many words")
}

fn answers(outcome: &Outcome, text: &str) -> bool {
    matches!(outcome, Outcome::Ok(answer) if answer == text.as_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_live_lease_ends_no_dead_one_keeps_a_key_and_all_end_in_order(rounds in rounds()) {
        let mut machine = Machine::new();
        for (pause_ms, new_leader, steps, restored) in &rounds {
            machine.now_ms += pause_ms;
            for (place, step) in steps.iter().enumerate() {
                machine.take(step, *new_leader && place == 0);
                machine.check_rows();
            }
            if *restored {
                machine.restore();
            }
        }
        // Nothing that is due is forgotten.
        machine.now_ms += 1_000;
        let ended = machine.model.leases.len();
        (0..=2 * ended).for_each(|_| machine.take(&Step::Expire(3), false));
        prop_assert!(machine.model.leases.is_empty(), "{:?}", machine.model.leases);
        machine.check_rows();
    }
}
