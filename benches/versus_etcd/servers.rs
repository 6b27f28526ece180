//! Both databases as processes, one node or three, on this computer and with their disks synced.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use statehouse::client::Client;
use statehouse::proto::etcd::etcdserverpb::StatusRequest;
use statehouse::proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use tempfile::TempDir;
use tonic::transport::Channel;

/// How long nodes may take to come about.
const PATIENCE: Duration = Duration::from_secs(300);

/// Between two looks at what is awaited.
const PAUSE: Duration = Duration::from_millis(50);

/// The nodes of one database, ended when this is dropped.
pub struct Servers {
    pub name: &'static str,
    /// Where clients of etcd reach the node that leads.
    pub leader: String,
    processes: Vec<Child>,
    directory: TempDir,
}

impl Servers {
    fn new(name: &'static str) -> Servers {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Servers { name, leader: String::new(), processes: Vec::new(), directory }
    }

    /// etcd, as `tests/etcd/install` builds it, if that was not done yet.
    pub async fn etcd(nodes: usize) -> Servers {
        let mut servers = Servers::new("etcd");
        let ports = free_ports(2 * nodes);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let peers: Vec<String> = ports[nodes..]
            .iter()
            .enumerate()
            .map(|(number, port)| format!("n{number}={}", url(*port)))
            .collect();
        for number in 0..nodes {
            let (client, peer) = (url(ports[number]), url(ports[nodes + number]));
            let mut command = Command::new(etcd_program());
            command.args(["--name", &format!("n{number}"), "--log-level", "warn"]);
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.args(["--initial-cluster", &peers.join(",")]);
            // The default is 2 GiB, which minutes of puts fill.
            command.args(["--quota-backend-bytes", "8589934592", "--data-dir"]);
            servers.spawn(&mut command, number);
        }
        let addresses: Vec<String> = ports[..nodes].iter().map(|port| format!("127.0.0.1:{port}")).collect();
        servers.leader = leader(&addresses).await;
        servers
    }

    /// This build of Statehouse.
    pub async fn statehouse(nodes: usize) -> Servers {
        let mut servers = Servers::new("statehouse");
        let mut ready: Vec<Value> = Vec::new();
        for number in 0..nodes {
            let mut command = Command::new(env!("CARGO_BIN_EXE_statehouse"));
            command.args(["serve", "--json", "--client", "127.0.0.1:0", "--peer", "127.0.0.1:0"]);
            command.args(["--etcd", "127.0.0.1:0", "--name", &format!("n{number}")]);
            match ready.first() {
                Some(first) => command.arg("--join").arg(address(first, "client")),
                None => command.arg("--bootstrap"),
            };
            let told = servers.spawn(command.arg("--data-dir"), number);
            ready.push(first_line(&told).await);
        }
        let client = Client::connect([address(&ready[0], "client")]).await.expect("it serves");
        replicated(&client, nodes).await;
        let addresses: Vec<String> = ready.iter().map(|ready| address(ready, "etcd").to_owned()).collect();
        servers.leader = leader(&addresses).await;
        servers
    }

    /// Starts a node in a directory of its own; the file that has what it prints.
    fn spawn(&mut self, command: &mut Command, number: usize) -> PathBuf {
        let file = |name: &str| self.directory.path().join(format!("{name}-{number}"));
        let open = |name: &str| File::create(file(name)).expect("a new file");
        command.arg(file("data")).stdin(Stdio::null()).stdout(open("stdout")).stderr(open("stderr"));
        self.processes.push(command.spawn().expect("the program starts"));
        file("stdout")
    }

    /// Processor time that the nodes have used so far.
    pub fn cpu_us(&self) -> u64 {
        self.processes.iter().map(|process| cpu_us(process.id())).sum()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // It may have ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn etcd_program() -> PathBuf {
    let home = std::env::var("HOME").expect("a home directory");
    let tools = std::env::var("STATEHOUSE_TOOLS").unwrap_or(format!("{home}/.cache/statehouse-tools"));
    let path = Path::new(&tools).join("etcd-3.7.3/bin/etcd");
    if !path.exists() {
        let install = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/etcd/install");
        let installed = Command::new(install).arg("go").status().expect("the script runs");
        assert!(installed.success() && path.exists(), "`{install} go` did not bring {}", path.display());
    }
    path
}

fn address<'a>(ready: &'a Value, name: &str) -> &'a str {
    ready["ready"][name].as_str().expect("the ready line has the address")
}

/// Ports that were free a moment ago: all are held at once, so that they differ.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("it is bound").port()).collect()
}

async fn first_line(file: &Path) -> Value {
    let begun = Instant::now();
    loop {
        let told = fs::read_to_string(file).unwrap_or_default();
        if let Some((line, _)) = told.split_once('\n') {
            return serde_json::from_str(line).expect("the ready line is JSON");
        }
        assert!(begun.elapsed() < PATIENCE, "a node is not ready after {PATIENCE:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until every node has a replica that agrees with the leader's.
async fn replicated(client: &Client, nodes: usize) {
    let begun = Instant::now();
    loop {
        let verified = client.verify_machine("kv").await;
        let agreed = verified.as_ref().map(|verified| {
            verified.replicas.len() == nodes
                && verified.replicas.iter().all(|replica| replica.standing.is_ok())
        });
        if matches!(agreed, Ok(true)) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "no {nodes} replicas after {PATIENCE:?}: {verified:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// The address of the node that leads, once there is one.
async fn leader(addresses: &[String]) -> String {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        for address in addresses {
            let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
            let Ok(channel) = endpoint.connect().await else { continue };
            let Ok(status) = MaintenanceClient::new(channel).status(StatusRequest {}).await else { continue };
            let status = status.into_inner();
            let own = status.header.unwrap_or_default().member_id;
            if status.leader == own && own != 0 {
                return address.clone();
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    panic!("nobody leads after {PATIENCE:?}");
}

fn cpu_us(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    // The kernel's unit in /proc is a hundredth of a second on every Linux.
    ticks * 10_000
}
