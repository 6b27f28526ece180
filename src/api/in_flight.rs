//! Many requests under way on one stream, answered in any order.
//!
//! One task drives all of them: it is the stream's own, so a request costs no task and no wake-up of another
//! thread. Requests begin in the order in which they came. What is under way is bounded in number and bytes;
//! at a bound the stream stops reading, and HTTP/2 flow control holds the client back.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::stream::{FuturesUnordered, Stream};
use tonic::Status;

use super::Stopping;
use crate::error::Error;
use crate::proto::status;

/// How much of one stream may be under way.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Requests.
    pub requests_max: usize,
    /// Their bytes; the request that reaches it is the last.
    pub bytes_max: usize,
}

/// A request on its way, and what it weighs.
struct Running<F> {
    future: Pin<Box<F>>,
    bytes: usize,
}

impl<F: Future> Future for Running<F> {
    type Output = (usize, F::Output);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let bytes = self.bytes;
        self.future.as_mut().poll(context).map(|answer| (bytes, answer))
    }
}

/// The answers of one stream. `begin` makes a request's future and says how many bytes the request has.
pub struct InFlight<S, B, F> {
    /// None when no more requests will come.
    requests: Option<S>,
    begin: B,
    running: FuturesUnordered<Running<F>>,
    bytes: usize,
    bounds: Bounds,
    stopping: Stopping,
    /// What the stream ends with once all answers are out, if it is not a plain end.
    last: Option<Status>,
}

impl<S, B, F, Q, A> InFlight<S, B, F>
where
    S: Stream<Item = Result<Q, Status>> + Unpin,
    B: FnMut(Q) -> (usize, F),
    F: Future<Output = A>,
{
    /// Answers `requests` until they end or the server stops.
    pub fn new(requests: S, bounds: Bounds, stopping: Stopping, begin: B) -> InFlight<S, B, F> {
        InFlight {
            requests: Some(requests),
            begin,
            running: FuturesUnordered::new(),
            bytes: 0,
            bounds,
            stopping,
            last: None,
        }
    }

    /// Begins all requests that are there and for which there is room; true if there was one. At its end
    /// nothing more can be begun without the context being woken.
    fn read(&mut self, context: &mut Context<'_>) -> bool {
        let mut any = false;
        while let Some(requests) = &mut self.requests {
            if self.stopping.as_mut().poll(context).is_ready() {
                let text = "the node is stopping; commands without an answer were not applied";
                self.end(Some(status::to_status(&Error::Unavailable(text.into()))));
                break;
            }
            if self.running.len() >= self.bounds.requests_max || self.bytes >= self.bounds.bytes_max {
                break;
            }
            match Pin::new(requests).poll_next(context) {
                Poll::Ready(Some(Ok(request))) => {
                    let (bytes, future) = (self.begin)(request);
                    self.bytes += bytes;
                    self.running.push(Running { future: Box::pin(future), bytes });
                    any = true;
                }
                Poll::Ready(Some(Err(status))) => self.end(Some(status)),
                Poll::Ready(None) => self.end(None),
                Poll::Pending => break,
            }
        }
        any
    }

    fn end(&mut self, last: Option<Status>) {
        self.requests = None;
        self.last = last;
    }

    /// The next answer that is ready.
    fn answer(&mut self, context: &mut Context<'_>) -> Poll<Option<A>> {
        let next = Pin::new(&mut self.running).poll_next(context);
        next.map(|next| {
            next.map(|(bytes, answer)| {
                self.bytes -= bytes;
                answer
            })
        })
    }
}

impl<S, B, F, Q, A> Stream for InFlight<S, B, F>
where
    S: Stream<Item = Result<Q, Status>> + Unpin,
    B: FnMut(Q) -> (usize, F) + Unpin,
    F: Future<Output = A>,
{
    type Item = Result<A, Status>;

    /// Answers that are ready go out first, all that are ready in one go; then everything that arrived is
    /// begun together.
    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = self.get_mut();
        loop {
            if let Poll::Ready(Some(answer)) = stream.answer(context) {
                return Poll::Ready(Some(Ok(answer)));
            }
            if stream.read(context) {
                continue;
            }
            if stream.requests.is_none() && stream.running.is_empty() {
                return Poll::Ready(stream.last.take().map(Err));
            }
            return Poll::Pending;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use futures_util::StreamExt;
    use parking_lot::Mutex;
    use tokio::sync::{mpsc, oneshot};
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::*;

    type Begun = Arc<Mutex<Vec<(u64, Option<oneshot::Sender<()>>)>>>;

    /// A stream of numbered requests of ten bytes that end when the test says so.
    struct Rig {
        send: Option<mpsc::UnboundedSender<Result<u64, Status>>>,
        begun: Begun,
        stop: Option<oneshot::Sender<()>>,
        answers: Pin<Box<dyn Stream<Item = Result<u64, Status>>>>,
    }

    fn rig(requests_max: usize, bytes_max: usize) -> Rig {
        let (send, requests) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let begun = Begun::default();
        let log = begun.clone();
        let stopping: Stopping = Box::pin(async move {
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        let begin = move |id: u64| {
            let log = log.clone();
            let future = async move {
                let (done, told) = oneshot::channel();
                log.lock().push((id, Some(done)));
                told.await.expect("the test answers");
                id
            };
            (10, future)
        };
        let bounds = Bounds { requests_max, bytes_max };
        let stream = InFlight::new(UnboundedReceiverStream::new(requests), bounds, stopping, begin);
        Rig { send: Some(send), begun, stop: Some(stop), answers: Box::pin(stream) }
    }

    impl Rig {
        fn send(&self, ids: impl IntoIterator<Item = u64>) {
            let send = self.send.as_ref().expect("still sending");
            ids.into_iter().for_each(|id| send.send(Ok(id)).expect("the stream reads"));
        }

        fn finish(&self, id: u64) {
            let mut begun = self.begun.lock();
            let (_, done) = begun.iter_mut().find(|(found, _)| *found == id).expect("begun");
            done.take().expect("not finished yet").send(()).expect("waited for");
        }

        fn begun(&self) -> Vec<u64> {
            self.begun.lock().iter().map(|(id, _)| *id).collect()
        }

        /// What one look at the stream gives; None if it has nothing yet.
        async fn look(&mut self) -> Option<Option<Result<u64, Status>>> {
            poll_fn(|context| match self.answers.as_mut().poll_next(context) {
                Poll::Ready(item) => Poll::Ready(Some(item)),
                Poll::Pending => Poll::Ready(None),
            })
            .await
        }
    }

    #[tokio::test]
    async fn requests_begin_in_order_and_answers_come_in_any() {
        let mut rig = rig(1_000, 1 << 20);
        rig.send(0..100);
        assert!(rig.look().await.is_none());
        assert_eq!(rig.begun(), (0..100).collect::<Vec<_>>());
        for id in [99, 3, 50] {
            rig.finish(id);
            assert_eq!(rig.answers.next().await.unwrap().unwrap(), id);
        }
    }

    #[tokio::test]
    async fn no_more_are_begun_than_the_bound_on_requests() {
        let mut rig = rig(3, 1 << 20);
        rig.send(0..10);
        assert!(rig.look().await.is_none());
        assert_eq!(rig.begun(), [0, 1, 2]);
        rig.finish(1);
        assert_eq!(rig.answers.next().await.unwrap().unwrap(), 1);
        assert!(rig.look().await.is_none());
        assert_eq!(rig.begun(), [0, 1, 2, 3]);
    }

    #[tokio::test]
    async fn no_more_are_begun_than_the_bound_on_bytes() {
        let mut rig = rig(100, 25);
        rig.send(0..10);
        assert!(rig.look().await.is_none());
        assert_eq!(rig.begun(), [0, 1, 2]);
        rig.finish(0);
        assert_eq!(rig.answers.next().await.unwrap().unwrap(), 0);
        assert!(rig.look().await.is_none());
        assert_eq!(rig.begun(), [0, 1, 2, 3]);
    }

    #[tokio::test]
    async fn the_end_of_the_requests_waits_for_the_answers() {
        let mut rig = rig(10, 1 << 20);
        rig.send(0..2);
        rig.send = None;
        assert!(rig.look().await.is_none());
        rig.finish(1);
        rig.finish(0);
        assert!(matches!(rig.answers.next().await, Some(Ok(_))));
        assert!(matches!(rig.answers.next().await, Some(Ok(_))));
        assert!(rig.answers.next().await.is_none());
    }

    #[tokio::test]
    async fn a_broken_request_ends_the_stream_after_the_answers() {
        let mut rig = rig(10, 1 << 20);
        rig.send([0]);
        let broken = Err(Status::invalid_argument("no message"));
        rig.send.as_ref().unwrap().send(broken).unwrap();
        assert!(rig.look().await.is_none());
        rig.finish(0);
        assert_eq!(rig.answers.next().await.unwrap().unwrap(), 0);
        let status = rig.answers.next().await.unwrap().unwrap_err();
        assert_eq!(status.message(), "no message");
        assert!(rig.answers.next().await.is_none());
    }

    #[tokio::test]
    async fn a_stopping_server_answers_what_it_began_and_says_that_the_rest_was_not_done() {
        let mut rig = rig(2, 1 << 20);
        rig.send(0..5);
        assert!(rig.look().await.is_none());
        rig.stop.take().unwrap().send(()).unwrap();
        rig.finish(0);
        rig.finish(1);
        assert!(matches!(rig.answers.next().await, Some(Ok(_))));
        assert!(matches!(rig.answers.next().await, Some(Ok(_))));
        let error = rig.answers.next().await.unwrap().unwrap_err();
        assert!(matches!(status::from_status(&error, "here"), Error::Unavailable(_)));
        assert_eq!(rig.begun(), [0, 1]);
    }
}
