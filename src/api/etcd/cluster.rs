//! etcd's service `Cluster`: its members are the cluster's nodes. A node joins by itself, with its own
//! address; so members are removed and promoted here, but neither added nor moved.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{Front, status};
use crate::id::NodeId;
use crate::node::request::MemberInfo;
use crate::proto::etcd::etcdserverpb as pb;
use crate::proto::etcd::etcdserverpb::cluster_server::Cluster;

/// The service.
pub struct ClusterService(pub(super) Arc<Front>);

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_add(
        &self,
        _: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(Status::unimplemented(status::ours(
            "a node becomes a member by itself: start it with `statehouse serve --join ADDRESS`",
        )))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        let member = self.0.member(request.get_ref().id)?;
        self.0.node().remove_member(&member.node.to_string()).await.map_err(|why| status::of(&why))?;
        let mut members = self.0.members();
        // It goes when its replicas have found other nodes.
        members.retain(|other| other.id != member.node.0);
        Ok(Response::new(pb::MemberRemoveResponse { header: self.0.header().await?, members }))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        self.0.member(request.get_ref().id)?;
        Err(Status::unimplemented(status::ours(
            "a node says itself where it is: start it again with its new address",
        )))
    }

    async fn member_list(
        &self,
        _: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let header = self.0.header().await?;
        Ok(Response::new(pb::MemberListResponse { header, members: self.0.members() }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        let member = self.0.member(request.get_ref().id)?;
        if member.voter {
            return Err(status::MEMBER_NOT_LEARNER.into());
        }
        self.0.node().promote_member(&member.node.to_string()).await.map_err(|why| status::of(&why))?;
        let header = self.0.header().await?;
        Ok(Response::new(pb::MemberPromoteResponse { header, members: self.0.members() }))
    }
}

impl Front {
    fn members(&self) -> Vec<pb::Member> {
        self.node().members().into_iter().map(as_etcd_has_it).collect()
    }

    fn member(&self, id: u64) -> Result<MemberInfo, Status> {
        let found = self.node().members().into_iter().find(|member| member.node == NodeId(id));
        found.ok_or_else(|| status::MEMBER_NOT_FOUND.into())
    }
}

fn as_etcd_has_it(member: MemberInfo) -> pb::Member {
    let urls = |address: String| match address.is_empty() {
        true => Vec::new(),
        false => vec![format!("http://{address}")],
    };
    pb::Member {
        id: member.node.0,
        name: member.name,
        peer_ur_ls: urls(member.peer_address),
        client_ur_ls: urls(member.etcd_address),
        is_learner: !member.voter,
    }
}
