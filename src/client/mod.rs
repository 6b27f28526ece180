//! Talks to nodes over the network.
//!
//! A [`Client`] knows one or more addresses and uses the first that answers. A request that certainly was not
//! done is tried at the next address: no connection came about, or it ended before the request was sent, or
//! the node said that it did not take it up, as one that stops does. A command whose fate is unknown is not
//! tried again, and ends with [`Error::Unknown`], unless it is of a [`Session`], which makes that safe. Reads
//! are tried again in both cases.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # // A node to talk to, as `statehouse dev` would be one.
//! # use statehouse::{Node, NodeConfig, api::Server, config::{Limits, Listen}};
//! # let data_dir = tempfile::tempdir()?;
//! # let config = NodeConfig { bootstrap: true, ..NodeConfig::new(data_dir.path(), "example") };
//! # let node = Node::open(config).await?;
//! # let server = Server::bind(&Listen { client: "127.0.0.1:0".into(), ..Listen::default() }).await?;
//! # let address = server.addresses().client.to_string();
//! # let server = server.start(node.clone(), Limits::default())?;
//! # let component = std::fs::read("guests/notes/notes.component.wasm")?;
//! use statehouse::Client;
//! use statehouse::machine::outcome::Outcome;
//! use statehouse::node::request::Consistency;
//!
//! // Where a node listens, such as 127.0.0.1:7070; with several, the first that answers is used.
//! let client = Client::connect([&address]).await?;
//!
//! // Upload a state machine, here `guests/notes`, and make a machine of it.
//! let module = client.push_module("notes", component.into(), |_bytes_sent| {}).await?;
//! client.create_machine("notes", &module.digest.to_string(), "").await?;
//!
//! // A command is durable and applied when it is answered; what the guest made of it is the outcome.
//! let applied = client.apply("notes", "milk=two pints").await?;
//! assert_eq!(applied.outcome, Outcome::Ok("two pints".into()));
//! let refused = client.apply("notes", "no equals sign").await?;
//! assert!(matches!(refused.outcome, Outcome::Refused(refusal) if refusal.code == 1));
//!
//! // A query sees everything that was acknowledged before it, or, if that is enough, one's own command.
//! let answered = client.query("notes", "milk", Consistency::Linearizable).await?;
//! assert_eq!(answered.outcome, Ok("two pints".into()));
//! let own = Consistency::Local { min_index: applied.index };
//! assert!(client.query("notes", "milk", own).await?.index >= applied.index);
//! # drop(client);
//! # server.stop().await;
//! # node.shutdown().await;
//! # Ok(())
//! # }
//! ```

mod kept_lease;
mod leaders;
mod leases;
mod members;
mod session;
mod stream;
mod upload;
mod watch;

#[cfg(test)]
mod fate_tests;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

pub use self::kept_lease::KeptLease;
use self::leaders::Leaders;
pub use self::leases::{KeepAliveAnswers, KeepAliveSender};
pub use self::session::{Session, SessionOptions};
pub use self::stream::{ApplyAnswers, ApplySender, QueryAnswers, QuerySender};
pub use self::watch::ClientWatch;
use crate::error::Error;
use crate::id::{Digest, Index};
use crate::machine::settings::Settings;
use crate::node::request::{Answered, Applied, Consistency, Explanation, MachineInfo, ModuleInfo, Verified};
pub use crate::proto::convert::RemoteStatus;
use crate::proto::v1::commands_client::CommandsClient;
use crate::proto::v1::machines_client::MachinesClient;
use crate::proto::v1::modules_client::ModulesClient;
use crate::proto::v1::nodes_client::NodesClient;
use crate::proto::{LEADER, convert, status, v1};
use crate::trace::{self, TraceContext};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request may take, unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long an upload may take, which ends with a compilation.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a reseeding may take: a node gives it an hour for the snapshot, and ten minutes to install it.
const RESEED_TIMEOUT: Duration = Duration::from_secs(4_200);
/// Bytes of an answer, at most: an answer of a guest or a page of a list fits well within.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// How much of an answer, and of all answers of a connection, may be on its way before it is read.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// A way to one or more nodes. Copies share their connections.
#[derive(Clone)]
pub struct Client {
    nodes: Arc<Nodes>,
    timeout: Duration,
    trace: Option<TraceContext>,
    /// None: commands go to the nodes that it was given, whoever leads.
    leaders: Option<Arc<Leaders>>,
}

/// The nodes that a client knows.
struct Nodes {
    nodes: Vec<Peer>,
    /// The one that answered last.
    current: AtomicUsize,
}

/// One node's address, and its connection, which is made when it is needed and again when it broke.
struct Peer {
    address: String,
    channel: Channel,
}

/// What may be done about a request whose fate is unknown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    /// It changes nothing: try it at another node.
    Always,
    /// It changes something: never send it twice.
    IfNotDone,
}

impl Client {
    /// A client of the nodes at `addresses` (`host:port`), once one of them answers.
    ///
    /// # Errors
    /// `Invalid` for an address that is none, `Unavailable` if no node answers.
    pub async fn connect(addresses: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Client, Error> {
        let client = Client::new(addresses)?;
        client.status().await?;
        Ok(client)
    }

    /// The same without a first try: connections are made by the requests.
    ///
    /// # Errors
    /// `Invalid` for an address that is none. Must be called within a tokio runtime.
    pub fn new(addresses: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Client, Error> {
        let nodes: Vec<Peer> =
            addresses.into_iter().map(|address| Peer::new(address.as_ref())).collect::<Result<_, Error>>()?;
        if nodes.is_empty() {
            return Err(Error::Invalid("no address of a node was given".into()));
        }
        Ok(Client {
            nodes: Arc::new(Nodes { nodes, current: AtomicUsize::new(0) }),
            timeout: TIMEOUT,
            trace: None,
            leaders: None,
        })
    }

    /// The same client; its requests are followed through the nodes, as part of a trace. Those on streams are
    /// not.
    pub fn with_trace(self, trace: TraceContext) -> Client {
        Client { trace: Some(trace), ..self }
    }

    /// The same client with another time limit for each request (30 seconds at first; uploads and
    /// reseedings have their own).
    pub fn with_timeout(mut self, timeout: Duration) -> Client {
        self.timeout = timeout;
        self
    }

    /// The same client; its commands go straight to the node that leads their machine, once an answer told
    /// which. That spares them the way through another node. For where the addresses at which the nodes serve
    /// their clients can be reached from here; one that cannot is left alone, and a node that the client was
    /// given passes the command on. Commands on streams go to one node, as before.
    pub fn with_leader_hints(self) -> Client {
        Client { leaders: Some(Arc::new(Leaders::new())), ..self }
    }

    /// Sends one command to a machine and waits until it is durable and applied.
    ///
    /// # Errors
    /// `Unknown` and `DeadlineExceeded`: it may have been applied. All others: it was not.
    pub async fn apply(&self, machine: &str, command: impl Into<Bytes>) -> Result<Applied, Error> {
        self.apply_message(v1::ApplyRequest {
            machine: machine.into(),
            command: command.into(),
            numbered: None,
        })
        .await
    }

    async fn apply_message(&self, message: v1::ApplyRequest) -> Result<Applied, Error> {
        let call = |channel, message: Request<v1::ApplyRequest>| async move {
            CommandsClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX).apply(message).await
        };
        let Some(leaders) = &self.leaders else {
            return self.call(Again::IfNotDone, message, call).await?.try_into();
        };
        let machine = message.machine.clone();
        let leader = leaders.of(&machine);
        let answer = self.call_first(leader.as_deref(), Again::IfNotDone, message, call).await?;
        if let Some(address) = answer.metadata().get(LEADER).and_then(|text| text.to_str().ok()) {
            leaders.told(&machine, address);
        }
        answer.into_inner().try_into()
    }

    /// Asks a machine a question.
    ///
    /// # Errors
    /// `Guest` if the guest failed, and what a network can do.
    pub async fn query(
        &self,
        machine: &str,
        request: impl Into<Bytes>,
        consistency: Consistency,
    ) -> Result<Answered, Error> {
        let message = query_message(machine, request.into(), consistency);
        let call = |channel, message: Request<v1::QueryRequest>| async move {
            CommandsClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX).query(message).await
        };
        self.call(Again::Always, message, call).await?.try_into()
    }

    /// Makes a machine that runs `module`: a digest, or `builtin:kv`.
    ///
    /// # Errors
    /// `NotFound` (the module), `AlreadyExists`, `Invalid` if the guest refuses its configuration.
    pub async fn create_machine(
        &self,
        name: &str,
        module: &str,
        configuration: impl Into<Bytes>,
    ) -> Result<MachineInfo, Error> {
        self.create_replicated(name, module, configuration, 0).await
    }

    /// The same with a number of replicas, 1 to 7; 0: three. As long as there are fewer nodes, it has fewer.
    ///
    /// # Errors
    /// As of [`create_machine`](Client::create_machine).
    pub async fn create_replicated(
        &self,
        name: &str,
        module: &str,
        configuration: impl Into<Bytes>,
        replicas: u32,
    ) -> Result<MachineInfo, Error> {
        self.create_settled(name, module, configuration, replicas, None).await
    }

    /// The same with settings that are not the defaults.
    ///
    /// # Errors
    /// As of [`create_machine`](Client::create_machine); `Invalid` for a setting over its bound.
    pub async fn create_settled(
        &self,
        name: &str,
        module: &str,
        configuration: impl Into<Bytes>,
        replicas: u32,
        settings: Option<Settings>,
    ) -> Result<MachineInfo, Error> {
        let message = v1::CreateMachineRequest {
            name: name.into(),
            module: module.into(),
            configuration: configuration.into(),
            replicas,
            settings: settings.map(Into::into),
        };
        let call = |channel, message| async move { MachinesClient::new(channel).create(message).await };
        self.call(Again::IfNotDone, message, call).await?.try_into()
    }

    /// Has a machine run another module, named by its digest or as `builtin:kv`, and tells the new component,
    /// with `argument`: what it answered. If it refuses or fails, the machine goes on with the present one.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` if the module is of another world, or refuses; `Guest` if it fails; `Unknown`:
    /// it may have been done, which the machine's module tells.
    pub async fn upgrade_machine(
        &self,
        name: &str,
        module: &str,
        argument: impl Into<Bytes>,
    ) -> Result<(MachineInfo, Bytes), Error> {
        let message =
            v1::UpgradeMachineRequest { name: name.into(), module: module.into(), argument: argument.into() };
        let call = |channel, message| async move { MachinesClient::new(channel).upgrade(message).await };
        let upgraded = self.call(Again::IfNotDone, message, call).await?;
        let machine = upgraded.machine.ok_or_else(|| Error::Unknown("an answer without a machine".into()))?;
        Ok((machine.try_into()?, upgraded.answer))
    }

    /// Changes settings of a machine: what `change` names; a zero takes a setting back to its default.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a setting over its bound.
    pub async fn configure_machine(&self, name: &str, change: Settings) -> Result<MachineInfo, Error> {
        let message = v1::ConfigureMachineRequest { name: name.into(), settings: Some(change.into()) };
        let call = |channel, message| async move { MachinesClient::new(channel).configure(message).await };
        // Done twice it is as if it was done once.
        self.call(Again::Always, message, call).await?.try_into()
    }

    /// All machines, by name.
    ///
    /// # Errors
    /// What a network can do.
    pub async fn machines(&self) -> Result<Vec<MachineInfo>, Error> {
        let mut machines: Vec<MachineInfo> = Vec::new();
        loop {
            let after = machines.last().map(|machine| machine.name.clone()).unwrap_or_default();
            let call = |channel, message| async move {
                MachinesClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX).list(message).await
            };
            let message = v1::ListMachinesRequest { limit: 0, after };
            let page = self.call(Again::Always, message, call).await?;
            let more = page.more && !page.machines.is_empty();
            for machine in page.machines {
                machines.push(machine.try_into()?);
            }
            if !more {
                return Ok(machines);
            }
        }
    }

    /// One machine.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn machine(&self, name: &str) -> Result<MachineInfo, Error> {
        let message = v1::GetMachineRequest { name: name.into() };
        let call = |channel, message| async move { MachinesClient::new(channel).get(message).await };
        self.call(Again::Always, message, call).await?.try_into()
    }

    /// Has the leader put its hash into the machine's log, and tells how each replica compares with it.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` without a leader.
    pub async fn verify_machine(&self, name: &str) -> Result<Verified, Error> {
        let message = v1::VerifyMachineRequest { name: name.into() };
        let call = |channel, message| async move { MachinesClient::new(channel).verify(message).await };
        self.call(Again::Always, message, call).await?.try_into()
    }

    /// Gives the replica of a machine on a node, called by its name or id, the leader's state in place of its
    /// own, and waits until it serves again. Answers up to where it has applied the log then. A large machine
    /// takes its time: the limit of other requests does not count.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if there is no such replica, or it leads, or is the only one.
    pub async fn reseed_machine(&self, name: &str, node: &str) -> Result<Index, Error> {
        let message = v1::ReseedMachineRequest { name: name.into(), node: node.into() };
        let call = |channel, message| async move { MachinesClient::new(channel).reseed(message).await };
        let patient = self.clone().with_timeout(RESEED_TIMEOUT);
        Ok(Index(patient.call(Again::Always, message, call).await?.applied_index))
    }

    /// Why the replica of a machine on a node, called by its name or id, has halted, and where it left the
    /// way of the others.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if there is no such replica, or it is not halted.
    pub async fn explain_machine(&self, name: &str, node: &str) -> Result<Explanation, Error> {
        let message = v1::ExplainMachineRequest { name: name.into(), node: node.into() };
        let call = |channel, message| async move { MachinesClient::new(channel).explain(message).await };
        self.call(Again::Always, message, call).await?.try_into()
    }

    /// Deletes a machine with its state and history.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_machine(&self, name: &str) -> Result<(), Error> {
        let message = v1::DeleteMachineRequest { name: name.into() };
        let call = |channel, message| async move { MachinesClient::new(channel).delete(message).await };
        self.call(Again::IfNotDone, message, call).await?;
        Ok(())
    }

    /// All modules, by digest.
    ///
    /// # Errors
    /// What a network can do.
    pub async fn modules(&self) -> Result<Vec<ModuleInfo>, Error> {
        let mut modules: Vec<ModuleInfo> = Vec::new();
        loop {
            let after = modules.last().map(|module| module.digest.to_string()).unwrap_or_default();
            let call = |channel, message| async move {
                ModulesClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX).list(message).await
            };
            let message = v1::ListModulesRequest { limit: 0, after };
            let page = self.call(Again::Always, message, call).await?;
            let more = page.more && !page.modules.is_empty();
            for module in page.modules {
                modules.push(module.try_into()?);
            }
            if !more {
                return Ok(modules);
            }
        }
    }

    /// One module.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn module(&self, digest: Digest) -> Result<ModuleInfo, Error> {
        let message = v1::GetModuleRequest { digest: digest.to_string() };
        let call = |channel, message| async move { ModulesClient::new(channel).get(message).await };
        self.call(Again::Always, message, call).await?.try_into()
    }

    /// How the node is that answers.
    ///
    /// # Errors
    /// What a network can do.
    pub async fn status(&self) -> Result<RemoteStatus, Error> {
        let call = |channel, message| async move { NodesClient::new(channel).status(message).await };
        Ok(self.call(Again::Always, v1::StatusRequest {}, call).await?.into())
    }

    /// Sends `message` with `call` to the nodes in turn, beginning with the one that answered last.
    async fn call<M, A, F>(
        &self,
        again: Again,
        message: M,
        call: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<A, Error>
    where
        M: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.call_first(None, again, message, call).await.map(Response::into_inner)
    }

    /// The same; a machine's leader is tried before them.
    async fn call_first<M, A, F>(
        &self,
        leader: Option<&Peer>,
        again: Again,
        message: M,
        call: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<Response<A>, Error>
    where
        M: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut failures = Failures::default();
        let leader = leader.into_iter().map(|peer| (None, peer));
        let in_turn = self.nodes.in_turn().map(|(number, peer)| (Some(number), peer));
        for (number, peer) in leader.chain(in_turn) {
            match call(peer.channel.clone(), self.request(message.clone())).await {
                Ok(answer) => {
                    if let Some(number) = number {
                        self.nodes.current.store(number, Ordering::Relaxed);
                    }
                    return Ok(answer);
                }
                Err(status) => {
                    let error = status::from_status(&status, &peer.address);
                    if gives_no_answer(&error) {
                        self.avoid(number, peer);
                    }
                    failures.add(again, error)?;
                }
            }
        }
        Err(failures.end())
    }

    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        if let Some(trace) = self.trace {
            let text = trace.to_string().parse().expect("a trace context is hexadecimal digits");
            request.metadata_mut().insert(trace::HEADER, text);
        }
        request
    }

    /// A node gave no answer: one of those that the client was given, or a leader.
    fn avoid(&self, number: Option<usize>, peer: &Peer) {
        match (number, &self.leaders) {
            (Some(number), _) => self.nodes.avoid(number),
            (None, Some(leaders)) => leaders.leave_alone(&peer.address),
            (None, None) => {}
        }
    }
}

impl Nodes {
    /// All nodes once, from the current one on.
    fn in_turn(&self) -> impl Iterator<Item = (usize, &Peer)> {
        let first = self.current.load(Ordering::Relaxed);
        let count = self.nodes.len();
        (first..first + count).map(move |number| (number % count, &self.nodes[number % count]))
    }

    /// A node gave no answer: the next request begins with another, or a client would stay for ever with a
    /// node that is cut off from the others.
    fn avoid(&self, number: usize) {
        let next = (number + 1) % self.nodes.len();
        // Another request may have found a better one meanwhile.
        let _ = self.current.compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn current(&self) -> &Peer {
        &self.nodes[self.current.load(Ordering::Relaxed)]
    }
}

/// Whether an error says that the node cannot be relied on at the moment.
fn gives_no_answer(error: &Error) -> bool {
    matches!(
        error,
        Error::DeadlineExceeded(_) | Error::Unknown(_) | Error::Unavailable(_) | Error::NotLeader { .. }
    )
}

/// Why the nodes tried so far did not do it.
#[derive(Default)]
struct Failures {
    errors: Vec<Error>,
}

impl Failures {
    /// Notes an error after which the next node may be tried.
    ///
    /// # Errors
    /// The error itself, if it is final.
    fn add(&mut self, again: Again, error: Error) -> Result<(), Error> {
        let passing = match &error {
            Error::Unavailable(_) | Error::NotLeader { .. } => true,
            Error::Unknown(_) | Error::Fault(_) => again == Again::Always,
            _ => false,
        };
        if !passing {
            return Err(error);
        }
        self.errors.push(error);
        Ok(())
    }

    /// What the caller is told: the only error, or all in one.
    fn end(mut self) -> Error {
        match (self.errors.pop(), self.errors.is_empty()) {
            (Some(only), true) => only,
            (last, _) => {
                let all: Vec<String> = self.errors.iter().chain(&last).map(ToString::to_string).collect();
                Error::Unavailable(format!("no node did it: {}", all.join("; ")))
            }
        }
    }
}

impl Peer {
    fn new(address: &str) -> Result<Peer, Error> {
        let uri = if address.contains("://") { address.to_string() } else { format!("http://{address}") };
        let endpoint = Endpoint::from_shared(uri)
            .ok()
            .filter(|endpoint| endpoint.uri().scheme_str() == Some("http") && endpoint.uri().port().is_some())
            .ok_or_else(|| {
                Error::Invalid(format!("{address:?} is not an address of a node: host:port is expected"))
            })?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .connect_lazy();
        Ok(Peer { address: address.to_string(), channel })
    }
}

fn query_message(machine: &str, request: Bytes, consistency: Consistency) -> v1::QueryRequest {
    let (mode, min_index) = convert::consistency_fields(consistency);
    v1::QueryRequest { machine: machine.into(), request, consistency: mode.into(), min_index }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_none_is_named() {
        for bad in ["", "nowhere", "https://host:1", "a b:7", "host:99999"] {
            let error = Client::new([bad]).err().expect("no address");
            assert!(matches!(&error, Error::Invalid(text) if text.contains(&format!("{bad:?}"))), "{error}");
        }
        assert!(Client::new(Vec::<String>::new()).is_err());
        assert!(Client::new(["localhost:7070", "[::1]:7070", "http://10.0.0.1:80"]).is_ok());
    }

    #[tokio::test]
    async fn a_node_that_is_not_there_is_unavailable_and_named() {
        // Port 1 of this computer: nothing listens there.
        let client = Client::new(["127.0.0.1:1"]).unwrap();
        let error = client.apply("kv", "x").await.unwrap_err();
        assert!(matches!(&error, Error::Unavailable(text) if text.contains("127.0.0.1:1")), "{error:?}");
        let error = Client::connect(["127.0.0.1:1", "127.0.0.1:2"]).await.err().unwrap();
        let text = error.to_string();
        assert!(matches!(error, Error::Unavailable(_)));
        assert!(text.contains("127.0.0.1:1") && text.contains("127.0.0.1:2"), "{text}");
    }

    #[test]
    fn a_command_of_unknown_fate_is_never_sent_twice() {
        let unknown = || Error::Unknown("broken".into());
        assert!(Failures::default().add(Again::IfNotDone, unknown()).is_err());
        assert!(Failures::default().add(Again::Always, unknown()).is_ok());
        let elsewhere = Error::Unavailable("no leader".into());
        assert!(Failures::default().add(Again::IfNotDone, elsewhere).is_ok());
        assert!(Failures::default().add(Again::Always, Error::NotFound("x".into())).is_err());
    }
}
