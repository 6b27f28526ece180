//! etcdctl, command by command, against both servers: exit code, output and messages must be the same, but
//! for ids, addresses and figures of the process.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::process::{Done, run_with, wait};
use super::server::{Server, tool};

/// How long a command that runs until it is stopped may take to say what is awaited.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ids as etcdctl prints them have so many digits; hashes and raft's figures have fewer.
const ID_DIGITS_MIN: usize = 14;

/// Numbers in JSON that belong to the process, not to the store.
const FIGURES: [&str; 13] = [
    "cluster_id",
    "member_id",
    "raft_term",
    "raftTerm",
    "raftIndex",
    "raftAppliedIndex",
    "leader",
    "dbSize",
    "dbSizeInUse",
    "dbSizeQuota",
    "ID",
    "hash",
    "lease",
];

fn command(endpoints: &str) -> Command {
    let mut command = Command::new(tool("etcdctl"));
    command.args(["--endpoints", endpoints]).env_remove("ETCDCTL_ENDPOINTS");
    command
}

/// Runs a command against some endpoints.
pub fn etcdctl(endpoints: &[String], arguments: &[&str]) -> Done {
    run_with(command(&endpoints.join(",")).args(arguments), b"")
}

/// A server, and what of its answers stands for something else.
pub struct Controlled<'a> {
    server: &'a Server,
    /// What it called things that both sides have under different names.
    names: Vec<(String, &'static str)>,
}

impl Controlled<'_> {
    pub fn of(server: &Server) -> Controlled<'_> {
        let port = server.address.rsplit(':').next().unwrap_or_default();
        let names = vec![(server.address.clone(), "ADDRESS"), (port.to_owned(), "PORT")];
        Controlled { server, names }
    }

    /// The command, with `$NAME` as this side calls it.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(&self.server.address);
        for argument in arguments {
            let own = self.names.iter().find(|(_, name)| argument.strip_prefix('$') == Some(name));
            command.arg(own.map_or(*argument, |(own, _)| own.as_str()));
        }
        command
    }

    fn run(&self, arguments: &[&str], input: &str) -> Done {
        run_with(&mut self.command(arguments), input.as_bytes())
    }

    /// What a command did, as it is compared.
    fn told(&self, done: &Done) -> String {
        let stderr: String = done.stderr.lines().filter(|line| !is_log(line)).collect();
        let all = format!("exit {}\n{}{stderr}", done.code, shown(done.text()));
        let lines: Vec<String> =
            all.lines().map(|line| without_ids(&without_figures(&self.named(line)))).collect();
        lines.join("\n")
    }

    /// A line with the names that both sides share. A lease of one digit is no word of its own elsewhere.
    fn named(&self, line: &str) -> String {
        self.names.iter().fold(line.to_owned(), |line, (own, name)| match *name {
            LEASE if line == *own => LEASE.to_owned(),
            LEASE => line.replace(&format!("lease {own} "), "lease LEASE "),
            name => line.replace(own, name),
        })
    }
}

/// What stands for the lease of a side.
const LEASE: &str = "LEASE";

/// How long something took, and terms.
fn without_figures(line: &str) -> String {
    if line.starts_with("\"RaftTerm\"") {
        return "a term".into();
    }
    line.split_once(" took ").map_or(line.to_owned(), |(before, _)| format!("{before} took some time"))
}

/// The client's own log: with times, and about its retries.
fn is_log(line: &str) -> bool {
    line.starts_with("{\"level\"")
}

/// JSON without the figures of a process; all else as it is.
fn shown(text: &str) -> String {
    match serde_json::from_str::<Value>(text) {
        Ok(mut value) if value.is_object() || value.is_array() => {
            hide_figures(&mut value);
            format!("{value:#}")
        }
        _ => text.to_owned(),
    }
}

fn hide_figures(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match FIGURES.contains(&name.as_str()) {
                    true => *value = Value::from("figure"),
                    false => hide_figures(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(hide_figures),
        _ => {}
    }
}

/// Long numbers, in hexadecimal or decimal digits, are ids.
fn without_ids(text: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().chain([' ']) {
        if c.is_ascii_hexdigit() {
            word.push(c);
            continue;
        }
        out += if word.len() >= ID_DIGITS_MIN { "ID" } else { &word };
        out.push(c);
        word.clear();
    }
    out
}

/// Commands whose every word must be the same, with what they read. In order: each finds what those before
/// left.
const SAME: [(&[&str], &str); 100] = [
    (&["put", "a", "1"], ""),
    (&["put", "a", "2", "--prev-kv"], ""),
    (&["put", "b", "from standard input", "-w", "json"], ""),
    (&["put", "c/1"], "read from standard input"),
    (&["put", "c/2", "x", "-w", "fields"], ""),
    (&["put", "a", "--ignore-value"], ""),
    (&["put", "absent", "--ignore-value"], ""),
    (&["put", "", "x"], ""),
    (&["put", "a", "x", "--lease", "4711"], ""),
    (&["get", "a"], ""),
    (&["get", "a", "-w", "json"], ""),
    (&["get", "a", "-w", "fields"], ""),
    (&["get", "a", "--hex"], ""),
    (&["get", "a", "--print-value-only"], ""),
    (&["get", "absent"], ""),
    (&["get", "", "--prefix"], ""),
    (&["get", "", "--from-key", "--keys-only"], ""),
    (&["get", "a", "c", "--count-only", "-w", "fields"], ""),
    (&["get", "a", "c/2"], ""),
    (&["get", "c/", "--prefix", "--limit", "1", "-w", "json"], ""),
    (&["get", "", "--prefix", "--sort-by", "MODIFY", "--order", "DESCEND"], ""),
    (&["get", "", "--prefix", "--sort-by", "VERSION", "--order", "ASCEND"], ""),
    (&["get", "", "--prefix", "--sort-by", "VALUE", "--order", "DESCEND"], ""),
    (&["get", "", "--prefix", "--sort-by", "CREATE"], ""),
    (&["get", "a", "--rev", "2"], ""),
    (&["get", "a", "--rev", "10000"], ""),
    (&["get", "a", "--consistency", "s"], ""),
    (&["get", "", "--prefix", "--min-mod-rev", "4"], ""),
    (&["get", "", "--prefix", "--max-create-rev", "4"], ""),
    (&["get", "", "--prefix", "--max-mod-rev", "4"], ""),
    (&["get", "", "--prefix", "--min-create-rev", "3"], ""),
    (&["get", "", "--prefix", "--min-mod-rev", "3", "--max-mod-rev", "4", "-w", "json"], ""),
    (&["get", "", "--prefix", "--min-create-rev", "3", "--max-create-rev", "4", "--count-only"], ""),
    (&["get", "", "--prefix", "--sort-by", "KEY", "--order", "DESCEND"], ""),
    (&["get", "", "--prefix", "--sort-by", "KEY"], ""),
    (&["get", "", "--prefix", "--order", "DESCEND"], ""),
    (&["get", "", "--prefix", "--sort-by", "nothing"], ""),
    (&["get", "", "--prefix", "--order", "sideways"], ""),
    (&["get", "b", "--from-key", "--limit", "2", "-w", "json"], ""),
    (&["get", "", "--prefix", "--keys-only", "-w", "json"], ""),
    (&["get", "", "--prefix", "--print-value-only", "--rev", "3"], ""),
    (&["get", "a", "--print-value-only", "-w", "json"], ""),
    (&["get", "a", "--consistency", "l"], ""),
    (&["get", "a", "--consistency", "x"], ""),
    (&["get", "a", "b", "--prefix"], ""),
    (&["get", "", "--prefix", "--stream"], ""),
    (&["get", "", "--prefix", "--stream", "--limit", "2", "-w", "json"], ""),
    (&["get", "", "--prefix", "--stream", "--sort-by", "MODIFY"], ""),
    (&["get", "", "--prefix", "--stream", "--min-mod-rev", "3"], ""),
    (&["get", "a", "--stream", "--rev", "10000"], ""),
    (&["txn"], "value(\"a\") = \"2\"\n\nput a 3\nget a\n\ndel a\n\n"),
    (&["txn", "-w", "json"], "mod(\"a\") > \"1000\"\n\nput a 3\n\nget a\nget c/ --prefix\n\n"),
    (&["txn"], "ver(\"a\") > \"0\"\n\nput a 4\nput a 5\n\n\n"),
    (&["txn"], "create(\"absent\") = \"0\"\n\nput d 1\ndel c/1\n\n\n"),
    (&["del", "d", "--prev-kv"], ""),
    (&["del", "c/", "--prefix", "-w", "json"], ""),
    (&["del", "absent"], ""),
    (&["del", "a", "b"], ""),
    (&["put", "e/1", "1"], ""),
    (&["put", "e/2", "2"], ""),
    (&["del", "e/1", "--range", "e/9", "--prev-kv"], ""),
    (&["del", "e/", "--from-key", "-w", "json"], ""),
    (&["watch", "a", "--rev", "2", "--prev-kv", "--no-such-flag"], ""),
    (&["compaction", "4"], ""),
    (&["compaction", "4"], ""),
    (&["compaction", "5", "--physical"], ""),
    (&["compaction", "10000"], ""),
    (&["get", "a", "--rev", "2"], ""),
    (&["watch", "a", "--rev", "2"], ""),
    (&["lease", "list"], ""),
    (&["lease", "revoke", "4711"], ""),
    (&["lease", "timetolive", "4711"], ""),
    (&["lease", "keep-alive", "4711"], ""),
    (&["lease", "grant", "99999999999"], ""),
    (&["member", "remove", "4711"], ""),
    (&["member", "promote", "4711"], ""),
    (&["member", "update", "4711", "--peer-urls", "http://127.0.0.1:1"], ""),
    (&["alarm", "list"], ""),
    (&["alarm", "disarm"], ""),
    (&["defrag"], ""),
    (&["move-leader", "4711"], ""),
    (&["auth", "status"], ""),
    (&["auth", "enable"], ""),
    (&["auth", "disable"], ""),
    (&["user", "list"], ""),
    (&["user", "get", "nobody"], ""),
    (&["user", "delete", "nobody"], ""),
    (&["role", "list"], ""),
    (&["role", "get", "nobody"], ""),
    (&["role", "add", ""], ""),
    (&["role", "delete", "nobody"], ""),
    (&["role", "grant-permission", "nobody", "read", "a"], ""),
    (&["role", "grant-permission", "nobody", "readwrite", "b", "a"], ""),
    (&["role", "revoke-permission", "nobody", "a"], ""),
    (&["user", "grant-role", "nobody", "nothing"], ""),
    (&["user", "revoke-role", "nobody", "nothing"], ""),
    (&["user", "passwd", "nobody", "--interactive=false"], "secret\n"),
    (&["lock", "l", "sh", "-c", "echo locked"], ""),
    (&["lock", "l", "sh", "-c", "exit 3"], ""),
    (&["get", "", "--prefix"], ""),
];

/// What two servers answered differently: the command, and both answers.
pub type Differences = Vec<String>;

/// Runs all commands that must be answered the same.
pub fn same_commands(first: &Server, second: &Server) -> Differences {
    let (first, second) = (Controlled::of(first), Controlled::of(second));
    SAME.iter().filter_map(|(arguments, input)| differ(&first, &second, arguments, input)).collect()
}

fn differ(first: &Controlled, second: &Controlled, arguments: &[&str], input: &str) -> Option<String> {
    let (of_first, of_second) = (first.run(arguments, input), second.run(arguments, input));
    let told = (first.told(&of_first), second.told(&of_second));
    (told.0 != told.1).then(|| {
        let (a, b) = (first.server.name, second.server.name);
        format!("etcdctl {arguments:?}\n--- {a}\n{}\n--- {b}\n{}\n", told.0, told.1)
    })
}

/// A lease from its grant to its end, each side with its own id.
pub fn a_lease(first: &Server, second: &Server) -> Differences {
    let (mut first, mut second) = (Controlled::of(first), Controlled::of(second));
    for side in [&mut first, &mut second] {
        let granted = side.run(&["lease", "grant", "600"], "");
        let id = granted.ok().split(' ').nth(1).expect("lease ID granted with TTL(600s)").to_owned();
        assert_eq!(granted.ok(), format!("lease {id} granted with TTL(600s)"));
        side.names.push((id, LEASE));
    }
    let commands: [&[&str]; 8] = [
        &["put", "leased", "1", "--lease", "$LEASE"],
        &["get", "leased", "-w", "json"],
        &["lease", "keep-alive", "$LEASE", "--once"],
        &["lease", "list"],
        &["put", "leased", "2", "--ignore-lease"],
        &["lease", "revoke", "$LEASE"],
        &["lease", "timetolive", "$LEASE"],
        &["get", "leased"],
    ];
    let mut differences: Differences =
        commands.iter().filter_map(|arguments| differ(&first, &second, arguments, "")).collect();
    let granted = |side: &Controlled| side.run(&["lease", "grant", "600", "-w", "json"], "").json();
    for side in [&first, &second] {
        let grant = granted(side);
        if grant["TTL"] != 600 || grant["ID"].as_i64().is_none_or(|id| id <= 0) {
            differences.push(format!("{}: {grant}", side.server.name));
        }
    }
    differences
}

/// A command that runs until it is stopped.
struct Running {
    child: Child,
    directory: tempfile::TempDir,
}

impl Running {
    fn start(side: &Controlled, arguments: &[&str]) -> Running {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str| File::create(directory.path().join(name)).expect("a new file");
        let mut command = side.command(arguments);
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        Running { child: command.spawn().expect("etcdctl starts"), directory }
    }

    fn output(&self) -> String {
        read(&self.directory.path().join("stdout")) + &read(&self.directory.path().join("stderr"))
    }

    /// Waits until its output ends with `text`.
    #[track_caller]
    fn says(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.output().ends_with(text) {
            assert!(Instant::now() < deadline, "{text:?} never came: {:?}", self.output());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops it as Ctrl-C does.
    fn interrupt(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("our own child");
        wait(&mut self.child).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("it was made")
}

/// A watch of the past and of what comes, and an election with who listens to it.
pub fn running_commands(server: &Server) {
    let side = Controlled::of(server);
    let revision = side.run(&["put", "w/a", "1", "-w", "json"], "").json()["header"]["revision"].to_string();
    side.run(&["put", "w/a", "2"], "").ok();
    let watch = Running::start(&side, &["watch", "w/", "--prefix", "--prev-kv", "--rev", &revision]);
    watch.says("PUT\nw/a\n1\nPUT\nw/a\n1\nw/a\n2\n");
    side.run(&["del", "w/a"], "").ok();
    watch.says("DELETE\nw/a\n2\nw/a\n\n");
    watch.interrupt();

    let elected = Running::start(&side, &["elect", "e", "one"]);
    let other = Running::start(&side, &["elect", "-l", "e"]);
    elected.says("one\n");
    other.says("one\n");
    assert_eq!(side.run(&["get", "e/", "--prefix", "--print-value-only"], "").ok(), "one");
    assert_eq!(elected.interrupt(), Some(0), "it resigns");
    assert_eq!(side.run(&["get", "e/", "--prefix"], "").ok(), "");
}

/// What of a server's state is its own: that commands work, and agree with each other.
pub fn own_figures(server: &Server) {
    let side = Controlled::of(server);
    let health = side.run(&["endpoint", "health", "-w", "json"], "").json();
    assert_eq!(health[0]["health"], true, "{health}");
    let status = side.run(&["endpoint", "status", "-w", "json"], "").json();
    let status = &status[0]["Status"];
    let members = side.run(&["member", "list", "-w", "json"], "").json();
    let ids: Vec<&Value> = members["members"].as_array().expect("a list").iter().map(|m| &m["ID"]).collect();
    assert!(ids.contains(&&status["leader"]), "{status} {members}");
    assert_eq!(status["header"]["member_id"], status["leader"], "one member, which leads");
    assert_eq!(status["header"]["cluster_id"], members["header"]["cluster_id"]);
    assert!(status["version"].as_str().is_some_and(|version| version.starts_with("3.")), "{status}");
    let hash = || side.run(&["endpoint", "hashkv", "-w", "json"], "").json()[0]["HashKV"]["hash"].clone();
    let before = hash();
    assert_eq!(before, hash(), "nothing was written between");
    side.run(&["put", "hashed", "1"], "").ok();
    assert_ne!(before, hash(), "a key was written between");
    for command in [&["endpoint", "status", "-w", "table"], &["member", "list", "-w", "table"]] {
        assert!(side.run(command, "").ok().contains("true") || command[0] == "member");
    }
}

/// A snapshot that etcd's own program reads.
pub fn a_snapshot(server: &Server) {
    let side = Controlled::of(server);
    for number in 0..50 {
        side.run(&["put", &format!("s/{number}"), "x"], "").ok();
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("snapshot.db");
    let file = file.to_str().expect("a path of text");
    let saved = side.run(&["snapshot", "save", file], "");
    assert_eq!(saved.code, 0, "{saved:?}");
    let mut command = Command::new(tool("etcdutl"));
    let status = run_with(command.args(["snapshot", "status", file, "-w", "json"]), b"").json();
    assert!(status["totalKey"].as_i64().is_some_and(|keys| keys >= 50), "{status}");
    let revision = side.run(&["get", "s/0", "-w", "json"], "").json()["header"]["revision"].clone();
    assert_eq!(status["revision"], revision, "{status}");
    let restored = directory.path().join("restored");
    let mut command = Command::new(tool("etcdutl"));
    let restore = run_with(command.args(["snapshot", "restore", file, "--data-dir"]).arg(&restored), b"");
    assert_eq!(restore.code, 0, "{restore:?}");
}

/// etcdctl's own measurement. It fails below 150 writes a second, or if one takes longer than half a second.
pub fn check_perf(server: &Server) {
    let side = Controlled::of(server);
    let measure = side.command(&["check", "perf", "--load", "s"]);
    // It puts load on the server for a minute, and then deletes what it put.
    let mut bounded = Command::new("timeout");
    bounded.arg("300").arg(measure.get_program()).args(measure.get_args()).env_remove("ETCDCTL_ENDPOINTS");
    let done = bounded.output().expect("etcdctl starts");
    let told = String::from_utf8_lossy(&done.stdout);
    println!("{told}");
    assert!(done.status.success() && told.contains("PASS: Throughput"), "{told} {done:?}");
}
