//! Statehouse's front for etcd's clients, beside a real etcd: the same requests to both, and every answer
//! compared. And programs that nobody here wrote, against it.
//!
//!     make test-clients
//!
//! installs etcd and the clients, and runs all of it. A stream of requests comes from a seed:
//!
//!     ETCD_SEED=7 ETCD_REQUESTS=20000 cargo test --release --test etcd -- --ignored answers_as_etcd
//!
//! Tests that need what is not in the repository are marked so; without `--ignored` they do not run.

#![cfg(target_os = "linux")]

#[path = "etcd/accepted.rs"]
mod accepted;
#[path = "etcd/answer.rs"]
mod answer;
#[path = "etcd/calls.rs"]
mod calls;
#[path = "lockstep/chance.rs"]
#[allow(dead_code, reason = "the tests of clusters use more of it")]
mod chance;
#[path = "etcd/clients.rs"]
mod clients;
#[path = "etcd/coredns.rs"]
mod coredns;
#[path = "etcd/differential.rs"]
mod differential;
#[path = "etcd/etcdctl.rs"]
mod etcdctl;
#[path = "etcd/faults.rs"]
mod faults;
#[path = "etcd/gateway.rs"]
mod gateway;
#[path = "etcd/generate.rs"]
mod generate;
#[path = "etcd/import.rs"]
mod import;
#[path = "etcd/kubernetes.rs"]
mod kubernetes;
#[path = "etcd/oversized.rs"]
mod oversized;
#[path = "cli/process.rs"]
#[allow(dead_code, reason = "the tests of the command line use more of it")]
mod process;
#[path = "etcd/request.rs"]
mod request;
#[path = "etcd/server.rs"]
mod server;
#[path = "etcd/streams.rs"]
mod streams;
#[path = "etcd/three.rs"]
mod three;
#[path = "etcd/watching.rs"]
mod watching;

use differential::{Report, Run, compare};
use generate::{Generator, Past};
use server::Server;
use tokio::sync::{Mutex, MutexGuard};

/// The streams of `make test-clients`.
const SEEDS: [u64; 3] = [1, 2, 3];

/// Requests in each.
const REQUESTS: usize = 3_000;

/// Requests until a mistake made on purpose must have been noticed.
const REQUESTS_OF_A_FAULT: usize = 2_000;

/// How much more memory a server may have after ten thousand streams: less than two kilobytes of each.
const LEFT_BYTES_MAX: u64 = 16 << 20;

/// How many files more a database may have open, of its own accord.
const FILES_MORE_MAX: usize = 8;

/// One comparison at a time: there are few cores, and waiting is bounded.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

/// A number from the environment.
fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: no number")))
}

fn seeds() -> Vec<u64> {
    given("ETCD_SEED").map_or(SEEDS.to_vec(), |seed| vec![seed])
}

fn requests() -> usize {
    given("ETCD_REQUESTS").map_or(REQUESTS, |requests| requests as usize)
}

fn shown(run: Run, report: &Report) -> String {
    let mut text = format!("{} differences; repeat with ETCD_SEED={}\n", report.differences.len(), run.seed);
    for difference in &report.differences {
        text += &difference.to_string();
    }
    text
}

/// Checks that a run met every kind of request, accepted and refused, and watches with events.
fn met_everything(report: &Report) {
    println!("{:?}, {} lines of watches, accepted: {:?}", report.kinds, report.events, report.accepted);
    assert_eq!(report.kinds.len(), 14, "a kind of request never came: {:?}", report.kinds);
    assert!(report.events > 1_000, "watches told only {} lines", report.events);
}

#[test]
fn a_seed_repeats_its_requests_and_another_has_others() {
    let past = Past { revision: 40, compacted: 10, watches: vec![vec![1, 2], vec![3], vec![]] };
    let stream = |seed| {
        let mut generator = Generator::new(seed);
        let requests: Vec<String> = (0..500).map(|_| format!("{:?}", generator.next(&past))).collect();
        requests
    };
    assert_eq!(stream(1), stream(1));
    assert_ne!(stream(1), stream(2));
}

#[test]
fn bytes_are_shown_as_text_and_lists_stay_lists() {
    assert_eq!(
        answer::readable("k: [97, 0, 255], of: [A { v: [] }]"),
        r#"k: "a\x00\xff", of: [A { v: "" }]"#
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn statehouse_answers_as_etcd_does() {
    let _alone = alone().await;
    for seed in seeds() {
        let run = Run { seed, requests: requests(), fault: None };
        let report = compare(&mut Server::etcd(), &mut Server::statehouse(), run).await;
        assert!(report.differences.is_empty(), "{}", shown(run, &report));
        met_everything(&report);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn etcd_does_not_differ_from_etcd() {
    let _alone = alone().await;
    for seed in seeds() {
        let run = Run { seed, requests: requests(), fault: None };
        let report = compare(&mut Server::etcd(), &mut Server::etcd(), run).await;
        assert!(report.differences.is_empty(), "{}", shown(run, &report));
        met_everything(&report);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn a_server_that_ignores_a_part_of_a_request_is_noticed() {
    let _alone = alone().await;
    let mut unnoticed = Vec::new();
    for fault in faults::ALL {
        let run = Run { seed: SEEDS[0], requests: REQUESTS_OF_A_FAULT, fault: Some(fault) };
        let report = compare(&mut Server::etcd(), &mut Server::etcd(), run).await;
        match report.differences.first() {
            Some(difference) => println!("{fault:?}: {difference}"),
            None => unnoticed.push(fault),
        }
    }
    assert!(unnoticed.is_empty(), "nobody noticed {unnoticed:?}");
}

/// Fails with all that differs.
#[track_caller]
fn none(differences: &[String]) {
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
}

#[tokio::test]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn etcdctl_says_the_same_of_both() {
    let _alone = alone().await;
    let (first, second) = (Server::etcd(), Server::statehouse());
    let mut differences = etcdctl::same_commands(&first, &second);
    differences.extend(etcdctl::a_lease(&first, &second));
    none(&differences);
}

#[tokio::test]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn etcdctl_watches_elects_and_sees_members() {
    let _alone = alone().await;
    for server in [Server::etcd(), Server::statehouse()] {
        etcdctl::running_commands(&server);
        etcdctl::own_figures(&server);
    }
}

#[tokio::test]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn etcdutl_reads_and_restores_a_snapshot() {
    let _alone = alone().await;
    for server in [Server::etcd(), Server::statehouse()] {
        etcdctl::a_snapshot(&server);
    }
}

#[tokio::test]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn etcdctl_is_content_with_the_speed() {
    let _alone = alone().await;
    etcdctl::check_perf(&Server::statehouse());
}

#[tokio::test]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn the_go_client_and_its_recipes_work() {
    let _alone = alone().await;
    clients::go(&Server::statehouse());
}

#[tokio::test]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn the_rust_client_works() {
    let _alone = alone().await;
    clients::rust(&Server::statehouse());
}

#[tokio::test]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn the_node_client_works() {
    let _alone = alone().await;
    clients::node(&Server::statehouse());
}

#[tokio::test]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn the_python_clients_work() {
    let _alone = alone().await;
    clients::python(&Server::statehouse());
}

#[tokio::test]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn coredns_answers_the_same_on_both() {
    let _alone = alone().await;
    none(&coredns::differences(&Server::etcd(), &Server::statehouse()));
}

#[tokio::test]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn coredns_answers_every_question_while_nodes_are_killed() {
    let _alone = alone().await;
    coredns::nobody_misses_a_killed_node();
}

#[tokio::test]
#[ignore = "needs Kubernetes' tests: make test-clients"]
async fn kubernetes_storage_tests_pass() {
    let _alone = alone().await;
    for (package, tests_min) in kubernetes::PACKAGES {
        kubernetes::passes(package, tests_min);
    }
}

#[tokio::test]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn messages_that_are_too_large_are_refused_in_etcds_words() {
    let _alone = alone().await;
    none(&oversized::differences(&Server::etcd(), &Server::statehouse()).await);
}

#[tokio::test]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn calls_that_no_client_makes_are_answered_in_etcds_words() {
    let _alone = alone().await;
    let (first, second) = (Server::etcd(), Server::statehouse());
    let (first, second) = (first.channel().await, second.channel().await);
    none(&calls::differences(&calls::unreadable(&first).await, &calls::unreadable(&second).await));
    none(&calls::differences(&calls::unknown(&first).await, &calls::unknown(&second).await));
    none(&calls::differences(&calls::padded(&first).await, &calls::padded(&second).await));
    // Each was asked to put the same number of keys before.
    assert_eq!(calls::half_closed(&first).await, calls::half_closed(&second).await);
}

#[tokio::test]
#[ignore = "needs etcd and its clients: make test-clients"]
async fn the_json_gateway_answers_curl_as_etcd_does() {
    let _alone = alone().await;
    let (first, second) = (Server::etcd(), Server::statehouse());
    none(&gateway::differences(&first, &second));
    gateway::a_watch(&first);
    gateway::a_watch(&second);
    assert_eq!(gateway::pages(&first), gateway::pages(&second));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "ten thousand streams: make test-clients"]
async fn ten_thousand_dropped_streams_leave_nothing_behind() {
    let _alone = alone().await;
    let mut server = Server::statehouse();
    let idle = streams::held(server.process());
    // What is allocated once and kept is there after the first streams.
    streams::open_and_drop(&server, 2_000).await;
    let before = streams::forgotten(server.process(), idle).await;
    streams::open_and_drop(&server, 10_000).await;
    let after = streams::forgotten(server.process(), idle).await;
    server.still_runs();
    println!("idle {idle:?}, before {before:?}, after {after:?}");
    assert!(after.sockets <= idle.sockets, "sockets: {idle:?}, {after:?}");
    assert!(after.others <= before.others + FILES_MORE_MAX, "descriptors: {before:?}, {after:?}");
    let grown = after.memory_bytes.saturating_sub(before.memory_bytes);
    assert!(grown < LEFT_BYTES_MAX, "{grown} bytes more: {before:?}, {after:?}");
}
