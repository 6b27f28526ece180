//! Who holds leases, and a model of when they may end that knows nothing of rows.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::Term;
use crate::machine::batch::{Act, Grant, Operation, Renew, Renewed};
use crate::machine::outcome::{HostCode, Outcome, OutcomeAt};
use crate::node::simulation::truth::Done;
use crate::raft::simulation::Rng;
use crate::raft::simulation::tenant::{Asked, Token, Wish};

/// Times to live, in milliseconds: from less than an election takes to more.
const TTLS_MS: [u64; 4] = [200, 800, 2_500, 6_000];

/// Leases of one group at the same time.
const HELD_MAX: usize = 12;

/// A lease that has reached its end by the leader's clock is gone so soon, in peace: clusters that put a
/// single operation into a batch take their time, and other clients go on.
const LATE_MAX_MS: u64 = 20_000;

/// What is lost when times are cut to milliseconds.
const ROUNDED_MS: u64 = 3;

/// Clocks are fast or slow by so much, at most: the raft room's simulation has none that is worse.
const DRIFT_PERCENT_MAX: u64 = 50;

/// Clients who hold leases, keep some of them alive, tie keys to them and let them go.
#[derive(Default)]
pub(super) struct Holders {
    held: Vec<u64>,
    /// What was asked for and has no fate.
    asked: BTreeSet<Token>,
}

impl Holders {
    pub(super) fn want(
        &mut self,
        asked: &Asked,
        rng: &mut Rng,
        token: &mut dyn FnMut() -> Token,
        wishes: &mut Vec<Wish>,
    ) {
        if !asked.busy || asked.calm || !rng.one_in(if asked.leader_clock.is_some() { 8 } else { 80 }) {
            return;
        }
        let lease = self.held.get(rng.below(self.held.len().max(1) as u64) as usize).copied();
        let operation = match (rng.below(8), lease) {
            (0..2, _) | (_, None) if self.held.len() < HELD_MAX => {
                let ttl_ms = TTLS_MS[rng.below(4) as usize];
                Act::Grant(Grant { ttl_ms, id: 0 }).into()
            }
            (0..5, Some(_)) => {
                let leases = self.held.iter().copied().filter(|_| rng.one_in(2)).collect();
                Act::Renew(Renew { leases }).into()
            }
            (5..7, Some(lease)) => {
                let key = rng.below(5);
                Operation::command(format!("attach {lease} l{key}; emit l{key} {lease}-{key}").into())
            }
            (_, Some(lease)) => Act::Revoke(lease).into(),
            (_, None) => return,
        };
        let token = token();
        self.asked.insert(token);
        wishes.push(Wish { token, operation });
    }

    pub(super) fn told(&mut self, token: Token, outcome: Option<&OutcomeAt>) {
        if !self.asked.remove(&token) {
            return;
        }
        match outcome.map(|first| &first.outcome) {
            Some(Outcome::Ok(answer)) => self.held.extend(Operation::granted(answer)),
            Some(Outcome::Host(HostCode::UnknownLease)) | None => {}
            Some(other) => panic!("a holder of leases is told {other:?}"),
        }
    }
}

/// A lease, as the log has it.
#[derive(Clone, Copy, Debug)]
struct Held {
    ttl_ms: u64,
    /// By the log's clock.
    deadline_ms: u64,
    /// The term in which it was granted or renewed last, and the world's time then: at the latest.
    term: Term,
    since_ms: u64,
}

/// When leases may end.
#[derive(Default)]
pub(super) struct LeaseModel {
    leases: BTreeMap<u64, Held>,
    /// The log's clock at the first batch of the leader's term.
    term_began_ms: u64,
    /// Since when somebody has led each term, by the world's time.
    led_since_ms: BTreeMap<Term, u64>,
    /// Which were seen to be past their end in peace, and since when.
    overdue_since_ms: BTreeMap<u64, u64>,
    granted: u64,
    renewed: u64,
    ended: u64,
    revoked: u64,
    given_longer: u64,
}

impl LeaseModel {
    /// Somebody leads from now on.
    pub(super) fn leads(&mut self, term: Term, now_ms: u64) {
        self.led_since_ms.entry(term).or_insert(now_ms);
    }

    /// Holds what an entry did against what leases were promised.
    pub(super) fn see(&mut self, done: &Done, now_ms: u64) {
        let time_ms = done.time.0;
        if done.begins_term {
            self.term_began_ms = time_ms;
            let longer = self.leases.values().filter(|held| self.end_ms(held) > held.deadline_ms).count();
            self.given_longer += longer as u64;
        }
        for (operation, first) in &done.operations {
            self.follow(operation, &first.outcome, done);
        }
        let gone: Vec<u64> =
            self.leases.keys().filter(|id| done.leases.binary_search(id).is_err()).copied().collect();
        for id in gone {
            let held = self.leases.remove(&id).expect("it is one of them");
            self.check_end(id, &held, done, now_ms);
            self.ended += 1;
        }
        assert!(done.leases.iter().all(|id| self.leases.contains_key(id)), "a lease that nobody granted");
    }

    fn follow(&mut self, operation: &Operation, outcome: &Outcome, done: &Done) {
        let (time_ms, term) = (done.time.0, done.term);
        let since_ms = asked_ms(operation);
        match (&operation.act, outcome) {
            (Some(Act::Grant(grant) | Act::OpenSession(grant)), Outcome::Ok(answer)) => {
                let id = Operation::granted(answer).expect("the answer to a grant is an id");
                let held = Held { ttl_ms: grant.ttl_ms, deadline_ms: time_ms + grant.ttl_ms, term, since_ms };
                assert!(self.leases.insert(id, held).is_none(), "lease {id} is granted twice");
                self.granted += 1;
            }
            (Some(Act::Renew(renew)), Outcome::Ok(answer)) => {
                let renewed: Renewed = prost::Message::decode(answer.clone()).expect("what became of it");
                for (id, ttl_ms) in renew.leases.iter().zip(renewed.ttls_ms) {
                    let lives = self.lives(*id, time_ms);
                    assert_eq!(ttl_ms > 0, lives, "lease {id} is renewed if it lives");
                    if let Some(held) = self.leases.get_mut(id).filter(|_| lives) {
                        *held = Held { deadline_ms: time_ms + held.ttl_ms, term, since_ms, ..*held };
                        self.renewed += 1;
                    }
                }
            }
            (Some(Act::Revoke(id)), outcome) => {
                let revoked = matches!(outcome, Outcome::Ok(_));
                assert_eq!(revoked, self.lives(*id, time_ms), "lease {id} is revoked if it lives");
                if revoked {
                    self.leases.remove(id);
                    self.revoked += 1;
                }
            }
            _ => {}
        }
    }

    fn end_ms(&self, held: &Held) -> u64 {
        held.deadline_ms.max(self.term_began_ms + held.ttl_ms / 3)
    }

    fn lives(&self, id: u64, time_ms: u64) -> bool {
        self.leases.get(&id).is_some_and(|held| self.end_ms(held) > time_ms)
    }

    /// A lease has ended by itself: by the log's clock it was time, and by the world's its holder had a
    /// chance.
    fn check_end(&self, id: u64, held: &Held, done: &Done, now_ms: u64) {
        let end_ms = self.end_ms(held);
        assert!(end_ms <= done.time.0, "lease {id} ends too early: at {} and not at {end_ms}", done.time);
        let passed = |since_ms: u64, least_ms: u64| {
            (now_ms - since_ms) * (100 + DRIFT_PERCENT_MAX) / 100 + ROUNDED_MS >= least_ms
        };
        let whole = passed(held.since_ms, held.ttl_ms);
        let led_since_ms = self.led_since_ms.get(&done.term).filter(|_| done.term != held.term);
        let third = led_since_ms.is_some_and(|since_ms| passed(*since_ms, held.ttl_ms / 3));
        assert!(whole || third, "lease {id} ends too early for its holder: {held:?}, now {now_ms}");
    }

    /// In peace leases end soon after their end.
    pub(super) fn check_calm(&mut self, asked: &Asked) {
        let Some(clock) = asked.leader_clock else { return };
        let overdue: Vec<u64> =
            self.leases.iter().filter(|(_, held)| self.end_ms(held) < clock.0).map(|(id, _)| *id).collect();
        self.overdue_since_ms.retain(|id, _| overdue.contains(id));
        for id in overdue {
            let since_ms = *self.overdue_since_ms.entry(id).or_insert(asked.now_ms);
            assert!(
                asked.now_ms - since_ms < LATE_MAX_MS,
                "lease {id} outlives its end: {:?}",
                self.leases[&id]
            );
        }
    }

    pub(super) fn counts(&self) -> [(&'static str, u64); 5] {
        [
            ("lease granted", self.granted),
            ("lease renewed", self.renewed),
            ("lease ended", self.ended),
            ("lease revoked", self.revoked),
            ("lease given longer by a new leader", self.given_longer),
        ]
    }
}

/// When an operation was asked for, by the world's time.
fn asked_ms(operation: &Operation) -> u64 {
    let stamp = operation.trace.last_chunk().expect("a wish says when it was wished");
    u64::from_be_bytes(*stamp)
}
