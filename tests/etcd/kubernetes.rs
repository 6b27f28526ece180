//! Kubernetes' own tests of what it keeps in etcd: its storage, the cache of watches before it, the registry
//! of objects above it, and its leases of servers. As their authors wrote them; where they start an etcd
//! within themselves, `kubernetes/server` starts Statehouse.
//!
//! Promises: all of a package's tests run, each test on a server of its own, and every one passes.

use std::path::Path;
use std::process::{Command, Stdio};

use super::process::{Node, program, serve_arguments};
use super::server::{tool, tools};

/// A package of Kubernetes' API server, and how many tests of it run, at least: fewer mean that nothing was
/// shown.
pub const PACKAGES: [(&str, usize); 4] =
    [("etcd3", 70), ("cacher", 135), ("registry", 50), ("reconcilers", 2)];

/// How long a package may take: computers that test are busy.
const PATIENCE: &str = "20m";

/// Runs all tests of a package.
#[track_caller]
pub fn passes(package: &str, tests_min: usize) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let new = directory.path().join("new");
    compiled_once(&new);
    let mut command = Command::new(tool(&format!("kubernetes-{package}")));
    command.args(["-test.v", "-test.parallel", "2", "-test.timeout", PATIENCE]);
    command.env("STATEHOUSE", env!("CARGO_BIN_EXE_statehouse")).env("STATEHOUSE_NEW", &new);
    command.env("TMPDIR", directory.path()).current_dir(tools()).stdin(Stdio::null());
    // The program bounds its time itself, and takes its servers with it.
    let done = command.output().expect("the tests start");
    let told = String::from_utf8_lossy(&done.stdout);
    let results = |mark| told.lines().filter(|line| line.starts_with(mark)).collect::<Vec<_>>();
    let (passed, failed) = (results("--- PASS: "), results("--- FAIL: "));
    println!("{package}: {} passed, {} failed, {:?}", passed.len(), failed.len(), results("--- SKIP: "));
    if !done.status.success() {
        let all = std::env::temp_dir().join(format!("kubernetes-{package}.log"));
        std::fs::write(&all, &done.stdout).expect("a file for what the tests told");
        let end: Vec<&str> = told.lines().rev().take(20).collect();
        panic!("{}; everything is in {}: {failed:#?} ... {end:#?}", done.status, all.display());
    }
    assert!(passed.len() >= tests_min, "only {} tests ran", passed.len());
}

/// The data directory of a node that has compiled its first machine, and has done nothing else.
fn compiled_once(data: &Path) {
    let mut command = program();
    serve_arguments(&mut command, data);
    command.args(["--etcd", "127.0.0.1:0"]);
    let node = Node::start(&mut command);
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.end().0, Some(0), "it stops when it is told to");
}
