//! Real processes of the program under test: bounded in time, on ports that the system chose, ended by their
//! own handle.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything here may take. Generous: machines that test are busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same for a start: it may compile a module, which gives way to everything else on the computer.
const START_PATIENCE: Duration = Duration::from_secs(300);

/// The program, without settings from whoever runs the tests.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_statehouse"));
    command.env_remove("STATEHOUSE_ENDPOINTS").env_remove("STATEHOUSE_LOG").env("NO_COLOR", "1");
    command
}

/// What a command line did.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Done {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text on standard output")
    }

    /// The data of a command that worked, without the last line feed.
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, 0, "it failed: {self:?}");
        self.text().strip_suffix('\n').unwrap_or(self.text())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|e| panic!("not one JSON value ({e}): {self:?}"))
    }

    /// Checks that the command failed with `code`, wrote no data, and that its message has all of `parts`.
    #[track_caller]
    pub fn failed(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.stdout.is_empty(), "data of a command that failed: {self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in: {}", self.stderr);
        }
    }
}

/// Runs a command to its end, with `input` on standard input.
pub fn run_with(command: &mut Command, input: &[u8]) -> Done {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    // A program that does not read its input is no fault of the test's.
    let feeder = thread::spawn(move || stdin.write_all(&input));
    let (stdout, stderr) = (read_all(child.stdout.take()), read_all(child.stderr.take()));
    let status = wait(&mut child);
    let _ = feeder.join().expect("the feeder does not panic");
    Done {
        code: status.code().unwrap_or(-1),
        stdout: stdout.join().expect("readable"),
        stderr: String::from_utf8(stderr.join().expect("readable")).expect("messages are text"),
    }
}

fn read_all(from: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    let mut from = from.expect("piped");
    thread::spawn(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).expect("a pipe reads");
        all
    })
}

/// Waits for the end of a process; one that does not end is killed and fails the test.
pub fn wait(child: &mut Child) -> ExitStatus {
    let status = wait_or_kill(child, PATIENCE);
    status.unwrap_or_else(|| panic!("process {} did not end within {PATIENCE:?}", child.id()))
}

/// Waits for the end of a process. None: it did not end by itself, and was killed.
fn wait_or_kill(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            return Some(status);
        }
        if Instant::now() > deadline {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Has a command serve in `data`, on ports that the system chooses.
pub fn serve_arguments(command: &mut Command, data: &Path) {
    command.args([
        "serve",
        "--json",
        "--bootstrap",
        "--client",
        "127.0.0.1:0",
        "--peer",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
    ]);
    command.arg("--data-dir").arg(data);
}

/// A node at work, killed when the test ends.
pub struct Node {
    child: Child,
    pub client: String,
    pub http: String,
    /// Where it serves clients of etcd; of several nodes in one process, each.
    pub etcd: Vec<String>,
    stderr: Option<thread::JoinHandle<Vec<u8>>>,
}

impl Node {
    /// Starts `serve` in `data_dir`, with more `arguments`, and waits until it says that it is ready.
    pub fn serve(data_dir: &Path, arguments: &[&str]) -> Node {
        let mut command = program();
        serve_arguments(&mut command, data_dir);
        command.args(arguments);
        Node::start(&mut command)
    }

    /// Starts a command that serves and prints its addresses as JSON.
    pub fn start(command: &mut Command) -> Node {
        Node::start_telling(command, Stdio::piped())
    }

    /// The same with standard error somewhere else.
    pub fn start_telling(command: &mut Command, stderr: Stdio) -> Node {
        Node::start_noting(command, stderr, |_| {})
    }

    /// The same; `begun` is told the id of the process before that is ready.
    pub fn start_noting(command: &mut Command, stderr: Stdio, begun: impl FnOnce(u32)) -> Node {
        match Node::attempt(command, stderr, begun) {
            Ok(node) => node,
            Err(ended) => panic!("the node did not get ready: {ended:?}"),
        }
    }

    /// Starts a node that may end before it is ready; then: its exit code (none: a signal, ours if it took
    /// too long) and everything told on standard error.
    pub fn attempt(
        command: &mut Command,
        stderr: Stdio,
        begun: impl FnOnce(u32),
    ) -> Result<Node, (Option<i32>, String)> {
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = piped.spawn().expect("the program starts");
        begun(child.id());
        let stdout = child.stdout.take().expect("piped");
        let stderr = match child.stderr.take() {
            Some(stderr) => read_all(Some(stderr)),
            None => thread::spawn(Vec::new),
        };
        let (send, first) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            // The receiver is gone if the test gave up.
            let _ = send.send(lines.next());
            lines.for_each(drop);
        });
        let ready: Option<Value> = match first.recv_timeout(START_PATIENCE) {
            Ok(Some(Ok(line))) => serde_json::from_str(&line).ok(),
            _ => None,
        };
        let Some(ready) = ready else {
            // It has closed its standard output to end, or says nothing at all.
            let code = wait_or_kill(&mut child, Duration::from_secs(5)).and_then(|status| status.code());
            let told = stderr.join().expect("readable");
            return Err((code, String::from_utf8_lossy(&told).into_owned()));
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let address = |name: &str| text(&ready["ready"][name]);
        let etcd = match &ready["ready"]["etcd"] {
            Value::String(address) => vec![address.clone()],
            several => several.as_array().into_iter().flatten().map(text).collect(),
        };
        Ok(Node { client: address("client"), http: address("http"), etcd, child, stderr: Some(stderr) })
    }

    /// The program, told where this node is.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = program();
        command.env("STATEHOUSE_ENDPOINTS", &self.client).args(arguments);
        command
    }

    /// Runs a command against this node.
    pub fn run<const N: usize>(&self, arguments: [&str; N]) -> Done {
        run_with(&mut self.command(arguments), b"")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("our own child");
    }

    /// Waits for the end: the exit code (none: a signal) and everything told on standard error.
    pub fn end(mut self) -> (Option<i32>, String) {
        let status = wait(&mut self.child);
        let told = self.stderr.take().expect("once").join().expect("readable");
        (status.code(), String::from_utf8(told).expect("messages are text"))
    }

    /// Ends it as a power cut would end the process.
    pub fn kill(self) {
        self.signal(rustix::process::Signal::KILL);
        assert_eq!(self.end().0, None, "killed by a signal");
    }

    /// Asks for a page of plain HTTP: the status and the body.
    pub fn page(&self, path: &str) -> (u16, String) {
        page(&self.http, path)
    }
}

/// A page of plain HTTP at an address: the status and the body.
pub fn page(address: &str, path: &str) -> (u16, String) {
    let mut stream = std::net::TcpStream::connect(address).expect("HTTP is served");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit is possible");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer in text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_string())
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory that is gone after the test.
pub fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// The component of a guest of the gallery.
pub fn component(guest: &str) -> String {
    format!("{}/guests/{guest}/{guest}.component.wasm", env!("CARGO_MANIFEST_DIR"))
}
