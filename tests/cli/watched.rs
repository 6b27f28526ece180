//! Watches from outside: the command, the client that goes on by itself, and the stream.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use statehouse::client::{Client, ClientWatch};
use statehouse::error::Error;
use statehouse::id::Revision;
use statehouse::node::request::{KeySpan, WatchSpec, Watched};
use statehouse::proto::v1;
use statehouse::proto::v1::create_watch::Keys;
use statehouse::proto::v1::watch_request::Request as Asked;
use statehouse::proto::v1::watch_response::Response as Told;
use statehouse::proto::v1::watches_client::WatchesClient;
use statehouse_kv::Call;
use statehouse_kv::messages::{KeyValue, PutRequest, Request as KvRequest, RequestOp, TxnRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::killed::ThreeNodes;
use super::process::{Node, directory};

const PATIENCE: Duration = Duration::from_secs(60);

fn node_with_kv(directory: &tempfile::TempDir, arguments: &[&str]) -> Node {
    let node = Node::serve(&directory.path().join("data"), arguments);
    node.run(["machine", "create", "kv", "--module", "builtin:kv"]).ok();
    node
}

#[test]
fn the_command_shows_a_line_an_event() {
    let directory = directory();
    let node = node_with_kv(&directory, &[]);
    node.run(["kv", "put", "user/1", "ann"]).ok();
    node.run(["kv", "put", "colour", "green"]).ok();
    node.run(["kv", "put", "user/1", "bob"]).ok();
    node.run(["kv", "del", "user/1"]).ok();
    let all = node.run(["watch", "kv", "--from", "1", "--limit", "4"]);
    assert_eq!(
        all.ok(),
        "2\tput\tuser/1\tann\n3\tput\tcolour\tgreen\n4\tput\tuser/1\tbob\n5\tdelete\tuser/1"
    );
    let users = node.run(["watch", "kv", "--prefix", "user/", "--from", "2", "--prev", "--limit", "3"]);
    assert_eq!(
        users.ok(),
        "2\tput\tuser/1\tann\n4\tput\tuser/1\tbob\tbefore: ann\n5\tdelete\tuser/1\tbefore: bob"
    );
    let span = ["watch", "kv", "--span", "a", "d", "--from", "2", "--limit", "1", "--json"];
    let shown = node.run(span).json();
    assert_eq!((&shown["revision"], &shown["type"]), (&json!(3), &json!("put")));
    assert_eq!((&shown["key"], &shown["value"]), (&json!("colour"), &json!("green")));
    assert_eq!((&shown["version"], &shown["mod_revision"]), (&json!(1), &json!(3)));
    let puts = node.run(["watch", "kv", "--key", "user/1", "--no-puts", "--from", "2", "--limit", "1"]);
    assert_eq!(puts.ok(), "5\tdelete\tuser/1");
}

#[test]
fn watches_that_make_no_sense_are_refused_with_the_reason() {
    let directory = directory();
    let node = node_with_kv(&directory, &[]);
    node.run(["watch", "kv", "--span", "b", "a"]).failed(1, &["inverted", "\"b\"", "\"a\""]);
    node.run(["watch", "kv", "--span", "a", "a"]).failed(1, &["empty"]);
    node.run(["watch", "kv", "--from", "9"]).failed(1, &["revision 9", "future", "at 1"]);
    node.run(["watch", "kv", "--no-puts", "--no-deletes"]).failed(1, &["see nothing"]);
    node.run(["watch", "nobody"]).failed(1, &["nobody"]);
    node.run(["watch", "kv", "--key", "a", "--prefix", "b"]).failed(2, &["--key"]);
    let told: Value =
        serde_json::from_str(&node.run(["watch", "kv", "--from", "9", "--json"]).stderr).unwrap();
    assert_eq!(told["error"]["reason"], "INVALID", "{told}");
}

/// What is told of watches on one stream, by id.
struct Stream {
    requests: mpsc::Sender<v1::WatchRequest>,
    responses: tonic::Streaming<v1::WatchResponse>,
}

impl Stream {
    async fn open(node: &Node) -> Stream {
        let (requests, queue) = mpsc::channel(64);
        let endpoint = tonic::transport::Channel::from_shared(format!("http://{}", node.client)).unwrap();
        let mut client = WatchesClient::new(endpoint.connect().await.unwrap());
        let responses = client.watch(ReceiverStream::new(queue)).await.unwrap().into_inner();
        Stream { requests, responses }
    }

    async fn ask(&self, request: Asked) {
        self.requests.send(v1::WatchRequest { request: Some(request) }).await.unwrap();
    }

    async fn create(&self, create: v1::CreateWatch) {
        self.ask(Asked::Create(create)).await;
    }

    async fn next(&mut self) -> (u64, Told) {
        let next = tokio::time::timeout(PATIENCE, self.responses.next()).await.expect("in time");
        let response = next.expect("the stream goes on").unwrap();
        (response.id, response.response.expect("it says something"))
    }

    async fn reason(&mut self, id: u64) -> String {
        match self.next().await {
            (told, Told::Canceled(canceled)) if told == id => canceled.failure.unwrap().reason,
            other => panic!("{id} is refused: {other:?}"),
        }
    }
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_watches_share_a_stream_and_end_one_by_one() {
    let directory = directory();
    let node = node_with_kv(&directory, &["--config", &limits(&directory, "stream_watches_max = 3")]);
    node.run(["machine", "create", "other", "--module", "builtin:kv"]).ok();
    let client = Client::connect([&node.client]).await.unwrap();
    let mut stream = Stream::open(&node).await;
    let watch =
        |id, machine: &str, keys| v1::CreateWatch { id, machine: machine.into(), keys, ..Default::default() };
    let key = |key: &'static str| Some(Keys::Key(key.into()));
    stream.create(watch(1, "", None)).await;
    assert_eq!(stream.reason(1).await, "INVALID");
    for (id, machine, keys) in [(1, "kv", key("a")), (2, "", key("b")), (3, "other", None)] {
        stream.create(watch(id, machine, keys)).await;
        let (told, Told::Created(created)) = stream.next().await else { panic!("{id} is created") };
        assert_eq!((told, created.revision), (id, 2));
    }
    stream.create(watch(2, "kv", None)).await;
    assert_eq!(stream.reason(2).await, "ALREADY_EXISTS");
    stream.create(watch(4, "kv", None)).await;
    assert_eq!(stream.reason(4).await, "OVERLOADED");

    client.apply("kv", put("b", "1").to_envelope()).await.unwrap();
    assert!(matches!(stream.next().await, (2, Told::Events(events)) if events.revision == 2 && !events.more));
    client.apply("other", put("x", "1").to_envelope()).await.unwrap();
    assert!(matches!(stream.next().await, (3, Told::Events(events)) if events.events[0].key == "x"));
    stream.ask(Asked::Progress(v1::AskProgress { id: 1 })).await;
    assert!(matches!(stream.next().await, (1, Told::Progress(progress)) if progress.revision == 2));

    stream.ask(Asked::Cancel(v1::CancelWatch { id: 2 })).await;
    assert!(matches!(stream.next().await, (2, Told::Canceled(canceled)) if canceled.failure.is_none()));
    stream.ask(Asked::Cancel(v1::CancelWatch { id: 2 })).await;
    assert_eq!(stream.reason(2).await, "NOT_FOUND");
    client.apply("kv", put("b", "2").to_envelope()).await.unwrap();
    client.apply("kv", put("a", "2").to_envelope()).await.unwrap();
    assert!(matches!(stream.next().await, (1, Told::Events(events)) if events.events[0].key == "a"));

    // A server that chooses the id; and a watch that is asked for what is past.
    stream.create(v1::CreateWatch { from_revision: 2, ..watch(0, "kv", None) }).await;
    let (chosen, told) = stream.next().await;
    assert!(chosen >= 1 << 63 && matches!(told, Told::Created(_)), "{chosen} {told:?}");
    for revision in 2..5 {
        let (told, Told::Events(events)) = stream.next().await else { panic!("events are due") };
        assert_eq!((told, events.revision), (chosen, revision));
    }
}

/// A configuration file with limits.
fn limits(directory: &tempfile::TempDir, text: &str) -> String {
    let path = directory.path().join("config.toml");
    std::fs::write(&path, format!("[limits]\n{text}\n")).unwrap();
    path.to_str().expect("a path of text").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_revision_comes_in_fragments_that_are_marked_and_the_client_puts_them_together() {
    let directory = directory();
    let node = node_with_kv(&directory, &[]);
    let client = Client::connect([&node.client]).await.unwrap();
    let mut stream = Stream::open(&node).await;
    stream.create(v1::CreateWatch { id: 7, machine: "kv".into(), ..Default::default() }).await;
    assert!(matches!(stream.next().await, (7, Told::Created(_))));
    let mut watch = client.watch("kv", WatchSpec::of(KeySpan::all())).await.unwrap();
    let value = "x".repeat(600_000);
    let step = |key| RequestOp { request: Some(KvRequest::RequestPut(put(key, &value))) };
    let success = ["a", "b", "c"].map(step).into();
    let large = TxnRequest { success, ..Default::default() };
    client.apply("kv", large.to_envelope()).await.unwrap();
    let mut sizes = Vec::new();
    loop {
        let (_, Told::Events(events)) = stream.next().await else { panic!("events are due") };
        sizes.push(events.events.len());
        assert_eq!(events.revision, 2);
        if !events.more {
            break;
        }
    }
    assert_eq!(sizes, [1, 1, 1]);
    let Watched::Events(whole) = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap() else {
        panic!("nobody asked how far it is");
    };
    let keys: Vec<&Bytes> = whole.events.iter().map(|event| &event.key).collect();
    assert_eq!(keys, ["a", "b", "c"]);
}

/// Follows a key until it has a value; the revisions that were told, and the values.
async fn follow_to(mut watch: ClientWatch, last: u64) -> (Vec<Revision>, Vec<u64>, ClientWatch) {
    let (mut revisions, mut values) = (Vec::new(), Vec::new());
    while values.last() != Some(&last) {
        match tokio::time::timeout(PATIENCE, watch.next()).await.expect("in time").unwrap() {
            Watched::Events(told) => {
                let pair: KeyValue = prost::Message::decode(told.events[0].value.clone()).unwrap();
                revisions.push(told.revision);
                values.push(std::str::from_utf8(&pair.value).unwrap().parse().unwrap());
            }
            Watched::Progress(_) => panic!("nobody asked how far it is"),
        }
    }
    (revisions, values, watch)
}

/// Writes a number until a node says that it is written.
async fn write(client: &Client, number: u64) {
    loop {
        match client.apply("kv", put("k", &number.to_string()).to_envelope()).await {
            Ok(_) => return,
            // It may have been done, then it is done twice: the same value again.
            Err(Error::Unavailable(_) | Error::Unknown(_) | Error::DeadlineExceeded(_)) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(why) => panic!("{why}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_watches_on_at_another_node_when_its_own_is_killed_and_misses_nothing() {
    const WRITES: u64 = 300;
    let mut three = ThreeNodes::start();
    let client = Client::connect(three.addresses()).await.unwrap();
    let watch = client.watch("kv", WatchSpec::of(KeySpan::key("k").unwrap())).await.unwrap();
    let watching = tokio::spawn(follow_to(watch, WRITES));
    for number in 1..=WRITES {
        // Each node once, so the one that leads and the one that is watched at are among them.
        let killed = (number / 100) as usize;
        if number % 100 == 50 {
            three.kill(killed);
        }
        write(&client, number).await;
        if number % 100 == 50 {
            three.restart(killed);
        }
    }
    let (revisions, mut values, mut watch) = watching.await.unwrap();
    let due: Vec<Revision> = (2..2 + revisions.len() as u64).map(Revision).collect();
    assert_eq!(revisions, due, "a gap, or a revision twice");
    values.dedup();
    assert_eq!(values, (1..=WRITES).collect::<Vec<_>>());
    watch.want_progress();
    // The last write may have been done twice.
    let up_to = loop {
        let told = tokio::time::timeout(PATIENCE, watch.next()).await.expect("in time").unwrap();
        if let Watched::Progress(revision) = told {
            break revision;
        }
    };
    assert!(up_to >= *revisions.last().unwrap());
    assert_eq!(three.node(1).run(["watch", "kv", "--from", "2", "--limit", "1"]).ok(), "2\tput\tk\t1");
}
