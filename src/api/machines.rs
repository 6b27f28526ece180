//! The gRPC service `Machines`: making, listing, looking after and deleting machines.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{PAGE_MAX, Serving, page, refused};
use crate::catalog::REPLICAS_DEFAULT;
use crate::error::Error;
use crate::proto::v1;
use crate::proto::v1::machines_server::Machines;

/// The service.
pub struct MachinesService {
    serving: Arc<Serving>,
}

impl MachinesService {
    /// Serves the node.
    pub fn new(serving: Arc<Serving>) -> MachinesService {
        MachinesService { serving }
    }

    /// Refuses a configuration, or an argument, that is larger than a command may be.
    fn check_size(&self, what: &str, bytes: usize) -> Result<(), Error> {
        let bytes_max = self.serving.limits.command_bytes_max;
        if bytes as u64 <= bytes_max {
            return Ok(());
        }
        Err(Error::TooLarge(format!(
            "the {what} has {bytes} bytes, the limit is {bytes_max}: send the rest as commands, or raise \
             `limits.command_bytes_max`"
        )))
    }
}

#[tonic::async_trait]
impl Machines for MachinesService {
    async fn create(
        &self,
        request: Request<v1::CreateMachineRequest>,
    ) -> Result<Response<v1::Machine>, Status> {
        let v1::CreateMachineRequest { name, module, configuration, replicas, settings } =
            request.into_inner();
        let replicas = if replicas == 0 { REPLICAS_DEFAULT } else { replicas };
        self.check_size("configuration", configuration.len()).map_err(refused)?;
        let module = self.serving.module_digest(&module).await.map_err(refused)?;
        let settings = settings.map(Into::into);
        let machine =
            self.serving.node.create_settled(&name, module, configuration, replicas, settings).await;
        Ok(Response::new(machine.map_err(refused)?.into()))
    }

    async fn list(
        &self,
        request: Request<v1::ListMachinesRequest>,
    ) -> Result<Response<v1::ListMachinesResponse>, Status> {
        let v1::ListMachinesRequest { limit, after } = request.into_inner();
        let after = if after.is_empty() { None } else { Some(after) };
        let (machines, more) =
            page(self.serving.node.machines(), after.as_ref(), limit, PAGE_MAX, |m| &m.name);
        let machines = machines.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::ListMachinesResponse { machines, more }))
    }

    async fn get(&self, request: Request<v1::GetMachineRequest>) -> Result<Response<v1::Machine>, Status> {
        let machine = self.serving.node.find_machine(&request.into_inner().name).await.map_err(refused)?;
        Ok(Response::new(machine.into()))
    }

    async fn verify(
        &self,
        request: Request<v1::VerifyMachineRequest>,
    ) -> Result<Response<v1::VerifyMachineResponse>, Status> {
        let verified = self.serving.node.verify_machine(&request.into_inner().name).await;
        Ok(Response::new(verified.map_err(refused)?.into()))
    }

    async fn replicas(
        &self,
        request: Request<v1::ReplicasRequest>,
    ) -> Result<Response<v1::ReplicasResponse>, Status> {
        let replicas = self.serving.node.replicas(&request.into_inner().name).await.map_err(refused)?;
        let replicas = replicas.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::ReplicasResponse { replicas }))
    }

    async fn reseed(
        &self,
        request: Request<v1::ReseedMachineRequest>,
    ) -> Result<Response<v1::ReseedMachineResponse>, Status> {
        let v1::ReseedMachineRequest { name, node } = request.into_inner();
        let index = self.serving.node.reseed_machine(&name, &node).await.map_err(refused)?;
        Ok(Response::new(v1::ReseedMachineResponse { applied_index: index.0 }))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainMachineRequest>,
    ) -> Result<Response<v1::ExplainMachineResponse>, Status> {
        let v1::ExplainMachineRequest { name, node } = request.into_inner();
        let explanation = self.serving.node.explain_machine(&name, &node).await.map_err(refused)?;
        Ok(Response::new(explanation.into()))
    }

    async fn configure(
        &self,
        request: Request<v1::ConfigureMachineRequest>,
    ) -> Result<Response<v1::Machine>, Status> {
        let v1::ConfigureMachineRequest { name, settings } = request.into_inner();
        let change = settings.unwrap_or_default().into();
        let machine = self.serving.node.configure_machine(&name, change).await.map_err(refused)?;
        Ok(Response::new(machine.into()))
    }

    async fn upgrade(
        &self,
        request: Request<v1::UpgradeMachineRequest>,
    ) -> Result<Response<v1::UpgradeMachineResponse>, Status> {
        let v1::UpgradeMachineRequest { name, module, argument } = request.into_inner();
        self.check_size("argument", argument.len()).map_err(refused)?;
        let module = self.serving.module_digest(&module).await.map_err(refused)?;
        let upgraded = self.serving.node.upgrade_machine(&name, module, argument).await;
        let (machine, answer) = upgraded.map_err(refused)?;
        Ok(Response::new(v1::UpgradeMachineResponse { machine: Some(machine.into()), answer }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteMachineRequest>,
    ) -> Result<Response<v1::DeleteMachineResponse>, Status> {
        self.serving.node.delete_machine(&request.into_inner().name).await.map_err(refused)?;
        Ok(Response::new(v1::DeleteMachineResponse {}))
    }
}
