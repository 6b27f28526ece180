//! A node's face to the network: gRPC for clients, HTTP for those who watch over it.
//!
//! Everything that a program can do with a node over the network is a few lines here around a call of
//! [`Node`]: checking what only the wire can get wrong, and turning values and errors into messages. It
//! promises that every error carries details that a program can act on (`proto::status`), and that a stopping
//! server answers what it has begun.
//!
//! # Layout
//! - `commands`, `leases`, `sessions`, `modules`, `machines`, `nodes`, `watches`: the services of
//!   `proto/statehouse/v1`, a file each
//! - `in_flight`: many requests under way on one stream; `watch_set`: many watches
//! - `gathering`: connections that write what many streams have at once
//! - `http`: metrics and health
//! - `etcd`: etcd's API, on a socket of its own

mod commands;
mod etcd;
mod gathering;
mod http;
mod in_flight;
mod leases;
mod machines;
mod members;
mod modules;
mod nodes;
mod sessions;
mod watch_set;
mod watches;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::server::{Router, TcpIncoming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use self::gathering::Gathering;
use crate::config::{Limits, Listen};
use crate::error::Error;
use crate::id::{Digest, NotADigest};
use crate::node::Node;
use crate::open_files::Places;
use crate::proto::v1::commands_server::CommandsServer;
use crate::proto::v1::leases_server::LeasesServer;
use crate::proto::v1::machines_server::MachinesServer;
use crate::proto::v1::members_server::MembersServer;
use crate::proto::v1::modules_server::ModulesServer;
use crate::proto::v1::nodes_server::NodesServer;
use crate::proto::v1::sessions_server::SessionsServer;
use crate::proto::v1::watches_server::WatchesServer;
use crate::proto::{DESCRIPTORS, status};

/// Room for the other fields of a message beside its payload.
const OVERHEAD_BYTES: u64 = 64 << 10;
/// Bytes of one message of an upload, at most.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Modules or machines in one answer, at most.
const PAGE_MAX: usize = 1_000;
/// Uploads that are received at the same time; the others wait.
const UPLOADS_MAX: usize = 4;
/// How much of a request, and of all requests of a connection, may be on its way before it is read.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// A connection whose other side does not answer a ping within this time is closed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// What the health service speaks of: the node as a whole, and services that need it to be ready.
const HEALTH_SERVICES: [&str; 5] = [
    "",
    "statehouse.v1.Commands",
    "statehouse.v1.Machines",
    "statehouse.v1.Modules",
    "statehouse.v1.Watches",
];
/// How often the health service is told how the node is.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

/// Ends when the server stops.
type Stopping = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What all services share.
struct Serving {
    node: Node,
    limits: Limits,
    uploads: Semaphore,
    stop: watch::Receiver<bool>,
}

impl Serving {
    fn stopping(&self) -> Stopping {
        let mut stop = self.stop.clone();
        Box::pin(async move {
            // The sender is gone only when the server is: then it has stopped.
            let _ = stop.wait_for(|stop| *stop).await;
        })
    }

    /// Whether requests should be sent here.
    fn check_ready(&self) -> Result<(), Error> {
        if *self.stop.borrow() || self.node.is_leaving() {
            return Err(Error::Unavailable("the node is stopping".into()));
        }
        self.node.ready()
    }

    /// The digest that `name` stands for: itself, or a built-in module's.
    async fn module_digest(&self, name: &str) -> Result<Digest, Error> {
        match name.strip_prefix("builtin:") {
            Some(builtin) => self.node.builtin(builtin).await,
            None => parse_digest(name),
        }
    }
}

fn parse_digest(text: &str) -> Result<Digest, Error> {
    text.parse().map_err(|e: NotADigest| Error::Invalid(e.to_string()))
}

/// What a call ends with that failed.
fn refused(error: Error) -> Status {
    status::to_status(&error)
}

/// One page of `all`, which is in the order of `key`: what comes after `after`, and whether there is more.
fn page<T, K: Ord>(
    all: Vec<T>,
    after: Option<&K>,
    limit: u32,
    page_max: usize,
    key: impl Fn(&T) -> &K,
) -> (Vec<T>, bool) {
    let wanted = if limit == 0 { page_max } else { page_max.min(limit as usize) };
    let mut rest = all.into_iter().filter(|item| after.is_none_or(|after| key(item) > after));
    let page: Vec<T> = rest.by_ref().take(wanted).collect();
    (page, rest.next().is_some())
}

/// Where a server listens, with the ports that the system chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// For clients.
    pub client: SocketAddr,
    /// For metrics and health.
    pub http: Option<SocketAddr>,
    /// For clients of etcd.
    pub etcd: Option<SocketAddr>,
}

/// Sockets that are bound, before there is a node to serve.
pub struct Server {
    client: TcpListener,
    http: Option<TcpListener>,
    /// With the machine that answers there.
    etcd: Option<(TcpListener, String)>,
    addresses: Addresses,
}

impl Server {
    /// Binds the addresses, so that a taken one is told before a node is opened.
    ///
    /// # Errors
    /// `FailedPrecondition` names the address and the system's reason.
    pub async fn bind(listen: &Listen) -> Result<Server, Error> {
        let client = bind("client", &listen.client).await?;
        let http = match &listen.http {
            Some(address) => Some(bind("http", address).await?),
            None => None,
        };
        let etcd = match &listen.etcd {
            Some(etcd) => Some((bind("etcd", &etcd.address).await?, etcd.machine.clone())),
            None => None,
        };
        let addresses = Addresses {
            client: local_address(&client)?,
            http: http.as_ref().map(local_address).transpose()?,
            etcd: etcd.as_ref().map(|(listener, _)| local_address(listener)).transpose()?,
        };
        Ok(Server { client, http, etcd, addresses })
    }

    /// The addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Begins to serve `node`. The requests of a connection are served on the tokio runtime of the caller.
    ///
    /// # Errors
    /// `FailedPrecondition` if the descriptors of our own services are not understood.
    pub fn start(self, node: Node, limits: Limits) -> Result<Running, Error> {
        let (stop, stopping) = watch::channel(false);
        let uploads = Semaphore::new(UPLOADS_MAX);
        let serving = Arc::new(Serving { node, limits, uploads, stop: stopping });
        let router = router(&serving)?;
        let places = Places::of_clients();
        let incoming = connections(self.client, places.clone());
        let stopping = serving.stopping();
        let mut tasks = vec![tokio::spawn(async move {
            if let Err(error) = router.serve_with_incoming_shutdown(incoming, stopping).await {
                tracing::error!(%error, "the gRPC server ended");
            }
        })];
        if let Some(listener) = self.http {
            let (pages, stopping) = (http::routes(serving.clone()), serving.stopping());
            tasks.push(tokio::spawn(async move {
                let listener = http::Listener::new(listener);
                let served = axum::serve(listener, pages).with_graceful_shutdown(stopping).await;
                if let Err(error) = served {
                    tracing::error!(%error, "the HTTP server ended");
                }
            }));
        }
        if let Some((listener, machine)) = self.etcd {
            let services = etcd::services(&serving, &machine);
            let incoming = connections(listener, places);
            let stopping = serving.stopping();
            tasks.push(tokio::spawn(async move {
                let server = server().accept_http1(true);
                let served = server.serve_with_incoming_shutdown(services, incoming, stopping).await;
                if let Err(error) = served {
                    tracing::error!(%error, "the server for clients of etcd ended");
                }
            }));
        }
        Ok(Running { stop, tasks, stop_wait: Duration::from_millis(limits.stop_wait_ms) })
    }
}

/// The connections of clients, as they come and as there are places for them. One more is closed.
fn connections(listener: TcpListener, places: Places) -> impl Stream<Item = io::Result<Gathering>> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let placed = move |stream| places.take().map(|place| Gathering::new(stream).in_place(place));
    incoming.filter_map(move |stream| std::future::ready(stream.map(&placed).transpose()))
}

/// A server at work. Dropping it leaves the server at work; [`stop`](Running::stop) ends it.
pub struct Running {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    stop_wait: Duration,
}

impl Running {
    /// Takes no more requests, waits for those under way, but not longer than configured, and closes
    /// everything.
    pub async fn stop(self) {
        let stop_wait = self.stop_wait;
        self.stop_within(stop_wait).await;
    }

    /// The same with another time for requests under way.
    pub async fn stop_within(self, patience: Duration) {
        // Without a receiver there is nothing left to stop.
        let _ = self.stop.send(true);
        let aborts: Vec<_> = self.tasks.iter().map(JoinHandle::abort_handle).collect();
        let ended = async {
            for task in self.tasks {
                if let Err(panic) = task.await {
                    tracing::error!(%panic, "a server panicked");
                }
            }
        };
        if tokio::time::timeout(patience, ended).await.is_err() {
            let waited_ms = patience.as_millis() as u64;
            tracing::warn!(waited_ms, "requests are still under way; their connections are closed");
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
    }
}

async fn bind(what: &str, address: &str) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|e| {
        Error::FailedPrecondition(format!("cannot listen on {address} ({what}): {e}; choose another address"))
    })
}

fn local_address(listener: &TcpListener) -> Result<SocketAddr, Error> {
    listener
        .local_addr()
        .map_err(|e| Error::FailedPrecondition(format!("the system does not tell a socket's address: {e}")))
}

/// How connections are kept.
fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// All services, with the limits on their messages.
fn router(serving: &Arc<Serving>) -> Result<Router, Error> {
    let Limits { command_bytes_max, query_bytes_max, .. } = serving.limits;
    let message_bytes_max = usize::try_from(command_bytes_max.max(query_bytes_max) + OVERHEAD_BYTES)
        .map_err(|_| Error::Invalid("limits.command_bytes_max is over this computer's memory".into()))?;
    let commands = CommandsServer::new(commands::CommandsService::new(serving.clone()));
    let leases = LeasesServer::new(leases::LeasesService::new(serving.clone()));
    let machines = MachinesServer::new(machines::MachinesService::new(serving.clone()));
    let members = MembersServer::new(members::MembersService::new(serving.clone()));
    let modules = ModulesServer::new(modules::ModulesService::new(serving.clone()));
    let nodes = NodesServer::new(nodes::NodesService::new(serving.clone()));
    let sessions = SessionsServer::new(sessions::SessionsService::new(serving.clone()));
    let watches = WatchesServer::new(watches::WatchesService::new(serving.clone()));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|e| Error::FailedPrecondition(format!("the services' descriptors do not read: {e}")))?;
    let (health_reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(health_reporter, serving.clone(), &HEALTH_SERVICES));
    let server = server()
        .add_service(commands.max_decoding_message_size(message_bytes_max))
        .add_service(leases.max_decoding_message_size(message_bytes_max))
        .add_service(machines.max_decoding_message_size(message_bytes_max))
        .add_service(modules.max_decoding_message_size(CHUNK_BYTES_MAX + OVERHEAD_BYTES as usize))
        .add_service(nodes)
        .add_service(members)
        .add_service(sessions)
        .add_service(watches)
        .add_service(reflection)
        .add_service(health);
    Ok(server)
}

/// Keeps a gRPC health service in step with the node until the server stops: what it says of `services`.
async fn report_health(reporter: HealthReporter, serving: Arc<Serving>, services: &[&'static str]) {
    let mut told = None;
    loop {
        let status = match serving.check_ready() {
            Ok(()) => ServingStatus::Serving,
            Err(_) => ServingStatus::NotServing,
        };
        if told != Some(status) {
            for service in services {
                reporter.set_service_status(service, status).await;
            }
            told = Some(status);
        }
        if *serving.stop.borrow() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(HEALTH_INTERVAL) => {}
            () = serving.node.leaves(), if !serving.node.is_leaving() => {}
            () = serving.stopping() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paged(after: Option<u32>, limit: u32) -> (Vec<u32>, bool) {
        page((1..=5).collect(), after.as_ref(), limit, 3, |item| item)
    }

    #[test]
    fn pages_follow_each_other() {
        assert_eq!(paged(None, 2), (vec![1, 2], true));
        assert_eq!(paged(Some(2), 2), (vec![3, 4], true));
        assert_eq!(paged(Some(4), 2), (vec![5], false));
        assert_eq!(paged(Some(5), 2), (vec![], false));
    }

    #[test]
    fn a_page_has_a_limit_of_its_own() {
        assert_eq!(paged(None, 0), (vec![1, 2, 3], true));
        assert_eq!(paged(None, 100), (vec![1, 2, 3], true));
        assert_eq!(paged(Some(2), 0), (vec![3, 4, 5], false));
    }
}
