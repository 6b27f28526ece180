//! Files for other nodes: modules and snapshots, each on a connection of its own, so that no heartbeat ever
//! waits behind one.
//!
//! Whoever wants a file connects, greets, names it and says from where on. This node answers with its length
//! and then sends pieces, each a frame with a checksum of its own that begins with the piece's place; or it
//! says why not. While nothing can be sent (the file is being opened, or other files have their turn) it
//! sends signs of life.
//!
//! Promises: all files together leave no faster than the limit; a file is read in order and never held in
//! memory; one who does not read gives its place up after a while. Must never block a thread of the network
//! with the disk.

use std::fs::File;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Context;
use super::frame::{self, Kind};
use super::greeting::decode;
use super::socket::{Socket, Trouble, write_all};
use super::throttle::Throttle;
use crate::error::Error;
use crate::id::{Digest, GroupId, Index, NodeId};

/// How much of a file is in a frame.
pub(super) const PIECE_BYTES: usize = 256 << 10;
/// What stands before a piece in its frame: its place in the file, little-endian.
const PLACE_BYTES: usize = 8;
/// The largest payload of a frame with a piece.
pub(super) const PIECE_FRAME_BYTES: usize = PIECE_BYTES + PLACE_BYTES;
/// How much of a reason is sent.
const TEXT_CHARS_MAX: usize = 800;

/// A file that a node can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BulkName {
    /// A module, by its digest.
    Module(Digest),
    /// A snapshot of a group's machine that is ready to be sent.
    Snapshot {
        /// The group.
        group: GroupId,
        /// The last index whose effects it holds.
        index: Index,
    },
}

/// What a node hands out under a name. It must not change while it is sent.
#[derive(Debug)]
pub enum BulkSource {
    /// A file, from its beginning. It may be removed meanwhile.
    File(File),
    /// What is in memory anyway.
    Bytes(Bytes),
}

impl From<File> for BulkSource {
    fn from(file: File) -> BulkSource {
        BulkSource::File(file)
    }
}

impl From<Bytes> for BulkSource {
    fn from(bytes: Bytes) -> BulkSource {
        BulkSource::Bytes(bytes)
    }
}

/// A wish for a file.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FetchFrame {
    #[prost(oneof = "NameRow", tags = "1, 2")]
    name: Option<NameRow>,
    #[prost(uint64, tag = "3")]
    pub(super) offset: u64,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum NameRow {
    #[prost(bytes = "vec", tag = "1")]
    Module(Vec<u8>),
    #[prost(message, tag = "2")]
    Snapshot(SnapshotRow),
}

#[derive(Clone, Copy, PartialEq, Message)]
struct SnapshotRow {
    #[prost(uint64, tag = "1")]
    group: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
}

impl FetchFrame {
    /// A wish for what follows `offset`.
    pub(super) fn new(name: BulkName, offset: u64) -> FetchFrame {
        let name = match name {
            BulkName::Module(digest) => NameRow::Module(digest.0.to_vec()),
            BulkName::Snapshot { group, index } => {
                NameRow::Snapshot(SnapshotRow { group: group.0, index: index.0 })
            }
        };
        FetchFrame { name: Some(name), offset }
    }

    /// What is wished for, if it is something that this version knows.
    fn name(&self) -> Option<BulkName> {
        Some(match self.name.as_ref()? {
            NameRow::Module(digest) => BulkName::Module(Digest(digest.as_slice().try_into().ok()?)),
            NameRow::Snapshot(row) => {
                BulkName::Snapshot { group: GroupId(row.group), index: Index(row.index) }
            }
        })
    }
}

/// The file is here.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct FoundFrame {
    #[prost(uint64, tag = "1")]
    pub(super) total_bytes: u64,
}

/// The file does not come, or no further.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WithheldFrame {
    #[prost(uint32, tag = "1")]
    pub(super) code: u32,
    #[prost(string, tag = "2")]
    pub(super) text: String,
    #[prost(uint64, tag = "3")]
    pub(super) total_bytes: u64,
}

/// It is not here.
pub(super) const MISSING: u32 = 1;
/// It ends before that place.
pub(super) const BEHIND_END: u32 = 2;
/// It cannot be read.
pub(super) const FAILED: u32 = 3;

impl WithheldFrame {
    fn new(code: u32, text: &str) -> WithheldFrame {
        WithheldFrame { code, text: text.chars().take(TEXT_CHARS_MAX).collect(), total_bytes: 0 }
    }
}

/// Reads the payload of a frame with a piece: its place, and the piece. `None` if it is too short for that.
pub(super) fn read_piece(mut payload: Bytes) -> Option<(u64, Bytes)> {
    (payload.len() > PLACE_BYTES).then(|| (payload.get_u64_le(), payload))
}

/// What hands out files. See the head of this file.
pub(super) struct Library {
    context: Arc<Context>,
    desks: Arc<Semaphore>,
    throttle: Mutex<Throttle>,
    pub(super) sent_bytes: AtomicU64,
}

impl Library {
    /// Nobody reads yet.
    pub(super) fn new(context: Arc<Context>) -> Library {
        let config = &context.config;
        let burst_bytes = (config.bulk_bytes_per_s / 10).max(PIECE_BYTES as u64);
        Library {
            desks: Arc::new(Semaphore::new(config.bulk_streams_max)),
            throttle: Mutex::new(Throttle::new(config.bulk_bytes_per_s, burst_bytes)),
            sent_bytes: AtomicU64::new(0),
            context,
        }
    }

    /// A place for one more file to be sent, or why there is none.
    pub(super) fn desk(&self) -> Result<OwnedSemaphorePermit, String> {
        self.desks.clone().try_acquire_owned().map_err(|_| {
            let max = self.context.config.bulk_streams_max;
            format!("it sends {max} files already, which is its limit: try again later")
        })
    }

    /// Sends one file to a node that was let in.
    pub(super) async fn serve(
        &self,
        _desk: OwnedSemaphorePermit,
        mut socket: Socket,
        node: NodeId,
    ) -> Result<(), Trouble> {
        let patience = Duration::from_millis(self.context.config.connect_timeout_ms);
        let waited_ms = self.context.config.connect_timeout_ms;
        let frame = tokio::time::timeout(patience, socket.frame())
            .await
            .map_err(|_| Trouble::Quiet { waited_ms })??;
        if frame.kind != Kind::Fetch {
            return Err(Trouble::Misplaced(frame.kind));
        }
        let wish: FetchFrame = decode("a wish for a file", frame.payload)?;
        match self.open(&socket, node, &wish).await? {
            Ok(file) => self.send(&socket, file, wish.offset).await,
            Err(withheld) => self.write(&socket, Kind::Withheld, &withheld).await,
        }
    }

    /// Has the host open what is wished for.
    async fn open(
        &self,
        socket: &Socket,
        node: NodeId,
        wish: &FetchFrame,
    ) -> Result<Result<Pages, WithheldFrame>, Trouble> {
        let Some(name) = wish.name() else {
            let text = "the file is named in a way that is unknown here";
            return Ok(Err(WithheldFrame::new(MISSING, text)));
        };
        let host = self.context.host.clone();
        let opening = tokio::task::spawn_blocking(move || host.open_bulk(node, name).and_then(Pages::new));
        let opened = self.meanwhile_alive(socket, opening).await?;
        let offset = wish.offset;
        Ok(match opened {
            Ok(Ok(pages)) if offset > pages.total_bytes => {
                let total_bytes = pages.total_bytes;
                Err(WithheldFrame { total_bytes, ..WithheldFrame::new(BEHIND_END, "") })
            }
            Ok(Ok(pages)) => Ok(pages),
            Ok(Err(Error::NotFound(text))) => Err(WithheldFrame::new(MISSING, &text)),
            Ok(Err(error)) => Err(WithheldFrame::new(FAILED, &error.to_string())),
            Err(broke) => Err(WithheldFrame::new(FAILED, &format!("opening it broke off: {broke}"))),
        })
    }

    /// Sends a file from `offset` on.
    async fn send(&self, socket: &Socket, pages: Pages, mut offset: u64) -> Result<(), Trouble> {
        let total_bytes = pages.total_bytes;
        self.write(socket, Kind::Found, &FoundFrame { total_bytes }).await?;
        let mut buffer = BytesMut::new();
        while offset < total_bytes {
            let bytes = PIECE_BYTES.min(usize::try_from(total_bytes - offset).unwrap_or(PIECE_BYTES));
            let wait_ns = self.throttle.lock().take(self.context.clock.elapsed_ns(), bytes as u64);
            if wait_ns > 0 {
                self.meanwhile_alive(socket, tokio::time::sleep(Duration::from_nanos(wait_ns))).await?;
            }
            buffer.clear();
            buffer = match self.meanwhile_alive(socket, pages.put_piece(buffer, offset, bytes)).await? {
                Ok(buffer) => buffer,
                Err(text) => {
                    return self.write(socket, Kind::Withheld, &WithheldFrame::new(FAILED, &text)).await;
                }
            };
            write_all(socket.stream(), &buffer, self.patience()).await?;
            self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            offset += bytes as u64;
        }
        Ok(())
    }

    /// Waits for something and sends signs of life meanwhile.
    async fn meanwhile_alive<T>(&self, socket: &Socket, what: impl Future<Output = T>) -> Result<T, Trouble> {
        let beat = Duration::from_millis(self.context.config.beat_ms);
        let mut what = std::pin::pin!(what);
        loop {
            match tokio::time::timeout(beat, &mut what).await {
                Ok(done) => return Ok(done),
                Err(_) => {
                    let mut out = BytesMut::new();
                    frame::begin(&mut out).end(&mut out, Kind::Beat);
                    write_all(socket.stream(), &out, self.patience()).await?;
                }
            }
        }
    }

    async fn write(&self, socket: &Socket, kind: Kind, message: &impl Message) -> Result<(), Trouble> {
        let mut out = BytesMut::new();
        frame::put(&mut out, kind, message);
        write_all(socket.stream(), &out, self.patience()).await
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.context.config.bulk_patience_ms)
    }
}

/// A file that is open for sending.
struct Pages {
    source: Arc<BulkSource>,
    total_bytes: u64,
}

impl Pages {
    fn new(source: BulkSource) -> Result<Pages, Error> {
        let total_bytes = match &source {
            BulkSource::Bytes(bytes) => bytes.len() as u64,
            BulkSource::File(file) => file
                .metadata()
                .map_err(|error| Error::Unavailable(format!("its length cannot be read: {error}")))?
                .len(),
        };
        Ok(Pages { source: Arc::new(source), total_bytes })
    }

    /// Puts a frame with the piece at `offset` into `buffer`.
    async fn put_piece(&self, mut buffer: BytesMut, offset: u64, bytes: usize) -> Result<BytesMut, String> {
        let source = self.source.clone();
        let put = move || {
            let open = frame::begin(&mut buffer);
            buffer.put_u64_le(offset);
            match &*source {
                BulkSource::Bytes(whole) => buffer.put_slice(&whole[offset as usize..][..bytes]),
                BulkSource::File(file) => {
                    let begin = buffer.len();
                    buffer.put_bytes(0, bytes);
                    read_at(file, &mut buffer[begin..], offset)
                        .map_err(|error| format!("{bytes} bytes at {offset} cannot be read: {error}"))?;
                }
            }
            open.end(&mut buffer, Kind::Piece);
            Ok(buffer)
        };
        match &*self.source {
            BulkSource::Bytes(_) => put(),
            BulkSource::File(_) => tokio::task::spawn_blocking(put)
                .await
                .unwrap_or_else(|broke| Err(format!("reading it broke off: {broke}"))),
        }
    }
}

#[cfg(unix)]
fn read_at(file: &File, into: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, offset)
}
