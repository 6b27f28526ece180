//! Exactly-once commands: a [`Session`] sends each until it is answered, and it is applied once; and the
//! calls that it is made of, for programs that number their commands themselves.

mod again;
mod numbers;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use self::again::Tries;
use self::numbers::Numbers;
use super::{Again, Client};
use crate::error::Error;
use crate::machine::batch::Numbered;
use crate::node::request::{Applied, Opened};
use crate::proto::v1;
use crate::proto::v1::sessions_client::SessionsClient;

/// A session is kept alive this many times within its time to live.
const RENEWALS: u32 = 3;

/// How a session is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionOptions {
    /// How long it lives when nothing is heard of this client (30 seconds). While the session is there it is
    /// kept alive in the background, three times as often.
    pub ttl: Duration,
    /// How long a command may take, with everything that is done about failures (30 seconds).
    pub patience: Duration,
    /// How many commands may be under way at the same time; further ones wait. Never more than the machine's
    /// window for sessions, which is what it is at first.
    pub in_flight_max: u64,
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        let (ttl, patience) = (Duration::from_secs(30), Duration::from_secs(30));
        SessionOptions { ttl, patience, in_flight_max: u64::MAX }
    }
}

impl SessionOptions {
    /// The same with another time to live.
    pub fn with_ttl(self, ttl: Duration) -> SessionOptions {
        SessionOptions { ttl, ..self }
    }

    /// The same with another time for each command.
    pub fn with_patience(self, patience: Duration) -> SessionOptions {
        SessionOptions { patience, ..self }
    }

    /// The same with another bound on the commands under way.
    pub fn with_in_flight_max(self, in_flight_max: u64) -> SessionOptions {
        SessionOptions { in_flight_max, ..self }
    }
}

/// A session of a machine: its commands are applied exactly once, whatever nodes and connections do
/// meanwhile.
///
/// [`apply`](Session::apply) sends a command, to another node if need be and again if its fate is unknown,
/// until it has the outcome or its time is over. The machine keeps each outcome until this client has it, and
/// tells it to every further sending instead of applying the command again: across changes of leaders,
/// restarts and snapshots. What this client has is acknowledged with the next command, so commands should
/// keep coming from one session rather than each from a new one.
///
/// Many commands may be under way: share the session (`&Session`, or in an `Arc`) among tasks. They are
/// applied in any order; for an order, wait for the outcome of the one before.
///
/// A command whose time is over, or whose future is dropped, is given up: whether it was applied is unknown.
/// It is not applied any more once a later command of the session has its outcome, or the session is closed.
///
/// The session ends when it is closed, or when nothing was heard of the client for its time to live: then its
/// commands end with [`Error::SessionExpired`], and nothing is applied twice. Dropping it closes it in the
/// background, on the runtime it was opened on, as far as that still runs; otherwise it expires.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use statehouse::{Node, NodeConfig, api::Server, config::{Limits, Listen}};
/// # let data_dir = tempfile::tempdir()?;
/// # let config = NodeConfig { bootstrap: true, ..NodeConfig::new(data_dir.path(), "example") };
/// # let node = Node::open(config).await?;
/// # let server = Server::bind(&Listen { client: "127.0.0.1:0".into(), ..Listen::default() }).await?;
/// # let address = server.addresses().client.to_string();
/// # let server = server.start(node.clone(), Limits::default())?;
/// # let component = std::fs::read("guests/counter/counter.component.wasm")?;
/// # let client = statehouse::Client::connect([&address]).await?;
/// # let module = client.push_module("counter", component.into(), |_| {}).await?;
/// # client.create_machine("sum", &module.digest.to_string(), "").await?;
/// use statehouse::Client;
/// use statehouse::client::SessionOptions;
/// use statehouse::machine::outcome::Outcome;
///
/// // All nodes of the cluster: those that are there are used.
/// let client = Client::new([&address])?;
/// let session = client.session("sum", SessionOptions::default()).await?;
///
/// // `guests/counter` adds: a command that is applied twice would show.
/// let outcomes = futures_util::future::try_join_all((0..100).map(|_| session.apply("1"))).await?;
/// assert_eq!(outcomes.len(), 100);
/// assert_eq!(session.apply("0").await?.outcome, Outcome::Ok("100".into()));
/// session.close().await?;
/// # drop(client);
/// # server.stop().await;
/// # node.shutdown().await;
/// # Ok(())
/// # }
/// ```
pub struct Session {
    inner: Arc<Inner>,
    /// Keeps it alive.
    keeper: AbortHandle,
    /// Where it was opened.
    runtime: Handle,
    closed: bool,
}

struct Inner {
    client: Client,
    machine: String,
    id: u64,
    patience: Duration,
    numbers: Numbers,
    /// Sendings of commands that were sent before.
    repeated: AtomicU64,
}

impl Client {
    /// Opens a session of a machine. Its commands go to the machine's leader, as with
    /// [`with_leader_hints`](Client::with_leader_hints), and to the other nodes when that fails.
    ///
    /// # Errors
    /// `Invalid` for a time to live that cannot be; `NotFound`; `LimitReached` if the machine has as many
    /// sessions as it may; `Unavailable` if no node opened it within `patience`. Must be called within a
    /// tokio runtime.
    pub async fn session(&self, machine: &str, options: SessionOptions) -> Result<Session, Error> {
        let client = if self.leaders.is_some() { self.clone() } else { self.clone().with_leader_hints() };
        let (what, mut tries) =
            (format!("opening a session of {machine:?}"), Tries::within(options.patience));
        let opened = loop {
            let opening = client.clone().with_timeout(tries.next());
            match opening.open_session(machine, options.ttl).await {
                Ok(opened) => break opened,
                // One too many is no harm: it ends by itself.
                Err(why) => tries.again(&what, why).await?,
            }
        };
        let inner = Arc::new(Inner {
            client,
            machine: machine.to_owned(),
            id: opened.session,
            patience: options.patience,
            numbers: Numbers::new(opened.window.min(options.in_flight_max)),
            repeated: AtomicU64::new(0),
        });
        let runtime = Handle::current();
        let keeper = runtime.spawn(keep_alive(inner.clone(), opened.ttl)).abort_handle();
        Ok(Session { inner, keeper, runtime, closed: false })
    }
}

impl Session {
    /// Its id: that of its lease.
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// Sends a command until its outcome is known, for as long as the options say.
    ///
    /// # Errors
    /// See [`apply_within`](Session::apply_within).
    pub async fn apply(&self, command: impl Into<Bytes>) -> Result<Applied, Error> {
        self.apply_within(command, self.inner.patience).await
    }

    /// Sends a command until its outcome is known, for at most `patience`.
    ///
    /// # Errors
    /// `DeadlineExceeded`: the time is over, and whether it was applied is unknown; `Unavailable`: the time
    /// is over, and it certainly was not. `SessionExpired`: it was not applied now, and whether an earlier
    /// sending was is unknown. `Unknown`: another error came after a sending of unknown fate. All others: it
    /// was not applied.
    pub async fn apply_within(
        &self,
        command: impl Into<Bytes>,
        patience: Duration,
    ) -> Result<Applied, Error> {
        let (inner, command, mut tries) = (&self.inner, command.into(), Tries::within(patience));
        let number = tokio::time::timeout(patience, inner.numbers.next()).await;
        let number = number.map_err(|_| inner.no_room(patience))?.map_err(|_| inner.ended())?;
        let what = format!("command {} of session {}", number.number, inner.id);
        loop {
            let sending = inner.send(number.number, command.clone(), tries.next());
            let why = match tokio::time::timeout(tries.left(), sending).await {
                Ok(Ok(applied)) => return Ok(applied),
                Ok(Err(why)) => why,
                Err(_) => return Err(tries.late_under_way(&what)),
            };
            tracing::debug!(what, %why, "a sending of a command failed");
            tries.again(&what, why).await?;
            inner.repeated.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often commands were sent again since the session was opened.
    pub fn repeated(&self) -> u64 {
        self.inner.repeated.load(Ordering::Relaxed)
    }

    /// Whether this client has learned that the session has ended.
    pub fn has_ended(&self) -> bool {
        self.inner.numbers.has_ended()
    }

    /// Closes it. Commands that were given up are not applied from then on.
    ///
    /// # Errors
    /// `SessionExpired` if it had ended before; else what a network can do: then it expires by itself.
    pub async fn close(mut self) -> Result<(), Error> {
        self.closed = true;
        self.keeper.abort();
        self.inner.close().await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeper.abort();
        if self.closed || self.has_ended() {
            return;
        }
        let inner = self.inner.clone();
        self.runtime.spawn(async move {
            if let Err(why) = inner.close().await {
                tracing::debug!(session = inner.id, %why, "a session that was dropped is left to expire");
            }
        });
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { machine, id, .. } = &*self.inner;
        f.debug_struct("Session").field("machine", machine).field("id", id).finish_non_exhaustive()
    }
}

impl Inner {
    /// Sends a command once. What is acknowledged with it is what is at this moment.
    async fn send(&self, number: u64, command: Bytes, patience: Duration) -> Result<Applied, Error> {
        let numbered = Numbered { session: self.id, number, acknowledged: self.numbers.acknowledged() };
        let client = self.client.clone().with_timeout(patience);
        let sent = client.apply_numbered(&self.machine, command, numbered).await;
        if matches!(sent, Err(Error::SessionExpired(_))) {
            self.numbers.end();
        }
        sent
    }

    async fn close(&self) -> Result<(), Error> {
        self.numbers.end();
        let (what, mut tries) = (format!("closing session {}", self.id), Tries::within(self.patience));
        loop {
            let client = self.client.clone().with_timeout(tries.next());
            match client.close_session(&self.machine, self.id).await {
                // An earlier try closed it.
                Err(Error::NotFound(_)) if tries.failed() > 0 => return Ok(()),
                Err(Error::NotFound(_)) => return Err(self.ended()),
                Err(why) => tries.again(&what, why).await?,
                Ok(()) => return Ok(()),
            }
        }
    }

    fn ended(&self) -> Error {
        Error::SessionExpired(format!(
            "the session {} of {:?} has ended: this command was not sent; whether others were applied whose \
             outcome was not told is unknown: look at the machine's state, and open a new session",
            self.id, self.machine
        ))
    }

    fn no_room(&self, patience: Duration) -> Error {
        Error::Unavailable(format!(
            "session {} has as many commands under way as it may, and none ended within {} ms: the command \
             was not sent",
            self.id,
            patience.as_millis()
        ))
    }
}

/// Renews a session for as long as this client has it. Nobody here decides that it has ended: a client that
/// hears nothing cannot know.
async fn keep_alive(inner: Arc<Inner>, ttl: Duration) {
    let interval = ttl / RENEWALS;
    let what = format!("keeping session {} alive", inner.id);
    loop {
        tokio::time::sleep(interval).await;
        let mut tries = Tries::within(ttl);
        loop {
            // A node that is silent must not take the time that the others need.
            let client = inner.client.clone().with_timeout(tries.next().min(interval));
            let why = match client.renew_leases(&inner.machine, &[inner.id]).await {
                Ok(renewed) if renewed == [None] => return inner.numbers.end(),
                Ok(_) => break,
                Err(why) => why,
            };
            if let Err(why) = tries.again(&what, why).await {
                tracing::warn!(session = inner.id, %why, "a session was not kept alive; it goes on being \
                    tried");
                break;
            }
        }
    }
}

/// Sessions by hand: for programs that number their commands themselves.
impl Client {
    /// Opens a session of a machine, which ends when it is not kept alive for `ttl`: it is a lease, with
    /// [`renew_leases`](Client::renew_leases).
    ///
    /// # Errors
    /// `Invalid` for a time to live that cannot be, `LimitReached`, `NotFound`.
    pub async fn open_session(&self, machine: &str, ttl: Duration) -> Result<Opened, Error> {
        let message = v1::OpenSessionRequest { machine: machine.into(), ttl_ms: ttl.as_millis() as u64 };
        let call = |channel, message| async move { SessionsClient::new(channel).open(message).await };
        // One too many ends by itself.
        Ok(self.call(Again::Always, message, call).await?.into())
    }

    /// Closes a session. None of its commands is applied from then on.
    ///
    /// # Errors
    /// `NotFound` if there is none, or none any more.
    pub async fn close_session(&self, machine: &str, session: u64) -> Result<(), Error> {
        let message = v1::CloseSessionRequest { machine: machine.into(), session };
        let call = |channel, message| async move { SessionsClient::new(channel).close(message).await };
        self.call(Again::Always, message, call).await.map(drop)
    }

    /// Sends a command that has a place in a session, once. Whatever comes of it, it may be sent again with
    /// the same place: it is applied once, and answered with its first outcome.
    ///
    /// # Errors
    /// `SessionExpired`, `NumberPassed`, `NumberAhead`; else as of [`apply`](Client::apply).
    pub async fn apply_numbered(
        &self,
        machine: &str,
        command: impl Into<Bytes>,
        numbered: Numbered,
    ) -> Result<Applied, Error> {
        let (machine, numbered) = (machine.into(), Some(numbered.into()));
        self.apply_message(v1::ApplyRequest { machine, command: command.into(), numbered }).await
    }
}
