//! Real processes prove the cluster: three of the program under test, under load, killed, stopped, cut off,
//! restarted and damaged, with what clients were told checked for linearizability, what watchers saw against
//! the history, and who wrote under a lock against who had it.
//!
//!     CLUSTER_CYCLES=1000 CLUSTER_SEED=7 cargo test --release --test lockstep cycles
//!
//! runs more cycles than `make test` does. A seed repeats which faults come when; what the processes make of
//! it is up to the system.

#![cfg(target_os = "linux")]

#[path = "lockstep/chance.rs"]
mod chance;
#[path = "lockstep/clocks.rs"]
mod clocks;
#[path = "lockstep/cluster.rs"]
mod cluster;
#[path = "lockstep/faults.rs"]
mod faults;
#[path = "lockstep/history.rs"]
mod history;
#[path = "lockstep/links.rs"]
mod links;
#[path = "lockstep/load.rs"]
mod load;
#[path = "lockstep/observers.rs"]
mod observers;
#[path = "cli/process.rs"]
#[allow(dead_code, reason = "the tests of the command line use more of it")]
mod process;
#[path = "lockstep/process_ids.rs"]
mod process_ids;
#[path = "lockstep/sessions.rs"]
mod sessions;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use chance::Chance;
use cluster::{Cluster, MACHINE, NODES};
use faults::{Fault, go_on};
use links::Cut;
use load::Load;
use observers::Observers;
use process::{program, run_with};
use sessions::{Askers, Counters};
use statehouse::id::Index;
use statehouse::node::request::Consistency;
use statehouse_kv::Call;
use statehouse_kv::messages::PutRequest;
use tokio::sync::{Mutex, MutexGuard};

/// Cycles in `make test`.
const CYCLES: u64 = 30;

/// Faults in a cycle. One, so that 30 cycles have each kind three times and end soon.
const FAULTS: usize = 1;

/// Keys in a cycle.
const KEYS: u64 = 12;

/// One cluster at a time: some tests measure time, and there are few cores.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, which is no number")))
}

#[tokio::test(flavor = "multi_thread")]
async fn cycles_of_faults_lose_nothing_and_every_history_is_linearizable() {
    let _alone = alone().await;
    let cycles = from_environment("CLUSTER_CYCLES").unwrap_or(CYCLES);
    let seed = from_environment("CLUSTER_SEED").unwrap_or_else(|| statehouse::time::seed() % 1_000_000);
    eprintln!(
        "to repeat this: CLUSTER_CYCLES={cycles} CLUSTER_SEED={seed} cargo test --release --test lockstep \
         cycles"
    );
    let mut chance = Chance::new(seed);
    let mut cluster = Cluster::start().await;
    let (mut come, mut met) = (Vec::new(), BTreeMap::new());
    let mut loads = Vec::new();
    let observers = Observers::start(&cluster, &mut chance).await;
    for cycle in 0..cycles {
        let begun = Instant::now();
        // All faults in turn, each time in another order.
        if come.len() < FAULTS {
            let mut next = Fault::ALL;
            chance.shuffle(&mut next);
            come.extend(next);
        }
        let faults: Vec<Fault> = come.drain(..FAULTS).collect();
        let mut load = Load::start(&cluster, cycle * KEYS..(cycle + 1) * KEYS, &mut chance);
        for fault in &faults {
            let begun = Instant::now();
            fault.befall(&mut cluster, &mut load, &mut chance).await;
            *met.entry(*fault).or_insert(0) += 1;
            eprintln!("cycle {cycle}: {fault:?} in {:.1} s", begun.elapsed().as_secs_f64());
        }
        load.end().await;
        let resting = observers.rest().await;
        cluster.together().await;
        drop(resting);
        load.read_everywhere(&cluster).await;
        if let Err(why) = load.recorder.check() {
            panic!("cycle {cycle} with {faults:?}: {why}");
        }
        eprintln!(
            "cycle {cycle}: {} operations, {} of unknown fate, in {:.1} s",
            load.recorder.recorded(),
            load.recorder.unknown_fates(),
            begun.elapsed().as_secs_f64()
        );
        loads.push(load);
    }
    let (revisions, written, refused) = observers.end(&cluster).await;
    eprintln!("{revisions} events seen by each watcher; {written} writes under the lock, {refused} refused");
    assert!(written > 0 && refused > 0, "the lock was always, or never, there for its holder");
    // What was written in one cycle must have outlived all faults of those after it.
    for (cycle, load) in loads.iter().enumerate() {
        load.read_everywhere(&cluster).await;
        load.recorder.check().unwrap_or_else(|why| panic!("cycle {cycle}, read after the last: {why}"));
    }
    let recorded: usize = loads.iter().map(|load| load.recorder.recorded()).sum();
    let unknown: u64 = loads.iter().map(|load| load.recorder.unknown_fates()).sum();
    eprintln!("{recorded} operations, {unknown} of unknown fate; faults: {met:?}");
    if cycles as usize * FAULTS >= Fault::ALL.len() + FAULTS {
        assert_eq!(met.len(), Fault::ALL.len(), "some faults did not come: {met:?}");
    }
}

/// What the cycles rely on, shown with a node that may answer from its own copy: it does so behind a cut, and
/// the checker catches it; asked for a linearizable read, it rather answers nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_a_copy_behind_a_cut_is_stale_and_caught_and_no_linearizable_read_is() {
    let _alone = alone().await;
    let cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % NODES;
    let (honest, healed) = (Load::idle(0..1), Load::idle(0..1));
    honest.write_once(&cluster, leader, 0).await.expect("all is well");
    cluster.together().await;
    let others = (0..NODES).filter(|&node| node != follower);
    cluster.links.cut(others.flat_map(|node| [(follower, node), (node, follower)]), Cut::Silent);
    let value = honest.write_once(&cluster, leader, 0).await.expect("a majority is left");
    let linearizable = honest.read_once(&cluster, follower, 0, Consistency::Linearizable).await;
    assert!(linearizable.is_none_or(|found| found == value), "a stale read: {linearizable:?} after {value}");
    honest.recorder.check().unwrap_or_else(|why| panic!("{why}"));
    let own = Consistency::Local { min_index: Index(0) };
    let stale = honest.read_once(&cluster, follower, 0, own).await;
    assert!(stale.is_some_and(|found| found != value), "the copy was not cut off: {stale:?}");
    let caught = honest.recorder.check().expect_err("it was asked for a copy, and got an old one");
    assert!(caught.contains("not linearizable"), "{caught}");
    cluster.links.heal();
    let found = healed.read_once(&cluster, follower, 0, Consistency::Linearizable).await;
    assert_eq!(found, Some(value));
}

/// The leader is killed again and again, links are cut, all nodes are restarted: what clients count through
/// sessions is counted once.
#[tokio::test(flavor = "multi_thread")]
async fn a_counter_is_what_its_sessions_were_told_whatever_befalls_the_nodes() {
    let _alone = alone().await;
    let (mut chance, mut cluster) = (Chance::new(4), Cluster::start().await);
    let mut load = Load::start(&cluster, 0..KEYS, &mut chance);
    let mut counters = Counters::start(&cluster).await;
    let faults = [
        Fault::KillLeader,
        Fault::IsolateLeader,
        Fault::KillLeader,
        Fault::CutOneLink,
        Fault::KillAll,
        Fault::DeafenLeader,
        Fault::PauseLeader,
        Fault::KillLeader,
    ];
    for fault in faults {
        let begun = Instant::now();
        fault.befall(&mut cluster, &mut load, &mut chance).await;
        counters.go_on().await;
        let repeated = counters.repeated();
        eprintln!("{fault:?} in {:.1} s; sent again so far: {repeated}", begun.elapsed().as_secs_f64());
    }
    load.end().await;
    let acknowledged = counters.end().await;
    cluster.together().await;
    assert!(counters.repeated() > 0, "no command met a fault");
    assert_eq!(sessions::counted(&cluster).await, acknowledged);
    load.recorder.check().unwrap_or_else(|why| panic!("{why}"));
}

/// The leader dies while a follower has commands under way to it: the follower sends those of sessions again
/// by itself, and they count once.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_sends_a_sessions_command_again_by_itself_and_it_counts_once() {
    const ROUNDS_MAX: usize = 5;
    let _alone = alone().await;
    let (mut cluster, mut acknowledged) = (Cluster::start().await, 0);
    for _ in 0..ROUNDS_MAX {
        let leader = cluster.leader().await;
        let asked = (leader + 1) % NODES;
        let askers = Askers::start(&cluster, asked);
        askers.go_on().await;
        cluster.kill(&[leader]);
        askers.go_on().await;
        acknowledged += askers.end().await;
        let sent_again = sessions::sent_again_by(&cluster, asked);
        cluster.begin(&[leader]);
        cluster.together().await;
        assert_eq!(sessions::counted(&cluster).await, acknowledged);
        if sent_again > 0 {
            return;
        }
    }
    panic!("no command was under way to a leader that was killed");
}

/// An hour, in seconds.
const HOUR_S: i64 = 3_600;

#[tokio::test(flavor = "multi_thread")]
async fn clocks_an_hour_apart_harm_nobody() {
    let _alone = alone().await;
    let (mut chance, shifts_s) = (Chance::new(3), [0, HOUR_S, -HOUR_S]);
    let mut cluster = Cluster::start_with_clocks(shifts_s).await;
    let apart_s = (cluster.began_s(1) - cluster.began_s(2)).rem_euclid(24 * HOUR_S);
    assert!((apart_s - 2 * HOUR_S).abs() < HOUR_S / 2, "the clocks were not shifted: {apart_s} s");
    let mut load = Load::start(&cluster, 0..KEYS, &mut chance);
    // Each leads after each other.
    for leader in [0, 1, 2, 1, 0, 2, 0] {
        if cluster.leader().await != leader {
            faults::transfer(&cluster, leader).await;
        }
        go_on(&load, "only the clocks are wrong").await;
    }
    Fault::KillLeader.befall(&mut cluster, &mut load, &mut chance).await;
    load.end().await;
    cluster.together().await;
    load.read_everywhere(&cluster).await;
    load.recorder.check().unwrap_or_else(|why| panic!("{why}"));
}

/// How long clients may have to wait for a write after the leader was killed, at the default settings.
const FAILOVER_MAX: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_missed_for_less_than_two_seconds_in_the_median() {
    const ROUNDS: u64 = 5;
    let _alone = alone().await;
    let (mut chance, mut cluster) = (Chance::new(1), Cluster::start().await);
    let mut load = Load::start(&cluster, 0..KEYS, &mut chance);
    let mut took = Vec::new();
    for round in 0..ROUNDS {
        let leader = cluster.leader().await;
        go_on(&load, "nothing befell the nodes").await;
        cluster.kill(&[leader]);
        let killed = Instant::now();
        // Sent after the leader's end, so that no answer of its own counts. One that was passed on to it may
        // be told that its fate is unknown.
        let asked = (0..NODES).filter(|&node| node != leader).map(|node| {
            let (client, key) = (cluster.client_of(node), format!("round-{round}").into_bytes());
            let put = PutRequest { key, value: b"x".to_vec(), ..Default::default() }.to_envelope();
            Box::pin(async move {
                loop {
                    if let Ok(applied) = client.apply(MACHINE, put.clone()).await {
                        return applied;
                    }
                    assert!(killed.elapsed() < cluster::PATIENCE, "two of three go on");
                }
            })
        });
        let (applied, ..) = futures_util::future::select_all(asked).await;
        took.push(killed.elapsed());
        assert!(matches!(applied.outcome, statehouse::machine::outcome::Outcome::Ok(_)), "{applied:?}");
        cluster.begin(&[leader]);
        cluster.together_under_load().await;
    }
    load.end().await;
    load.recorder.check().unwrap_or_else(|why| panic!("{why}"));
    took.sort();
    // Two that stand for election at the same moment have to do it again: one round may take longer.
    let median = took[took.len() / 2];
    eprintln!("first write after the leader's end: median {median:?} of {took:?}");
    assert!(median < FAILOVER_MAX, "more than {FAILOVER_MAX:?}: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_costs_no_client_an_error() {
    let _alone = alone().await;
    let (mut chance, mut cluster) = (Chance::new(2), Cluster::start().await);
    let mut load = Load::start(&cluster, 0..KEYS, &mut chance);
    for node in (0..NODES).chain([cluster.leader().await]) {
        go_on(&load, "nothing befell the nodes").await;
        cluster.stop(node);
        go_on(&load, "one node of three is being restarted").await;
        cluster.begin(&[node]);
        cluster.together_under_load().await;
    }
    go_on(&load, "all nodes are there again").await;
    load.end().await;
    let recorder = &load.recorder;
    let errors = recorder.errors();
    assert!(errors.is_empty(), "{} of {} requests failed: {errors:#?}", errors.len(), recorder.recorded());
    recorder.check().unwrap_or_else(|why| panic!("{why}"));
    cluster.together().await;
}

/// Bytes of a value that fills disks.
const VALUE_BYTES: usize = 60_000;

/// A value that does not compress, different for each number.
fn value(number: usize) -> Vec<u8> {
    let mut value = vec![0; VALUE_BYTES];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut value);
    value
}

/// Puts so many values by way of `node`: each is acknowledged.
async fn fill(cluster: &Cluster, node: usize, values: usize) {
    let client = cluster.client_of(node);
    for number in 0..values {
        let key = format!("large-{number}").into_bytes();
        let put = PutRequest { key, value: value(number), ..Default::default() };
        client.apply(MACHINE, put.to_envelope()).await.expect("the others go on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_its_node_and_no_other() {
    const FILE_BYTES_MAX: u64 = 2 << 20;
    const ROUNDS_MAX: usize = 200;
    let _alone = alone().await;
    let mut cluster = Cluster::start().await;
    let full = (cluster.leader().await + 1) % NODES;
    cluster.stop(full);
    let mut process = cluster.begin_on_full_disk(full, FILE_BYTES_MAX);
    let leader = cluster.leader().await;
    let mut ended = None;
    for _ in 0..ROUNDS_MAX {
        fill(&cluster, leader, 5).await;
        ended = process.try_wait().expect("our own child");
        if ended.is_some() {
            break;
        }
    }
    let (ended, told) = (ended.expect("its disk is full"), cluster.told(full));
    assert_eq!(ended.code(), Some(1), "{told}");
    assert!(told.contains("File too large") && told.contains("see to the disk"), "{told}");
    fill(&cluster, leader, 5).await;
    // With space again it is one of three as before.
    cluster.begin(&[full]);
    cluster.together().await;
}

/// Flips a byte of a value where a file in `directory` holds it.
fn flip_a_byte(directory: &Path, value: &[u8]) {
    let part = &value[VALUE_BYTES / 2..][..32];
    let mut flipped = 0;
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("readable").path();
        let bytes = fs::read(&path).expect("a file");
        if let Some(place) = bytes.windows(part.len()).position(|window| window == part) {
            let file = fs::OpenOptions::new().write(true).open(&path).expect("a file");
            file.write_all_at(&[bytes[place] ^ 0x10], place as u64).expect("writable");
            flipped += 1;
        }
    }
    assert!(flipped > 0, "nothing was damaged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_keeps_its_node_out_and_the_others_go_on() {
    const PUTS: usize = 20;
    let _alone = alone().await;
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let damaged = (leader + 1) % NODES;
    fill(&cluster, leader, PUTS).await;
    cluster.together().await;
    // A node that stops cleanly has little left in its log.
    cluster.kill(&[damaged]);
    flip_a_byte(&cluster.data(damaged).join("log"), &value(PUTS / 2));
    let mut serve = program();
    cluster.serve(damaged, &mut serve);
    run_with(&mut serve, b"").failed(1, &["log database", "damaged", "member remove"]);
    fill(&cluster, leader, PUTS).await;
    // What is lost is lost: the node is let go, and its computer joins with an empty directory.
    let client = cluster.client_of(leader);
    client.remove_member(cluster.name(damaged)).await.expect("two of three let it go");
    cluster::until("it is let go", async || {
        client.members().await.is_ok_and(|(_, members)| members.len() == NODES - 1)
    })
    .await;
    cluster.empty(damaged);
    cluster.begin(&[damaged]);
    cluster.together().await;
}
