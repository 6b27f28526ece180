//! Plain HTTP for those who watch over a node: `/metrics`, `/healthz`, `/readyz`.
//!
//! `/healthz` says whether the process should be left running, `/readyz` whether it should be sent requests.
//! Neither tells a stranger more than a sentence.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::Serving;
use crate::error::Error;

/// The content type of Prometheus' text format.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The pages.
pub fn routes(serving: Arc<Serving>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .with_state(serving)
}

async fn metrics(State(serving): State<Arc<Serving>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], serving.node.metrics().await)
}

/// A node that is starting or stopping is healthy; one that has stopped after a fault is not, and wants a
/// restart.
async fn health(State(serving): State<Arc<Serving>>) -> (StatusCode, String) {
    match serving.node.ready() {
        Err(error @ (Error::Fault(_) | Error::Damaged(_))) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))
        }
        _ => (StatusCode::OK, "ok\n".into()),
    }
}

async fn readiness(State(serving): State<Arc<Serving>>) -> (StatusCode, String) {
    match serving.check_ready() {
        Ok(()) => (StatusCode::OK, "ready\n".into()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}
