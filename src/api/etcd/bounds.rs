//! How large a message to etcd's services may be.
//!
//! The size of a message is said before its bytes come, and one that is too large is refused there, of any
//! service, in the words of etcd's gRPC library: nothing of it is read, let alone kept. It must never look at
//! anything but sizes.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::middleware::map_request;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::codegen::StdError;

/// What etcd takes into its log as one request, without a setting of its own.
pub const REQUEST_BYTES_MAX: usize = 1_536 << 10;
/// What it takes as one message: room for the request's frame.
pub const MESSAGE_BYTES_MAX: usize = REQUEST_BYTES_MAX + (512 << 10);

/// Before each message: whether it is compressed, and its length (gRPC over HTTP2,
/// "Length-Prefixed-Message").
const PREFIX_BYTES: usize = 5;

/// The same services, which no message comes to that is too large.
pub fn refuse_large(services: Router) -> Router {
    let bounded = |request: Request| async { request.map(|body| Body::new(Bounded::new(body))) };
    services.layer(map_request(bounded))
}

/// What a client sends, up to a message that is too large, and then an error.
pub struct Bounded<B> {
    body: B,
    place: Place,
    /// To be told when what came before it is.
    refusal: Option<Status>,
}

impl<B> Bounded<B> {
    /// A body of gRPC messages of which none has come yet.
    pub fn new(body: B) -> Bounded<B> {
        Bounded { body, place: Place::default(), refusal: None }
    }
}

impl<B> HttpBody for Bounded<B>
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
        if let Some(refusal) = this.refusal.take() {
            return Poll::Ready(Some(Err(refusal.into())));
        }
        let mut polled = Pin::new(&mut this.body).poll_frame(context).map_err(Into::into);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(bytes) = frame.data_mut()
            && let Err((at, refusal)) = this.place.pass(bytes)
        {
            bytes.truncate(at);
            this.refusal = Some(refusal);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.refusal.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Where in the stream of messages a piece ends.
#[derive(Default)]
struct Place {
    /// What is left of a message.
    left: usize,
    /// What is there of the next one's prefix.
    prefix: [u8; PREFIX_BYTES],
    known: usize,
}

impl Place {
    /// Goes on by a piece.
    ///
    /// # Errors
    /// Where in the piece (or before) a message begins that is too large, and the refusal.
    fn pass(&mut self, piece: &[u8]) -> Result<(), (usize, Status)> {
        let mut at = 0;
        while at < piece.len() {
            let within = self.left.min(piece.len() - at);
            self.left -= within;
            at += within;
            let begins = at;
            while self.known < PREFIX_BYTES
                && let Some(byte) = piece.get(at)
                && self.left == 0
            {
                self.prefix[self.known] = *byte;
                self.known += 1;
                at += 1;
            }
            if self.known == PREFIX_BYTES {
                let [_, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length) as usize;
                self.known = 0;
                check(self.left).map_err(|refusal| (begins, refusal))?;
            }
        }
        Ok(())
    }
}

/// As etcd's gRPC library does before etcd sees a message.
fn check(bytes: usize) -> Result<(), Status> {
    if bytes <= MESSAGE_BYTES_MAX {
        return Ok(());
    }
    let text = format!("grpc: received message larger than max ({bytes} vs. {MESSAGE_BYTES_MAX})");
    Err(Status::resource_exhausted(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(sizes: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for size in sizes {
            bytes.push(0);
            bytes.extend((*size as u32).to_be_bytes());
            bytes.extend(std::iter::repeat_n(0xff, (*size).min(MESSAGE_BYTES_MAX)));
        }
        bytes
    }

    /// Where messages that come in pieces of some size are refused, if they are.
    fn refused_at(messages: &[u8], piece: usize) -> Option<usize> {
        let mut place = Place::default();
        for (number, piece_) in messages.chunks(piece).enumerate() {
            if let Err((at, refusal)) = place.pass(piece_) {
                let text = "grpc: received message larger than max (2097153 vs. 2097152)";
                assert_eq!((refusal.code(), refusal.message()), (tonic::Code::ResourceExhausted, text));
                return Some(number * piece + at);
            }
        }
        assert_eq!((place.left, place.known), (0, 0), "all of it was passed");
        None
    }

    #[test]
    fn the_first_message_that_is_too_large_is_refused_in_whatever_pieces_it_comes() {
        let before = [3, 0, 1, 300];
        let fine = messages(&before);
        let large = messages(&[&before[..], &[MESSAGE_BYTES_MAX + 1]].concat());
        for piece in 1..fine.len() + PREFIX_BYTES {
            assert_eq!(refused_at(&fine, piece), None);
            let at = refused_at(&large, piece).expect("it is refused");
            // What is given of the prefix before it is all there harms nobody.
            assert!((fine.len()..fine.len() + PREFIX_BYTES).contains(&at), "pieces of {piece}: {at}");
        }
        assert_eq!(refused_at(&messages(&[MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX]), 16 << 10), None);
    }

    #[tokio::test]
    async fn what_came_before_is_served_and_nothing_behind_is_read() {
        let [fine, large] = [messages(&[4]), messages(&[MESSAGE_BYTES_MAX + 1])];
        let all = [&fine[..], &large].concat();
        let mut body = Bounded::new(Body::from(all));
        let mut next = async || std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        let data = next().await.expect("a frame").expect("no error").into_data().expect("data");
        assert_eq!(data, fine);
        let error = next().await.expect("an error").expect_err("it is too large");
        assert_eq!(Status::from_error(error).code(), tonic::Code::ResourceExhausted);
    }
}
