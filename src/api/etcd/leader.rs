//! The wish of a client to be served only while this node knows a leader (`hasleader` in a call's metadata):
//! on a node that was cut off, a watch would else be silent for ever, and a client would take that for peace.
//!
//! A call that begins without a leader is refused. A stream is ended when there was none for a while: to
//! begin it again costs more than to wait for an election to end.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::{Bytes, StdError, http};
use tonic::{Code, Status};

use super::{Front, status};
use crate::error::Error;

/// The name in the metadata, and what it must say.
pub const WISH: &str = "hasleader";
pub const GRANTED: &str = "true";

/// How often the node looks for its leader: etcd's election timeout.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// After so many looks without a leader streams end, as in etcd.
const LOOKS_MAX: u32 = 3;

/// Whether a call asks for a leader.
pub fn is_wanted(headers: &http::HeaderMap) -> bool {
    headers.get(WISH).is_some_and(|wish| wish == GRANTED)
}

impl Front {
    /// Whether this node knows who leads the machine, or the cluster if it has no replica of the machine.
    fn has_leader(&self) -> bool {
        match self.replica() {
            Some(replica) => replica.leader.is_some(),
            None => self.node().members().iter().any(|member| member.leader),
        }
    }

    /// What is said of a read that failed.
    pub(super) fn unread(&self, why: &Error) -> Status {
        self.without_leader(why, status::TIMED_OUT)
    }

    /// What is said of a change that was not made.
    pub(super) fn unchanged(&self, why: &Error) -> Status {
        self.without_leader(why, status::NOT_PROPOSED)
    }

    /// What is said where only the leader knows.
    pub(super) fn untold(&self, why: &Error) -> Status {
        self.without_leader(why, status::NO_LEADER)
    }

    /// What is said of an error, or, if it was for want of a leader, what etcd says then.
    fn without_leader(&self, why: &Error, said: status::Said) -> Status {
        let status = status::of(why);
        match status.code() == Code::Unavailable && !self.has_leader() {
            true => said.into(),
            false => status,
        }
    }
}

/// Looks for the leader until the server stops, and says so each time that it was not there for too long.
pub fn look_out(front: Arc<Front>, lost: watch::Sender<()>) {
    let stopping = front.serving.stopping();
    let looking = async move {
        let mut missed = 0;
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            missed = if front.has_leader() { 0 } else { missed + 1 };
            if missed >= LOOKS_MAX {
                lost.send_replace(());
            }
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = looking => {}
            () = stopping => {}
        }
    });
}

/// The services, of which each heeds the wish.
pub fn heed(services: Router, front: Arc<Front>) -> Router {
    services.layer(from_fn_with_state(front, heeded))
}

async fn heeded(State(front): State<Arc<Front>>, request: Request, next: Next) -> Response {
    match is_wanted(request.headers()) {
        true => led(&front, next.run(request)).await.map(axum::body::Body::new),
        false => next.run(request).await,
    }
}

/// An answer of which the client wants it only with a leader.
pub async fn led<B>(front: &Front, answer: impl Future<Output = http::Response<B>>) -> http::Response<Body>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<StdError>,
{
    // Before the look: what is lost in between is not missed.
    let mut lost = front.leader_lost.clone();
    lost.mark_unchanged();
    if !front.has_leader() {
        return Status::from(status::NO_LEADER).into_http();
    }
    let lost = Box::pin(async move {
        if lost.changed().await.is_err() {
            // Nobody looks any more: the server stops, which ends all streams.
            std::future::pending::<()>().await;
        }
    });
    answer.await.map(|body| Body::new(Led { body: Some(body), lost }))
}

/// What is sent to a client, until the leader is lost.
struct Led<B> {
    /// None after that.
    body: Option<B>,
    lost: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<B> HttpBody for Led<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context).map_err(Into::into);
        if polled.is_pending() && this.lost.as_mut().poll(context).is_ready() {
            this.body = None;
            let mut trailers = http::HeaderMap::new();
            Status::from(status::NO_LEADER).add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    #[test]
    fn only_the_right_word_is_a_wish() {
        let headers = |wish: &str| {
            http::HeaderMap::from_iter([(WISH.parse().expect("a name"), wish.parse().expect("a value"))])
        };
        assert!(is_wanted(&headers("true")));
        for other in ["false", "", "True"] {
            assert!(!is_wanted(&headers(other)), "{other:?}");
        }
        assert!(!is_wanted(&http::HeaderMap::new()));
    }

    #[tokio::test]
    async fn what_was_sent_before_comes_and_then_the_status() {
        let (lose, lost) = tokio::sync::oneshot::channel::<()>();
        let first = tokio_stream::once(Ok::<_, StdError>(Bytes::from_static(b"first")));
        let body = axum::body::Body::from_stream(first.chain(tokio_stream::pending()));
        let lost = Box::pin(async move { lost.await.expect("it is told") });
        let mut led = Led { body: Some(body), lost };
        let mut next = async || std::future::poll_fn(|context| Pin::new(&mut led).poll_frame(context)).await;
        let frame = next().await.expect("a frame").expect("no error");
        assert_eq!(frame.into_data().expect("data"), "first");
        lose.send(()).expect("it listens");
        let trailers = next().await.expect("a frame").expect("no error").into_trailers().expect("trailers");
        let status = Status::from_header_map(&trailers).expect("a status");
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
        assert!(next().await.is_none());
    }
}
