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
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let urls = &request.get_ref().peer_ur_ls;
        if urls.is_empty() || !urls.iter().all(|url| is_peer_url(url)) {
            return Err(status::MEMBER_BAD_URLS.into());
        }
        Err(Status::unimplemented(status::ours(
            "a node becomes a member by itself: start it with `statehouse serve --join ADDRESS`",
        )))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        let member = self.0.member(request.get_ref().id)?;
        let removed = self.0.node().remove_member(&member.node.to_string()).await;
        removed.map_err(|why| self.0.unchanged(&why))?;
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
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let members = match request.get_ref().linearizable {
            true => self.0.node().members_confirmed().await.map_err(|why| self.0.unread(&why))?,
            false => self.0.node().members(),
        };
        let members = members.into_iter().map(as_etcd_has_it).collect();
        Ok(Response::new(pb::MemberListResponse { header: self.0.header().await?, members }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        let member = self.0.member(request.get_ref().id)?;
        if member.voter {
            return Err(status::MEMBER_NOT_LEARNER.into());
        }
        let promoted = self.0.node().promote_member(&member.node.to_string()).await;
        promoted.map_err(|why| self.0.unchanged(&why))?;
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

/// Whether etcd would take this for where a member listens: a socket's path, or a host and a port and nothing
/// behind them.
fn is_peer_url(url: &str) -> bool {
    let Some((scheme, rest)) = url.trim().split_once("://") else { return false };
    match &*scheme.to_ascii_lowercase() {
        "unix" | "unixs" => true,
        "http" | "https" => {
            let authority = rest.split(['?', '#']).next().unwrap_or_default();
            let address = authority.rsplit_once('@').map_or(authority, |(_, address)| address);
            let Some((host, port)) = address.rsplit_once(':') else { return false };
            let host_is_good = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
                Some(host) => !host.contains(['[', ']', '/']),
                None => host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)),
            };
            host_is_good && port.bytes().all(|byte| byte.is_ascii_digit())
        }
        _ => false,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_listens_at_a_host_and_a_port_or_at_the_path_of_a_socket() {
        for good in
            ["http://a:1", "https://10.0.0.1:2380", "HTTP://a.b-c:2380", "http://[::1]:1", "unix://a:1"]
        {
            assert!(is_peer_url(good), "{good}");
        }
        for bad in
            ["", "a:1", "http://", "http://a", "http://a:1/x", "http://a:b", "http://::1:1", "ftp://a:1"]
        {
            assert!(!is_peer_url(bad), "{bad}");
        }
    }
}
