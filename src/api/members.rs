//! The gRPC service `Members`: the nodes of the cluster.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{Serving, refused};
use crate::config::{check_address, check_node_name};
use crate::error::Error;
use crate::node::request::Introduction;
use crate::proto::v1;
use crate::proto::v1::members_server::Members;

/// The service.
pub struct MembersService {
    serving: Arc<Serving>,
}

impl MembersService {
    /// Serves the node.
    pub fn new(serving: Arc<Serving>) -> MembersService {
        MembersService { serving }
    }
}

fn introduction(request: v1::JoinRequest) -> Result<Introduction, Error> {
    check_node_name(&request.name).map_err(Error::Invalid)?;
    check_address(&request.peer_address).map_err(Error::Invalid)?;
    if request.node == 0 {
        return Err(Error::Invalid("a node's id cannot be 0".into()));
    }
    Ok(request.into())
}

#[tonic::async_trait]
impl Members for MembersService {
    async fn list(
        &self,
        _request: Request<v1::ListMembersRequest>,
    ) -> Result<Response<v1::ListMembersResponse>, Status> {
        let node = &self.serving.node;
        let members = node.members().into_iter().map(Into::into).collect();
        Ok(Response::new(v1::ListMembersResponse { cluster: node.cluster(), members }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let node = introduction(request.into_inner()).map_err(refused)?;
        let invitation = self.serving.node.introduce(node).await.map_err(refused)?;
        Ok(Response::new(invitation.into()))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::RemoveMemberResponse>, Status> {
        self.serving.node.remove_member(&request.into_inner().name).await.map_err(refused)?;
        Ok(Response::new(v1::RemoveMemberResponse {}))
    }

    async fn promote(
        &self,
        request: Request<v1::PromoteMemberRequest>,
    ) -> Result<Response<v1::PromoteMemberResponse>, Status> {
        self.serving.node.promote_member(&request.into_inner().name).await.map_err(refused)?;
        Ok(Response::new(v1::PromoteMemberResponse {}))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let v1::TransferLeaderRequest { machine, to } = request.into_inner();
        let machine = Some(machine.as_str()).filter(|machine| !machine.is_empty());
        self.serving.node.transfer_leader(machine, &to).await.map_err(refused)?;
        Ok(Response::new(v1::TransferLeaderResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_to_join_is_checked() {
        let request = |node, name: &str, peer_address: &str| v1::JoinRequest {
            node,
            name: name.into(),
            peer_address: peer_address.into(),
            ..v1::JoinRequest::default()
        };
        assert!(introduction(request(1, "a", "host:1")).is_ok());
        for wrong in [request(0, "a", "host:1"), request(1, "a b", "host:1"), request(1, "a", "host")] {
            assert!(matches!(introduction(wrong), Err(Error::Invalid(_))));
        }
    }
}
