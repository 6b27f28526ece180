//! etcd's service `Election`: whose turn it is at a name leads, and the value of its key is what it
//! proclaims.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use statehouse_kv::messages::{
    DeleteRangeRequest, KeyValue, PutRequest, Request as Step, ResponseHeader, TxnRequest,
};
use tonic::{Request, Response, Status};

use super::Front;
use super::store::{Store, Turn, created_at, prefix, said, step};
use crate::id::Revision;
use crate::node::request::{KeySpan, WatchSpec, Watched};
use crate::node::watches::Watch;
use crate::proto::etcd::v3electionpb as pb;
use crate::proto::etcd::v3electionpb::election_server::Election;

/// The service.
pub struct ElectionService(pub(super) Arc<Front>);

type Observed = Pin<Box<dyn Stream<Item = Result<pb::LeaderResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Election for ElectionService {
    type ObserveStream = Observed;

    async fn campaign(
        &self,
        request: Request<pb::CampaignRequest>,
    ) -> Result<Response<pb::CampaignResponse>, Status> {
        let pb::CampaignRequest { name, lease, value } = request.into_inner();
        let store = Store(self.0.clone());
        let lease = store.lease(lease).await?;
        let turn = store.take_place(&name, &value, lease).await?;
        if turn.value != *value {
            store.proclaim(&turn.key, turn.revision, lease, &value).await?;
        }
        let header = store.wait_or_leave(&name, &turn).await?;
        let Turn { key, revision, .. } = turn;
        let leader = pb::LeaderKey { name, key: key.into(), rev: revision, lease };
        Ok(Response::new(pb::CampaignResponse { header, leader: Some(leader) }))
    }

    async fn proclaim(
        &self,
        request: Request<pb::ProclaimRequest>,
    ) -> Result<Response<pb::ProclaimResponse>, Status> {
        let pb::ProclaimRequest { leader, value } = request.into_inner();
        let leader = named(leader)?;
        let store = Store(self.0.clone());
        let header = store.proclaim(&leader.key, leader.rev, leader.lease, &value).await?;
        Ok(Response::new(pb::ProclaimResponse { header }))
    }

    async fn leader(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<pb::LeaderResponse>, Status> {
        let found = Store(self.0.clone()).first(&prefix(&request.get_ref().name)).await?;
        match found.kvs.into_iter().next() {
            Some(kv) => Ok(Response::new(pb::LeaderResponse { header: found.header, kv: Some(kv) })),
            None => Err(Status::unknown("election: no leader")),
        }
    }

    async fn observe(&self, request: Request<pb::LeaderRequest>) -> Result<Response<Observed>, Status> {
        let observer = Observer {
            store: Store(self.0.clone()),
            prefix: prefix(&request.get_ref().name),
            watch: None,
            told: None,
        };
        let told = stream::try_unfold(observer, |mut observer| async move {
            let leader = observer.next().await?;
            Ok::<_, Status>(Some((leader, observer)))
        });
        Ok(Response::new(Box::pin(told)))
    }

    async fn resign(
        &self,
        request: Request<pb::ResignRequest>,
    ) -> Result<Response<pb::ResignResponse>, Status> {
        let leader = named(request.into_inner().leader)?;
        let delete = DeleteRangeRequest { key: leader.key.to_vec(), ..DeleteRangeRequest::default() };
        let txn = TxnRequest {
            compare: vec![created_at(&leader.key, leader.rev)],
            success: vec![step(Step::RequestDeleteRange(delete))],
            failure: Vec::new(),
        };
        let done = Store(self.0.clone()).txn(&txn).await?;
        Ok(Response::new(pb::ResignResponse { header: done.header }))
    }
}

fn named(leader: Option<pb::LeaderKey>) -> Result<pb::LeaderKey, Status> {
    leader.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))
}

impl Store {
    /// Puts what a leader proclaims, if it still leads.
    async fn proclaim(
        &self,
        key: &[u8],
        revision: i64,
        lease: i64,
        value: &[u8],
    ) -> Result<Option<ResponseHeader>, Status> {
        let put = PutRequest { key: key.to_vec(), value: value.to_vec(), lease, ..PutRequest::default() };
        let txn = TxnRequest {
            compare: vec![created_at(key, revision)],
            success: vec![step(Step::RequestPut(put))],
            failure: Vec::new(),
        };
        let done = self.txn(&txn).await?;
        if !done.succeeded {
            return Err(Status::unknown("election: not leader"));
        }
        Ok(done.header)
    }
}

/// Tells who leads, and what it proclaims, each time that one of them changes.
struct Observer {
    store: Store,
    prefix: Vec<u8>,
    /// From the revision on after the last look.
    watch: Option<Watch>,
    /// The key and revision that were told last.
    told: Option<(Vec<u8>, i64)>,
}

impl Observer {
    async fn next(&mut self) -> Result<pb::LeaderResponse, Status> {
        loop {
            let found = self.store.first(&self.prefix).await?;
            let (header, leader) = (found.header, found.kvs.into_iter().next());
            if let Some(kv) = leader.filter(|kv| self.is_news(kv)) {
                self.told = Some((kv.key.clone(), kv.mod_revision));
                return Ok(pb::LeaderResponse { header, kv: Some(kv) });
            }
            self.wait(header.unwrap_or_default().revision).await?;
        }
    }

    fn is_news(&self, kv: &KeyValue) -> bool {
        self.told.as_ref().is_none_or(|(key, revision)| *key != kv.key || *revision != kv.mod_revision)
    }

    /// Waits until something has happened to the keys after a revision.
    async fn wait(&mut self, seen: i64) -> Result<(), Status> {
        let seen = Revision(seen.unsigned_abs());
        let mut watch = match self.watch.take() {
            Some(watch) => watch,
            None => {
                let spec = WatchSpec::of(KeySpan::prefix(self.prefix.clone()).map_err(|why| said(&why))?);
                let spec = WatchSpec { from: Some(seen.next()), ..spec };
                let front = &self.store.0;
                front.node().watch(&front.machine, spec).await.map_err(|why| said(&why))?
            }
        };
        loop {
            match watch.next().await.map_err(|why| said(&why))? {
                Watched::Events(events) if events.revision > seen => break,
                Watched::Events(_) | Watched::Progress(_) => {}
            }
        }
        self.watch = Some(watch);
        Ok(())
    }
}
