//! The gateway before services that answer what their tests need.

use std::pin::Pin;

use axum::http::Request as HttpRequest;
use futures_util::Stream;
use prost::Message;
use prost_reflect::DescriptorPool;
use statehouse_kv::messages::{
    Compare, CompareResult, CompareTarget, KeyValue, PutRequest, RangeRequest, RangeResponse,
    Request as Operation, RequestOp, ResponseHeader, SortTarget, TargetUnion, TxnRequest,
};
use tonic::service::Routes;
use tower::Service;

use super::*;
use crate::api::etcd::bounds::{MESSAGE_BYTES_MAX, refuse_large};
use crate::proto::etcd::DESCRIPTORS;
use crate::proto::etcd::etcdserverpb::lease_client::LeaseClient;
use crate::proto::etcd::etcdserverpb::lease_server::{Lease, LeaseServer};
use crate::proto::etcd::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};
use crate::proto::etcd::v3electionpb::election_server::{Election, ElectionServer};
use crate::proto::etcd::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse,
};

type Answer<T> = Result<tonic::Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Leases and elections that tell what they were asked.
struct Echo;

#[tonic::async_trait]
impl Lease for Echo {
    type LeaseKeepAliveStream = Answers<LeaseKeepAliveResponse>;

    async fn lease_grant(&self, request: tonic::Request<LeaseGrantRequest>) -> Answer<LeaseGrantResponse> {
        let error = request.metadata().get("authorization").map(|token| token.to_str().unwrap().to_owned());
        let LeaseGrantRequest { id, ttl } = request.into_inner();
        let header = Some(ResponseHeader { cluster_id: u64::MAX, ..ResponseHeader::default() });
        Ok(LeaseGrantResponse { header, id, ttl, error: error.unwrap_or_default() }.into())
    }

    async fn lease_revoke(&self, _: tonic::Request<LeaseRevokeRequest>) -> Answer<LeaseRevokeResponse> {
        Err(Status::not_found("etcdserver: requested lease not found"))
    }

    async fn lease_keep_alive(
        &self,
        requests: tonic::Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Answer<Self::LeaseKeepAliveStream> {
        let answers = requests.into_inner().map(|request| {
            let id = request?.id;
            Ok(LeaseKeepAliveResponse { header: None, id, ttl: 60 })
        });
        Ok(tonic::Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        _: tonic::Request<LeaseTimeToLiveRequest>,
    ) -> Answer<LeaseTimeToLiveResponse> {
        Err(Status::unavailable(""))
    }

    async fn lease_leases(&self, _: tonic::Request<LeaseLeasesRequest>) -> Answer<LeaseLeasesResponse> {
        Ok(LeaseLeasesResponse::default().into())
    }
}

#[tonic::async_trait]
impl Election for Echo {
    type ObserveStream = Answers<LeaderResponse>;

    async fn observe(&self, request: tonic::Request<LeaderRequest>) -> Answer<Self::ObserveStream> {
        let name = request.into_inner().name;
        if name == "refused" {
            return Err(Status::out_of_range("refused at once"));
        }
        let key = KeyValue { key: name.to_vec(), ..KeyValue::default() };
        let won = LeaderResponse { header: None, kv: Some(key) };
        let answers = vec![Ok(won), Err(Status::unavailable("lost")), Ok(LeaderResponse::default())];
        Ok(tonic::Response::new(Box::pin(stream::iter(answers))))
    }

    async fn campaign(&self, _: tonic::Request<CampaignRequest>) -> Answer<CampaignResponse> {
        Err(Status::internal("not asked here"))
    }

    async fn proclaim(&self, _: tonic::Request<ProclaimRequest>) -> Answer<ProclaimResponse> {
        Err(Status::internal("not asked here"))
    }

    async fn leader(&self, _: tonic::Request<LeaderRequest>) -> Answer<LeaderResponse> {
        Err(Status::internal("not asked here"))
    }

    async fn resign(&self, _: tonic::Request<ResignRequest>) -> Answer<ResignResponse> {
        Err(Status::internal("not asked here"))
    }
}

fn router() -> Router {
    let services = Routes::new(LeaseServer::new(Echo)).add_service(ElectionServer::new(Echo));
    routes(refuse_large(services.into_axum_router()))
}

async fn ask(method: &str, path: &str, body: &str) -> (u16, String) {
    let request = HttpRequest::builder().method(method).uri(path).body(Body::from(body.to_owned()));
    let answer = router().call(request.unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn post(path: &str, body: &str) -> (u16, String) {
    ask("POST", path, body).await
}

fn said(status: u16, body: &str) -> (u16, String) {
    (status, body.to_owned())
}

#[tokio::test]
async fn a_request_is_answered_in_etcds_spelling() {
    let header = r#"{"header":{"cluster_id":"18446744073709551615"}"#;
    let whole = format!(r#"{header},"ID":"7","TTL":"60"}}"#);
    for body in [r#"{"ID": 7, "TTL": "60"}"#, r#"{"TTL":60,"unknown":[1],"ID":"7"} and what is behind"#] {
        assert_eq!(post("/v3/lease/grant", body).await, said(200, &whole));
    }
    assert_eq!(post("/v3beta/lease/grant", r#"{"ID":7,"TTL":60}"#).await, said(200, &whole));
    assert_eq!(
        post("/v3/lease/grant", "").await,
        said(200, &format!("{header}}}")),
        "no body: nothing in it"
    );
    assert_eq!(post("/v3/kv/lease/leases", "{}").await, said(200, "{}"));
}

#[tokio::test]
async fn what_goes_wrong_has_etcds_code_and_http_status() {
    let missing = r#"{"code":5,"message":"etcdserver: requested lease not found"}"#;
    assert_eq!(post("/v3/lease/revoke", "{}").await, said(404, missing));
    assert_eq!(post("/v3/kv/lease/revoke", "{}").await, said(404, missing));
    assert_eq!(post("/v3/lease/timetolive", "{}").await, said(503, r#"{"code":14}"#));
    let cut = r#"{"code":3,"message":"unexpected EOF"}"#;
    assert_eq!(post("/v3/lease/grant", r#"{"ID": "#).await, said(400, cut));
    for odd in ["]", r#"{"ID": "seven"}"#, r#"{"ID": {}}"#, "7", "null", r#"{"ID": 1.5}"#] {
        let (status, body) = post("/v3/lease/grant", odd).await;
        assert!(status == 400 && body.starts_with(r#"{"code":3,"message":""#), "{odd}: {status} {body}");
    }
    let not_allowed = r#"{"code":12,"message":"Method Not Allowed"}"#;
    assert_eq!(ask("GET", "/v3/lease/grant", "").await, said(501, not_allowed));
    let not_found = r#"{"code":5,"message":"Not Found"}"#;
    assert_eq!(post("/v3/lease/nothing", "{}").await, said(404, not_found));
    assert_eq!(post("/elsewhere", "{}").await, said(404, "404 page not found\n"));
    // Four characters are three bytes: 2,097,153, with five before them.
    let name = "AAAA".repeat(MESSAGE_BYTES_MAX.div_ceil(3));
    let too_large = r#"{"code":8,"message":"grpc: received message larger than max (2097158 vs. 2097152)"}"#;
    let request = format!(r#"{{"name":"{name}"}}"#);
    assert_eq!(post("/v3/election/leader", &request).await, said(429, too_large));
    let large = format!(r#"{{"ID":7,"unknown":"{}"}}"#, "x".repeat(REQUEST_BYTES_MAX));
    let (status, body) = post("/v3/lease/grant", &large).await;
    assert!(status == 429 && body.contains("6291456 bytes"), "{body}");
}

#[tokio::test]
async fn a_stream_is_a_line_for_each_answer() {
    let alive = r#"{"ID":"1"} {"ID":2}{"ID":3}"#;
    let lines: String =
        (1..4).map(|id| format!("{{\"result\":{{\"ID\":\"{id}\",\"TTL\":\"60\"}}}}\n")).collect();
    assert_eq!(post("/v3/lease/keepalive", alive).await, said(200, &lines));
    assert_eq!(post("/v3/lease/keepalive", "").await, said(200, ""));
    let won = "{\"result\":{\"kv\":{\"key\":\"YWJj\"}}}\n{\"error\":{\"code\":14,\"message\":\"lost\"}}\n";
    assert_eq!(post("/v3/election/observe", r#"{"name":"YWJj"}"#).await, said(200, won));
    let refused = "{\"error\":{\"code\":11,\"message\":\"refused at once\"}}\n";
    assert_eq!(post("/v3/election/observe", r#"{"name":"cmVmdXNlZA=="}"#).await, said(400, refused));
}

#[tokio::test]
async fn an_odd_message_in_a_stream_is_told_and_ends_it() {
    let (status, body) = post("/v3/lease/keepalive", r#"{"ID":1}nonsense{"ID":2}"#).await;
    let lines: Vec<&str> = body.lines().collect();
    let error = lines.last().unwrap();
    assert!(error.starts_with(r#"{"error":{"code":3,"message":"Failed to decode request: "#), "{body}");
    // Whether the first was answered before is a matter of time.
    assert!(lines.len() <= 2 && !body.contains(r#""ID":"2""#), "{body}");
    assert_eq!(status, if lines.len() == 2 { 200 } else { 400 }, "{body}");
}

#[tokio::test]
async fn messages_of_a_stream_may_come_in_any_pieces() {
    let text = r#" {"ID":1}{"ID":"22"} {"TTL":3,"ID":-1} "#;
    for size in 1..text.len() {
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
        let pieces: Vec<Result<Bytes, Status>> =
            pieces.into_iter().map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let (complaint, complained) = oneshot::channel();
        let messages = Messages::new(
            descriptor("etcdserverpb.LeaseGrantRequest"),
            Body::from_stream(stream::iter(pieces)),
            complaint,
        );
        let decoded = messages
            .into_stream()
            .map(|message| LeaseGrantRequest::decode(&*message.encode_to_vec()).map(|request| request.id));
        let ids: Result<Vec<i64>, _> = decoded.collect::<Vec<_>>().await.into_iter().collect();
        assert_eq!(ids.unwrap(), [1, 22, -1], "in pieces of {size} bytes");
        assert!(complained.await.is_err(), "nobody complained");
    }
}

#[tokio::test]
async fn a_message_of_a_stream_has_a_limit() {
    let (complaint, complained) = oneshot::channel();
    let piece = || Ok::<_, Status>(Bytes::from(vec![b'['; 64 << 10]));
    let body = Body::from_stream(stream::repeat_with(piece));
    let messages = Messages::new(descriptor("etcdserverpb.WatchRequest"), body, complaint);
    assert_eq!(messages.into_stream().collect::<Vec<_>>().await.len(), 0);
    let complaint = complained.await.unwrap();
    assert_eq!(complaint.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn metadata_browsers_probes_and_grpc_get_what_is_theirs() {
    let request = HttpRequest::post("/v3/lease/grant").header("Authorization", "token").body(Body::empty());
    let answer = router().call(request.unwrap()).await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], "*");
    assert_eq!(answer.headers()["content-type"], "application/json");
    let body = axum::body::to_bytes(answer.into_body(), 1_000).await.unwrap();
    assert!(body.ends_with(br#""error":"token"}"#), "the token is passed on");
    assert_eq!(ask("OPTIONS", "/v3/kv/put", "").await, said(200, ""));
    let versions = r#"{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
    assert_eq!(ask("GET", "/version", "").await, said(200, versions));
    assert_eq!(ask("POST", "/version", "").await, said(405, "Method Not Allowed\n"));
    // There is no service of keys here to read from.
    let (status, body) = ask("GET", "/health", "").await;
    assert!(status == 503 && body.starts_with(r#"{"health":"false","reason":"RANGE ERROR:"#), "{body}");
    let (status, body) = ask("GET", "/readyz", "").await;
    assert_eq!(status, 503);
    assert!(body.starts_with("[-]serializable_read failed: "), "{body}");
    assert!(body.contains("\n[-]linearizable_read failed: ") && body.ends_with("\n\n"), "{body}");
    let (_, body) = ask("GET", "/readyz?exclude=serializable_read", "").await;
    assert!(body.starts_with("[-]linearizable_read failed: "), "{body}");
    let excluded = "/readyz?verbose&exclude=serializable_read&exclude=linearizable_read&exclude=unknown";
    assert_eq!(ask("GET", excluded, "").await, said(200, "ok\n"));
    assert_eq!(ask("GET", "/readyz/linearizable_read", "").await.0, 503);
    assert_eq!(ask("GET", "/livez/serializable_read", "").await.0, 503);
    assert_eq!(ask("GET", "/livez", "").await, said(200, "ok\n"));
    let granted = LeaseClient::new(router()).lease_grant(LeaseGrantRequest { ttl: 1, id: 9 }).await.unwrap();
    assert_eq!(granted.into_inner().id, 9, "gRPC goes by as before");
    let status = Grpc::new(router())
        .unary(
            tonic::Request::new(DynamicMessage::new(descriptor("etcdserverpb.LeaseGrantRequest"))),
            PathAndQuery::from_static("/etcdserverpb.Nobody/Call"),
            DynamicCodec::new(descriptor("etcdserverpb.LeaseGrantResponse")),
        )
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unimplemented, "unknown service etcdserverpb.Nobody")
    );
}

fn descriptor(name: &str) -> prost_reflect::MessageDescriptor {
    DescriptorPool::decode(DESCRIPTORS).unwrap().get_message_by_name(name).unwrap()
}

fn read<M: Message + Default>(name: &str, json: &str) -> M {
    let mut messages = Messages::of_whole(descriptor(name), json.as_bytes());
    let message = messages.next_whole().unwrap().unwrap();
    M::decode(&*message.encode_to_vec()).unwrap()
}

#[test]
fn requests_are_read_in_every_spelling_that_etcd_reads() {
    let put = PutRequest { key: vec![0xfb, 0xff], value: b"v".into(), lease: -1, ..PutRequest::default() };
    let compare = Compare {
        key: b"k".into(),
        result: CompareResult::NotEqual.into(),
        target: CompareTarget::Value.into(),
        target_union: Some(TargetUnion::Value(b"w".into())),
        ..Compare::default()
    };
    let expected = TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request: Some(Operation::RequestPut(put)) }],
        failure: vec![],
    };
    for json in [
        r#"{"compare":[{"key":"aw==","result":"NOT_EQUAL","target":"VALUE","value":"dw=="}],
            "success":[{"request_put":{"key":"+/8=","value":"dg==","lease":"-1"}}]}"#,
        r#"{"success":[{"requestPut":{"lease":-1,"value":"dg","key":"-_8","nobody":null}}],
            "compare":[{"result":3,"target":3,"key":"aw","value":"dw"}],"failure":[]}"#,
    ] {
        assert_eq!(read::<TxnRequest>("etcdserverpb.TxnRequest", json), expected, "{json}");
    }
}

#[test]
fn odd_numbers_and_names_are_taken_as_etcd_takes_them() {
    let json = r#"{"key":"aw==","limit":1e3,"revision":"2","sort_order":"NOPE","sort_target":"MOD"}"#;
    let expected = RangeRequest {
        key: b"k".into(),
        limit: 1_000,
        revision: 2,
        sort_target: SortTarget::Mod.into(),
        ..RangeRequest::default()
    };
    assert_eq!(read::<RangeRequest>("etcdserverpb.RangeRequest", json), expected);
    let json = r#"{"key":"aw==","sort_order":77}"#;
    assert_eq!(read::<RangeRequest>("etcdserverpb.RangeRequest", json).sort_order, 77, "to be refused");
}

#[test]
fn answers_are_told_as_etcd_tells_them() {
    let kv = KeyValue {
        key: vec![0xfb, 0xff],
        create_revision: 2,
        mod_revision: 1 << 60,
        version: 1,
        ..KeyValue::default()
    };
    let header = Some(ResponseHeader { cluster_id: 1, member_id: 2, revision: 3, raft_term: 4 });
    let answer = RangeResponse { header, kvs: vec![kv], more: true, count: 9 };
    let descriptor = descriptor("etcdserverpb.RangeResponse");
    let message = DynamicMessage::decode(descriptor, &*answer.encode_to_vec()).unwrap();
    let json = String::from_utf8(to_json(&message).unwrap()).unwrap();
    let header = r#"{"cluster_id":"1","member_id":"2","revision":"3","raft_term":"4"}"#;
    let kv = r#"{"key":"+/8=","create_revision":"2","mod_revision":"1152921504606846976","version":"1"}"#;
    assert_eq!(json, format!(r#"{{"header":{header},"kvs":[{kv}],"more":true,"count":"9"}}"#));
}
