//! A replica whose state is not what the others have: it is found, halts, and answers nothing.

use statehouse::Node;
use statehouse::id::GroupId;
use statehouse::machine::batch::Head;
use statehouse::machine::view::{Table, View};
use statehouse::node::request::Consistency;
use statehouse::storage::state::{StateDb, StateSizes};

use super::harness::{Cluster, get, put};

/// Changes a value in the state of a stopped node, and the hash as a wrong computation would have.
fn damage(directory: &std::path::Path, group: GroupId) {
    let (state, opened) = StateDb::open(&directory.join("state"), StateSizes::default()).unwrap();
    let mut head: Head = opened.heads[&group];
    head.hash.0[0] ^= 1;
    state.write(group, std::iter::empty::<(Table, Vec<u8>, Option<Vec<u8>>)>(), &head).unwrap();
    state.flush().unwrap();
    let view: std::sync::Arc<dyn View> = state.view(group);
    assert!(view.get(Table::Head, Head::KEY).unwrap().is_some());
}

fn failure(verified: &statehouse::node::request::Verified, node: &Node) -> Option<String> {
    let own = node.status().node;
    verified.replicas.iter().find(|replica| replica.node == own).unwrap().standing.clone().err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_differs_is_found_and_answers_nothing() {
    let mut cluster = Cluster::of(3).await;
    cluster.create_kv("kv", 3).await;
    cluster.node(0).apply("kv", put("a", "1")).await.unwrap();
    cluster.assert_lockstep("kv").await;
    let verified = cluster.node(1).verify_machine("kv").await.unwrap();
    assert!(verified.replicas.iter().all(|replica| replica.standing.is_ok()), "{verified:?}");

    // Not a leader: what a leader has is what the others are compared with.
    let victim = (0..3).find(|number| !cluster.leads(*number, "kv")).unwrap();
    let group = cluster.node(0).machine("kv").unwrap().group;
    cluster.stop(victim).await;
    damage(cluster.directory(victim), group);
    cluster.start(victim).await;
    let other = (victim + 1) % 3;
    // It remembers its hashes from its start on.
    cluster.node(other).apply("kv", put("b", "2")).await.unwrap();
    let verified = cluster.node(other).verify_machine("kv").await.unwrap();
    for number in 0..3 {
        let failure = failure(&verified, cluster.node(number));
        assert_eq!(failure.is_some(), number == victim, "{verified:?}");
        assert!(failure.is_none_or(|why| why.contains("lockstep")), "{verified:?}");
    }
    let request = statehouse_kv::Call::to_envelope(&statehouse_kv::messages::RangeRequest::default());
    let refused = cluster.node(victim).query("kv", request.into(), Consistency::default()).await;
    assert!(refused.unwrap_err().to_string().contains("lockstep"));
    let halted = cluster.node(victim).machine("kv").unwrap().replica.unwrap().halted;
    assert!(halted.is_some_and(|why| why.contains("lockstep")));
    // The others go on, and commands are taken there too.
    cluster.node(victim).apply("kv", put("c", "3")).await.unwrap();
    let value = get(cluster.node(other), "kv", "c", Consistency::Linearizable).await;
    assert_eq!(value.as_deref(), Some("3"));
    cluster.shutdown().await;
}
