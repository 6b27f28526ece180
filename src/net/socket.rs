//! One TCP connection as frames: reading them, and writing where nothing else writes yet.
//!
//! Promises: what is read came whole; all that can go wrong is told as [`Trouble`]. Must never be used after
//! that: the connection is closed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::frame::{Decoder, Frame, FrameError, Kind};
use super::wire::WireError;

/// Why a connection ends. The text says what was wrong with it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("no connection: {0}")]
    NotConnected(io::Error),
    #[error("the other closed the connection")]
    Closed,
    #[error("the other closed the connection amid a frame")]
    CutOff,
    #[error("it sent {0}")]
    Frame(#[from] FrameError),
    #[error("it sent {0}")]
    Wire(#[from] WireError),
    #[error("it sent {what} that does not decode: {error}")]
    Malformed { what: &'static str, error: prost::DecodeError },
    #[error("it sent a frame of the kind {0:?}, which has no place here")]
    Misplaced(Kind),
    #[error("it does not speak the protocol of Statehouse's peers")]
    OtherProtocol,
    #[error("nothing came for {waited_ms} ms")]
    Quiet { waited_ms: u64 },
    #[error("the other stops")]
    Farewell,
    #[error("{0}")]
    Ended(Arc<str>),
}

/// A connection and what has been read of it.
pub(super) struct Socket {
    stream: Arc<TcpStream>,
    decoder: Decoder,
    /// Bytes read so far.
    pub(super) received_bytes: u64,
}

impl Socket {
    /// For frames with payloads up to this size; see [`raise_limit`](Socket::raise_limit).
    pub(super) fn new(stream: TcpStream, payload_bytes_max: usize) -> Result<Socket, Trouble> {
        // What is written was gathered before; the system must not wait for more.
        stream.set_nodelay(true)?;
        Ok(Socket { stream: Arc::new(stream), decoder: Decoder::new(payload_bytes_max), received_bytes: 0 })
    }

    /// For whoever writes.
    pub(super) fn stream(&self) -> &Arc<TcpStream> {
        &self.stream
    }

    /// From the next frame on, payloads may be this long.
    pub(super) fn raise_limit(&mut self, payload_bytes_max: usize) {
        self.decoder.raise_limit(payload_bytes_max);
    }

    /// Waits for something to arrive.
    pub(super) async fn fill(&mut self) -> Result<(), Trouble> {
        loop {
            self.stream.readable().await?;
            match self.stream.try_read_buf(self.decoder.room()) {
                Ok(0) if self.decoder.is_amid() => return Err(Trouble::CutOff),
                Ok(0) => return Err(Trouble::Closed),
                Ok(bytes) => {
                    self.received_bytes += bytes as u64;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next frame, if it has arrived.
    pub(super) fn take(&mut self) -> Result<Option<Frame>, Trouble> {
        Ok(self.decoder.next()?)
    }

    /// Waits for the next frame.
    pub(super) async fn frame(&mut self) -> Result<Frame, Trouble> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    /// Waits for so many bytes before the first frame.
    pub(super) async fn raw(&mut self, bytes: usize) -> Result<Vec<u8>, Trouble> {
        loop {
            if let Some(found) = self.decoder.take_raw(bytes) {
                return Ok(found.to_vec());
            }
            self.fill().await?;
        }
    }
}

/// Writes all of it, as long as something moves within `patience`.
pub(super) async fn write_all(
    stream: &TcpStream,
    mut bytes: &[u8],
    patience: Duration,
) -> Result<(), Trouble> {
    let quiet = |_| Trouble::Quiet { waited_ms: patience.as_millis() as u64 };
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::timeout(patience, stream.writable()).await.map_err(quiet)??;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
