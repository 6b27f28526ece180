//! The gRPC service `Watches`: many watches on one stream.
//!
//! One task drives all watches of a stream: it is the stream's own. When the client does not read, none of
//! them is asked for its next word; the node sees to the rest.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::watch_set::{WatchSet, Word};
use super::{Serving, Stopping};
use crate::error::Error;
use crate::node::Node;
use crate::node::request::{WatchSpec, Watched};
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
            watches: WatchSet::new(),
            responses: VecDeque::new(),
            machine: String::new(),
            next_id: CHOSEN_IDS,
            last: None,
        };
        Ok(Response::new(Box::pin(stream)))
    }
}

/// All watches of a stream.
struct WatchStream<R> {
    node: Node,
    /// None when no more will come.
    requests: Option<R>,
    stopping: Stopping,
    watches_max: usize,
    watches: WatchSet<u64>,
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
            Some(Asked::Cancel(v1::CancelWatch { id })) if self.watches.end(id) => {
                self.responses.retain(|response| response.id != id);
                self.cancel(id, None);
            }
            Some(Asked::Progress(v1::AskProgress { id })) if self.watches.ask_progress(id) => {}
            Some(Asked::Cancel(v1::CancelWatch { id }) | Asked::Progress(v1::AskProgress { id })) => {
                self.cancel(id, Some(&unknown(id)));
            }
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
                self.watches.begin(id, async move { node.watch(&machine, spec).await });
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
        if self.watches.contains(id) {
            return Err(Error::AlreadyExists(format!(
                "the stream has a watch {id} already: choose another id, or 0 to have one chosen"
            )));
        }
        if self.watches.len() >= self.watches_max {
            return Err(Error::Overloaded(format!(
                "the stream has {} watches, and {} may be on one: open another stream, or raise \
                 `limits.stream_watches_max`",
                self.watches.len(),
                self.watches_max
            )));
        }
        Ok(())
    }

    fn hear(&mut self, id: u64, word: Word) {
        match word {
            Word::Began(revision) => {
                self.tell(id, Told::Created(v1::WatchCreated { revision: revision.0 }));
            }
            Word::Told(Watched::Events(events)) => {
                watches::fragments(events).into_iter().for_each(|part| self.tell(id, Told::Events(part)));
            }
            Word::Told(Watched::Progress(revision)) => {
                self.tell(id, Told::Progress(v1::WatchProgress { revision: revision.0 }));
            }
            Word::Ended(why) => self.cancel(id, Some(&why)),
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
        self.watches.end_all();
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
            let goes_on = stream.requests.is_some() || !stream.watches.is_empty();
            if goes_on && stream.stopping.as_mut().poll(context).is_ready() {
                let text = "the node is stopping: watch on from the next revision at another node";
                stream.end(Some(status::to_status(&Error::Unavailable(text.into()))));
            }
            if let Some(response) = stream.responses.pop_front() {
                return Poll::Ready(Some(Ok(response)));
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
