//! The ways between the nodes of a cluster of processes, which can be cut, each direction by itself.
//!
//! Nodes listen on addresses of their own within 127.0.0.0/8 and advertise others, on which this listens and
//! passes everything on. Who has connected is asked of the system, by the process that owns the socket: what
//! nodes say to each other is not looked at.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::process_ids::ProcessIds;

/// How a way is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Connections stand, and nothing comes through; what was on the way arrives late.
    Silent,
    /// Connections break, and new ones do too; what was on the way is lost.
    Broken,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// From the first to the second nothing passes.
    silent: BTreeSet<(usize, usize)>,
    /// Nor do connections stand between these, in whichever order.
    broken: BTreeSet<(usize, usize)>,
}

impl State {
    fn broken(&self, one: usize, other: usize) -> bool {
        self.broken.contains(&(one, other)) || self.broken.contains(&(other, one))
    }
}

/// All ways between the nodes of a cluster.
pub struct Links {
    state: watch::Sender<State>,
    ids: Arc<ProcessIds>,
}

impl Links {
    pub fn new(ids: Arc<ProcessIds>) -> Links {
        Links { state: watch::Sender::new(State::default()), ids }
    }

    /// Passes on what comes to `advertised`, the address that others have of `node`, to where it listens.
    pub async fn open(&self, node: usize, advertised: &str, listens: SocketAddr) -> io::Result<()> {
        let listener = TcpListener::bind(advertised).await?;
        let (ids, state) = (self.ids.clone(), self.state.subscribe());
        tokio::spawn(async move {
            while let Ok((near, from)) = listener.accept().await {
                let Ok(to) = near.local_addr() else { continue };
                // A process that is gone already needs no connection.
                if let Some(from) = ids.owner(from, to) {
                    tokio::spawn(pass(near, listens, (from, node), state.clone()));
                }
            }
        });
        Ok(())
    }

    /// Cuts the ways from the first to the second of each pair.
    pub fn cut(&self, ways: impl IntoIterator<Item = (usize, usize)>, how: Cut) {
        let ways: Vec<(usize, usize)> = ways.into_iter().collect();
        self.state.send_modify(|state| {
            state.silent.extend(&ways);
            if how == Cut::Broken {
                state.broken.extend(&ways);
            }
        });
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.state.send_replace(State::default());
    }
}

/// Passes bytes on between the process that connected, the first of `ends`, and the second.
async fn pass(near: TcpStream, to: SocketAddr, ends: (usize, usize), state: watch::Receiver<State>) {
    let (from, node) = ends;
    let mut breaking = state.clone();
    let both = async {
        let Ok(far) = TcpStream::connect(to).await else { return };
        // Without this a hop of the proxy costs what a slow network would.
        if near.set_nodelay(true).and(far.set_nodelay(true)).is_err() {
            return;
        }
        let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
        tokio::select! {
            () = one_way(near_read, far_write, (from, node), state.clone()) => {}
            () = one_way(far_read, near_write, (node, from), state) => {}
        }
    };
    tokio::select! {
        // It changes for as long as the cluster is there.
        _ = breaking.wait_for(|state| state.broken(from, node)) => {}
        () = both => {}
    }
}

async fn one_way(
    mut read: impl AsyncReadExt + Unpin,
    mut write: impl AsyncWriteExt + Unpin,
    way: (usize, usize),
    mut state: watch::Receiver<State>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(bytes @ 1..) = read.read(&mut buffer).await else { return };
        if state.wait_for(|state| !state.silent.contains(&way)).await.is_err() {
            return;
        }
        if write.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}

/// The inode of the socket that is connected from `from` to `to`, as the kernel lists it.
pub fn socket_inode(from: SocketAddr, to: SocketAddr) -> Option<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux lists its sockets");
    let (from, to) = (kernel_form(from), kernel_form(to));
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let found = fields.get(1) == Some(&from.as_str()) && fields.get(2) == Some(&to.as_str());
        found.then(|| fields.get(9).map(|inode| inode.to_string()))?
    })
}

fn kernel_form(address: SocketAddr) -> String {
    let SocketAddr::V4(address) = address else { panic!("{address} is not of IPv4") };
    // The kernel prints the address as a number of this computer's byte order.
    format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port())
}

/// Whether a process has a socket of this inode.
pub fn owns(process: u32, inode: &str) -> bool {
    let Ok(open) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    let name = format!("socket:[{inode}]");
    open.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == Path::new(&name)))
}
