//! A replica whose state is not what the others have: it is found, halts, answers nothing, also after a
//! restart, and serves again when it has the leader's state.

use statehouse::id::{GroupId, Index};
use statehouse::machine::batch::Head;
use statehouse::machine::view::{Table, View};
use statehouse::node::Node;
use statehouse::node::request::{Consistency, Verified};
use statehouse::storage::state::{StateDb, StateSizes};

use super::harness::{Cluster, get, put};

/// Turns the value "1" of the key `a` into "9" in the state of a stopped node.
pub fn damage_value(directory: &std::path::Path, group: GroupId) {
    change(directory, group, |view, _| {
        let row = b"ca".to_vec();
        let mut value = view.get(Table::Store, &row).unwrap().expect("the key is there");
        // In the guest's row the value is field 5, of one byte.
        let at = value.windows(3).position(|bytes| bytes == [5 << 3 | 2, 1, b'1']).expect("its value is 1");
        value[at + 2] = b'9';
        vec![(Table::Store, row, Some(value))]
    });
}

/// Changes the hash, as a wrong computation would have.
pub fn damage_hash(directory: &std::path::Path, group: GroupId) {
    change(directory, group, |_, head| {
        head.hash.0[0] ^= 1;
        Vec::new()
    });
}

type Row = (Table, Vec<u8>, Option<Vec<u8>>);

fn change(directory: &std::path::Path, group: GroupId, how: impl Fn(&dyn View, &mut Head) -> Vec<Row>) {
    let (state, opened) = StateDb::open(&directory.join("state"), StateSizes::default()).unwrap();
    let mut head: Head = opened.heads[&group];
    let rows = how(&*state.view(group), &mut head);
    state.write(group, rows, &head).unwrap();
    state.flush().unwrap();
}

fn failure(verified: &Verified, node: &Node) -> Option<String> {
    let own = node.status().node;
    verified.replicas.iter().find(|replica| replica.node == own).unwrap().standing.clone().err()
}

/// Three nodes with a machine in which `a` is "1", and one of them that does not lead it.
pub async fn cluster_and_follower() -> (Cluster, usize, GroupId) {
    let cluster = Cluster::of(3).await;
    cluster.create_kv("kv", 3).await;
    cluster.node(0).apply("kv", put("a", "1")).await.unwrap();
    cluster.assert_lockstep("kv").await;
    let group = cluster.node(0).machine("kv").unwrap().group;
    let follower = (0..3).find(|number| !cluster.leads(*number, "kv")).unwrap();
    (cluster, follower, group)
}

/// Why a node's replica is halted.
pub fn halted(node: &Node) -> Option<String> {
    node.machine("kv").unwrap().replica.unwrap().halted
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_differs_is_found_and_answers_nothing_until_it_is_reseeded() {
    let (mut cluster, victim, group) = cluster_and_follower().await;
    let verified = cluster.node(1).verify_machine("kv").await.unwrap();
    assert!(verified.replicas.iter().all(|replica| replica.standing.is_ok()), "{verified:?}");

    cluster.stop(victim).await;
    damage_value(cluster.directory(victim), group);
    damage_hash(cluster.directory(victim), group);
    cluster.start(victim).await;
    let other = (victim + 1) % 3;
    let verified = cluster.node(other).verify_machine("kv").await.unwrap();
    for number in 0..3 {
        let failure = failure(&verified, cluster.node(number));
        assert_eq!(failure.is_some(), number == victim, "{verified:?}");
        assert!(failure.is_none_or(|why| why.contains("lockstep")), "{verified:?}");
    }
    assert_answers_nothing(cluster.node(victim)).await;
    // The others go on, and commands are taken there too.
    cluster.node(victim).apply("kv", put("c", "3")).await.unwrap();
    let value = get(cluster.node(other), "kv", "c", Consistency::Linearizable).await;
    assert_eq!(value.as_deref(), Some("3"));

    // A restart forgets nothing, although no beacon comes.
    cluster.stop(victim).await;
    cluster.start(victim).await;
    assert_answers_nothing(cluster.node(victim)).await;

    let name = format!("n{}", victim + 1);
    let index = cluster.node(other).reseed_machine("kv", &name).await.unwrap();
    assert_eq!(halted(cluster.node(victim)), None);
    let local = Consistency::Local { min_index: index };
    assert_eq!(get(cluster.node(victim), "kv", "a", local).await.as_deref(), Some("1"));
    assert_eq!(get(cluster.node(victim), "kv", "c", local).await.as_deref(), Some("3"));
    cluster.assert_lockstep("kv").await;
    let verified = cluster.node(victim).verify_machine("kv").await.unwrap();
    assert!(verified.replicas.iter().all(|replica| replica.standing.is_ok()), "{verified:?}");

    cluster.stop(victim).await;
    cluster.start(victim).await;
    cluster.assert_lockstep("kv").await;
    cluster.shutdown().await;
}

async fn assert_answers_nothing(node: &Node) {
    let why = halted(node);
    assert!(why.as_ref().is_some_and(|why| why.contains("lockstep")), "{why:?}");
    let request = statehouse_kv::Call::to_envelope(&statehouse_kv::messages::RangeRequest::default());
    for consistency in [Consistency::Linearizable, Consistency::Local { min_index: Index(0) }] {
        let refused = node.query("kv", request.clone().into(), consistency).await;
        assert!(refused.unwrap_err().to_string().contains("lockstep"));
    }
}
