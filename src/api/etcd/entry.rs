//! Where requests to etcd's services come in. Reads, writes and watches are what clients do most: their
//! services are found by name alone; everything else takes the way through a router, which costs as much as
//! a read.

use std::convert::Infallible;
use std::task::{Context, Poll};

use axum::Router;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use super::bounds::Bounded;
use super::kv::KvService;
use super::raw::RawServer;
use super::watch::WatchService;

/// All services of one address.
#[derive(Clone)]
pub struct Entry {
    pub kv: RawServer<KvService>,
    pub watch: RawServer<WatchService>,
    /// All of them, and the gateway.
    pub router: Router,
}

impl Service<http::Request<Body>> for Entry {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // None of them ever is busy.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match service(request.uri().path()) {
            RawServer::<KvService>::NAME => self.kv.call(request.map(Bounded::new)),
            RawServer::<WatchService>::NAME => self.watch.call(request.map(Bounded::new)),
            _ => Box::pin(self.router.call(request).map(|answer| Ok(answer?.map(Body::new)))),
        }
    }
}

/// The service of a path `/SERVICE/METHOD`.
fn service(path: &str) -> &str {
    path.strip_prefix('/').and_then(|path| path.split_once('/')).map_or("", |(service, _)| service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_by_the_first_part_of_a_path() {
        assert_eq!(service("/etcdserverpb.KV/Range"), "etcdserverpb.KV");
        for other in ["", "/", "/health", "etcdserverpb.KV/Range"] {
            assert_ne!(service(other), "etcdserverpb.KV", "{other:?}");
        }
    }
}
