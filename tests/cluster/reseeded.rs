//! A replica gets the leader's state in place of its own, whatever happens meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use statehouse::error::Error;
use statehouse::id::{Digest, Index};
use statehouse::machine::outcome::Outcome;
use statehouse::node::Node;
use statehouse::node::request::{Consistency, Push};

use super::diverged::{cluster_and_follower, damage_value, halted};
use super::harness::{Cluster, get, put};

const COUNTER: &[u8] = include_bytes!("../../guests/counter/counter.component.wasm");

/// Puts without end at a node, and gives back how often it was told that it was done.
fn load(node: &Node, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<u32> {
    let (node, stop) = (node.clone(), stop.clone());
    tokio::spawn(async move {
        let mut done = 0;
        while !stop.load(Ordering::Acquire) {
            done += u32::from(node.apply("kv", put(&format!("k{}", done % 50), "v")).await.is_ok());
        }
        done
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_reseeded_again_and_again_while_commands_go_on() {
    let (cluster, victim, _) = cluster_and_follower().await;
    let name = format!("n{}", victim + 1);
    let stop = Arc::default();
    let loads: Vec<_> = (0..3).map(|number| load(cluster.node(number), &stop)).collect();
    for _ in 0..5 {
        let index = cluster.node((victim + 2) % 3).reseed_machine("kv", &name).await.unwrap();
        assert_eq!(halted(cluster.node(victim)), None);
        let local = Consistency::Local { min_index: index };
        assert_eq!(get(cluster.node(victim), "kv", "a", local).await.as_deref(), Some("1"));
    }
    stop.store(true, Ordering::Release);
    for load in loads {
        assert!(load.await.unwrap() > 0, "commands were done at every node");
    }
    cluster.assert_lockstep("kv").await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_while_its_replica_is_reseeded_never_serves_the_state_it_was_to_lose() {
    let (mut cluster, victim, group) = cluster_and_follower().await;
    // Some megabytes, so that there is something to be interrupted.
    let value = "x".repeat(20_000);
    let puts = (0..200).map(|number| cluster.node(0).apply("kv", put(&format!("k{number}"), &value)).boxed());
    futures_util::future::join_all(puts.collect::<Vec<_>>()).await;
    cluster.assert_lockstep("kv").await;
    cluster.stop(victim).await;
    damage_value(cluster.directory(victim), group);
    cluster.start(victim).await;
    let (name, interrupted) = (format!("n{}", victim + 1), AtomicU32::new(0));
    for round in 0..6u64 {
        let node = cluster.node(victim).clone();
        let (asking, called) = (cluster.node((victim + 1) % 3).clone(), name.clone());
        let reseeding = tokio::spawn(async move { asking.reseed_machine("kv", &called).await });
        let begun = tokio::time::timeout(Duration::from_secs(20), async {
            while halted(&node).is_none() && !reseeding.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        begun.await.expect("it halts first");
        tokio::time::sleep(Duration::from_millis(round * 8)).await;
        drop(node);
        cluster.stop(victim).await;
        cluster.start(victim).await;
        // Whoever asked may be told that it is not known how it ended.
        let told = tokio::time::timeout(Duration::from_secs(60), reseeding).await;
        let done = told.is_ok_and(|told| told.unwrap().is_ok());
        let request = statehouse_kv::messages::RangeRequest { key: b"a".into(), ..Default::default() };
        let request = statehouse_kv::Call::to_envelope(&request);
        let local = Consistency::Local { min_index: Index(0) };
        match cluster.node(victim).query("kv", request.into(), local).await {
            Ok(answered) => {
                let answer = answered.outcome.unwrap();
                let found = <statehouse_kv::messages::RangeRequest as statehouse_kv::Call>::answer(&answer);
                assert_eq!(found.unwrap().kvs[0].value, b"1", "the state it was to lose is served");
            }
            Err(why) => {
                assert!(!done, "it was told that it is reseeded, and it is not: {why}");
                assert!(why.to_string().contains("reseeded"), "{why}");
                interrupted.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    assert!(interrupted.into_inner() > 0, "no reseeding was interrupted");
    cluster.node(victim).reseed_machine("kv", &name).await.unwrap();
    let local = Consistency::Local { min_index: Index(0) };
    assert_eq!(get(cluster.node(victim), "kv", "a", local).await.as_deref(), Some("1"));
    cluster.assert_lockstep("kv").await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resident_machine_is_reseeded_and_its_queries_see_the_new_state() {
    let cluster = Cluster::of(3).await;
    let push = Push { digest: Digest::of(COUNTER), label: "counter".into(), bytes: COUNTER.into() };
    let module = cluster.node(0).push_module(push).await.unwrap();
    cluster.node(0).create_replicated("sum", module.digest, Bytes::new(), 3).await.unwrap();
    let add = |number: usize| cluster.node(number).apply("sum", Bytes::from_static(b"2"));
    for number in 0..9 {
        assert!(matches!(add(number % 3).await.unwrap().outcome, Outcome::Ok(_)));
    }
    cluster.assert_lockstep("sum").await;
    let victim = (0..3).find(|number| !cluster.leads(*number, "sum")).unwrap();
    let sum =
        |index| cluster.node(victim).query("sum", Bytes::new(), Consistency::Local { min_index: index });
    assert_eq!(sum(Index(0)).await.unwrap().outcome, Ok(Bytes::from_static(b"18")));
    for round in 1..3u32 {
        let index = cluster.node(0).reseed_machine("sum", &format!("n{}", victim + 1)).await.unwrap();
        assert_eq!(sum(index).await.unwrap().outcome, Ok((18 + (round - 1) * 2).to_string().into()));
        let index = add(victim).await.unwrap().index;
        assert_eq!(sum(index).await.unwrap().outcome, Ok((18 + round * 2).to_string().into()));
    }
    cluster.assert_lockstep("sum").await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reseeded_is_refused_with_what_to_do() {
    let mut cluster = Cluster::of(3).await;
    cluster.create_kv("kv", 3).await;
    cluster.create_kv("one", 1).await;
    cluster.create_kv("two", 2).await;
    cluster.assert_lockstep("kv").await;
    let told = |machine: &'static str, node: String| {
        let asked = cluster.node(0).clone();
        async move { asked.reseed_machine(machine, &node).await.unwrap_err() }
    };
    let unknown = told("absent", "n1".into()).await;
    assert!(matches!(&unknown, Error::NotFound(text) if text.contains("absent")), "{unknown}");
    let unknown = told("kv", "n9".into()).await;
    assert!(matches!(&unknown, Error::NotFound(text) if text.contains("n1, n2, n3")), "{unknown}");
    let leader = (0..3).find(|number| cluster.leads(*number, "kv")).unwrap();
    let leads = told("kv", format!("n{}", leader + 1)).await;
    assert!(matches!(&leads, Error::FailedPrecondition(text) if text.contains("transfer-leader")), "{leads}");
    let has = |number: usize, machine: &str| {
        cluster.node(number).machine(machine).is_ok_and(|machine| machine.replica.is_some())
    };
    let only = (0..3).find(|number| has(*number, "one")).unwrap();
    let only = told("one", format!("n{}", only + 1)).await;
    assert!(matches!(&only, Error::FailedPrecondition(text) if text.contains("one replica only")), "{only}");
    let without = (0..3).find(|number| !has(*number, "two")).unwrap();
    let none = told("two", format!("n{}", without + 1)).await;
    assert!(matches!(&none, Error::FailedPrecondition(text) if text.contains("no replica")), "{none}");

    let away = (leader + 1) % 3;
    cluster.stop(away).await;
    let asked = cluster.node(leader).reseed_machine("kv", &format!("n{}", away + 1)).await.unwrap_err();
    assert!(matches!(&asked, Error::Unavailable(text) if text.contains("cannot be reached")), "{asked}");
    cluster.shutdown().await;
}
