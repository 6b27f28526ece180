//! Properties of the heart over random batches: what a batch does is a function of its inputs and of nothing
//! else.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::guest::ScriptedGuest;
use crate::error::Fault;
use crate::id::{Digest, Index};
use crate::machine::apply::{self, Applied};
use crate::machine::batch::{Act, Batch, Expire, Head, Operation};
use crate::machine::frame::{Frame, LeaseFailure};
use crate::machine::lease::Tally;
use crate::machine::outcome::{Context, HostCode, Outcome};
use crate::machine::resident::{Halt, History, Resident, Saved};
use crate::machine::settings::Settings;
use crate::machine::settled::{self, Settled};
use crate::machine::view::MemoryView;

/// An action on few keys, so that inputs meet.
fn action() -> impl Strategy<Value = String> {
    let key = "[abc]";
    prop_oneof![
        4 => (key, "[0-9]").prop_map(|(key, value)| format!("set {key} {value}")),
        2 => key.prop_map(|key| format!("get {key}; delete {key}")),
        1 => Just("delete-span a c; scan a - 0 back".to_owned()),
        3 => (key, "[0-9]").prop_map(|(key, value)| format!("emit {key} {value}")),
        2 => (1..400u64).prop_map(|ttl| format!("grant {ttl}")),
        2 => (1..9u64, key).prop_map(|(lease, key)| format!("attach {lease} {key}; remaining {lease}")),
        1 => (1..9u64).prop_map(|lease| format!("revoke {lease}")),
        1 => key.prop_map(|key| format!("detach {key}")),
    ]
}

/// What a guilty input ends with.
fn guilt() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("refuse 7 no"), Just("trap"), Just("loop"), Just("set \"\" x")]
}

fn good_input() -> impl Strategy<Value = String> {
    proptest::collection::vec(action(), 1..4).prop_map(|actions| actions.join("; "))
}

fn bad_input() -> impl Strategy<Value = String> {
    (good_input(), guilt()).prop_map(|(before, guilt)| format!("{before}; {guilt}; set never there"))
}

/// Inputs of a batch; true marks those that the guest or the host ends without effect.
fn inputs() -> impl Strategy<Value = Vec<(String, bool)>> {
    let input = prop_oneof![3 => (good_input(), Just(false)), 1 => (bad_input(), Just(true))];
    proptest::collection::vec(input, 1..6)
}

/// Batches with the time that passes before each.
fn batches() -> impl Strategy<Value = Vec<(u64, Vec<(String, bool)>)>> {
    proptest::collection::vec((0..200u64, inputs()), 1..6)
}

fn command(text: &str) -> Operation {
    Operation::command(Bytes::from(text.to_owned()))
}

/// A stored machine in memory.
#[derive(Clone, Default)]
struct Stored {
    head: Head,
    view: MemoryView,
}

impl Stored {
    fn created() -> Stored {
        let mut machine = Stored::default();
        let create = Operation::create(Digest([7; 32]), Bytes::new());
        machine.apply(&Batch { time_ms: 1_000, operations: vec![create], begins_term: false });
        machine
    }

    fn apply(&mut self, batch: &Batch) -> Applied {
        let view = Arc::new(self.view.clone());
        let mut guest = ScriptedGuest::default();
        let applied = apply::stored(&self.head, self.head.index.next(), batch, view, &mut guest);
        let applied = applied.expect("the scripted guest has no faults");
        for write in &applied.writes {
            self.view.put(write.table, write.key.clone(), write.value.clone());
        }
        self.head = applied.head;
        applied
    }
}

/// The batches as the log would have them, with the ends of leases 1 to 8 before each one's commands.
fn log_of(batches: &[(u64, Vec<(String, bool)>)]) -> Vec<Batch> {
    let mut time_ms = 1_000;
    let mut log = Vec::new();
    for (pause, inputs) in batches {
        time_ms += pause;
        let expire = Act::Expire(Expire { leases: (1..9).collect() }).into();
        let commands = inputs.iter().map(|(text, _)| command(text));
        log.push(Batch {
            time_ms,
            operations: std::iter::once(expire).chain(commands).collect(),
            begins_term: false,
        });
    }
    log
}

proptest! {
    #[test]
    fn the_same_batches_give_the_same_hash_outcomes_and_rows(batches in batches()) {
        let (mut one, mut other) = (Stored::created(), Stored::created());
        for batch in log_of(&batches) {
            let (a, b) = (one.apply(&batch), other.apply(&batch));
            prop_assert_eq!(a.head.hash, b.head.hash);
            prop_assert_eq!((a.outcomes, a.writes), (b.outcomes, b.writes));
        }
        prop_assert!(one.view.rows().eq(other.view.rows()));
    }

    #[test]
    fn guilty_inputs_leave_no_trace_but_their_outcomes(batches in batches()) {
        let (mut all, mut innocent) = (Stored::created(), Stored::created());
        for (batch, (_, inputs)) in log_of(&batches).into_iter().zip(&batches) {
            let mut without = batch.clone();
            let mut guilty = std::iter::once(false).chain(inputs.iter().map(|(_, guilty)| *guilty));
            without.operations.retain(|_| !guilty.next().expect("one for each operation"));
            let (a, b) = (all.apply(&batch), innocent.apply(&without));
            prop_assert_eq!(a.writes, b.writes);
            prop_assert_eq!((a.head.revision, a.head.leases), (b.head.revision, b.head.leases));
            let mut kept = b.outcomes.iter().map(|first| &first.outcome);
            prop_assert_eq!(Some(&a.outcomes[0].outcome), kept.next());
            for (first, (text, guilty)) in a.outcomes[1..].iter().zip(inputs) {
                let outcome = &first.outcome;
                if !guilty {
                    prop_assert_eq!(Some(outcome), kept.next());
                } else if text.contains("refuse") {
                    prop_assert!(matches!(outcome, Outcome::Refused(refusal) if refusal.code == 7));
                } else {
                    let code = if text.contains("loop") { HostCode::Exhausted } else { HostCode::Trapped };
                    prop_assert_eq!(outcome, &Outcome::Host(code));
                }
            }
        }
        prop_assert!(all.view.rows().eq(innocent.view.rows()));
    }

    #[test]
    fn another_history_gives_another_hash(batches in batches(), pick in any::<prop::sample::Index>()) {
        let log = log_of(&batches);
        let mut other = log.clone();
        let changed = pick.index(other.len());
        other[changed].operations.push(command("set z 9"));
        let hash_of = |log: &[Batch]| {
            let mut machine = Stored::created();
            log.iter().for_each(|batch| { machine.apply(batch); });
            machine.head.hash
        };
        prop_assert_ne!(hash_of(&log), hash_of(&other));
    }

    #[test]
    fn a_resident_machine_rebuilt_anywhere_goes_on_as_the_live_one(
        inputs in proptest::collection::vec(resident_input(), 1..12),
        rebuilt_at in proptest::collection::vec(any::<bool>(), 12),
    ) {
        let (mut live, mut rebuilt) = (LiveMachine::created(), LiveMachine::created());
        for (input, rebuild) in inputs.iter().zip(&rebuilt_at) {
            if *rebuild {
                rebuilt.resident = Resident::new(Box::new(rebuilt.guest.clone()));
            }
            let (a, b) = (live.apply(input), rebuilt.apply(input));
            prop_assert_eq!(a.head, b.head);
            prop_assert_eq!((a.outcomes, a.writes), (b.outcomes, b.writes));
            prop_assert_eq!(live.memory(), rebuilt.memory());
        }
    }
}

/// An input of a resident machine: remembers, recalls, grants, and perhaps traps.
fn resident_input() -> impl Strategy<Value = String> {
    let step = prop_oneof![
        3 => ("[abc]", "[0-9]").prop_map(|(key, value)| format!("remember {key} {value}")),
        2 => "[abc]".prop_map(|key| format!("recall {key}")),
        1 => Just("grant 50; remaining 1".to_owned()),
        1 => Just("emit a 1".to_owned()),
        1 => Just("trap".to_owned()),
    ];
    proptest::collection::vec(step, 1..5).prop_map(|steps| steps.join("; "))
}

/// A resident machine in memory, without snapshots.
struct LiveMachine {
    guest: ScriptedGuest,
    resident: Resident,
    head: Head,
    view: MemoryView,
    log: Vec<(Index, Batch)>,
}

/// All that happened, in memory.
struct WholeLog<'a>(&'a [(Index, Batch)], &'a MemoryView);

impl History for WholeLog<'_> {
    fn saved(&self) -> Result<Option<Saved>, Fault> {
        Ok(None)
    }

    fn batches(&self, after: Index, up_to: Index) -> Result<Vec<(Index, Batch)>, Fault> {
        let within = |(index, _): &&(Index, Batch)| (after.next()..=up_to).contains(index);
        Ok(self.0.iter().filter(within).cloned().collect())
    }

    fn settled(&self, after: Index) -> Result<BTreeMap<Index, Settled>, Fault> {
        settled::read(self.1, after)
    }
}

impl LiveMachine {
    fn created() -> LiveMachine {
        let guest = ScriptedGuest::default();
        let mut machine = LiveMachine {
            resident: Resident::new(Box::new(guest.clone())),
            guest,
            head: Head::default(),
            view: MemoryView::default(),
            log: Vec::new(),
        };
        machine.operate(Operation::create(Digest([7; 32]), Bytes::new()));
        machine
    }

    fn apply(&mut self, input: &str) -> Applied {
        self.operate(command(input))
    }

    fn operate(&mut self, operation: Operation) -> Applied {
        let index = self.head.index.next();
        let batch = Batch { time_ms: 1_000 + 10 * index.0, operations: vec![operation], begins_term: false };
        self.log.push((index, batch.clone()));
        let view = Arc::new(self.view.clone());
        let history = WholeLog(&self.log, &self.view);
        let applied: Result<Applied, Halt> = self.resident.apply(&self.head, index, &batch, view, &history);
        let applied = applied.expect("no input of this test runs out of budget or fails in a replay");
        for write in &applied.writes {
            self.view.put(write.table, write.key.clone(), write.value.clone());
        }
        self.head = applied.head;
        applied
    }

    fn memory(&self) -> BTreeMap<String, String> {
        self.guest.memory.lock().expect("no test thread panics while it holds the memory").clone()
    }
}

#[test]
fn a_machine_has_as_many_leases_as_the_limit_and_no_more() {
    let grant = |live: u64| {
        let settings = Settings { leases_max: Some(7), ..Settings::default() };
        let head = Head { settings, leases: Tally { last: 20, live, sessions: 0 }, ..Head::default() };
        let mut frame = Frame::for_batch(Arc::new(MemoryView::default()), &head);
        frame.begin(Context::default());
        frame.grant(1_000).expect("this is no limit of a call")
    };
    assert_eq!(grant(6), Ok(21));
    assert_eq!(grant(7), Err(LeaseFailure::TooMany));
}
