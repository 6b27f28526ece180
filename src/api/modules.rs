//! The gRPC service `Modules`: uploads, and what was uploaded.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tonic::{Request, Response, Status, Streaming};

use super::{PAGE_MAX, Serving, page, parse_digest, refused};
use crate::error::Error;
use crate::id::Digest;
use crate::node::request::Push;
use crate::proto::v1::modules_server::Modules;
use crate::proto::v1::{self, push_module_request::Part};

/// Bytes of a label, at most.
const LABEL_BYTES_MAX: usize = 255;

/// The service.
pub struct ModulesService {
    serving: Arc<Serving>,
}

impl ModulesService {
    /// Serves the node.
    pub fn new(serving: Arc<Serving>) -> ModulesService {
        ModulesService { serving }
    }
}

/// An upload as far as it has come.
#[derive(Debug)]
struct Upload {
    digest: Digest,
    label: String,
    total_bytes: u64,
    bytes: BytesMut,
}

impl Upload {
    /// An upload of what the header announces.
    fn begin(header: v1::PushModuleHeader, bytes_max: u64) -> Result<Upload, Error> {
        let v1::PushModuleHeader { digest, label, total_bytes } = header;
        if total_bytes > bytes_max {
            return Err(Error::TooLarge(format!(
                "the module has {total_bytes} bytes, the limit is {bytes_max}: make it smaller, or raise \
                 `limits.module_bytes_max`"
            )));
        }
        if label.len() > LABEL_BYTES_MAX || label.chars().any(char::is_control) {
            return Err(Error::Invalid(format!(
                "a label has at most {LABEL_BYTES_MAX} bytes and no control characters; this one has {} \
                 bytes",
                label.len()
            )));
        }
        Ok(Upload { digest: parse_digest(&digest)?, label, total_bytes, bytes: BytesMut::new() })
    }

    fn add(&mut self, chunk: &[u8]) -> Result<(), Error> {
        let bytes = self.bytes.len() as u64 + chunk.len() as u64;
        if bytes > self.total_bytes {
            let announced = self.total_bytes;
            return Err(Error::Invalid(format!(
                "at least {bytes} bytes were sent, but {announced} were announced"
            )));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    fn finish(self) -> Result<Push, Error> {
        let (sent, announced) = (self.bytes.len() as u64, self.total_bytes);
        if sent < announced {
            return Err(Error::Invalid(format!(
                "the upload ended after {sent} of {announced} bytes: send it again"
            )));
        }
        Ok(Push { digest: self.digest, label: self.label, bytes: Bytes::from(self.bytes) })
    }
}

async fn receive(parts: &mut Streaming<v1::PushModuleRequest>, bytes_max: u64) -> Result<Push, Status> {
    let first = parts.message().await?.and_then(|message| message.part);
    let Some(Part::Header(header)) = first else {
        let text = "the first message of an upload must be its header";
        return Err(refused(Error::Invalid(text.into())));
    };
    let mut upload = Upload::begin(header, bytes_max).map_err(refused)?;
    while let Some(message) = parts.message().await? {
        match message.part {
            Some(Part::Chunk(chunk)) => upload.add(&chunk).map_err(refused)?,
            Some(Part::Header(_)) | None => {
                let text = "only the first message of an upload is a header; the others are chunks";
                return Err(refused(Error::Invalid(text.into())));
            }
        }
    }
    upload.finish().map_err(refused)
}

#[tonic::async_trait]
impl Modules for ModulesService {
    async fn push(
        &self,
        request: Request<Streaming<v1::PushModuleRequest>>,
    ) -> Result<Response<v1::Module>, Status> {
        // Uploads wait here for each other: together they hold at most so many times a module's limit in
        // memory.
        let _turn = self.serving.uploads.acquire().await;
        let push = receive(&mut request.into_inner(), self.serving.limits.module_bytes_max).await?;
        let module = self.serving.node.push_module(push).await.map_err(refused)?;
        Ok(Response::new(module.into()))
    }

    async fn list(
        &self,
        request: Request<v1::ListModulesRequest>,
    ) -> Result<Response<v1::ListModulesResponse>, Status> {
        let v1::ListModulesRequest { limit, after } = request.into_inner();
        let after = match after.as_str() {
            "" => None,
            digest => Some(parse_digest(digest).map_err(refused)?),
        };
        let (modules, more) =
            page(self.serving.node.modules(), after.as_ref(), limit, PAGE_MAX, |m| &m.digest);
        let modules = modules.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::ListModulesResponse { modules, more }))
    }

    async fn get(&self, request: Request<v1::GetModuleRequest>) -> Result<Response<v1::Module>, Status> {
        let digest = self.serving.module_digest(&request.into_inner().digest).await.map_err(refused)?;
        let module = self.serving.node.find_module(digest).await.map_err(refused)?;
        Ok(Response::new(module.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(total_bytes: u64) -> v1::PushModuleHeader {
        v1::PushModuleHeader { digest: Digest::of(b"abc").to_string(), label: "x.wasm".into(), total_bytes }
    }

    #[test]
    fn an_upload_becomes_what_was_announced() {
        let mut upload = Upload::begin(header(3), 10).unwrap();
        upload.add(b"ab").unwrap();
        upload.add(b"").unwrap();
        upload.add(b"c").unwrap();
        let push = upload.finish().unwrap();
        assert_eq!((&push.bytes[..], push.digest), (&b"abc"[..], Digest::of(b"abc")));
    }

    #[test]
    fn an_upload_over_the_limit_is_refused_before_it_begins() {
        let error = Upload::begin(header(11), 10).unwrap_err();
        assert!(matches!(&error, Error::TooLarge(text) if text.contains("11") && text.contains("10")));
    }

    #[test]
    fn more_or_less_than_announced_is_refused() {
        let mut upload = Upload::begin(header(3), 10).unwrap();
        assert!(upload.add(b"abcd").is_err());
        upload.add(b"ab").unwrap();
        let error = upload.finish().unwrap_err().to_string();
        assert!(error.contains("2 of 3"), "{error}");
    }

    #[test]
    fn a_bad_digest_or_label_is_refused() {
        let bad = v1::PushModuleHeader { digest: "12".into(), ..header(1) };
        assert!(Upload::begin(bad, 10).unwrap_err().to_string().contains("\"12\""));
        let bad = v1::PushModuleHeader { label: "a\u{1b}[2J".into(), ..header(1) };
        assert!(Upload::begin(bad, 10).is_err());
        let bad = v1::PushModuleHeader { label: "x".repeat(256), ..header(1) };
        assert!(Upload::begin(bad, 10).unwrap_err().to_string().contains("256"));
    }
}
