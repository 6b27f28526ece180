//! Connections that other nodes make to this one: who may come in, and what they bring.
//!
//! Promises: nobody is listened to before the greeting is checked; what a node sends on one connection
//! reaches the host in that order; a newer connection of a node takes the place of its older one. Requests
//! run as tasks of their own, bounded in number and bytes; one over the bound is refused at once, so that
//! messages behind it are never held back. A node that stops says farewell on each link when all requests
//! that it took up are answered, so that whoever asked knows of the others that they were not done. Whatever
//! is wrong with what arrives ends that connection, with a warning that names the node and what it was;
//! nothing else is touched.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinSet;

use super::ask::{Answer, AskFrame, Bounds};
use super::bulk::Library;
use super::counters::Traffic;
use super::frame::{Frame, Kind};
use super::greeting::{self, AgeFrame, DataAge, Greeting, Objection, PAYLOAD_BYTES_MAX, Purpose};
use super::outlet::{Life, NotQueued, Out, Outlet};
use super::peers::Peers;
use super::socket::{Socket, Trouble};
use super::wire;
use super::{Context, NotAdmitted};
use crate::id::{GroupId, NodeId};
use crate::raft::message::PeerMessage;

/// Connections that may be about to greet at a time; more are closed.
const GREETING_MAX: usize = 64;
/// How long the listener rests after the system refused it a connection.
const REST: Duration = Duration::from_millis(100);

/// Takes connections. Copies share everything.
#[derive(Clone)]
pub(super) struct Reception {
    pub(super) context: Arc<Context>,
    pub(super) peers: Arc<Peers>,
    pub(super) library: Arc<Library>,
    pub(super) guests: Arc<Guests>,
}

impl Reception {
    /// Takes connections until the node leaves, and lets those there are end. All of them end when this is
    /// dropped.
    pub(super) async fn run(self, listener: TcpListener) {
        let greeting = Arc::new(Semaphore::new(GREETING_MAX));
        let mut connections = JoinSet::new();
        let mut leaving = self.guests.leaving.subscribe();
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = leaving.wait_for(|leaving| *leaving) => break,
            };
            // Whoever was told that the node leaves may come again before this task is told.
            if *leaving.borrow() {
                break;
            }
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the system refused a connection of a peer");
                    tokio::time::sleep(REST).await;
                    continue;
                }
            };
            let Ok(place) = greeting.clone().try_acquire_owned() else {
                self.context.greetings_refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%address, "{GREETING_MAX} connections have not greeted yet: one more is \
                    closed");
                continue;
            };
            connections.spawn(self.clone().receive(stream, address, place));
        }
        // Whoever tries again is to learn at once that nobody is here.
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    /// One connection from its greeting to its end.
    async fn receive(self, stream: TcpStream, address: SocketAddr, place: OwnedSemaphorePermit) {
        let patience = Duration::from_millis(self.context.config.connect_timeout_ms);
        let greeted = async {
            let mut socket = Socket::new(stream, PAYLOAD_BYTES_MAX)?;
            let greeting = greeting::receive(&mut socket).await?;
            Ok::<_, Trouble>((socket, greeting))
        };
        let waited_ms = self.context.config.connect_timeout_ms;
        let greeted =
            tokio::time::timeout(patience, greeted).await.unwrap_or(Err(Trouble::Quiet { waited_ms }));
        let (socket, greeting) = match greeted {
            Ok(greeted) => greeted,
            Err(trouble) => {
                self.context.greetings_refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%address, %trouble, "a connection to the peer address did not greet");
                return;
            }
        };
        let node = NodeId(greeting.from);
        let trouble = match self.examine(&greeting) {
            Ok(admission) => {
                drop(place);
                self.let_in(socket, greeting, admission, patience).await
            }
            Err(objection) => {
                self.context.greetings_refused.fetch_add(1, Ordering::Relaxed);
                match objection {
                    // It asks again in a moment.
                    Objection::Busy(_) => tracing::debug!(%node, %address, %objection, "a node was put off"),
                    _ => tracing::warn!(%node, %address, %objection, "a node was turned away"),
                }
                // If it does not hear why it will ask again.
                let _ = greeting::refuse(&socket, &self.context.me, &objection, patience).await;
                return;
            }
        };
        match trouble {
            None | Some(Trouble::Closed) => tracing::debug!(%node, %address, "a peer's connection has ended"),
            Some(trouble) => tracing::warn!(%node, %address, %trouble, "a peer's connection has ended"),
        }
    }

    /// Whether whoever greets may come in.
    fn examine(&self, greeting: &Greeting) -> Result<Admission, Objection> {
        let purpose = self.context.me.check(greeting)?;
        self.context.host.admit(NodeId(greeting.from), greeting.data_age()).map_err(Objection::from)?;
        match purpose {
            Purpose::Link => Ok(Admission::Link),
            Purpose::Bulk => self.library.desk().map(Admission::Bulk).map_err(Objection::Busy),
        }
    }

    /// Serves one that was let in. `None`: it ended as it should.
    async fn let_in(
        self,
        mut socket: Socket,
        greeting: Greeting,
        admission: Admission,
        patience: Duration,
    ) -> Option<Trouble> {
        let node = NodeId(greeting.from);
        let (stay, replaced) = self.guests.enter(node, &admission, greeting.incarnation);
        if let Err(trouble) = greeting::welcome(&socket, &self.context.me, patience).await {
            return Some(trouble);
        }
        if let Some(link) = self.peers.get(node) {
            link.poke();
        }
        socket.raise_limit(self.context.config.frame_bytes_max);
        let serve = async {
            match admission {
                Admission::Link => Some(self.serve(socket, &greeting).await),
                Admission::Bulk(desk) => self.library.serve(desk, socket, node).await.err(),
            }
        };
        let trouble = tokio::select! {
            trouble = serve => trouble,
            why = replaced => Some(Trouble::Ended(why.unwrap_or_else(|_| "the node stops".into()))),
        };
        drop(stay);
        trouble
    }

    /// Takes messages and requests until the connection ends.
    async fn serve(&self, socket: Socket, greeting: &Greeting) -> Trouble {
        let config = &self.context.config;
        let node = NodeId(greeting.from);
        let bounds = Bounds { count_max: config.asks_max, bytes_max: config.ask_bytes_max };
        let traffic = self.peers.get(node).map(|link| link.traffic.clone());
        let traffic = traffic.unwrap_or_else(|| Arc::new(Traffic::default()));
        let outlet = Arc::new(Outlet::new(config.queue_bytes_max, bounds, traffic));
        let bytes_max = usize::try_from(greeting.frame_bytes_max).unwrap_or(usize::MAX);
        outlet.open(socket.stream().clone(), bytes_max.min(config.frame_bytes_max));
        let life = Life::new(self.context.clock);
        let mut visit = Visit {
            reception: self,
            node,
            age: greeting.data_age(),
            outlet: outlet.clone(),
            desk: Arc::new(Desk { bounds, load: Mutex::default() }),
            leaving: self.guests.leaving.subscribe(),
            leaves: Leaves::Not,
            running: JoinSet::new(),
            messages: Vec::new(),
        };
        let trouble = tokio::select! {
            // What has come is read before anybody says that nothing came.
            biased;
            trouble = visit.read(socket, &life) => trouble,
            trouble = outlet.pump() => trouble,
            trouble = outlet.beat(config.beat_ms, config.silent_after_ms, &life) => trouble,
        };
        // Before the requests that still run are dropped: nobody is there for their answers.
        outlet.close(&trouble.to_string().into());
        trouble
    }
}

/// What whoever greeted was let in for.
enum Admission {
    Link,
    Bulk(OwnedSemaphorePermit),
}

/// A connection of another node, as long as it lasts.
struct Visit<'a> {
    reception: &'a Reception,
    node: NodeId,
    /// How old its data was when it came.
    age: DataAge,
    outlet: Arc<Outlet>,
    desk: Arc<Desk>,
    /// Whether this node leaves, and what this connection knows of it.
    leaving: watch::Receiver<bool>,
    leaves: Leaves,
    /// Requests that run. They end with the connection.
    running: JoinSet<()>,
    /// Read and not handed over yet.
    messages: Vec<(GroupId, PeerMessage)>,
}

/// How far a connection has come with this node's leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    /// This node stays.
    Not,
    /// Nothing more is taken up; what was is being answered.
    Answering,
    /// Farewell was said; the other closes the connection.
    Said,
}

impl Visit<'_> {
    async fn read(&mut self, mut socket: Socket, life: &Life) -> Trouble {
        let mut counted = socket.received_bytes;
        loop {
            // First what came together with the greeting.
            let taken = self.take_all(&mut socket);
            // What came whole before something wrong counts.
            self.hand_over();
            let frames = match taken {
                Ok(frames) => frames,
                Err(trouble) => return trouble,
            };
            if let Some(link) = self.reception.peers.get(self.node) {
                link.heard();
                link.traffic.received(frames, socket.received_bytes - counted);
            }
            counted = socket.received_bytes;
            while self.running.try_join_next().is_some() {}
            self.say_farewell();
            tokio::select! {
                filled = socket.fill() => {
                    if let Err(trouble) = filled {
                        return trouble;
                    }
                    life.heard();
                }
                _ = self.leaving.wait_for(|leaving| *leaving), if self.leaves == Leaves::Not => {
                    self.leaves = Leaves::Answering;
                }
                Some(_) = self.running.join_next(), if self.leaves == Leaves::Answering => {}
            }
        }
    }

    /// Says farewell when this node leaves and everything is answered. The other then closes the connection,
    /// so that nothing that is still on its way is lost.
    fn say_farewell(&mut self) {
        if self.leaves == Leaves::Answering && self.running.is_empty() {
            self.leaves = Leaves::Said;
            // If there is no room or no connection any more, the other learns of the end in another way.
            let _ = self.outlet.push(Out::Farewell);
        }
    }

    /// Takes all frames that have arrived, and counts them.
    fn take_all(&mut self, socket: &mut Socket) -> Result<u64, Trouble> {
        let mut frames = 0;
        while let Some(frame) = socket.take()? {
            self.take(frame)?;
            frames += 1;
        }
        Ok(frames)
    }

    fn take(&mut self, frame: Frame) -> Result<(), Trouble> {
        match frame.kind {
            Kind::Messages => wire::read(frame.payload, &mut self.messages)?,
            Kind::Ask => {
                let ask = greeting::decode("a request", frame.payload)?;
                // Nothing overtakes what was sent before it.
                self.hand_over();
                self.take_up(ask);
            }
            Kind::Beat => {}
            Kind::Age => {
                let AgeFrame { age } = greeting::decode("an age", frame.payload)?;
                self.note_age(DataAge { age, ..self.age })?;
            }
            other => return Err(Trouble::Misplaced(other)),
        }
        Ok(())
    }

    /// The node's data has grown older: if it must not stay with it, that ends the connection. It learns why
    /// when it comes again.
    fn note_age(&self, age: DataAge) -> Result<(), Trouble> {
        self.reception.context.host.admit(self.node, age).map_err(|why| match why {
            NotAdmitted::ForGood(why) | NotAdmitted::ForNow(why) => Trouble::Ended(why.into()),
        })
    }

    fn hand_over(&mut self) {
        if !self.messages.is_empty() {
            self.reception.context.host.messages(self.node, std::mem::take(&mut self.messages));
        }
    }

    /// Has the host work on a request, or refuses it.
    fn take_up(&mut self, ask: AskFrame) {
        let AskFrame { id, request } = ask;
        if self.leaves != Leaves::Not {
            // Said again in the farewell, and after that by it alone.
            answer(&self.outlet, id, Answer::Refused("the node stops".into()));
            return;
        }
        if let Err(why) = self.desk.take(request.len()) {
            answer(&self.outlet, id, Answer::Refused(why));
            return;
        }
        let work = Work {
            outlet: self.outlet.clone(),
            desk: self.desk.clone(),
            id,
            bytes: request.len(),
            answered: false,
        };
        // Called here, so that the host hears of it in its place among the messages.
        let asked = self.reception.context.host.ask(self.node, request);
        self.running.spawn(async move { work.answer(asked.await) });
    }
}

/// Sends an answer. One for which there is no room is told as lost.
fn answer(outlet: &Outlet, id: u64, given: Answer) {
    if let Err(full @ NotQueued::Full { .. }) = outlet.push(Out::Answer { id, answer: given }) {
        let lost = Answer::Lost(full.to_string());
        if let Err(full @ NotQueued::Full { .. }) = outlet.push(Out::Answer { id, answer: lost }) {
            outlet.close(&format!("the node does not read its answers: {full}").into());
        }
    }
}

/// What of one connection's requests runs.
struct Desk {
    bounds: Bounds,
    /// Their number and bytes.
    load: Mutex<(usize, usize)>,
}

impl Desk {
    fn take(&self, bytes: usize) -> Result<(), String> {
        let mut load = self.load.lock();
        self.bounds.admit(load.0, load.1, bytes)?;
        *load = (load.0 + 1, load.1 + bytes);
        Ok(())
    }
}

/// A request that runs. However it ends, the asker is told and its place is free again.
struct Work {
    outlet: Arc<Outlet>,
    desk: Arc<Desk>,
    id: u64,
    bytes: usize,
    answered: bool,
}

impl Work {
    fn answer(mut self, given: bytes::Bytes) {
        self.answered = true;
        answer(&self.outlet, self.id, Answer::Given(given));
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut load = self.desk.load.lock();
        *load = (load.0 - 1, load.1 - self.bytes);
        drop(load);
        if !self.answered {
            answer(&self.outlet, self.id, Answer::Lost("the work on it broke off".into()));
        }
    }
}

/// Who is in: so that a newer connection takes the place of an older one, and a node can be shown out.
#[derive(Default)]
pub(super) struct Guests {
    inside: Mutex<Inside>,
    /// Whether this node leaves.
    leaving: watch::Sender<bool>,
}

#[derive(Default)]
struct Inside {
    last: u64,
    guests: HashMap<u64, Guest>,
}

struct Guest {
    node: NodeId,
    incarnation: u64,
    is_link: bool,
    show_out: oneshot::Sender<Arc<str>>,
}

/// A guest's place. Dropped when it goes.
struct Stay {
    guests: Arc<Guests>,
    number: u64,
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.guests.inside.lock().guests.remove(&self.number);
    }
}

impl Guests {
    /// Notes a connection and shows out those whose place it takes: the node's link before, and everything of
    /// an earlier life of its process. The receiver is told when it is shown out itself.
    fn enter(
        self: &Arc<Guests>,
        node: NodeId,
        admission: &Admission,
        incarnation: u64,
    ) -> (Stay, oneshot::Receiver<Arc<str>>) {
        let is_link = matches!(admission, Admission::Link);
        let (show_out, shown_out) = oneshot::channel();
        let mut inside = self.inside.lock();
        inside.show_out("a newer connection of the node takes its place", |guest| {
            guest.node == node && (guest.incarnation != incarnation || (guest.is_link && is_link))
        });
        inside.last += 1;
        let number = inside.last;
        inside.guests.insert(number, Guest { node, incarnation, is_link, show_out });
        (Stay { guests: self.clone(), number }, shown_out)
    }

    /// Takes leave of all: nobody comes in any more, nothing more is taken up.
    pub(super) fn leave(&self) {
        self.leaving.send_replace(true);
        self.inside.lock().show_out("this node stops", |guest| !guest.is_link);
    }

    /// Whether a link is left.
    pub(super) fn has_links(&self) -> bool {
        self.inside.lock().guests.values().any(|guest| guest.is_link)
    }

    /// Ends the connections that a node has made. It may connect again if it is admitted.
    pub(super) fn show_out(&self, node: NodeId) {
        self.inside.lock().show_out("the node was forgotten here", |guest| guest.node == node);
    }
}

impl Inside {
    fn show_out(&mut self, why: &str, whom: impl Fn(&Guest) -> bool) {
        for (_, guest) in self.guests.extract_if(|_, guest| whom(guest)) {
            // It may be gone already.
            let _ = guest.show_out.send(why.into());
        }
    }
}
