//! etcd's service `Lock`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::Front;
use super::store::Store;
use crate::proto::etcd::v3lockpb as pb;
use crate::proto::etcd::v3lockpb::lock_server::Lock;

/// The service.
pub struct LockService(pub(super) Arc<Front>);

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<pb::LockRequest>) -> Result<Response<pb::LockResponse>, Status> {
        let pb::LockRequest { name, lease } = request.into_inner();
        let store = Store(self.0.clone());
        let lease = store.lease(lease).await?;
        let turn = store.take_place(&name, b"", lease).await?;
        let header = store.wait_or_leave(&name, &turn).await?;
        Ok(Response::new(pb::LockResponse { header, key: turn.key.into() }))
    }

    async fn unlock(
        &self,
        request: Request<pb::UnlockRequest>,
    ) -> Result<Response<pb::UnlockResponse>, Status> {
        let header = Store(self.0.clone()).delete(&request.get_ref().key).await?;
        Ok(Response::new(pb::UnlockResponse { header }))
    }
}
