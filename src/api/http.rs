//! Plain HTTP for those who watch over a node: `/metrics`, `/healthz`, `/readyz`.
//!
//! `/healthz` says whether the process should be left running, `/readyz` whether it should be sent requests.
//! Neither tells a stranger more than a sentence.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use super::Serving;
use super::gathering::Gathering;
use crate::error::Error;
use crate::open_files::Places;

/// The content type of Prometheus' text format.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Connections of those who watch. They have places of their own: with as many clients as can be, a node is
/// still seen to be well.
const CONNECTIONS_MAX: usize = 100;

/// Takes connections to the pages.
pub struct Listener {
    listener: TcpListener,
    places: Places,
}

impl Listener {
    pub fn new(listener: TcpListener) -> Listener {
        Listener { listener, places: Places::new(CONNECTIONS_MAX, "close some of those to `--http`") }
    }
}

impl axum::serve::Listener for Listener {
    type Io = Gathering;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Gathering, SocketAddr) {
        loop {
            let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
            if let Some(place) = self.places.take() {
                return (Gathering::new(stream).in_place(place), address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

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
