//! The machine as a database of etcd: what `etcdctl snapshot save` stores and `etcdutl snapshot restore`
//! takes.
//!
//! Keys come a page at a time, all as of one revision, and are put aside on disk; so a snapshot takes little
//! memory and holds nobody up. It has the keys that live, and the leases: no older versions.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use prost::Message;
use sha2::{Digest, Sha256};
use statehouse_kv::messages::KeyValue;
use tokio::sync::mpsc;
use tonic::Status;

use super::pages::Pages;
use super::{Front, maintenance, status};
use crate::bbolt::etcd::Lease;
use crate::bbolt::snapshot::{About, Snapshot};
use crate::node::request::LeaseInfo;
use crate::proto::etcd::etcdserverpb::SnapshotResponse;

/// How much goes into one message, as in etcd.
const CHUNK_BYTES: usize = 32 << 10;
/// Pages and messages that may wait for whoever is slower.
const WAITING_MAX: usize = 4;

/// What the thread that writes is told.
enum Told {
    Keys(Vec<KeyValue>),
    /// There are no more.
    End,
}

/// What a snapshot says besides the keys.
struct Head {
    revision: i64,
    index: u64,
    term: u64,
    leases: Vec<Lease>,
}

/// The messages of a snapshot of the machine as it is here now.
pub async fn take(
    front: Arc<Front>,
) -> Result<impl Stream<Item = Result<SnapshotResponse, Status>> + Send + use<>, Status> {
    let revision = front.revision().await?;
    let replica = front.replica();
    let head = Head {
        revision,
        index: replica.as_ref().map_or(1, |replica| replica.applied.0),
        term: replica.map_or(1, |replica| replica.term.0.max(1)),
        leases: front.stored_leases().await?,
    };
    let (tell, told) = mpsc::channel(WAITING_MAX);
    let (send, chunks) = mpsc::channel(WAITING_MAX);
    let directory = front.node().status().data_dir;
    let failed = send.clone();
    tokio::spawn(async move {
        if let Err(why) = tell_keys(&front, revision, &tell).await {
            // Whoever wanted the snapshot has gone away.
            let _ = failed.send(Err(why)).await;
        }
    });
    tokio::task::spawn_blocking(move || {
        if let Err(why) = write(&directory, &head, told, &send) {
            let text = format!("a snapshot in {} failed: {why}", directory.display());
            let _ = send.blocking_send(Err(Status::unavailable(status::ours(text))));
        }
    });
    Ok(stream::unfold(chunks, |mut chunks| async { Some((chunks.recv().await?, chunks)) }))
}

async fn tell_keys(front: &Front, revision: i64, tell: &mpsc::Sender<Told>) -> Result<(), Status> {
    let mut pages = Pages::of_all(front, revision).await?;
    while let Some(page) = pages.next().await? {
        if tell.send(Told::Keys(page.kvs)).await.is_err() {
            return Ok(());
        }
    }
    // If nobody takes it, the thread has failed and says so itself.
    let _ = tell.send(Told::End).await;
    Ok(())
}

/// Writes the database aside, then sends it. Nothing is sent of one whose keys did not all come.
fn write(
    directory: &Path,
    head: &Head,
    mut told: mpsc::Receiver<Told>,
    send: &mpsc::Sender<Result<SnapshotResponse, Status>>,
) -> Result<(), io::Error> {
    let mut snapshot = Snapshot::new(tempfile::tempfile_in(directory)?);
    loop {
        match told.blocking_recv() {
            Some(Told::Keys(keys)) => {
                for key in keys {
                    // etcd knows nothing of times to live of keys: only of the lease.
                    let key = KeyValue { expires_at_ms: 0, ..key };
                    snapshot.add(key.mod_revision, &key.encode_to_vec())?;
                }
            }
            Some(Told::End) => break,
            None => return Ok(()),
        }
    }
    let version = maintenance::storage_version();
    let Head { revision, index, term, ref leases } = *head;
    let about = About { revision, index, term, version: &version, leases };
    let database = snapshot.write(tempfile::tempfile_in(directory)?, &about).map_err(io::Error::other)?;
    send_all(database, &version, send)
}

/// Ends quietly when nobody listens any more.
fn send_all(
    mut database: File,
    version: &str,
    send: &mpsc::Sender<Result<SnapshotResponse, Status>>,
) -> Result<(), io::Error> {
    let mut remaining_bytes = database.metadata()?.len();
    database.seek(SeekFrom::Start(0))?;
    let mut hash = Sha256::new();
    let message = |remaining_bytes: u64, blob: Vec<u8>| SnapshotResponse {
        header: None,
        remaining_bytes,
        blob: blob.into(),
        version: version.to_owned(),
    };
    while remaining_bytes > 0 {
        let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(remaining_bytes).unwrap_or(CHUNK_BYTES))];
        database.read_exact(&mut chunk)?;
        hash.update(&chunk);
        remaining_bytes -= chunk.len() as u64;
        if send.blocking_send(Ok(message(remaining_bytes, chunk))).is_err() {
            return Ok(());
        }
    }
    // A client that has gone away does not want it either.
    let _ = send.blocking_send(Ok(message(0, hash.finalize().to_vec())));
    Ok(())
}

impl Front {
    /// The leases as etcd stores them, by id.
    async fn stored_leases(&self) -> Result<Vec<Lease>, Status> {
        let lease = |lease: &LeaseInfo| {
            // Of less than a second there is no lease in etcd.
            let ttl_s = (lease.ttl_ms / 1_000).max(1) as i64;
            let remaining_s = (lease.remaining_ms.div_ceil(1_000) as i64).min(ttl_s);
            Lease { id: lease.id as i64, ttl_s, remaining_s }
        };
        Ok(self.all_leases().await?.iter().map(lease).collect())
    }
}
