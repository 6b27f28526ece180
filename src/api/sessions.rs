//! The gRPC service `Sessions`: opening and closing them. Their commands are those of `Commands`; they are
//! kept alive as `Leases`.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::{Serving, refused};
use crate::proto::v1;
use crate::proto::v1::sessions_server::Sessions;

/// The service.
pub struct SessionsService {
    serving: Arc<Serving>,
}

impl SessionsService {
    /// Serves the node.
    pub fn new(serving: Arc<Serving>) -> SessionsService {
        SessionsService { serving }
    }
}

#[tonic::async_trait]
impl Sessions for SessionsService {
    async fn open(
        &self,
        request: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionResponse>, Status> {
        let v1::OpenSessionRequest { machine, ttl_ms } = request.into_inner();
        let opened = self.serving.node.open_session(&machine, Duration::from_millis(ttl_ms)).await;
        Ok(Response::new(opened.map_err(refused)?.into()))
    }

    async fn close(
        &self,
        request: Request<v1::CloseSessionRequest>,
    ) -> Result<Response<v1::CloseSessionResponse>, Status> {
        let v1::CloseSessionRequest { machine, session } = request.into_inner();
        self.serving.node.close_session(&machine, session).await.map_err(refused)?;
        Ok(Response::new(v1::CloseSessionResponse {}))
    }
}
