//! One group on this node: the engine's node, and around it what is written, sent, applied, and when.
//!
//! Promises: nothing is acknowledged to a peer, and nothing goes to the apply worker, before it is synced
//! here. Entries go to the log without gaps. What comes out depends only on what went in, election timeouts
//! included, which the engine would draw by chance. The engine panics on broken invariants; so does this
//! file; `shard` catches it.

use std::collections::BTreeMap;

use prost::Message as _;
use raft::eraftpb::{self, EntryType, MessageType};
use raft::{Config, RaftState, RawNode};

use crate::id::{GroupId, Index, NodeId, ReplicaId, Term};
use crate::machine::batch::{Batch, Operation};
use crate::raft::election::ElectionTimeout;
use crate::raft::input::{GroupStart, ProposalId, ReadId};
use crate::raft::lease::{Lease, Loyalty};
use crate::raft::log_cache::{LogCache, Wish, from_engine};
use crate::raft::log_clock::LogClock;
use crate::raft::message::{PeerBody, PeerMessage, from_engine_message, to_engine_message};
use crate::raft::output::{
    ApplyJob, LogLoad, PeerOut, ProposeError, Proposed, ReadError, RoleChange, SnapshotHead,
};
use crate::raft::proposals::Proposals;
use crate::raft::read::Reads;
use crate::raft::shard::{ShardConfig, Turn};
#[cfg(test)]
use crate::raft::simulation::Bug;
use crate::raft::unsynced::{Synced, Unsynced};
use crate::raft::{membership, start};
use crate::storage::entry::{Entry, LogWrite, Membership};
use crate::time::Now;

mod change;
mod news;
mod reading;
mod sleep;
mod snapshot;
mod standing;
mod transfer;
mod voting;

use self::news::News;
pub(super) use self::snapshot::Received;

/// One group on this node.
pub(super) struct Group {
    id: GroupId,
    replica: ReplicaId,
    node: RawNode<LogCache>,
    /// This node, and where the other replicas live.
    own_node: NodeId,
    nodes: BTreeMap<ReplicaId, NodeId>,
    proposals: Proposals,
    reads: Reads,
    /// What this replica was promised as a leader, and what it has promised as a voter.
    lease: Lease,
    loyalty: Loyalty,
    clock: LogClock,
    unsynced: Unsynced<eraftpb::Message>,
    news: News,
    /// Who is in the group, as of the last change up to what was handed out to be applied.
    membership: (Index, Membership),
    /// The last entry handed out to be applied.
    delivered: Index,
    applied: Index,
    /// A snapshot that takes the log's place.
    staged: Option<snapshot::Staged>,
    /// A snapshot that takes only the state's place, once the log up to its end is handed out.
    reseeding: Option<SnapshotHead>,
    /// Whether the state is not to be relied on, and at how many ticks in a row it kept this replica from
    /// standing for election.
    halted: bool,
    held_back_ticks: usize,
    /// The transfer of leadership under way: who asked for it, and who is to lead.
    transferring: Option<(ProposalId, ReplicaId)>,
    /// Whether nobody expects anything of this replica until something happens.
    asleep: bool,
    /// How many ticks found a leader with nothing to do.
    idle_ticks: usize,
    /// The term, and whom this replica took for its leader, when it last looked.
    led_by: (u64, u64),
    election_timeout: ElectionTimeout,
    /// What was said last of this replica's standing.
    announced: Option<RoleChange>,
    /// Sends that wait for entries from the log, by the first entry they need.
    wishes: Vec<Wish>,
    /// Whether the shard has noted the group as touched in this call.
    pub(super) touched: bool,
    /// Whether the shard has noted the group as one that waits for time to pass.
    pub(super) awake: bool,
}

fn engine_config(replica: ReplicaId, applied: Index, config: &ShardConfig) -> Config {
    Config {
        id: replica.0,
        applied: applied.0,
        election_tick: config.election_ticks,
        heartbeat_tick: config.heartbeat_ticks,
        max_size_per_msg: config.append_bytes_max as u64,
        max_inflight_msgs: config.appends_in_flight_max,
        check_quorum: true,
        pre_vote: true,
        // Off: with it, 0.7 adds entries to a waiting *empty* append without a look whether they follow its
        // index, and the follower acknowledges entries that it never got (found by simulation, seed 2).
        batch_append: config.batches_appends(),
        // The group tells the others itself what is committed: see `news`.
        skip_bcast_commit: true,
        ..Config::default()
    }
}

impl Group {
    /// Takes up a group. Refuses, with a reason, what cannot have been written by a sound node.
    pub(super) fn open(start: GroupStart, config: &ShardConfig, now: Now) -> Result<Group, String> {
        let hard_state = start::check(&start)?;
        let late_changes = start::late_changes(&start);
        let GroupStart { group, replica, log, applied, time_floor, nodes } = start;
        let initial = RaftState {
            hard_state: start::to_engine(hard_state),
            conf_state: membership::to_engine(&log.membership.1),
        };
        let loyalty = Loyalty::at_start(&log, now.monotonic_ms, config.loyal_ms());
        #[cfg(test)]
        let loyalty = if config.bug == Some(Bug::VoteAfterRestart) { Loyalty::none() } else { loyalty };
        let seed = [config.seed, group.0, replica.0];
        let engine = engine_config(replica, applied, config);
        let mut cache = LogCache::new(initial, log.start, time_floor, log.entries);
        cache.set_applied(applied);
        let quiet = slog::Logger::root(slog::Discard, slog::o!());
        let node =
            RawNode::new(&engine, cache, &quiet).map_err(|e| format!("the engine refuses the group: {e}"))?;
        let mut group = Group {
            id: group,
            replica,
            node,
            own_node: config.node,
            nodes: nodes.into_iter().collect(),
            proposals: Proposals::default(),
            reads: Reads::new(replica, config.seed),
            lease: Lease::default(),
            loyalty,
            clock: LogClock::default(),
            unsynced: Unsynced::new(hard_state.term),
            news: News::default(),
            membership: log.membership,
            delivered: applied,
            applied,
            staged: None,
            reseeding: None,
            halted: false,
            held_back_ticks: 0,
            transferring: None,
            asleep: false,
            idle_ticks: 0,
            led_by: (hard_state.term.0, raft::INVALID_ID),
            election_timeout: ElectionTimeout::new(seed, config.election_ticks, hard_state.term.0),
            announced: None,
            wishes: Vec::new(),
            touched: false,
            awake: false,
        };
        for change in late_changes {
            group.change_membership(change.index, &change.data);
        }
        group.set_election_timeout();
        group.evict(config);
        Ok(group)
    }

    // What comes in. The work that follows from it is done in `settle`, once for all inputs of a call.

    /// A command for the next batch.
    pub(super) fn propose(
        &mut self,
        id: ProposalId,
        operation: Operation,
        bytes: usize,
        config: &ShardConfig,
    ) -> Result<(), ProposeError> {
        if self.leads() {
            self.wake();
        }
        self.proposals.gather(id, operation, bytes, config)
    }

    /// The log thread has synced everything up to this write.
    pub(super) fn persisted(&mut self, number: u64, turn: &mut Turn) {
        self.install_staged(number, turn);
        if let Some(synced) = self.unsynced.synced(number) {
            self.after_sync(synced, turn);
            self.evict(turn.config);
        }
    }

    fn after_sync(&mut self, synced: Synced<eraftpb::Message>, turn: &mut Turn) {
        self.send(synced.messages, turn);
        self.node.on_persist_ready(synced.ready);
    }

    /// The apply worker has applied everything up to this index.
    pub(super) fn applied_to(&mut self, index: Index) {
        assert!(
            index <= self.delivered,
            "index {index} is reported as applied, but only those up to {} were handed out",
            self.delivered
        );
        if index > self.applied {
            // Of a snapshot the engine knows already.
            if index.0 > self.node.raft.raft_log.applied {
                self.node.advance_apply_to(index.0);
            }
            self.applied = index;
            self.node.mut_store().set_applied(index);
            self.proposals.applied(index);
        }
    }

    /// Another replica's message.
    pub(super) fn step(&mut self, from: NodeId, message: PeerMessage, turn: &Turn) {
        if message.to != self.replica {
            return;
        }
        if let PeerBody::Sleep { last } = message.body {
            self.sleep_with(message.from, message.term, last);
            return;
        }
        if self.asleep && self.wakes(&message) {
            self.wake();
        }
        // A replica never moves: what the catalog said of it, or its own first message, stays true.
        self.nodes.entry(message.from).or_insert(from);
        if self.is_stale_rejection(&message)
            || self.is_disloyal(&message, turn)
            || (self.is_question_for_another(&message) && !turn.config.passes_questions_on())
        {
            return;
        }
        if let PeerBody::ReadIndexReply { time, context, .. } = &message.body {
            self.reads.note_time(context, *time);
        }
        let leader = message.body.is_of_leader().then_some((message.term.0, message.from.0));
        // The engine refuses answers from replicas that are no longer in the group: nothing is owed to those.
        let _ = to_engine_message(message).map(|message| self.node.step(message));
        if leader == Some((self.node.raft.term, self.node.raft.leader_id)) {
            self.loyalty.renew(turn.now.monotonic_ms, turn.config.loyal_ms());
        }
        self.set_election_timeout();
    }

    /// Whether a follower's rejection was overtaken by its later acknowledgement. 0.7 would go back behind
    /// what is acknowledged, where the log may be cut already: the follower would get a snapshot that it does
    /// not need (found by simulation, seed 227).
    fn is_stale_rejection(&self, message: &PeerMessage) -> bool {
        let PeerBody::Rejected { index, .. } = message.body else { return false };
        let progress = self.node.raft.prs().get(message.from.0);
        self.leads()
            && message.term.0 == self.node.raft.term
            && progress.is_some_and(|progress| index.0 <= progress.matched)
    }

    /// Another replica lives on this node.
    pub(super) fn locate(&mut self, replica: ReplicaId, node: NodeId) {
        self.nodes.insert(replica, node);
    }

    /// Entries came back from the log for those who lag behind.
    pub(super) fn loaded(&mut self, from: Index, entries: Vec<Entry>) {
        let (granted, open) =
            std::mem::take(&mut self.wishes).into_iter().partition(|wish| wish.from == from);
        self.wishes = open;
        if entries.first().is_some_and(|first| first.index == from) {
            self.node.mut_store().lend(entries);
        }
        let granted: Vec<Wish> = granted;
        for wish in granted {
            self.node.on_entries_fetched(wish.context);
        }
        self.node.mut_store().end_loan();
    }

    /// A tick has passed.
    pub(super) fn tick(&mut self, turn: &mut Turn) {
        let now_ms = turn.now.monotonic_ms;
        // The only voter needs no timeouts: it has nobody to hear from. Those who only follow it need its
        // heartbeats.
        let waits_for_others = !self.alone() || (self.leads() && self.has_peers());
        if waits_for_others && !self.is_impatient(turn) && !self.holds_back(turn.config.election_ticks) {
            self.node.tick();
            self.set_election_timeout();
        }
        let wait_ms = turn.config.wait_ms;
        let leading = self.leads().then_some(Term(self.node.raft.term));
        let given_up = self.proposals.give_up_doubt(now_ms, wait_ms, leading);
        turn.out.refused.extend(given_up.into_iter().map(|id| (id, ProposeError::Unknown)));
        let expired = self.reads.expire(now_ms, wait_ms);
        self.answer(expired, Err(ReadError::NoLeader { waited_ms: wait_ms }), turn);
        self.reads.retry(now_ms, turn.config.read_retry_ms());
        self.rest();
    }

    // What follows.

    /// Does everything that the inputs of a call made possible.
    pub(super) fn settle(&mut self, turn: &mut Turn) {
        self.touched = false;
        if self.alone() {
            self.campaign_alone();
        }
        self.take_readies(turn);
        self.end_transfer(turn);
        self.fall_asleep(turn);
        self.evict(turn.config);
        self.ask_for_entries(turn);
        self.announce(turn);
    }

    fn take_readies(&mut self, turn: &mut Turn) {
        loop {
            self.notice_leadership(turn);
            self.cut_batches(turn);
            self.issue_reads(turn);
            if !self.node.has_ready() {
                self.spread_news(turn);
            }
            if !self.node.has_ready() {
                break;
            }
            self.take_ready(turn);
        }
    }

    /// Starts the clock of a new term; refuses commands when there is nothing to lead.
    fn notice_leadership(&mut self, turn: &mut Turn) {
        let term = Term(self.node.raft.term);
        let led_by = (term.0, self.node.raft.leader_id);
        if std::mem::replace(&mut self.led_by, led_by) != led_by && led_by.1 != raft::INVALID_ID {
            // The former leader owes an answer that will not come.
            self.reads.retry(turn.now.monotonic_ms, 0);
        }
        if !self.leads() {
            let leader = self.leader_node();
            let refused = self.proposals.give_up_gathered();
            turn.out.refused.extend(refused.into_iter().map(|id| (id, ProposeError::NotLeader { leader })));
            self.proposals.doubt(turn.now.monotonic_ms);
        } else if self.clock.term() != term {
            self.clock.start(term, turn.now, self.node.store().last_stamp());
            self.news.lead(self.committed());
        }
    }

    /// Puts gathered commands into the log, unless enough batches are under way: then they gather on.
    fn cut_batches(&mut self, turn: &mut Turn) {
        let unsynced = turn.config.batches_in_flight_max.saturating_sub(self.unsynced.batches());
        let free = turn.config.batches_unapplied_max.saturating_sub(self.proposals.unapplied()).min(unsynced);
        if !self.leads() || self.node.raft.lead_transferee.is_some() {
            return;
        }
        for _ in 0..free {
            let Some(batch) = self.proposals.next_batch() else { return };
            let (index, term) = (Index(self.node.raft.raft_log.last_index() + 1), Term(self.node.raft.term));
            let held_bytes = batch.held_bytes();
            self.proposals.sent(index, term, batch.ids.clone(), held_bytes);
            let begins_term = self.clock.is_fresh();
            let time_ms = self.clock.stamp(turn.now).0;
            let data = Batch { time_ms, operations: batch.operations, begins_term }.encode_to_vec();
            if self.node.propose(Vec::new(), data).is_ok() {
                self.unsynced.add_batch();
                let committed = self.committed();
                self.news.appended(committed, turn.now.monotonic_ms, turn.config.news_delay_ms);
                turn.out.proposed.push(Proposed { group: self.id, index, term, ids: batch.ids });
            } else {
                // This replica is being removed from the group it still leads.
                let refuse = |id| (id, ProposeError::NotLeader { leader: None });
                turn.out.refused.extend(self.proposals.not_sent().into_iter().map(refuse));
            }
        }
    }

    /// One round with the engine: what it wants written, sent and applied.
    fn take_ready(&mut self, turn: &mut Turn) {
        let mut ready = self.node.ready();
        let number = ready.number();
        let mut now = ready.take_messages();
        let mut after_sync = ready.take_persisted_messages();
        let entries = ready.take_entries();
        let committed = ready.take_committed_entries();
        let read_points = ready.take_read_states();
        let must_sync = ready.must_sync();
        if let Some(changed) = ready.hs() {
            self.unsynced.set_hard_state(start::from_engine(changed));
        }
        self.node.mut_store().append(&entries);
        self.node.advance_append_async(ready);
        let early = self.node.raft.term > self.unsynced.durable_term().0;
        #[cfg(test)]
        let early = early && turn.config.bug != Some(Bug::SpeakInUnsyncedTerm);
        if early {
            // The only voter leads before its vote for itself is on disk. Were it to send entries of that
            // term and then crash, it could lead the same term again with other entries.
            after_sync.append(&mut now);
        }
        #[cfg(test)]
        {
            let hurried = match turn.config.bug {
                Some(Bug::AcknowledgeBeforeSync) => MessageType::MsgAppendResponse,
                Some(Bug::VoteBeforeSync) => MessageType::MsgRequestVoteResponse,
                _ => MessageType::MsgUnreachable,
            };
            now.extend(after_sync.extract_if(.., |message| message.get_msg_type() == hurried));
        }
        self.send(now, turn);
        self.write(number, must_sync, &entries, after_sync, turn);
        self.deliver(&committed, turn);
        for point in read_points {
            self.confirm_round(&point.request_ctx, Index(point.index), turn);
        }
    }

    /// Hands what must be synced to the log thread, and keeps back what may be sent only then.
    fn write(
        &mut self,
        ready: u64,
        must_sync: bool,
        entries: &[eraftpb::Entry],
        messages: Vec<eraftpb::Message>,
        turn: &mut Turn,
    ) {
        if must_sync {
            *turn.last_write += 1;
            let (number, term) = (*turn.last_write, Term(self.node.raft.term));
            turn.out.log.push(LogWrite {
                group: self.id,
                number,
                entries: entries.iter().map(from_engine).collect(),
                hard_state: self.unsynced.push(number, ready, term, messages),
                ..LogWrite::default()
            });
        } else if let Some(synced) = self.unsynced.follow(ready, messages) {
            self.after_sync(synced, turn);
        }
    }

    fn send(&self, messages: Vec<eraftpb::Message>, turn: &mut Turn) {
        for message in messages {
            assert_eq!(message.from, self.replica.0, "a replica speaks only for itself");
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.offer_snapshot(&message, turn);
                continue;
            }
            let to = ReplicaId(message.to);
            // A replica whose node is unknown will make itself known: it asks for votes, or its node is in
            // the catalog.
            if let Some(&to) = self.nodes.get(&to)
                && let Some(mut message) = from_engine_message(message)
            {
                if let PeerBody::ReadIndexReply { time, .. } = &mut message.body {
                    *time = self.log_time(turn.now).unwrap_or_default();
                }
                turn.out.messages.push(PeerOut { to, group: self.id, message });
            }
        }
    }

    /// Hands committed entries to the apply worker.
    fn deliver(&mut self, committed: &[eraftpb::Entry], turn: &mut Turn) {
        let Some(last) = committed.last() else { return };
        for entry in committed {
            let lost = self.proposals.commit(Index(entry.index), Term(entry.term));
            turn.out.refused.extend(lost.into_iter().map(|id| (id, ProposeError::Lost)));
            if entry.get_entry_type() == EntryType::EntryConfChangeV2
                && self.change_membership(Index(entry.index), &entry.data)
            {
                *turn.last_write += 1;
                turn.out.log.push(LogWrite {
                    group: self.id,
                    number: *turn.last_write,
                    membership: Some(self.membership.clone()),
                    ..LogWrite::default()
                });
            }
        }
        self.delivered = Index(last.index);
        turn.out.apply.push(ApplyJob {
            group: self.id,
            snapshot: None,
            entries: committed.iter().map(from_engine).collect(),
        });
        self.reseed_if_due(turn);
    }

    /// Frees what nobody needs in memory. Who has no followers needs none of what is applied.
    fn evict(&mut self, config: &ShardConfig) {
        let done = self.applied.0.min(self.node.raft.raft_log.persisted);
        let bytes_max = if self.has_peers() { config.cache_bytes_max } else { 0 };
        self.node.mut_store().evict(Index(done), bytes_max);
    }

    /// Asks for entries that the engine wants to send but that are no longer in memory; once for each first
    /// index.
    fn ask_for_entries(&mut self, turn: &mut Turn) {
        for wish in self.node.mut_store().take_wishes() {
            let twins = self.wishes.iter().filter(|other| other.from == wish.from).count();
            if twins == 0 {
                let (group, from, to) = (self.id, wish.from, wish.to);
                turn.out.load.push(LogLoad { group, from, to, bytes_max: turn.config.append_bytes_max });
            }
            // The engine asks again at every heartbeat; one wish for each replica is all it needs.
            if twins < self.node.raft.prs().iter().len() {
                self.wishes.push(wish);
            }
        }
    }

    fn announce(&mut self, turn: &mut Turn) {
        let standing = self.standing();
        if self.announced != Some(standing) {
            self.announced = Some(standing);
            turn.out.roles.push(standing);
        }
    }

    /// Ends the group: commands that are certainly not done, and those that perhaps are.
    pub(super) fn give_up(&mut self) -> (Vec<ProposalId>, Vec<ProposalId>) {
        let mut never = self.proposals.give_up_gathered();
        never.extend(self.transferring.take().map(|(id, _)| id));
        (never, self.proposals.give_up_in_flight(None))
    }

    /// Ends the group: reads that will not be answered.
    pub(super) fn give_up_reads(&mut self) -> Vec<ReadId> {
        self.reads.take_all()
    }
}
