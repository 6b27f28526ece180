//! What a node does beside order, simulated: leases, sessions and watches of clients on whole clusters that
//! crash, pause, part and lose their disks, from a seed.
//!
//! The cluster is the raft room's simulation, and this is its tenant. The heart is the real one, over the
//! committed log; so are the hubs and watchers, one set for each node, which see what that node has applied.
//! Clients send what they do not know the fate of again, and move to other nodes.
//!
//! # Layout
//! - [`truth`]: what the heart makes of the committed log, once for all nodes
//! - [`leases`]: who holds leases, and a model of when they may end
//! - [`sessions`]: clients with numbered commands
//! - [`watchers`]: watches that move from node to node
//! - [`mistake`]: what is done wrong on purpose, to see that it is noticed

mod leases;
mod mistake;
mod sessions;
mod truth;
mod watchers;

use std::collections::BTreeMap;

use crate::id::{GroupId, Index, NodeId, Term};
use crate::raft::simulation::tenant::{Asked, Fate, Tenant, Token, Wish, run_with_tenant};
use crate::raft::simulation::{Repeat, Rng, seeds};
use crate::storage::entry::Entry;

use leases::{Holders, LeaseModel};
use mistake::Mistake;
use sessions::Callers;
use truth::Truth;
use watchers::Watchers;

/// Leases, sessions and watches on a simulated cluster.
#[derive(Default)]
struct Coordination {
    groups: BTreeMap<GroupId, Group>,
    mistake: Option<Mistake>,
    last_token: u64,
    /// Which group a wish belongs to.
    wishes: BTreeMap<Token, GroupId>,
}

/// What goes on in one group.
#[derive(Default)]
struct Group {
    truth: Truth,
    leases: LeaseModel,
    holders: Holders,
    callers: Callers,
    watchers: Watchers,
}

impl Tenant for Coordination {
    fn committed(&mut self, group: GroupId, entry: &Entry, now_ms: u64) {
        let mistake = self.mistake;
        let group = self.groups.entry(group).or_default();
        let Some(done) = group.truth.apply(entry, mistake) else { return };
        group.callers.see(&done);
        group.leases.see(&done, now_ms);
    }

    fn applied(&mut self, node: NodeId, group: GroupId, index: Index) {
        let Group { truth, watchers, .. } = self.groups.entry(group).or_default();
        watchers.applied(node, index, truth);
    }

    fn installed(&mut self, node: NodeId, group: GroupId, index: Index) {
        let Group { truth, watchers, .. } = self.groups.entry(group).or_default();
        watchers.installed(node, index, truth);
    }

    fn started(&mut self, node: NodeId, states: &[(GroupId, Index)]) {
        for &(group, index) in states {
            let Group { truth, watchers, .. } = self.groups.entry(group).or_default();
            watchers.started(node, index, truth);
        }
    }

    fn crashed(&mut self, node: NodeId) {
        self.groups.values_mut().for_each(|group| group.watchers.crashed(node));
    }

    fn leads(&mut self, group: GroupId, term: Term, now_ms: u64) {
        self.groups.entry(group).or_default().leases.leads(term, now_ms);
    }

    fn wants(&mut self, asked: &Asked, rng: &mut Rng) -> Vec<Wish> {
        let group = self.groups.entry(asked.group).or_default();
        let mut operations = Vec::new();
        let mut next = || {
            self.last_token += 1;
            self.wishes.insert(Token(self.last_token), asked.group);
            Token(self.last_token)
        };
        group.holders.want(asked, rng, &mut next, &mut operations);
        group.callers.want(asked, rng, &mut next, &mut operations);
        group.truth.want(asked, rng, &mut next, &mut operations);
        group.watchers.look(asked, rng, &group.truth, self.mistake);
        if asked.calm {
            group.leases.check_calm(asked);
        }
        for wish in &mut operations {
            wish.operation.trace = asked.now_ms.to_be_bytes().to_vec();
        }
        operations
    }

    fn told(&mut self, token: Token, fate: Fate) {
        let group = self.wishes.remove(&token).expect("a wish has one fate");
        let Group { truth, holders, callers, .. } = self.groups.entry(group).or_default();
        let outcome = match fate {
            Fate::Applied(index, offset) => Some(truth.outcome(index, offset).clone()),
            Fate::Never | Fate::Unknown => None,
        };
        holders.told(token, outcome.as_ref());
        callers.told(token, outcome.as_ref());
    }

    fn is_settled(&self) -> bool {
        let settled = |group: &Group| group.callers.is_settled() && group.watchers.is_settled(&group.truth);
        self.groups.values().all(settled)
    }

    fn counts(&self) -> Vec<(&'static str, u64)> {
        let mut total: BTreeMap<&'static str, u64> = BTreeMap::new();
        for group in self.groups.values() {
            let counts = group
                .callers
                .counts()
                .into_iter()
                .chain(group.leases.counts())
                .chain(group.watchers.counts());
            counts.for_each(|(name, count)| *total.entry(name).or_default() += count);
        }
        total.into_iter().collect()
    }
}

fn run(seed: u64, mistake: Option<Mistake>) -> Vec<(&'static str, u64)> {
    let tenant = Coordination { mistake, ..Coordination::default() };
    run_with_tenant(seed, Box::new(tenant)).counts()
}

#[test]
fn leases_sessions_and_watches_keep_their_promises_whatever_happens() {
    let seeds = seeds(150);
    let mut total: BTreeMap<&'static str, u64> = BTreeMap::new();
    for &seed in &seeds {
        let _repeat = Repeat(seed);
        for (name, count) in run(seed, None) {
            *total.entry(name).or_default() += count;
        }
    }
    println!("{total:?}");
    let few = total.iter().find(|(_, count)| **count < 10);
    assert!(seeds.len() == 1 || few.is_none(), "hardly happened: {few:?}");
}

#[test]
fn mistakes_are_noticed() {
    let cases = [
        (Mistake::ApplyAgain, "is applied twice"),
        (Mistake::ForgetTerm, "ends too early"),
        (Mistake::ForgetExpiry, "outlives its end"),
        (Mistake::SkipOnMove, "misses something"),
        (Mistake::RepeatOnMove, "sees it again"),
    ];
    const SEEDS_MAX: u64 = 300;
    for (mistake, expected) in cases {
        let finds = |seed: &u64| {
            let panic = std::panic::catch_unwind(|| drop(run(*seed, Some(mistake)))).err();
            let said = panic.and_then(|panic| panic.downcast_ref::<String>().cloned());
            said.is_some_and(|said| said.contains(expected))
        };
        let seed = (1..=SEEDS_MAX).find(finds);
        assert!(seed.is_some(), "{mistake:?} is not noticed in {SEEDS_MAX} seeds");
        println!("{mistake:?} is noticed by seed {}", seed.unwrap_or_default());
    }
}
