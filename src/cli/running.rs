//! What `serve` and `dev` have in common: a node behind its sockets, from opening to the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Usage;
use crate::api::{Addresses, Running, Server};
use crate::cli::ExitCode;
use crate::client::Client;
use crate::config::{ConfigFile, Listen};
use crate::error::{Error, Fault};
use crate::node::Node;
use crate::node::config::{CompileIn, Join, Limits, NodeConfig, PeerConfig};
use crate::open_files;
use crate::time::Clock;

/// What a node is called, unless told otherwise.
pub const NODE_NAME: &str = "node-1";

/// How a process ends that is told twice to stop.
const IMPATIENT: u8 = 130;

/// A node that serves.
pub struct Service {
    pub node: Node,
    pub addresses: Reached,
    running: Running,
    signals: Signals,
    /// How long a stop may wait for what is under way.
    stop_wait: Duration,
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn catch() -> anyhow::Result<Signals> {
        let catch = |kind| signal(kind).context("cannot catch signals");
        Ok(Signals { terminate: catch(SignalKind::terminate())?, interrupt: catch(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Where a service is to be reached.
#[derive(Clone, Debug)]
pub struct Reached {
    pub client: SocketAddr,
    pub http: Option<SocketAddr>,
    pub etcd: Option<SocketAddr>,
    pub peer: Option<String>,
}

/// The node of a configuration. Modules are compiled in processes of this program.
pub fn node_config(
    file: &ConfigFile,
    data_dir: std::path::PathBuf,
    listen: &Listen,
) -> anyhow::Result<NodeConfig> {
    let name = file.name.clone().unwrap_or_else(|| NODE_NAME.into());
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let ConfigFile { limits, guests, storage, .. } = file;
    let join = match file.join.as_slice() {
        [] => None,
        addresses => Some(Join(Arc::new(Client::new(addresses)?))),
    };
    Ok(NodeConfig {
        bootstrap: file.bootstrap.unwrap_or_default(),
        join,
        peer: peer_config(listen)?,
        compile_in: CompileIn::Process(program),
        limits: Limits {
            module_bytes_max: limits.module_bytes_max,
            command_bytes_max: limits.command_bytes_max,
        },
        apply_workers: guests.apply_threads as usize,
        flush_bytes: storage.flush_bytes,
        flush_interval_ms: storage.flush_interval_ms,
        resident_snapshot_entries: storage.resident_snapshot_entries,
        log_keep_entries: storage.log_keep_entries,
        log_keep_bytes: storage.log_keep_bytes,
        read_wait_ms: limits.read_wait_ms,
        watches_max: limits.watches_max as usize,
        remote_watches_max: limits.remote_watches_max as usize,
        watch_queue_bytes_max: usize::try_from(limits.watch_queue_bytes_max)
            .context("limits.watch_queue_bytes_max is more than this computer can address")?,
        watch_progress_ms: limits.watch_progress_ms,
        input_fuel: guests.input_fuel,
        query_fuel: guests.query_fuel,
        query_time_ms: guests.query_time_ms,
        memory_bytes_max: usize::try_from(guests.memory_bytes_max)
            .context("guests.memory_bytes_max is more than this computer can address")?,
        instances_max: guests.instances_max,
        compile_memory_bytes_max: guests.compile_memory_bytes_max,
        compile_seconds_max: guests.compile_seconds_max,
        ..NodeConfig::new(data_dir, name)
    })
}

fn peer_config(listen: &Listen) -> anyhow::Result<Option<PeerConfig>> {
    let Some(address) = listen.peer.clone() else { return Ok(None) };
    let advertise = match &listen.advertise {
        None => None,
        Some(host) => Some(advertised(host, &address)?),
    };
    Ok(Some(PeerConfig { listen: address, advertise }))
}

/// The port of an address that is listened on, on the computer that others call `host`.
fn advertised(host: &str, address: &str) -> anyhow::Result<String> {
    let port = address.rsplit_once(':').map_or("0", |(_, port)| port);
    if port == "0" {
        let text =
            format!("--advertise {host} needs fixed ports, and {address} leaves the choice to the system");
        return Err(Usage(text).into());
    }
    Ok(format!("{host}:{port}"))
}

/// What part of the time of a stop those may use who wait for another node to lead: after that they are told
/// that they were not done.
const HELD: (u32, u32) = (3, 4);

/// Stops a node that is well, within `stop_wait`: it hands over what it leads while it still serves, then
/// clients are sent to other nodes and those under way end, then the node ends. What one step has used of
/// the time the next ones do not get.
async fn stop_well(node: &Node, running: Running, stop_wait: Duration) {
    let begun = Clock::start();
    let left = |of: Duration| of.saturating_sub(Duration::from_nanos(begun.elapsed_ns()));
    let held = stop_wait * HELD.0 / HELD.1;
    node.hand_over_within(left(held)).await;
    let closing = async {
        tokio::time::sleep(left(held)).await;
        node.close_door();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = running.stop_within(left(stop_wait)) => {}
        () = closing => {}
    }
    node.shutdown_within(left(stop_wait)).await;
}

/// How long clients have to read why a node has failed, before their connections are closed.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Opens the node behind the sockets that were bound for `listen`, and begins to serve.
pub async fn start(
    mut config: NodeConfig,
    server: Server,
    listen: &Listen,
    limits: crate::config::Limits,
) -> anyhow::Result<Service> {
    open_files::ask_for_all();
    let signals = Signals::catch()?;
    let Addresses { client, http, etcd } = server.addresses();
    let named = |wanted: &str, bound: SocketAddr| match &listen.advertise {
        Some(host) => advertised(host, wanted),
        None => Ok(bound.to_string()),
    };
    config.client_address = named(&listen.client, client)?;
    if let (Some(wanted), Some(bound)) = (&listen.etcd, etcd) {
        config.etcd_address = named(&wanted.address, bound)?;
    }
    let begins = config.bootstrap;
    let node = Node::begin(config).await?;
    let addresses = Reached { client, http, etcd, peer: node.peer_address() };
    // From here on it tells how it is, also while it waits for the others of its cluster.
    let running = server.start(node.clone(), limits)?;
    let mut signals = signals;
    let opened = tokio::select! {
        opened = node.opened() => opened,
        name = signals.next() => Err(Error::Unavailable(format!("{name} came before the node was ready"))),
    };
    if let Err(why) = opened {
        running.stop().await;
        node.shutdown().await;
        return Err(why.into());
    }
    if let Some(etcd) = listen.etcd.as_ref().filter(|_| begins) {
        create_kv(&node, &etcd.machine).await?;
    }
    let stop_wait = Duration::from_millis(limits.stop_wait_ms);
    Ok(Service { node, addresses, running, signals, stop_wait })
}

/// How long the first start of a cluster waits for its first machine, and how often it looks.
const MACHINE_PATIENCE: Duration = Duration::from_secs(120);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Sees to it that there is a machine of `builtin:kv` under a name, and that it answers if it is new. A
/// creation that takes long, because the computer is busy, goes on by itself.
pub async fn create_kv(node: &Node, name: &str) -> Result<(), Error> {
    if !matches!(node.machine(name), Err(Error::NotFound(_))) {
        return Ok(());
    }
    let module = node.builtin("kv").await?;
    match node.create_machine(name, module, Bytes::new()).await {
        // Somebody else was quicker, or it is on its way.
        Ok(_) | Err(Error::AlreadyExists(_) | Error::Unavailable(_) | Error::Unknown(_)) => {}
        Err(why) => return Err(why),
    }
    let begun = Clock::start();
    while let Err(why) = node.leases(name, 0, 1).await {
        let passing = matches!(why, Error::Unavailable(_) | Error::DeadlineExceeded(_));
        if !passing && !matches!(why, Error::NotLeader { .. } | Error::Unknown(_)) {
            return Err(why);
        }
        if Duration::from_nanos(begun.elapsed_ns()) > MACHINE_PATIENCE {
            tracing::warn!(machine = name, %why, "the machine is still being created; it is served when it \
                is");
            return Ok(());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

impl Service {
    /// Serves until a signal comes or the node fails. A second signal ends the process at once.
    ///
    /// # Errors
    /// The node's fault: what it had acknowledged is safe, but it cannot go on.
    pub async fn until_end(self) -> anyhow::Result<ExitCode> {
        let Service { node, running, mut signals, stop_wait, .. } = self;
        let fault: Option<Fault> = tokio::select! {
            name = signals.next() => {
                tracing::info!("{name}: stopping");
                None
            }
            fault = node.failed() => Some(fault),
        };
        let stop = async {
            match &fault {
                None => stop_well(&node, running, stop_wait).await,
                // Requests under way wait for a node that will do nothing more: they are told so at once, and
                // get to read it. A connection that is closed too soon can take the answer with it.
                Some(_) => {
                    tokio::join!(node.shutdown_within(Duration::ZERO), tokio::time::sleep(LAST_WORDS));
                    running.stop().await;
                }
            }
        };
        tokio::select! {
            () = stop => {}
            name = signals.next() => {
                tracing::warn!("{name} again: not waiting any longer; the next start replays the log");
                return Ok(ExitCode::from(IMPATIENT));
            }
        }
        match fault {
            None => {
                tracing::info!("stopped");
                Ok(ExitCode::SUCCESS)
            }
            Some(fault) => Err(anyhow::Error::new(Error::Fault(fault))
                .context("the node has stopped after a fault; what it acknowledged is on disk")),
        }
    }
}
