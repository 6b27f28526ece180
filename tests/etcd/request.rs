//! The requests that both sides are sent, and how one is sent: to the typed stubs, one answer as text.
//!
//! Promises: a request is a value, so the same one goes to both sides and can be printed whole.

use statehouse::proto::etcd::etcdserverpb::lease_client::LeaseClient;
use statehouse::proto::etcd::etcdserverpb::raw::kv_client::KvClient;
use statehouse::proto::etcd::etcdserverpb::raw::watch_client::WatchClient;
use statehouse::proto::etcd::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    WatchCreateRequest,
};
use statehouse_kv::messages::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, TxnRequest,
};
use tokio_stream::StreamExt;
use tonic::Status;
use tonic::transport::Channel;

use super::answer::{Answer, Compared, failed};

/// Larger than any answer here: a limit of the client's would hide what the server does.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// One request, of any kind.
#[derive(Clone, Debug)]
pub enum Request {
    Range(RangeRequest),
    RangeStream(RangeRequest),
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    LeaseGrant(LeaseGrantRequest),
    LeaseRevoke(LeaseRevokeRequest),
    LeaseTimeToLive(LeaseTimeToLiveRequest),
    LeaseLeases,
    /// Several on one stream, which the client then half-closes.
    KeepAlive(Vec<i64>),
    /// A new watch on one of the streams of watches.
    Watch(usize, WatchCreateRequest),
    CancelWatch(usize, i64),
    /// Wait until every watch of a stream has had everything.
    Settle(usize),
}

/// The stubs of one server.
#[derive(Clone)]
pub struct Stubs {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    watch: WatchClient<Channel>,
}

impl Stubs {
    pub fn new(channel: Channel) -> Stubs {
        Stubs {
            kv: KvClient::new(channel.clone())
                .max_decoding_message_size(ANSWER_BYTES_MAX)
                .max_encoding_message_size(ANSWER_BYTES_MAX),
            lease: LeaseClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            watch: WatchClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX),
        }
    }

    pub fn watch(&self) -> WatchClient<Channel> {
        self.watch.clone()
    }

    /// Sends a request and waits for all of its answer. Watches are not for here.
    pub async fn send(&self, request: Request) -> Answer {
        let (mut kv, mut lease) = (self.kv.clone(), self.lease.clone());
        match request {
            Request::Range(range) => told(kv.range(range).await),
            Request::RangeStream(range) => self.range_stream(range).await,
            Request::Put(put) => told(kv.put(put).await),
            Request::DeleteRange(delete) => told(kv.delete_range(delete).await),
            Request::Txn(txn) => told(kv.txn(txn).await),
            Request::Compact(compact) => told(kv.compact(compact).await),
            Request::LeaseGrant(grant) => told(lease.lease_grant(grant).await),
            Request::LeaseRevoke(revoke) => told(lease.lease_revoke(revoke).await),
            Request::LeaseTimeToLive(ask) => told(lease.lease_time_to_live(ask).await),
            Request::LeaseLeases => told(lease.lease_leases(LeaseLeasesRequest {}).await),
            Request::KeepAlive(ids) => self.keep_alive(ids).await,
            Request::Watch(..) | Request::CancelWatch(..) | Request::Settle(_) => {
                unreachable!("watches have streams of their own")
            }
        }
    }

    /// How a server cuts the keys into messages is its own affair: they are joined.
    async fn range_stream(&self, range: RangeRequest) -> Answer {
        let mut stream = match self.kv.clone().range_stream(range).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return failed(&status),
        };
        let mut joined = RangeResponse::default();
        while let Some(part) = stream.next().await {
            match part {
                Ok(part) => join(&mut joined, part.range_response.unwrap_or_default()),
                Err(status) => return failed(&status),
            }
        }
        joined.answer()
    }

    async fn keep_alive(&self, ids: Vec<i64>) -> Answer {
        let requests: Vec<_> = ids.into_iter().map(|id| LeaseKeepAliveRequest { id }).collect();
        let mut stream = match self.lease.clone().lease_keep_alive(tokio_stream::iter(requests)).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return failed(&status),
        };
        let mut all = Answer::default();
        while let Some(answer) = stream.next().await {
            all.add(told(answer.map(tonic::Response::new)));
        }
        all
    }
}

fn join(joined: &mut RangeResponse, part: RangeResponse) {
    joined.header = part.header.or(joined.header);
    joined.more |= part.more;
    joined.count = joined.count.max(part.count);
    joined.kvs.extend(part.kvs);
}

fn told<M: Compared>(result: Result<tonic::Response<M>, Status>) -> Answer {
    match result {
        Ok(answer) => answer.into_inner().answer(),
        Err(status) => failed(&status),
    }
}
