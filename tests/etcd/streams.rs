//! Streams of every kind that are opened and dropped, whole and broken: what they cost a server must be gone
//! when they are.

use std::fs;
use std::time::Duration;

use bytes::Bytes;
use statehouse::proto::etcd::etcdserverpb::lease_client::LeaseClient;
use statehouse::proto::etcd::etcdserverpb::raw::kv_client::KvClient;
use statehouse::proto::etcd::etcdserverpb::raw::watch_client::WatchClient;
use statehouse::proto::etcd::etcdserverpb::watch_request::RequestUnion;
use statehouse::proto::etcd::etcdserverpb::{LeaseKeepAliveRequest, WatchCreateRequest, WatchRequest};
use statehouse_kv::messages::PutRequest;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::server::Server;

/// How long a server may take to answer one, or to forget all.
const PATIENCE: Duration = Duration::from_secs(60);

/// Streams on one connection, one after the other, before the next connection.
const STREAMS_OF_A_CONNECTION: usize = 100;

/// What a process has of the system.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub memory_bytes: u64,
    pub sockets: usize,
    /// Of files, and of the system's own kinds. A database opens and closes some as it likes.
    pub others: usize,
}

/// Reads it from the system.
pub fn held(process: u32) -> Held {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).expect("Linux tells it");
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
    };
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).expect("it runs").flatten();
    let (sockets, others): (Vec<_>, Vec<_>) = descriptors
        // One that is closed meanwhile is none.
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .partition(|target| target.to_string_lossy().starts_with("socket:"));
    Held { memory_bytes: field("VmRSS:") * 1024, sockets: sockets.len(), others: others.len() }
}

/// Opens and drops so many streams, of all kinds in turn.
pub async fn open_and_drop(server: &Server, streams: usize) {
    for _ in 0..streams.div_ceil(STREAMS_OF_A_CONNECTION) {
        let channel = server.channel().await;
        for number in 0..STREAMS_OF_A_CONNECTION {
            let kind = one(server, &channel, number);
            timeout(PATIENCE, kind).await.unwrap_or_else(|_| panic!("stream {number} stands still"));
        }
    }
}

async fn one(server: &Server, channel: &Channel, number: usize) {
    match number % 10 {
        0..3 => dropped_watch(channel, number).await,
        3 => half_closed_watch(channel).await,
        4..6 => dropped_keep_alive(channel).await,
        6 => half_closed_keep_alive(channel).await,
        7 if number < 20 => oversized(channel).await,
        7 | 8 => broken_frame(server, number).await,
        _ => broken_connection(server, number).await,
    }
}

/// One request on a stream that stays open as long as what is held of it: a client's stream goes when neither
/// answers nor further requests are possible.
fn kept_open<M>(request: M) -> (mpsc::Sender<M>, ReceiverStream<M>) {
    let (sender, receiver) = mpsc::channel(1);
    assert!(sender.try_send(request).is_ok(), "there is room for one");
    (sender, ReceiverStream::new(receiver))
}

/// A watch of everything, dropped as soon as it is there; others before it is.
async fn dropped_watch(channel: &Channel, number: usize) {
    let create = WatchCreateRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        start_revision: (number % 2) as i64,
        ..WatchCreateRequest::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let (_until_the_end, requests) = kept_open(request);
    let mut client = WatchClient::new(channel.clone());
    let opening = client.watch(requests);
    if number.is_multiple_of(3) {
        // Not even its beginning is awaited.
        let _ = timeout(Duration::from_micros(50), opening).await;
        return;
    }
    let mut answers = opening.await.expect("a watch").into_inner();
    assert!(answers.next().await.expect("an answer").expect("no error").created);
}

/// A watch whose client will say nothing more. etcd goes on with it or ends it: it must not stay for ever.
async fn half_closed_watch(channel: &Channel) {
    let create = WatchCreateRequest { key: Bytes::from_static(b"half"), ..WatchCreateRequest::default() };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let mut client = WatchClient::new(channel.clone());
    if let Ok(answers) = client.watch(tokio_stream::once(request)).await {
        // Whatever it says first, or nothing.
        let _ = timeout(Duration::from_millis(5), answers.into_inner().next()).await;
    }
}

async fn dropped_keep_alive(channel: &Channel) {
    let (_until_the_end, requests) = kept_open(LeaseKeepAliveRequest { id: 4_711 });
    let answers = LeaseClient::new(channel.clone()).lease_keep_alive(requests).await.expect("a stream");
    let answer = answers.into_inner().next().await.expect("an answer").expect("no error");
    assert_eq!(answer.ttl, 0, "there is no such lease");
}

async fn half_closed_keep_alive(channel: &Channel) {
    let one = tokio_stream::once(LeaseKeepAliveRequest { id: 4_711 });
    let answers = LeaseClient::new(channel.clone()).lease_keep_alive(one).await.expect("a stream");
    let answers: Vec<_> = answers.into_inner().collect().await;
    assert_eq!(answers.len(), 1, "one answer, and then the end");
}

async fn oversized(channel: &Channel) {
    let put = PutRequest { key: b"k".to_vec(), value: vec![0; 3 << 20], ..PutRequest::default() };
    KvClient::new(channel.clone()).put(put).await.expect_err("too large");
}

/// Frames of HTTP/2 as they must be, and in them what is no message, or half of one.
async fn broken_frame(server: &Server, number: usize) {
    const BODIES: [&[u8]; 4] = [
        b"\0\0\0\0\x05\xff\xff\xff\xff\xff",
        b"\0\0\0\0\x20half",
        b"\x07\0\0\0\x01a",
        b"\0\xff\xff\xff\xffmore than anybody takes",
    ];
    let stream = TcpStream::connect(&server.address).await.expect("it listens");
    let (mut sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let driver = tokio::spawn(connection);
    let path = ["etcdserverpb.Watch/Watch", "etcdserverpb.KV/Put", "etcdserverpb.KV/Txn"][number % 3];
    let request = tonic::codegen::http::Request::post(format!("http://{}/{path}", server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a request");
    let (answer, mut body) = sender.send_request(request, false).expect("the connection is open");
    // The server may have had enough before the end.
    let _ = body.send_data(Bytes::from_static(BODIES[number / 10 % 4]), number % 20 < 10);
    let _ = timeout(Duration::from_millis(20), answer).await;
    driver.abort();
}

/// A connection that breaks off in the middle of a frame, or never spoke HTTP/2.
async fn broken_connection(server: &Server, number: usize) {
    const BEGINNINGS: [&[u8]; 3] = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x10\x04\0\0\0\0\0half",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{",
    ];
    let mut stream = TcpStream::connect(&server.address).await.expect("it listens");
    // The server may close first.
    let _ = stream.write_all(BEGINNINGS[number / 10 % 3]).await;
}

/// Waits until a process has no more sockets than before; what it has then.
pub async fn forgotten(process: u32, before: Held) -> Held {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = held(process);
        if now.sockets <= before.sockets || Instant::now() > deadline {
            return now;
        }
        sleep(Duration::from_millis(50)).await;
    }
}
