//! What befalls the nodes of a cluster under load. Each fault sees to it that it met clients at work, that
//! the cluster goes on where it must, and that all is well again at its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::chance::Chance;
use super::cluster::{Cluster, MACHINE, NODES, PATIENCE, until};
use super::links::Cut;
use super::load::Load;

/// Writes that must be acknowledged before a fault, during it if a majority is left, and after it.
const WRITES: u64 = 20;

/// Readers at a leader that is stopped, besides the clients.
const READERS: u64 = 24;

/// How long a fault lasts at least during which nothing can go on.
const OUTAGE: Duration = Duration::from_millis(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL to the leader.
    KillLeader,
    /// SIGKILL to a follower.
    KillFollower,
    /// SIGKILL to all.
    KillAll,
    /// SIGSTOP to the leader with reads under way, and SIGCONT when there is another.
    PauseLeader,
    /// The leader hears nobody and nobody hears it.
    IsolateLeader,
    /// The leader is heard and hears nobody, or hears and is not heard.
    DeafenLeader,
    /// The leader and one follower do not reach each other; the other follower reaches both.
    CutOneLink,
    /// A follower is asked to lead.
    Transfer,
    /// SIGTERM to a node.
    Restart,
}

impl Fault {
    pub const ALL: [Fault; 9] = [
        Fault::KillLeader,
        Fault::KillFollower,
        Fault::KillAll,
        Fault::PauseLeader,
        Fault::IsolateLeader,
        Fault::DeafenLeader,
        Fault::CutOneLink,
        Fault::Transfer,
        Fault::Restart,
    ];

    /// Injects the fault, and mends it.
    pub async fn befall(self, cluster: &mut Cluster, load: &mut Load, chance: &mut Chance) {
        let leader = cluster.leader().await;
        let follower = (leader + 1 + chance.below(NODES as u64 - 1) as usize) % NODES;
        under_load(load).await;
        match self {
            Fault::KillLeader => crash(cluster, load, &[leader]).await,
            Fault::KillFollower => crash(cluster, load, &[follower]).await,
            Fault::KillAll => {
                cluster.kill(&[0, 1, 2]);
                cluster.begin(&[0, 1, 2]);
            }
            Fault::PauseLeader => pause(cluster, load, leader).await,
            Fault::IsolateLeader => {
                let others = (0..NODES).filter(|&node| node != leader);
                let ways: Vec<_> = others.flat_map(|node| [(leader, node), (node, leader)]).collect();
                cut(cluster, load, &ways, chance).await;
            }
            Fault::DeafenLeader => {
                let others = (0..NODES).filter(|&node| node != leader);
                let mute = chance.below(2) == 0;
                let ways: Vec<_> =
                    others.map(|node| if mute { (leader, node) } else { (node, leader) }).collect();
                cut(cluster, load, &ways, chance).await;
            }
            Fault::CutOneLink => cut(cluster, load, &[(leader, follower), (follower, leader)], chance).await,
            Fault::Transfer => transfer(cluster, follower).await,
            Fault::Restart => {
                let node = chance.pick(&[leader, follower]);
                cluster.stop(node);
                go_on(load, "one node of three is being restarted").await;
                cluster.begin(&[node]);
            }
        }
        go_on(load, "all nodes are there again").await;
    }
}

/// Clients get answers, and some wait for theirs.
async fn under_load(load: &Load) {
    go_on(load, "nothing befell the nodes").await;
    until("clients are at work", async || load.recorder.in_flight() > 0).await;
}

/// Waits until more writes are acknowledged.
pub async fn go_on(load: &Load, although: &str) {
    let (begun, before) = (Instant::now(), load.recorder.acknowledged_writes());
    while load.recorder.acknowledged_writes() < before + WRITES {
        if begun.elapsed() > PATIENCE {
            let written = load.recorder.acknowledged_writes() - before;
            let told = load.recorder.errors();
            let last = &told[told.len().saturating_sub(5)..];
            panic!("only {written} writes in {PATIENCE:?} although {although}; clients were told {last:#?}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn crash(cluster: &mut Cluster, load: &Load, nodes: &[usize]) {
    cluster.kill(nodes);
    go_on(load, "two of three nodes are there").await;
    cluster.begin(nodes);
}

async fn pause(cluster: &Cluster, load: &mut Load, leader: usize) {
    let enough = Arc::new(AtomicBool::new(false));
    load.read_at(cluster, leader, READERS, &enough);
    // Nobody waits between two reads: at nearly every moment each has one at the leader.
    until("the reads are under way", async || load.recorder.in_flight() > READERS / 2).await;
    cluster.process(leader).signal(Signal::STOP);
    enough.store(true, Ordering::SeqCst);
    assert!(load.recorder.in_flight() > 0, "no read met the leader's pause");
    go_on(load, "only the leader stands still").await;
    cluster.process(leader).signal(Signal::CONT);
}

async fn cut(cluster: &Cluster, load: &Load, ways: &[(usize, usize)], chance: &mut Chance) {
    cluster.links.cut(ways.iter().copied(), chance.pick(&[Cut::Silent, Cut::Broken]));
    go_on(load, "a majority reaches each other").await;
    // Long enough for those who were cut off to do harm if they could.
    tokio::time::sleep(OUTAGE).await;
    cluster.links.heal();
}

pub async fn transfer(cluster: &Cluster, to: usize) {
    let name = cluster.name(to).to_owned();
    cluster.client().transfer_leader(Some(MACHINE), &name).await.expect("the leader can be changed");
    until("the other leads", async || cluster.leader().await == to).await;
}
