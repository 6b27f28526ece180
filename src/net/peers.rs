//! The located nodes: their links, and which of them have fallen silent.
//!
//! Promises: whoever is looked up is found without waiting, also while nodes come and go; the silence of a
//! node is told once, until it is heard again. A pause of this process is not taken for the silence of
//! others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::Context;
use super::link::Link;
use crate::id::NodeId;

/// See the head of this file.
pub(super) struct Peers {
    context: Arc<Context>,
    links: ArcSwap<HashMap<NodeId, Arc<Link>>>,
    /// One changes the links at a time; true once nothing more is to be located.
    changing: Mutex<bool>,
}

impl Peers {
    /// Nobody is located yet.
    pub(super) fn new(context: Arc<Context>) -> Peers {
        Peers { context, links: ArcSwap::default(), changing: Mutex::new(false) }
    }

    /// The link to a node, if it is located.
    pub(super) fn get(&self, node: NodeId) -> Option<Arc<Link>> {
        self.links.load().get(&node).cloned()
    }

    /// All links.
    pub(super) fn all(&self) -> Vec<Arc<Link>> {
        self.links.load().values().cloned().collect()
    }

    /// Makes a link to a node, makes another if it has moved, or ends the one there is.
    pub(super) fn locate(&self, node: NodeId, address: Option<String>) {
        let ended = self.changing.lock();
        let known = self.get(node);
        let same = known.as_ref().map(|link| &link.address) == address.as_ref();
        if *ended || same || node == self.context.me.node {
            return;
        }
        let mut links = HashMap::clone(&self.links.load());
        let why = match address {
            Some(address) => {
                let why = format!("node {node} has moved to {address}");
                links.insert(node, Link::start(self.context.clone(), node, address));
                why
            }
            None => {
                links.remove(&node);
                format!("node {node} was forgotten")
            }
        };
        self.links.store(Arc::new(links));
        if let Some(link) = known {
            link.close(&why.into());
        }
    }

    /// Ends all links; none is made any more.
    pub(super) fn end(&self, why: &Arc<str>) {
        *self.changing.lock() = true;
        for link in self.links.swap(Arc::default()).values() {
            link.close(why);
        }
    }

    /// Tells the host of nodes that fall silent.
    pub(super) async fn listen_for_silence(&self) {
        let (clock, config) = (&self.context.clock, &self.context.config);
        let mut ticks = tokio::time::interval(Duration::from_millis(config.beat_ms));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_ms = clock.now().monotonic_ms;
        loop {
            ticks.tick().await;
            let now_ms = clock.now().monotonic_ms;
            let slept = now_ms - last_ms > config.silent_after_ms / 2;
            last_ms = now_ms;
            for link in self.links.load().values() {
                if slept {
                    link.excuse();
                } else if link.falls_silent(now_ms, config.silent_after_ms) {
                    tracing::warn!(node = %link.node, "nothing is heard of the node any more");
                    self.context.host.silent(link.node);
                }
            }
        }
    }
}
