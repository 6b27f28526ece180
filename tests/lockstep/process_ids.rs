//! Which process each node of a cluster is at the moment.

use std::net::SocketAddr;
use std::sync::Mutex;

use super::links::{owns, socket_inode};

#[derive(Default)]
pub struct ProcessIds {
    of_nodes: Mutex<Vec<(usize, u32)>>,
}

impl ProcessIds {
    /// A node has a new process.
    pub fn set(&self, node: usize, process: u32) {
        let mut of_nodes = self.of_nodes.lock().expect("nobody panics with it");
        of_nodes.retain(|(known, _)| *known != node);
        of_nodes.push((node, process));
    }

    /// The node whose process connected from `from` to `to`.
    pub fn owner(&self, from: SocketAddr, to: SocketAddr) -> Option<usize> {
        let inode = socket_inode(from, to)?;
        let of_nodes = self.of_nodes.lock().expect("nobody panics with it");
        of_nodes.iter().find(|(_, process)| owns(*process, &inode)).map(|(node, _)| *node)
    }
}
