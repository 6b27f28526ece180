//! Many groups that share a thread: who has something to do, and the fence around one that breaks.
//!
//! Only groups that an input touched are visited, and ticks visit only those that wait for time to pass. A
//! group whose engine finds an invariant broken is put into quarantine with a reason; the others never
//! notice.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::id::{GroupId, Index, LogTime, NodeId};
use crate::machine::batch::Operation;
use crate::raft::group::{Group, Received};
use crate::raft::input::{GroupStart, Input, ProposalId, ReadId};
use crate::raft::lease;
use crate::raft::output::{GroupStatus, Output, ProposeError, ReadError, ReadReady, SnapshotHead};
#[cfg(test)]
use crate::raft::simulation::Bug;
use crate::storage::entry::LogWrite;
use crate::time::Now;

/// How a shard behaves. The same on all nodes of a cluster.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// This node.
    pub node: NodeId,
    /// For election timeouts, and to tell this life of the process from others: fresh at each start.
    pub seed: u64,
    /// The time between two [`Input::Tick`].
    pub tick_ms: u64,
    /// A follower stands for election after this many to twice as many ticks without a word from its leader,
    /// and grants no other a vote before as much time has passed.
    pub election_ticks: usize,
    /// A leader speaks at least this often.
    pub heartbeat_ticks: usize,
    /// How much faster or slower than real time a monotonic clock runs at most, in percent. Reads by lease
    /// are as good as this promise; a leader's lease is shorter than its voters' loyalty by what it allows
    /// for.
    pub clock_drift_percent_max: u64,
    /// The largest batch: a larger operation is refused.
    pub batch_bytes_max: usize,
    /// The longest batch.
    pub batch_operations_max: usize,
    /// A group's next batch gathers as long as this many are not synced yet.
    pub batches_in_flight_max: usize,
    /// It also gathers as long as this many are in the log but not applied: while the machine is behind,
    /// batches grow instead of their number, and cost less for each command.
    pub batches_unapplied_max: usize,
    /// What all groups together may hold of commands that are not applied yet.
    pub held_bytes_max: usize,
    /// What one group may hold of them.
    pub group_held_bytes_max: usize,
    /// Reads of one group that may wait for a read point.
    pub group_reads_max: usize,
    /// How long a read waits for a leader, and a command of a former leader for news of its fate.
    pub wait_ms: u64,
    /// Applied entries that a group with followers keeps in memory for them.
    pub cache_bytes_max: usize,
    /// The largest append to a follower, but for single entries that are larger.
    pub append_bytes_max: usize,
    /// Appends to a follower that are under way at a time.
    pub appends_in_flight_max: usize,
    /// How long a busy leader keeps back what is committed, to say it with the next append.
    pub news_delay_ms: u64,
    /// For replicas that lag, the log is kept this many applied entries back; those further behind get a
    /// snapshot.
    pub lag_entries_max: u64,
    /// And no more than about so many bytes of entries: whichever is less.
    pub lag_bytes_max: u64,
    /// A group whose leader finds nothing to do at so many ticks falls asleep; 0: never. Only where
    /// [`Input::NodeSilent`] is told: those asleep do not notice by themselves that their leader is gone.
    pub sleep_after_ticks: usize,
    /// A mistake to make, to see that the simulation finds it.
    #[cfg(test)]
    pub(super) bug: Option<Bug>,
}

impl ShardConfig {
    /// What suits most.
    pub fn new(node: NodeId, seed: u64) -> ShardConfig {
        ShardConfig {
            node,
            seed,
            tick_ms: 100,
            election_ticks: 10,
            heartbeat_ticks: 2,
            clock_drift_percent_max: 5,
            batch_bytes_max: 4 << 20,
            batch_operations_max: 10_000,
            batches_in_flight_max: 1,
            batches_unapplied_max: 2,
            held_bytes_max: 256 << 20,
            group_held_bytes_max: 64 << 20,
            group_reads_max: 100_000,
            wait_ms: 4_000,
            cache_bytes_max: 1 << 20,
            append_bytes_max: 1 << 20,
            appends_in_flight_max: 64,
            news_delay_ms: 4,
            lag_entries_max: 10_000,
            lag_bytes_max: 64 << 20,
            sleep_after_ticks: 0,
            #[cfg(test)]
            bug: None,
        }
    }

    // What the engine would do wrong, and `group` prevents: always false but in tests that show why.

    /// Whether the engine adds entries to an append that waits to be sent.
    pub(super) fn batches_appends(&self) -> bool {
        #[cfg(test)]
        return self.bug == Some(Bug::BatchAppends);
        #[cfg(not(test))]
        false
    }

    /// Whether a replica that does not lead passes on what another asks.
    pub(super) fn passes_questions_on(&self) -> bool {
        #[cfg(test)]
        return self.bug == Some(Bug::PassQuestionsOn);
        #[cfg(not(test))]
        false
    }

    /// How long a voter stays loyal to a leader that fell silent.
    pub(super) fn loyal_ms(&self) -> u64 {
        self.tick_ms * self.election_ticks as u64
    }

    /// How long a leader may rely on that.
    pub(super) fn lease_ms(&self) -> u64 {
        #[cfg(test)]
        if self.bug == Some(Bug::IgnoreDrift) {
            return self.loyal_ms();
        }
        lease::lease_ms(self.loyal_ms(), self.clock_drift_percent_max)
    }

    /// How long a round of reads waits before it is sent again.
    pub(super) fn read_retry_ms(&self) -> u64 {
        self.tick_ms * self.heartbeat_ticks as u64 * 2
    }
}

/// What a group needs while it is being worked on.
pub(super) struct Turn<'a> {
    /// The shard's settings.
    pub(super) config: &'a ShardConfig,
    /// The reading of the clocks that the whole call shares.
    pub(super) now: Now,
    /// Where results go.
    pub(super) out: &'a mut Output,
    /// The last number given to a log write. Shared by all groups, so that a group that is closed and opened
    /// again is not told of its former life's writes.
    pub(super) last_write: &'a mut u64,
    /// Where a group leaves word when it wants to be visited, by the monotonic clock.
    pub(super) dues: &'a mut BTreeSet<(u64, GroupId)>,
}

/// A group that is open, or was until it broke.
enum Slot {
    Open(Box<Group>),
    Quarantined(String),
}

/// Hashes without a random key, so that two runs do the same.
type Groups = HashMap<GroupId, Slot, BuildHasherDefault<DefaultHasher>>;

/// Owns many groups and steps them.
pub struct Shard {
    config: ShardConfig,
    groups: Groups,
    /// Groups that were touched in this call, each once, in the order in which they were touched.
    touched: Vec<GroupId>,
    /// Groups that wait for time to pass.
    awake: BTreeSet<GroupId>,
    /// When groups want to be visited.
    dues: BTreeSet<(u64, GroupId)>,
    last_write: u64,
    /// What all groups hold of commands that are not applied yet.
    held_bytes: usize,
}

impl Shard {
    /// A shard without groups.
    pub fn new(config: ShardConfig) -> Shard {
        Shard {
            config,
            groups: Groups::default(),
            touched: Vec::new(),
            awake: BTreeSet::new(),
            dues: BTreeSet::new(),
            last_write: 0,
            held_bytes: 0,
        }
    }

    /// Takes in what happened since the last call and appends to `out` what follows from it. Proposals and
    /// reads of one call share batches and rounds.
    pub fn handle(&mut self, now: Now, inputs: impl IntoIterator<Item = Input>, out: &mut Output) {
        for input in inputs {
            self.take_in(now, input, out);
        }
        let mut touched = std::mem::take(&mut self.touched);
        for group in touched.drain(..) {
            self.with(now, group, out, Group::settle);
        }
        self.touched = touched;
    }

    fn take_in(&mut self, now: Now, input: Input, out: &mut Output) {
        match input {
            Input::Propose { group, id, operation, bytes } => self.propose(group, id, operation, bytes, out),
            Input::Read { group, id, lease } => self.read(now, group, (id, lease), out),
            Input::Persisted { group, number } => {
                self.touch(now, group, out, |group, turn| group.persisted(number, turn));
            }
            Input::Applied { group, index } => {
                self.touch(now, group, out, |group, _| group.applied_to(index))
            }
            Input::Truncate { group, to } => {
                self.touch(now, group, out, |group, turn| group.truncate(to, turn))
            }
            Input::Message { from, group, message } => {
                self.touch(now, group, out, |group, turn| group.step(from, message, turn));
            }
            Input::ChangeMembership { group, id, steps } => {
                self.ask(now, group, id, out, |group, turn| group.change(id, &steps, turn));
            }
            Input::Locate { group, replica, node } => {
                self.touch(now, group, out, |group, _| group.locate(replica, node));
            }
            Input::Transfer { group, id, to } => {
                self.ask(now, group, id, out, |group, turn| group.transfer(id, to, turn));
            }
            Input::Loaded { group, from, entries } => {
                self.touch(now, group, out, |group, _| group.loaded(from, entries));
            }
            Input::SnapshotSent { group, to, arrived } => {
                self.touch(now, group, out, |group, _| group.snapshot_sent(to, arrived));
            }
            Input::SnapshotReceived { group, from, term, head, time_floor, reseed } => {
                let received = Received { from, term, head, time_floor, reseed };
                self.snapshot_received(now, group, received, out);
            }
            Input::Halted { group, halted } => {
                self.touch(now, group, out, |group, _| group.set_halted(halted));
            }
            Input::Campaign { group } => self.touch(now, group, out, Group::campaign),
            Input::NodeSilent(node) => self.node_silent(now, node, out),
            Input::Tick => self.tick(now, out),
            Input::Due => self.visit_due(now, out),
            Input::Open(start) => self.open(now, *start, out),
            Input::Close(group) => self.close(group, out),
            Input::Forget(group) => {
                self.close(group, out);
                self.last_write += 1;
                out.log.push(LogWrite {
                    group,
                    number: self.last_write,
                    forget: true,
                    ..LogWrite::default()
                });
            }
        }
    }

    /// Works on an open group. If that breaks it, nothing of this piece of work comes out, and the group
    /// ends.
    fn with(&mut self, now: Now, id: GroupId, out: &mut Output, work: impl FnOnce(&mut Group, &mut Turn)) {
        let Some(Slot::Open(group)) = self.groups.get_mut(&id) else { return };
        let held_before = group.held_bytes();
        let mark = Mark::of(out);
        let (last_write, dues) = (&mut self.last_write, &mut self.dues);
        let mut turn = Turn { config: &self.config, now, out, last_write, dues };
        // A group that panicked half way is never looked at again, but for its lists of ids.
        let end = catch_unwind(AssertUnwindSafe(|| work(group, &mut turn)));
        match end {
            Ok(()) => {
                self.held_bytes = self.held_bytes - held_before + group.held_bytes();
                if group.needs_ticks() != group.awake {
                    group.awake = !group.awake;
                    let changed = if group.awake { self.awake.insert(id) } else { self.awake.remove(&id) };
                    debug_assert!(changed, "a group knows whether it is awake");
                }
            }
            Err(panic) => {
                mark.restore(out);
                self.quarantine(id, reason_of(panic.as_ref()), out);
                self.held_bytes -= held_before;
            }
        }
    }

    /// Works on a group and notes that it may have more to do when all inputs are in.
    fn touch(&mut self, now: Now, id: GroupId, out: &mut Output, work: impl FnOnce(&mut Group, &mut Turn)) {
        if let Some(Slot::Open(group)) = self.groups.get_mut(&id) {
            note(&mut self.touched, group, id);
            self.with(now, id, out, work);
        }
    }

    fn propose(
        &mut self,
        id: GroupId,
        proposal: ProposalId,
        operation: Operation,
        bytes: usize,
        out: &mut Output,
    ) {
        let refusal = match self.groups.get_mut(&id) {
            None => Err(ProposeError::UnknownGroup),
            Some(Slot::Quarantined(reason)) => Err(ProposeError::Quarantined(reason.clone())),
            Some(Slot::Open(_)) if self.held_bytes + bytes > self.config.held_bytes_max => {
                let bytes_max = self.config.held_bytes_max;
                Err(ProposeError::Overloaded { held_bytes: self.held_bytes, bytes_max })
            }
            Some(Slot::Open(group)) => {
                let before = group.held_bytes();
                note(&mut self.touched, group, id);
                let taken = group.propose(proposal, operation, bytes, &self.config);
                self.held_bytes += group.held_bytes() - before;
                taken
            }
        };
        if let Err(error) = refusal {
            out.refused.push((proposal, error));
        }
    }

    /// Asks a group for something that has an answer.
    fn ask(
        &mut self,
        now: Now,
        id: GroupId,
        proposal: ProposalId,
        out: &mut Output,
        work: impl FnOnce(&mut Group, &mut Turn),
    ) {
        let refusal = match self.groups.get(&id) {
            None => ProposeError::UnknownGroup,
            Some(Slot::Quarantined(reason)) => ProposeError::Quarantined(reason.clone()),
            Some(Slot::Open(_)) => return self.touch(now, id, out, work),
        };
        out.refused.push((proposal, refusal));
    }

    fn snapshot_received(&mut self, now: Now, id: GroupId, received: Received, out: &mut Output) {
        if matches!(self.groups.get(&id), Some(Slot::Open(_))) {
            self.touch(now, id, out, |group, turn| group.snapshot_received(received, turn));
        } else {
            out.unwanted.push((id, received.head.index));
        }
    }

    fn read(&mut self, now: Now, id: GroupId, (read, lease): (ReadId, bool), out: &mut Output) {
        let refusal = match self.groups.get_mut(&id) {
            None => ReadError::UnknownGroup,
            Some(Slot::Quarantined(reason)) => ReadError::Quarantined(reason.clone()),
            Some(Slot::Open(group)) if group.reads_waiting() >= self.config.group_reads_max => {
                ReadError::Overloaded { held: group.reads_waiting() }
            }
            Some(Slot::Open(group)) => {
                note(&mut self.touched, group, id);
                group.read(read, lease, now);
                return;
            }
        };
        out.reads.push(ReadReady { group: id, ids: vec![read], point: Err(refusal) });
    }

    fn tick(&mut self, now: Now, out: &mut Output) {
        // A tick can put a group to sleep, so the set is not walked while groups are worked on.
        let awake: Vec<GroupId> = self.awake.iter().copied().collect();
        for group in awake {
            self.touch(now, group, out, Group::tick);
        }
    }

    fn visit_due(&mut self, now: Now, out: &mut Output) {
        while let Some(&(due_ms, group)) = self.dues.first()
            && due_ms <= now.monotonic_ms
        {
            self.dues.pop_first();
            self.touch(now, group, out, |group, _| group.visited());
        }
    }

    fn node_silent(&mut self, now: Now, node: NodeId, out: &mut Output) {
        let sleeps = |slot: &Slot| matches!(slot, Slot::Open(group) if !group.awake);
        let mut asleep: Vec<GroupId> =
            self.groups.iter().filter(|(_, slot)| sleeps(slot)).map(|(id, _)| *id).collect();
        asleep.sort_unstable();
        for group in asleep {
            self.with(now, group, out, |group, _| group.wake_for(node));
        }
    }

    fn open(&mut self, now: Now, start: GroupStart, out: &mut Output) {
        let id = start.group;
        self.close(id, out);
        let config = &self.config;
        let opened = catch_unwind(AssertUnwindSafe(|| Group::open(start, config, now)))
            .unwrap_or_else(|panic| Err(reason_of(panic.as_ref())));
        match opened {
            Ok(group) => {
                self.groups.insert(id, Slot::Open(Box::new(group)));
                self.touch(now, id, out, |_, _| {});
            }
            Err(reason) => self.quarantine(id, reason, out),
        }
    }

    fn close(&mut self, id: GroupId, out: &mut Output) {
        self.awake.remove(&id);
        if let Some(Slot::Open(mut group)) = self.groups.remove(&id) {
            self.held_bytes -= group.held_bytes();
            let (never, perhaps) = group.give_up();
            out.refused.extend(never.into_iter().map(|id| (id, ProposeError::UnknownGroup)));
            out.refused.extend(perhaps.into_iter().map(|id| (id, ProposeError::Unknown)));
            refuse_reads(id, group.give_up_reads(), ReadError::UnknownGroup, out);
        }
    }

    fn quarantine(&mut self, id: GroupId, reason: String, out: &mut Output) {
        self.awake.remove(&id);
        let broken = self.groups.insert(id, Slot::Quarantined(reason.clone()));
        if let Some(Slot::Open(mut group)) = broken {
            let (never, perhaps) = group.give_up();
            let refuse = |id| (id, ProposeError::Quarantined(reason.clone()));
            out.refused.extend(never.into_iter().chain(perhaps).map(refuse));
            refuse_reads(id, group.give_up_reads(), ReadError::Quarantined(reason.clone()), out);
        }
        out.quarantined.push((id, reason));
    }

    /// When it wants [`Input::Due`] at the latest, by the monotonic clock; none: nothing waits for that.
    pub fn due_ms(&self) -> Option<u64> {
        self.dues.first().map(|(due_ms, _)| *due_ms)
    }

    /// Where a group stands; none if it is not open.
    pub fn group_status(&self, group: GroupId) -> Option<GroupStatus> {
        self.group(group).map(Group::status)
    }

    /// Where all groups stand, but for those in quarantine.
    pub fn survey(&self) -> Vec<(GroupId, GroupStatus)> {
        let open = |(id, slot): (&GroupId, &Slot)| match slot {
            Slot::Open(group) => Some((*id, group.status())),
            Slot::Quarantined(_) => None,
        };
        self.groups.iter().filter_map(open).collect()
    }

    /// What the clock of a group shows that this node leads: what a batch made now would be stamped with.
    pub fn log_time(&self, now: Now, group: GroupId) -> Option<LogTime> {
        self.group(group)?.log_time(now)
    }

    /// The last index of a group reported as applied.
    pub fn applied(&self, group: GroupId) -> Option<Index> {
        self.group(group).map(Group::applied)
    }

    /// What goes with a snapshot of a group's state at this index. None if the index is not applied here, or
    /// the log begins after it. Ask when the state is fixed already: what is told may be newer, not older.
    pub fn snapshot_head(&self, group: GroupId, index: Index) -> Option<SnapshotHead> {
        self.group(group)?.snapshot_head(index)
    }

    /// What all groups hold of commands that are not applied yet.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    fn group(&self, id: GroupId) -> Option<&Group> {
        match self.groups.get(&id)? {
            Slot::Open(group) => Some(group),
            Slot::Quarantined(_) => None,
        }
    }
}

fn note(touched: &mut Vec<GroupId>, group: &mut Group, id: GroupId) {
    if !group.touched {
        group.touched = true;
        touched.push(id);
    }
}

fn refuse_reads(group: GroupId, ids: Vec<ReadId>, error: ReadError, out: &mut Output) {
    if !ids.is_empty() {
        out.reads.push(ReadReady { group, ids, point: Err(error) });
    }
}

fn reason_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it gave no reason").to_owned()
}

/// How much had come out before a piece of work, to take back what came out of one that broke half way.
/// Refusals and answers to reads stay out: the group no longer knows of those they name.
struct Mark {
    log: usize,
    apply: usize,
    proposed: usize,
    messages: usize,
    load: usize,
    snapshots: usize,
    roles: usize,
}

impl Mark {
    fn of(out: &Output) -> Mark {
        Mark {
            log: out.log.len(),
            apply: out.apply.len(),
            proposed: out.proposed.len(),
            messages: out.messages.len(),
            load: out.load.len(),
            snapshots: out.snapshots.len(),
            roles: out.roles.len(),
        }
    }

    fn restore(&self, out: &mut Output) {
        out.log.truncate(self.log);
        out.apply.truncate(self.apply);
        out.proposed.truncate(self.proposed);
        out.messages.truncate(self.messages);
        out.load.truncate(self.load);
        out.snapshots.truncate(self.snapshots);
        out.roles.truncate(self.roles);
    }
}
