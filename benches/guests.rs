//! What machines in each language cost on a node: the counter that `statehouse module new --world stored`
//! writes, and the key-value machine with values of 256 bytes.
//!
//! `cargo bench --profile release --bench guests -- [NAME...]`: only those of `kv` and the languages that are
//! named. A language whose tools are not installed is left out, and said to be: `tests/guests/install` gets
//! what is not there. Each has a node of its own, a process on this computer.

#[path = "process/mod.rs"]
mod process;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use process::{Node, program};
use statehouse::client::Client;
use statehouse::id::Digest;
use statehouse::machine::batch::Operation;
use statehouse::machine::outcome::Outcome;
use statehouse::node::request::Consistency;
use statehouse::trial::{Host, Inspected, START_MS, engine};
use statehouse::wasm::{Codegen, Compiler};
use statehouse_kv::Call;
use statehouse_kv::messages::PutRequest;

const LANGUAGES: [&str; 7] = ["rust", "c", "zig", "go", "js", "ts", "python"];
/// Inputs of a batch.
const BATCH: usize = 100;
/// Batches that are timed in memory.
const BATCHES: usize = 100;
/// Inputs that are timed one by one, after the first.
const WARM: usize = 200;
/// How long the node is loaded.
const LOADED: Duration = Duration::from_secs(4);
/// Machines that are made to see what one takes.
const MACHINES: usize = 20;
/// Larger than what any compiler needs.
const PATIENCE: Duration = Duration::from_secs(300);

/// A machine that is measured.
struct Subject {
    name: String,
    component: Bytes,
    /// What it is configured with.
    configuration: &'static str,
    /// The commands, by number.
    command: fn(u64) -> Bytes,
    query: Bytes,
}

fn put(number: u64) -> Bytes {
    let key = format!("key{:05}", number % 10_000).into_bytes();
    PutRequest { key, value: vec![b'v'; 256], ..Default::default() }.to_envelope().into()
}

fn kv() -> Subject {
    let component = Bytes::from_static(include_bytes!("../guests/kv/kv.component.wasm"));
    let query = statehouse_kv::messages::StatusRequest::default().to_envelope().into();
    Subject { name: "kv (rust)".into(), component, configuration: "", command: put, query }
}

/// Makes a project of the language and builds it.
fn counter(language: &str, parent: &Path) -> Result<Subject, String> {
    let run = |arguments: &[&str], directory: &Path| {
        let mut command = program();
        command.arg("module").args(arguments).current_dir(directory).env("PATH", path());
        // The settings of this build are not the project's.
        for name in ["CARGO_TARGET_DIR", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC", "RUSTC_WRAPPER"] {
            command.env_remove(name);
        }
        let output = command.output().expect("the program starts");
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    };
    run(&["new", language, "--lang", language, "--world", "stored"], parent)?;
    let project = parent.join(language);
    run(&["build"], &project)?;
    let component = std::fs::read(project.join(format!("{language}.component.wasm")));
    Ok(Subject {
        name: language.into(),
        component: component.expect("it was built").into(),
        configuration: "0",
        command: |_| Bytes::from_static(b"1"),
        query: Bytes::new(),
    })
}

/// `PATH` with the tools that `tests/guests/install` gets.
fn path() -> std::ffi::OsString {
    let home = std::env::var_os("HOME").map(PathBuf::from).expect("a home");
    let tools =
        std::env::var_os("STATEHOUSE_TOOLS").map_or(home.join(".cache/statehouse-tools"), PathBuf::from);
    let ours = ["py/bin", "js/node_modules/.bin"].map(|folder| tools.join("guests").join(folder));
    let path = std::env::var_os("PATH").expect("a path");
    std::env::join_paths(ours.into_iter().chain(std::env::split_paths(&path))).expect("no colons in them")
}

/// In memory, without a node: what an input of a batch takes.
fn in_memory_us(subject: &Subject) -> f64 {
    let inspected = Inspected::of(&subject.component, &Compiler::InProcess).expect("it is sound");
    let engine = engine(Codegen::Optimised).expect("an engine");
    let module = inspected.load(&engine, &Compiler::InProcess).expect("it loads");
    let mut host = Host::of_module(&module, inspected.digest, START_MS);
    host.create(subject.configuration.into()).expect("it is created");
    let mut took_us = Vec::new();
    for batch in 0..BATCHES {
        let numbers = (batch * BATCH) as u64..;
        let commands = numbers.take(BATCH).map(|number| Operation::command((subject.command)(number)));
        let commands: Vec<Operation> = commands.collect();
        let begun = Instant::now();
        let done = host.submit(commands).expect("it is applied");
        took_us.push(begun.elapsed().as_secs_f64() * 1e6 / BATCH as f64);
        assert!(done.outcomes.iter().all(|at| matches!(at.outcome, Outcome::Ok(_))), "{done:?}");
    }
    median(took_us)
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Puts to another machine until it is told to stop: the longest that one took.
async fn use_another(client: Client, stop: Arc<AtomicBool>) -> Duration {
    let mut longest = Duration::ZERO;
    for number in 0.. {
        let begun = Instant::now();
        client.apply("kv", put(number)).await.expect("applied");
        longest = longest.max(begun.elapsed());
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    longest
}

async fn apply(client: &Client, machine: &str, command: Bytes) {
    let outcome = client.apply(machine, command).await.expect("applied").outcome;
    assert!(matches!(outcome, Outcome::Ok(_)), "{outcome:?}");
}

/// Batches of a hundred through one stream: inputs a second, and the node's CPU for each.
async fn load(node: &Node, client: &Client, subject: &Subject) -> (f64, f64) {
    let (sender, mut answers) = client.apply_stream().await.expect("a stream");
    let (before_us, begun) = (node.cpu_us(), Instant::now());
    let (mut sent, mut answered) = (0, 0);
    while begun.elapsed() < LOADED || answered < sent {
        while sent - answered < BATCH as u64 && begun.elapsed() < LOADED {
            sender.send(sent, "measured", (subject.command)(sent)).await.expect("sent");
            sent += 1;
        }
        let (_, result) = answers.next().await.expect("the stream goes on").expect("an answer for each");
        assert!(matches!(result.expect("done").outcome, Outcome::Ok(_)));
        answered += 1;
    }
    let rate = answered as f64 / begun.elapsed().as_secs_f64();
    (rate, (node.cpu_us() - before_us) as f64 / answered as f64)
}

/// What a machine of this module takes of the node's memory, when it was used once.
async fn memory_bytes(node: &Node, client: &Client, digest: Digest, subject: &Subject) -> u64 {
    let before = node.memory_bytes();
    for number in 0..MACHINES {
        let name = format!("m{number}");
        client.create_machine(&name, &digest.to_string(), subject.configuration).await.expect("created");
        apply(client, &name, (subject.command)(0)).await;
        let fresh = Consistency::Linearizable;
        client.query(&name, subject.query.clone(), fresh).await.expect("answered").outcome.expect("told");
    }
    node.memory_bytes().saturating_sub(before) / MACHINES as u64
}

async fn measure(subject: &Subject) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let node = Node::start(directory.path());
    let client = node.client().with_timeout(PATIENCE);
    let stop = Arc::new(AtomicBool::new(false));
    let other = tokio::spawn(use_another(node.client(), stop.clone()));

    let begun = Instant::now();
    let pushed = client.push_module(&subject.name, subject.component.clone(), |_| {}).await;
    let digest = pushed.expect("pushed").digest;
    let compiled = begun.elapsed();
    let created = client.create_machine("measured", &digest.to_string(), subject.configuration).await;
    created.expect("created");
    let asked = Instant::now();
    apply(&client, "measured", (subject.command)(0)).await;
    let (first, answered) = (asked.elapsed(), begun.elapsed());
    stop.store(true, Ordering::Relaxed);
    let longest = other.await.expect("it does not panic");

    let mut warm = Vec::new();
    for number in 0..WARM {
        let begun = Instant::now();
        apply(&client, "measured", (subject.command)(number as u64)).await;
        warm.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let (rate, cpu_us) = load(&node, &client, subject).await;
    let memory = memory_bytes(&node, &client, digest, subject).await;
    let in_memory_us = in_memory_us(subject);
    println!(
        "{:<10} {:>9} bytes | compiled {:>6.2} s, answers after {:>6.2} s, others waited {:>4.0} ms | first \
         {:>5.1} ms, warm {:>5.2} ms | {rate:>7.0}/s, {cpu_us:>6.1} us of CPU, {in_memory_us:>6.1} us in \
         memory | {:>5.2} MiB a machine",
        subject.name,
        subject.component.len(),
        compiled.as_secs_f64(),
        answered.as_secs_f64(),
        longest.as_secs_f64() * 1e3,
        first.as_secs_f64() * 1e3,
        median(warm),
        memory as f64 / f64::from(1 << 20),
    );
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    if is_wanted("kv") {
        measure(&kv()).await;
    }
    let projects = tempfile::tempdir().expect("a temporary directory");
    for language in LANGUAGES.into_iter().filter(|language| is_wanted(language)) {
        match counter(language, projects.path()) {
            Ok(subject) => measure(&subject).await,
            Err(why) => println!("{language}: left out: {why}"),
        }
    }
}
