//! What goes wrong, and how often it did.
//!
//! Everything is counted, because a test whose faults never happen shows nothing.

use std::collections::BTreeMap;

use crate::id::{GroupId, NodeId};
use crate::raft::input::Input;
use crate::raft::simulation::Bug;
use crate::raft::simulation::tenant::Fate;
use crate::raft::simulation::world::World;

/// What was done to the nodes, and what they did.
#[derive(Default)]
pub(super) struct Faults {
    counts: BTreeMap<&'static str, u64>,
}

/// Everything that must happen in a run over many seeds, in the order of the alphabet.
const KINDS: [&str; 60] = [
    "acknowledged",
    "all asleep",
    "asleep",
    "beacon agreed",
    "beacon too old",
    "burst of ticks",
    "clock drift",
    "coup by pause",
    "coup by restart",
    "crash",
    "crash of a halted replica",
    "cut link",
    "cut log",
    "disk lost",
    "doubled message",
    "failing disk",
    "halted",
    "halted leader",
    "install made good",
    "island",
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
    "message after a pause",
    "news kept back",
    "overtaken message",
    "passed over",
    "pause",
    "pause between clock and work",
    "read answered",
    "read answered by lease",
    "read by lease asked",
    "replica replaced",
    "reseed that came too late",
    "reseeded",
    "restart",
    "restart of voters",
    "silent node",
    "slow disk",
    "snapshot for a busy node",
    "snapshot for a former replica",
    "snapshot given up",
    "snapshot installed",
    "snapshot staged",
    "snapshot unwanted",
    "snapshot wanted",
    "transfer",
    "transfer and cut",
    "transfer failed",
    "unknown fate",
    "wall clock jump",
    "write delayed",
    "write synced but not reported",
];

/// How many faults there are to choose from, some of them more than once.
const FAULTS: u64 = 18;

/// Something that is to happen later.
pub(super) enum Plot {
    /// The node's process dies and is back at once.
    Restart(NodeId),
    /// The node is alone until then.
    Isolate(NodeId, u64),
    /// The node's process stands still until then.
    Pause(NodeId, u64),
    /// The second no longer hears the first until then.
    Deafen(NodeId, NodeId, u64),
    /// The node's replica stands for election, if it may.
    Campaign(NodeId, GroupId),
}

impl Faults {
    pub(super) fn count(&mut self, kind: &'static str) {
        self.count_times(kind, 1);
    }

    pub(super) fn count_times(&mut self, kind: &'static str, times: u64) {
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

    pub(super) fn describe(&self) -> String {
        format!("{:?}", self.counts)
    }
}

impl World {
    /// One step of a time in which everything goes wrong.
    pub(super) fn break_something(&mut self) {
        self.carry_out_plots();
        if self.intrigue {
            return self.plot();
        }
        self.interrupt_installation();
        let victim = self.some_node();
        let long_ms = [300, 2_000, 5_000][self.rng.below(3) as usize];
        let until_ms = self.now_ms + self.rng.below(long_ms);
        match self.rng.below(self.steps_per_fault * FAULTS) {
            0 | 1 if self.nodes[&victim].life.is_some() => self.crash_for_a_while(victim, until_ms),
            2 => self.isolate(victim, until_ms),
            3 => self.cut_link(victim, until_ms),
            4 => self.make_island(until_ms),
            5 => self.pause(victim, until_ms),
            6 => {
                self.node(victim).slow_until_ms = until_ms;
                self.faults.count("slow disk");
            }
            7 => self.fail_disk(victim),
            8 => {
                self.node(victim).wall_offset_ms = self.rng.below(200_000);
                self.faults.count("wall clock jump");
            }
            9 => self.drift(victim),
            10 => {
                let group = self.some_group();
                self.tell(victim, Input::Campaign { group });
            }
            11 => self.transfer(),
            12 if self.rng.one_in(3) => {
                self.lull_until_ms = until_ms;
                self.faults.count("lull");
            }
            13 => self.plan_coup(),
            14 => self.halt(victim),
            15..FAULTS => self.change_members_or_lose_a_disk(victim),
            _ => {}
        }
    }

    /// One step of a time in which nearly all works, but for those who plot against leaders.
    fn plot(&mut self) {
        if self.only_read.is_some_and(|(_, until_ms)| self.now_ms < until_ms) {
            return;
        }
        match self.rng.below(200) {
            0 => self.plan_coup(),
            1 => self.transfer(),
            2 => {
                let (victim, until_ms) = (self.some_node(), self.now_ms + 3_000);
                self.isolate(victim, until_ms);
            }
            _ => {}
        }
    }

    /// The moment at which a log begins anew and its state is not there yet is short.
    fn interrupt_installation(&mut self) {
        let staging = self.nodes.values().find(|node| node.life.is_some() && !node.disk.staged.is_empty());
        if let Some(id) = staging.map(|node| node.id)
            && self.rng.one_in(10)
        {
            self.crash(id, self.now_ms);
        }
    }

    fn carry_out_plots(&mut self) {
        let now_ms = self.now_ms;
        let due: Vec<_> = self.plots.extract_if(.., |(due_ms, _)| *due_ms <= now_ms).collect();
        for (_, plot) in due {
            match plot {
                Plot::Restart(node) if self.nodes[&node].life.is_some() => {
                    self.faults.count("restart of voters");
                    self.crash(node, now_ms);
                }
                Plot::Restart(_) => {}
                Plot::Isolate(node, until_ms) => self.isolate(node, until_ms),
                Plot::Pause(node, until_ms) => self.pause(node, until_ms),
                Plot::Deafen(from, to, until_ms) => self.network.cut(from, to, until_ms),
                Plot::Campaign(node, group) => self.tell(node, Input::Campaign { group }),
            }
        }
    }

    fn crash_for_a_while(&mut self, victim: NodeId, until_ms: u64) {
        if self.rng.one_in(3) {
            self.faults.count("restart");
            self.crash(victim, self.now_ms);
        } else {
            self.crash(victim, until_ms);
        }
    }

    fn isolate(&mut self, victim: NodeId, until_ms: u64) {
        self.network.part(&[victim], &self.ids, until_ms);
        self.faults.count("isolated node");
    }

    fn cut_link(&mut self, from: NodeId, until_ms: u64) {
        let to = self.some_node();
        if to != from {
            self.network.cut(from, to, until_ms);
            self.faults.count("cut link");
        }
    }

    fn make_island(&mut self, until_ms: u64) {
        let island: Vec<NodeId> = self.ids.iter().copied().filter(|_| self.rng.one_in(2)).collect();
        if island.len() > 1 && island.len() < self.ids.len() {
            self.network.part(&island, &self.ids, until_ms);
            self.faults.count("island");
        }
    }

    /// The process stands still. What it had taken up is done when it goes on, by clocks read before.
    fn pause(&mut self, victim: NodeId, until_ms: u64) {
        let (now_ms, between) = (self.now_ms, self.rng.one_in(2));
        let node = self.node(victim);
        let now = node.now(now_ms);
        let Some(life) = &mut node.life else { return };
        if between && life.held.is_none() && !life.inbox.is_empty() {
            life.held = Some((now, std::mem::take(&mut life.inbox)));
            self.faults.count("pause between clock and work");
        }
        self.node(victim).paused_until_ms = until_ms;
        self.faults.count("pause");
    }

    /// A write fails, and perhaps half of it is on the disk: the node stops until somebody has seen to it.
    fn fail_disk(&mut self, victim: NodeId) {
        let writes = |id: &NodeId| self.nodes[id].life.as_ref().is_some_and(|life| !life.unsynced.is_empty());
        let writing = [victim].into_iter().chain(self.ids.iter().copied()).find(writes);
        if let Some(victim) = writing {
            let back_at_ms = self.now_ms + 2_000 + self.rng.below(5_000);
            self.crash(victim, back_at_ms);
            self.faults.count("failing disk");
        }
    }

    /// A clock goes on at another speed, within the bound that nodes rely on.
    fn drift(&mut self, victim: NodeId) {
        self.node(victim).drift_permille = self.rng.drift_permille(self.config.clock_drift_percent_max);
        self.faults.count("clock drift");
    }

    /// Somebody no longer hears a leader, has missed nothing, because clients only read there, and wants to
    /// take its place; and those who still hear the leader forget what they had promised it, if a restart or
    /// a pause makes them.
    fn plan_coup(&mut self) {
        let Some((leader, group)) = self.some_leader() else { return };
        let rival = self.some_node();
        if rival == leader {
            return;
        }
        let (begin_ms, until_ms) = (self.now_ms + 500, self.now_ms + 4_000);
        self.only_read = Some((leader, until_ms));
        self.plots.push((begin_ms, Plot::Deafen(leader, rival, until_ms)));
        let at_ms = begin_ms + 1_500 + self.rng.below(500);
        let by_pause = self.rng.one_in(2);
        for &other in self.ids.iter().filter(|id| **id != leader && **id != rival) {
            if by_pause {
                self.plots.push((at_ms, Plot::Pause(other, at_ms + 1_300)));
            } else {
                self.plots.push((at_ms, Plot::Restart(other)));
            }
        }
        if !by_pause {
            // So that nothing reminds them, and nobody tells the leader.
            self.plots.push((at_ms, Plot::Isolate(leader, until_ms)));
        }
        for late_ms in [0, 300] {
            self.plots.push((at_ms + late_ms + self.rng.below(100), Plot::Campaign(rival, group)));
        }
        self.faults.count(if by_pause { "coup by pause" } else { "coup by restart" });
    }

    /// The process dies. What was not synced is lost, but for what the disk had written without saying so.
    pub(super) fn crash(&mut self, id: NodeId, back_at_ms: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        let mut life = node.life.take().unwrap();
        node.back_at_ms = back_at_ms;
        self.faults.count("crash");
        let open: Vec<_> = life.open.keys().filter_map(|id| self.wishes.remove(id)).collect();
        self.tell_tenant(|tenant| {
            open.into_iter().for_each(|token| tenant.told(token, Fate::Unknown));
            tenant.crashed(id);
        });
        let node = self.nodes.get_mut(&id).unwrap();
        self.faults.count_times("crash of a halted replica", node.disk.halted.len() as u64);
        let kept = self.rng.below(life.unsynced.len() as u64 + 1);
        for write in life.unsynced.drain(..kept as usize) {
            node.disk.sync(write);
            self.faults.count("write synced but not reported");
        }
        self.faults.count_times("lost write", life.unsynced.len() as u64);
        if self.bug == Some(Bug::LoseSynced) {
            node.disk = node.shadow.clone();
        }
    }

    /// A node.
    pub(super) fn some_node(&mut self) -> NodeId {
        self.ids[self.rng.below(self.ids.len() as u64) as usize]
    }

    /// A group.
    pub(super) fn some_group(&mut self) -> GroupId {
        self.groups[self.rng.below(self.groups.len() as u64) as usize]
    }
}
