//! What a replicated log owes its users, checked against every output of every node.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{GroupId, Index, LogTime, NodeId, ReplicaId, Term};
use crate::machine::batch::Batch;
use crate::raft::input::{ProposalId, ReadId};
use crate::raft::message::PeerBody;
use crate::raft::output::{PeerOut, ProposeError, RoleChange};
use crate::raft::simulation::disk::Disk;
use crate::raft::simulation::state::{State, id_of};
use crate::storage::entry::{Entry, EntryKind, Membership};

/// Where a command is: index and offset in its batch.
type Place = (GroupId, Index, usize);

/// Everything that must never be taken back.
#[derive(Default)]
pub(super) struct Oracle {
    /// The log of each group, as far as any node has been told to apply it: entry `i` at position `i - 1`.
    committed: BTreeMap<GroupId, Vec<Entry>>,
    /// What a machine's state is after each of them; the first is the empty one.
    states: BTreeMap<GroupId, Vec<State>>,
    /// The stamp of the last batch up to each committed entry.
    stamps: BTreeMap<GroupId, Vec<LogTime>>,
    places: BTreeMap<ProposalId, Place>,
    pub(super) acknowledged: BTreeMap<ProposalId, Place>,
    /// Refused in a way that promises that the command was not and will not be done.
    never: BTreeSet<ProposalId>,
    leaders: BTreeMap<(GroupId, Term), NodeId>,
    /// Whom each replica voted for.
    votes: BTreeMap<(GroupId, ReplicaId, Term), ReplicaId>,
    /// The last acknowledged index of each group.
    acknowledged_to: BTreeMap<GroupId, Index>,
    /// Every membership that came into force, with the index of its change; the first one at 0.
    memberships: BTreeMap<(GroupId, Index), Membership>,
    /// What each read must at least see.
    reads: BTreeMap<ReadId, Index>,
    pub(super) reads_answered: u64,
}

impl Oracle {
    /// A node is told to apply an entry. True if it is the first to be told.
    pub(super) fn deliver(&mut self, group: GroupId, entry: &Entry) -> bool {
        let log = self.committed.entry(group).or_default();
        if let Some(known) = log.get(entry.index.0 as usize - 1) {
            assert_eq!(known, entry, "two nodes apply different entries");
            return false;
        }
        assert_eq!(entry.index.0, log.len() as u64 + 1, "entries are applied in order");
        assert!(log.last().is_none_or(|last| last.term <= entry.term), "terms never go back");
        log.push(entry.clone());
        let states = self.states.entry(group).or_insert_with(|| vec![State::default()]);
        let mut state = states[states.len() - 1];
        state.apply(entry);
        states.push(state);
        let stamps = self.stamps.entry(group).or_default();
        let mut stamp = stamps.last().copied().unwrap_or_default();
        if entry.kind == EntryKind::Batch && !entry.data.is_empty() {
            let batch = Batch::read(entry.data.clone()).unwrap();
            assert!(
                batch.time_ms >= stamp.0,
                "entry {} is stamped {} after {stamp}",
                entry.index,
                batch.time_ms
            );
            stamp = LogTime(batch.time_ms);
            for (offset, operation) in batch.operations.iter().enumerate() {
                let id = id_of(operation);
                assert!(!self.never.contains(&id), "{id:?} was refused for good, and is applied");
                let twice = self.places.insert(id, (group, entry.index, offset));
                assert_eq!(twice, None, "{id:?} is applied twice");
            }
        }
        stamps.push(stamp);
        true
    }

    /// A node's machine is in this state.
    pub(super) fn state(&self, node: NodeId, group: GroupId, state: State) {
        let expected = self.states.get(&group).map_or(State::default(), |all| all[state.applied.0 as usize]);
        assert_eq!(state, expected, "the state on node {node} is not that of its index");
    }

    /// A replica tells a candidate that it votes for it.
    pub(super) fn vote(&mut self, group: GroupId, voter: ReplicaId, term: Term, candidate: ReplicaId) {
        let first = *self.votes.entry((group, voter, term)).or_insert(candidate);
        assert_eq!(first, candidate, "replica {voter} votes twice in term {term} of group {group}");
    }

    /// The stamp of the last batch up to an index.
    pub(super) fn stamp_at(&self, group: GroupId, index: Index) -> LogTime {
        let at = (index.0 as usize).checked_sub(1);
        at.map_or(LogTime(0), |at| self.stamps[&group][at])
    }

    /// How many entries a group has committed.
    pub(super) fn committed(&self, group: GroupId) -> u64 {
        self.committed.get(&group).map_or(0, |log| log.len() as u64)
    }

    /// A node has applied its own proposal and tells the client.
    pub(super) fn acknowledge(&mut self, id: ProposalId, place: Place) {
        assert_eq!(self.places.get(&id), Some(&place), "{id:?} is not where its node believes it");
        assert!(self.acknowledged.insert(id, place).is_none(), "{id:?} is acknowledged twice");
        let to = self.acknowledged_to.entry(place.0).or_default();
        *to = place.1.max(*to);
    }

    /// A node tells a client that its command did not, or perhaps not, go in.
    pub(super) fn refuse(&mut self, id: ProposalId, error: &ProposeError) {
        assert!(!self.acknowledged.contains_key(&id), "{id:?} is acknowledged, and refused");
        match error {
            ProposeError::Unknown => {}
            ProposeError::Quarantined(reason) => panic!("quarantine: {reason}"),
            _ => {
                assert!(!self.places.contains_key(&id), "{id:?} is applied, and refused for good: {error}");
                assert!(self.never.insert(id), "{id:?} is refused twice");
            }
        }
    }

    /// A node puts a membership into force.
    pub(super) fn membership(&mut self, group: GroupId, index: Index, membership: &Membership) {
        let known = self.memberships.entry((group, index)).or_insert_with(|| membership.clone());
        assert_eq!(known, membership, "two nodes disagree on who is in group {group} from {index} on");
    }

    /// The membership that came into force last.
    pub(super) fn members(&self, group: GroupId) -> &Membership {
        self.memberships.range((group, Index(0))..=(group, Index(u64::MAX))).next_back().unwrap().1
    }

    /// Whether replicas that hold an entry suffice to commit it. The leader that committed it may not have
    /// put the last change before it into force yet.
    pub(super) fn suffice(&self, group: GroupId, index: Index, holds: impl Fn(u64) -> bool) -> bool {
        let majority = |voters: &[u64]| voters.iter().filter(|id| holds(**id)).count() * 2 > voters.len();
        let before = self.memberships.range((group, Index(0))..(group, index)).rev().take(2);
        before.into_iter().any(|(_, members)| {
            majority(&members.voters)
                && (members.voters_outgoing.is_empty() || majority(&members.voters_outgoing))
        })
    }

    /// A client asks for a read.
    pub(super) fn ask(&mut self, id: ReadId, group: GroupId) {
        self.reads.insert(id, self.acknowledged_to.get(&group).copied().unwrap_or_default());
    }

    /// A read gets its read point, or is refused.
    pub(super) fn answer(&mut self, id: ReadId, index: Option<Index>) {
        let least = self.reads.remove(&id).unwrap_or_else(|| panic!("{id:?} is answered twice"));
        if let Some(index) = index {
            assert!(index >= least, "a read at {index} misses {least}, acknowledged before it was asked");
            self.reads_answered += 1;
        }
    }

    /// A replica says something to another: it must be true of its disk.
    pub(super) fn hear(&mut self, disk: &Disk, out: &PeerOut) {
        match &out.message.body {
            PeerBody::Appended { index, .. } => {
                let log = &disk.logs[&out.group];
                let last = log.entries.last().map_or(log.start.0, |entry| entry.index);
                // What was true in an earlier term may leave together with the write that ends that term.
                let earlier = log.hard_state.term > out.message.term;
                assert!(*index <= last || earlier, "acknowledged up to {index}, the disk ends at {last}");
            }
            PeerBody::Vote { trial: false, granted: true, .. } => {
                self.vote(out.group, out.message.from, out.message.term, out.message.to);
                let state = disk.logs[&out.group].hard_state;
                let vote = (state.term, state.vote);
                assert!(
                    vote == (out.message.term, out.message.to.0) || state.term > out.message.term,
                    "the vote on disk is {vote:?}, that of {:?} is granted",
                    out.message
                );
            }
            PeerBody::RequestVote { trial: false, .. } | PeerBody::Append { .. } => {
                let durable = disk.logs[&out.group].hard_state.term;
                assert!(durable >= out.message.term, "speaks in a term that it may forget");
            }
            _ => {}
        }
    }

    /// A node says what it is.
    pub(super) fn role(&mut self, node: NodeId, change: &RoleChange) {
        if change.role == crate::raft::Role::Leader {
            let leader = *self.leaders.entry((change.group, change.term)).or_insert(node);
            assert_eq!(leader, node, "two leaders in term {} of group {}", change.term, change.group);
        }
    }
}

mod tests {
    //! Every promise is seen to be broken once.

    use super::*;
    use crate::raft::output::Role;
    use crate::raft::simulation::state::command;
    use prost::Message as _;

    const G: GroupId = GroupId(1);
    const ID: ProposalId = ProposalId(7);

    fn batch(index: u64, term: u64, time_ms: u64, ids: &[u64]) -> Entry {
        let operations = ids.iter().map(|&id| command(ProposalId(id), 0)).collect();
        let data = Batch { time_ms, operations, begins_term: false }.encode_to_vec().into();
        Entry { index: Index(index), term: Term(term), kind: EntryKind::Batch, data }
    }

    /// An oracle that has seen command 7 applied at index 2.
    fn oracle() -> Oracle {
        let mut oracle = Oracle::default();
        assert!(oracle.deliver(G, &batch(1, 1, 10, &[1])));
        assert!(oracle.deliver(G, &batch(2, 1, 20, &[7])));
        assert!(!oracle.deliver(G, &batch(2, 1, 20, &[7])), "told before");
        oracle
    }

    fn leads(term: u64) -> RoleChange {
        RoleChange { group: G, term: Term(term), role: Role::Leader, leader: None, sole_voter: false }
    }

    fn members(voters: &[u64]) -> Membership {
        Membership { voters: voters.to_vec(), ..Membership::default() }
    }

    type Breach = fn(&mut Oracle);

    #[test]
    fn a_wrong_log_or_state_is_named() {
        assert_named(&[
            (|o| assert!(o.deliver(G, &batch(2, 1, 21, &[7]))), "two nodes apply different entries"),
            (|o| assert!(o.deliver(G, &batch(4, 1, 30, &[]))), "entries are applied in order"),
            (|o| assert!(o.deliver(G, &batch(3, 0, 30, &[]))), "terms never go back"),
            (|o| assert!(o.deliver(G, &batch(3, 1, 19, &[]))), "is stamped 19 after"),
            (|o| assert!(o.deliver(G, &batch(3, 1, 30, &[7]))), "is applied twice"),
            (
                |o| {
                    o.refuse(ProposalId(8), &ProposeError::Lost);
                    o.deliver(G, &batch(3, 1, 30, &[8]));
                },
                "was refused for good, and is applied",
            ),
            (
                |o| o.state(NodeId(1), G, State { applied: Index(1), hash: 5, ..State::default() }),
                "is not that of its index",
            ),
        ]);
    }

    #[test]
    fn a_wrong_answer_is_named() {
        assert_named(&[
            (|o| o.acknowledge(ID, (G, Index(1), 0)), "is not where its node believes it"),
            (
                |o| {
                    o.acknowledge(ID, (G, Index(2), 0));
                    o.acknowledge(ID, (G, Index(2), 0));
                },
                "is acknowledged twice",
            ),
            (
                |o| {
                    o.acknowledge(ID, (G, Index(2), 0));
                    o.refuse(ID, &ProposeError::Unknown);
                },
                "is acknowledged, and refused",
            ),
            (|o| o.refuse(ID, &ProposeError::Lost), "is applied, and refused for good"),
            (
                |o| {
                    o.acknowledge(ID, (G, Index(2), 0));
                    o.ask(ReadId(1), G);
                    o.answer(ReadId(1), Some(Index(1)));
                },
                "misses 2, acknowledged before it was asked",
            ),
        ]);
    }

    #[test]
    fn two_that_differ_are_named() {
        assert_named(&[
            (
                |o| {
                    o.membership(G, Index(1), &members(&[1]));
                    o.membership(G, Index(1), &members(&[2]));
                },
                "two nodes disagree on who is in group",
            ),
            (
                |o| {
                    o.role(NodeId(1), &leads(3));
                    o.role(NodeId(2), &leads(3));
                },
                "two leaders in term 3",
            ),
            (
                |o| {
                    o.vote(G, ReplicaId(1), Term(3), ReplicaId(2));
                    o.vote(G, ReplicaId(1), Term(3), ReplicaId(3));
                },
                "votes twice in term 3",
            ),
        ]);
    }

    fn assert_named(cases: &[(Breach, &str)]) {
        for (breach, expected) in cases {
            let said = std::panic::catch_unwind(|| breach(&mut oracle())).expect_err(expected);
            let said = said.downcast_ref::<String>().cloned().unwrap_or_else(|| {
                said.downcast_ref::<&str>().map_or_else(String::new, |text| (*text).to_owned())
            });
            assert!(said.contains(expected), "{said} / {expected}");
        }
    }

    #[test]
    fn copies_suffice_only_with_a_majority_of_each_voting_set() {
        let mut oracle = oracle();
        oracle.membership(G, Index(0), &members(&[1, 2, 3]));
        let joint = Membership { voters_outgoing: vec![1, 2, 3], ..members(&[3, 4, 5]) };
        oracle.membership(G, Index(1), &joint);
        oracle.membership(G, Index(2), &joint);
        let suffice = |replicas: &[u64]| oracle.suffice(G, Index(3), |id| replicas.contains(&id));
        assert!(suffice(&[1, 3, 4]));
        assert!(!suffice(&[3, 4, 5]), "one of the outgoing voters only");
        assert!(!suffice(&[1, 2]), "none of the incoming voters");
    }
}
