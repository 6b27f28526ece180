//! What a client makes of each way in which a connection can fail a request: nodes that speak just enough
//! HTTP/2 (RFC 9113) to fail it in that way. The first node of each client does; the second tells whether it
//! was asked then.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
/// More than any stream has.
const ALL_STREAMS: u32 = 0x7fff_ffff;

/// What a node does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Resets its stream for this reason.
    Reset(u32),
    /// Says that it goes, for this reason, and that it looks at no stream above the request's or at none.
    GoAway { reason: u32, looks_at_it: bool },
    /// Closes the connection.
    Close,
    /// Says nothing.
    Nothing,
}

/// A node that fails every request in one way, and counts them.
struct FailingNode {
    address: String,
    requests: Arc<AtomicUsize>,
}

impl FailingNode {
    async fn start(way: Way) -> FailingNode {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, way, counted.clone()));
            }
        });
        FailingNode { address, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Reads frames until the client is gone, and fails each request.
async fn serve(mut stream: TcpStream, way: Way, requests: Arc<AtomicUsize>) -> std::io::Result<()> {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    assert_eq!(preface, PREFACE);
    send(&mut stream, SETTINGS, 0, &[]).await?;
    loop {
        let (kind, id) = receive(&mut stream).await?;
        if kind != HEADERS {
            continue;
        }
        requests.fetch_add(1, Ordering::SeqCst);
        match way {
            Way::Reset(reason) => send(&mut stream, RST_STREAM, id, &reason.to_be_bytes()).await?,
            Way::GoAway { reason, looks_at_it } => {
                let last = if looks_at_it { id } else { 0 };
                go_away(&mut stream, last, reason).await?;
                // Else whoever still writes would not come to read it.
                tokio::time::sleep(Duration::from_millis(200)).await;
                return Ok(());
            }
            Way::Close => return Ok(()),
            Way::Nothing => {}
        }
    }
}

async fn go_away(stream: &mut TcpStream, last: u32, reason: u32) -> std::io::Result<()> {
    let payload = [last.to_be_bytes(), reason.to_be_bytes()].concat();
    send(stream, GOAWAY, 0, &payload).await
}

async fn send(stream: &mut TcpStream, kind: u8, id: u32, payload: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let frame = [&length[1..], &[kind, 0], &id.to_be_bytes(), payload].concat();
    stream.write_all(&frame).await
}

/// The kind and the stream of the next frame.
async fn receive(stream: &mut TcpStream) -> std::io::Result<(u8, u32)> {
    let mut header = [0; 9];
    stream.read_exact(&mut header).await?;
    let mut payload = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
    stream.read_exact(&mut payload).await?;
    Ok((header[3], u32::from_be_bytes([header[5], header[6], header[7], header[8]])))
}

/// What a command ends with whose first node fails it in this way, and whether another was asked.
async fn told(way: Way) -> (Error, bool) {
    let (first, second) =
        (FailingNode::start(way).await, FailingNode::start(Way::Reset(REFUSED_STREAM)).await);
    let client = Client::new([&first.address, &second.address]).unwrap();
    let error = client.apply("kv", "x").await.unwrap_err();
    assert_eq!(first.requests(), 1, "it was to be asked once");
    (error, second.requests() > 0)
}

#[tokio::test]
async fn what_a_node_did_not_look_at_is_tried_at_the_next() {
    for way in [Way::Reset(REFUSED_STREAM), Way::GoAway { reason: NO_ERROR, looks_at_it: false }] {
        let (error, went_on) = told(way).await;
        assert!(matches!(error, Error::Unavailable(_)), "{way:?}: {error:?}");
        assert!(went_on, "{way:?}: it gave up with {error:?}");
    }
}

#[tokio::test]
async fn what_a_node_may_have_done_is_never_sent_again() {
    let ways = [
        Way::Reset(INTERNAL_ERROR),
        Way::Reset(CANCEL),
        Way::Reset(NO_ERROR),
        Way::GoAway { reason: NO_ERROR, looks_at_it: true },
        Way::GoAway { reason: INTERNAL_ERROR, looks_at_it: true },
        Way::Close,
    ];
    for way in ways {
        let (error, went_on) = told(way).await;
        assert!(matches!(error, Error::Unknown(_) | Error::DeadlineExceeded(_)), "{way:?}: {error:?}");
        assert!(!went_on, "{way:?}: it was sent twice");
    }
}

/// A node that takes leave of each connection at once: what is sent on it nobody looks at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_ends_before_the_request_was_sent_leaves_nothing_in_doubt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut preface = [0; PREFACE.len()];
                stream.read_exact(&mut preface).await?;
                send(&mut stream, SETTINGS, 0, &[]).await?;
                // As nodes do: first that it will go, then that it looked at nothing; and reads to the end.
                go_away(&mut stream, ALL_STREAMS, NO_ERROR).await?;
                go_away(&mut stream, 0, NO_ERROR).await?;
                while receive(&mut stream).await.is_ok() {}
                Ok::<(), std::io::Error>(())
            });
        }
    });
    let second = FailingNode::start(Way::Reset(REFUSED_STREAM)).await;
    for round in 1..=200 {
        let client = Client::new([&address, &second.address]).unwrap();
        let error = client.apply("kv", "x").await.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
        assert_eq!(second.requests(), round, "{error:?}");
    }
}

#[tokio::test]
async fn a_node_without_an_answer_is_not_asked_first_the_next_time() {
    let (mute, other) = (FailingNode::start(Way::Nothing).await, FailingNode::start(Way::Close).await);
    let client = Client::new([&mute.address, &other.address]).unwrap();
    let hasty = client.clone().with_timeout(Duration::from_millis(100));
    let error = hasty.apply("kv", "x").await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded(_)), "{error:?}");
    assert_eq!((mute.requests(), other.requests()), (1, 0));
    for _ in 0..2 {
        assert!(matches!(client.apply("kv", "x").await, Err(Error::Unknown(_))));
        // That one breaks its connections: then the first has another turn.
        assert!(hasty.apply("kv", "x").await.is_err());
    }
    assert_eq!((mute.requests(), other.requests()), (3, 2));
}
