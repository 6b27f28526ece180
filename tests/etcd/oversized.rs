//! Messages that are larger than a server takes, to a method of each of etcd's services, alone and behind
//! others in a stream: the code and the text of the refusal must be etcd's, and the connection goes on.

use futures_util::stream;
use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::server::Server;

/// What etcd takes as one message.
const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// More than that, by one byte and by far.
const SIZES: [usize; 3] = [MESSAGE_BYTES_MAX + 1, 5 << 20, 40 << 20];

/// Methods of one request.
const UNARY: [&str; 16] = [
    "etcdserverpb.KV/Range",
    "etcdserverpb.KV/Put",
    "etcdserverpb.KV/DeleteRange",
    "etcdserverpb.KV/Txn",
    "etcdserverpb.KV/Compact",
    "etcdserverpb.Lease/LeaseGrant",
    "etcdserverpb.Lease/LeaseTimeToLive",
    "etcdserverpb.Cluster/MemberList",
    "etcdserverpb.Maintenance/Status",
    "etcdserverpb.Maintenance/HashKV",
    "etcdserverpb.Auth/Authenticate",
    "v3lockpb.Lock/Lock",
    "v3lockpb.Lock/Unlock",
    "v3electionpb.Election/Campaign",
    "v3electionpb.Election/Leader",
    "v3electionpb.Election/Resign",
];

/// Methods whose requests are a stream.
const STREAMS: [&str; 2] = ["etcdserverpb.Watch/Watch", "etcdserverpb.Lease/LeaseKeepAlive"];

/// A message of any service's, with a field that none of them knows.
#[derive(Clone, PartialEq, Message)]
struct Padded {
    #[prost(bytes = "vec", tag = "1000")]
    padding: Vec<u8>,
}

impl Padded {
    /// One of so many bytes.
    fn of(bytes: usize) -> Padded {
        let padded = |frame: usize| Padded { padding: vec![0; bytes - frame] };
        // How long the frame is, the length within it decides.
        (3..10).map(padded).find(|padded| padded.encoded_len() == bytes).expect("a length for these bytes")
    }
}

fn path(method: &str) -> PathAndQuery {
    PathAndQuery::from_maybe_shared(format!("/{method}")).expect("a path")
}

async fn client(channel: &Channel) -> Grpc<Channel> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.expect("connected");
    client
}

async fn unary(channel: &Channel, method: &str, message: Padded) -> Result<(), Status> {
    let codec: ProstCodec<Padded, Padded> = ProstCodec::default();
    let answer = client(channel).await.unary(Request::new(message), path(method), codec).await;
    answer.map(drop)
}

/// How a stream ends that such a message comes on, behind one that is fine.
async fn streamed(channel: &Channel, method: &str, message: Padded) -> Result<(), Status> {
    let codec: ProstCodec<Padded, Padded> = ProstCodec::default();
    let messages = stream::iter([Padded::default(), message]);
    let answers = client(channel).await.streaming(Request::new(messages), path(method), codec).await;
    let mut answers = answers?.into_inner();
    while answers.message().await?.is_some() {}
    Ok(())
}

fn said(answer: Result<(), Status>) -> String {
    match answer {
        Ok(()) => "no error".into(),
        Err(status) => format!("{:?} {:?}", status.code(), status.message()),
    }
}

/// What two servers said differently, or not as etcd's gRPC library does.
pub async fn differences(first: &Server, second: &Server) -> Vec<String> {
    let channels = [first.channel().await, second.channel().await];
    let mut differences = Vec::new();
    for size in SIZES {
        for (method, is_stream) in
            UNARY.map(|method| (method, false)).into_iter().chain(STREAMS.map(|m| (m, true)))
        {
            let due = format!("grpc: received message larger than max ({size} vs. {MESSAGE_BYTES_MAX})");
            let due = said(Err(Status::new(Code::ResourceExhausted, due)));
            let mut told = Vec::new();
            for channel in &channels {
                let message = Padded::of(size);
                told.push(match is_stream {
                    false => said(unary(channel, method, message).await),
                    true => said(streamed(channel, method, message).await),
                });
            }
            if told.iter().any(|told| *told != due) {
                differences.push(format!("{method}, {size} bytes: {told:?}"));
            }
        }
    }
    for channel in &channels {
        assert_eq!(
            said(unary(channel, "etcdserverpb.Maintenance/Status", Padded::default()).await),
            "no error"
        );
    }
    differences
}
