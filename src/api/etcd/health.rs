//! gRPC's health service, which balancers and probes ask: of the node as a whole, as etcd has it, and in the
//! words of etcd's library of any other name.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream, StreamExt};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, HealthService};

use crate::api::{Serving, report_health};

/// Of the node as a whole.
const SERVICES: [&str; 1] = [""];

/// The service.
pub struct NodeHealth {
    known: HealthService,
    serving: Arc<Serving>,
}

impl NodeHealth {
    /// Begins to follow how the node is.
    pub fn of(serving: Arc<Serving>) -> NodeHealth {
        let reporter = HealthReporter::new();
        tokio::spawn(report_health(reporter.clone(), serving.clone(), &SERVICES));
        NodeHealth { known: HealthService::from_health_reporter(reporter), serving }
    }
}

type Told = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Health for NodeHealth {
    type WatchStream = Told;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.known.check(request).await.map_err(|why| match why.code() {
            Code::NotFound => Status::not_found("unknown service"),
            _ => why,
        })
    }

    /// Who watches a service that is not there is told so, and may wait for it.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Told>, Status> {
        let told: Told = match self.known.watch(request).await {
            Ok(told) => Box::pin(told.into_inner()),
            Err(why) if why.code() == Code::NotFound => {
                let unknown = HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() };
                Box::pin(stream::iter([Ok(unknown)]).chain(stream::pending()))
            }
            Err(why) => return Err(why),
        };
        let mut stopping = self.serving.stopping();
        let told = told.take_until(async move { stopping.as_mut().await });
        Ok(Response::new(Box::pin(told)))
    }
}
