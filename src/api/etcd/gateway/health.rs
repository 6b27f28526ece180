//! What probes and tools ask before anything else: the version, and whether this node serves.
//!
//! Healthy is a node that answers a read, by the same way as its clients' reads go: nothing is kept here, and
//! nothing is assumed.

use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use statehouse_kv::messages::RangeRequest;
use tonic::Status;

use super::super::{CLUSTER_VERSION, VERSION};
use super::with_cors;
use crate::proto::etcd::etcdserverpb::raw::kv_client::KvClient;

/// How long etcd gives the read.
const READ_TIMEOUT: Duration = Duration::from_secs(7);

/// The versions that clients adapt to.
pub async fn version() -> Response {
    // In etcd's order: some tools compare text.
    let versions = format!(
        r#"{{"etcdserver":"{VERSION}","etcdcluster":"{CLUSTER_VERSION}","storage":"{CLUSTER_VERSION}"}}"#
    );
    with_cors(([(header::CONTENT_TYPE, "application/json")], versions).into_response())
}

/// Whether this node serves reads: its cluster's, or with `?serializable=true` its own.
pub async fn health(grpc: &Router, request: Request) -> Response {
    let read = read(grpc, asks_for_own(&request)).await;
    let (status, health, reason) = match read {
        Ok(()) => (StatusCode::OK, "true", String::new()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, "false", format!("RANGE ERROR:{}", why.message())),
    };
    // In this order, as etcd has it: some probes compare text.
    let body = format!("{{\"health\":{},\"reason\":{}}}", json!(health), json!(reason));
    with_cors((status, body).into_response())
}

/// Whether the process answers at all.
pub async fn alive() -> Response {
    with_cors("ok\n".into_response())
}

/// Whether clients may be sent here.
pub async fn ready(grpc: &Router, _: Request) -> Response {
    match read(grpc, false).await {
        Ok(()) => with_cors("ok\n".into_response()),
        Err(why) => {
            let text = format!("[-]linearizable_read failed: {}\n", why.message());
            with_cors((StatusCode::SERVICE_UNAVAILABLE, text).into_response())
        }
    }
}

fn asks_for_own(request: &Request) -> bool {
    request.uri().query().is_some_and(|query| query.split('&').any(|part| part == "serializable=true"))
}

async fn read(grpc: &Router, serializable: bool) -> Result<(), Status> {
    let request =
        RangeRequest { key: b"health".into(), count_only: true, serializable, ..Default::default() };
    let mut client = KvClient::new(grpc.clone());
    match tokio::time::timeout(READ_TIMEOUT, client.range(request)).await {
        Ok(answer) => answer.map(drop),
        Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
    }
}
