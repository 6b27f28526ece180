//! Where a replica that differs left the way of the others: told by index and key, also after a restart.

use std::time::Duration;

use bytes::Bytes;
use statehouse::error::Error;
use statehouse::id::Index;
use statehouse::node::Node;
use statehouse::node::request::Explanation;
use statehouse_kv::Call;
use statehouse_kv::messages::{RangeRequest, Request, RequestOp, TxnRequest};

use super::diverged::{cluster_and_follower, damage_hash, damage_value, halted};
use super::harness::{Cluster, put};

/// A cluster with a follower whose value of `a` is "9", not "1", and that has applied a batch since. Gives
/// back the index of that batch.
async fn with_wrong_value() -> (Cluster, usize, Index) {
    let (mut cluster, victim, group) = cluster_and_follower().await;
    cluster.stop(victim).await;
    damage_value(cluster.directory(victim), group);
    cluster.start(victim).await;
    let applied = cluster.node(victim).apply("kv", put("b", "1")).await.unwrap();
    cluster.assert_lockstep("kv").await;
    (cluster, victim, applied.index)
}

/// Has the replicas compared, and waits until the node has kept what it found out.
async fn found_out(cluster: &Cluster, victim: usize) -> Explanation {
    cluster.node((victim + 1) % 3).verify_machine("kv").await.unwrap();
    assert!(halted(cluster.node(victim)).is_some_and(|why| why.contains("lockstep")));
    explained(cluster.node((victim + 1) % 3), victim).await
}

async fn explained(asked: &Node, victim: usize) -> Explanation {
    let name = format!("n{}", victim + 1);
    for _ in 0..500 {
        match asked.explain_machine("kv", &name).await {
            Ok(explanation) => return explanation,
            Err(Error::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(why) => panic!("{why}"),
        }
    }
    panic!("it is not explained")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_was_changed_behind_its_back_is_explained_with_index_and_key_also_after_a_restart() {
    let (mut cluster, victim, before) = with_wrong_value().await;
    let command = put("a", "2");
    let bytes = command.len() as u64;
    let applied = cluster.node(0).apply("kv", command).await.unwrap();
    let later = cluster.node(0).apply("kv", put("c", "3")).await.unwrap();
    assert!(later.index > applied.index);
    let told = found_out(&cluster, victim).await;
    assert_eq!((told.agreed_index(), told.differed_index()), (Some(before), Some(applied.index)), "{told:?}");
    assert_eq!((told.unknown.as_str(), told.operations[0].bytes), ("", bytes), "{told:?}");
    assert_eq!((told.operations.len(), told.operations[0].kind.as_str()), (1, "command"));
    // The version that the put ended is kept under the key: that is where the wrong value comes to light.
    let [difference] = told.differences.as_slice() else { panic!("one row differs: {told:?}") };
    assert_eq!(difference.what, "write");
    assert!(difference.key.as_ref().unwrap().starts_with(b"ha\0\x01"), "{told:?}");
    assert_eq!(difference.here.bytes, difference.leader.bytes);
    assert_ne!(difference.here.digest, difference.leader.digest);

    cluster.stop(victim).await;
    cluster.start(victim).await;
    assert_eq!(explained(cluster.node(victim), victim).await, told, "it is kept on disk");
    cluster.node(victim).reseed_machine("kv", &format!("n{}", victim + 1)).await.unwrap();
    let nothing = cluster.node(0).explain_machine("kv", &format!("n{}", victim + 1)).await.unwrap_err();
    assert!(matches!(&nothing, Error::FailedPrecondition(text) if text.contains("not halted")), "{nothing}");
    cluster.assert_lockstep("kv").await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_answered_otherwise_is_explained_with_the_outcome() {
    let (cluster, victim, before) = with_wrong_value().await;
    let range = RangeRequest { key: b"a".to_vec(), ..Default::default() };
    let read = RequestOp { request: Some(Request::RequestRange(range)) };
    let read = TxnRequest { success: vec![read], ..Default::default() };
    // Several at a time, so that they share batches.
    let reads = (0..20).map(|_| cluster.node(0).apply("kv", Bytes::from(read.to_envelope())));
    let applied = futures_util::future::join_all(reads).await;
    let first = applied.into_iter().map(|applied| applied.unwrap().index).min().unwrap();
    let told = found_out(&cluster, victim).await;
    assert_eq!((told.agreed_index(), told.differed_index()), (Some(before), Some(first)), "{told:?}");
    assert_eq!(told.unknown, "");
    assert_eq!(
        told.differences.len(),
        told.operations.len().min(20),
        "each read answers otherwise: {told:?}"
    );
    for (offset, difference) in told.differences.iter().enumerate() {
        assert_eq!(
            (difference.what.as_str(), difference.offset),
            ("outcome", Some(offset as u32)),
            "{told:?}"
        );
        assert_ne!(difference.here, difference.leader);
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_longer_known_is_said_and_nothing_is_made_up() {
    let (mut cluster, victim, group) = cluster_and_follower().await;
    cluster.stop(victim).await;
    damage_hash(cluster.directory(victim), group);
    cluster.start(victim).await;
    cluster.node(victim).apply("kv", put("b", "1")).await.unwrap();
    let told = found_out(&cluster, victim).await;
    assert_eq!((told.agreed_index(), &told.differences), (None, &Vec::new()), "{told:?}");
    assert!(told.unknown.contains("no longer known"), "{told:?}");
    cluster.shutdown().await;
}
