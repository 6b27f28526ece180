//! Locks with fencing tokens: held by a command, kept alive, lost, waited for.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::leases::{node_with_kv, wait_for};
use super::process::{Node, directory, run_with, wait};

/// What a holder writes only if it still has the lock, to the file that is named.
const FENCED_WRITE: &str = r#""$STATEHOUSE" kv txn "{
    \"compare\": [{\"key\": \"$STATEHOUSE_LOCK_KEY\", \"target\": \"mod_revision\", \"is\": \"=\",
                 \"value\": $STATEHOUSE_LOCK_TOKEN}],
    \"success\": [{\"put\": {\"key\": \"written\", \"value\": \"$1\"}}]
}" > "$1.tmp"; mv "$1.tmp" "$1""#;

/// A holder that runs a shell script in `place`; `$1` is `name`.
fn lock(node: &Node, place: &Path, arguments: &[&str], script: &str, name: &str) -> Command {
    let mut command = node.command(["kv", "lock"]);
    command.args(arguments).args(["--", "sh", "-c", script, "sh", name]);
    command.env("STATEHOUSE", env!("CARGO_BIN_EXE_statehouse")).current_dir(place);
    command
}

fn begin(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts")
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("our own child");
}

fn token(file: &Path) -> u64 {
    std::fs::read_to_string(file).expect("written").trim().parse().expect("a revision")
}

fn succeeded(file: &Path) -> bool {
    let told: serde_json::Value =
        serde_json::from_slice(&std::fs::read(file).expect("written")).expect("JSON");
    told["succeeded"].as_bool().expect("told")
}

#[test]
fn a_paused_holder_loses_the_lock_and_its_write_is_refused() {
    let (data, place) = (directory(), directory());
    let node = node_with_kv(&data);
    let place = place.path();
    let script = format!(
        "trap 'touch told; exit 0' TERM
        echo $STATEHOUSE_LOCK_TOKEN > first.tmp; mv first.tmp first.token
        until [ -e go ]; do sleep 0.02; done
        {FENCED_WRITE}
        while :; do sleep 0.02; done"
    );
    let first = begin(&mut lock(&node, place, &["work", "--ttl", "1s"], &script, "first"));
    wait_for("the first has the lock", || place.join("first.token").exists());
    // It can keep it for longer than its time.
    std::thread::sleep(Duration::from_millis(1_500));
    let busy = lock(&node, place, &["work", "--wait", "300ms"], "true", "none").output().expect("it runs");
    assert_eq!(busy.status.code(), Some(1), "{busy:?}");
    assert!(String::from_utf8_lossy(&busy.stderr).contains("within 300 ms"), "{busy:?}");

    // Nobody keeps it alive any more, and its command does not know.
    signal(&first, Signal::STOP);
    let script = format!("echo $STATEHOUSE_LOCK_TOKEN > second.token; {FENCED_WRITE}");
    let second = run_with(&mut lock(&node, place, &["work", "--ttl", "1s"], &script, "second"), b"");
    assert_eq!(second.code, 0, "{second:?}");
    assert!(succeeded(&place.join("second")));
    let (old, new) = (token(&place.join("first.token")), token(&place.join("second.token")));
    assert!(new > old, "{new} after {old}");

    std::fs::write(place.join("go"), b"").expect("written");
    wait_for("the first has tried to write", || place.join("first").exists());
    assert!(!succeeded(&place.join("first")));
    assert_eq!(node.run(["kv", "get", "written"]).ok(), "second");

    signal(&first, Signal::CONT);
    let ended = first.wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(1) && told.contains("lost"), "{ended:?}");
    assert!(place.join("told").exists(), "the command was not told: {told}");
}

#[test]
fn who_waits_takes_the_lock_in_the_order_of_coming() {
    let (data, place) = (directory(), directory());
    let node = node_with_kv(&data);
    let place = place.path();
    let script = "echo $1 $STATEHOUSE_LOCK_TOKEN >> order; until [ -e go ]; do sleep 0.02; done";
    let mut holders = Vec::new();
    for (number, name) in ["one", "two", "three"].into_iter().enumerate() {
        holders.push(begin(&mut lock(&node, place, &["work"], script, name)));
        wait_for("it is in the queue", || {
            let found = node.run(["kv", "get", "work/", "--prefix", "--json"]).json();
            found["count"] == number + 1
        });
    }
    // A lock whose name begins with this one's is another lock.
    let other = run_with(&mut lock(&node, place, &["work/part"], "exit 7", "other"), b"");
    assert_eq!(other.code, 7, "the code is the command's: {other:?}");
    std::fs::write(place.join("go"), b"").expect("written");
    for holder in &mut holders {
        assert!(wait(holder).success());
    }
    let order = std::fs::read_to_string(place.join("order")).expect("written");
    let (names, tokens): (Vec<&str>, Vec<u64>) = order
        .lines()
        .map(|line| line.split_once(' ').expect("a name and a token"))
        .map(|(name, token)| (name, token.parse::<u64>().expect("a revision")))
        .unzip();
    assert_eq!(names, ["one", "two", "three"]);
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    assert_eq!(node.run(["kv", "get", "work/", "--prefix", "--json"]).json()["count"], 0);
}

#[test]
fn a_command_that_is_not_there_leaves_the_lock_free() {
    let data = directory();
    let node = node_with_kv(&data);
    let done = run_with(&mut node.command(["kv", "lock", "work", "--", "/no/such/program"]), b"");
    done.failed(1, &["/no/such/program"]);
    assert_eq!(node.run(["kv", "lock", "work", "--wait", "5s", "--", "true"]).code, 0);
    // Asked to end while it waits, it ends and leaves its place.
    let script = "until [ -e go ]; do sleep 0.02; done";
    let place = directory();
    let mut holder = begin(&mut lock(&node, place.path(), &["work"], script, ""));
    let keys = || node.run(["kv", "get", "work/", "--prefix", "--json"]).json()["count"].clone();
    wait_for("the lock is held", || keys() == 1);
    let mut waiter = begin(&mut lock(&node, place.path(), &["work"], "true", ""));
    wait_for("another waits", || keys() == 2);
    signal(&waiter, Signal::TERM);
    assert_eq!(wait(&mut waiter).code(), Some(128 + 15));
    assert_eq!(keys(), 1);
    std::fs::write(place.path().join("go"), b"").expect("written");
    assert!(wait(&mut holder).success());
}
