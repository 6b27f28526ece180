//! Modules that take long to compile: nobody but their own machines waits for them.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use statehouse::id::Digest;
use statehouse::node::config::{CompileIn, NodeConfig};
use statehouse::node::request::{Consistency, Push};
use tempfile::TempDir;

use super::harness::{Cluster, get, put, serves};

const COUNTER: &[u8] = include_bytes!("../../guests/counter/counter.component.wasm");

/// A node's compiler, which takes so many seconds longer.
fn slowed(name: &str, seconds: u32) -> CompileIn {
    static PROGRAMS: OnceLock<TempDir> = OnceLock::new();
    let program: PathBuf = PROGRAMS.get_or_init(|| tempfile::tempdir().unwrap()).path().join(name);
    let real = env!("CARGO_BIN_EXE_statehouse");
    std::fs::write(&program, format!("#!/bin/sh\n/bin/sleep {seconds}\nexec '{real}' \"$@\"\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    CompileIn::Process(program)
}

fn slow_ones(config: &mut NodeConfig) {
    // Less than a compilation takes: whoever had to wait for one would be told that there is no leader.
    config.leader_wait_ms = 2_000;
    match config.name.as_str() {
        "n2" => config.compile_in = slowed("n2", 3),
        "n3" => config.compile_in = slowed("n3", 12),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_used_as_soon_as_a_majority_has_compiled_it_and_others_wait_for_nothing() {
    let cluster = Cluster::with(3, slow_ones).await;
    cluster.create_kv("first", 3).await;
    cluster.wait("the key-value machine is compiled everywhere", |node| serves(node, "first")).await;
    let begun = Instant::now();
    let push = Push { digest: Digest::of(COUNTER), label: "slow".into(), bytes: COUNTER.into() };
    let module = cluster.node(0).push_module(push).await.unwrap().digest;
    cluster.node(0).create_replicated("slow", module, Bytes::from_static(b"40"), 3).await.unwrap();
    for node in cluster.nodes() {
        node.apply("slow", Bytes::from_static(b"2")).await.unwrap();
        let fresh = Consistency::Linearizable;
        let told = node.query("slow", Bytes::new(), fresh).await.unwrap().outcome.unwrap();
        assert!(!told.is_empty());
    }
    // Meanwhile the third node opens what it has compiled.
    cluster.create_kv("second", 3).await;
    cluster.wait("the third node is not held up", |node| serves(node, "second")).await;
    cluster.node(2).apply("second", put("k", "v")).await.unwrap();
    assert_eq!(get(cluster.node(2), "second", "k", Consistency::Linearizable).await.as_deref(), Some("v"));
    assert!(!serves(cluster.node(2), "slow"), "it still compiles after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(12));
    cluster.assert_lockstep("slow").await;
    assert!(serves(cluster.node(2), "slow"));
    cluster.shutdown().await;
}
