//! The nodes of a cluster, and how replicas compare, as messages, and back.

use super::v1;
use crate::error::Error;
use crate::id::{Index, LogTime, NodeId, ReplicaId};
use crate::node::request::{
    Contact, Introduction, Invitation, MemberInfo, ReplicaReport, Surveyed, Verified, VerifiedReplica,
};
use crate::proto::convert;

impl From<MemberInfo> for v1::Member {
    fn from(member: MemberInfo) -> v1::Member {
        v1::Member {
            node: member.node.0,
            name: member.name,
            peer_address: member.peer_address,
            client_address: member.client_address,
            etcd_address: member.etcd_address,
            version: member.version,
            joined_at_ms: member.joined.0,
            voter: member.voter,
            leaving: member.leaving,
            leader: member.leader,
            reachable: member.reachable,
        }
    }
}

impl From<v1::Member> for MemberInfo {
    fn from(message: v1::Member) -> MemberInfo {
        MemberInfo {
            node: NodeId(message.node),
            name: message.name,
            peer_address: message.peer_address,
            client_address: message.client_address,
            etcd_address: message.etcd_address,
            version: message.version,
            joined: LogTime(message.joined_at_ms),
            voter: message.voter,
            leaving: message.leaving,
            leader: message.leader,
            reachable: message.reachable,
        }
    }
}

impl From<Invitation> for v1::JoinResponse {
    fn from(invitation: Invitation) -> v1::JoinResponse {
        let contacts = invitation.contacts.into_iter().map(|contact| v1::Contact {
            node: contact.node.0,
            replica: contact.replica.0,
            peer_address: contact.peer_address,
        });
        v1::JoinResponse { replica: invitation.replica.0, contacts: contacts.collect() }
    }
}

impl From<v1::JoinResponse> for Invitation {
    fn from(message: v1::JoinResponse) -> Invitation {
        let contacts = message.contacts.into_iter().map(|contact| Contact {
            node: NodeId(contact.node),
            replica: ReplicaId(contact.replica),
            peer_address: contact.peer_address,
        });
        Invitation { replica: ReplicaId(message.replica), contacts: contacts.collect() }
    }
}

impl From<Introduction> for v1::JoinRequest {
    fn from(introduction: Introduction) -> v1::JoinRequest {
        let Introduction { node, name, peer_address, client_address, etcd_address, version } = introduction;
        v1::JoinRequest { node: node.0, name, peer_address, client_address, etcd_address, version }
    }
}

impl From<v1::JoinRequest> for Introduction {
    fn from(message: v1::JoinRequest) -> Introduction {
        let v1::JoinRequest { node, name, peer_address, client_address, etcd_address, version } = message;
        Introduction { node: NodeId(node), name, peer_address, client_address, etcd_address, version }
    }
}

impl From<Verified> for v1::VerifyMachineResponse {
    fn from(verified: Verified) -> v1::VerifyMachineResponse {
        let replica = |replica: VerifiedReplica| match replica.standing {
            Ok((index, hash)) => v1::VerifiedReplica {
                node: replica.node.0,
                applied_index: index.0,
                state_hash: hash.to_string(),
                failure: None,
            },
            Err(why) => {
                v1::VerifiedReplica { node: replica.node.0, failure: Some(why), ..Default::default() }
            }
        };
        let replicas = verified.replicas.into_iter().map(replica).collect();
        v1::VerifyMachineResponse { index: verified.index.0, replicas }
    }
}

impl TryFrom<v1::VerifyMachineResponse> for Verified {
    type Error = Error;

    fn try_from(message: v1::VerifyMachineResponse) -> Result<Verified, Error> {
        let replica = |replica: v1::VerifiedReplica| {
            let standing = match replica.failure {
                None => Ok((Index(replica.applied_index), convert::state_hash(&replica.state_hash)?)),
                Some(why) => Err(why),
            };
            Ok(VerifiedReplica { node: NodeId(replica.node), standing })
        };
        let replicas = message.replicas.into_iter().map(replica).collect::<Result<_, Error>>()?;
        Ok(Verified { index: Index(message.index), replicas })
    }
}

impl From<Surveyed> for v1::SurveyedNode {
    fn from(surveyed: Surveyed) -> v1::SurveyedNode {
        let (report, failure) = match surveyed.report {
            Ok(report) => (Some(report), None),
            Err(why) => (None, Some(why)),
        };
        v1::SurveyedNode { member: Some(surveyed.member.into()), report, failure }
    }
}

impl From<v1::SurveyedNode> for Surveyed {
    fn from(message: v1::SurveyedNode) -> Surveyed {
        let untold = || message.failure.unwrap_or_else(|| "it tells nothing".into());
        Surveyed {
            member: message.member.unwrap_or_default().into(),
            report: message.report.ok_or_else(untold),
        }
    }
}

impl From<ReplicaReport> for v1::ReplicaReport {
    fn from(replica: ReplicaReport) -> v1::ReplicaReport {
        let (log, failure) = match replica.log {
            Ok(log) => (Some(log), None),
            Err(why) => (None, Some(why)),
        };
        v1::ReplicaReport { node: replica.node.0, log, failure }
    }
}

impl From<v1::ReplicaReport> for ReplicaReport {
    fn from(message: v1::ReplicaReport) -> ReplicaReport {
        let untold = || message.failure.unwrap_or_else(|| "it tells nothing".into());
        ReplicaReport { node: NodeId(message.node), log: message.log.ok_or_else(untold) }
    }
}
