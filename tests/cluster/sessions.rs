//! Sessions over whatever befalls a machine's replicas: an outcome that was told once is told again, and a
//! command counts once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use statehouse::Node;
use statehouse::error::Error;
use statehouse::machine::batch::Numbered;
use statehouse::node::request::{Applied, Consistency};
use statehouse_kv::Call;
use statehouse_kv::messages::RangeRequest;

use super::harness::{Cluster, get, put};

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3_600);

/// How often a key was put since it was made.
async fn version(node: &Node, key: &str) -> i64 {
    let range = RangeRequest { key: key.into(), ..Default::default() }.to_envelope();
    let answered = node.query("kv", range.into(), Consistency::Linearizable).await.unwrap();
    let found = RangeRequest::answer(&answered.outcome.unwrap()).unwrap().kvs.pop();
    found.map_or(0, |kv| kv.version)
}

async fn put_numbered(node: &Node, numbered: Numbered, value: &str) -> Result<Applied, Error> {
    node.apply_numbered("kv", put("numbered", value), numbered).await
}

/// Waits until the node leads the machine.
async fn have_lead(cluster: &Cluster, number: usize) {
    let name = format!("n{}", number + 1);
    let leading = async {
        while !cluster.leads(number, "kv") {
            // Refused as long as the replica has not caught up.
            let _ = cluster.node(number).transfer_leader(Some("kv"), &name).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), leading).await.expect("it comes to lead");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_came_by_snapshot_and_one_that_restarted_tell_the_first_outcome() {
    let mut cluster = Cluster::with(3, |config| {
        config.flush_bytes = 64 << 10;
        config.log_keep_entries = 20;
    })
    .await;
    cluster.create_kv("kv", 3).await;
    cluster.assert_lockstep("kv").await;
    let opened = cluster.node(2).open_session("kv", LONG).await.unwrap();
    assert_eq!((opened.ttl, opened.window), (LONG, 256));
    cluster.stop(2).await;
    let numbered = Numbered { session: opened.session, number: 1, acknowledged: 0 };
    let first = put_numbered(cluster.node(0), numbered, "first").await.unwrap();
    let value = "x".repeat(1_000);
    for round in 0..60 {
        let puts = (0..250).map(|number| {
            let (node, command) =
                (cluster.node(0).clone(), put(&format!("k{}", round * 250 + number), &value));
            async move { node.apply("kv", command).await.unwrap() }
        });
        futures_util::future::join_all(puts).await;
    }
    let logs = cluster.node(0).replicas("kv").await.unwrap();
    let cut =
        logs.iter().filter_map(|replica| replica.log.as_ref().ok()).all(|log| log.start > first.index.0);
    assert!(cut, "the command is in a log still: {logs:?}");
    cluster.start(2).await;
    cluster.assert_lockstep("kv").await;
    have_lead(&cluster, 2).await;
    assert_eq!(put_numbered(cluster.node(2), numbered, "again").await.unwrap(), first);
    for number in 0..3 {
        cluster.stop(number).await;
    }
    // The first waits for the others before it serves, and they for it: each starts by itself.
    cluster.start_all().await;
    for node in cluster.nodes() {
        assert_eq!(put_numbered(node, numbered, "again").await.unwrap(), first);
    }
    assert_eq!(version(cluster.node(1), "numbered").await, 1);
    let value = get(cluster.node(0), "kv", "numbered", Consistency::Linearizable).await;
    assert_eq!(value.as_deref(), Some("first"));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_while_commands_are_under_way_applies_none_of_them_later() {
    const WRITERS: usize = 8;
    let cluster = Cluster::of(3).await;
    cluster.create_kv("kv", 3).await;
    cluster.assert_lockstep("kv").await;
    let ttl = Duration::from_millis(700);
    let opened = cluster.node(0).open_session("kv", ttl).await.unwrap();
    // One number after the other, whoever takes it; nothing is acknowledged before all is done.
    let numbers = Arc::new(AtomicU64::new(0));
    let writers = (0..WRITERS).map(|writer| {
        let (node, numbers, session) = (cluster.node(writer % 3).clone(), numbers.clone(), opened.session);
        tokio::spawn(async move {
            let mut done = Vec::new();
            loop {
                let number = numbers.fetch_add(1, Ordering::SeqCst) + 1;
                if number > opened.window {
                    // As many as it takes without an acknowledgement: from here on they are sent again.
                    let place = Numbered { session, number: number % opened.window + 1, acknowledged: 0 };
                    match put_numbered(&node, place, "again").await {
                        Ok(_) => continue,
                        Err(why) => return (done, why),
                    }
                }
                match put_numbered(&node, Numbered { session, number, acknowledged: 0 }, "x").await {
                    Ok(applied) => done.push(applied.index),
                    Err(why) => return (done, why),
                }
            }
        })
    });
    let mut done = 0;
    for ended in futures_util::future::join_all(writers).await {
        let (applied, why) = ended.unwrap();
        assert!(matches!(why, Error::SessionExpired(_)), "{why:?}");
        done += applied.len() as i64;
    }
    assert!(done > 0, "it ended before anything was done");
    assert_eq!(version(cluster.node(1), "numbered").await, done);
    for node in cluster.nodes() {
        let place = Numbered { session: opened.session, number: 1, acknowledged: 0 };
        let why = put_numbered(node, place, "late").await.unwrap_err();
        assert!(matches!(why, Error::SessionExpired(_)), "{why:?}");
    }
    assert_eq!(version(cluster.node(1), "numbered").await, done);
    cluster.shutdown().await;
}
