//! What is measured: requests of etcd's API through plain stubs, one at a time from each client.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use statehouse::proto::etcd::etcdserverpb::lease_client::LeaseClient;
use statehouse::proto::etcd::etcdserverpb::raw::kv_client::KvClient;
use statehouse::proto::etcd::etcdserverpb::raw::watch_client::WatchClient;
use statehouse::proto::etcd::etcdserverpb::watch_request::RequestUnion;
use statehouse::proto::etcd::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, WatchCreateRequest, WatchRequest,
};
use statehouse_kv::messages::{EventType, PutRequest, RangeRequest};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::servers::Servers;

const KEYS: u64 = 10_000;
const VALUE_BYTES: usize = 256;
/// Watchers of one key, on so many connections.
const WATCHERS: usize = 1_000;
const WATCHERS_PER_CONNECTION: usize = 100;
/// Puts that are watched, one after the other.
const WATCHED_PUTS: usize = 50;
/// Keep-alives that are under way on a stream.
const UNDER_WAY: usize = 100;

/// What one request is.
#[derive(Clone, Copy)]
pub enum Kind {
    Put,
    Linearizable,
    Serializable,
    /// Puts and linearizable reads by turns.
    Half,
    Grant,
}

/// The rows that are a kind of request, from so many clients on so many connections.
pub const ROWS: [(&str, Kind, usize, usize); 9] = [
    ("put 1x1", Kind::Put, 1, 1),
    ("put 10x100", Kind::Put, 10, 100),
    ("put 100x1000", Kind::Put, 100, 1_000),
    ("linearizable read 1x1", Kind::Linearizable, 1, 1),
    ("linearizable read 10x100", Kind::Linearizable, 10, 100),
    ("linearizable read 100x1000", Kind::Linearizable, 100, 1_000),
    ("serializable read 10x100", Kind::Serializable, 10, 100),
    ("half and half 10x100", Kind::Half, 10, 100),
    ("lease grants 10x100", Kind::Grant, 10, 100),
];

/// Leases that end, each with a key, and the seconds that they live.
const ENDING: usize = 500;
const ENDING_TTL_S: u64 = 5;

/// How a row went.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub cpu_us_each: f64,
}

/// Counts what a row did.
fn figures(servers: &Servers, cpu_before_us: u64, time: Duration, mut took_us: Vec<u32>) -> Figures {
    assert!(!took_us.is_empty(), "nothing was done");
    took_us.sort_unstable();
    let at = |share: f64| f64::from(took_us[(share * (took_us.len() - 1) as f64) as usize]) / 1_000.0;
    let count = took_us.len() as f64;
    Figures {
        per_second: count / time.as_secs_f64(),
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        cpu_us_each: (servers.cpu_us() - cpu_before_us) as f64 / count,
    }
}

async fn connect(servers: &Servers) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", servers.leader)).expect("an address");
    endpoint.connect().await.expect("it listens")
}

fn key(number: u64) -> Vec<u8> {
    format!("key{:05}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS).into_bytes()
}

async fn one(channel: &Channel, kind: Kind, number: u64) {
    let mut kv = KvClient::new(channel.clone());
    let serializable = matches!(kind, Kind::Serializable);
    match kind {
        Kind::Grant => {
            let grant = LeaseGrantRequest { ttl: 600, id: 0 };
            LeaseClient::new(channel.clone()).lease_grant(grant).await.expect("granted");
        }
        Kind::Put => put(&mut kv, key(number)).await,
        Kind::Half if number.is_multiple_of(2) => put(&mut kv, key(number)).await,
        Kind::Half | Kind::Linearizable | Kind::Serializable => {
            let range = RangeRequest { key: key(number), serializable, ..RangeRequest::default() };
            kv.range(range).await.expect("answered");
        }
    }
}

async fn put(kv: &mut KvClient<Channel>, key: Vec<u8>) {
    let put = PutRequest { key, value: vec![b'v'; VALUE_BYTES], ..PutRequest::default() };
    kv.put(put).await.expect("written");
}

/// So many clients, each with one request at a time.
pub async fn requests(servers: &Servers, kind: Kind, shape: (usize, usize), time: Duration) -> Figures {
    let mut connections = Vec::new();
    for _ in 0..shape.0 {
        connections.push(connect(servers).await);
    }
    let (cpu, end) = (servers.cpu_us(), Instant::now() + time);
    let tasks: Vec<_> = (0..shape.1)
        .map(|client| {
            let channel = connections[client % connections.len()].clone();
            tokio::spawn(async move {
                let mut took = Vec::new();
                for number in client as u64 * 7_919.. {
                    let begun = Instant::now();
                    if begun >= end {
                        break;
                    }
                    one(&channel, kind, number).await;
                    took.push(begun.elapsed().as_micros() as u32);
                }
                took
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.expect("a client does not panic"));
    }
    figures(servers, cpu, time, all)
}

/// From the sending of a put to its event, at each of a thousand watchers.
pub async fn watched(servers: &Servers) -> Figures {
    let (events, mut seen) = mpsc::channel(WATCHERS);
    let mut kept = Vec::new();
    for _ in 0..WATCHERS / WATCHERS_PER_CONNECTION {
        let channel = connect(servers).await;
        for _ in 0..WATCHERS_PER_CONNECTION {
            let (sender, requests) = watch_of("watched", "").await;
            kept.push(sender);
            let mut client = WatchClient::new(channel.clone());
            let mut answers = client.watch(requests).await.expect("a stream").into_inner();
            assert!(answers.next().await.expect("an answer").expect("no error").created);
            let events = events.clone();
            tokio::spawn(async move {
                while let Some(Ok(answer)) = answers.next().await {
                    for _ in answer.events {
                        // Nobody waits for more at the end.
                        let _ = events.send(Instant::now()).await;
                    }
                }
            });
        }
    }
    let mut kv = KvClient::new(connect(servers).await);
    let (cpu, start, mut took) = (servers.cpu_us(), Instant::now(), Vec::new());
    for _ in 0..WATCHED_PUTS {
        let begun = Instant::now();
        put(&mut kv, b"watched".to_vec()).await;
        for _ in 0..WATCHERS {
            let at = seen.recv().await.expect("the watchers are there");
            took.push(at.duration_since(begun).as_micros() as u32);
        }
    }
    figures(servers, cpu, start.elapsed(), took)
}

/// From the moment at which a lease is over, counted from the answer to its grant, to the event of its key.
pub async fn ended(servers: &Servers) -> Figures {
    let channel = connect(servers).await;
    let (_open, requests) = watch_of("ending/", "ending0").await;
    let mut watch = WatchClient::new(channel.clone());
    let mut events = watch.watch(requests).await.expect("a stream").into_inner();
    assert!(events.next().await.expect("an answer").expect("no error").created);
    let (mut kv, mut leases) = (KvClient::new(channel.clone()), LeaseClient::new(channel));
    let (cpu, start) = (servers.cpu_us(), Instant::now());
    let mut over_at = HashMap::new();
    for number in 0..ENDING {
        let grant = LeaseGrantRequest { ttl: ENDING_TTL_S as i64, id: 0 };
        let lease = leases.lease_grant(grant).await.expect("granted").into_inner().id;
        let key = format!("ending/{number}").into_bytes();
        over_at.insert(key.clone(), Instant::now() + Duration::from_secs(ENDING_TTL_S));
        kv.put(PutRequest { key, lease, ..PutRequest::default() }).await.expect("written");
    }
    let mut late_us = Vec::new();
    while late_us.len() < ENDING {
        let answer = events.next().await.expect("the watch goes on").expect("no error");
        let now = Instant::now();
        for event in answer.events.iter().filter(|event| event.r#type() == EventType::Delete) {
            let key = &event.kv.as_ref().expect("a key").key;
            late_us.push(now.saturating_duration_since(over_at[&key[..]]).as_micros() as u32);
        }
    }
    figures(servers, cpu, start.elapsed(), late_us)
}

/// The requests of a stream with one watch, of a span, which goes on for as long as the first is kept.
async fn watch_of(
    start: &'static str,
    end: &'static str,
) -> (mpsc::Sender<WatchRequest>, ReceiverStream<WatchRequest>) {
    let (sender, requests) = mpsc::channel(1);
    let create =
        WatchCreateRequest { key: start.into(), range_end: end.into(), ..WatchCreateRequest::default() };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    sender.send(request).await.expect("there is room for one");
    (sender, ReceiverStream::new(requests))
}

/// Keep-alives of one lease on one stream, a hundred under way.
pub async fn kept_alive(servers: &Servers, time: Duration) -> Figures {
    let mut client = LeaseClient::new(connect(servers).await);
    let id =
        client.lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await.expect("granted").into_inner().id;
    let (sender, requests) = mpsc::channel(UNDER_WAY);
    let mut sent = std::collections::VecDeque::new();
    for _ in 0..UNDER_WAY {
        sent.push_back(Instant::now());
        sender.send(LeaseKeepAliveRequest { id }).await.expect("there is room");
    }
    let mut answers =
        client.lease_keep_alive(ReceiverStream::new(requests)).await.expect("a stream").into_inner();
    let (cpu, end, mut took) = (servers.cpu_us(), Instant::now() + time, Vec::new());
    while Instant::now() < end {
        let answer = answers.next().await.expect("an answer").expect("no error");
        assert_eq!(answer.ttl, 600, "the lease is there");
        took.push(sent.pop_front().expect("as many as answers").elapsed().as_micros() as u32);
        sent.push_back(Instant::now());
        sender.send(LeaseKeepAliveRequest { id }).await.expect("the stream is open");
    }
    figures(servers, cpu, time, took)
}
