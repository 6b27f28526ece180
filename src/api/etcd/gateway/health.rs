//! What probes and tools ask before anything else: the version, and whether this node serves.
//!
//! Healthy is a node that answers a read, by the same way as its clients' reads go: nothing is kept here, and
//! nothing is assumed.

use std::fmt::Write;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use statehouse_kv::messages::RangeRequest;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use super::super::{CLUSTER_VERSION, VERSION, leader, status};
use super::with_cors;
use crate::proto::etcd::etcdserverpb::raw::kv_client::KvClient;

/// How long etcd gives the read.
const READ_TIMEOUT: Duration = Duration::from_secs(7);

/// Something that a node must do, and that can be asked for by its name, which is etcd's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// It answers with what it has. A replica that parted from the others does not.
    SerializableRead,
    /// It answers with everything that was acknowledged.
    LinearizableRead,
}

impl Check {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
        }
    }

    /// What is wrong, if something is.
    async fn run(self, grpc: &Router) -> Result<(), Status> {
        read(grpc, self == Check::SerializableRead).await
    }
}

/// The versions that clients adapt to.
pub async fn version() -> Response {
    // In etcd's order: some tools compare text.
    let versions = format!(
        r#"{{"etcdserver":"{VERSION}","etcdcluster":"{CLUSTER_VERSION}","storage":"{CLUSTER_VERSION}"}}"#
    );
    with_cors(([(header::CONTENT_TYPE, "application/json")], versions).into_response())
}

/// Whether this node serves reads: its cluster's, or with `?serializable=true` its own.
pub async fn health(grpc: &Router, uri: Uri) -> Response {
    let own = parameters(&uri).any(|part| part == ("serializable", "true"));
    let mut request = read_request(own);
    if !own {
        // A probe need not wait for a leader to be told that there is none.
        request.metadata_mut().insert(leader::WISH, MetadataValue::from_static(leader::GRANTED));
    }
    let (status, health, reason) = match send(grpc, request).await {
        Ok(()) => (StatusCode::OK, "true", String::new()),
        Err(why) if why.message() == status::NO_LEADER.text() => {
            (StatusCode::SERVICE_UNAVAILABLE, "false", "RAFT NO LEADER".to_owned())
        }
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, "false", format!("RANGE ERROR:{}", why.message())),
    };
    // In this order, as etcd has it: some probes compare text.
    let body = format!("{{\"health\":{},\"reason\":{}}}", json!(health), json!(reason));
    with_cors((status, body).into_response())
}

/// Runs checks, but for those that the request excludes: which of them failed and why, or `ok`; with
/// `?verbose` also which did not.
pub async fn checks(grpc: &Router, checks: &[Check], uri: Uri) -> Response {
    let is_excluded = |check: &&Check| parameters(&uri).any(|part| part == ("exclude", check.name()));
    let (mut told, mut failed) = (String::new(), false);
    for check in checks.iter().filter(|check| !is_excluded(check)) {
        let name = check.name();
        // Writing to a string cannot fail.
        let _ = match check.run(grpc).await {
            Ok(()) => writeln!(told, "[+]{name} ok"),
            Err(why) => {
                failed = true;
                writeln!(told, "[-]{name} failed: {}", why.message())
            }
        };
    }
    if failed {
        // In etcd's way: with an empty line at the end.
        return with_cors((StatusCode::SERVICE_UNAVAILABLE, format!("{told}\n")).into_response());
    }
    let is_verbose = parameters(&uri).any(|(name, _)| name == "verbose");
    let text = if is_verbose { format!("{told}ok\n") } else { "ok\n".to_owned() };
    with_cors(text.into_response())
}

/// The parameters of a request. Nothing that is asked for here has a character to be escaped.
fn parameters(uri: &Uri) -> impl Iterator<Item = (&str, &str)> {
    let parts = uri.query().unwrap_or_default().split('&');
    parts.map(|part| part.split_once('=').unwrap_or((part, "")))
}

async fn read(grpc: &Router, serializable: bool) -> Result<(), Status> {
    send(grpc, read_request(serializable)).await
}

fn read_request(serializable: bool) -> Request<RangeRequest> {
    Request::new(RangeRequest {
        key: b"health".into(),
        count_only: true,
        serializable,
        ..RangeRequest::default()
    })
}

async fn send(grpc: &Router, request: Request<RangeRequest>) -> Result<(), Status> {
    let mut client = KvClient::new(grpc.clone());
    match tokio::time::timeout(READ_TIMEOUT, client.range(request)).await {
        Ok(answer) => answer.map(drop),
        Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
    }
}
