//! etcd's service `Maintenance`: how this node is, and what little there is to maintain. Storage is kept in
//! order by the node itself, so there is nothing to defragment, and no quota that could raise an alarm.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::Stream;
use tonic::{Request, Response, Status};

use super::pages::Pages;
use super::{Front, VERSION, snapshot, status};
use crate::error::Error;
use crate::id::NodeId;
use crate::proto::etcd::etcdserverpb as pb;
use crate::proto::etcd::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcd::etcdserverpb::downgrade_request::DowngradeAction;
use crate::proto::etcd::etcdserverpb::maintenance_server::Maintenance;

/// What hashes begin with, so that nothing has one that is not 0.
const HASHED_FIRST: &[u8] = b"keys";
/// What `HashKV` says of a store that was never compacted.
const NEVER_COMPACTED: i64 = -1;

/// The service.
pub struct MaintenanceService(pub(super) Arc<Front>);

type Snapshot = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    type SnapshotStream = Snapshot;

    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        if request.get_ref().action() == AlarmAction::Activate {
            return Err(Status::unimplemented(status::ours("there are no alarms that a client could raise")));
        }
        Ok(Response::new(pb::AlarmResponse { header: self.0.header().await?, alarms: Vec::new() }))
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let front = &self.0;
        let machine = front.node().machine(&front.machine).map_err(|why| status::of(&why))?;
        let log = front.node().replica_log(machine.group).await.map_err(|why| status::of(&why))?;
        let leader = machine.replica.and_then(|replica| replica.leader);
        let disk = front.node().report().await.disk.unwrap_or_default();
        let errors = match leader {
            Some(_) => Vec::new(),
            None => vec![status::NO_LEADER.text().to_owned()],
        };
        Ok(Response::new(pb::StatusResponse {
            header: front.header().await?,
            version: VERSION.to_owned(),
            db_size: disk.state_bytes as i64,
            leader: leader.unwrap_or_default().0,
            raft_index: log.committed,
            raft_term: log.term,
            raft_applied_index: log.applied,
            errors,
            db_size_in_use: disk.state_bytes as i64,
            is_learner: log.role == "learner",
            storage_version: storage_version(),
            db_size_quota: 0,
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    async fn defragment(
        &self,
        _: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        Ok(Response::new(pb::DefragmentResponse::default()))
    }

    async fn hash(&self, _: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        let (revision, hash) = self.0.hash_at(0).await?;
        let header = Some(self.0.header_at(revision));
        Ok(Response::new(pb::HashResponse { header, hash }))
    }

    /// etcd has a hash of what there was before the first revision, too: of nothing.
    async fn hash_kv(
        &self,
        request: Request<pb::HashKvRequest>,
    ) -> Result<Response<pb::HashKvResponse>, Status> {
        let (hash_revision, hash) = match request.get_ref().revision {
            before_all if before_all < 0 => (before_all, crc32fast::hash(HASHED_FIRST)),
            asked => self.0.hash_at(asked).await?,
        };
        let state = self.0.state().await?;
        let revision = state.header.unwrap_or_default().revision;
        let compacted = state.compact_revision;
        Ok(Response::new(pb::HashKvResponse {
            header: Some(self.0.header_at(revision)),
            hash,
            compact_revision: if compacted == 0 { NEVER_COMPACTED } else { compacted },
            hash_revision,
        }))
    }

    async fn snapshot(&self, _: Request<pb::SnapshotRequest>) -> Result<Response<Snapshot>, Status> {
        Ok(Response::new(Box::pin(snapshot::take(self.0.clone()).await?)))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        let (front, node) = (&self.0, self.0.node());
        if front.replica().and_then(|replica| replica.leader) != Some(node.id()) {
            return Err(status::NOT_LEADER.into());
        }
        let target = NodeId(request.get_ref().target_id);
        if !node.members().iter().any(|member| member.node == target) {
            return Err(status::BAD_TRANSFEREE.into());
        }
        let moved = node.transfer_leader(Some(&front.machine), &target.to_string()).await;
        moved.map_err(|why| match why {
            // It has no replica that could lead.
            Error::Invalid(_) => status::BAD_TRANSFEREE.into(),
            why => status::of(&why),
        })?;
        Ok(Response::new(pb::MoveLeaderResponse::default()))
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        match request.get_ref().action() {
            DowngradeAction::Cancel => Err(status::NO_DOWNGRADE.into()),
            DowngradeAction::Validate | DowngradeAction::Enable => Err(Status::unimplemented(status::ours(
                "the version of etcd's API has nothing to do with that of the nodes",
            ))),
        }
    }
}

/// The first two numbers of the version, as etcd names the version of its files.
pub(super) fn storage_version() -> String {
    let minor = VERSION.rsplit_once('.').map_or(VERSION, |(minor, _)| minor);
    format!("{minor}.0")
}

impl Front {
    /// A hash of all keys as they were at a revision (0: now), the same on every node, and the revision.
    async fn hash_at(&self, revision: i64) -> Result<(i64, u32), Status> {
        let mut pages = Pages::of_all(self, revision).await?;
        let mut hash = crc32fast::Hasher::new();
        hash.update(HASHED_FIRST);
        while let Some(page) = pages.next().await? {
            for pair in page.kvs {
                hash.update(&prost::Message::encode_to_vec(&pair));
            }
        }
        Ok((pages.revision(), hash.finalize()))
    }
}
