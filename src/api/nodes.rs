//! The gRPC service `Nodes`: how a node is.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::Serving;
use crate::proto::convert;
use crate::proto::v1;
use crate::proto::v1::nodes_server::Nodes;

/// The service.
pub struct NodesService {
    serving: Arc<Serving>,
}

impl NodesService {
    /// Serves the node.
    pub fn new(serving: Arc<Serving>) -> NodesService {
        NodesService { serving }
    }
}

#[tonic::async_trait]
impl Nodes for NodesService {
    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let not_ready = self.serving.node.ready().err().map(|error| error.to_string());
        Ok(Response::new(convert::status(self.serving.node.status(), not_ready)))
    }

    async fn survey(
        &self,
        _request: Request<v1::SurveyRequest>,
    ) -> Result<Response<v1::SurveyResponse>, Status> {
        let nodes = self.serving.node.survey().await.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::SurveyResponse { nodes }))
    }
}
