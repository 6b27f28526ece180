//! A client's connection that writes what many streams have for it at once.
//!
//! The HTTP/2 library hands a socket every data frame of 256 bytes or more by itself, and flushes after each:
//! an event for a hundred watchers on one connection would be a hundred writes, and the answer to a request
//! two. But it also flushes when it has no more frames. So what is flushed within is kept here, and leaves
//! with that.
//!
//! Promises: bytes leave in their order, and no later than with the last flush of a turn. It knows the flush
//! within from the last one by the write before it: that of a data frame has two parts, the library's buffer
//! and the frame's payload, and all else has one; and a flush with nothing written since the one before is
//! the last. That is how HTTP/2 is written; other protocols pass through as they are.
//!
//! The tasks of a connection's streams wake it one after the other, and it would take a turn, and a write,
//! for each of a hundred that got an event at the same time. So when one write follows another at once, it
//! first lets those go ahead that are ready too.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::open_files::Place;
use crate::time::Clock;

/// With what a client says that it speaks HTTP/2.
const PREFACE: &[u8] = b"PRI ";

/// What is larger is worth a write of its own.
const SMALL_BYTES: usize = 4 << 10;

/// When so much is kept it leaves.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// A write so soon after another is one of many.
const BURST: Duration = Duration::from_micros(50);

/// A connection that gathers small writes.
pub struct Gathering<S = TcpStream> {
    stream: S,
    protocol: Protocol,
    /// What was taken and not written, from `written` on.
    kept: Vec<u8>,
    written: usize,
    /// Whether the last write was a part of what is to come: its flush is not the last.
    is_within: bool,
    /// Started when it last had something to write.
    since: Option<Clock>,
    /// [`BURST`], but for tests, which cannot tell how long they take.
    burst: Duration,
    /// Whether it has let others go ahead since the last write.
    has_waited: bool,
    _place: Option<Place>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// The client has said nothing.
    Unknown,
    Http2,
    Other,
}

impl<S> Gathering<S> {
    /// A connection on which nothing was said yet.
    pub fn new(stream: S) -> Gathering<S> {
        Gathering {
            stream,
            protocol: Protocol::Unknown,
            kept: Vec::new(),
            written: 0,
            is_within: false,
            since: None,
            burst: BURST,
            has_waited: false,
            _place: None,
        }
    }

    /// The same, with its place among the connections until it ends.
    pub fn in_place(self, place: Place) -> Gathering<S> {
        Gathering { _place: Some(place), ..self }
    }

    /// Whether it has written something a moment ago.
    fn is_in_burst(&self) -> bool {
        let is_soon = |since: Clock| u128::from(since.elapsed_ns()) < self.burst.as_nanos();
        self.protocol == Protocol::Http2 && self.since.is_some_and(is_soon)
    }

    fn hear(&mut self, bytes: &[u8]) {
        if self.protocol == Protocol::Unknown && !bytes.is_empty() {
            let is_http2 = bytes.starts_with(PREFACE);
            self.protocol = if is_http2 { Protocol::Http2 } else { Protocol::Other };
        }
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    /// Writes what is kept.
    fn poll_kept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.kept.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.kept[self.written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        self.kept.clear();
        self.kept.shrink_to(SMALL_BYTES);
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        self.is_within = parts.len() > 1 && self.protocol == Protocol::Http2;
        let is_taken = self.is_within || !self.kept.is_empty() || self.is_in_burst();
        if is_taken && bytes <= SMALL_BYTES && self.kept.len() + bytes <= KEPT_BYTES_MAX {
            parts.iter().for_each(|part| self.kept.extend_from_slice(part));
            return Poll::Ready(Ok(bytes));
        }
        ready!(self.poll_kept(context))?;
        self.since = Some(Clock::start());
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.is_within) {
            return Poll::Ready(Ok(()));
        }
        if !self.kept.is_empty() {
            if !self.has_waited && self.is_in_burst() {
                self.has_waited = true;
                // Behind all others that are ready on this thread.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(self.poll_kept(context))?;
            (self.since, self.has_waited) = (Some(Clock::start()), false);
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_kept(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        self.hear(&into.filled()[before..]);
        read
    }
}

impl Connected for Gathering {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// Counts the writes that reach the socket.
    struct Counted(DuplexStream, usize);

    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let written = Pin::new(&mut self.0).poll_write(context, bytes);
            self.1 += usize::from(written.is_ready());
            written
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(context)
        }
    }

    impl AsyncRead for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(context, into)
        }
    }

    /// A connection whose client has said this, and the client's end.
    async fn connection(said: &[u8], room: usize) -> (Gathering<Counted>, DuplexStream) {
        let (near, mut far) = duplex(room);
        far.write_all(said).await.unwrap();
        let mut gathering = Gathering::new(Counted(near, 0));
        gathering.read_exact(&mut vec![0; said.len()]).await.unwrap();
        (gathering, far)
    }

    /// As a data frame is written: its head and its payload, all of it, and a flush.
    async fn frame(gathering: &mut Gathering<Counted>, head: &[u8], payload: &[u8]) {
        let mut left = bytes::Buf::chain(head, payload);
        while bytes::Buf::has_remaining(&left) {
            gathering.write_buf(&mut left).await.unwrap();
        }
        gathering.flush().await.unwrap();
    }

    #[tokio::test]
    async fn the_frames_of_a_turn_leave_in_one_write() {
        let (mut gathering, mut far) = connection(b"PRI * HTTP/2.0", 1 << 16).await;
        for _ in 0..100 {
            frame(&mut gathering, b"head", &[7; 300]).await;
        }
        assert_eq!(gathering.stream.1, 0);
        gathering.flush().await.unwrap();
        assert_eq!(gathering.stream.1, 1);
        let mut bytes = vec![0; 100 * 304];
        far.read_exact(&mut bytes).await.unwrap();
        assert!(bytes.chunks(304).all(|frame| frame[..4] == *b"head" && frame[4..] == [7; 300]));
    }

    #[tokio::test]
    async fn what_follows_a_write_at_once_lets_others_go_ahead_and_what_comes_later_does_not() {
        let (mut gathering, _far) = connection(b"PRI * HTTP/2.0", 1 << 16).await;
        frame(&mut gathering, b"head", &[7; 300]).await;
        gathering.flush().await.unwrap();
        assert_eq!(gathering.stream.1, 1, "nothing was written before it");
        // Whether or not this computer pauses now.
        gathering.burst = Duration::MAX;
        frame(&mut gathering, b"head", &[7; 300]).await;
        let context = &mut Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut gathering).poll_flush(context).is_pending());
        frame(&mut gathering, b"head", &[7; 300]).await;
        gathering.write_all(b"trailers").await.unwrap();
        assert_eq!(gathering.stream.1, 1);
        assert!(Pin::new(&mut gathering).poll_flush(context).is_ready(), "it waits once");
        assert_eq!((gathering.stream.1, gathering.kept.len()), (2, 0));
        gathering.burst = Duration::ZERO;
        frame(&mut gathering, b"head", &[7; 300]).await;
        gathering.flush().await.unwrap();
        assert_eq!(gathering.stream.1, 3);
    }

    #[tokio::test]
    async fn what_has_one_part_or_is_another_protocol_leaves_with_its_flush() {
        let (mut gathering, _far) = connection(b"PRI * HTTP/2.0", 1 << 16).await;
        frame(&mut gathering, b"head", &[7; 300]).await;
        gathering.write_all(b"trailers").await.unwrap();
        gathering.flush().await.unwrap();
        assert_eq!((gathering.stream.1, gathering.kept.len()), (1, 0));
        let (mut gathering, _far) = connection(b"GET / HTTP/1.1", 1 << 16).await;
        frame(&mut gathering, b"head", &[7; 300]).await;
        assert_eq!(gathering.kept.len(), 0);
        assert!(gathering.stream.1 > 0);
    }

    #[tokio::test]
    async fn bytes_leave_in_their_order_through_a_full_socket() {
        let (mut gathering, mut far) = connection(b"PRI * HTTP/2.0", 1 << 10).await;
        let sizes: Vec<usize> = (0..400).map(|number| number * 37 % 9_000).collect();
        let all: Vec<u8> =
            (0..sizes.iter().sum::<usize>() + sizes.len()).map(|at| (at % 251) as u8).collect();
        let (expected, total) = (all.clone(), all.len());
        let writing = tokio::spawn(async move {
            let mut rest = &all[..];
            for size in sizes {
                let (now, later) = rest.split_at(size + 1);
                frame(&mut gathering, &now[..1], &now[1..]).await;
                rest = later;
            }
            gathering.shutdown().await.unwrap();
        });
        let mut bytes = Vec::with_capacity(total);
        far.read_to_end(&mut bytes).await.unwrap();
        writing.await.unwrap();
        assert!(bytes == expected, "{} of {total} bytes", bytes.len());
    }
}
