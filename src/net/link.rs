//! This node's connection to one other, over which its messages and requests go, and the answers come back.
//!
//! One task keeps it standing: it resolves the address, connects, greets, and does so again with growing and
//! jittered pauses when that fails or the connection ends.
//!
//! Promises: while the first connection is being made, and right after a good one ended, what is sent waits
//! in the queue; once an attempt has failed, messages are dropped (Raft repeats them) and requests are told
//! at once that they were not sent, and why.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::Context;
use super::ask::{AskError, Bounds, ENVELOPE_BYTES};
use super::counters::{PeerCounters, Traffic};
use super::frame::Kind;
use super::greeting::{self, NotWelcome, PAYLOAD_BYTES_MAX, Purpose, Refusal, Welcome};
use super::outlet::{Life, Out, Outlet};
use super::socket::{Socket, Trouble};
use crate::id::{GroupId, NodeId};
use crate::raft::message::PeerMessage;
use crate::time;

/// The pause after the first failure; it doubles with each that follows.
const PAUSE_MIN_MS: u64 = 50;
/// The longest pause.
const PAUSE_MAX_MS: u64 = 1_000;
/// The longest pause while the node is there and says that it is not ready for this one yet.
const PAUSE_BUSY_MS: u64 = 200;
/// A connection that stood for so long was a good one: pauses begin anew.
const GOOD_AFTER_MS: u64 = 1_000;

/// See the head of this file.
pub(super) struct Link {
    pub(super) node: NodeId,
    pub(super) address: String,
    context: Arc<Context>,
    /// Where things to be sent go now. Another for each connection.
    outlet: ArcSwap<Outlet>,
    pub(super) traffic: Arc<Traffic>,
    /// When something of the node last arrived on the connection that it made.
    heard_ms: AtomicU64,
    /// Its silence was told.
    silent: AtomicBool,
    state: Mutex<Standing>,
    /// Connect now: the other is there.
    poke: Notify,
    closed: AtomicBool,
}

#[derive(Default)]
struct Standing {
    connected: bool,
    trouble: Option<String>,
    task: Option<JoinHandle<()>>,
}

impl Link {
    /// Begins to connect.
    pub(super) fn start(context: Arc<Context>, node: NodeId, address: String) -> Arc<Link> {
        let traffic = Arc::new(Traffic::default());
        let link = Arc::new(Link {
            node,
            address,
            outlet: ArcSwap::from(outlet(&context, &traffic)),
            traffic,
            heard_ms: AtomicU64::new(context.clock.now().monotonic_ms),
            silent: AtomicBool::new(false),
            state: Mutex::default(),
            poke: Notify::new(),
            closed: AtomicBool::new(false),
            context,
        });
        let task = link.context.runtime.spawn(link.clone().keep());
        link.state.lock().task = Some(task);
        link
    }

    /// Ends it for good.
    pub(super) fn close(&self, why: &Arc<str>) {
        self.closed.store(true, Ordering::SeqCst);
        let task = {
            let mut state = self.state.lock();
            state.connected = false;
            state.task.take()
        };
        if let Some(task) = task {
            task.abort();
        }
        self.outlet.load().close(why);
    }

    /// Queues messages; they leave with the next `flush`.
    pub(super) fn queue(&self, messages: impl IntoIterator<Item = (GroupId, PeerMessage)>) {
        self.outlet.load().queue(messages);
    }

    /// Tells the node how old this one's data is. If it cannot be told now, the next greeting tells it.
    pub(super) fn tell_age(&self, age: u64) {
        let outlet = self.outlet.load();
        if !outlet.is_closed() {
            let _ = outlet.push(Out::Age(age));
        }
    }

    /// Sends what is queued.
    pub(super) fn flush(&self) {
        self.outlet.load().flush();
    }

    /// Whether all that was queued has been handed to the system, or cannot be.
    pub(super) fn is_idle(&self) -> bool {
        self.outlet.load().is_idle()
    }

    /// Something of the node arrived.
    pub(super) fn heard(&self) {
        self.heard_ms.store(self.context.clock.now().monotonic_ms, Ordering::Relaxed);
        if self.silent.load(Ordering::Relaxed) && self.silent.swap(false, Ordering::Relaxed) {
            tracing::info!(node = %self.node, "the node is heard again");
        }
    }

    /// What it said meanwhile has not been read yet: its silence is counted from now on.
    pub(super) fn excuse(&self) {
        self.heard_ms.store(self.context.clock.now().monotonic_ms, Ordering::Relaxed);
    }

    /// Whether the node has just fallen silent: true once each time.
    pub(super) fn falls_silent(&self, now_ms: u64, silent_after_ms: u64) -> bool {
        let quiet_ms = now_ms.saturating_sub(self.heard_ms.load(Ordering::Relaxed));
        quiet_ms > silent_after_ms && !self.silent.swap(true, Ordering::Relaxed)
    }

    /// The node connected to this one, so it can be reached again.
    pub(super) fn poke(&self) {
        if !self.state.lock().connected {
            self.poke.notify_one();
        }
    }

    /// Asks the node's host, and waits for the answer no longer than `patience`.
    pub(super) async fn ask(&self, request: Bytes, patience: Duration) -> Result<Bytes, AskError> {
        let bytes_max = self.context.config.frame_bytes_max - ENVELOPE_BYTES;
        if request.len() > bytes_max {
            let text = format!("it has {} bytes, the limit is {bytes_max}", request.len());
            return Err(AskError::NotSent(text));
        }
        let outlet = self.outlet.load_full();
        let (id, answer) = outlet.asks.begin(request.len())?;
        // Also when the caller goes away.
        let asked = Asked { outlet: &outlet, id };
        if let Err(error) = outlet.push(Out::Ask { id, request }) {
            return Err(AskError::NotSent(error.to_string()));
        }
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(AskError::Unknown("the link was taken down".into())),
            Err(_) if asked.outlet.withdraw(id) => {
                let text = format!("the link to the node was not free within {} ms", patience.as_millis());
                Err(AskError::NotSent(text))
            }
            Err(_) => {
                let text = format!("no answer came within {} ms", patience.as_millis());
                Err(AskError::Unknown(text))
            }
        }
    }

    /// Keeps the connection standing.
    async fn keep(self: Arc<Link>) {
        let mut pauses = Pauses::default();
        let mut told = None;
        loop {
            let began_ms = self.context.clock.now().monotonic_ms;
            match self.connect().await {
                Ok((socket, welcome)) => {
                    told = None;
                    let trouble = self.converse(socket, welcome).await;
                    match trouble {
                        Trouble::Farewell => tracing::info!(node = %self.node, "the node stops"),
                        _ => {
                            tracing::warn!(node = %self.node, address = self.address, %trouble, "a link has \
                                ended");
                        }
                    }
                    let lived_ms = self.context.clock.now().monotonic_ms - began_ms;
                    if lived_ms >= GOOD_AFTER_MS {
                        pauses = Pauses::default();
                    }
                }
                Err(error) => {
                    if matches!(error, NotWelcome::Refused(Refusal::Busy(_))) {
                        pauses.shorten(PAUSE_BUSY_MS);
                    }
                    self.not_connected(error, &mut told);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pauses.next()) => {}
                () = self.poke.notified() => {}
            }
        }
    }

    /// Resolves, connects and greets.
    async fn connect(&self) -> Result<(Socket, Welcome), NotWelcome> {
        connect(&self.context, self.node, &self.address, Purpose::Link).await
    }

    /// Sends and receives until the connection ends.
    async fn converse(&self, mut socket: Socket, welcome: Welcome) -> Trouble {
        let config = &self.context.config;
        let mut current = self.outlet.load_full();
        if current.is_closed() {
            current = outlet(&self.context, &self.traffic);
            self.outlet.store(current.clone());
        }
        socket.raise_limit(config.frame_bytes_max);
        let bytes_max = usize::try_from(welcome.frame_bytes_max).unwrap_or(usize::MAX);
        self.traffic.connects.fetch_add(1, Ordering::Relaxed);
        self.set_standing(true, None);
        current.open(socket.stream().clone(), bytes_max.min(config.frame_bytes_max));
        tracing::info!(node = %self.node, address = self.address, "a link stands");
        let life = Life::new(self.context.clock);
        let trouble = tokio::select! {
            // What has come is read before anybody says that nothing came.
            biased;
            trouble = read_answers(&mut socket, &current, &self.traffic, &life) => trouble,
            trouble = current.pump() => trouble,
            trouble = current.beat(config.beat_ms, config.silent_after_ms, &life) => trouble,
        };
        let why = trouble.to_string();
        self.set_standing(false, Some(why.clone()));
        current.close(&why.into());
        self.outlet.store(outlet(&self.context, &self.traffic));
        if self.closed.load(Ordering::SeqCst) {
            self.outlet.load().close(&"the node was forgotten".into());
        }
        trouble
    }

    fn not_connected(&self, error: NotWelcome, told: &mut Option<Refusal>) {
        let why = error.to_string();
        let news = self.state.lock().trouble.as_ref() != Some(&why);
        if news {
            tracing::warn!(node = %self.node, address = self.address, error = why, "a link does not stand");
        }
        let text = format!("node {} cannot be reached at {}: {why}", self.node, self.address);
        self.outlet.load().close(&text.into());
        self.set_standing(false, Some(why));
        if let NotWelcome::Refused(refusal) = error
            && told.as_ref() != Some(&refusal)
        {
            self.context.host.turned_away(self.node, refusal.clone());
            *told = Some(refusal);
        }
    }

    fn set_standing(&self, connected: bool, trouble: Option<String>) {
        let mut state = self.state.lock();
        (state.connected, state.trouble) = (connected, trouble);
    }

    /// How it stands.
    pub(super) fn counters(&self, now_ms: u64) -> PeerCounters {
        let (connected, trouble) = {
            let state = self.state.lock();
            (state.connected, state.trouble.clone())
        };
        let outlet = self.outlet.load();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PeerCounters {
            node: self.node,
            address: self.address.clone(),
            connected,
            trouble,
            heard_ms_ago: now_ms.saturating_sub(read(&self.heard_ms)),
            silent: self.silent.load(Ordering::Relaxed),
            frames_sent: read(&self.traffic.frames_sent),
            bytes_sent: read(&self.traffic.bytes_sent),
            frames_received: read(&self.traffic.frames_received),
            bytes_received: read(&self.traffic.bytes_received),
            messages_dropped: read(&self.traffic.messages_dropped),
            connects: read(&self.traffic.connects),
            queued_bytes: outlet.queued_bytes() as u64,
            asks_under_way: outlet.asks.len() as u64,
        }
    }
}

/// A request under way. When the asker goes, nobody waits for its answer any more.
struct Asked<'a> {
    outlet: &'a Outlet,
    id: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.outlet.asks.forget(self.id);
    }
}

/// Connects to a node and greets it, within the time for that.
pub(super) async fn connect(
    context: &Context,
    to: NodeId,
    address: &str,
    purpose: Purpose,
) -> Result<(Socket, Welcome), NotWelcome> {
    let patience = Duration::from_millis(context.config.connect_timeout_ms);
    let connecting = async {
        let stream = TcpStream::connect(address).await.map_err(Trouble::NotConnected)?;
        let mut socket = Socket::new(stream, PAYLOAD_BYTES_MAX)?;
        let welcome = greeting::greet(&mut socket, &context.me(), to, purpose, patience).await?;
        Ok((socket, welcome))
    };
    let waited_ms = context.config.connect_timeout_ms;
    tokio::time::timeout(patience, connecting).await.map_err(|_| Trouble::Quiet { waited_ms })?
}

fn outlet(context: &Context, traffic: &Arc<Traffic>) -> Arc<Outlet> {
    let config = &context.config;
    let bounds = Bounds { count_max: config.asks_max, bytes_max: config.ask_bytes_max };
    Arc::new(Outlet::new(config.queue_bytes_max, bounds, traffic.clone()))
}

/// Hands answers to those who asked, until the connection ends.
async fn read_answers(socket: &mut Socket, outlet: &Outlet, traffic: &Traffic, life: &Life) -> Trouble {
    let mut counted = socket.received_bytes;
    loop {
        // First what came together with the welcome.
        match take_answers(socket, outlet) {
            Ok(frames) => traffic.received(frames, socket.received_bytes - counted),
            Err(trouble) => return trouble,
        }
        counted = socket.received_bytes;
        if let Err(trouble) = socket.fill().await {
            return trouble;
        }
        life.heard();
    }
}

/// Hands out all answers that have arrived, and counts the frames.
fn take_answers(socket: &mut Socket, outlet: &Outlet) -> Result<u64, Trouble> {
    let mut frames = 0;
    while let Some(frame) = socket.take()? {
        match frame.kind {
            Kind::Answer => outlet.asks.answered(greeting::decode("an answer", frame.payload)?),
            Kind::Beat => {}
            Kind::Farewell => {
                outlet.take_leave(&"the node stops".into());
                return Err(Trouble::Farewell);
            }
            other => return Err(Trouble::Misplaced(other)),
        }
        frames += 1;
    }
    Ok(frames)
}

/// Pauses between attempts.
struct Pauses {
    next_ms: u64,
}

impl Default for Pauses {
    fn default() -> Pauses {
        Pauses { next_ms: PAUSE_MIN_MS }
    }
}

impl Pauses {
    /// The next one: from half of its length to all of it, so that those who wait for the same node do not
    /// come together.
    fn next(&mut self) -> Duration {
        let pause_ms = self.next_ms;
        self.next_ms = (pause_ms * 2).min(PAUSE_MAX_MS);
        Duration::from_millis(pause_ms / 2 + time::seed() % (pause_ms / 2 + 1))
    }

    /// The next one is no longer than this.
    fn shorten(&mut self, pause_max_ms: u64) {
        self.next_ms = self.next_ms.min(pause_max_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut pauses = Pauses::default();
        for limit in [50, 100, 200, 400, 800, 1_000, 1_000] {
            let pause = pauses.next().as_millis() as u64;
            assert!((limit / 2..=limit).contains(&pause), "{pause} of {limit}");
        }
        pauses.shorten(200);
        for limit in [200, 400] {
            assert!((limit / 2..=limit).contains(&(pauses.next().as_millis() as u64)));
        }
    }
}
