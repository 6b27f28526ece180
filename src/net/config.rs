//! What the link between nodes may use, with what suits most.

use crate::error::Error;
use crate::id::NodeId;

/// How a node meets its peers. All nodes of a cluster should have the same limits; where they differ, the
/// smaller frame and what the receiver allows count.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// The cluster: nodes of another are turned away.
    pub cluster: u64,
    /// This node.
    pub node: NodeId,
    /// How old this node's data is; see [`DataAge`](super::DataAge).
    pub age: u64,
    /// The life in which it is.
    pub life: u64,
    /// Where to listen, as `host:port`; with port 0 the system chooses.
    pub listen: String,
    /// Where others find this node, as `host:port`; none: where it listens.
    pub advertise: Option<String>,
    /// The largest frame that is taken. One log entry, a request and an answer must each fit into a frame;
    /// longer appends are cut. The shard's largest batch has 4 MiB, the largest command or query 16 MiB.
    pub frame_bytes_max: usize,
    /// What may wait to be sent to one peer. What is over it is dropped and counted: Raft repeats it.
    pub queue_bytes_max: usize,
    /// A connection on which nothing was sent for so long carries a sign of life.
    pub beat_ms: u64,
    /// A node of which nothing was heard for so long is silent; a connection is given up likewise. At least
    /// three beats.
    pub silent_after_ms: u64,
    /// For a connection and its greeting.
    pub connect_timeout_ms: u64,
    /// Requests to one peer that are under way at a time, and of one peer here.
    pub asks_max: usize,
    /// Their bytes.
    pub ask_bytes_max: usize,
    /// What all files that this node sends may take of the network; 0: no limit.
    pub bulk_bytes_per_s: u64,
    /// Files that this node sends at a time.
    pub bulk_streams_max: usize,
    /// A transfer of a file in which nothing moves for so long is given up.
    pub bulk_patience_ms: u64,
}

impl NetConfig {
    /// What suits most.
    pub fn new(cluster: u64, node: NodeId, listen: impl Into<String>) -> NetConfig {
        NetConfig {
            cluster,
            node,
            age: 0,
            life: 0,
            listen: listen.into(),
            advertise: None,
            frame_bytes_max: 32 << 20,
            queue_bytes_max: 64 << 20,
            beat_ms: 300,
            silent_after_ms: 1_000,
            connect_timeout_ms: 2_000,
            asks_max: 4_096,
            ask_bytes_max: 64 << 20,
            bulk_bytes_per_s: 64 << 20,
            bulk_streams_max: 8,
            bulk_patience_ms: 30_000,
        }
    }

    /// Whether the settings can work together; all that is wrong with them at once.
    pub(super) fn check(&self) -> Result<(), Error> {
        const FRAME_BYTES_MIN: usize = 64 << 10;
        const FRAME_BYTES_MAX: usize = 1 << 30;
        let mut wrong = Vec::new();
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&self.frame_bytes_max) {
            wrong.push(format!(
                "frame_bytes_max is {}: from {FRAME_BYTES_MIN} to {FRAME_BYTES_MAX} is possible",
                self.frame_bytes_max
            ));
        }
        if self.beat_ms == 0 || self.silent_after_ms < self.beat_ms.saturating_mul(3) {
            wrong.push(format!(
                "silent_after_ms is {} and beat_ms is {}: at least three beats, of 1 ms or more, must fit in",
                self.silent_after_ms, self.beat_ms
            ));
        }
        let never_zero = [
            ("queue_bytes_max", self.queue_bytes_max as u64),
            ("connect_timeout_ms", self.connect_timeout_ms),
            ("asks_max", self.asks_max as u64),
            ("ask_bytes_max", self.ask_bytes_max as u64),
            ("bulk_streams_max", self.bulk_streams_max as u64),
            ("bulk_patience_ms", self.bulk_patience_ms),
        ];
        for (name, _) in never_zero.iter().filter(|(_, value)| *value == 0) {
            wrong.push(format!("{name} is 0: nothing would ever go through"));
        }
        if wrong.is_empty() { Ok(()) } else { Err(Error::Invalid(wrong.join("; "))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_suits_most_works_and_all_mistakes_are_told_at_once() {
        let good = NetConfig::new(1, NodeId(2), "127.0.0.1:0");
        good.check().unwrap();
        let bad = NetConfig { frame_bytes_max: 1, silent_after_ms: 500, asks_max: 0, ..good };
        let told = bad.check().unwrap_err().to_string();
        for part in ["frame_bytes_max is 1", "silent_after_ms is 500", "beat_ms is 300", "asks_max is 0"] {
            assert!(told.contains(part), "{part:?} is not in {told:?}");
        }
    }
}
