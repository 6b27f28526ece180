//! The gRPC service `Watches`: many watches on one stream.
//!
//! One task drives all watches of a stream: it is the stream's own. When the client does not read, none of
//! them is asked for its next word, so the stream holds at most one revision for it; the node sees to the
//! rest.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{AbortHandle, Abortable, BoxFuture};
use futures_util::stream::{FuturesUnordered, Stream};
use tonic::{Request, Response, Status, Streaming};

use super::{Serving, Stopping};
use crate::error::Error;
use crate::node::Node;
use crate::node::request::{WatchSpec, Watched};
use crate::node::watches::{Watch, WatchAsker};
use crate::proto::v1::watch_request::Request as Asked;
use crate::proto::v1::watch_response::Response as Told;
use crate::proto::v1::watches_server::Watches;
use crate::proto::v1::{self, WatchResponse};
use crate::proto::{status, watches};

/// Ids that the server chooses begin here, out of the way of those that clients choose.
const CHOSEN_IDS: u64 = 1 << 63;

/// The service.
pub struct WatchesService {
    serving: Arc<Serving>,
}

impl WatchesService {
    /// Serves the node.
    pub fn new(serving: Arc<Serving>) -> WatchesService {
        WatchesService { serving }
    }
}

#[tonic::async_trait]
impl Watches for WatchesService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        requests: Request<Streaming<v1::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watches_max = self.serving.limits.stream_watches_max as usize;
        let stream = WatchStream {
            node: self.serving.node.clone(),
            requests: Some(requests.into_inner()),
            stopping: self.serving.stopping(),
            watches_max,
            known: HashMap::new(),
            turns: FuturesUnordered::new(),
            responses: VecDeque::new(),
            machine: String::new(),
            next_id: CHOSEN_IDS,
            last: None,
        };
        Ok(Response::new(Box::pin(stream)))
    }
}

/// What a watch came to in its turn.
enum Turn {
    Began(Result<Watch, Error>),
    Told(Watch, Result<Watched, Error>),
}

/// A watch of a stream, as far as its requests are about it.
struct Known {
    abort: AbortHandle,
    /// None until it has begun.
    asker: Option<WatchAsker>,
    /// Whether it is to be asked how far it is when it has begun.
    progress_wanted: bool,
}

/// All watches of a stream.
struct WatchStream<R> {
    node: Node,
    /// None when no more will come.
    requests: Option<R>,
    stopping: Stopping,
    watches_max: usize,
    known: HashMap<u64, Known>,
    /// The next turn of each.
    turns: FuturesUnordered<Abortable<BoxFuture<'static, (u64, Turn)>>>,
    /// What is to be sent.
    responses: VecDeque<WatchResponse>,
    /// That of the last watch that named one.
    machine: String,
    next_id: u64,
    /// What the stream ends with, if it is not a plain end.
    last: Option<Status>,
}

impl<R> WatchStream<R>
where
    R: Stream<Item = Result<v1::WatchRequest, Status>> + Unpin,
{
    fn tell(&mut self, id: u64, told: Told) {
        self.responses.push_back(WatchResponse { id, response: Some(told) });
    }

    /// The watch has ended, or did not begin.
    fn cancel(&mut self, id: u64, why: Option<&Error>) {
        let failure = why.map(status::to_failure);
        self.tell(id, Told::Canceled(v1::WatchCanceled { failure }));
    }

    fn take(&mut self, request: v1::WatchRequest) {
        match request.request {
            Some(Asked::Create(create)) => self.create(create),
            Some(Asked::Cancel(v1::CancelWatch { id })) => match self.known.remove(&id) {
                Some(known) => {
                    known.abort.abort();
                    self.responses.retain(|response| response.id != id);
                    self.cancel(id, None);
                }
                None => self.cancel(id, Some(&unknown(id))),
            },
            Some(Asked::Progress(v1::AskProgress { id })) => match self.known.get_mut(&id) {
                Some(Known { asker: Some(asker), .. }) => asker.want_progress(),
                Some(known) => known.progress_wanted = true,
                None => self.cancel(id, Some(&unknown(id))),
            },
            None => {
                let text = "a request that says nothing: create, cancel and progress are known; the client \
                            may be newer than the node";
                self.end(Some(status::to_status(&Error::Invalid(text.into()))));
            }
        }
    }

    fn create(&mut self, mut create: v1::CreateWatch) {
        let id = match create.id {
            0 => {
                self.next_id += 1;
                self.next_id
            }
            id => id,
        };
        match self.check_new(id, &mut create).and_then(|()| WatchSpec::try_from(create)) {
            Ok(spec) => {
                let (node, machine) = (self.node.clone(), self.machine.clone());
                let asker = None;
                let abort = self
                    .take_turn(Box::pin(async move { (id, Turn::Began(node.watch(&machine, spec).await)) }));
                self.known.insert(id, Known { abort, asker, progress_wanted: false });
            }
            Err(why) => self.cancel(id, Some(&why)),
        }
    }

    fn check_new(&mut self, id: u64, create: &mut v1::CreateWatch) -> Result<(), Error> {
        if !create.machine.is_empty() {
            self.machine = std::mem::take(&mut create.machine);
        }
        if self.machine.is_empty() {
            return Err(Error::Invalid("the first watch of a stream must name its machine".into()));
        }
        if self.known.contains_key(&id) {
            return Err(Error::AlreadyExists(format!(
                "the stream has a watch {id} already: choose another id, or 0 to have one chosen"
            )));
        }
        if self.known.len() >= self.watches_max {
            return Err(Error::Overloaded(format!(
                "the stream has {} watches, and {} may be on one: open another stream, or raise \
                 `limits.stream_watches_max`",
                self.known.len(),
                self.watches_max
            )));
        }
        Ok(())
    }

    fn take_turn(&mut self, turn: BoxFuture<'static, (u64, Turn)>) -> AbortHandle {
        let (abort, registration) = AbortHandle::new_pair();
        self.turns.push(Abortable::new(turn, registration));
        abort
    }

    fn came_to(&mut self, id: u64, turn: Turn) {
        let Some(known) = self.known.get_mut(&id) else { return };
        let (watch, told) = match turn {
            Turn::Began(Ok(watch)) => {
                let asker = watch.asker();
                if known.progress_wanted {
                    asker.want_progress();
                }
                known.asker = Some(asker);
                let revision = watch.first().0;
                (watch, vec![Told::Created(v1::WatchCreated { revision })])
            }
            Turn::Told(watch, Ok(Watched::Events(events))) => {
                (watch, watches::fragments(events).into_iter().map(Told::Events).collect())
            }
            Turn::Told(watch, Ok(Watched::Progress(revision))) => {
                (watch, vec![Told::Progress(v1::WatchProgress { revision: revision.0 })])
            }
            Turn::Began(Err(why)) | Turn::Told(_, Err(why)) => {
                self.known.remove(&id);
                return self.cancel(id, Some(&why));
            }
        };
        told.into_iter().for_each(|told| self.tell(id, told));
        let mut watch = watch;
        let abort = self.take_turn(Box::pin(async move {
            let told = watch.next().await;
            (id, Turn::Told(watch, told))
        }));
        if let Some(known) = self.known.get_mut(&id) {
            known.abort = abort;
        }
    }

    /// Reads all requests that are there.
    fn read(&mut self, context: &mut Context<'_>) {
        while let Some(requests) = &mut self.requests {
            match Pin::new(requests).poll_next(context) {
                Poll::Ready(Some(Ok(request))) => self.take(request),
                Poll::Ready(Some(Err(status))) => self.end(Some(status)),
                Poll::Ready(None) => self.requests = None,
                Poll::Pending => return,
            }
        }
    }

    /// Nothing more is taken, and all watches end.
    fn end(&mut self, last: Option<Status>) {
        self.requests = None;
        self.known.clear();
        self.turns.clear();
        self.last = last;
    }
}

fn unknown(id: u64) -> Error {
    Error::NotFound(format!("the stream has no watch {id}: it has ended, or was never created"))
}

impl<R> Stream for WatchStream<R>
where
    R: Stream<Item = Result<v1::WatchRequest, Status>> + Unpin,
{
    type Item = Result<WatchResponse, Status>;

    /// What is to be sent goes first; only then are watches asked for more.
    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = self.get_mut();
        loop {
            stream.read(context);
            let goes_on = stream.requests.is_some() || !stream.known.is_empty();
            if goes_on && stream.stopping.as_mut().poll(context).is_ready() {
                let text = "the node is stopping: watch on from the next revision at another node";
                stream.end(Some(status::to_status(&Error::Unavailable(text.into()))));
            }
            if let Some(response) = stream.responses.pop_front() {
                return Poll::Ready(Some(Ok(response)));
            }
            match Pin::new(&mut stream.turns).poll_next(context) {
                Poll::Ready(Some(Ok((id, turn)))) => stream.came_to(id, turn),
                // It was canceled, and told so.
                Poll::Ready(Some(Err(_aborted))) => {}
                Poll::Ready(None) if stream.requests.is_none() => {
                    return Poll::Ready(stream.last.take().map(Err));
                }
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}
