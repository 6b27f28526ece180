//! The sending half of a connection: what waits, and who writes.
//!
//! Whoever brings something writes it at once, on its own thread, if nobody else is writing: a hand-over to a
//! task would cost more than the write. What is brought meanwhile gathers, and goes out as one write when the
//! one before has ended; messages of all groups share frames. When the socket takes no more, or more keeps
//! coming, the rest is left to the connection's pump.
//!
//! Promises: what is sent leaves in the order in which it was brought; nobody waits; what waits is bounded in
//! bytes, and what is over the bound is dropped and counted. When the connection ends, requests that were
//! still queued end as not sent, all others as of unknown fate; unless the other said farewell, which means
//! that it took up none of them.
//!
//! Must never count a request as not sent once it was taken out of the queue to be written.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::ask::{Answer, AnswerFrame, AskError, AskFrame, Asks, Bounds, ENVELOPE_BYTES};
use super::counters::Traffic;
use super::frame::{self, Kind};
use super::greeting::AgeFrame;
use super::socket::Trouble;
use super::wire;
use crate::id::GroupId;
use crate::raft::message::PeerMessage;
use crate::time::Clock;

/// What one write takes out of the queue, about.
const WRITE_BYTES: usize = 1 << 20;
/// A frame of messages is ended when it would grow over this, so that the other can begin with it.
const FRAME_BYTES: usize = 256 << 10;
/// Writes that one who brought something does before the pump goes on.
const TURNS_MAX: usize = 2;
/// Memory that is kept for the next write.
const SPARE_BYTES_MAX: usize = 256 << 10;
/// What a message or request takes in the queue besides its bytes, about.
const OUT_BYTES: usize = 128;

/// What can be sent.
#[derive(Debug)]
pub(super) enum Out {
    Message(GroupId, PeerMessage),
    Ask {
        id: u64,
        request: Bytes,
    },
    Answer {
        id: u64,
        answer: Answer,
    },
    Beat,
    /// Nothing is taken up any more, and all that was is answered.
    Farewell,
    /// How old this node's data is by now.
    Age(u64),
}

impl Out {
    fn bytes(&self) -> usize {
        match self {
            Out::Message(_, message) => wire::bytes_of(message),
            Out::Ask { request, .. } => OUT_BYTES + request.len(),
            Out::Answer { answer: Answer::Given(bytes), .. } => OUT_BYTES + bytes.len(),
            Out::Answer { answer: Answer::Refused(text) | Answer::Lost(text), .. } => OUT_BYTES + text.len(),
            Out::Beat | Out::Farewell | Out::Age(_) => OUT_BYTES,
        }
    }
}

/// Why something was not queued.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum NotQueued {
    #[error("{bytes} bytes wait to be sent already, the limit is {bytes_max}: try again later")]
    Full { bytes: usize, bytes_max: usize },
    #[error("{0}")]
    Closed(Arc<str>),
}

/// See the head of this file.
pub(super) struct Outlet {
    /// Requests sent on this connection that wait for their answers.
    pub(super) asks: Asks,
    traffic: Arc<Traffic>,
    queue_bytes_max: usize,
    state: Mutex<State>,
    /// Tells the pump that there is something to do.
    pump: Notify,
}

struct State {
    phase: Phase,
    queue: VecDeque<Out>,
    queued_bytes: usize,
    /// Somebody writes: whoever took the last turn, or the pump with what was `left`.
    writing: bool,
    /// What the socket did not take, for the pump.
    left: Option<BytesMut>,
    /// Whether anything was written since the last look.
    wrote: bool,
    /// Memory for the next turn.
    spare: (VecDeque<Out>, BytesMut),
}

enum Phase {
    /// There is no connection yet.
    Waiting,
    /// Frames with payloads up to `bytes_max` may be written.
    Open { stream: Arc<TcpStream>, bytes_max: usize },
    /// Nothing more is sent, and why.
    Closed(Arc<str>),
}

/// One write: what was queued, and where it goes.
struct Turn {
    stream: Arc<TcpStream>,
    bytes_max: usize,
    batch: VecDeque<Out>,
    buffer: BytesMut,
}

impl Outlet {
    /// Nothing waits, and there is no connection yet.
    pub(super) fn new(queue_bytes_max: usize, bounds: Bounds, traffic: Arc<Traffic>) -> Outlet {
        let state = State {
            phase: Phase::Waiting,
            queue: VecDeque::new(),
            queued_bytes: 0,
            writing: false,
            left: None,
            wrote: false,
            spare: Default::default(),
        };
        Outlet {
            asks: Asks::new(bounds),
            traffic,
            queue_bytes_max,
            state: Mutex::new(state),
            pump: Notify::new(),
        }
    }

    /// From now on what is queued is written, in frames with payloads up to `bytes_max`; unless it was
    /// closed.
    pub(super) fn open(&self, stream: Arc<TcpStream>, bytes_max: usize) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Waiting) {
            state.phase = Phase::Open { stream, bytes_max };
        }
        drop(state);
        self.flush();
    }

    /// Queues messages; those over the bound are dropped and counted. They leave with the next `flush`.
    pub(super) fn queue(&self, messages: impl IntoIterator<Item = (GroupId, PeerMessage)>) {
        let mut dropped = 0;
        let mut state = self.state.lock();
        for (group, message) in messages {
            if state.push(Out::Message(group, message), self.queue_bytes_max).is_err() {
                dropped += 1;
            }
        }
        drop(state);
        self.traffic.dropped(dropped);
    }

    /// Queues one thing and sends what can be sent.
    pub(super) fn push(&self, out: Out) -> Result<(), NotQueued> {
        self.state.lock().push(out, self.queue_bytes_max)?;
        self.flush();
        Ok(())
    }

    /// Takes a request back. False if it is no longer in the queue: then it may have been sent.
    pub(super) fn withdraw(&self, ask: u64) -> bool {
        let mut state = self.state.lock();
        let found = state.queue.iter().position(|out| matches!(out, Out::Ask { id, .. } if *id == ask));
        let Some(at) = found else { return false };
        let out = state.queue.remove(at).expect("it was found there");
        state.queued_bytes -= out.bytes();
        true
    }

    /// Whether nothing more is sent.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Closed(_))
    }

    /// Bytes that wait.
    pub(super) fn queued_bytes(&self) -> usize {
        let state = self.state.lock();
        state.queued_bytes + state.left.as_ref().map_or(0, BytesMut::len)
    }

    /// Whether all that was queued has been handed to the system.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        !state.writing && (state.queue.is_empty() || !matches!(state.phase, Phase::Open { .. }))
    }

    /// Writes what is queued, unless somebody else is writing already.
    pub(super) fn flush(&self) {
        for _ in 0..TURNS_MAX {
            let Some(turn) = self.take_turn() else { return };
            if !self.write(turn) {
                return;
            }
        }
        if !self.state.lock().queue.is_empty() {
            self.pump.notify_one();
        }
    }

    /// Takes the writer's part, if it is free and there is something to write.
    fn take_turn(&self) -> Option<Turn> {
        let mut state = self.state.lock();
        if state.writing || state.queue.is_empty() {
            return None;
        }
        let Phase::Open { stream, bytes_max } = &state.phase else { return None };
        let (stream, bytes_max) = (stream.clone(), *bytes_max);
        let (mut batch, buffer) = std::mem::take(&mut state.spare);
        if state.queued_bytes <= WRITE_BYTES {
            std::mem::swap(&mut batch, &mut state.queue);
            state.queued_bytes = 0;
        } else {
            let mut bytes = 0;
            while bytes < WRITE_BYTES
                && let Some(out) = state.queue.pop_front()
            {
                bytes += out.bytes();
                batch.push_back(out);
            }
            state.queued_bytes -= bytes;
        }
        (state.writing, state.wrote) = (true, true);
        Some(Turn { stream, bytes_max, batch, buffer })
    }

    /// Writes a turn as far as the socket takes it and gives up the writer's part: to the next one (true), or
    /// to the pump with what is left.
    fn write(&self, turn: Turn) -> bool {
        let Turn { stream, bytes_max, mut batch, mut buffer } = turn;
        let mut packer =
            Packer { out: &mut buffer, bytes_max, open: None, asks: &self.asks, traffic: &self.traffic };
        batch.drain(..).for_each(|out| packer.put(out));
        packer.end_messages();
        self.traffic.sent(buffer.len());
        match write_some(&stream, &mut buffer) {
            Ok(true) => {
                self.end_turn(batch, buffer);
                true
            }
            Ok(false) => {
                let mut state = self.state.lock();
                state.left = Some(buffer);
                drop(state);
                self.pump.notify_one();
                false
            }
            Err(error) => {
                self.close(&Trouble::Io(error).to_string().into());
                false
            }
        }
    }

    fn end_turn(&self, batch: VecDeque<Out>, mut buffer: BytesMut) {
        buffer.clear();
        let mut state = self.state.lock();
        state.writing = false;
        if buffer.capacity() <= SPARE_BYTES_MAX {
            state.spare = (batch, buffer);
        }
    }

    /// Goes on where those who brought something stopped. Ends when the connection does.
    pub(super) async fn pump(&self) -> Trouble {
        loop {
            if let Err(trouble) = self.write_on().await {
                return trouble;
            }
            self.pump.notified().await;
        }
    }

    /// Writes until nothing is left that this task has to write.
    async fn write_on(&self) -> Result<(), Trouble> {
        loop {
            let (stream, left) = {
                let mut state = self.state.lock();
                match &state.phase {
                    Phase::Open { stream, .. } => (stream.clone(), state.left.take()),
                    Phase::Waiting => return Ok(()),
                    Phase::Closed(why) => return Err(Trouble::Ended(why.clone())),
                }
            };
            if let Some(mut left) = left {
                while !write_some(&stream, &mut left)? {
                    stream.writable().await?;
                }
                self.end_turn(VecDeque::new(), left);
            }
            let Some(turn) = self.take_turn() else { return Ok(()) };
            self.write(turn);
            // Others on this thread have a right to it too.
            tokio::task::yield_now().await;
        }
    }

    /// Sends a sign of life when nothing else was sent for a while. Ends when nothing came for too long.
    pub(super) async fn beat(&self, beat_ms: u64, quiet_ms_max: u64, life: &Life) -> Trouble {
        let mut ticks = tokio::time::interval(Duration::from_millis(beat_ms));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_ms = life.clock.now().monotonic_ms;
        loop {
            ticks.tick().await;
            let now_ms = life.clock.now().monotonic_ms;
            if now_ms - last_ms > quiet_ms_max / 2 {
                // It was this process that slept: what came meanwhile has not been read yet.
                life.heard();
            }
            last_ms = now_ms;
            let waited_ms = life.quiet_ms();
            if waited_ms > quiet_ms_max {
                return Trouble::Quiet { waited_ms };
            }
            let idle = {
                let mut state = self.state.lock();
                !std::mem::take(&mut state.wrote) && !state.writing
            };
            // If the queue is full there is no need for a sign of life.
            if idle && let Err(NotQueued::Closed(why)) = self.push(Out::Beat) {
                return Trouble::Ended(why);
            }
        }
    }

    /// Ends it. Requests in the queue are told that they were not sent, those sent before that nobody knows.
    pub(super) fn close(&self, why: &Arc<str>) {
        if self.end(why) {
            self.asks.give_up(|| AskError::Unknown(why.to_string()));
        }
    }

    /// Ends it because the other has said farewell: what it has not answered it did not take up.
    pub(super) fn take_leave(&self, why: &Arc<str>) {
        if self.end(why) {
            self.asks.give_up(|| AskError::Refused(why.to_string()));
        }
    }

    /// True: nothing is sent from now on. False: that was so before.
    fn end(&self, why: &Arc<str>) -> bool {
        let queue = {
            let mut state = self.state.lock();
            let before = std::mem::replace(&mut state.phase, Phase::Closed(why.clone()));
            if matches!(before, Phase::Closed(_)) {
                return false;
            }
            (state.queued_bytes, state.left) = (0, None);
            std::mem::take(&mut state.queue)
        };
        let mut dropped = 0;
        for out in queue {
            match out {
                Out::Ask { id, .. } => self.asks.finish(id, Err(AskError::NotSent(why.to_string()))),
                Out::Message(..) => dropped += 1,
                Out::Answer { .. } | Out::Beat | Out::Farewell | Out::Age(_) => {}
            }
        }
        self.traffic.dropped(dropped);
        self.pump.notify_one();
        true
    }
}

impl State {
    fn push(&mut self, out: Out, bytes_max: usize) -> Result<(), NotQueued> {
        if let Phase::Closed(why) = &self.phase {
            return Err(NotQueued::Closed(why.clone()));
        }
        let bytes = out.bytes();
        // One alone may be larger: a frame has a limit of its own.
        if self.queued_bytes > 0 && self.queued_bytes + bytes > bytes_max {
            return Err(NotQueued::Full { bytes: self.queued_bytes, bytes_max });
        }
        self.queued_bytes += bytes;
        self.queue.push_back(out);
        Ok(())
    }
}

/// Writes what the socket takes; true if that was all.
fn write_some(stream: &TcpStream, buffer: &mut BytesMut) -> io::Result<bool> {
    let mut written = 0;
    let all = loop {
        if written == buffer.len() {
            break true;
        }
        match stream.try_write(&buffer[written..]) {
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    };
    if !all {
        bytes::Buf::advance(buffer, written);
    }
    Ok(all)
}

/// Puts what is sent into frames.
struct Packer<'a> {
    out: &'a mut BytesMut,
    bytes_max: usize,
    /// A frame of messages that may take more, and its rows.
    open: Option<(frame::Open, usize)>,
    asks: &'a Asks,
    traffic: &'a Traffic,
}

impl Packer<'_> {
    fn put(&mut self, out: Out) {
        match out {
            Out::Message(group, message) => self.put_message(group, message),
            Out::Ask { id, request } if request.len() + ENVELOPE_BYTES > self.bytes_max => {
                let what = format!("it has {} bytes", request.len());
                let text = format!("{what}, the other node takes frames of {}", self.bytes_max);
                self.asks.finish(id, Err(AskError::NotSent(text)));
            }
            Out::Ask { id, request } => self.put_frame(Kind::Ask, &AskFrame { id, request }),
            Out::Answer { id, answer } => {
                let answer = Some(self.fitting(answer));
                self.put_frame(Kind::Answer, &AnswerFrame { id, answer });
            }
            Out::Beat => self.put_empty(Kind::Beat),
            Out::Farewell => self.put_empty(Kind::Farewell),
            Out::Age(age) => self.put_frame(Kind::Age, &AgeFrame { age }),
        }
    }

    fn put_empty(&mut self, kind: Kind) {
        self.end_messages();
        frame::begin(self.out).end(self.out, kind);
        self.traffic.frame_sent();
    }

    fn put_frame(&mut self, kind: Kind, message: &impl prost::Message) {
        self.end_messages();
        frame::put(self.out, kind, message);
        self.traffic.frame_sent();
    }

    /// An answer that is too large is told instead of given.
    fn fitting(&self, answer: Answer) -> Answer {
        match answer {
            Answer::Given(bytes) if bytes.len() + ENVELOPE_BYTES > self.bytes_max => Answer::Lost(format!(
                "the answer has {} bytes, the asking node takes frames of {}",
                bytes.len(),
                self.bytes_max
            )),
            answer => answer,
        }
    }

    fn put_message(&mut self, group: GroupId, message: PeerMessage) {
        if wire::bytes_of(&message) <= self.bytes_max && wire::rows_of(&message) <= wire::ROWS_MAX {
            return self.put_piece(group, message);
        }
        match wire::cut(message, self.bytes_max) {
            Ok(pieces) => pieces.into_iter().for_each(|piece| self.put_piece(group, piece)),
            Err(error) => self.unsendable(group, &error),
        }
    }

    /// Puts a message that fits into a frame.
    fn put_piece(&mut self, group: GroupId, message: PeerMessage) {
        let (bytes, more) = (wire::bytes_of(&message), wire::rows_of(&message));
        let aim = self.bytes_max.min(FRAME_BYTES);
        let full = self.open.as_ref().is_some_and(|(open, rows)| {
            open.payload_bytes(self.out) + bytes > aim || rows + more > wire::ROWS_MAX
        });
        if full {
            self.end_messages();
        }
        let (_, rows) = self.open.get_or_insert_with(|| (frame::begin(self.out), 0));
        *rows += more;
        if let Err(error) = wire::put(self.out, group, message) {
            self.unsendable(group, &error);
        }
    }

    fn unsendable(&self, group: GroupId, error: &wire::Unsendable) {
        tracing::error!(%group, %error, "a message for a peer was dropped: it cannot be sent");
        self.traffic.dropped(1);
    }

    fn end_messages(&mut self) {
        if let Some((open, _)) = self.open.take() {
            open.end(self.out, Kind::Messages);
            self.traffic.frame_sent();
        }
    }
}

/// When something last came on a connection.
pub(super) struct Life {
    clock: Clock,
    heard_ms: AtomicU64,
}

impl Life {
    /// Something came now.
    pub(super) fn new(clock: Clock) -> Life {
        Life { clock, heard_ms: AtomicU64::new(clock.now().monotonic_ms) }
    }

    /// Something came now.
    pub(super) fn heard(&self) {
        self.heard_ms.store(self.clock.now().monotonic_ms, Ordering::Relaxed);
    }

    /// For how long nothing came.
    pub(super) fn quiet_ms(&self) -> u64 {
        self.clock.now().monotonic_ms.saturating_sub(self.heard_ms.load(Ordering::Relaxed))
    }
}
