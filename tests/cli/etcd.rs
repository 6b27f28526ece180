//! etcd's API as its clients see it: what can be shown without etcd. `tests/etcd` compares the two.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use statehouse::proto::etcd::authpb::Permission;
use statehouse::proto::etcd::etcdserverpb as pb;
use statehouse::proto::etcd::etcdserverpb::auth_client::AuthClient;
use statehouse::proto::etcd::etcdserverpb::cluster_client::ClusterClient;
use statehouse::proto::etcd::etcdserverpb::lease_client::LeaseClient;
use statehouse::proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use statehouse::proto::etcd::etcdserverpb::raw::kv_client::KvClient;
use statehouse::proto::etcd::etcdserverpb::raw::watch_client::WatchClient;
use statehouse::proto::etcd::etcdserverpb::watch_request::RequestUnion;
use statehouse::proto::etcd::v3electionpb as election;
use statehouse::proto::etcd::v3electionpb::election_client::ElectionClient;
use statehouse::proto::etcd::v3lockpb as lock;
use statehouse::proto::etcd::v3lockpb::lock_client::LockClient;
use statehouse_kv::messages::{
    CompactionRequest, DeleteRangeRequest, EventType, PutRequest, RangeRequest, Request, RequestOp,
    SortOrder, TxnRequest,
};
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::calls;
use super::process::{Node, directory, program};

fn serve(data: &Path) -> Node {
    Node::serve(data, &["--etcd", "127.0.0.1:0"])
}

async fn channel(address: &str) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("it listens")
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }
}

fn get(key: &str) -> RangeRequest {
    RangeRequest { key: key.into(), ..RangeRequest::default() }
}

fn everything() -> RangeRequest {
    RangeRequest { key: vec![0], range_end: vec![0], ..RangeRequest::default() }
}

#[track_caller]
fn said<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>, code: Code, text: &str) {
    let status = answer.expect_err("a refusal");
    assert_eq!((status.code(), status.message()), (code, text));
}

/// A stream of watches, as a client has it.
struct Watcher {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

impl Watcher {
    async fn connect(channel: Channel) -> Watcher {
        let (requests, asked) = mpsc::channel::<pb::WatchRequest>(16);
        let asked = stream::unfold(asked, |mut asked| async { Some((asked.recv().await?, asked)) });
        let answers = WatchClient::new(channel).watch(asked).await.expect("a stream").into_inner();
        Watcher { requests, answers }
    }

    async fn ask(&self, request: RequestUnion) {
        let request = pb::WatchRequest { request_union: Some(request) };
        self.requests.send(request).await.expect("the stream is open");
    }

    async fn create(&self, create: pb::WatchCreateRequest) {
        self.ask(RequestUnion::CreateRequest(create)).await;
    }

    async fn next(&mut self) -> pb::WatchResponse {
        let next = tokio::time::timeout(Duration::from_secs(20), self.answers.next()).await;
        next.expect("an answer in time").expect("an open stream").expect("no error")
    }
}

fn all_keys(start_revision: i64) -> pb::WatchCreateRequest {
    let all = pb::WatchCreateRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    pb::WatchCreateRequest { start_revision, ..all }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_put_read_deleted_and_compacted_as_in_etcd() {
    let directory = directory();
    let node = serve(directory.path());
    let mut kv = KvClient::new(channel(&node.etcd[0]).await);
    for (request, revision) in [(put("a", "1"), 2), (put("b", "2"), 3), (put("a", "3"), 4)] {
        let header = kv.put(request).await.expect("put").into_inner().header.expect("a header");
        assert_eq!(header.revision, revision);
        assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term > 0, "{header:?}");
    }
    let found = kv.range(get("a")).await.expect("found").into_inner();
    assert_eq!((found.count, found.more, found.kvs[0].value.as_slice()), (1, false, &b"3"[..]));
    assert_eq!((found.kvs[0].create_revision, found.kvs[0].mod_revision, found.kvs[0].version), (2, 4, 2));
    let past = RangeRequest { revision: 3, serializable: true, ..get("a") };
    assert_eq!(kv.range(past.clone()).await.expect("found").into_inner().kvs[0].value, b"1");

    let steps = [Request::RequestPut(put("c", "4")), Request::RequestRange(get("c"))];
    let success = steps.into_iter().map(|step| RequestOp { request: Some(step) }).collect();
    let done = kv.txn(TxnRequest { success, ..TxnRequest::default() }).await.expect("done").into_inner();
    assert_eq!((done.succeeded, done.responses.len()), (true, 2));
    let delete = DeleteRangeRequest { key: "c".into(), ..DeleteRangeRequest::default() };
    assert_eq!(kv.delete_range(delete).await.expect("deleted").into_inner().deleted, 1);
    kv.compact(CompactionRequest { revision: 4, physical: true }).await.expect("compacted");

    let (invalid, range) = (Code::InvalidArgument, Code::OutOfRange);
    said(kv.put(put("", "1")).await, invalid, "etcdserver: key is not provided");
    said(kv.range(past).await, range, "etcdserver: mvcc: required revision has been compacted");
    let future = RangeRequest { revision: 99, ..get("a") };
    said(kv.range(future).await, range, "etcdserver: mvcc: required revision is a future revision");
    let sorted = RangeRequest { sort_target: 77, ..get("a") };
    said(kv.range(sorted).await, invalid, "etcdserver: invalid sort option");
    let leased = PutRequest { lease: 77, ..put("a", "1") };
    said(kv.put(leased).await, Code::NotFound, "etcdserver: requested lease not found");
    let large = put("a", &"v".repeat(1_600 << 10));
    said(kv.put(large).await, invalid, "etcdserver: request is too large");
    let too_large = kv.put(put("a", &"v".repeat(3 << 20))).await;
    let text = format!("grpc: received message larger than max ({} vs. 2097152)", (3 << 20) + 8);
    said(too_large, Code::ResourceExhausted, &text);
    // A put of what was deleted to the end of the keys is where etcd 3.5 crashed.
    let to_the_end = DeleteRangeRequest { key: "a".into(), range_end: vec![0], prev_kv: false };
    let again = PutRequest { ignore_value: true, ..put("b", "") };
    let steps = [Request::RequestDeleteRange(to_the_end), Request::RequestPut(again)];
    let success = steps.into_iter().map(|step| RequestOp { request: Some(step) }).collect();
    let crash = kv.txn(TxnRequest { success, ..TxnRequest::default() }).await;
    said(crash, invalid, "etcdserver: duplicate key given in txn request");

    node.kill();
    let node = serve(directory.path());
    let mut kv = KvClient::new(channel(&node.etcd[0]).await);
    assert_eq!(kv.range(get("b")).await.expect("found").into_inner().kvs[0].value, b"2");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_read_and_what_nobody_has_is_refused_in_etcds_words() {
    let directory = directory();
    let node = serve(directory.path());
    let channel = channel(&node.etcd[0]).await;
    let methods = calls::methods();
    for (of, told) in calls::unreadable(&channel).await {
        let streams = of.split(' ').next().and_then(|path| methods.get(path)).expect("a method");
        let due = match streams {
            true => "Internal grpc: failed to unmarshal the received message",
            false => "Internal grpc: error unmarshalling request",
        };
        assert_eq!(told, due, "{of}");
    }
    // A known field in another encoding is read by nobody but the machine.
    for (method, bytes) in [("Range", b"\x08\x01"), ("Put", b"\x08\x01"), ("Txn", b"\x08\x01")] {
        let path = format!("/etcdserverpb.KV/{method}");
        let told = calls::said(&channel, &path, false, Bytes::from_static(bytes)).await;
        assert!(told.starts_with("Internal grpc: error unmarshalling request: "), "{path}: {told}");
    }
    for (path, told) in calls::unknown(&channel).await {
        let due = match path[1..].rsplit_once('/') {
            None => format!("malformed method name: {path:?}"),
            Some((service, method))
                if methods.keys().any(|path| path[1..].starts_with(&format!("{service}/"))) =>
            {
                format!("unknown method {method} for service {service}")
            }
            Some((service, _)) => format!("unknown service {service}"),
        };
        assert_eq!(told, format!("Unimplemented {due}"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn balancers_are_told_that_the_node_serves() {
    let directory = directory();
    let node = serve(directory.path());
    let mut health = HealthClient::new(channel(&node.etcd[0]).await);
    let of = |service: &str| HealthCheckRequest { service: service.into() };
    // The first report is made by a task of its own.
    let mut watched = health.watch(of("")).await.expect("a stream").into_inner();
    while watched.next().await.expect("a status").expect("no error").status() != ServingStatus::Serving {}
    assert_eq!(health.check(of("")).await.expect("checked").into_inner().status(), ServingStatus::Serving);
    said(health.check(of("etcdserverpb.KV")).await, Code::NotFound, "unknown service");
    let mut unknown = health.watch(of("etcdserverpb.KV")).await.expect("a stream").into_inner();
    let first = unknown.next().await.expect("a status").expect("no error");
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    // Who watches does not hold up a node that stops.
    node.signal(rustix::process::Signal::TERM);
    assert!(unknown.next().await.is_none_or(|told| told.is_err()), "the stream ends");
    assert_eq!(node.end().0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_roles_are_refused_as_where_authentication_is_disabled() {
    let directory = directory();
    let node = serve(directory.path());
    let mut auth = AuthClient::new(channel(&node.etcd[0]).await);
    let (invalid, failed) = (Code::InvalidArgument, Code::FailedPrecondition);
    said(auth.role_add(pb::AuthRoleAddRequest::default()).await, invalid, "etcdserver: role name is empty");
    said(auth.user_add(pb::AuthUserAddRequest::default()).await, invalid, "etcdserver: user name is empty");
    let nobody = auth.user_grant_role(pb::AuthUserGrantRoleRequest::default()).await;
    said(nobody, failed, "etcdserver: user name not found");
    for (key, range_end, code, text) in [
        ("", "", invalid, "etcdserver: invalid auth management"),
        ("b", "a", invalid, "etcdserver: invalid auth management"),
        ("b", "b", invalid, "etcdserver: invalid auth management"),
        ("b", "", failed, "etcdserver: role name not found"),
        ("b", "c", failed, "etcdserver: role name not found"),
        ("b", "\0", failed, "etcdserver: role name not found"),
    ] {
        let perm = Permission { key: key.into(), range_end: range_end.into(), ..Permission::default() };
        let asked = pb::AuthRoleGrantPermissionRequest { name: "r".into(), perm: Some(perm) };
        said(auth.role_grant_permission(asked).await, code, text);
    }
    let nothing = pb::AuthRoleGrantPermissionRequest { name: "r".into(), perm: None };
    said(auth.role_grant_permission(nothing).await, invalid, "etcdserver: permission not given");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_machine_answers_at_once_is_put_together() {
    let directory = directory();
    let node = serve(directory.path());
    let mut kv = KvClient::new(channel(&node.etcd[0]).await).max_decoding_message_size(64 << 20);
    let value = "v".repeat(700 << 10);
    for number in 0..9 {
        kv.put(put(&format!("k{number}"), &value)).await.expect("put");
    }
    let all = everything();
    let found = kv.range(all.clone()).await.expect("found").into_inner();
    assert_eq!((found.kvs.len(), found.count, found.more), (9, 9, false));
    assert!(found.kvs.iter().enumerate().all(|(n, kv)| kv.key == format!("k{n}").into_bytes()));
    let found = kv.range(RangeRequest { limit: 8, ..all }).await.expect("found").into_inner();
    assert_eq!((found.kvs.len(), found.count, found.more), (8, 9, true));
    assert_eq!(found.header.expect("a header").revision, 10);
    let downwards = RangeRequest { sort_order: SortOrder::Descend.into(), ..everything() };
    let text = "statehouse: the answer is over 4194304 bytes: set a limit and continue after the last key";
    said(kv.range(downwards).await, Code::ResourceExhausted, text);

    // While others write it is still one state, and its header says which: clients watch from there on.
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let mut writer = kv.clone();
    let writing = tokio::spawn(async move {
        let mut written = 0;
        while stopped.try_recv().is_err() {
            writer.put(put(&format!("z{written:06}"), "")).await.expect("put");
            written += 1;
        }
        written
    });
    for _ in 0..10 {
        let found = kv.range(everything()).await.expect("found").into_inner();
        let revision = found.header.expect("a header").revision;
        assert_eq!(found.kvs.len() as i64, revision - 1, "each key has a revision of its own");
    }
    stop.send(()).expect("it writes");
    assert!(writing.await.expect("no panic") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_that_is_named_answers_and_has_the_same_keys_for_everybody() {
    let directory = directory();
    let node = Node::serve(directory.path(), &["--etcd", "127.0.0.1:0", "--machine", "settings"]);
    let mut kv = KvClient::new(channel(&node.etcd[0]).await);
    kv.put(put("a", "1")).await.expect("put");
    assert_eq!(node.run(["kv", "--machine", "settings", "get", "a"]).ok(), "1");
    node.run(["kv", "get", "a"]).failed(1, &["no machine is called \"kv\""]);
    node.run(["kv", "--machine", "settings", "put", "b", "2"]).ok();
    assert_eq!(kv.range(get("b")).await.expect("found").into_inner().kvs[0].value, b"2");
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_begin_in_the_past_now_or_in_the_future_and_say_how_far_they_are() {
    let directory = directory();
    let node = serve(directory.path());
    let channel = channel(&node.etcd[0]).await;
    let mut kv = KvClient::new(channel.clone());
    let mut watcher = Watcher::connect(channel).await;
    kv.put(put("a", "1")).await.expect("put");
    kv.put(put("a", "2")).await.expect("put");

    watcher.create(pb::WatchCreateRequest { prev_kv: true, ..all_keys(2) }).await;
    let created = watcher.next().await;
    assert!(created.created && !created.canceled, "{created:?}");
    assert_eq!((created.watch_id, created.header.expect("a header").revision), (0, 3));
    let mut told = Vec::new();
    while told.len() < 2 {
        told.extend(watcher.next().await.events);
    }
    let seen: Vec<_> = told
        .iter()
        .map(|event| {
            let value = |kv: &statehouse_kv::messages::KeyValue| kv.value.clone();
            (event.kv.as_ref().map(value), event.prev_kv.as_ref().map(value))
        })
        .collect();
    assert_eq!(seen, [(Some(b"1".to_vec()), None), (Some(b"2".to_vec()), Some(b"1".to_vec()))]);

    // Not before revision 5, and no puts.
    let filters = vec![pb::watch_create_request::FilterType::Noput.into()];
    watcher.create(pb::WatchCreateRequest { watch_id: 7, filters, ..all_keys(5) }).await;
    assert_eq!(watcher.next().await.watch_id, 7);
    let delete = DeleteRangeRequest { key: "a".into(), ..DeleteRangeRequest::default() };
    kv.delete_range(delete.clone()).await.expect("deleted");
    kv.put(put("a", "3")).await.expect("put");
    kv.delete_range(delete).await.expect("deleted");
    let mut of_seven = Vec::new();
    let mut of_zero = 0;
    while of_zero < 3 || of_seven.is_empty() {
        let answer = watcher.next().await;
        match answer.watch_id {
            0 => of_zero += answer.events.len(),
            _ => of_seven.extend(answer.events),
        }
    }
    let revision = of_seven[0].kv.as_ref().map(|kv| kv.mod_revision);
    assert_eq!((of_seven.len(), of_seven[0].r#type(), revision), (1, EventType::Delete, Some(6)));

    watcher.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    let progress = watcher.next().await;
    assert_eq!((progress.watch_id, progress.header.expect("a header").revision), (-1, 6));
    watcher.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 7 })).await;
    let canceled = watcher.next().await;
    assert!(canceled.canceled && canceled.watch_id == 7, "{canceled:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_when_its_client_has_said_all() {
    let directory = directory();
    let node = serve(directory.path());
    let events = calls::half_closed(&channel(&node.etcd[0]).await).await;
    let values: Vec<_> = events.into_iter().filter_map(|event| Some(event.kv?.value)).collect();
    assert_eq!(values, [b"1", b"2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_too_large_for_a_message_come_in_parts() {
    let directory = directory();
    let node = serve(directory.path());
    let channel = channel(&node.etcd[0]).await;
    let mut kv = KvClient::new(channel.clone());
    let mut watchers = Vec::new();
    for fragment in [true, false] {
        let mut watcher = Watcher::connect(channel.clone()).await;
        watcher.create(pb::WatchCreateRequest { prev_kv: true, fragment, ..all_keys(0) }).await;
        assert!(watcher.next().await.created);
        watchers.push(watcher);
    }
    // Together with what they were before, two of them are more than a message.
    for value in ["1", "2"] {
        let large = value.repeat(700 << 10);
        let steps = ["a", "b"].map(|key| Request::RequestPut(put(key, &large)));
        let success = steps.map(|step| RequestOp { request: Some(step) }).into();
        kv.txn(TxnRequest { success, ..TxnRequest::default() }).await.expect("done");
    }
    let parts = async |watcher: &mut Watcher, parts: usize| {
        let mut seen = Vec::new();
        for _ in 0..parts {
            let part = watcher.next().await;
            let revision = part.header.expect("a header").revision;
            let events = part.events.iter().map(|event| {
                let key = event.kv.as_ref().expect("a key").key.clone();
                (String::from_utf8(key).expect("text"), event.prev_kv.is_some())
            });
            seen.push((revision, part.fragment, events.collect::<Vec<_>>()));
        }
        seen
    };
    let event = |key: &str, previous| (key.to_owned(), previous);
    let first = (2, false, vec![event("a", false), event("b", false)]);
    let in_parts = [(3, true, vec![event("a", true)]), (3, false, vec![event("b", true)])];
    assert_eq!(parts(&mut watchers[0], 3).await, [vec![first.clone()], in_parts.to_vec()].concat());
    let whole = (3, false, vec![event("a", true), event("b", true)]);
    assert_eq!(parts(&mut watchers[1], 2).await, [first, whole]);
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_of_what_is_compacted_and_of_nothing_are_canceled() {
    let directory = directory();
    let node = serve(directory.path());
    let channel = channel(&node.etcd[0]).await;
    let mut kv = KvClient::new(channel.clone());
    let mut watcher = Watcher::connect(channel).await;
    for value in ["1", "2", "3", "4"] {
        kv.put(put("a", value)).await.expect("put");
    }
    kv.compact(CompactionRequest { revision: 5, physical: false }).await.expect("compacted");
    watcher.create(all_keys(2)).await;
    let created = watcher.next().await;
    assert!(created.created && created.watch_id == 0, "{created:?}");
    let canceled = watcher.next().await;
    assert_eq!((canceled.canceled, canceled.watch_id, canceled.compact_revision), (true, 0, 5));

    for (create, why) in [
        (pb::WatchCreateRequest { watch_id: 0, ..all_keys(-1) }, "required revision has been compacted"),
        (pb::WatchCreateRequest { range_end: "a".into(), key: "b".into(), ..all_keys(0) }, "range is empty"),
    ] {
        watcher.create(create).await;
        let refused = watcher.next().await;
        assert!(refused.created && refused.canceled && refused.watch_id == -1, "{refused:?}");
        assert!(refused.cancel_reason.contains(why), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_keep_etcds_seconds_and_take_their_keys_along() {
    let directory = directory();
    let node = serve(directory.path());
    let channel = channel(&node.etcd[0]).await;
    let (mut leases, mut kv) = (LeaseClient::new(channel.clone()), KvClient::new(channel));
    let granted = leases.lease_grant(pb::LeaseGrantRequest { ttl: 1, id: 7 }).await.expect("granted");
    // No shorter time is granted than etcd's shortest.
    assert_eq!((granted.get_ref().id, granted.get_ref().ttl), (7, 2));
    let again = leases.lease_grant(pb::LeaseGrantRequest { ttl: 5, id: 7 }).await;
    said(again, Code::FailedPrecondition, "etcdserver: lease already exists");
    let long = leases.lease_grant(pb::LeaseGrantRequest { ttl: 9_000_000_001, id: 8 }).await;
    said(long, Code::OutOfRange, "etcdserver: too large lease TTL");
    for key in ["a", "b"] {
        kv.put(PutRequest { lease: 7, ..put(key, "1") }).await.expect("put");
    }
    let asked = pb::LeaseTimeToLiveRequest { id: 7, keys: true };
    let shown = leases.lease_time_to_live(asked).await.expect("shown").into_inner();
    assert_eq!((shown.granted_ttl, shown.keys), (2, vec!["a".into(), "b".into()]));
    let ids = [7, 99, 7].map(|id| pb::LeaseKeepAliveRequest { id });
    let kept = leases.lease_keep_alive(stream::iter(ids)).await.expect("a stream").into_inner();
    let kept: Vec<_> =
        kept.map(|kept| kept.map(|kept| (kept.id, kept.ttl)).expect("no error")).collect().await;
    assert_eq!(kept, [(7, 2), (99, 0), (7, 2)]);
    let begun = Instant::now();
    while kv.range(get("a")).await.expect("answered").into_inner().count == 1 {
        assert!(begun.elapsed() < Duration::from_secs(20), "the lease does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let shown = leases.lease_time_to_live(asked).await.expect("shown").into_inner();
    assert_eq!((shown.ttl, shown.granted_ttl), (-1, 0));
    let gone = leases.lease_revoke(pb::LeaseRevokeRequest { id: 7 }).await;
    said(gone, Code::NotFound, "etcdserver: requested lease not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_take_any_request_and_locks_and_elections_pass_on() {
    let directory = directory();
    let mut command = program();
    command.args(["dev", "--json", "--nodes", "3", "--client", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    command.args(["--etcd", "127.0.0.1:0", "--data-dir"]).arg(directory.path());
    let node = Node::start(&mut command);
    let mut channels = Vec::new();
    for address in &node.etcd {
        channels.push(channel(address).await);
    }
    let [one, two, three] = &channels[..] else { panic!("three nodes, not {:?}", node.etcd) };
    let members = ClusterClient::new(one.clone()).member_list(pb::MemberListRequest::default()).await;
    let mut addresses: Vec<_> = members
        .expect("listed")
        .into_inner()
        .members
        .into_iter()
        .flat_map(|member| member.client_ur_ls)
        .collect();
    addresses.sort_unstable();
    let mut due: Vec<_> = node.etcd.iter().map(|address| format!("http://{address}")).collect();
    due.sort_unstable();
    assert_eq!(addresses, due);

    let mut watcher = Watcher::connect(three.clone()).await;
    watcher.create(all_keys(0)).await;
    assert!(watcher.next().await.created);
    KvClient::new(one.clone()).put(put("a", "1")).await.expect("put");
    let found = KvClient::new(two.clone()).range(get("a")).await.expect("found").into_inner();
    assert_eq!(found.kvs[0].value, b"1");
    assert_eq!(watcher.next().await.events.len(), 1);
    // A hash of the same revision is the same everywhere.
    let mut hashes = Vec::new();
    for channel in [one, two, three] {
        // Each has it by then.
        KvClient::new(channel.clone()).range(get("a")).await.expect("found");
        let asked = pb::HashKvRequest { revision: 2 };
        let hashed =
            MaintenanceClient::new(channel.clone()).hash_kv(asked).await.expect("hashed").into_inner();
        hashes.push((hashed.hash, hashed.hash_revision));
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0] && hash.1 == 2), "{hashes:?}");

    a_lock_passes_on([one, two, three]).await;
    leadership_passes_on([one, two, three]).await;
}

/// The second waits for the lock until the first gives it back.
async fn a_lock_passes_on([one, two, three]: [&Channel; 3]) {
    let held = LockClient::new(one.clone()).lock(lock::LockRequest { name: "l".into(), lease: 0 }).await;
    let held = held.expect("locked").into_inner().key;
    let mut second = LockClient::new(two.clone());
    let waiting =
        tokio::spawn(async move { second.lock(lock::LockRequest { name: "l".into(), lease: 0 }).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "two hold the lock");
    LockClient::new(three.clone()).unlock(lock::UnlockRequest { key: held }).await.expect("unlocked");
    waiting.await.expect("no panic").expect("locked");
}

async fn leadership_passes_on([one, two, three]: [&Channel; 3]) {
    fn campaign(value: &'static str) -> election::CampaignRequest {
        election::CampaignRequest { name: "e".into(), lease: 0, value: value.into() }
    }
    let mut elections = ElectionClient::new(one.clone());
    let asked = election::LeaderRequest { name: "e".into() };
    said(elections.leader(asked.clone()).await, Code::Unknown, "election: no leader");
    let first = elections.campaign(campaign("first")).await.expect("elected").into_inner().leader;
    let mut seen =
        ElectionClient::new(three.clone()).observe(asked.clone()).await.expect("seen").into_inner();
    let mut leader = async || {
        let told = seen.next().await.expect("an open stream").expect("no error");
        told.kv.expect("a leader").value
    };
    assert_eq!(leader().await, b"first");
    let proclaim = election::ProclaimRequest { leader: first.clone(), value: "more".into() };
    elections.proclaim(proclaim.clone()).await.expect("proclaimed");
    assert_eq!(leader().await, b"more");
    let mut rival = ElectionClient::new(two.clone());
    let waiting = tokio::spawn(async move { rival.campaign(campaign("second")).await });
    elections.resign(election::ResignRequest { leader: first }).await.expect("resigned");
    waiting.await.expect("no panic").expect("elected");
    assert_eq!(leader().await, b"second");
    said(elections.proclaim(proclaim).await, Code::Unknown, "election: not leader");
}
