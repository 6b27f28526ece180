//! The programs that are compared, each as a process of its own: a real etcd, and Statehouse with its front
//! for etcd's clients.
//!
//! Promises: ports are chosen by the system, data is in a directory that is gone afterwards, a process ends
//! with the value that holds it, and nothing is awaited without end.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tonic::transport::Channel;

use super::process::{program, serve_arguments};

/// How long a server may take to get ready: it may compile a module, which gives way to everything else on
/// the computer.
const PATIENCE: Duration = Duration::from_secs(300);

/// How much of a server's log is shown when it ended.
const LOG_LINES_SHOWN: usize = 30;

/// The version of etcd that everything is compared with.
pub const VERSION: &str = "3.7.3";

/// Where `tests/etcd/install` puts programs and clients.
pub fn tools() -> PathBuf {
    let home = std::env::var("HOME").expect("a home directory");
    let tools = std::env::var("STATEHOUSE_TOOLS").unwrap_or(format!("{home}/.cache/statehouse-tools"));
    Path::new(&tools).join(format!("etcd-{VERSION}"))
}

/// An installed program.
pub fn tool(name: &str) -> PathBuf {
    let path = tools().join("bin").join(name);
    assert!(path.exists(), "{} is missing: run make test-clients", path.display());
    path
}

/// A server at work, killed when it is dropped.
pub struct Server {
    pub name: &'static str,
    /// Where clients of etcd find it.
    pub address: String,
    child: Child,
    directory: TempDir,
}

impl Server {
    /// A real etcd of one member.
    pub fn etcd() -> Server {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let [client, peer] = free_ports().map(|port| format!("http://127.0.0.1:{port}"));
        let mut command = Command::new(tool("etcd"));
        command
            .args(["--name", "etcd", "--log-level", "info"])
            .arg("--data-dir")
            .arg(directory.path().join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("etcd={peer}")]);
        Server::begin("etcd", command, directory, of_etcd)
    }

    /// Statehouse with a new data directory, that etcd's clients can talk to.
    pub fn statehouse() -> Server {
        let mut command = program();
        let directory = tempfile::tempdir().expect("a temporary directory");
        serve_arguments(&mut command, &directory.path().join("data"));
        command.args(["--etcd", "127.0.0.1:0"]);
        Server::begin("statehouse", command, directory, of_statehouse)
    }

    fn begin(name: &'static str, mut command: Command, directory: TempDir, ready: Ready) -> Server {
        let log = |name: &str| File::create(directory.path().join(name)).expect("a new file");
        command.stdin(Stdio::null()).stdout(log("stdout")).stderr(log("stderr"));
        let child = command.spawn().unwrap_or_else(|why| panic!("{name} does not start: {why}"));
        let mut server = Server { name, address: String::new(), child, directory };
        let deadline = Instant::now() + PATIENCE;
        while server.address.is_empty() {
            server.still_runs();
            assert!(Instant::now() < deadline, "{name} is not ready after {PATIENCE:?}:\n{}", server.log());
            match ready(server.directory.path()) {
                Some(address) => server.address = address,
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
        server
    }

    /// Fails with the end of the log if the process ended.
    #[track_caller]
    pub fn still_runs(&mut self) {
        if let Some(status) = self.child.try_wait().expect("our own child") {
            panic!("{} ended ({status}):\n{}", self.name, self.log());
        }
    }

    /// The last lines of what it told.
    pub fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
        let all = read("stdout") + &read("stderr");
        let lines: Vec<&str> = all.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }

    pub fn process(&self) -> u32 {
        self.child.id()
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).expect("an address");
        endpoint.connect().await.unwrap_or_else(|why| panic!("{} does not answer: {why}", self.name))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two ports that were free a moment ago. Port 0 is not for etcd: its JSON gateway dials the address that it
/// was told.
fn free_ports() -> [u16; 2] {
    let listen = || TcpListener::bind("127.0.0.1:0").expect("a free port");
    // Both at a time, so that they differ.
    let listeners = [listen(), listen()];
    listeners.map(|listener| listener.local_addr().expect("it is bound").port())
}

/// Finds the address of a server that is ready in what it has told so far.
type Ready = fn(&Path) -> Option<String>;

fn of_etcd(directory: &Path) -> Option<String> {
    let log = fs::read_to_string(directory.join("stderr")).ok()?;
    let messages = || log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = messages().find(|line| {
        line["msg"].as_str().is_some_and(|text| text.starts_with("serving client traffic insecurely"))
    })?;
    line["address"].as_str().map(str::to_owned)
}

fn of_statehouse(directory: &Path) -> Option<String> {
    let told = fs::read_to_string(directory.join("stdout")).ok()?;
    let line: Value = serde_json::from_str(told.lines().next()?).ok()?;
    Some(line["ready"]["etcd"].as_str().expect("--etcd is said in the ready line").to_owned())
}
