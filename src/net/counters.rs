//! What went over the links, for metrics and `status`.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::id::NodeId;

/// A picture of all links.
#[derive(Clone, Debug, Default)]
pub struct NetCounters {
    /// The located nodes, by their ids.
    pub peers: Vec<PeerCounters>,
    /// Bytes of files sent to peers.
    pub bulk_sent_bytes: u64,
    /// Bytes of files received from peers.
    pub bulk_received_bytes: u64,
    /// Messages dropped because nobody said where their node is.
    pub unlocated_dropped: u64,
    /// Greetings that this node refused, and connections that did not greet.
    pub greetings_refused: u64,
}

/// A picture of the link to and from one node.
#[derive(Clone, Debug)]
pub struct PeerCounters {
    /// The node.
    pub node: NodeId,
    /// Where it is, as located.
    pub address: String,
    /// Whether this node's connection to it stands.
    pub connected: bool,
    /// If not: why.
    pub trouble: Option<String>,
    /// How long ago something of it arrived, or it was located.
    pub heard_ms_ago: u64,
    /// Whether it was reported as silent and has not been heard since.
    pub silent: bool,
    /// Frames written to it.
    pub frames_sent: u64,
    /// Bytes written to it.
    pub bytes_sent: u64,
    /// Frames read from it.
    pub frames_received: u64,
    /// Bytes read from it.
    pub bytes_received: u64,
    /// Messages to it that were dropped: over the bound, or without a connection.
    pub messages_dropped: u64,
    /// Connections made to it.
    pub connects: u64,
    /// Bytes that wait to be sent.
    pub queued_bytes: u64,
    /// Requests to it that wait for an answer.
    pub asks_under_way: u64,
}

/// What went to and from one node.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) frames_sent: AtomicU64,
    pub(super) bytes_sent: AtomicU64,
    pub(super) frames_received: AtomicU64,
    pub(super) bytes_received: AtomicU64,
    pub(super) messages_dropped: AtomicU64,
    pub(super) connects: AtomicU64,
}

impl Traffic {
    /// So many bytes are written.
    pub(super) fn sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A frame is written.
    pub(super) fn frame_sent(&self) {
        self.frames_sent.fetch_add(1, Ordering::Relaxed);
    }

    /// So much was read.
    pub(super) fn received(&self, frames: u64, bytes: u64) {
        self.frames_received.fetch_add(frames, Ordering::Relaxed);
        self.bytes_received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many messages were dropped.
    pub(super) fn dropped(&self, messages: u64) {
        if messages > 0 {
            self.messages_dropped.fetch_add(messages, Ordering::Relaxed);
        }
    }
}
