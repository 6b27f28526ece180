//! The world around the nodes: time, chance, the network, the clients, and the faults.

use std::collections::BTreeMap;

use crate::id::{GroupId, Index, NodeId, ReplicaId};
use crate::raft::input::{Input, MembershipStep, ProposalId, ReadId};
use crate::raft::message::PeerBody;
use crate::raft::output::{ApplyJob, Output, PeerOut, ProposeError, Proposed, Role};
use crate::raft::shard::ShardConfig;
use crate::raft::simulation::node::{Disk, Life, SimNode, State, replica_of};
use crate::raft::simulation::oracle::{Oracle, command};
use crate::raft::simulation::{Bug, Rng};
use crate::storage::entry::{EntryKind, GroupLog, Membership};

mod transfer;
use transfer::Transfer;

/// What was done to the nodes. Counted, because a test whose faults never happen shows nothing.
#[derive(Default)]
pub(super) struct Faults {
    counts: BTreeMap<&'static str, u64>,
}

const KINDS: [&str; 29] = [
    "acknowledged",
    "all asleep",
    "asleep",
    "crash",
    "cut log",
    "doubled message",
    "install made good",
    "isolated node",
    "leader change",
    "load from log",
    "lost chunk",
    "lost message",
    "lost proposal",
    "lost write",
    "lull",
    "membership change",
    "membership refused",
    "read answered",
    "silent node",
    "snapshot for a busy node",
    "snapshot given up",
    "snapshot installed",
    "snapshot staged",
    "snapshot unwanted",
    "snapshot wanted",
    "transfer",
    "transfer failed",
    "unknown fate",
    "write synced but not reported",
];

impl Faults {
    fn count(&mut self, kind: &'static str) {
        self.count_times(kind, 1);
    }

    fn count_times(&mut self, kind: &'static str, times: u64) {
        if times > 0 {
            *self.counts.entry(kind).or_default() += times;
        }
    }

    pub(super) fn add(&mut self, other: &Faults) {
        other.counts.iter().for_each(|(kind, count)| *self.counts.entry(kind).or_default() += count);
    }

    pub(super) fn assert_all_happened(&self) {
        assert_eq!(self.counts.keys().copied().collect::<Vec<_>>(), KINDS, "{:?}", self.counts);
    }
}

struct Packet {
    due_ms: u64,
    from: NodeId,
    out: PeerOut,
}

pub(super) struct World {
    rng: Rng,
    now_ms: u64,
    ids: Vec<NodeId>,
    groups: Vec<GroupId>,
    nodes: BTreeMap<NodeId, SimNode>,
    packets: Vec<Packet>,
    transfers: Vec<Transfer>,
    /// Cut off from the others until then.
    isolated: BTreeMap<NodeId, u64>,
    /// When each node last heard of each other, and whether its shard was told of the silence.
    heard: BTreeMap<(NodeId, NodeId), (u64, bool)>,
    /// Clients want nothing until then.
    lull_until_ms: u64,
    oracle: Oracle,
    last_id: u64,
    config: ShardConfig,
    calm: bool,
    /// Whether replicas come and go.
    changing: bool,
    bug: Option<Bug>,
    pub(super) faults: Faults,
    /// Every output, if asked for.
    pub(super) record: Vec<String>,
    recording: bool,
}

impl World {
    pub(super) fn new(seed: u64, bug: Option<Bug>, recording: bool) -> World {
        let mut rng = Rng(seed);
        let size = [1, 1, 2, 3, 3, 3, 5][rng.below(7) as usize];
        let ids: Vec<NodeId> = (1..=size).map(NodeId).collect();
        let groups: Vec<GroupId> = (0..1 + rng.below(3)).map(GroupId).collect();
        let changing = size > 1 && rng.one_in(2);
        let at_first = if changing { 1 + rng.below(size) } else { size };
        let voters = ids[..at_first as usize].iter().map(|&id| replica_of(id).0).collect::<Vec<_>>();
        let membership = Membership { voters, ..Membership::default() };
        let mut oracle = Oracle::default();
        groups.iter().for_each(|&group| oracle.membership(group, Index(0), &membership));
        let first = GroupLog { membership: (Index(0), membership), ..GroupLog::default() };
        let mut nodes = BTreeMap::new();
        for &id in &ids {
            let disk = Disk {
                logs: groups.iter().map(|&group| (group, first.clone())).collect(),
                flushed: groups.iter().map(|&group| (group, State::default())).collect(),
                staged: BTreeMap::new(),
            };
            nodes.insert(
                id,
                SimNode {
                    id,
                    shadow: disk.clone(),
                    disk,
                    life: None,
                    back_at_ms: 0,
                    tick_ms: 90 + rng.below(20),
                    wall_offset_ms: rng.below(100_000),
                    leaves_staged: bug == Some(Bug::LeaveStaged),
                    installed_at_start: 0,
                },
            );
        }
        let config = ShardConfig {
            batches_in_flight_max: 1 + rng.below(3) as usize,
            batches_unapplied_max: 1 + rng.below(6) as usize,
            batch_operations_max: 1 + rng.below(20) as usize,
            group_held_bytes_max: 2_000 + rng.below(20_000) as usize,
            cache_bytes_max: rng.below(2) as usize * 10_000,
            append_bytes_max: 200 + rng.below(10_000) as usize,
            appends_in_flight_max: 1 + rng.below(8) as usize,
            lag_entries_max: [0, 5, 50][rng.below(3) as usize],
            sleep_after_ticks: [0, 3, 10][rng.below(3) as usize],
            bug,
            ..ShardConfig::new(NodeId(0), 0)
        };
        World {
            rng,
            now_ms: 1_000_000,
            ids,
            groups,
            nodes,
            packets: Vec::new(),
            transfers: Vec::new(),
            isolated: BTreeMap::new(),
            heard: BTreeMap::new(),
            lull_until_ms: 0,
            oracle,
            last_id: 0,
            config,
            calm: false,
            changing,
            bug,
            faults: Faults::default(),
            record: Vec::new(),
            recording,
        }
    }

    /// A time in which everything goes wrong.
    pub(super) fn trouble(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step();
        }
    }

    /// All nodes come back and are left in peace: then everyone learns the fate of everything, and new
    /// commands go in.
    pub(super) fn heal(&mut self) {
        self.calm = true;
        self.isolated.clear();
        self.nodes.values_mut().for_each(|node| node.back_at_ms = 0);
        self.lull_until_ms = 0;
        let end_ms = self.now_ms + 60_000;
        let (before, last_id) = (self.oracle.acknowledged.len(), self.last_id);
        let committed: Vec<u64> = self.groups.iter().map(|&group| self.oracle.committed(group)).collect();
        while !self.settled(last_id, &committed) || self.oracle.acknowledged.len() < before + 10 {
            self.step();
            assert!(self.now_ms < end_ms, "no progress within a minute of peace: {}", self.describe());
        }
        self.faults.count_times("acknowledged", before as u64);
        self.faults.count_times("read answered", self.oracle.reads_answered);
        let made_good = self.nodes.values().map(|node| node.installed_at_start).sum();
        self.faults.count_times("install made good", made_good);
    }

    /// Clients want nothing any more: groups fall asleep, and nothing is said. Then a node dies, and clients
    /// want something: whoever is left gets it done.
    pub(super) fn rest_and_wake(&mut self) {
        if self.config.sleep_after_ticks == 0 {
            return;
        }
        self.lull_until_ms = u64::MAX;
        // What dead leaders left in the logs, changes of membership too, is committed or gone by then.
        let end_ms = self.now_ms + 15_000;
        while self.now_ms < end_ms {
            self.step();
        }
        self.close_outsiders();
        let end_ms = self.now_ms + 60_000;
        while !self.all_asleep() || !self.packets.is_empty() {
            self.step();
            assert!(self.now_ms < end_ms, "still awake after a minute of rest: {}", self.describe());
        }
        self.faults.count("all asleep");
        let quiet_ms = self.now_ms + 10_000;
        while self.now_ms < quiet_ms {
            self.step();
            assert!(self.packets.is_empty() && self.all_asleep(), "woken by nothing: {}", self.describe());
        }
        let victim = self.ids[self.rng.below(self.ids.len() as u64) as usize];
        let back_at_ms = self.now_ms + 10_000 + self.rng.below(10_000);
        self.crash(victim, back_at_ms);
        self.lull_until_ms = 0;
        let (end_ms, before) = (self.now_ms + 60_000, self.oracle.acknowledged.len());
        while self.oracle.acknowledged.len() < before + 10 {
            self.step();
            assert!(self.now_ms < end_ms, "nothing done within a minute: {}", self.describe());
        }
    }

    /// Replicas that were let go may not know it, and would stand for election for ever: in a real cluster
    /// the catalog knows, and its nodes close them.
    fn close_outsiders(&mut self) {
        for (&id, &group) in self.ids.iter().flat_map(|id| self.groups.iter().map(move |group| (id, group))) {
            let members = self.oracle.members(group);
            let own = replica_of(id).0;
            if !members.voters.contains(&own)
                && !members.learners.contains(&own)
                && let Some(life) = &mut self.nodes.get_mut(&id).unwrap().life
            {
                life.inbox.push(Input::Close(group));
            }
        }
    }

    fn all_asleep(&self) -> bool {
        let awake = |life: &Life| {
            let awake = |group: &GroupId| life.shard.group_status(*group).is_some_and(|status| status.awake);
            self.groups.iter().any(awake)
        };
        self.nodes.values().all(|node| node.life.as_ref().is_some_and(|life| !awake(life)))
    }

    /// Nodes notice each other's silence, as their heartbeats would.
    fn listen(&mut self) {
        const PATIENCE_MS: u64 = 1_500;
        let speaks = |id: &NodeId| {
            self.nodes[id].life.is_some() && self.isolated.get(id).is_none_or(|until| *until <= self.now_ms)
        };
        let speaking: Vec<bool> = self.ids.iter().map(speaks).collect();
        for (&listener, &hears) in self.ids.iter().zip(&speaking) {
            for (&speaker, &says) in self.ids.iter().zip(&speaking) {
                let heard = self.heard.entry((listener, speaker)).or_insert((self.now_ms, false));
                if hears && says {
                    *heard = (self.now_ms, false);
                } else if self.now_ms - heard.0 >= PATIENCE_MS
                    && !heard.1
                    && let Some(life) = &mut self.nodes.get_mut(&listener).unwrap().life
                {
                    heard.1 = true;
                    life.inbox.push(Input::NodeSilent(speaker));
                    self.faults.count("silent node");
                }
            }
        }
    }

    /// Where every group stands on every node.
    fn describe(&self) -> String {
        let mut text = format!("{} acknowledged, {:?}", self.oracle.acknowledged.len(), self.faults.counts);
        for (id, node) in &self.nodes {
            let Some(life) = &node.life else { continue };
            for &group in &self.groups {
                text += &format!("\nnode {id}: {:?}", life.shard.group_status(group));
            }
            text += &format!(
                "\n  {} unsynced, {} jobs, open: {:?}",
                life.unsynced.len(),
                life.jobs.len(),
                life.open
            );
        }
        text
    }

    /// Whether every command up to this one has a fate, every member has applied as much as this of each
    /// group, and no change of membership is half done.
    fn settled(&self, last_id: u64, applied: &[u64]) -> bool {
        let done = |node: &SimNode, life: &Life| {
            let mut fates = life.open.keys();
            fates.all(|id| id.0 > last_id)
                && self.groups.iter().zip(applied).all(|(&group, &index)| {
                    let members = self.oracle.members(group);
                    let own = replica_of(node.id).0;
                    let member = members.voters.contains(&own) || members.learners.contains(&own);
                    members.voters_outgoing.is_empty() && (!member || life.states[&group].applied.0 >= index)
                })
        };
        self.nodes.values().all(|node| node.life.as_ref().is_some_and(|life| done(node, life)))
    }

    fn step(&mut self) {
        self.now_ms += self.rng.below(20);
        if !self.calm {
            self.break_something();
        }
        self.deliver_packets();
        self.move_snapshots();
        self.listen();
        for id in self.ids.clone() {
            if self.nodes[&id].life.is_none() && self.nodes[&id].back_at_ms <= self.now_ms {
                self.start(id);
            }
            if self.nodes[&id].life.is_some() {
                self.clients_ask(id);
                self.work(id);
                self.call(id);
            }
        }
    }

    fn break_something(&mut self) {
        // The moment at which a log begins anew and its state is not there yet is short.
        let staging = self.nodes.values().find(|node| node.life.is_some() && !node.disk.staged.is_empty());
        if let Some(id) = staging.map(|node| node.id)
            && self.rng.one_in(10)
        {
            self.crash(id, self.now_ms);
        }
        let victim = self.ids[self.rng.below(self.ids.len() as u64) as usize];
        let until_ms = self.now_ms + self.rng.below(5_000);
        match self.rng.below(150) {
            0 if self.nodes[&victim].life.is_some() => self.crash(victim, until_ms),
            1 => {
                self.isolated.insert(victim, until_ms);
                self.faults.count("isolated node");
            }
            2 => {
                let node = self.nodes.get_mut(&victim).unwrap();
                node.wall_offset_ms = self.rng.below(200_000);
            }
            3 => {
                let group = self.groups[self.rng.below(self.groups.len() as u64) as usize];
                if let Some(life) = &mut self.nodes.get_mut(&victim).unwrap().life {
                    life.inbox.push(Input::Campaign { group });
                }
            }
            4 => self.transfer(),
            7 if self.rng.one_in(3) => {
                self.lull_until_ms = until_ms;
                self.faults.count("lull");
            }
            5 | 6 if self.changing => self.change_membership(),
            _ => {}
        }
    }

    /// A leader of some group, if one believes to be it.
    fn some_leader(&mut self) -> Option<(NodeId, GroupId)> {
        let group = self.groups[self.rng.below(self.groups.len() as u64) as usize];
        let leads = |node: &&SimNode| {
            let status = node.life.as_ref().and_then(|life| life.shard.group_status(group));
            status.is_some_and(|status| status.standing.role == Role::Leader)
        };
        let leaders: Vec<NodeId> = self.nodes.values().filter(leads).map(|node| node.id).collect();
        let at = self.rng.below(leaders.len().max(1) as u64) as usize;
        leaders.get(at).map(|&leader| (leader, group))
    }

    fn tell(&mut self, node: NodeId, input: Input) {
        if let Some(life) = &mut self.nodes.get_mut(&node).unwrap().life {
            life.inbox.push(input);
        }
    }

    fn some_replica(&mut self) -> ReplicaId {
        replica_of(self.ids[self.rng.below(self.ids.len() as u64) as usize])
    }

    fn transfer(&mut self) {
        let to = self.some_replica();
        if let Some((leader, group)) = self.some_leader() {
            self.last_id += 1;
            let id = ProposalId(self.last_id);
            self.nodes.get_mut(&leader).unwrap().life.as_mut().unwrap().open.insert(id, None);
            self.tell(leader, Input::Transfer { group, id, to });
        }
    }

    fn change_membership(&mut self) {
        let Some((leader, group)) = self.some_leader() else { return };
        let steps = (0..1 + self.rng.below(3)).map(|_| {
            let replica = self.some_replica();
            match self.rng.below(5) {
                0 => MembershipStep::AddLearner(replica),
                1 => MembershipStep::Remove(replica),
                _ => MembershipStep::AddVoter(replica),
            }
        });
        let steps = steps.collect();
        self.last_id += 1;
        let id = ProposalId(self.last_id);
        self.nodes.get_mut(&leader).unwrap().life.as_mut().unwrap().open.insert(id, None);
        self.tell(leader, Input::ChangeMembership { group, id, steps });
    }

    /// The process dies. What was not synced is lost, but for what the disk had written without saying so.
    fn crash(&mut self, id: NodeId, back_at_ms: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        let mut life = node.life.take().unwrap();
        node.back_at_ms = back_at_ms;
        self.faults.count("crash");
        let kept = self.rng.below(life.unsynced.len() as u64 + 1);
        for write in life.unsynced.drain(..kept as usize) {
            node.disk.sync(write);
            self.faults.count("write synced but not reported");
        }
        for _ in life.unsynced {
            self.faults.count("lost write");
        }
        if self.bug == Some(Bug::LoseSynced) {
            node.disk = node.shadow.clone();
        }
    }

    fn start(&mut self, id: NodeId) {
        let config = ShardConfig { node: id, seed: self.rng.next(), ..self.config.clone() };
        let oracle = &self.oracle;
        let node = self.nodes.get_mut(&id).unwrap();
        if self.bug == Some(Bug::ForgetVote) {
            node.disk.logs.values_mut().for_each(|log| log.hard_state.vote = 0);
        }
        node.start(self.now_ms, config, &self.ids, |group, index| oracle.stamp_at(group, index));
    }

    fn deliver_packets(&mut self) {
        let (due, later) =
            std::mem::take(&mut self.packets).into_iter().partition(|packet| packet.due_ms <= self.now_ms);
        self.packets = later;
        let due: Vec<Packet> = due;
        for Packet { from, out, .. } in due {
            let cut = |node: &NodeId| self.isolated.get(node).is_some_and(|until| *until > self.now_ms);
            if cut(&from) || cut(&out.to) {
                self.faults.count("lost message");
            } else if let Some(life) = &mut self.nodes.get_mut(&out.to).unwrap().life {
                life.inbox.push(Input::Message { from, group: out.group, message: out.message });
            }
        }
    }

    fn clients_ask(&mut self, id: NodeId) {
        for &group in &self.groups {
            let life = self.nodes.get_mut(&id).unwrap().life.as_mut().unwrap();
            let led = life.shard.group_status(group).filter(|group| group.standing.role == Role::Leader);
            let leads = led.is_some();
            if led.is_some_and(|group| !group.awake && !group.standing.sole_voter) {
                self.faults.count("asleep");
            }
            if self.now_ms < self.lull_until_ms {
                continue;
            }
            if self.rng.one_in(if leads { 3 } else { 40 }) {
                for _ in 0..1 + self.rng.below(8) {
                    self.last_id += 1;
                    let id = ProposalId(self.last_id);
                    let padding = self.rng.below(200) as usize;
                    life.open.insert(id, None);
                    let operation = command(id, padding);
                    life.inbox.push(Input::Propose { group, id, operation, bytes: 8 + padding });
                }
            }
            if self.rng.one_in(10) {
                self.last_id += 1;
                let id = ReadId(self.last_id);
                self.oracle.ask(id, group);
                life.inbox.push(Input::Read { group, id, lease: false });
            }
        }
    }

    /// The node's threads do a little: syncs, applies, loads, flushes, ticks.
    fn work(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let life = node.life.as_mut().unwrap();
        while life.next_tick_ms <= self.now_ms {
            life.next_tick_ms += node.tick_ms;
            life.inbox.push(Input::Tick);
        }
        if self.rng.one_in(2) {
            let count = self.rng.below(life.unsynced.len() as u64 + 1);
            for write in life.unsynced.drain(..count as usize) {
                let (group, number) = (write.group, write.number);
                node.disk.sync(write);
                life.inbox.push(Input::Persisted { group, number });
            }
        }
        if self.rng.one_in(2) {
            for _ in 0..self.rng.below(life.jobs.len() as u64 + 1) {
                self.apply(id);
            }
        }
        let node = self.nodes.get_mut(&id).unwrap();
        let life = node.life.as_mut().unwrap();
        if self.rng.one_in(4) {
            for load in life.loads.drain(..) {
                let entries = node.disk.load(load);
                life.inbox.push(Input::Loaded { group: load.group, from: load.from, entries });
                self.faults.count("load from log");
            }
        }
        if self.rng.one_in(50) {
            for (&group, &state) in &life.states {
                let torn = State { applied: state.applied, ..node.disk.flushed[&group] };
                let whole = self.bug != Some(Bug::TearState);
                node.disk.flushed.insert(group, if whole { state } else { torn });
                let to = Index(state.applied.0.saturating_sub(self.rng.below(20)));
                life.inbox.push(Input::Truncate { group, to });
            }
        }
        if self.bug == Some(Bug::LoseSynced) && self.rng.one_in(30) {
            node.shadow = node.disk.clone();
        }
    }

    /// The apply worker does its next job.
    fn apply(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let life = node.life.as_mut().unwrap();
        let ApplyJob { group, snapshot, entries } = life.jobs.pop_front().unwrap();
        let state = life.states.get_mut(&group).unwrap();
        if let Some(head) = snapshot {
            let staged = node.disk.staged.remove(&group).expect("what is to be installed is staged");
            assert_eq!(staged.head, head);
            assert!(head.index > state.applied, "a snapshot takes the place of a newer state");
            *state = staged.state;
            node.disk.flushed.insert(group, staged.state);
            self.faults.count("snapshot installed");
        }
        for entry in &entries {
            state.apply(entry);
        }
        self.oracle.state(id, group, *state);
        life.inbox.push(Input::Applied { group, index: state.applied });
        for entry in &entries {
            let key = (group, entry.index, entry.term);
            let ids = life.proposed.remove(&key).unwrap_or_default();
            for (offset, id) in ids.into_iter().enumerate() {
                assert_eq!(life.open.remove(&id), Some(Some(key)), "{id:?}");
                if entry.kind == EntryKind::Membership {
                    self.faults.count("membership change");
                    continue;
                }
                self.oracle.acknowledge(id, (group, entry.index, offset));
            }
        }
    }

    /// One call into the shard, and everything that comes of it.
    fn call(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let now = node.now(self.now_ms);
        let life = node.life.as_mut().unwrap();
        let mut out = Output::default();
        life.shard.handle(now, life.inbox.drain(..), &mut out);
        assert!(out.quarantined.is_empty(), "{:?}", out.quarantined);
        if self.recording && !out.is_empty() {
            self.record.push(format!("{} {id} {out:?}", self.now_ms));
        }
        for change in &out.roles {
            self.oracle.role(id, change);
            if change.role == Role::Leader {
                self.faults.count("leader change");
            }
        }
        self.note_fates(id, std::mem::take(&mut out.proposed), std::mem::take(&mut out.refused));
        let node = self.nodes.get_mut(&id).unwrap();
        let life = node.life.as_mut().unwrap();
        for id in out.transferred {
            self.faults.count("transfer");
            assert_eq!(life.open.remove(&id), Some(None), "a transfer ends once");
        }
        for read in out.reads {
            read.ids.iter().for_each(|id| self.oracle.answer(*id, read.index.as_ref().ok().copied()));
        }
        for write in &out.log {
            if write.truncate.is_some() {
                self.faults.count("cut log");
            }
            if let Some((index, membership)) = &write.membership {
                self.oracle.membership(write.group, *index, membership);
            }
        }
        for (group, index) in out.unwanted {
            let staged = node.disk.staged.remove(&group).expect("what is unwanted is staged");
            assert_eq!(staged.head.index, index);
            self.faults.count("snapshot unwanted");
            if self.bug == Some(Bug::InstallUnwanted) {
                life.states.insert(group, staged.state);
            }
        }
        let wanted = out.snapshots;
        life.unsynced.extend(out.log);
        life.loads.extend(out.load);
        for job in out.apply {
            self.deliver(id, job);
        }
        for snapshot in wanted {
            self.begin_transfer(id, snapshot);
        }
        for message in out.messages {
            self.send(id, message);
        }
    }

    /// Proposals went into the log, or did not, or are not to be applied where they are.
    fn note_fates(&mut self, id: NodeId, proposed: Vec<Proposed>, refused: Vec<(ProposalId, ProposeError)>) {
        let life = self.nodes.get_mut(&id).unwrap().life.as_mut().unwrap();
        for batch in proposed {
            let key = (batch.group, batch.index, batch.term);
            for id in &batch.ids {
                life.open.insert(*id, Some(key));
            }
            assert!(life.proposed.insert(key, batch.ids).is_none(), "two batches at {key:?}");
        }
        for (id, error) in refused {
            self.oracle.refuse(id, &error);
            match error {
                ProposeError::Lost => self.faults.count("lost proposal"),
                ProposeError::ChangePending | ProposeError::InvalidChange(_) => {
                    self.faults.count("membership refused");
                }
                ProposeError::TransferFailed(_) => self.faults.count("transfer failed"),
                ProposeError::Unknown => self.faults.count("unknown fate"),
                _ => {}
            }
            let place = life.open.remove(&id).unwrap_or_else(|| panic!("{id:?} has a second fate: {error}"));
            if let Some(key) = place {
                life.proposed.remove(&key);
            }
        }
    }

    fn deliver(&mut self, id: NodeId, job: ApplyJob) {
        if let Some(head) = &job.snapshot {
            assert_eq!(self.nodes[&id].disk.logs[&job.group].start.0, head.index, "the log begins there");
            self.nodes.get_mut(&id).unwrap().life.as_mut().unwrap().delivered.insert(job.group, head.index);
        }
        for entry in &job.entries {
            let node = self.nodes.get_mut(&id).unwrap();
            let delivered = node.life.as_mut().unwrap().delivered.get_mut(&job.group).unwrap();
            assert_eq!(entry.index, delivered.next(), "jobs follow each other without gaps");
            *delivered = entry.index;
            assert!(node.disk.holds(job.group, entry.index, entry.term), "applied before it is synced here");
            if self.oracle.deliver(job.group, entry) {
                let holds = |replica: u64| {
                    let mut nodes = self.nodes.values();
                    let node = nodes.find(|node| replica_of(node.id).0 == replica).unwrap();
                    node.disk.holds(job.group, entry.index, entry.term)
                };
                let enough = self.oracle.suffice(job.group, entry.index, holds);
                assert!(enough, "entry {} is applied with too few copies on disk", entry.index);
            }
        }
        self.nodes.get_mut(&id).unwrap().life.as_mut().unwrap().jobs.push_back(job);
    }

    fn send(&mut self, from: NodeId, out: PeerOut) {
        let disk = &self.nodes[&from].disk;
        match &out.message.body {
            PeerBody::Appended { index, .. } => {
                let log = &disk.logs[&out.group];
                let last = log.entries.last().map_or(log.start.0, |entry| entry.index);
                // What was true in an earlier term may leave together with the write that ends that term.
                let earlier = log.hard_state.term > out.message.term;
                assert!(*index <= last || earlier, "acknowledged up to {index}, the disk ends at {last}");
            }
            PeerBody::Vote { trial: false, granted: true, .. } => {
                self.oracle.vote(out.group, out.message.from, out.message.term, out.message.to);
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
        if !self.calm && self.rng.one_in(20) {
            self.faults.count("lost message");
            return;
        }
        if !self.calm && self.rng.one_in(30) {
            self.faults.count("doubled message");
            let due_ms = self.now_ms + self.rng.below(500);
            self.packets.push(Packet { due_ms, from, out: out.clone() });
        }
        let slow_ms = if self.rng.one_in(20) { 400 } else { 30 };
        let due_ms = self.now_ms + self.rng.below(slow_ms);
        self.packets.push(Packet { due_ms, from, out });
    }
}
