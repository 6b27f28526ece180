//! Uploads of modules, with a word on how far they are.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use parking_lot::Mutex;
use tonic::Request;

use super::{Again, Client, Failures, UPLOAD_TIMEOUT};
use crate::error::Error;
use crate::id::Digest;
use crate::node::request::ModuleInfo;
use crate::proto::status;
use crate::proto::v1::modules_client::ModulesClient;
use crate::proto::v1::{self, push_module_request::Part};

/// Bytes of one message of an upload.
const CHUNK_BYTES: usize = 128 << 10;

impl Client {
    /// Uploads a module, and waits until it is checked, durable and compiled. `label` is for people: a file
    /// name. `progress` is called with the number of bytes handed to the network so far.
    ///
    /// The digest in the answer is the module's name. It differs from that of `bytes` if those were a core
    /// module, which the node turns into a component.
    ///
    /// # Errors
    /// `Invalid` names what is wrong with the module, `TooLarge` the limit.
    pub async fn push_module(
        &self,
        label: &str,
        bytes: Bytes,
        progress: impl FnMut(u64) + Send + 'static,
    ) -> Result<ModuleInfo, Error> {
        let progress = Arc::new(Mutex::new(progress));
        let digest = Digest::of(&bytes);
        let mut failures = Failures::default();
        for (_, peer) in self.nodes.in_turn() {
            let progress = progress.clone();
            let report = move |sent| (*progress.lock())(sent);
            let parts = stream::iter(parts(label, digest, bytes.clone(), report));
            let mut request = Request::new(parts);
            request.set_timeout(UPLOAD_TIMEOUT);
            match ModulesClient::new(peer.channel.clone()).push(request).await {
                Ok(module) => return module.into_inner().try_into(),
                // Uploading the same bytes again does no harm.
                Err(status) => failures.add(Again::Always, status::from_status(&status, &peer.address))?,
            }
        }
        Err(failures.end())
    }
}

/// The messages of an upload. They are made as they are taken, which is when `report` is called.
fn parts(
    label: &str,
    digest: Digest,
    bytes: Bytes,
    report: impl FnMut(u64) + Send + 'static,
) -> impl Iterator<Item = v1::PushModuleRequest> + Send + 'static {
    let mut report = report;
    let total_bytes = bytes.len() as u64;
    let header = v1::PushModuleHeader { digest: digest.to_string(), label: label.into(), total_bytes };
    let header = v1::PushModuleRequest { part: Some(Part::Header(header)) };
    let chunks = (0..bytes.len()).step_by(CHUNK_BYTES).map(move |from| {
        let to = bytes.len().min(from + CHUNK_BYTES);
        report(to as u64);
        v1::PushModuleRequest { part: Some(Part::Chunk(bytes.slice(from..to))) }
    });
    std::iter::once(header).chain(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_the_header_and_all_bytes() {
        let bytes = Bytes::from(vec![7; CHUNK_BYTES * 2 + 1]);
        let sent = Arc::new(Mutex::new(Vec::new()));
        let log = sent.clone();
        let parts: Vec<_> =
            parts("x.wasm", Digest::of(&bytes), bytes.clone(), move |n| log.lock().push(n)).collect();
        assert!(matches!(&parts[0].part, Some(Part::Header(h)) if h.total_bytes == bytes.len() as u64));
        let chunks: Vec<u8> = parts[1..]
            .iter()
            .flat_map(|part| match &part.part {
                Some(Part::Chunk(chunk)) => chunk.to_vec(),
                _ => panic!("not a chunk"),
            })
            .collect();
        assert_eq!(chunks, bytes);
        let steps = [CHUNK_BYTES, CHUNK_BYTES * 2, CHUNK_BYTES * 2 + 1].map(|n| n as u64);
        assert_eq!(*sent.lock(), steps);
    }
}
