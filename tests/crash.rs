//! A node that is killed at random moments under load: every acknowledged command is there afterwards.
//!
//! The test program runs itself as the node to be killed. That child acknowledges each put on its standard
//! output, after the node has; the parent kills it and remembers what it read.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use statehouse::machine::outcome::Outcome;
use statehouse::node::Node;
use statehouse::node::config::NodeConfig;
use statehouse::node::request::Consistency;
use statehouse_kv::Call;
use statehouse_kv::messages::{PutRequest, RangeRequest};

/// How often the node is killed.
const CYCLES: u64 = 100;

/// Puts in flight at a time in the child.
const WRITERS: u64 = 16;

/// Tells the child where its data is.
const DIRECTORY: &str = "STATEHOUSE_CRASH_TEST_DIRECTORY";

/// Seconds that all of it may take.
const SECONDS_MAX: u64 = 240;

#[test]
fn every_acknowledged_command_survives_a_hundred_kills() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return child(Path::new(&directory));
    }
    let begun = Instant::now();
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<u64, u64> = BTreeMap::new();
    let mut kills_under_load = 0;
    for cycle in 0..CYCLES {
        assert!(begun.elapsed() < Duration::from_secs(SECONDS_MAX), "cycle {cycle} after {SECONDS_MAX} s");
        let before = acknowledged.values().sum::<u64>();
        run_and_kill(directory.path(), cycle, &mut acknowledged);
        kills_under_load += u64::from(acknowledged.values().sum::<u64>() > before);
    }
    assert!(kills_under_load > CYCLES / 2, "only {kills_under_load} of {CYCLES} kills met a node under load");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(check(directory.path(), &acknowledged));
}

/// Runs the child until some commands are acknowledged, kills it, and notes what it acknowledged.
fn run_and_kill(directory: &Path, cycle: u64, acknowledged: &mut BTreeMap<u64, u64>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "every_acknowledged_command_survives_a_hundred_kills", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // A different number of acknowledgements each time, so that kills meet every state: also none at all,
    // while starting.
    let wanted = cycle * 37 % 400;
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut note = |line: &str| {
        if let Some((writer, number)) = line.strip_prefix("acknowledged ").and_then(|l| l.split_once(' ')) {
            let (writer, number) = (writer.parse().unwrap(), number.parse().unwrap());
            assert!(acknowledged.insert(writer, number).is_none_or(|before| before < number));
        }
    };
    for _ in 0..wanted {
        match lines.next() {
            Some(line) => note(&line.unwrap()),
            None => panic!("the child of cycle {cycle} ended by itself: {:?}", child.wait()),
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it wrote before it died was acknowledged too; a last line may be cut short.
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    rest.iter().take(rest.len().saturating_sub(1)).for_each(|line| note(line));
}

/// Each writer puts 1, 2, 3 ... into a key of its own, going on where it finds the key.
fn child(directory: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let node = open(directory).await;
        let writers = (0..WRITERS).map(|writer| tokio::spawn(write(node.clone(), writer)));
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
    });
}

async fn write(node: Node, writer: u64) {
    let mut number = read(&node, writer).await;
    loop {
        number += 1;
        let (key, value) = (format!("writer-{writer}").into_bytes(), number.to_string().into_bytes());
        let put = PutRequest { key, value, ..Default::default() }.to_envelope();
        let applied = node.apply("kv", put.into()).await.unwrap();
        assert!(matches!(applied.outcome, Outcome::Ok(_)), "{applied:?}");
        let mut out = std::io::stdout().lock();
        writeln!(out, "acknowledged {writer} {number}").and_then(|()| out.flush()).unwrap();
    }
}

async fn read(node: &Node, writer: u64) -> u64 {
    let get = RangeRequest { key: format!("writer-{writer}").into_bytes(), ..Default::default() };
    let answered = node.query("kv", get.to_envelope().into(), Consistency::Linearizable).await.unwrap();
    let Ok(answer) = answered.outcome else { panic!("an answer was expected: {answered:?}") };
    let found = RangeRequest::answer(&answer).unwrap().kvs.pop();
    found.map_or(0, |kv| String::from_utf8(kv.value).unwrap().parse().unwrap())
}

async fn open(directory: &Path) -> Node {
    // A small distance, so that kills meet flushes and the cutting of the log as well.
    let config =
        NodeConfig { bootstrap: true, flush_bytes: 20_000, ..NodeConfig::new(directory, "crash-test") };
    let node = Node::open(config).await.unwrap();
    if node.machine("kv").is_err() {
        let kv = node.builtin("kv").await.unwrap();
        node.create_machine("kv", kv, Bytes::new()).await.unwrap();
    }
    node
}

async fn check(directory: &Path, acknowledged: &BTreeMap<u64, u64>) {
    let node = open(directory).await;
    assert!(acknowledged.len() as u64 == WRITERS, "writers that were acknowledged: {acknowledged:?}");
    for (&writer, &number) in acknowledged {
        let found = read(&node, writer).await;
        assert!(found >= number, "writer {writer}: {number} was acknowledged, {found} is there");
    }
    node.shutdown().await;
}
