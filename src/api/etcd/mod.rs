//! etcd's v3 API: programs written for etcd run on a machine of `builtin:kv`.
//!
//! A face without memory: what it is asked it asks the node, and it keeps nothing between two requests.
//! Requests to the machine pass through as the bytes they came in. It promises etcd's own codes and messages,
//! because clients compare them, and no word about progress before a watch has caught up.
//!
//! # Layout
//! - `kv`, `watch`, `lease`, `cluster`, `maintenance`, `auth`, `lock`, `election`: etcd's services, a file
//!   each; `store`: what the last two do with the machine
//! - `health`: gRPC's own service for balancers and probes
//! - `entry`: from a path to its service; `gateway`: all of them as JSON over HTTP
//! - `pages`: many keys, a page at a time; `snapshot`: all of them as a database of etcd
//! - `methods`: which there are, and what is said of others; `leader`: who wants to be served only with one;
//!   `bounds`: messages that are too large; `raw`: those that are not read; `status`: what etcd says when
//!   something is wrong

mod auth;
mod bounds;
mod cluster;
mod election;
mod entry;
mod gateway;
mod health;
mod kv;
mod leader;
mod lease;
mod lock;
mod maintenance;
mod methods;
mod pages;
mod raw;
mod snapshot;
mod status;
mod store;
mod watch;

use std::sync::Arc;

use bytes::Bytes;
use statehouse_kv::messages::{self, ResponseHeader};
use statehouse_kv::{Call, Kind};
use tokio::sync;
use tonic::Status;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use self::bounds::REQUEST_BYTES_MAX;
use self::entry::Entry;
use self::methods::Methods;
use self::raw::RawServer;
use super::Serving;
use crate::id::{Index, Revision};
use crate::machine::outcome::Outcome;
use crate::node::Node;
use crate::node::request::{Consistency, ReplicaInfo};
use crate::proto::etcd::etcdserverpb::auth_server::AuthServer;
use crate::proto::etcd::etcdserverpb::cluster_server::ClusterServer;
use crate::proto::etcd::etcdserverpb::lease_server::LeaseServer;
use crate::proto::etcd::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::proto::etcd::v3electionpb::election_server::ElectionServer;
use crate::proto::etcd::v3lockpb::lock_server::LockServer;

/// The version of etcd whose API this is.
pub const VERSION: &str = "3.7.3";
/// The version that all members of a cluster of that version have in common.
const CLUSTER_VERSION: &str = "3.7.0";

/// What all of etcd's services share.
pub(super) struct Front {
    serving: Arc<Serving>,
    machine: Arc<str>,
    /// Told when the leader was not there for too long.
    leader_lost: sync::watch::Receiver<()>,
}

impl Front {
    fn node(&self) -> &Node {
        &self.serving.node
    }

    /// This node's replica of the machine, if it has one.
    fn replica(&self) -> Option<ReplicaInfo> {
        self.node().replica(&self.machine).ok().flatten()
    }

    /// The header of an answer of this node, at a revision.
    fn header_at(&self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.node().cluster(),
            member_id: self.node().id().0,
            revision,
            raft_term: self.replica().map_or(0, |replica| replica.term.0),
        }
    }

    /// The header of an answer that the machine has no part in.
    async fn header(&self) -> Result<Option<ResponseHeader>, Status> {
        Ok(Some(self.header_at(self.revision().await?)))
    }

    /// The machine's revision as far as this node knows; one without a replica asks another.
    async fn revision(&self) -> Result<i64, Status> {
        if let Some(replica) = self.replica() {
            return Ok(revision_of(replica.revision));
        }
        Ok(self.state().await?.header.unwrap_or_default().revision)
    }

    /// How the machine stands, as far as this node knows.
    async fn state(&self) -> Result<messages::StatusResponse, Status> {
        let answer = self.query(Kind::Status, &[], STALE).await?;
        messages::StatusRequest::answer(&answer).map_err(|why| odd(&why))
    }

    /// Has the machine apply a request: the bytes of its answer.
    async fn apply(&self, kind: Kind, request: &[u8]) -> Result<Bytes, Status> {
        if request.len() > REQUEST_BYTES_MAX {
            return Err(status::REQUEST_TOO_LARGE.into());
        }
        let applied = self.node().apply(&self.machine, kind.envelope(request).into()).await;
        match applied.map_err(|why| self.unchanged(&why))?.outcome {
            Outcome::Ok(answer) => Ok(answer),
            Outcome::Refused(refusal) => Err(status::refused(&refusal)),
            Outcome::Host(code) => {
                Err(Status::internal(status::ours(format_args!("the machine failed: {code:?}"))))
            }
        }
    }

    /// Asks the machine: the bytes of its answer.
    async fn query(&self, kind: Kind, request: &[u8], consistency: Consistency) -> Result<Bytes, Status> {
        let answered = self.node().query(&self.machine, kind.envelope(request).into(), consistency).await;
        let answered = answered.map_err(|why| self.unread(&why))?;
        answered.outcome.map_err(|refusal| status::refused(&refusal))
    }
}

/// Whatever this replica has.
const STALE: Consistency = Consistency::Local { min_index: Index(0) };

/// How fresh a read must be.
fn consistency(serializable: bool) -> Consistency {
    if serializable { STALE } else { Consistency::Linearizable }
}

/// As etcd's messages have it.
fn revision_of(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

fn odd(why: &dyn std::fmt::Display) -> Status {
    Status::internal(status::ours(format_args!("the machine's answer does not read: {why}")))
}

/// All of etcd's services, answered by a machine: by gRPC, and as JSON.
pub(super) fn services(serving: &Arc<Serving>, machine: &str) -> Entry {
    let (lose, leader_lost) = sync::watch::channel(());
    let front = Arc::new(Front { serving: serving.clone(), machine: machine.into(), leader_lost });
    leader::look_out(front.clone(), lose);
    let kv = RawServer(kv::KvService(front.clone()));
    let watch = RawServer(watch::WatchService(front.clone()));
    let mut routes = Routes::builder();
    routes
        .add_service(kv.clone())
        .add_service(watch.clone())
        .add_service(LeaseServer::new(lease::LeaseService(front.clone())))
        .add_service(ClusterServer::new(cluster::ClusterService(front.clone())))
        .add_service(MaintenanceServer::new(maintenance::MaintenanceService(front.clone())))
        .add_service(AuthServer::new(auth::AuthService(front.clone())))
        .add_service(HealthServer::new(health::NodeHealth::of(serving.clone())))
        .add_service(LockServer::new(lock::LockService(front.clone())))
        .add_service(ElectionServer::new(election::ElectionService(front.clone())));
    let services = bounds::refuse_large(routes.routes().into_axum_router());
    let router = gateway::routes(leader::heed(services, front.clone()));
    Entry { front, kv, watch, router, methods: Arc::new(Methods::of_etcd()) }
}
