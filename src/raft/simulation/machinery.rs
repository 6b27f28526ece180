//! What surrounds the shard on a node: the log thread, the apply workers, the loader, the ticker; and the one
//! call into the shard with everything that comes of it.

use crate::id::{GroupId, Index, NodeId};
use crate::raft::input::Input;
use crate::raft::output::{ApplyJob, Output, PeerOut, Role};
use crate::raft::simulation::Bug;
use crate::raft::simulation::state::State;
use crate::raft::simulation::tenant::Fate;
use crate::raft::simulation::world::World;
use crate::storage::entry::{Entry, EntryKind};

impl World {
    /// The node's threads do a little: syncs, applies, loads, flushes, ticks.
    pub(super) fn work(&mut self, id: NodeId) {
        let (tick_ms, now_ms) = (self.config.tick_ms, self.now_ms);
        let node = self.node(id);
        node.tick(tick_ms);
        let is_slow = node.slow_until_ms > now_ms;
        let inbox = node.life.iter().flat_map(|life| &life.inbox);
        let ticks = inbox.clone().filter(|input| matches!(input, Input::Tick)).count();
        let kept_back = inbox.filter(|input| matches!(input, Input::Due)).count();
        if ticks > 1 {
            self.faults.count("burst of ticks");
        }
        self.faults.count_times("news kept back", kept_back as u64);
        if self.rng.one_in(if is_slow { 60 } else { 2 }) {
            self.sync(id);
        } else if is_slow && !self.life(id).unsynced.is_empty() {
            self.faults.count("write delayed");
        }
        if self.rng.one_in(2) {
            for _ in 0..self.rng.below(self.nodes[&id].life.as_ref().unwrap().jobs.len() as u64 + 1) {
                self.apply(id);
            }
        }
        if self.rng.one_in(4) {
            self.load(id);
        }
        if self.rng.one_in(50) && !is_slow {
            self.flush(id);
        }
        if self.bug == Some(Bug::LoseSynced) && self.rng.one_in(30) {
            let node = self.node(id);
            node.shadow = node.disk.clone();
        }
    }

    /// The log thread syncs some of what it was given.
    fn sync(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let life = node.life.as_mut().unwrap();
        let count = self.rng.below(life.unsynced.len() as u64 + 1);
        for write in life.unsynced.drain(..count as usize) {
            let (group, number) = (write.group, write.number);
            node.disk.sync(write);
            life.inbox.push(Input::Persisted { group, number });
        }
    }

    /// Entries come back from the log.
    fn load(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let life = node.life.as_mut().unwrap();
        for load in life.loads.drain(..) {
            let entries = node.disk.load(load);
            life.inbox.push(Input::Loaded { group: load.group, from: load.from, entries });
            self.faults.count("load from log");
        }
    }

    /// The state database makes good what it holds, and the log may be cut.
    fn flush(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let life = node.life.as_mut().unwrap();
        for (&group, &state) in life.states.iter().filter(|(group, _)| !node.disk.halted.contains(group)) {
            let torn = State { applied: state.applied, ..node.disk.flushed[&group] };
            let whole = self.bug != Some(Bug::TearState);
            node.disk.flushed.insert(group, if whole { state } else { torn });
            let to = Index(state.applied.0.saturating_sub(self.rng.below(20)));
            life.inbox.push(Input::Truncate { group, to });
        }
    }

    /// The apply worker does its next job.
    fn apply(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let life = node.life.as_mut().unwrap();
        let ApplyJob { group, snapshot, entries } = life.jobs.pop_front().unwrap();
        if let Some(head) = snapshot {
            self.install(id, group, &head);
            let applied = self.life(id).states[&group].applied;
            self.tell_tenant(|tenant| tenant.installed(id, group, applied));
        }
        let node = self.nodes.get_mut(&id).unwrap();
        if node.disk.halted.contains(&group) {
            return self.pass_over(id, group, &entries);
        }
        let life = node.life.as_mut().unwrap();
        let state = life.states.get_mut(&group).unwrap();
        for entry in &entries {
            state.apply(entry);
        }
        let state = *state;
        life.inbox.push(Input::Applied { group, index: state.applied });
        if !self.flipped {
            self.oracle.state(id, group, state);
        }
        for entry in &entries {
            self.tell_tenant(|tenant| tenant.applied(id, group, entry.index));
            self.compare(id, group, state, entry);
            self.acknowledge(id, group, entry);
        }
    }

    /// Whoever proposed what the entry holds, and waits here, is told.
    fn acknowledge(&mut self, node: NodeId, group: GroupId, entry: &Entry) {
        let key = (group, entry.index, entry.term);
        let life = self.life(node);
        let ids = life.proposed.remove(&key).unwrap_or_default();
        for (offset, id) in ids.into_iter().enumerate() {
            assert_eq!(self.life(node).open.remove(&id), Some(Some(key)), "{id:?}");
            if entry.kind == EntryKind::Membership {
                self.faults.count("membership change");
                continue;
            }
            self.oracle.acknowledge(id, (group, entry.index, offset));
            self.tell_fate(id, Fate::Applied(entry.index, offset));
        }
    }

    /// One call into the shard, and everything that comes of it.
    pub(super) fn call(&mut self, id: NodeId) {
        let now = self.nodes[&id].now(self.now_ms);
        let life = self.life(id);
        let held = life.held.take();
        let after_pause = held.is_some();
        let (now, inputs) = held.unwrap_or_else(|| (now, std::mem::take(&mut life.inbox)));
        let mut out = Output::default();
        life.shard.handle(now, inputs, &mut out);
        assert!(out.quarantined.is_empty(), "{:?}", out.quarantined);
        if after_pause {
            self.faults.count_times("message after a pause", out.messages.len() as u64);
        }
        if self.recording && !out.is_empty() {
            self.record.push(format!("{} {id} {out:?}", self.now_ms));
        }
        self.follow(id, out);
    }

    fn follow(&mut self, id: NodeId, out: Output) {
        for change in &out.roles {
            self.oracle.role(id, change);
            if change.role == Role::Leader {
                self.faults.count("leader change");
                let now_ms = self.now_ms;
                self.tell_tenant(|tenant| tenant.leads(change.group, change.term, now_ms));
            }
        }
        self.note_fates(id, out.proposed, out.refused);
        for transfer in out.transferred {
            self.faults.count("transfer");
            assert_eq!(self.life(id).open.remove(&transfer), Some(None), "a transfer ends once");
        }
        self.note_reads(id, out.reads);
        for write in &out.log {
            if write.truncate.is_some() {
                self.faults.count("cut log");
            }
            if let Some((index, membership)) = &write.membership {
                self.oracle.membership(write.group, *index, membership);
            }
        }
        for (group, index) in out.unwanted {
            self.drop_snapshot(id, group, index);
        }
        let life = self.life(id);
        life.unsynced.extend(out.log);
        life.loads.extend(out.load);
        for job in out.apply {
            self.deliver(id, job);
        }
        for snapshot in out.snapshots {
            self.begin_transfer(id, snapshot);
        }
        for message in out.messages {
            self.send(id, message);
        }
    }

    /// Entries go to the apply worker: they are on enough disks.
    fn deliver(&mut self, id: NodeId, job: ApplyJob) {
        if let Some(head) = &job.snapshot
            && self.nodes[&id].disk.logs[&job.group].start.0 == head.index
        {
            self.life(id).delivered.insert(job.group, head.index);
        } else if job.snapshot.is_some() {
            assert!(self.nodes[&id].disk.halted.contains(&job.group), "the log does not begin there");
        }
        for entry in &job.entries {
            let node = self.nodes.get_mut(&id).unwrap();
            let delivered = node.life.as_mut().unwrap().delivered.get_mut(&job.group).unwrap();
            assert_eq!(entry.index, delivered.next(), "jobs follow each other without gaps");
            *delivered = entry.index;
            assert!(node.disk.holds(job.group, entry.index, entry.term), "applied before it is synced here");
            if self.oracle.deliver(job.group, entry) {
                let now_ms = self.now_ms;
                self.tell_tenant(|tenant| tenant.committed(job.group, entry, now_ms));
                let holds = |replica: u64| {
                    let disk = self.disk_of(replica);
                    disk.is_some_and(|disk| disk.holds(job.group, entry.index, entry.term))
                };
                let enough = self.oracle.suffice(job.group, entry.index, holds);
                assert!(enough, "entry {} is applied with too few copies on disk", entry.index);
            }
        }
        self.life(id).jobs.push_back(job);
    }

    /// A message goes out, to arrive late, twice or never.
    fn send(&mut self, from: NodeId, out: PeerOut) {
        self.oracle.hear(&self.nodes[&from].disk, &out);
        let lost_one_in = if self.intrigue { 200 } else { 20 };
        if !self.calm && self.rng.one_in(lost_one_in) {
            self.faults.count("lost message");
            return;
        }
        if !self.calm && self.rng.one_in(30) {
            self.faults.count("doubled message");
            let due_ms = self.now_ms + self.rng.below(500);
            self.network.post(from, out.clone(), due_ms);
        }
        let slow_ms = if self.rng.one_in(20) { 400 } else { 30 };
        let due_ms = self.now_ms + self.rng.below(slow_ms);
        self.network.post(from, out, due_ms);
    }
}
