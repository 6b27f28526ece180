//! etcd's API on three nodes: what the one that is left of them answers, and how leadership and members
//! change. As etcd does; what can be shown without it.

use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::stream::{self, Stream};
use futures_util::{FutureExt, StreamExt};
use statehouse::proto::etcd::etcdserverpb as pb;
use statehouse::proto::etcd::etcdserverpb::cluster_client::ClusterClient;
use statehouse::proto::etcd::etcdserverpb::lease_client::LeaseClient;
use statehouse::proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use statehouse::proto::etcd::etcdserverpb::raw::kv_client::KvClient;
use statehouse::proto::etcd::etcdserverpb::raw::watch_client::WatchClient;
use statehouse::proto::etcd::etcdserverpb::watch_request::RequestUnion;
use statehouse_kv::messages::{PutRequest, RangeRequest, Request as Step, RequestOp, TxnRequest};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::killed::{ports, serve, wait_for_replicas};
use super::process::{Node, directory, page};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

const NO_LEADER: &str = "etcdserver: no leader";

/// The answers of a stream, whatever they say.
type Told = Pin<Box<dyn Stream<Item = Result<(), Status>>>>;

/// Three nodes as processes, each with etcd's API and a replica of `kv`.
struct Three {
    _directory: TempDir,
    nodes: Vec<Node>,
    channels: Vec<Channel>,
}

impl Three {
    async fn start() -> Three {
        let directory = directory();
        let ports = [ports(), ports(), ports()];
        let start = |number| {
            let mut command = serve(directory.path(), number, &ports);
            Node::start(command.args(["--etcd", "127.0.0.1:0"]))
        };
        let nodes: Vec<Node> = (0..3).map(start).collect();
        wait_for_replicas(&nodes[0], "kv");
        let mut channels = Vec::new();
        for node in &nodes {
            let endpoint = Channel::from_shared(format!("http://{}", node.etcd[0])).expect("an address");
            channels.push(endpoint.connect().await.expect("it listens"));
        }
        let three = Three { _directory: directory, nodes, channels };
        wait_until("each replica votes", async || {
            let mut voters = 0;
            for node in 0..3 {
                voters += usize::from(!three.status(node).await.is_learner);
            }
            voters == 3
        })
        .await;
        three
    }

    async fn status(&self, node: usize) -> pb::StatusResponse {
        let mut client = MaintenanceClient::new(self.channels[node].clone());
        client.status(pb::StatusRequest {}).await.expect("a status").into_inner()
    }

    fn kv(&self, node: usize) -> KvClient<Channel> {
        KvClient::new(self.channels[node].clone())
    }

    /// The ids of a node and of the leader that it knows, as etcd's clients see them.
    async fn leader(&self, node: usize) -> (u64, u64) {
        let status = self.status(node).await;
        (status.header.expect("a header").member_id, status.leader)
    }

    async fn move_leader(&self, node: usize, target_id: u64) -> Result<(), Status> {
        let mut client = MaintenanceClient::new(self.channels[node].clone());
        client.move_leader(pb::MoveLeaderRequest { target_id }).await.map(drop)
    }
}

/// Waits for something that is looked at again and again.
async fn wait_until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "after {PATIENCE:?} still not: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn put() -> PutRequest {
    PutRequest { key: "a".into(), value: "1".into(), ..PutRequest::default() }
}

fn get(serializable: bool) -> RangeRequest {
    RangeRequest { key: "a".into(), serializable, ..RangeRequest::default() }
}

fn txn(ranges: &[RangeRequest]) -> TxnRequest {
    let step = |range: &RangeRequest| RequestOp { request: Some(Step::RequestRange(range.clone())) };
    TxnRequest { success: ranges.iter().map(step).collect(), ..TxnRequest::default() }
}

/// A request that is to be served only while there is a leader.
fn led<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hasleader", "true".parse().expect("a value"));
    request
}

/// Messages of a client that says no more, but does not leave.
fn on_and_on<T: Send + 'static>(first: T) -> impl Stream<Item = T> + Send + 'static {
    stream::iter([first]).chain(stream::pending())
}

fn watch() -> impl Stream<Item = pb::WatchRequest> + Send + 'static {
    let create = pb::WatchCreateRequest { key: "a".into(), ..pb::WatchCreateRequest::default() };
    on_and_on(pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) })
}

#[track_caller]
fn said<T: std::fmt::Debug>(answer: Result<Response<T>, Status>, code: Code, text: &str) {
    let status = answer.expect_err("a refusal");
    assert_eq!((status.code(), status.message()), (code, text));
}

/// The status that a stream ends with; none if it goes on.
async fn end(mut stream: Told) -> Option<Status> {
    let ended = async {
        loop {
            match stream.next().await.expect("a status at the end") {
                Ok(_) => {}
                Err(status) => return status,
            }
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_three_nodes_answers_what_needs_no_leader_and_says_what_does() {
    only_the_last_is_left(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_does_a_leader_that_lost_the_others() {
    only_the_last_is_left(2).await;
}

/// Two nodes are killed while one of the three leads.
async fn only_the_last_is_left(leader: usize) {
    let mut three = Three::start().await;
    let (id, _) = three.leader(leader).await;
    wait_until("the leader leads", async || {
        let (_, leads) = three.leader(leader).await;
        let mut moved = leads == id;
        for node in 0..3 {
            // Refused by who does not lead, and as long as the next leader has not caught up.
            moved |= three.move_leader(node, id).await.is_ok();
        }
        moved
    })
    .await;
    three.kv(0).put(put()).await.expect("put");
    let found = || async { three.kv(2).range(get(true)).await.expect("answered").into_inner().count == 1 };
    wait_until("the key is on the last node", async || found().await).await;
    let last = three.channels[2].clone();
    let [renewed, watched, mut patient] = streams(&last).await;
    let of_last = three.nodes[2].etcd[0].clone();
    let serves = (200, r#"{"health":"true","reason":""}"#.to_owned());
    assert_eq!(page(&of_last, "/health"), serves);

    three.nodes.drain(..2).for_each(Node::kill);
    for ended in [end(renewed).await, end(watched).await] {
        let Some(status) = ended else {
            let (_, leads) = three.leader(2).await;
            let node = three.nodes.remove(0);
            node.signal(rustix::process::Signal::TERM);
            panic!("the stream goes on; the node believes that {leads:x} leads:\n{}", node.end().1);
        };
        assert_eq!((status.code(), status.message()), (Code::Unavailable, NO_LEADER));
    }
    // Who did not ask for a leader waits for one.
    assert!(patient.next().now_or_never().is_none(), "a watch that waits was ended");
    let cut_off = (503, r#"{"health":"false","reason":"RAFT NO LEADER"}"#.to_owned());
    assert_eq!(page(&of_last, "/health"), cut_off);
    assert_eq!(page(&of_last, "/health?serializable=true"), serves);
    what_wants_a_leader_is_refused(&last).await;
    what_needs_no_leader_is_answered(&last).await;
    what_waits_for_a_leader_times_out(&last).await;
}

/// Renewals and a watch that want a leader, and a watch that does not. Each was answered once.
async fn streams(last: &Channel) -> [Told; 3] {
    let mut leases = LeaseClient::new(last.clone());
    let lease = leases.lease_grant(pb::LeaseGrantRequest { ttl: 600, id: 7 }).await.expect("granted");
    let renewal = pb::LeaseKeepAliveRequest { id: lease.into_inner().id };
    let mut renewed = leases.lease_keep_alive(led(on_and_on(renewal))).await.expect("a stream").into_inner();
    assert_eq!(renewed.next().await.expect("an answer").expect("no error").ttl, 600);
    let mut watches = WatchClient::new(last.clone());
    let mut watched = watches.watch(led(watch())).await.expect("a stream").into_inner();
    assert!(watched.next().await.expect("an answer").expect("no error").created);
    let mut patient = watches.watch(watch()).await.expect("a stream").into_inner();
    assert!(patient.next().await.expect("an answer").expect("no error").created);
    let renewed = renewed.map(|answer| answer.map(drop));
    let [watched, patient] = [watched, patient].map(|stream| stream.map(|answer| answer.map(drop)));
    [Box::pin(renewed), Box::pin(watched), Box::pin(patient)]
}

async fn what_wants_a_leader_is_refused(last: &Channel) {
    let mut kv = KvClient::new(last.clone());
    said(kv.range(led(get(true))).await, Code::Unavailable, NO_LEADER);
    said(kv.put(led(put())).await, Code::Unavailable, NO_LEADER);
    let leases = LeaseClient::new(last.clone()).lease_leases(led(pb::LeaseLeasesRequest {})).await;
    said(leases, Code::Unavailable, NO_LEADER);
    let watching = WatchClient::new(last.clone()).watch(led(watch())).await;
    said(watching, Code::Unavailable, NO_LEADER);
}

async fn what_needs_no_leader_is_answered(last: &Channel) {
    let mut kv = KvClient::new(last.clone());
    let stale = kv.range(get(true)).await.expect("answered").into_inner();
    assert_eq!(stale.kvs[0].value, b"1");
    let stale = kv.txn(txn(&[get(true), get(true)])).await.expect("answered").into_inner();
    assert_eq!((stale.succeeded, stale.responses.len()), (true, 2));
    let asked = pb::MemberListRequest { linearizable: false };
    let listed = ClusterClient::new(last.clone()).member_list(asked).await.expect("listed");
    assert_eq!(listed.into_inner().members.len(), 3);
}

async fn what_waits_for_a_leader_times_out(last: &Channel) {
    let kv = KvClient::new(last.clone());
    let leases = LeaseClient::new(last.clone());
    let (mut get_kv, mut txn_kv, mut put_kv) = (kv.clone(), kv.clone(), kv);
    let (mut asking, mut revoking) = (leases.clone(), leases);
    let mut cluster = ClusterClient::new(last.clone());
    let (range, mixed, written, revoked, asked, members) = tokio::join!(
        get_kv.range(get(false)),
        txn_kv.txn(txn(&[get(true), get(false)])),
        put_kv.put(put()),
        revoking.lease_revoke(pb::LeaseRevokeRequest { id: 7 }),
        asking.lease_time_to_live(pb::LeaseTimeToLiveRequest { id: 7, keys: false }),
        cluster.member_list(pb::MemberListRequest { linearizable: true }),
    );
    let timed_out = "etcdserver: request timed out";
    said(range, Code::Unavailable, timed_out);
    said(mixed, Code::Unavailable, timed_out);
    said(members, Code::Unavailable, timed_out);
    // What etcd says when its log takes nothing.
    said(written, Code::DeadlineExceeded, "context deadline exceeded");
    said(revoked, Code::DeadlineExceeded, "context deadline exceeded");
    said(asked, Code::Unavailable, NO_LEADER);
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_and_a_member_leaves() {
    let three = Three::start().await;
    let mut ids = Vec::new();
    for node in 0..3 {
        ids.push(three.leader(node).await.0);
    }
    let leader = three.leader(0).await.1;
    let at = ids.iter().position(|id| *id == leader).expect("the leader is one of them");
    let (next, other) = ((at + 1) % 3, (at + 2) % 3);

    let not_leader = three.move_leader(next, ids[other]).await.map(Response::new);
    said(not_leader, Code::FailedPrecondition, "etcdserver: not leader");
    let nobody = three.move_leader(at, 4711).await.map(Response::new);
    said(nobody, Code::FailedPrecondition, "etcdserver: bad leader transferee");
    three.move_leader(at, ids[next]).await.expect("moved");
    wait_until("all know the new leader", async || {
        let mut known = 0;
        for node in 0..3 {
            known += usize::from(three.leader(node).await.1 == ids[next]);
        }
        known == 3
    })
    .await;
    three.kv(at).put(put()).await.expect("passed on to the new leader");
    revocations_are_told_with_their_revision(&three, next, at).await;

    let mut cluster = ClusterClient::new(three.channels[next].clone());
    let promoted = cluster.member_promote(pb::MemberPromoteRequest { id: ids[at] }).await;
    said(promoted, Code::FailedPrecondition, "etcdserver: can only promote a learner member");
    let nobody = cluster.member_remove(pb::MemberRemoveRequest { id: 4711 }).await;
    said(nobody, Code::NotFound, "etcdserver: member not found");
    let left = cluster.member_remove(pb::MemberRemoveRequest { id: ids[other] }).await.expect("removed");
    assert_eq!(member_ids(left.into_inner().members), sorted([ids[at], ids[next]]));
    let mut cluster = ClusterClient::new(three.channels[at].clone());
    wait_until("the member is gone everywhere", async || {
        let asked = pb::MemberListRequest { linearizable: true };
        let listed = cluster.member_list(asked).await.expect("listed").into_inner();
        member_ids(listed.members) == sorted([ids[at], ids[next]])
    })
    .await;
    let found = three.kv(at).range(get(false)).await.expect("found").into_inner();
    assert_eq!(found.kvs[0].value, b"1");
}

/// Also by a node that does not lead, and may not have applied them yet.
async fn revocations_are_told_with_their_revision(three: &Three, leader: usize, follower: usize) {
    let mut leases = LeaseClient::new(three.channels[follower].clone());
    let mut revision = 0;
    for _ in 0..50 {
        let granted = leases.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 }).await.expect("granted");
        let granted = granted.into_inner();
        assert!(granted.header.expect("a header").revision >= revision, "the grant is told of the past");
        let leased = PutRequest { key: "leased".into(), lease: granted.id, ..put() };
        let written = three.kv(leader).put(leased).await.expect("put").into_inner();
        let revoked = leases.lease_revoke(pb::LeaseRevokeRequest { id: granted.id }).await.expect("revoked");
        revision = revoked.into_inner().header.expect("a header").revision;
        assert_eq!(revision, written.header.expect("a header").revision + 1, "the key went with it");
    }
}

fn sorted(mut ids: [u64; 2]) -> Vec<u64> {
    ids.sort_unstable();
    ids.to_vec()
}

fn member_ids(members: Vec<pb::Member>) -> Vec<u64> {
    let mut ids: Vec<u64> = members.into_iter().map(|member| member.id).collect();
    ids.sort_unstable();
    ids
}
