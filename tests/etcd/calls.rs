//! Calls that no client makes: bytes that are no message, methods that nobody has, fields that nobody knows,
//! to every method of every service, by the descriptors; and streams that are closed on one side. What a
//! server says of it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use futures_util::stream;
use prost_reflect::DescriptorPool;
use statehouse::proto::etcd::DESCRIPTORS;
use statehouse::proto::etcd::etcdserverpb::raw::kv_client::KvClient;
use statehouse::proto::etcd::etcdserverpb::raw::watch_client::WatchClient;
use statehouse::proto::etcd::etcdserverpb::watch_request::RequestUnion;
use statehouse::proto::etcd::etcdserverpb::{WatchCreateRequest, WatchRequest};
use statehouse_kv::messages::{Event, PutRequest};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Half a number; more bytes than come; fields without a number, and of no type.
const UNREADABLE: [&[u8]; 4] = [b"\xff", b"\x0a\x05k", b"\x00\x00", b"\x0f\x01"];

/// Fields that no message of etcd has: a number, bytes, eight bytes.
const UNKNOWN_FIELDS: &[u8] = b"\x80\x7d\x05\x8a\x7d\x02hi\x91\x7d12345678";

/// Methods that are not asked with a field that they do not know: what they do with nothing is another
/// matter.
const ANSWERED_OTHERWISE: [&str; 1] = ["/etcdserverpb.Maintenance/Downgrade"];

/// What was said, by what it was said of.
pub type Told = BTreeMap<String, String>;

/// What a server says of bytes that do not read: the code, and the words before the parser's own.
pub async fn unreadable(channel: &Channel) -> Told {
    let mut told = Told::new();
    for (path, streams) in methods() {
        for bytes in UNREADABLE {
            let answer = said(channel, &path, streams, Bytes::from_static(bytes)).await;
            let words = answer.splitn(3, ": ").take(2).collect::<Vec<_>>().join(": ");
            told.insert(format!("{path} {}", bytes.escape_ascii()), words);
        }
    }
    told
}

/// What a server says of methods and services that are not there.
pub async fn unknown(channel: &Channel) -> Told {
    let mut told = Told::new();
    let services = methods().into_keys().filter_map(|path| Some(path.rsplit_once('/')?.0.to_owned()));
    let of_each = services
        .flat_map(|service| ["/Nothing", "/", "", "/x/Range"].map(|behind| format!("{service}{behind}")));
    for path in of_each.chain(["/nobody.Service/Range".to_owned(), "/nothing".to_owned()]) {
        told.insert(path.clone(), said(channel, &path, false, Bytes::new()).await);
    }
    told
}

/// What a server says of messages with nothing but fields that it does not know.
pub async fn padded(channel: &Channel) -> Told {
    let mut told = Told::new();
    for (path, streams) in methods() {
        if ANSWERED_OTHERWISE.contains(&&*path) {
            continue;
        }
        let known: &[u8] = match path.rsplit('/').next() {
            // Of a watch's messages only one that creates is answered; of those who wait at a name only one.
            Some("Watch") => b"\x0a\x00",
            Some("Lock") => b"\x0a\x04lock",
            _ => b"",
        };
        let message = Bytes::from([known, UNKNOWN_FIELDS].concat());
        told.insert(path.clone(), said(channel, &path, streams, message).await);
    }
    told
}

/// The events of a watch whose client says no more after its creation, and listens on.
pub async fn half_closed(channel: &Channel) -> Vec<Event> {
    let create = WatchCreateRequest { key: "half".into(), ..WatchCreateRequest::default() };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let watching = WatchClient::new(channel.clone()).watch(stream::iter([create])).await;
    let mut answers = watching.expect("a stream").into_inner();
    let mut next = async || {
        let answer = tokio::time::timeout(PATIENCE, answers.message()).await.expect("an answer in time");
        answer.expect("no error").expect("the stream goes on")
    };
    assert!(next().await.created);
    let mut events = Vec::new();
    for value in ["1", "2"] {
        let put = PutRequest { key: "half".into(), value: value.into(), ..PutRequest::default() };
        KvClient::new(channel.clone()).put(put).await.expect("put");
        events.extend(next().await.events);
    }
    events
}

/// What two servers said differently.
pub fn differences(first: &Told, second: &Told) -> Vec<String> {
    assert!(first.len() > 30 && first.keys().eq(second.keys()), "something was left out");
    let both = first.iter().zip(second.values());
    both.filter(|((_, a), b)| a != b).map(|((of, a), b)| format!("{of}: {a:?}, {b:?}")).collect()
}

/// The paths of all methods, and whether they are streams.
pub fn methods() -> BTreeMap<String, bool> {
    let pool = DescriptorPool::decode(DESCRIPTORS).expect("descriptors");
    let methods = pool.services().flat_map(|service| {
        let methods: Vec<_> = service.methods().collect();
        methods.into_iter().map(move |method| {
            let streams = method.is_client_streaming() || method.is_server_streaming();
            (format!("/{}/{}", service.full_name(), method.name()), streams)
        })
    });
    methods.collect()
}

/// The code and the words of a refusal, or that the first answer came.
pub async fn said(channel: &Channel, path: &str, streams: bool, message: Bytes) -> String {
    let answered = tokio::time::timeout(PATIENCE, ask(channel, path, streams, message)).await;
    match answered.unwrap_or_else(|_| panic!("{path}: no answer within {PATIENCE:?}")) {
        Ok(()) => "an answer".into(),
        Err(status) => format!("{:?} {}", status.code(), status.message()),
    }
}

async fn ask(channel: &Channel, path: &str, streams: bool, message: Bytes) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.expect("connected");
    let path = PathAndQuery::try_from(path).expect("a path");
    if !streams {
        return client.unary(Request::new(message), path, AsItIs).await.map(drop);
    }
    let messages = Request::new(stream::iter([message]));
    let mut answers: Streaming<Bytes> = client.streaming(messages, path, AsItIs).await?.into_inner();
    answers.message().await.map(drop)
}

/// Messages as bytes.
#[derive(Clone, Copy)]
struct AsItIs;

impl Codec for AsItIs {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = AsItIs;
    type Decoder = AsItIs;

    fn encoder(&mut self) -> AsItIs {
        AsItIs
    }

    fn decoder(&mut self) -> AsItIs {
        AsItIs
    }
}

impl Encoder for AsItIs {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for AsItIs {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}
