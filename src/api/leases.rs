//! The gRPC service `Leases`: granting, keeping alive, ending and showing them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::commands::{Addressee, bounds};
use super::in_flight::InFlight;
use super::{Serving, refused};
use crate::error::Error;
use crate::node::Node;
use crate::node::request::{LeaseInfo, LeasePage};
use crate::proto::status;
use crate::proto::v1::leases_server::Leases;
use crate::proto::v1::{self, keep_alive_response};

/// Room for a lease's number when a stream counts bytes.
const LEASE_BYTES: usize = 8;
/// And for the rest of a message.
const REQUEST_BYTES: usize = 64;

/// The service.
pub struct LeasesService {
    serving: Arc<Serving>,
}

impl LeasesService {
    /// Serves the node.
    pub fn new(serving: Arc<Serving>) -> LeasesService {
        LeasesService { serving }
    }
}

#[tonic::async_trait]
impl Leases for LeasesService {
    type KeepAliveStream = Pin<Box<dyn Stream<Item = Result<v1::KeepAliveResponse, Status>> + Send>>;

    async fn grant(
        &self,
        request: Request<v1::GrantLeaseRequest>,
    ) -> Result<Response<v1::GrantLeaseResponse>, Status> {
        let v1::GrantLeaseRequest { machine, ttl_ms, id } = request.into_inner();
        let id = self.serving.node.grant_lease(&machine, ttl_ms, id).await.map_err(refused)?;
        Ok(Response::new(v1::GrantLeaseResponse { id }))
    }

    async fn renew(
        &self,
        request: Request<v1::RenewLeasesRequest>,
    ) -> Result<Response<v1::RenewLeasesResponse>, Status> {
        let v1::RenewLeasesRequest { machine, leases } = request.into_inner();
        let ttls_ms = self.serving.node.renew_leases(&machine, &leases).await.map_err(refused)?;
        Ok(Response::new(v1::RenewLeasesResponse { ttls_ms }))
    }

    async fn keep_alive(
        &self,
        requests: Request<Streaming<v1::KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        let (node, mut addressee) = (self.serving.node.clone(), Addressee::unknown());
        let begin = move |request: v1::KeepAliveRequest| {
            let v1::RenewLeasesRequest { machine, leases } = request.renew.unwrap_or_default();
            let bytes = REQUEST_BYTES + leases.len() * LEASE_BYTES;
            (bytes, answer(request.id, renew(node.clone(), addressee.follow(&machine), leases)))
        };
        let stopping = self.serving.stopping();
        let answers = InFlight::new(requests.into_inner(), bounds(&self.serving), stopping, begin);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn revoke(
        &self,
        request: Request<v1::RevokeLeaseRequest>,
    ) -> Result<Response<v1::RevokeLeaseResponse>, Status> {
        let v1::RevokeLeaseRequest { machine, id } = request.into_inner();
        self.serving.node.revoke_lease(&machine, id).await.map_err(refused)?;
        Ok(Response::new(v1::RevokeLeaseResponse {}))
    }

    async fn get(&self, request: Request<v1::GetLeaseRequest>) -> Result<Response<LeaseInfo>, Status> {
        let v1::GetLeaseRequest { machine, id } = request.into_inner();
        Ok(Response::new(self.serving.node.lease(&machine, id).await.map_err(refused)?))
    }

    async fn list(&self, request: Request<v1::ListLeasesRequest>) -> Result<Response<LeasePage>, Status> {
        let v1::ListLeasesRequest { machine, after, limit } = request.into_inner();
        Ok(Response::new(self.serving.node.leases(&machine, after, limit).await.map_err(refused)?))
    }
}

async fn renew(node: Node, machine: Result<Arc<str>, Error>, leases: Vec<u64>) -> Result<Vec<u64>, Error> {
    node.renew_leases(&machine?, &leases).await
}

async fn answer(id: u64, renewing: impl Future<Output = Result<Vec<u64>, Error>>) -> v1::KeepAliveResponse {
    let result = match renewing.await {
        Ok(ttls_ms) => keep_alive_response::Result::Renewed(v1::RenewLeasesResponse { ttls_ms }),
        Err(error) => keep_alive_response::Result::Failure(status::to_failure(&error)),
    };
    v1::KeepAliveResponse { id, result: Some(result) }
}
