//! What befalls a node at work: a disk that is full or damaged, guests that take their time when it is to
//! stop. How the process ends, what it says, and that nothing acknowledged is lost.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use statehouse::client::Client;
use statehouse::error::Error;
use statehouse::machine::outcome::Outcome;
use statehouse_kv::Call;
use statehouse_kv::messages::{PutRequest, RangeRequest};

use super::process::{Node, component, directory, program, run_with, serve_arguments};
use super::text::attacker;

/// Bytes of a value: large enough that a small disk is full soon.
const VALUE_BYTES: usize = 60_000;

/// A value that does not compress, different for each number.
fn value(number: usize) -> Vec<u8> {
    let mut value = vec![0; VALUE_BYTES];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut value);
    value
}

/// Puts values until the node fails, and tells how many were acknowledged and what came then.
async fn put_until_it_fails(node: &Node) -> (usize, Error) {
    let client = Client::new([&node.client]).expect("an address");
    for number in 0..10_000 {
        let key = format!("k{number}").into_bytes();
        let put = PutRequest { key, value: value(number), ..Default::default() }.to_envelope();
        match client.apply("kv", put).await {
            Ok(applied) => assert!(matches!(applied.outcome, Outcome::Ok(_)), "{applied:?}"),
            Err(error) => return (number, error),
        }
    }
    panic!("10,000 puts did not fill the disk");
}

async fn check_values(node: &Node, count: usize) {
    let client = Client::new([&node.client]).expect("an address");
    for number in 0..count {
        let get = RangeRequest { key: format!("k{number}").into_bytes(), ..Default::default() };
        let answered = client.query("kv", get.to_envelope(), Default::default()).await.expect("answered");
        let found = RangeRequest::answer(&answered.outcome.expect("no refusal")).expect("an answer");
        assert_eq!(found.kvs.len(), 1, "k{number} of {count} that were acknowledged is gone");
        assert!(found.kvs[0].value == value(number), "k{number} has another value");
    }
}

/// A data directory with a machine `kv`, left by a node that stopped.
fn prepare(data: &Path) {
    let node = Node::serve(data, &[]);
    node.run(["machine", "create", "kv", "--module", "builtin:kv"]).ok();
    node.signal(Signal::TERM);
    assert_eq!(node.end().0, Some(0));
}

/// A node on a full disk stops with 1 and the reason; every acknowledged command is there when it starts with
/// space again.
async fn fill(node: Node, words: &[&str]) -> usize {
    let (acknowledged, error) = put_until_it_fails(&node).await;
    assert!(acknowledged > 3, "the disk was full at put {acknowledged}: the test shows nothing");
    assert!(matches!(error, Error::Unknown(_) | Error::Fault(_)), "{error:?}");
    let (code, told) = node.end();
    assert_eq!(code, Some(1), "{told}");
    for word in words.iter().chain(&["what it acknowledged is on disk"]) {
        assert!(told.contains(word), "{word:?} is not in: {told}");
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_files_may_not_grow_stops_and_has_everything_afterwards() {
    let directory = directory();
    prepare(directory.path());
    // What an ordinary user can do to make writing fail: no file may be larger than 2 MiB.
    let mut command = Command::new("sh");
    let limited = "ulimit -f 4096; trap '' XFSZ; exec \"$0\" \"$@\"";
    command.args(["-c", limited, env!("CARGO_BIN_EXE_statehouse")]);
    serve_arguments(&mut command, directory.path());
    let acknowledged = fill(Node::start(&mut command), &["File too large", "log database"]).await;
    let node = Node::serve(directory.path(), &[]);
    check_values(&node, acknowledged).await;
}

/// A node that is started where the shell says so much of open files.
fn serve_limited(data: &Path, limit: &str) -> Node {
    let mut command = Command::new("sh");
    let limited = format!("ulimit {limit}; exec \"$0\" \"$@\"");
    command.args(["-c", &limited, env!("CARGO_BIN_EXE_statehouse")]);
    serve_arguments(&mut command, data);
    Node::start(&mut command)
}

fn connect(node: &Node, connections: usize) -> Vec<TcpStream> {
    (0..connections).map(|_| TcpStream::connect(&node.client).expect("it listens")).collect()
}

#[test]
fn a_shell_that_allows_few_open_files_does_not_keep_clients_out() {
    let directory = directory();
    let node = serve_limited(directory.path(), "-Sn 128");
    let _connections = connect(&node, 256);
    node.run(["status"]).ok();
}

#[test]
fn clients_that_take_every_connection_do_not_end_the_node() {
    let directory = directory();
    let node = serve_limited(directory.path(), "-n 300");
    let connections = connect(&node, 400);
    node.run(["status", "--timeout", "1"]).failed(1, &[&node.client]);
    assert_eq!(node.page("/healthz"), (200, "ok\n".into()));
    drop(connections);
    node.run(["status"]).ok();
    node.signal(Signal::TERM);
    let (code, told) = node.end();
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(told.matches("there are 150 connections").count(), 1, "{told}");
}

/// A small file system in memory, unmounted when the test ends.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None: whoever runs the tests may not mount.
    fn mount(at: &Path, size: &str) -> Option<SmallDisk> {
        fs::create_dir_all(at).expect("a directory");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then(|| SmallDisk(at.to_owned()))
    }

    fn resize(&self, size: &str) {
        let mut mount = Command::new("mount");
        let done = mount.args(["-o", &format!("remount,size={size}")]).arg(&self.0).status();
        assert!(done.expect("mount runs").success(), "the small disk cannot be made larger");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A disk that is still in use goes when its last user does.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_a_full_disk_stops_and_has_everything_when_there_is_space_again() {
    let directory = directory();
    let data = directory.path().join("disk");
    let Some(disk) = SmallDisk::mount(&data, "12m") else {
        eprintln!("SKIPPED: mounting a small disk needs more rights than this user has (try it as root)");
        return;
    };
    prepare(&data);
    let acknowledged = fill(Node::serve(&data, &[]), &["No space left on device"]).await;
    // Still full: it does not start, and says why.
    let mut again = program();
    serve_arguments(&mut again, &data);
    let done = run_with(&mut again, b"");
    assert!(done.code == 1 && done.stderr.contains("No space left on device"), "{done:?}");
    disk.resize("100m");
    let node = Node::serve(&data, &[]);
    check_values(&node, acknowledged).await;
    node.run(["kv", "put", "after", "all"]).ok();
    drop(node);
}

#[test]
fn a_node_on_a_nearly_full_disk_spends_nothing_that_it_does_not_need() {
    let directory = directory();
    let data = directory.path().join("disk");
    let Some(_disk) = SmallDisk::mount(&data, "48m") else {
        eprintln!("SKIPPED: mounting a small disk needs more rights than this user has (try it as root)");
        return;
    };
    prepare(&data);
    let node = Node::serve(&data, &[]);
    // Longer than a node waits until it lays out its log's files, which would not fit.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        node.run(["kv", "put", "key", "value"]).ok();
        std::thread::sleep(Duration::from_millis(50));
    }
    node.signal(Signal::TERM);
    assert_eq!(node.end().0, Some(0));
}

/// Flips a byte of the tenth value of [`filled`], in each file in `directory` that has it: a file of the log
/// may also hold blanks, or what it held in an earlier life, and its content moves when it is retired.
fn flip_a_byte(directory: &Path) {
    let value = value(9);
    let mut flipped = 0;
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("readable").path();
        let content = fs::read(&path).unwrap_or_default();
        // A file of the log cuts what it holds into pieces of 32 KiB: one of these is whole.
        let finder = |at: usize| content.windows(64).position(|window| *window == value[at..at + 64]);
        if let Some(at) = [10_000, 20_000, 30_000].into_iter().find_map(finder) {
            let file = fs::OpenOptions::new().write(true).open(&path).expect("a file");
            file.write_all_at(&[content[at] ^ 0x10], at as u64).expect("writable");
            flipped += 1;
        }
    }
    assert!(flipped > 0, "nothing was damaged");
}

/// A node after some puts.
async fn filled(data: &Path) -> Node {
    let node = Node::serve(data, &[]);
    node.run(["machine", "create", "kv", "--module", "builtin:kv"]).ok();
    let client = Client::new([&node.client]).expect("an address");
    for number in 0..20 {
        let key = format!("k{number}").into_bytes();
        let put = PutRequest { key, value: value(number), ..Default::default() }.to_envelope();
        client.apply("kv", put).await.expect("applied");
    }
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_the_state_is_never_an_answer_and_ends_the_node_with_1() {
    let directory = directory();
    let node = filled(directory.path()).await;
    node.signal(Signal::TERM);
    assert_eq!(node.end().0, Some(0));
    flip_a_byte(&directory.path().join("state"));
    let mut serve = program();
    serve_arguments(&mut serve, directory.path());
    // A compaction at the start may come upon the damage before anybody asks.
    let (code, told) = match Node::attempt(&mut serve, Stdio::piped(), |_| {}) {
        Ok(node) => ask_until_it_ends(node).await,
        Err(ended) => ended,
    };
    assert_eq!(code, Some(1), "{told}");
    // Nobody is left waiting for what cannot come.
    assert!(!told.contains("requests are still under way"), "{told}");
    assert!(told.contains("state database") && told.contains("orruption"), "{told}");
}

/// Asks a node with a damaged value for all of [`filled`] until it fails: no answer may be wrong. Then: how
/// it ended.
async fn ask_until_it_ends(node: Node) -> (Option<i32>, String) {
    let client = Client::new([&node.client]).expect("an address");
    let mut failed = None;
    for number in 0..20 {
        let get = RangeRequest { key: format!("k{number}").into_bytes(), ..Default::default() };
        match client.query("kv", get.to_envelope(), Default::default()).await {
            Ok(answered) => {
                let found = RangeRequest::answer(&answered.outcome.expect("no refusal")).expect("an answer");
                assert!(found.kvs[0].value == value(number), "k{number} has another value");
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let noticed = Instant::now();
    let error = failed.expect("the flipped byte was not noticed").to_string();
    // The node may come upon the damage by itself, and end while it is asked.
    assert!(error.contains("state database") || error.contains("connection"), "{error}");
    let ended = node.end();
    assert!(noticed.elapsed() < Duration::from_secs(5), "it ended after {:?}", noticed.elapsed());
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_the_log_is_told_at_the_start() {
    let directory = directory();
    // A node that stops cleanly has little left in its log.
    filled(directory.path()).await.kill();
    flip_a_byte(&directory.path().join("log"));
    let mut serve = program();
    serve_arguments(&mut serve, directory.path());
    run_with(&mut serve, b"").failed(1, &["log database", "damaged", "backup"]);
}

#[test]
fn a_data_directory_of_a_newer_format_is_left_alone() {
    let directory = directory();
    prepare(directory.path());
    let path = directory.path().join("identity");
    let text = fs::read_to_string(&path).expect("an identity");
    let line = text.lines().next().expect("a line").replace("\"format\":", "\"format\":9");
    assert!(!text.starts_with(&line), "there was no format to change");
    let newer = format!("{line}\nblake3 {}\n", blake3::hash(line.as_bytes()).to_hex());
    fs::write(&path, &newer).expect("writable");
    let mut serve = program();
    serve_arguments(&mut serve, directory.path());
    run_with(&mut serve, b"").failed(1, &["format 9", "newer version"]);
    assert_eq!(fs::read_to_string(&path).expect("an identity"), newer);
}

/// A node with a machine `attacker` whose guest may loop for minutes, and a client that has it do so.
fn looping(directory: &Path, stop_wait_ms: u32) -> (Node, std::thread::JoinHandle<super::process::Done>) {
    let settings = directory.join("s.toml");
    let text = format!(
        "[limits]\nstop_wait_ms = {stop_wait_ms}\n[guests]\ninput_fuel = 1_000_000_000_000\nquery_fuel = \
         1_000_000"
    );
    fs::write(&settings, text).expect("writable");
    let guest = directory.join("attacker.wasm");
    fs::write(&guest, attacker()).expect("writable");
    let node = Node::serve(&directory.join("data"), &["--config", settings.to_str().expect("text")]);
    node.run(["machine", "create", "attacker", "--module", guest.to_str().expect("text")]).ok();
    let mut apply = node.command(["apply", "attacker", "loop"]);
    let client = std::thread::spawn(move || run_with(&mut apply, b""));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !node.page("/metrics").1.contains("statehouse_commands_total 1\n") {
        assert!(Instant::now() < deadline, "the command did not arrive");
        std::thread::sleep(Duration::from_millis(20));
    }
    (node, client)
}

#[test]
fn a_stopping_node_does_not_wait_for_a_guest_longer_than_configured() {
    let directory = directory();
    let (node, client) = looping(directory.path(), 700);
    let begun = Instant::now();
    node.signal(Signal::TERM);
    let (code, told) = node.end();
    let took = begun.elapsed();
    assert_eq!(code, Some(0), "{told}");
    assert!(took > Duration::from_millis(600), "it did not wait at all: {took:?}");
    assert!(took < Duration::from_secs(10), "it waited for {took:?}: {told}");
    assert!(told.contains("guests are still at work"), "{told}");
    let done = client.join().expect("a client");
    assert!(done.code == 1 && done.stdout.is_empty(), "the command is not told to be done: {done:?}");
    // It is in the log, and the machine keeps its fuel: the next start is as busy with it, and serves others.
    let node = Node::serve(&directory.path().join("data"), &[]);
    let shown = node.run(["machine", "show", "attacker"]);
    let engine = node.run(["--json", "status"]).json()["engine"].clone();
    assert!(shown.ok().contains("1000000000000 for each input"), "{shown:?}");
    assert!(shown.ok().contains(engine.as_str().expect("text")), "{shown:?}");
    let shown = node.run(["--json", "machine", "show", "attacker"]).json();
    assert!(shown["input_fuel"] == 1_000_000_000_000_u64 && shown["engine"] == engine, "{shown}");
    node.run(["machine", "create", "n", "--module", &component("notes")]).ok();
}

#[test]
fn a_second_signal_ends_the_node_at_once() {
    let directory = directory();
    let (node, client) = looping(directory.path(), 600_000);
    node.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(200));
    let begun = Instant::now();
    node.signal(Signal::INT);
    let (code, told) = node.end();
    assert_eq!(code, Some(130), "{told}");
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    assert_eq!(client.join().expect("a client").code, 1);
}

#[test]
fn a_module_that_takes_too_long_to_compile_is_refused_with_the_limit() {
    let directory = directory();
    let settings = directory.path().join("s.toml");
    fs::write(&settings, "[guests]\ncompile_seconds_max = 1\n").expect("writable");
    let data = directory.path().join("data");
    let node = Node::serve(&data, &["--config", settings.to_str().expect("text")]);
    let bomb = directory.path().join("bomb.wasm");
    fs::write(&bomb, super::text::slow_component(4, 50_000)).expect("writable");
    let push = ["module", "push", bomb.to_str().expect("text")];
    node.run(push).failed(1, &["more than 1 s", "compile_seconds_max"]);
    node.run(["machine", "create", "n", "--module", &component("notes")]).ok();
    assert_eq!(fs::read_dir(data.join("modules")).expect("a directory").count(), 2, "notes, and `compiled`");
}

#[test]
fn a_node_whose_standard_error_nobody_reads_serves_on() {
    let directory = directory();
    let (nobody, pipe) = std::io::pipe().expect("a pipe");
    drop(nobody);
    let mut serve = program();
    serve_arguments(&mut serve, &directory.path().join("data"));
    let node = Node::start_telling(&mut serve, pipe.into());
    let guest = directory.path().join("attacker.wasm");
    fs::write(&guest, attacker()).expect("writable");
    node.run(["machine", "create", "attacker", "--module", guest.to_str().expect("text")]).ok();
    // Each is a line in the node's log, written by the thread that applies.
    for _ in 0..5 {
        node.run(["apply", "attacker", "trap"]).failed(1, &["trapped"]);
    }
    node.run(["apply", "attacker", "x"]).ok();
    node.signal(Signal::TERM);
    assert_eq!(node.end().0, Some(0));
}
