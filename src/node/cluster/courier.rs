//! Snapshots for replicas that are behind the log: made where the group is led, offered, and fetched by the
//! one that needs it over a connection of its own, which goes on where it broke.
//!
//! Promises: whoever was to get one is reported as done or failed, always; a snapshot that arrived is whole,
//! checked and durable before anybody is told; one at a time for each group, on either side. Must never hold
//! up commands: nothing here runs on their threads.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::words::{Question, SnapshotOffer};
use crate::error::{Error, Fault};
use crate::id::{Digest, GroupId, Index, LogTime, NodeId, ReplicaId, Term};
use crate::machine::batch::Head;
use crate::machine::view::Table;
use crate::net::{BulkName, FetchError, Net};
use crate::node::background;
use crate::node::lane::Lane;
use crate::node::machine::Queries;
use crate::node::order::Order;
use crate::node::saver;
use crate::node::{Inner, Node};
use crate::raft::{Input, SnapshotHead, SnapshotWanted};
use crate::storage::snapshot::{Header, Kind, Staging, write_rows};

/// How long the other node may take to fetch a snapshot and to make it durable.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(3_600);

/// How long a fetch that broke is left alone before it goes on.
const RESUME_INTERVAL: Duration = Duration::from_millis(200);

/// How often in a row a fetch may break without a byte having come.
const RESUMES_MAX: u32 = 25;

/// How often the shard is asked about a state that it does not know to be applied yet.
const HEAD_TRIES: u32 = 100;

/// What those who must not wait want done.
#[derive(Debug)]
pub enum Errand {
    /// Send one.
    Send(SnapshotWanted),
    /// Send one to a replica whose state it is to replace, and tell the waiter how that ended.
    Seed(SnapshotWanted, oneshot::Sender<Result<(), Error>>),
    /// Find out where a replica that has just halted left the way of the others.
    Explain(GroupId),
    /// Get a module that a machine waits for, and have it go on.
    Fetch(GroupId, Digest),
    /// Drop one that was received: nobody has a use for it.
    DropStaged(GroupId, Index),
}

/// Where the shard leaves its errands. Never waits.
pub struct Courier {
    errands: mpsc::UnboundedSender<Errand>,
}

impl Courier {
    /// A courier, and what it is told, for [`run`].
    pub fn new() -> (Courier, mpsc::UnboundedReceiver<Errand>) {
        let (errands, receiver) = mpsc::unbounded_channel();
        (Courier { errands }, receiver)
    }

    /// Leaves an errand.
    pub fn tell(&self, errand: Errand) {
        // Nobody runs errands when the node stops.
        let _ = self.errands.send(errand);
    }
}

/// Runs errands until the node stops.
pub async fn run(inner: Arc<Inner>, mut errands: mpsc::UnboundedReceiver<Errand>) {
    let node = Node { inner };
    let mut stopping = node.inner.stopping.subscribe();
    let under_way = Arc::new(UnderWay::default());
    loop {
        let errand = tokio::select! {
            errand = errands.recv() => errand,
            _ = stopping.wait_for(|stopping| *stopping) => None,
        };
        match errand {
            None => return,
            Some(Errand::Send(wanted)) => {
                if under_way.begin(&wanted) {
                    node.spawn(node.clone().send_snapshot(wanted, under_way.clone()));
                }
            }
            Some(Errand::Seed(wanted, waiter)) => {
                let (seeding, under_way) = (node.clone(), under_way.clone());
                node.spawn(async move {
                    let turn = under_way.turn(wanted.group);
                    let _of_group = turn.lock().await;
                    // Whoever asked may have gone away.
                    let _ = waiter.send(seeding.make_and_offer(&wanted, true).await.map(drop));
                });
            }
            Some(Errand::Explain(group)) => drop(node.spawn(node.clone().explain_halt(group))),
            Some(Errand::Fetch(group, module)) => drop(node.spawn(node.clone().fetch_for(group, module))),
            Some(Errand::DropStaged(group, index)) => {
                let inner = node.inner.clone();
                let dropped = tokio::task::spawn_blocking(move || {
                    inner.stage.incoming.lock().remove(&group);
                    inner.stage.snapshots.drop_staged(group, index)
                });
                if let Ok(Err(fault)) = dropped.await {
                    node.inner.stage.fail(fault);
                }
            }
        }
    }
}

/// The transfers that this node sends.
#[derive(Default)]
struct UnderWay {
    to: Mutex<HashSet<(GroupId, ReplicaId)>>,
    /// One file for each group at a time.
    of_group: Mutex<HashMap<GroupId, Arc<tokio::sync::Mutex<()>>>>,
}

impl UnderWay {
    /// False: one is on its way to that replica already.
    fn begin(&self, wanted: &SnapshotWanted) -> bool {
        self.to.lock().insert((wanted.group, wanted.to))
    }

    fn end(&self, wanted: &SnapshotWanted) {
        self.to.lock().remove(&(wanted.group, wanted.to));
    }

    fn turn(&self, group: GroupId) -> Arc<tokio::sync::Mutex<()>> {
        self.of_group.lock().entry(group).or_default().clone()
    }
}

/// Sending.
impl Node {
    async fn send_snapshot(self, wanted: SnapshotWanted, under_way: Arc<UnderWay>) {
        let SnapshotWanted { group, to, node, .. } = wanted;
        let turn = under_way.turn(group);
        let _of_group = turn.lock().await;
        let sent = self.make_and_offer(&wanted, false).await;
        let arrived = match sent {
            Ok(index) => {
                tracing::info!(%group, %node, %index, "a snapshot has arrived");
                true
            }
            Err(why) => {
                tracing::warn!(%group, %node, %why, "a snapshot did not arrive: it is tried again when asked \
                    for");
                false
            }
        };
        under_way.end(&wanted);
        self.inner.stage.orders.send(Order::Shard(Input::SnapshotSent { group, to, arrived }));
    }

    async fn make_and_offer(&self, wanted: &SnapshotWanted, reseed: bool) -> Result<Index, Error> {
        let SnapshotWanted { group, to, node, term, least } = *wanted;
        let (head, shard_head) = self.make_snapshot(group, least).await?;
        tracing::info!(%group, %node, index = %head.index, reseed, "another replica gets a snapshot");
        let from = self.group_status(group).await.map(|status| status.replica);
        let from = from.ok_or_else(|| Error::Unavailable("the group was closed".into()))?;
        let mut offer = SnapshotOffer::new(group, (from, to), term, &shard_head, head.time);
        offer.reseed = reseed;
        let told = self.ask(node, Question::TakeSnapshot(offer), TRANSFER_PATIENCE).await;
        let inner = self.inner.clone();
        let dropped =
            tokio::task::spawn_blocking(move || inner.stage.snapshots.drop_outgoing(group, head.index));
        dropped.await.map_err(|e| Fault::new(format!("dropping a snapshot panicked: {e}")))??;
        told.map(|_| head.index)
    }

    /// Makes a file of a group's state as it is now, at `least` or later.
    async fn make_snapshot(&self, group: GroupId, least: Index) -> Result<(Head, SnapshotHead), Error> {
        let (lane, resident) = match group {
            GroupId::CATALOG => (self.inner.catalog_lane.clone(), false),
            group => {
                let machine = self.inner.registry.by_group(group);
                let machine = machine.ok_or_else(|| Error::NotFound("the machine was deleted".into()))?;
                let parts = machine.serving()?;
                (parts.lane.clone(), matches!(parts.queries, Queries::Resident(_)))
            }
        };
        lane.wait_applied(least).await?;
        let node = self.clone();
        let make = move || match resident {
            true => node.write_resident(&lane, least),
            false => node.write_stored(&lane),
        };
        background::run("snapshot", make).await?
    }

    fn write_stored(&self, lane: &Lane) -> Result<(Head, SnapshotHead), Error> {
        let stage = &self.inner.stage;
        let state = stage.state.snapshot(lane.group);
        let row = state.view().get(Table::Head, Head::KEY)?;
        let row = row.ok_or_else(|| Error::Unavailable("the machine has no state yet".into()))?;
        let head = Head::decode(&row)?;
        let shard_head = self.shard_head(lane.group, head.index)?;
        let header = Header {
            group: lane.group,
            kind: Kind::Stored,
            head,
            term: shard_head.term,
            membership: shard_head.membership.1.clone(),
            // The catalog's own code is the same in all engines.
            engine: if lane.group == GroupId::CATALOG { String::new() } else { stage.engine.clone() },
        };
        let mut writer = stage.snapshots.create_outgoing(&header)?;
        write_rows(&mut writer, &state)?;
        writer.finish()?;
        Ok((head, shard_head))
    }

    /// A resident machine's last snapshot is where its log begins: whoever is behind that is served by it.
    /// Another is made if that one is too old.
    fn write_resident(&self, lane: &Lane, least: Index) -> Result<(Head, SnapshotHead), Error> {
        let stage = &self.inner.stage;
        let index = match stage.snapshots.latest(lane.group)?.filter(|index| *index >= least) {
            Some(index) => index,
            None => self.save_resident(lane.group)?,
        };
        let shard_head = self.shard_head(lane.group, index)?;
        let head = stage.snapshots.read(lane.group, index)?.header().head;
        stage.snapshots.copy_outgoing(lane.group, index)?;
        Ok((head, shard_head))
    }

    fn save_resident(&self, group: GroupId) -> Result<Index, Error> {
        let Inner { stage, registry, .. } = &*self.inner;
        let machine = registry.by_group(group);
        let machine = machine.ok_or_else(|| Error::NotFound("the machine was deleted".into()))?;
        let parts = machine.serving()?;
        let Queries::Resident(resident) = &parts.queries else {
            return Err(Error::Unavailable("the machine's module has changed: try again".into()));
        };
        saver::save(stage, registry, parts, resident)
    }

    /// What goes with the state at an index. The shard hears a moment later than the state is written.
    fn shard_head(&self, group: GroupId, index: Index) -> Result<SnapshotHead, Error> {
        for _ in 0..HEAD_TRIES {
            let (waiter, told) = oneshot::channel();
            self.inner.stage.orders.send(Order::SnapshotHead { group, index, waiter });
            match told.blocking_recv() {
                Ok(Some(head)) => return Ok(head),
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                Err(_) => break,
            }
        }
        Err(Error::Unavailable(format!("the log of group {group} says nothing of index {index}")))
    }
}

/// Receiving.
impl Node {
    /// Fetches a snapshot that another node offers, and tells the shard.
    pub(in crate::node) async fn take_snapshot(
        &self,
        from: NodeId,
        offer: SnapshotOffer,
    ) -> Result<(), Error> {
        let group = GroupId(offer.group);
        let own = self.group_status(group).await.map(|status| status.replica);
        if own != Some(ReplicaId(offer.to)) {
            return Err(Error::FailedPrecondition(format!(
                "the snapshot is for replica {} of group {group}, which is not on this node",
                offer.to
            )));
        }
        let turn = Turn::take(&self.inner.stage.incoming, group)?;
        if offer.reseed {
            self.check_reseed(group, Index(offer.index))?;
        }
        self.fetch_snapshot(from, &offer).await?;
        // From here on it is given back when the snapshot is installed, or dropped as unwanted.
        turn.keep();
        self.inner.stage.orders.send(Order::Shard(Input::SnapshotReceived {
            group,
            from: ReplicaId(offer.from),
            term: Term(offer.term),
            head: offer.head(),
            time_floor: LogTime(offer.time_ms),
            reseed: offer.reseed,
        }));
        Ok(())
    }

    /// Whether the replica has stopped applying and waits for a state like this. Only a snapshot changes
    /// that, and the caller has the turn to take one in.
    fn check_reseed(&self, group: GroupId, index: Index) -> Result<(), Error> {
        let machine = self.inner.registry.by_group(group);
        let lane = machine.as_ref().and_then(|machine| machine.lane());
        let at = lane.filter(|lane| lane.halted().is_some()).map(|lane| lane.published().head.index);
        if at.is_some_and(|at| at < index) {
            return Ok(());
        }
        Err(Error::FailedPrecondition(format!(
            "the replica of group {group} does not wait for the state at index {index}: it was reseeded \
             meanwhile"
        )))
    }

    async fn fetch_snapshot(&self, from: NodeId, offer: &SnapshotOffer) -> Result<(), Error> {
        let (group, index) = (GroupId(offer.group), Index(offer.index));
        let alone = || Error::FailedPrecondition("this node has no peers".into());
        let net = self.inner.stage.net.clone().ok_or_else(alone)?;
        let inner = self.inner.clone();
        let begun = tokio::task::spawn_blocking(move || inner.stage.snapshots.begin_staging(group, index));
        let mut staging = begun.await.map_err(|e| Fault::new(format!("staging panicked: {e}")))??;
        let mut vain = 0;
        loop {
            let before = staging.bytes();
            match fetch_rest(&net, from, &mut staging).await {
                Ok(()) => break,
                Err(Broken::Here(fault)) => {
                    self.inner.stage.fail(fault.clone());
                    return Err(fault.into());
                }
                Err(Broken::There(why)) => {
                    vain = if staging.bytes() > before { 0 } else { vain + 1 };
                    if !why.worth_retrying() || vain > RESUMES_MAX {
                        return Err(Error::Unavailable(format!("the snapshot was not fetched: {why}")));
                    }
                    tokio::time::sleep(RESUME_INTERVAL).await;
                }
            }
        }
        background::run("snapshot check", move || staging.finish()).await?.map(drop)
    }
}

/// A group's turn to take in a snapshot. Given back when it is dropped, also when the one who offered it went
/// away in the middle.
struct Turn<'i> {
    incoming: &'i Mutex<HashSet<GroupId>>,
    group: GroupId,
    kept: bool,
}

impl Turn<'_> {
    fn take(incoming: &Mutex<HashSet<GroupId>>, group: GroupId) -> Result<Turn<'_>, Error> {
        if !incoming.lock().insert(group) {
            return Err(Error::Unavailable(format!("group {group} takes in another snapshot here")));
        }
        Ok(Turn { incoming, group, kept: false })
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.incoming.lock().remove(&self.group);
        }
    }
}

/// Why a fetch did not come to its end.
enum Broken {
    Here(Fault),
    There(FetchError),
}

async fn fetch_rest(net: &Net, from: NodeId, staging: &mut Staging) -> Result<(), Broken> {
    let (group, index) = staging.of();
    let fetched = net.fetch(from, BulkName::Snapshot { group, index }, staging.bytes()).await;
    let mut bulk = fetched.map_err(Broken::There)?;
    while let Some(piece) = bulk.next().await.map_err(Broken::There)? {
        // Pieces are small: only a sync holds up a thread.
        if let Some(file) = staging.write(&piece).map_err(Broken::Here)? {
            let synced = tokio::task::spawn_blocking(move || file.sync_data()).await;
            let failed = |why: &dyn std::fmt::Display| {
                Broken::Here(Fault::new(format!("syncing a snapshot that is received failed: {why}")))
            };
            synced.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_that_is_broken_off_leaves_room_for_the_next() {
        let (incoming, group) = (Mutex::default(), GroupId(1));
        let first = Turn::take(&incoming, group).unwrap();
        assert!(matches!(Turn::take(&incoming, group), Err(Error::Unavailable(_))));
        drop(first);
        Turn::take(&incoming, group).unwrap().keep();
        assert!(Turn::take(&incoming, group).is_err(), "what is staged must go first");
    }
}
