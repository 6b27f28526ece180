//! etcd's service `Watch`: many watches on one stream.
//!
//! Events go out as the bytes that the machine wrote them in. A request is read only when the one before it
//! is settled, so answers come in the order of requests, as clients expect that let the server choose ids.
//! A watch that cannot go on through this node ends the stream instead: etcd's clients then go on at another
//! one, from where they were.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes};
use futures_util::future::BoxFuture;
use futures_util::stream::Stream;

use prost::Message;
use statehouse_kv::messages::{EventType, ResponseHeader};
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, StdError, http};
use tonic::server::StreamingService;
use tonic::{Request, Response, Status, Streaming};

use super::bounds::MESSAGE_BYTES_MAX;
use super::methods::{Form, unknown_method};
use super::raw::{self, Encode, RawService};
use super::{Front, revision_of, status};
use crate::api::Stopping;
use crate::api::watch_set::{WatchSet, Word};
use crate::error::Error;
use crate::id::Revision;
use crate::machine::event::EventKind;
use crate::node::request::{KeySpan, Selection, WatchEvent, WatchEvents, WatchSpec, Watched};
use crate::node::watches::Watch;
use crate::proto::etcd::etcdserverpb as pb;
use crate::proto::etcd::etcdserverpb::watch_create_request::FilterType;
use crate::proto::etcd::etcdserverpb::watch_request::RequestUnion;

/// The id in an answer that is about no watch, or about all of them.
const NO_WATCH: i64 = -1;

/// The service.
#[derive(Clone)]
pub struct WatchService(pub(super) Arc<Front>);

impl RawService for WatchService {
    const NAME: &'static str = "etcdserverpb.Watch";

    fn serve<B>(
        self,
        method: &str,
        request: http::Request<B>,
    ) -> impl Future<Output = http::Response<Body>> + Send + 'static
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        let (is_known, unknown) = (method == "Watch", unknown_method(Self::NAME, method));
        async move {
            match is_known {
                true => raw::grpc::<WatchAnswer>().streaming(Call(self.0), request).await,
                false => unknown.into_http(),
            }
        }
    }
}

struct Call(Arc<Front>);

impl StreamingService<Bytes> for Call {
    type Response = WatchAnswer;
    type ResponseStream = WatchStream<Streaming<Bytes>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, requests: Request<Streaming<Bytes>>) -> Self::Future {
        let stream = WatchStream::new(self.0.clone(), requests.into_inner());
        Box::pin(async { Ok(Response::new(stream)) })
    }
}

/// A `WatchResponse` whose events are bytes.
#[derive(Clone, PartialEq, Message)]
pub struct WatchAnswer {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(int64, tag = "2")]
    watch_id: i64,
    #[prost(bool, tag = "3")]
    created: bool,
    #[prost(bool, tag = "4")]
    canceled: bool,
    #[prost(int64, tag = "5")]
    compact_revision: i64,
    #[prost(string, tag = "6")]
    cancel_reason: String,
    #[prost(bool, tag = "7")]
    fragment: bool,
    #[prost(message, repeated, tag = "11")]
    events: Vec<EventBytes>,
}

/// An `Event` whose `KeyValue`s are bytes.
#[derive(Clone, PartialEq, Message)]
struct EventBytes {
    #[prost(enumeration = "EventType", tag = "1")]
    r#type: i32,
    #[prost(bytes = "bytes", tag = "2")]
    kv: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    prev_kv: Bytes,
}

impl Encode for WatchAnswer {
    fn encode(self, out: &mut impl BufMut) {
        self.encode_raw(out);
    }
}

impl From<WatchEvent> for EventBytes {
    fn from(event: WatchEvent) -> EventBytes {
        let kind = match event.kind {
            EventKind::Put => EventType::Put,
            EventKind::Delete => EventType::Delete,
        };
        EventBytes { r#type: kind.into(), kv: event.value, prev_kv: event.previous.unwrap_or_default() }
    }
}

/// What a client asked of a watch that the node does not see to.
struct Wanted {
    /// Events before it are left out; 0: none are.
    start: i64,
    /// Whether no event at all is wanted.
    silent: bool,
    /// Whether large revisions are to come in parts.
    fragment: bool,
    /// Whether it is to be told now and then that it has everything.
    progress: bool,
}

/// A request to be told when all watches of the stream have everything.
struct Round {
    /// Those that have not yet said so.
    waiting: HashSet<i64>,
    /// What all others have.
    revision: Option<i64>,
    /// How often it was asked.
    asked: usize,
}

/// All watches of a stream.
pub struct WatchStream<R> {
    front: Arc<Front>,
    /// None when no more will come.
    requests: Option<R>,
    stopping: Stopping,
    watches: WatchSet<i64>,
    wanted: HashMap<i64, Wanted>,
    /// The one that is about to begin: nothing more is read meanwhile.
    beginning: Option<i64>,
    next_id: i64,
    round: Option<Round>,
    /// What is to be sent.
    answers: VecDeque<WatchAnswer>,
    /// What the stream ends with, if it is not a plain end.
    last: Option<Status>,
}

impl<R> WatchStream<R>
where
    R: Stream<Item = Result<Bytes, Status>> + Unpin,
{
    fn new(front: Arc<Front>, requests: R) -> WatchStream<R> {
        WatchStream {
            stopping: front.serving.stopping(),
            front,
            requests: Some(requests),
            watches: WatchSet::new(),
            wanted: HashMap::new(),
            beginning: None,
            next_id: 0,
            round: None,
            answers: VecDeque::new(),
            last: None,
        }
    }

    /// The machine's revision, as far as it is known here.
    fn revision(&self) -> i64 {
        self.front.replica().map_or(0, |replica| revision_of(replica.revision))
    }

    fn tell(&mut self, revision: i64, answer: WatchAnswer) {
        let header = Some(self.front.header_at(revision));
        self.answers.push_back(WatchAnswer { header, ..answer });
    }

    /// No watch began.
    fn refuse(&mut self, why: String) {
        let refused = WatchAnswer { watch_id: NO_WATCH, created: true, canceled: true, ..Default::default() };
        self.tell(self.revision(), WatchAnswer { cancel_reason: why, ..refused });
    }

    fn take(&mut self, request: &[u8]) {
        let request = match pb::WatchRequest::decode(request) {
            Ok(request) => request,
            Err(why) => return self.end(Some(Form::Stream.unreadable(why))),
        };
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                if let Err(why) = self.create(create) {
                    self.refuse(why);
                }
            }
            Some(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id }))
                if self.watches.end(watch_id) =>
            {
                self.forget(watch_id);
                self.answers.retain(|answer| answer.watch_id != watch_id);
                let canceled = WatchAnswer { watch_id, canceled: true, ..WatchAnswer::default() };
                self.tell(self.revision(), canceled);
            }
            Some(RequestUnion::ProgressRequest(_)) => self.ask_progress(),
            // As etcd does with what it does not know.
            Some(RequestUnion::CancelRequest(_)) | None => {}
        }
    }

    /// # Errors
    /// Why the watch does not begin, for its client.
    fn create(&mut self, create: pb::WatchCreateRequest) -> Result<(), String> {
        if create.start_revision < 0 {
            return Err(status::COMPACTED.text().to_owned());
        }
        let span = span(create.key, create.range_end)?;
        let filtered = |filter: FilterType| create.filters.contains(&(filter as i32));
        let (no_puts, no_deletes) = (filtered(FilterType::Noput), filtered(FilterType::Nodelete));
        let silent = no_puts && no_deletes;
        let selection = Selection::new(span, silent || !no_puts, !no_deletes).map_err(status::ours)?;
        let watches_max = self.front.serving.limits.stream_watches_max as usize;
        if self.watches.len() >= watches_max {
            return Err(status::ours(format_args!("a stream may have {watches_max} watches")));
        }
        let id = match create.watch_id {
            0 => {
                while self.watches.contains(self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.next_id - 1
            }
            id if self.watches.contains(id) => return Err(status::watch::DUPLICATE_ID.to_owned()),
            id => id,
        };
        let (start, progress) = (create.start_revision, create.progress_notify);
        self.wanted.insert(id, Wanted { start, silent, fragment: create.fragment, progress });
        let spec = WatchSpec { selection, from: None, progress, previous: create.prev_kv };
        self.watches.begin(id, begin(self.front.clone(), spec, start));
        self.beginning = Some(id);
        Ok(())
    }

    fn ask_progress(&mut self) {
        if let Some(round) = &mut self.round {
            round.asked += 1;
            return;
        }
        let waiting: HashSet<i64> = self.watches.ids().collect();
        for id in &waiting {
            self.watches.ask_progress(*id);
        }
        if !waiting.is_empty() {
            self.round = Some(Round { waiting, revision: None, asked: 1 });
        }
    }

    /// A watch has everything up to a revision, or is no more.
    fn settle(&mut self, id: i64, revision: Option<i64>) -> bool {
        let Some(round) = self.round.as_mut() else { return false };
        if !round.waiting.remove(&id) {
            return false;
        }
        round.revision = round.revision.into_iter().chain(revision).min();
        if round.waiting.is_empty() {
            let (revision, asked) = (round.revision, round.asked);
            self.round = None;
            if let Some(revision) = revision {
                for _ in 0..asked {
                    self.tell(revision, WatchAnswer { watch_id: NO_WATCH, ..WatchAnswer::default() });
                }
            }
        }
        true
    }

    fn forget(&mut self, id: i64) -> Option<Wanted> {
        self.settle(id, None);
        self.wanted.remove(&id)
    }

    fn hear(&mut self, id: i64, word: Word) {
        match word {
            Word::Began(first) => {
                self.beginning = None;
                let revision = match self.front.replica() {
                    Some(replica) => revision_of(replica.revision),
                    None => revision_of(first) - 1,
                };
                self.tell(revision, WatchAnswer { watch_id: id, created: true, ..WatchAnswer::default() });
            }
            Word::Told(Watched::Events(events)) => self.pass_on(id, events),
            Word::Told(Watched::Progress(revision)) => {
                let revision = revision_of(revision);
                let asked = self.settle(id, Some(revision));
                if !asked && self.wanted.get(&id).is_some_and(|wanted| wanted.progress) {
                    self.tell(revision, WatchAnswer { watch_id: id, ..WatchAnswer::default() });
                }
            }
            Word::Ended(why) => self.ended(id, &why),
        }
    }

    fn pass_on(&mut self, id: i64, told: WatchEvents) {
        let Some(wanted) = self.wanted.get(&id) else { return };
        let revision = revision_of(told.revision);
        if wanted.silent || revision < wanted.start {
            return;
        }
        let events = told.events.into_iter().map(EventBytes::from).collect();
        let whole = WatchAnswer { watch_id: id, events, ..WatchAnswer::default() };
        let parts = if wanted.fragment { fragments(whole) } else { vec![whole] };
        parts.into_iter().for_each(|part| self.tell(revision, part));
    }

    fn ended(&mut self, id: i64, why: &Error) {
        let began = self.beginning.take().is_none();
        self.forget(id);
        match why {
            Error::Compacted { first, .. } => {
                if !began {
                    let created = WatchAnswer { watch_id: id, created: true, ..WatchAnswer::default() };
                    self.tell(self.revision(), created);
                }
                let compact_revision = revision_of(*first);
                let canceled = WatchAnswer { watch_id: id, canceled: true, ..WatchAnswer::default() };
                self.tell(0, WatchAnswer { compact_revision, ..canceled });
            }
            Error::Invalid(_) | Error::TooLarge(_) | Error::Overloaded(_) if !began => {
                self.refuse(status::ours(why));
            }
            passing => self.end(Some(status::of(passing))),
        }
    }

    /// Reads requests until one of them takes a while.
    fn read(&mut self, context: &mut Context<'_>) {
        while self.beginning.is_none()
            && let Some(requests) = &mut self.requests
        {
            match Pin::new(requests).poll_next(context) {
                Poll::Ready(Some(Ok(request))) => self.take(&request),
                Poll::Ready(Some(Err(status))) => self.end(Some(status)),
                Poll::Ready(None) => self.requests = None,
                Poll::Pending => return,
            }
        }
    }

    /// Nothing more is taken, and all watches end.
    fn end(&mut self, last: Option<Status>) {
        self.requests = None;
        self.watches.end_all();
        self.beginning = None;
        self.last = last;
    }
}

impl<R> Stream for WatchStream<R>
where
    R: Stream<Item = Result<Bytes, Status>> + Unpin,
{
    type Item = Result<WatchAnswer, Status>;

    /// What is to be sent goes first; only then are watches asked for more.
    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = self.get_mut();
        loop {
            stream.read(context);
            let goes_on = stream.requests.is_some() || !stream.watches.is_empty();
            if goes_on && stream.stopping.as_mut().poll(context).is_ready() {
                stream.end(Some(status::STOPPED.into()));
            }
            if let Some(answer) = stream.answers.pop_front() {
                return Poll::Ready(Some(Ok(answer)));
            }
            match stream.watches.poll_word(context) {
                Poll::Ready(Some((id, word))) => stream.hear(id, word),
                Poll::Ready(None) if stream.requests.is_none() => {
                    return Poll::Ready(stream.last.take().map(Err));
                }
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// The keys that a watch is about, as etcd's requests name them.
fn span(mut key: Bytes, end: Bytes) -> Result<KeySpan, String> {
    const FIRST: &[u8] = &[0];
    if key.is_empty() {
        key = Bytes::from_static(FIRST);
    }
    match &*end {
        [] => KeySpan::key(key),
        FIRST => KeySpan::range(key, None),
        _ if key >= end => return Err(status::watch::EMPTY_RANGE.to_owned()),
        _ => KeySpan::range(key, Some(end)),
    }
    .map_err(status::ours)
}

/// Begins a watch at a revision (0: the next one), which may be gone, or not be there for long.
async fn begin(front: Arc<Front>, spec: WatchSpec, start: i64) -> Result<Watch, Error> {
    let node = front.node();
    let Some(start) = u64::try_from(start).ok().filter(|start| *start > 0).map(Revision) else {
        return node.watch(&front.machine, spec).await;
    };
    let state = front.state().await.map_err(|why| Error::Unavailable(why.message().to_owned()))?;
    let revision = Revision(state.header.unwrap_or_default().revision.unsigned_abs());
    let compacted = Revision(u64::try_from(state.compact_revision).unwrap_or(0));
    if start < compacted {
        return Err(Error::Compacted { asked: start, first: compacted });
    }
    if start > revision.next() {
        let watch = node.watch(&front.machine, spec.clone()).await?;
        // What comes before is left out of what is told.
        if watch.first() <= start {
            return Ok(watch);
        }
    }
    node.watch(&front.machine, WatchSpec { from: Some(start), ..spec }).await
}

/// An answer in parts that are no larger than a message should be, unless one event is.
fn fragments(whole: WatchAnswer) -> Vec<WatchAnswer> {
    if whole.events.len() < 2 || whole.encoded_len() < MESSAGE_BYTES_MAX {
        return vec![whole];
    }
    let head = WatchAnswer { events: Vec::new(), ..whole.clone() };
    let mut parts: Vec<WatchAnswer> = Vec::new();
    let mut bytes = usize::MAX;
    for event in whole.events {
        let size = event.encoded_len() + prost::length_delimiter_len(event.encoded_len()) + 1;
        match parts.last_mut() {
            Some(part) if bytes.saturating_add(size) < MESSAGE_BYTES_MAX => part.events.push(event),
            before => {
                if let Some(before) = before {
                    before.fragment = true;
                }
                bytes = head.encoded_len();
                parts.push(WatchAnswer { events: vec![event], ..head.clone() });
            }
        }
        bytes += size;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_as_in_etcd() {
        let named = |key: &'static str, end: &'static str| span(key.into(), end.into());
        assert_eq!(named("k", ""), Ok(KeySpan::key("k").unwrap()));
        assert_eq!(named("", ""), Ok(KeySpan::key("\0").unwrap()));
        assert_eq!(named("k", "\0"), Ok(KeySpan::range("k", None).unwrap()));
        assert_eq!(named("", "\0"), Ok(KeySpan::range("\0", None).unwrap()));
        assert_eq!(named("a", "b"), Ok(KeySpan::range("a", Some("b".into())).unwrap()));
        for (key, end) in [("b", "a"), ("a", "a")] {
            assert_eq!(named(key, end), Err(status::watch::EMPTY_RANGE.to_owned()));
        }
    }

    #[test]
    fn large_answers_go_in_parts_that_come_back_whole() {
        let event = |size: usize| EventBytes { kv: vec![7; size].into(), ..EventBytes::default() };
        for (sizes, parts_due) in [
            (vec![1; 3], 1),
            (vec![MESSAGE_BYTES_MAX], 1),
            (vec![900 << 10; 5], 3),
            (vec![3 << 20, 1, 3 << 20], 3),
        ] {
            let events: Vec<_> = sizes.iter().map(|size| event(*size)).collect();
            let whole = WatchAnswer { watch_id: 4, events: events.clone(), ..WatchAnswer::default() };
            let parts = fragments(whole);
            assert_eq!(parts.len(), parts_due, "{sizes:?}");
            let marks: Vec<bool> = parts.iter().map(|part| part.fragment).collect();
            assert!(marks[..parts_due - 1].iter().all(|more| *more) && !marks[parts_due - 1]);
            assert!(parts.iter().all(|part| part.watch_id == 4));
            let back: Vec<_> = parts.into_iter().flat_map(|part| part.events).collect();
            assert!(back == events);
        }
    }
}
