//! Clusters of several nodes in one process, over real sockets and real disks.

#[path = "cluster/compiled.rs"]
mod compiled;
#[path = "cluster/diverged.rs"]
mod diverged;
#[path = "cluster/expiring.rs"]
mod expiring;
#[path = "cluster/explained.rs"]
mod explained;
#[path = "cluster/harness.rs"]
mod harness;
#[path = "cluster/old_copy.rs"]
mod old_copy;
#[path = "cluster/reseeded.rs"]
mod reseeded;
#[path = "cluster/sessions.rs"]
mod sessions;
#[path = "cluster/settings.rs"]
mod settings;
#[path = "cluster/shims.rs"]
mod shims;
#[path = "cluster/snapshots.rs"]
mod snapshots;
#[path = "cluster/stopped.rs"]
mod stopped;
#[path = "cluster/upgraded.rs"]
mod upgraded;
#[path = "cluster/watched.rs"]
mod watched;

use std::time::Duration;

use bytes::Bytes;
use harness::{Cluster, get, put, serves};
use statehouse::id::Index;
use statehouse::node::request::{Consistency, NodeReport};

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_answer_alike_and_any_takes_any_request() {
    let cluster = Cluster::of(3).await;
    cluster.create_kv("kv", 3).await;
    for (number, node) in cluster.nodes().enumerate() {
        let key = format!("k{number}");
        let applied = node.apply("kv", put(&key, "v")).await.unwrap();
        for reader in cluster.nodes() {
            let local = Consistency::Local { min_index: applied.index };
            assert_eq!(get(reader, "kv", &key, local).await.as_deref(), Some("v"));
            assert_eq!(get(reader, "kv", &key, Consistency::Linearizable).await.as_deref(), Some("v"));
        }
    }
    cluster.assert_lockstep("kv").await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_grows_to_three_replicas_as_nodes_join() {
    let mut cluster = Cluster::of(1).await;
    cluster.create_kv("kv", 3).await;
    for number in 0..100 {
        cluster.node(0).apply("kv", put(&format!("k{number}"), "v")).await.unwrap();
    }
    cluster.join().await;
    cluster.join().await;
    cluster.wait("kv has three replicas", |node| serves(node, "kv")).await;
    cluster.assert_lockstep("kv").await;
    let local = Consistency::Local { min_index: Index(0) };
    assert_eq!(get(cluster.node(2), "kv", "k99", local).await.as_deref(), Some("v"));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_tells_how_all_nodes_and_replicas_are() {
    let mut cluster = Cluster::of(3).await;
    cluster.create_kv("kv", 3).await;
    let applied = cluster.node(0).apply("kv", put("k", "v")).await.unwrap();
    cluster.assert_lockstep("kv").await;
    for node in cluster.nodes() {
        let told: Vec<_> = node.survey().await.into_iter().map(|node| node.report.unwrap()).collect();
        assert_eq!(told.len(), 3);
        assert!(told.iter().all(|report| report.groups == 2 && report.halted == 0), "{told:?}");
        // The catalog's group and the machine's have one leader each, which knows of the two others.
        assert_eq!(told.iter().map(|report| report.leading).sum::<u64>(), 2, "{told:?}");
        let known = |report: &NodeReport| report.leading == 0 || report.behind.len() == 2;
        assert!(told.iter().all(known), "{told:?}");
        assert!(told.iter().all(|report| report.disk.is_some_and(|disk| disk.log_bytes > 0)), "{told:?}");
        // The engine hears a moment later than clients what was applied.
        let hearing = async {
            loop {
                let replicas = node.replicas("kv").await.unwrap();
                let logs: Vec<_> = replicas.into_iter().map(|replica| replica.log.unwrap()).collect();
                if logs.iter().all(|log| log.applied >= applied.index.0) {
                    return logs;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let logs = tokio::time::timeout(Duration::from_secs(60), hearing).await.expect("all hear of it");
        assert_eq!(logs.iter().filter(|log| log.role == "leader").count(), 1, "{logs:?}");
        assert!(logs.iter().all(|log| log.last >= log.applied), "{logs:?}");
    }
    cluster.stop(2).await;
    cluster.node(0).apply("kv", put("k", "w")).await.unwrap();
    let silent: Vec<_> = cluster.node(0).survey().await.into_iter().filter(|n| n.report.is_err()).collect();
    assert_eq!(silent.iter().map(|node| node.member.name.as_str()).collect::<Vec<_>>(), ["n3"]);
    let replicas = cluster.node(1).replicas("kv").await.unwrap();
    assert_eq!(replicas.iter().filter(|replica| replica.log.is_err()).count(), 1, "{replicas:?}");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_of_one_replica_is_used_from_every_node() {
    let cluster = Cluster::of(3).await;
    cluster.create_kv("one", 1).await;
    for (number, node) in cluster.nodes().enumerate() {
        node.apply("one", put(&format!("k{number}"), "v")).await.unwrap();
    }
    for node in cluster.nodes() {
        assert_eq!(get(node, "one", "k2", Consistency::Linearizable).await.as_deref(), Some("v"));
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_go_on_and_the_third_catches_up() {
    let mut cluster = Cluster::of(3).await;
    cluster.create_kv("kv", 3).await;
    cluster.node(0).apply("kv", put("before", "1")).await.unwrap();
    for stopped in [2, 0] {
        cluster.stop(stopped).await;
        let others: Vec<usize> = (0..3).filter(|number| *number != stopped).collect();
        for number in &others {
            cluster.node(*number).apply("kv", put(&format!("{stopped}-{number}"), "v")).await.unwrap();
        }
        cluster.start(stopped).await;
        for number in others {
            let key = format!("{stopped}-{number}");
            let value = get(cluster.node(stopped), "kv", &key, Consistency::Linearizable).await;
            assert_eq!(value.as_deref(), Some("v"));
        }
    }
    cluster.assert_lockstep("kv").await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_told_so_and_its_replicas_move() {
    let mut cluster = Cluster::of(4).await;
    cluster.create_kv("kv", 3).await;
    let applied = cluster.node(0).apply("kv", put("a", "1")).await.unwrap();
    let machine = cluster.node(0).machine("kv").unwrap();
    let members = cluster.node(0).members();
    let leaving = (0..4).find(|number| {
        let name = format!("n{}", number + 1);
        members.iter().any(|member| member.name == name && machine.replicas.contains(&member.node))
    });
    let leaving = leaving.expect("three of four nodes have a replica");
    let stays = (leaving + 1) % 4;
    cluster.node(stays).remove_member(&format!("n{}", leaving + 1)).await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(30), cluster.node(leaving).failed()).await;
    assert!(told.expect("it is told").to_string().contains("removed"), "it says why it stops");
    cluster.stop(leaving).await;
    let here = |node: &statehouse::Node| serves(node, "kv");
    cluster.wait("the others have the replicas", here).await;
    assert_eq!(cluster.node(stays).members().len(), 3);
    cluster.assert_lockstep("kv").await;
    let local = Consistency::Local { min_index: applied.index };
    for node in cluster.nodes() {
        assert_eq!(get(node, "kv", "a", local).await.as_deref(), Some("1"));
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_behind_the_log_gets_a_snapshot() {
    let mut cluster = Cluster::with(3, |config| {
        config.flush_bytes = 64 << 10;
        config.log_keep_entries = 20;
    })
    .await;
    cluster.create_kv("kv", 3).await;
    cluster.node(0).apply("kv", put("first", "1")).await.unwrap();
    cluster.stop(2).await;
    let value = "x".repeat(1_000);
    for round in 0..60 {
        let puts = (0..250).map(|number| {
            let node = cluster.node(0).clone();
            let command = put(&format!("k{}", round * 250 + number), &value);
            async move { node.apply("kv", command).await.unwrap() }
        });
        futures_util::future::join_all(puts).await;
    }
    cluster.start(2).await;
    cluster.assert_lockstep("kv").await;
    assert_eq!(get(cluster.node(2), "kv", "first", Consistency::Linearizable).await.as_deref(), Some("1"));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_large_commands_is_cut_by_its_bytes() {
    let cluster = Cluster::with(3, |config| {
        config.flush_bytes = 1 << 20;
        config.flush_interval_ms = 200;
        config.log_keep_bytes = 2 << 20;
    })
    .await;
    cluster.create_kv("kv", 3).await;
    let value = "x".repeat(200_000);
    let mut last = Index(0);
    for number in 0..60 {
        last = cluster.node(number % 3).apply("kv", put("large", &value)).await.unwrap().index;
    }
    // Two mebibytes are ten of them; what came with the last flush may be there as well.
    let cut = async |node: &statehouse::Node| {
        let replicas = node.replicas("kv").await.unwrap();
        replicas.iter().all(|replica| replica.log.as_ref().is_ok_and(|log| log.start + 12 >= last.0))
    };
    for _ in 0..600 {
        if cut(cluster.node(0)).await {
            return cluster.shutdown().await;
        }
        // Followers cut when they flush, and they flush only if something was written.
        cluster.node(0).apply("kv", put("small", "1")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the log is not cut: {:?}", cluster.node(0).replicas("kv").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_in_use_and_other_clusters_are_refused() {
    let cluster = Cluster::of(2).await;
    let taken = cluster.try_join("n1").await.expect_err("the name is taken");
    assert!(taken.contains("\"n1\""), "{taken}");
    let unknown = cluster.node(0).remove_member("n9").await.unwrap_err().to_string();
    assert!(unknown.contains("n9") && unknown.contains("n1, n2"), "{unknown}");
    let absent = cluster.node(1).apply("absent", Bytes::new()).await.unwrap_err().to_string();
    assert!(absent.contains("\"absent\""), "{absent}");
    cluster.shutdown().await;
}
