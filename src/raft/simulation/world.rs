//! The world around the nodes: time, chance, and the times of trouble, of peace and of rest.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{GroupId, Index, NodeId};
use crate::raft::input::{Input, ProposalId};
use crate::raft::shard::ShardConfig;
use crate::raft::simulation::catalog::{Coming, Lost, first_log};
use crate::raft::simulation::disk::Disk;
use crate::raft::simulation::faults::{Faults, Plot};
use crate::raft::simulation::network::Network;
use crate::raft::simulation::node::{Life, SimNode};
use crate::raft::simulation::oracle::Oracle;
use crate::raft::simulation::tenant::{Tenant, Token};
use crate::raft::simulation::transfer::Transfer;
use crate::raft::simulation::{Bug, Rng};
use crate::storage::entry::GroupLog;

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) now_ms: u64,
    pub(super) ids: Vec<NodeId>,
    pub(super) groups: Vec<GroupId>,
    pub(super) nodes: BTreeMap<NodeId, SimNode>,
    pub(super) network: Network,
    pub(super) transfers: Vec<Transfer>,
    /// When each node last heard of each other, and whether its shard was told of the silence.
    heard: BTreeMap<(NodeId, NodeId), (u64, bool)>,
    /// Clients want nothing until then.
    pub(super) lull_until_ms: u64,
    /// Clients only read at this node until then.
    pub(super) only_read: Option<(NodeId, u64)>,
    /// What is to go wrong, and when.
    pub(super) plots: Vec<(u64, Plot)>,
    pub(super) coming: Coming,
    pub(super) lost: Option<Lost>,
    /// What every group begins with.
    pub(super) first_log: GroupLog,
    pub(super) oracle: Oracle,
    /// Whose state was found to be another than the beacon's.
    pub(super) diverged: BTreeSet<(NodeId, GroupId)>,
    /// Whether a state was damaged on purpose.
    pub(super) flipped: bool,
    pub(super) last_id: u64,
    pub(super) config: ShardConfig,
    pub(super) calm: bool,
    /// Whether all faults are plots against leaders.
    pub(super) intrigue: bool,
    /// How much time there is between faults: some mistakes need a crowd of them, others time to recover.
    pub(super) steps_per_fault: u64,
    pub(super) bug: Option<Bug>,
    pub(super) faults: Faults,
    pub(super) tenant: Option<Box<dyn Tenant>>,
    /// Its wishes without a fate.
    pub(super) wishes: BTreeMap<ProposalId, Token>,
    /// Every output, if asked for.
    pub(super) record: Vec<String>,
    pub(super) recording: bool,
}

/// The settings of a run, all of them small enough to be reached.
fn settings(rng: &mut Rng, bug: Option<Bug>) -> ShardConfig {
    ShardConfig {
        batches_in_flight_max: 1 + rng.below(3) as usize,
        batches_unapplied_max: 1 + rng.below(6) as usize,
        batch_operations_max: 1 + rng.below(20) as usize,
        group_held_bytes_max: 2_000 + rng.below(20_000) as usize,
        cache_bytes_max: rng.below(2) as usize * 10_000,
        append_bytes_max: 200 + rng.below(10_000) as usize,
        appends_in_flight_max: 1 + rng.below(8) as usize,
        news_delay_ms: [0, 20, 100][rng.below(3) as usize],
        lag_entries_max: [0, 5, 50][rng.below(3) as usize],
        lag_bytes_max: [0, 1 << 20, 1 << 20][rng.below(3) as usize],
        sleep_after_ticks: [0, 3, 10][rng.below(3) as usize],
        clock_drift_percent_max: [0, 5, 50][rng.below(3) as usize],
        bug,
        ..ShardConfig::new(NodeId(0), 0)
    }
}

impl World {
    pub(super) fn new(seed: u64, bug: Option<Bug>, recording: bool) -> World {
        let mut rng = Rng(seed);
        let size = [1, 1, 2, 3, 3, 3, 5][rng.below(7) as usize];
        let ids: Vec<NodeId> = (1..=size).map(NodeId).collect();
        let groups: Vec<GroupId> = (0..1 + rng.below(3)).map(GroupId).collect();
        let coming = match rng.below(4) {
            0 if size > 2 => Coming::Successors,
            1 | 2 if size > 1 => Coming::Anybody,
            _ => Coming::Nobody,
        };
        let at_first = if coming == Coming::Anybody { 1 + rng.below(size) } else { size };
        let first_log = first_log(&ids[..at_first as usize]);
        let mut oracle = Oracle::default();
        groups.iter().for_each(|&group| oracle.membership(group, Index(0), &first_log.membership.1));
        let config = settings(&mut rng, bug);
        let intrigue = size > 2 && rng.one_in(3);
        let steps_per_fault = [8, 25, 100][rng.below(3) as usize];
        let nodes = ids.iter().map(|&id| {
            let node = SimNode {
                drift_permille: rng.drift_permille(config.clock_drift_percent_max),
                wall_offset_ms: rng.below(100_000),
                leaves_staged: bug == Some(Bug::LeaveStaged),
                ..SimNode::new(id, Disk::new(&groups, &first_log))
            };
            (id, node)
        });
        let nodes = nodes.collect();
        World {
            rng,
            now_ms: 1_000_000,
            ids,
            groups,
            nodes,
            network: Network::default(),
            transfers: Vec::new(),
            heard: BTreeMap::new(),
            lull_until_ms: 0,
            only_read: None,
            plots: Vec::new(),
            coming,
            lost: None,
            first_log,
            oracle,
            diverged: BTreeSet::new(),
            flipped: false,
            last_id: 0,
            config,
            calm: false,
            intrigue,
            steps_per_fault,
            bug,
            faults: Faults::default(),
            tenant: None,
            wishes: BTreeMap::new(),
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
        self.network.heal();
        self.plots.clear();
        self.only_read = None;
        for node in self.nodes.values_mut() {
            (node.back_at_ms, node.paused_until_ms, node.slow_until_ms) = (0, 0, 0);
        }
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
        while !self.all_asleep() || !self.network.is_silent() {
            self.step();
            assert!(self.now_ms < end_ms, "still awake after a minute of rest: {}", self.describe());
        }
        self.faults.count("all asleep");
        let quiet_ms = self.now_ms + 10_000;
        while self.now_ms < quiet_ms {
            self.step();
            let quiet = self.network.is_silent() && self.all_asleep();
            assert!(quiet, "woken by nothing: {}", self.describe());
        }
        let victim = self.some_node();
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
            let own = self.nodes[&id].replica().0;
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
        let awake = |id: &NodeId| {
            let node = &self.nodes[id];
            node.life.is_some() && !node.is_paused(self.now_ms)
        };
        let awake: Vec<bool> = self.ids.iter().map(awake).collect();
        for (&listener, &hears) in self.ids.iter().zip(&awake) {
            for (&speaker, &says) in self.ids.iter().zip(&awake) {
                let heard = self.heard.entry((listener, speaker)).or_insert((self.now_ms, false));
                if hears && says && self.network.carries(speaker, listener, self.now_ms) {
                    *heard = (self.now_ms, false);
                } else if hears && self.now_ms - heard.0 >= PATIENCE_MS && !heard.1 {
                    heard.1 = true;
                    let life = self.nodes.get_mut(&listener).and_then(|node| node.life.as_mut());
                    life.unwrap().inbox.push(Input::NodeSilent(speaker));
                    self.faults.count("silent node");
                }
            }
        }
    }

    /// Where every group stands on every node.
    pub(super) fn describe(&self) -> String {
        let mut text = format!("{} acknowledged, {}", self.oracle.acknowledged.len(), self.faults.describe());
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
    /// group, no change of membership is half done, and no lost replica waits for its successor.
    fn settled(&self, last_id: u64, applied: &[u64]) -> bool {
        let done = |node: &SimNode, life: &Life| {
            let mut fates = life.open.keys();
            fates.all(|id| id.0 > last_id)
                && self.groups.iter().zip(applied).all(|(&group, &index)| {
                    let members = self.oracle.members(group);
                    let own = node.replica().0;
                    let member = members.voters.contains(&own) || members.learners.contains(&own);
                    let well = !node.disk.halted.contains(&group) && life.states[&group].applied.0 >= index;
                    members.voters_outgoing.is_empty() && (!member || well)
                })
        };
        let all_done =
            self.nodes.values().all(|node| node.life.as_ref().is_some_and(|life| done(node, life)));
        let tenant_done = self.tenant.as_ref().is_none_or(|tenant| tenant.is_settled());
        self.lost.is_none() && all_done && tenant_done
    }

    pub(super) fn step(&mut self) {
        let elapsed_ms = self.rng.below(20);
        self.now_ms += elapsed_ms;
        self.nodes.values_mut().for_each(|node| node.pass(elapsed_ms));
        if !self.calm {
            self.break_something();
        }
        self.deliver_packets();
        self.move_snapshots();
        self.listen();
        self.replace_lost();
        self.tend_halted();
        for id in self.ids.clone() {
            if self.nodes[&id].life.is_none() && self.nodes[&id].back_at_ms <= self.now_ms {
                self.start(id);
            }
            if self.nodes[&id].life.is_some() && !self.nodes[&id].is_paused(self.now_ms) {
                self.clients_ask(id);
                self.work(id);
                self.call(id);
            }
        }
    }

    fn start(&mut self, id: NodeId) {
        let config = ShardConfig { node: id, seed: self.rng.next(), ..self.config.clone() };
        let replicas = self.replicas();
        let oracle = &self.oracle;
        let node = self.nodes.get_mut(&id).unwrap();
        if self.bug == Some(Bug::ForgetVote) {
            node.disk.logs.values_mut().for_each(|log| log.hard_state.vote = 0);
        }
        if self.bug == Some(Bug::ForgetHalt) {
            node.disk.halted.clear();
        }
        node.start(config, &replicas, |group, index| oracle.stamp_at(group, index));
        let states =
            node.disk.flushed.iter().map(|(group, state)| (*group, state.applied)).collect::<Vec<_>>();
        self.tell_tenant(|tenant| tenant.started(id, &states));
        self.announce(id);
    }

    fn deliver_packets(&mut self) {
        let due = self.network.deliver(self.now_ms);
        self.faults.count_times("lost message", due.lost);
        self.faults.count_times("overtaken message", due.overtaken);
        for packet in due.arrived {
            let (from, out) = (packet.from, packet.out);
            self.tell(out.to, Input::Message { from, group: out.group, message: out.message });
        }
    }

    pub(super) fn node(&mut self, id: NodeId) -> &mut SimNode {
        self.nodes.get_mut(&id).unwrap()
    }

    /// The life of a node that lives.
    pub(super) fn life(&mut self, id: NodeId) -> &mut Life {
        self.node(id).life.as_mut().expect("the node is up")
    }

    /// Gives a node something to think about, if it lives.
    pub(super) fn tell(&mut self, node: NodeId, input: Input) {
        if let Some(life) = &mut self.node(node).life {
            life.inbox.push(input);
        }
    }
}
