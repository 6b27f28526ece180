//! The network between the nodes: messages on their way, and links that carry nothing for a while.

use std::collections::BTreeMap;

use crate::id::NodeId;
use crate::raft::output::PeerOut;

/// A message on its way.
pub(super) struct Packet {
    due_ms: u64,
    /// In the order in which they were sent.
    number: u64,
    pub(super) from: NodeId,
    pub(super) out: PeerOut,
}

/// All links, each from one node to another.
#[derive(Default)]
pub(super) struct Network {
    packets: Vec<Packet>,
    last: u64,
    /// Links that carry nothing until then.
    cut_until_ms: BTreeMap<(NodeId, NodeId), u64>,
    /// The last message that each link delivered.
    delivered: BTreeMap<(NodeId, NodeId), u64>,
}

/// What became of messages that were due.
pub(super) struct Due {
    /// In the order in which they arrive.
    pub(super) arrived: Vec<Packet>,
    /// How many arrived after one that was sent later on the same link.
    pub(super) overtaken: u64,
    /// How many were on a link that was cut.
    pub(super) lost: u64,
}

impl Network {
    /// Sends a message, to arrive at that time.
    pub(super) fn post(&mut self, from: NodeId, out: PeerOut, due_ms: u64) {
        self.last += 1;
        self.packets.push(Packet { due_ms, number: self.last, from, out });
    }

    /// Takes what is due.
    pub(super) fn deliver(&mut self, now_ms: u64) -> Due {
        let (mut due, later): (Vec<Packet>, Vec<Packet>) =
            std::mem::take(&mut self.packets).into_iter().partition(|packet| packet.due_ms <= now_ms);
        self.packets = later;
        due.sort_by_key(|packet| packet.due_ms);
        let sent = due.len();
        due.retain(|packet| self.carries(packet.from, packet.out.to, now_ms));
        let lost = (sent - due.len()) as u64;
        let mut overtaken = 0;
        for packet in &due {
            let last = self.delivered.entry((packet.from, packet.out.to)).or_default();
            overtaken += u64::from(packet.number < *last);
            *last = packet.number.max(*last);
        }
        Due { arrived: due, overtaken, lost }
    }

    /// Whether what one node says reaches another now.
    pub(super) fn carries(&self, from: NodeId, to: NodeId, now_ms: u64) -> bool {
        self.cut_until_ms.get(&(from, to)).is_none_or(|until_ms| *until_ms <= now_ms)
    }

    /// One direction between two nodes carries nothing until then.
    pub(super) fn cut(&mut self, from: NodeId, to: NodeId, until_ms: u64) {
        let cut = self.cut_until_ms.entry((from, to)).or_default();
        *cut = until_ms.max(*cut);
    }

    /// These nodes and all others hear nothing of each other until then.
    pub(super) fn part(&mut self, island: &[NodeId], all: &[NodeId], until_ms: u64) {
        for &inside in island {
            for &outside in all.iter().filter(|node| !island.contains(node)) {
                self.cut(inside, outside, until_ms);
                self.cut(outside, inside, until_ms);
            }
        }
    }

    /// Every link carries again.
    pub(super) fn heal(&mut self) {
        self.cut_until_ms.clear();
    }

    /// Whether nothing is on its way.
    pub(super) fn is_silent(&self) -> bool {
        self.packets.is_empty()
    }
}
