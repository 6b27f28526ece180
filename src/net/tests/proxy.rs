//! A way between two nodes that can stop, break, and change what goes over it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Forwards every connection to one address, in both directions.
pub(super) struct Proxy {
    pub(super) address: String,
    /// Held: nothing goes through, but all connections stand.
    held: watch::Sender<bool>,
    /// Each change breaks all connections.
    cuts: watch::Sender<u64>,
    way: std::sync::Arc<Way>,
}

struct Way {
    /// The connections break once so many bytes came back from the address.
    back_bytes_max: AtomicU64,
    /// The byte at this place of what comes back is changed.
    damage_at: AtomicU64,
    connections: AtomicUsize,
}

impl Proxy {
    pub(super) async fn start(to: std::net::SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let way = std::sync::Arc::new(Way {
            back_bytes_max: AtomicU64::new(u64::MAX),
            damage_at: AtomicU64::new(u64::MAX),
            connections: AtomicUsize::new(0),
        });
        let (held, cuts) = (watch::Sender::new(false), watch::Sender::new(0));
        let proxy = Proxy { address, held, cuts, way };
        let (held, cuts, way) = (proxy.held.subscribe(), proxy.cuts.subscribe(), proxy.way.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                way.connections.fetch_add(1, Ordering::Relaxed);
                let (held, mut cuts, way) = (held.clone(), cuts.clone(), way.clone());
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    let (near_read, near_write) = stream.into_split();
                    let (far_read, far_write) = far.into_split();
                    tokio::select! {
                        _ = cuts.changed() => {}
                        () = forward(near_read, far_write, held.clone(), None) => {}
                        () = forward(far_read, near_write, held, Some(&way)) => {}
                    }
                });
            }
        });
        proxy
    }

    /// Lets nothing through, or all again.
    pub(super) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Breaks all connections.
    pub(super) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Breaks connections once so many bytes came back on them; `u64::MAX`: never.
    pub(super) fn break_after(&self, bytes: u64) {
        self.way.back_bytes_max.store(bytes, Ordering::Relaxed);
    }

    /// Changes one byte of what comes back on each connection; `u64::MAX`: none.
    pub(super) fn damage_at(&self, byte: u64) {
        self.way.damage_at.store(byte, Ordering::Relaxed);
    }

    /// How many connections were made.
    pub(super) fn connections(&self) -> usize {
        self.way.connections.load(Ordering::Relaxed)
    }
}

async fn forward(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut held: watch::Receiver<bool>,
    way: Option<&Way>,
) {
    let (mut buffer, mut passed) = (vec![0; 16 << 10], 0);
    loop {
        let Ok(bytes @ 1..) = from.read(&mut buffer).await else { return };
        if held.wait_for(|held| !held).await.is_err() {
            return;
        }
        if let Some(way) = way {
            let damage_at = way.damage_at.load(Ordering::Relaxed);
            if (passed..passed + bytes as u64).contains(&damage_at) {
                buffer[(damage_at - passed) as usize] ^= 0x10;
            }
            if passed + bytes as u64 > way.back_bytes_max.load(Ordering::Relaxed) {
                return;
            }
        }
        if to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
        passed += bytes as u64;
    }
}
