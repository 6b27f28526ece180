//! Clients with sessions: many numbered commands in flight, each sent again at any node until its fate is
//! known.

use std::collections::{BTreeMap, BTreeSet};

use crate::machine::batch::{Act, Grant, Numbered, Operation, Renew};
use crate::machine::outcome::{HostCode, Outcome, OutcomeAt};
use crate::node::simulation::truth::Done;
use crate::raft::simulation::Rng;
use crate::raft::simulation::tenant::{Asked, Token, Wish};

/// Clients of a group.
const CALLERS: usize = 3;
/// Commands of one client under way.
const IN_FLIGHT_MAX: usize = 5;
/// How long a session lives without being renewed.
const TTL_MS: u64 = 4_000;
/// A client renews its session so often.
const RENEW_MS: u64 = 1_000;
/// A command without an answer is sent again after so long.
const PATIENCE_MS: u64 = 600;

/// All clients of a group.
#[derive(Default)]
pub(super) struct Callers {
    callers: Vec<Caller>,
    /// Who made a wish, in which session, and which of its commands it is; 0: another wish.
    wishes: BTreeMap<Token, (usize, u64, u64)>,
    /// What was applied: a session and a number.
    applied: BTreeSet<(u64, u64)>,
    acknowledged: u64,
    sent_again: u64,
    told_again: u64,
    expired: u64,
}

#[derive(Default)]
struct Caller {
    /// Its session; 0: none.
    session: u64,
    opening: Option<Token>,
    renewed_ms: u64,
    last_number: u64,
    /// Everything up to here is known to it.
    acknowledged: u64,
    /// By number: when it was sent last.
    open: BTreeMap<u64, u64>,
}

impl Callers {
    pub(super) fn want(
        &mut self,
        asked: &Asked,
        rng: &mut Rng,
        token: &mut dyn FnMut() -> Token,
        wishes: &mut Vec<Wish>,
    ) {
        if !asked.busy {
            return;
        }
        self.callers.resize_with(CALLERS, Caller::default);
        for number in 0..CALLERS {
            if rng.one_in(if asked.leader_clock.is_some() { 5 } else { 60 }) {
                self.ask(number, asked, rng, token, wishes);
            }
        }
    }

    fn ask(
        &mut self,
        number: usize,
        asked: &Asked,
        rng: &mut Rng,
        token: &mut dyn FnMut() -> Token,
        wishes: &mut Vec<Wish>,
    ) {
        let caller = &mut self.callers[number];
        let session = caller.session;
        let mut wish = |command: u64, operation: Operation| {
            let token = token();
            self.wishes.insert(token, (number, session, command));
            wishes.push(Wish { token, operation });
            token
        };
        if caller.session == 0 {
            // In peace nobody begins anything, or it would never be over.
            if caller.opening.is_none() && !asked.calm {
                let open = Act::OpenSession(Grant { ttl_ms: TTL_MS, id: 0 }).into();
                caller.opening = Some(wish(0, open));
            }
            return;
        }
        if asked.now_ms >= caller.renewed_ms + RENEW_MS {
            caller.renewed_ms = asked.now_ms;
            wish(0, Act::Renew(Renew { leases: vec![caller.session] }).into());
        }
        if caller.open.len() < IN_FLIGHT_MAX && !asked.calm && rng.one_in(2) {
            caller.last_number += 1;
            caller.open.insert(caller.last_number, 0);
        }
        let acknowledged = caller.acknowledged;
        for (&number, sent_ms) in &mut caller.open {
            if asked.now_ms >= *sent_ms + PATIENCE_MS || rng.one_in(20) {
                self.sent_again += u64::from(*sent_ms > 0);
                *sent_ms = asked.now_ms;
                let value = format!("{session}.{number}");
                let command = match number % 5 {
                    0 => format!("emit s{} {value}; refuse 7 no", number % 7),
                    1 => format!("attach {session} s{session}; emit s{} {value}", number % 7),
                    _ => format!("emit s{} {value}; answer {value}", number % 7),
                };
                let numbered = Numbered { session, number, acknowledged };
                wish(number, Operation::numbered(command.into(), numbered));
            }
        }
    }

    /// Holds what an entry did against what sessions promise.
    pub(super) fn see(&mut self, done: &Done) {
        let again = |(operation, first): &&(Operation, OutcomeAt)| {
            operation.numbered.is_some() && first.index != done.index
        };
        self.told_again += done.operations.iter().filter(again).count() as u64;
        for event in done.events.iter().filter(|event| event.key.starts_with(b"s")) {
            let value = std::str::from_utf8(&event.value).expect("clients write text");
            let Some((session, number)) = value.split_once('.') else { continue };
            let command = (session.parse().expect("a session"), number.parse().expect("a number"));
            assert!(self.applied.insert(command), "{command:?} is applied twice");
        }
    }

    pub(super) fn told(&mut self, token: Token, outcome: Option<&OutcomeAt>) {
        let Some((caller, session, number)) = self.wishes.remove(&token) else { return };
        let caller = &mut self.callers[caller];
        if caller.opening == Some(token) {
            caller.opening = None;
            if let Some(Outcome::Ok(answer)) = outcome.map(|first| &first.outcome) {
                let session = Operation::granted(answer).expect("the answer to a grant is an id");
                *caller = Caller { session, ..Caller::default() };
            }
            return;
        }
        // The answer to another sending may have come before, or the end of the session.
        let open = caller.session == session && caller.open.contains_key(&number);
        let Some(OutcomeAt { outcome, .. }) = outcome.filter(|_| open) else { return };
        match outcome {
            Outcome::Host(HostCode::UnknownSession) => {
                self.expired += 1;
                *caller = Caller::default();
                return;
            }
            Outcome::Ok(answer) if number % 5 > 1 => {
                assert_eq!(*answer, format!("{session}.{number}").as_bytes(), "another's outcome");
                assert!(self.applied.contains(&(session, number)), "{number} is answered and not applied");
            }
            Outcome::Ok(_) if number % 5 == 1 => {}
            Outcome::Refused(refusal) if number % 5 == 0 && refusal.code == 7 => {}
            other => panic!("command {number} of session {session} ends with {other:?}"),
        }
        caller.open.remove(&number);
        self.acknowledged += 1;
        let first_open = caller.open.keys().next().copied().unwrap_or(caller.last_number + 1);
        caller.acknowledged = first_open - 1;
    }

    pub(super) fn is_settled(&self) -> bool {
        self.callers.iter().all(|caller| caller.open.is_empty() && caller.opening.is_none())
    }

    pub(super) fn counts(&self) -> [(&'static str, u64); 4] {
        [
            ("command acknowledged", self.acknowledged),
            ("command sent again", self.sent_again),
            ("first outcome told again", self.told_again),
            ("session expired under way", self.expired),
        ]
    }
}
