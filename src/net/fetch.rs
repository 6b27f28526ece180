//! Fetching a file from another node, from any place on.
//!
//! Promises: pieces come in order, each whole and checked; a file that stops coming is told, and can be
//! fetched again from where it stopped. What is checked is the way over the network: whether the whole file
//! is what it should be (a module's digest, a snapshot's own sum) is for whoever asked to check.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::Context;
use super::bulk::{
    BEHIND_END, BulkName, FetchFrame, FoundFrame, MISSING, PIECE_FRAME_BYTES, WithheldFrame, read_piece,
};
use super::frame::{self, Frame, Kind};
use super::greeting::{NotWelcome, Purpose, Refusal, decode};
use super::link;
use super::socket::{Socket, Trouble, write_all};
use crate::id::NodeId;

/// Why a file did not come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Nobody said where the node is.
    #[error("the address of node {0} is not known here")]
    Unlocated(NodeId),
    /// The node turned this one away.
    #[error("the node turned this one away: {0}")]
    TurnedAway(Refusal),
    /// The node does not have the file.
    #[error("the node does not have it: {0}")]
    Missing(String),
    /// The file ends before the place from which it was asked for.
    #[error("byte {offset} of it was asked for, it has {total_bytes}")]
    Offset {
        /// What was asked for.
        offset: u64,
        /// How long it is.
        total_bytes: u64,
    },
    /// The node could not read the file.
    #[error("the node could not send it: {0}")]
    Failed(String),
    /// The connection did not come about, broke or stood still, or what came was damaged.
    #[error("the transfer broke off: {0}")]
    Broken(String),
}

impl FetchError {
    /// Whether the same node may be asked again for what is still missing.
    pub fn worth_retrying(&self) -> bool {
        matches!(self, FetchError::Broken(_) | FetchError::TurnedAway(Refusal::Busy(_)))
    }
}

impl From<Trouble> for FetchError {
    fn from(trouble: Trouble) -> FetchError {
        FetchError::Broken(trouble.to_string())
    }
}

/// A file on its way here.
pub struct Bulk {
    socket: Socket,
    context: Arc<Context>,
    total_bytes: u64,
    offset: u64,
}

impl std::fmt::Debug for Bulk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bulk({} of {} bytes)", self.offset, self.total_bytes)
    }
}

impl Bulk {
    /// Asks a node for a file from `offset` on.
    pub(super) async fn open(
        context: Arc<Context>,
        from: NodeId,
        address: &str,
        name: BulkName,
        offset: u64,
    ) -> Result<Bulk, FetchError> {
        let connected = link::connect(&context, from, address, Purpose::Bulk).await;
        let (mut socket, _) = connected.map_err(|error| match error {
            NotWelcome::Refused(refusal) => FetchError::TurnedAway(refusal),
            error => FetchError::Broken(error.to_string()),
        })?;
        socket.raise_limit(PIECE_FRAME_BYTES);
        let mut out = BytesMut::new();
        frame::put(&mut out, Kind::Fetch, &FetchFrame::new(name, offset));
        let mut bulk = Bulk { socket, context, total_bytes: u64::MAX, offset };
        write_all(bulk.socket.stream(), &out, bulk.patience()).await?;
        let frame = bulk.frame().await?;
        if frame.kind != Kind::Found {
            return Err(Trouble::Misplaced(frame.kind).into());
        }
        bulk.total_bytes = decode::<FoundFrame>("the length of a file", frame.payload)?.total_bytes;
        if bulk.total_bytes < offset {
            return Err(FetchError::Offset { offset, total_bytes: bulk.total_bytes });
        }
        Ok(bulk)
    }

    /// How long the whole file is.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Where the next piece begins: fetch again from here if this transfer breaks off.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next piece; `None` when all is here. After an error there is no next.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        if self.offset == self.total_bytes {
            return Ok(None);
        }
        let frame = self.frame().await?;
        if frame.kind != Kind::Piece {
            return Err(Trouble::Misplaced(frame.kind).into());
        }
        let wrong = |what: String| FetchError::Broken(format!("it sent {what}"));
        let (place, piece) =
            read_piece(frame.payload).ok_or_else(|| wrong("a piece without content".into()))?;
        let left = self.total_bytes - self.offset;
        if place != self.offset || piece.len() as u64 > left {
            let (bytes, end) = (piece.len(), self.total_bytes);
            let what = format!("{bytes} bytes for place {place}, wanted were those from {}", self.offset);
            return Err(wrong(format!("{what} to {end}")));
        }
        self.offset += piece.len() as u64;
        self.context.bulk_received_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Ok(Some(piece))
    }

    /// The next frame that is not a sign of life. One that ends the transfer is told as its error.
    async fn frame(&mut self) -> Result<Frame, FetchError> {
        let patience = self.patience();
        loop {
            let frame = tokio::time::timeout(patience, self.socket.frame());
            let waited_ms = patience.as_millis() as u64;
            let frame = frame.await.map_err(|_| Trouble::Quiet { waited_ms })??;
            match frame.kind {
                Kind::Beat => {}
                Kind::Withheld => return Err(self.withheld(decode("an error", frame.payload)?)),
                _ => return Ok(frame),
            }
        }
    }

    fn withheld(&self, frame: WithheldFrame) -> FetchError {
        match frame.code {
            MISSING => FetchError::Missing(frame.text),
            BEHIND_END => FetchError::Offset { offset: self.offset, total_bytes: frame.total_bytes },
            _ => FetchError::Failed(frame.text),
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.context.config.bulk_patience_ms)
    }
}
