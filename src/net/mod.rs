//! What nodes say to each other, over TCP in frames of their own: one unary gRPC call costs more than a whole
//! frame of messages of many groups.
//!
//! A node makes one connection to each other node and sends on it, for all groups, what their replicas tell
//! each other, and requests to the other node's host; the answers come back on it. The other does the same in
//! its direction. Files go over connections of their own.
//!
//! # Promises
//! - Nobody who sends waits; what waits to be sent is bounded, and messages over the bound are dropped and
//!   counted: Raft repeats them.
//! - Messages are lost, late or in another order only when a connection ends; never changed.
//! - Whatever arrives is checked: checksums, lengths before memory is taken, counts, kinds. What is wrong
//!   ends the connection it came on, with a warning that names the peer and the fault; never more.
//! - A request ends with its answer, or with what is known of its fate ([`AskError`]).
//! - A located node that is not heard any more is told to the host, once each time.
//!
//! # Layout
//! - `frame`: lengths and checksums; `wire`: Raft's messages as bytes. Pure
//! - `greeting`: who connects, and who is turned away
//! - `socket`: a connection as frames
//! - `outlet`: the sending half: what waits, and who writes
//! - `link`: a connection made to another node; `peers`: all of them, and who has fallen silent
//! - `accept`: connections made by other nodes
//! - `ask`: requests and their answers
//! - `bulk`, `fetch`: sending and fetching files; `throttle`: how fast
//! - `config`, `counters`: limits, and what went over the links

mod accept;
mod ask;
mod bulk;
mod config;
mod counters;
mod fetch;
mod frame;
mod greeting;
mod link;
mod outlet;
mod peers;
mod socket;
mod throttle;
mod wire;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use self::accept::{Guests, Reception};
pub use self::ask::AskError;
use self::bulk::Library;
pub use self::bulk::{BulkName, BulkSource};
pub use self::config::NetConfig;
pub use self::counters::{NetCounters, PeerCounters};
pub use self::fetch::{Bulk, FetchError};
use self::greeting::Identity;
pub use self::greeting::{DataAge, Refusal};
use self::peers::Peers;
use crate::error::Error;
use crate::id::{GroupId, NodeId};
use crate::raft::message::PeerMessage;
use crate::raft::output::PeerOut;
use crate::time::{self, Clock};

/// How long a stop waits for what was queued to leave, and for others to take note of it.
const LEAVE_MS: u64 = 500;

/// What the node does with what arrives. Called on tokio's threads: it must not block long.
pub trait Host: Send + Sync + 'static {
    /// Messages of a node's replicas, in the order in which they were sent on one connection.
    fn messages(&self, from: NodeId, messages: Vec<(GroupId, PeerMessage)>);

    /// A request. Called in its place among the messages of the connection; what it returns runs as a task of
    /// its own, and is dropped when the asker's connection ends.
    fn ask(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes>;

    /// Nothing that a located node sends has arrived for a while. Told once, until it is heard again.
    fn silent(&self, node: NodeId);

    /// Whether a node may connect with data of this age, or stay when that has grown.
    fn admit(&self, node: NodeId, age: DataAge) -> Result<(), NotAdmitted>;

    /// A node refused this one's link. Told once, again only for another reason or after it was welcome.
    fn turned_away(&self, by: NodeId, refusal: Refusal);

    /// A file to send; [`Error::NotFound`] if it is not here. Called on a thread that may block.
    fn open_bulk(&self, from: NodeId, name: BulkName) -> Result<BulkSource, Error>;
}

/// Why a node may not connect. It is told the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// It must not come back: told as [`Refusal::Removed`].
    ForGood(String),
    /// It may try again soon: told as [`Refusal::Busy`].
    ForNow(String),
}

/// What all connections share.
struct Context {
    config: NetConfig,
    me: Identity,
    age: AtomicU64,
    host: Arc<dyn Host>,
    clock: Clock,
    runtime: Handle,
    greetings_refused: AtomicU64,
    bulk_received_bytes: AtomicU64,
}

impl Context {
    /// Who this node is now.
    fn me(&self) -> Identity {
        Identity { age: self.age.load(Ordering::Relaxed), ..self.me }
    }
}

/// This node's end of everything between nodes. See the head of this file.
///
/// It holds its host until it is dropped: what owns it should not be owned by the host.
pub struct Net {
    context: Arc<Context>,
    peers: Arc<Peers>,
    guests: Arc<Guests>,
    library: Arc<Library>,
    address: SocketAddr,
    advertised: String,
    unlocated_dropped: AtomicU64,
    tasks: Mutex<JoinSet<()>>,
}

impl Net {
    /// Binds and begins to take connections. Nobody is located yet.
    pub async fn start(config: NetConfig, host: Arc<dyn Host>) -> Result<Net, Error> {
        config.check()?;
        let (listener, address) = bind(&config.listen).await?;
        let advertised = advertised(&config, address)?;
        let me = Identity {
            cluster: config.cluster,
            node: config.node,
            incarnation: time::seed(),
            frame_bytes_max: config.frame_bytes_max,
            age: config.age,
            life: config.life,
        };
        let context = Arc::new(Context {
            age: AtomicU64::new(config.age),
            config,
            me,
            host,
            clock: Clock::start(),
            runtime: Handle::current(),
            greetings_refused: AtomicU64::new(0),
            bulk_received_bytes: AtomicU64::new(0),
        });
        let peers = Arc::new(Peers::new(context.clone()));
        let guests = Arc::new(Guests::default());
        let library = Arc::new(Library::new(context.clone()));
        let reception = Reception {
            context: context.clone(),
            peers: peers.clone(),
            library: library.clone(),
            guests: guests.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(reception.run(listener));
        let listening = peers.clone();
        tasks.spawn(async move { listening.listen_for_silence().await });
        Ok(Net {
            context,
            peers,
            guests,
            library,
            address,
            advertised,
            unlocated_dropped: AtomicU64::new(0),
            tasks: Mutex::new(tasks),
        })
    }

    /// How old this node says its data is.
    pub fn age(&self) -> DataAge {
        let Identity { incarnation, life, age, .. } = self.context.me();
        DataAge { incarnation, life, age }
    }

    /// Tells the others, and those who connect later, how old this node's data is by now.
    pub fn grow_older(&self, age: u64) {
        self.context.age.store(age, Ordering::Relaxed);
        for link in self.peers.all() {
            link.tell_age(age);
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where others find this node, as `host:port`.
    pub fn advertised(&self) -> &str {
        &self.advertised
    }

    /// Says where a node is, as `host:port`: from now on there is a link to it. `None` forgets the node, and
    /// ends what it has connected. The name is resolved again for each connection.
    pub fn locate(&self, node: NodeId, address: Option<String>) {
        let forgotten = address.is_none();
        self.peers.locate(node, address);
        if forgotten {
            self.guests.show_out(node);
        }
    }

    /// Sends messages, from any thread. Never waits: what cannot be sent is dropped and counted.
    pub fn send(&self, messages: Vec<PeerOut>) {
        for (to, messages) in by_node(messages) {
            match self.peers.get(to) {
                Some(link) => {
                    link.queue(messages);
                    link.flush();
                }
                None => {
                    self.unlocated_dropped.fetch_add(messages.len() as u64, Ordering::Relaxed);
                }
            }
        }
    }

    /// Asks another node's host. Waits no longer than `patience`, however it stands with the link.
    pub async fn ask(&self, to: NodeId, request: Bytes, patience: Duration) -> Result<Bytes, AskError> {
        match self.peers.get(to) {
            Some(link) => link.ask(request, patience).await,
            None => Err(AskError::NotSent(format!("the address of node {to} is not known here"))),
        }
    }

    /// Fetches a file from another node, from `offset` on.
    pub async fn fetch(&self, from: NodeId, name: BulkName, offset: u64) -> Result<Bulk, FetchError> {
        let link = self.peers.get(from).ok_or(FetchError::Unlocated(from))?;
        Bulk::open(self.context.clone(), from, &link.address, name, offset).await
    }

    /// What went over the links so far.
    pub fn counters(&self) -> NetCounters {
        let now_ms = self.context.clock.now().monotonic_ms;
        let mut peers: Vec<_> = self.peers.all().iter().map(|link| link.counters(now_ms)).collect();
        peers.sort_by_key(|peer| peer.node);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NetCounters {
            peers,
            bulk_sent_bytes: read(&self.library.sent_bytes),
            bulk_received_bytes: read(&self.context.bulk_received_bytes),
            unlocated_dropped: read(&self.unlocated_dropped),
            greetings_refused: read(&self.context.greetings_refused),
        }
    }

    /// Takes leave of the others: no request is taken up any more, those that run are answered and what is
    /// queued leaves, as far as that is soon done; whoever asked something that was not taken up knows that.
    /// Then ends all connections. Requests of others that still run are dropped. Later messages are dropped,
    /// later requests not sent.
    pub async fn shutdown(&self) {
        let deadline_ms = self.context.clock.now().monotonic_ms + LEAVE_MS;
        self.guests.leave();
        while (self.guests.has_links() || self.peers.all().iter().any(|link| !link.is_idle()))
            && self.context.clock.now().monotonic_ms < deadline_ms
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.peers.end(&"this node stops".into());
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.peers.end(&"this node stops".into());
    }
}

async fn bind(listen: &str) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |error: std::io::Error| {
        let text = format!("cannot listen for peers on {listen:?}: {error}");
        match error.kind() {
            std::io::ErrorKind::AddrInUse => Error::AlreadyExists(format!("{text}: choose another address")),
            _ => Error::Invalid(format!("{text}: give it as host:port of this computer")),
        }
    };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Where others find this node.
fn advertised(config: &NetConfig, address: SocketAddr) -> Result<String, Error> {
    match &config.advertise {
        Some(advertise) => Ok(advertise.clone()),
        None if address.ip().is_unspecified() => Err(Error::Invalid(format!(
            "{:?} stands for all addresses of this computer, and other nodes need one of them: say which \
             one to advertise to them, as host:port",
            config.listen
        ))),
        None => Ok(address.to_string()),
    }
}

/// Sorts messages by where they go, in their order.
fn by_node(messages: Vec<PeerOut>) -> Vec<(NodeId, Vec<(GroupId, PeerMessage)>)> {
    let mut sorted: Vec<(NodeId, Vec<_>)> = Vec::new();
    for PeerOut { to, group, message } in messages {
        // Nodes are few: looking through them costs less than a map.
        match sorted.iter_mut().find(|(node, _)| *node == to) {
            Some((_, messages)) => messages.push((group, message)),
            None => sorted.push((to, vec![(group, message)])),
        }
    }
    sorted
}
