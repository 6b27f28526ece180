//! Clients of etcd by others, in four languages, and the program `curl`: each runs its own checks against a
//! server, prints what failed, and ends with 1 if anything did.

use std::process::Command;

use super::process::run_with;
use super::server::{Server, tool, tools};

/// Runs a client to its end.
#[track_caller]
fn passes(command: &mut Command) {
    let done = run_with(command, b"");
    assert_eq!(done.code, 0, "{}\n{}", done.text(), done.stderr);
    assert!(done.text().contains("ok "), "nothing was checked: {done:?}");
}

fn source(path: &str) -> String {
    format!("{}/tests/etcd/{path}", env!("CARGO_MANIFEST_DIR"))
}

pub fn go(server: &Server) {
    passes(Command::new(tool("goclient")).arg(&server.address));
}

pub fn rust(server: &Server) {
    passes(Command::new(tool("rustclient")).arg(&server.address));
}

pub fn node(server: &Server) {
    let mut command = Command::new("node");
    command.env("ETCD_NODE_CLIENTS", tools().join("node"));
    passes(command.arg(source("node/client.js")).arg(&server.address));
}

pub fn python(server: &Server) {
    let (host, port) = server.address.rsplit_once(':').expect("host and port");
    let mut command = Command::new(tools().join("python/bin/python"));
    passes(command.arg(source("python/client.py")).args([host, port]));
}
