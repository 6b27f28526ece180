//! The nodes of the cluster: seen, joined, changed.

use futures_util::future::BoxFuture;

use super::{Again, Client};
use crate::error::Error;
use crate::node::request::{Introducer, Introduction, Invitation, MemberInfo, ReplicaReport, Surveyed};
use crate::proto::v1;
use crate::proto::v1::machines_client::MachinesClient;
use crate::proto::v1::members_client::MembersClient;
use crate::proto::v1::nodes_client::NodesClient;

impl Client {
    /// The cluster's id, and its nodes by name.
    ///
    /// # Errors
    /// What a network can do.
    pub async fn members(&self) -> Result<(u64, Vec<MemberInfo>), Error> {
        let call = |channel, message| async move { MembersClient::new(channel).list(message).await };
        let listed = self.call(Again::Always, v1::ListMembersRequest {}, call).await?;
        Ok((listed.cluster, listed.members.into_iter().map(Into::into).collect()))
    }

    /// All nodes of the cluster, by name, each as it tells of itself.
    pub async fn survey(&self) -> Result<Vec<Surveyed>, Error> {
        let call = |channel, message| async move { NodesClient::new(channel).survey(message).await };
        let surveyed = self.call(Again::Always, v1::SurveyRequest {}, call).await?;
        Ok(surveyed.nodes.into_iter().map(Into::into).collect())
    }

    /// Where each replica of a machine stands in the log.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn replicas(&self, machine: &str) -> Result<Vec<ReplicaReport>, Error> {
        let call = |channel, message| async move { MachinesClient::new(channel).replicas(message).await };
        let message = v1::ReplicasRequest { name: machine.into() };
        let told = self.call(Again::Always, message, call).await?;
        Ok(told.replicas.into_iter().map(Into::into).collect())
    }

    /// Has the node of this name, or id, leave.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` for the last node.
    pub async fn remove_member(&self, name: &str) -> Result<(), Error> {
        let call = |channel, message| async move { MembersClient::new(channel).remove(message).await };
        let message = v1::RemoveMemberRequest { name: name.into() };
        // A node that leaves already leaves: again does no harm.
        self.call(Again::Always, message, call).await.map(drop)
    }

    /// Has the node of this name, or id, vote on the catalog.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if as many vote as may.
    pub async fn promote_member(&self, name: &str) -> Result<(), Error> {
        let call = |channel, message| async move { MembersClient::new(channel).promote(message).await };
        let message = v1::PromoteMemberRequest { name: name.into() };
        self.call(Again::Always, message, call).await.map(drop)
    }

    /// Has a node lead a machine's group, or the catalog's.
    ///
    /// # Errors
    /// `NotFound` for the machine or the node; `Invalid` if the node cannot lead it.
    pub async fn transfer_leader(&self, machine: Option<&str>, to: &str) -> Result<(), Error> {
        let call =
            |channel, message| async move { MembersClient::new(channel).transfer_leader(message).await };
        let machine = machine.unwrap_or_default().to_owned();
        let message = v1::TransferLeaderRequest { machine, to: to.into() };
        self.call(Again::Always, message, call).await.map(drop)
    }
}

/// A client of a node of a cluster can introduce another node to it.
impl Introducer for Client {
    fn cluster(&self) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(async { Ok(self.members().await?.0) })
    }

    fn introduce(&self, node: Introduction) -> BoxFuture<'_, Result<Invitation, Error>> {
        let call = |channel, message| async move { MembersClient::new(channel).join(message).await };
        Box::pin(async move {
            let message = v1::JoinRequest::from(node);
            Ok(self.call(Again::Always, message, call).await?.into())
        })
    }
}
