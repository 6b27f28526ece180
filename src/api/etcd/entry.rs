//! Where requests to etcd's services come in. Reads, writes and watches are what clients do most: their
//! services are found by name alone; everything else takes the way through a router, which costs as much as
//! a read.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use super::Front;
use super::bounds::Bounded;
use super::kv::KvService;
use super::leader;
use super::methods::{Methods, split};
use super::raw::RawServer;
use super::watch::WatchService;

/// All services of one address.
#[derive(Clone)]
pub struct Entry {
    pub front: Arc<Front>,
    pub kv: RawServer<KvService>,
    pub watch: RawServer<WatchService>,
    /// All of them, and the gateway.
    pub router: Router,
    pub methods: Arc<Methods>,
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
        let wants_leader = leader::is_wanted(request.headers());
        let answer = match service(request.uri().path()) {
            RawServer::<KvService>::NAME => self.kv.call(request.map(Bounded::new)),
            RawServer::<WatchService>::NAME => self.watch.call(request.map(Bounded::new)),
            _ => return self.call_other(request),
        };
        if !wants_leader {
            return answer;
        }
        let front = self.front.clone();
        Box::pin(async move { Ok(leader::led(&front, answer.map(|Ok(answer)| answer)).await) })
    }
}

impl Entry {
    /// A service that is found by the router, a page, or nothing.
    fn call_other(
        &mut self,
        request: http::Request<Body>,
    ) -> BoxFuture<'static, Result<http::Response<Body>, Infallible>> {
        if !is_grpc(&request) {
            return Box::pin(self.router.call(request).map(|answer| Ok(answer?.map(Body::new))));
        }
        match self.methods.find(request.uri().path()) {
            Ok(form) => Box::pin(
                self.router
                    .call(request)
                    .map(move |answer| Ok(form.answer_in_etcds_words(answer?.map(Body::new)))),
            ),
            Err(unknown) => Box::pin(ready(Ok(unknown.into_http()))),
        }
    }
}

fn is_grpc(request: &http::Request<Body>) -> bool {
    let content = request.headers().get(http::header::CONTENT_TYPE);
    content.is_some_and(|content| content.as_bytes().starts_with(b"application/grpc"))
}

/// The service of a path `/SERVICE/METHOD`.
fn service(path: &str) -> &str {
    split(path).map_or("", |(service, _)| service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_by_the_first_part_of_a_path() {
        assert_eq!(service("/etcdserverpb.KV/Range"), "etcdserverpb.KV");
        for other in ["", "/", "/health", "etcdserverpb.KV/Range", "/etcdserverpb.KV/x/Range"] {
            assert_ne!(service(other), "etcdserverpb.KV", "{other:?}");
        }
    }
}
