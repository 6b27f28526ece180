//! One stream of watches of one server: what was sent on it, and what came, as it is compared.
//!
//! A server may tell the events of several revisions in one response or in many, and announce progress when
//! it likes: so what is compared is, for each watch, the order of its events and of its beginning and end.
//! That a revision is never cut (but into fragments), that nothing comes after progress beyond it, and that
//! every response says whose it is, is checked for each server by itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use statehouse::proto::etcd::etcdserverpb::raw::watch_client::WatchClient;
use statehouse::proto::etcd::etcdserverpb::watch_request::RequestUnion;
use statehouse::proto::etcd::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use statehouse_kv::messages::Event;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::answer::{Answer, readable};

/// How long a server may take to say what it must.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long to wait before asking for progress again: etcd keeps silent if a watch is behind.
const ASK_AGAIN: Duration = Duration::from_millis(40);

/// The id under which a server speaks for a stream, or of a watch that never was.
const NO_WATCH: i64 = -1;

/// A stream of watches. Ends with it.
pub struct Watching {
    requests: mpsc::Sender<WatchRequest>,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    told: Mutex<Told>,
    changed: Notify,
}

/// What came on a stream.
#[derive(Default)]
struct Told {
    /// Of each watch: how it began, its events, how it ended.
    lines: BTreeMap<i64, Vec<String>>,
    /// The answers to creations, in order: the id, and whether the watch was ended at once.
    created: Vec<(i64, bool)>,
    /// How often each watch was ended.
    canceled: BTreeMap<i64, usize>,
    /// The last revision of which each watch had an event, and whether the rest of it is to come.
    last: BTreeMap<i64, (i64, bool)>,
    /// The live watches, with the revision up to which each was told that it has everything.
    announced: BTreeMap<i64, i64>,
    /// The highest revision that progress was announced of, for the whole stream.
    progress: i64,
    /// What no server may do.
    broken: Vec<String>,
    ended: Option<String>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watching {
    pub fn open(mut client: WatchClient<Channel>) -> Watching {
        let (requests, receiver) = mpsc::channel(16);
        let seen = Arc::new(Seen::default());
        let noting = seen.clone();
        let task = tokio::spawn(async move {
            let ended = match client.watch(ReceiverStream::new(receiver)).await {
                Ok(answers) => noting.receive(answers.into_inner()).await,
                Err(status) => format!("{:?}: {}", status.code(), status.message()),
            };
            noting.told.lock().expect("nobody panics with it").ended = Some(ended);
            noting.changed.notify_waiters();
        });
        Watching { requests, seen, task }
    }

    async fn send(&self, request: RequestUnion) {
        // A stream that ended is noticed by whoever waits for an answer.
        let _ = self.requests.send(WatchRequest { request_union: Some(request) }).await;
    }

    /// Creates a watch; the answer says how it began. One of a compacted revision is awaited to its end.
    pub async fn create(&self, create: WatchCreateRequest, ends: bool) -> (Answer, Option<i64>) {
        let known = self.seen.read(|told| told.created.len());
        let before = self.seen.read(|told| told.canceled.clone());
        self.send(RequestUnion::CreateRequest(create)).await;
        let begun = self.seen.wait(|told| told.created.get(known).copied()).await;
        let Some((id, failed)) = begun else { return (self.silent("a creation"), None) };
        if ends && !failed {
            let ended = |told: &Told| (told.canceled.get(&id) > before.get(&id)).then_some(());
            if self.seen.wait(ended).await.is_none() {
                return (self.silent("the end of a watch of a compacted revision"), None);
            }
            // On etcd the id stays taken until the client says so too, which is answered by a second end.
            self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id })).await;
        }
        let live = (!failed && !ends).then_some(id);
        (Answer::of(format!("watch {id}, failed {failed}")), live)
    }

    /// Ends a watch, which is awaited if it is live.
    pub async fn cancel(&self, id: i64, live: bool) -> Answer {
        let before = self.seen.read(|told| told.canceled.get(&id).copied());
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id })).await;
        let ended = |told: &Told| (told.canceled.get(&id).copied() > before).then_some(());
        if live && self.seen.wait(ended).await.is_none() {
            return self.silent("a cancellation");
        }
        Answer::of(format!("canceled {id}"))
    }

    /// Waits until every watch of the stream has had all events up to `revision`.
    pub async fn settle(&self, revision: i64) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
            let caught_up = |told: &Told| (told.progress >= revision).then_some(());
            let soon = deadline.min(Instant::now() + ASK_AGAIN);
            if self.seen.wait_until(soon, caught_up).await.is_some() {
                return Answer::of("caught up".into());
            }
            if self.seen.read(|told| told.ended.is_some()) {
                break;
            }
        }
        self.silent(&format!("progress up to revision {revision}"))
    }

    fn silent(&self, of: &str) -> Answer {
        let ended = self.seen.read(|told| told.ended.clone());
        Answer::of(format!("no word of {of} within {PATIENCE:?}; the stream: {ended:?}"))
    }

    /// What each watch was told, for comparing.
    pub fn lines(&self) -> BTreeMap<i64, Vec<String>> {
        self.seen.read(|told| told.lines.clone())
    }

    /// What no server may do, and this one did.
    pub fn broken(&self) -> Vec<String> {
        self.seen.read(|told| told.broken.clone())
    }
}

impl Seen {
    fn read<T>(&self, of: impl FnOnce(&Told) -> T) -> T {
        of(&self.told.lock().expect("nobody panics with it"))
    }

    async fn wait<T>(&self, what: impl Fn(&Told) -> Option<T>) -> Option<T> {
        self.wait_until(Instant::now() + PATIENCE, what).await
    }

    async fn wait_until<T>(&self, deadline: Instant, what: impl Fn(&Told) -> Option<T>) -> Option<T> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before looking: what comes in between is not missed.
            changed.as_mut().enable();
            if let Some(found) = self.read(&what) {
                return Some(found);
            }
            if self.read(|told| told.ended.is_some()) || timeout_at(deadline, changed).await.is_err() {
                return self.read(&what);
            }
        }
    }

    async fn receive(&self, mut answers: tonic::Streaming<WatchResponse>) -> String {
        loop {
            match answers.next().await {
                Some(Ok(response)) => self.told.lock().expect("nobody panics with it").note(response),
                Some(Err(status)) => return format!("{:?}: {}", status.code(), status.message()),
                None => return "closed".into(),
            }
            self.changed.notify_waiters();
        }
    }
}

impl Told {
    fn note(&mut self, mut response: WatchResponse) {
        let id = response.watch_id;
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        self.check(&response, revision);
        let events = std::mem::take(&mut response.events);
        // The second end of a watch that the server had ended.
        if response.canceled && !response.created && self.announced.remove(&id).is_none() {
            return;
        }
        if response.created {
            self.created.push((id, response.canceled));
        }
        if response.canceled && !response.created {
            *self.canceled.entry(id).or_default() += 1;
        }
        if response.created || response.canceled {
            self.lines.entry(id).or_default().push(described(&response, revision));
        } else if events.is_empty() {
            self.progressed(id, revision);
        }
        if !events.is_empty() {
            let lines = events.iter().map(|event| readable(&format!("{event:?}")));
            self.lines.entry(id).or_default().extend(lines);
        }
    }

    fn progressed(&mut self, id: i64, revision: i64) {
        if id == NO_WATCH {
            self.progress = self.progress.max(revision);
        }
        for (watch, announced) in &mut self.announced {
            if id == NO_WATCH || id == *watch {
                *announced = revision.max(*announced);
            }
        }
    }

    /// What every server must keep to, whatever the other does.
    fn check(&mut self, response: &WatchResponse, revision: i64) {
        let id = response.watch_id;
        let head = response.header.unwrap_or_default();
        if head.cluster_id == 0 || head.member_id == 0 || head.raft_term == 0 {
            self.broken.push(format!("watch {id}: an incomplete header: {head:?}"));
        }
        let of = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        let told = response.events.iter().map(of);
        if let Some(first) = told.clone().min() {
            let (last, partly) = self.last.get(&id).copied().unwrap_or_default();
            let progress = self.announced.get(&id).copied().unwrap_or_default();
            if first <= progress {
                self.broken.push(format!("watch {id}: revision {first} after progress of {progress}"));
            }
            if first == last && !partly {
                self.broken.push(format!("watch {id}: revision {first} in two responses"));
            }
        }
        let highest = told.max().unwrap_or_default();
        if highest > revision {
            self.broken.push(format!("watch {id}: an event of {highest} in a response of {revision}"));
        }
        if response.created || response.canceled {
            self.last.remove(&id);
        }
        if response.created && !response.canceled {
            self.announced.insert(id, 0);
        }
        if highest > 0 {
            self.last.insert(id, (highest, response.fragment));
        }
    }
}

/// How a watch began or ended. Of an end that the server chose the moment is its own.
fn described(response: &WatchResponse, revision: i64) -> String {
    let WatchResponse { created, canceled, compact_revision, cancel_reason, .. } = response;
    let revision = if *compact_revision == 0 { revision } else { 0 };
    format!(
        "created {created}, canceled {canceled}, at {revision}, compacted {compact_revision}, because \
         {cancel_reason:?}"
    )
}
