//! A client that heeds the leader hints goes straight to the leader, and back when that is gone.

use statehouse::client::Client;
use statehouse_kv::Call;
use statehouse_kv::messages::PutRequest;

use super::killed::{lead, ports, serve, wait_for_replicas};
use super::process::Node;

/// How many requests a node passed on to another.
fn forwarded(node: &Node) -> u64 {
    let (status, page) = node.page("/metrics");
    assert_eq!(status, 200);
    let line = page.lines().find_map(|line| line.strip_prefix("statehouse_requests_forwarded_total "));
    line.expect("it is counted").parse().expect("a number")
}

async fn put(client: &Client, number: u32) {
    let put = PutRequest { key: b"k".into(), value: number.to_string().into(), ..Default::default() };
    client.apply("kv", put.to_envelope()).await.expect("applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_goes_to_the_leader_that_answers_name_and_back_when_it_is_gone() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let ports = [ports(), ports(), ports()];
    let mut nodes = Vec::new();
    for number in 0..3 {
        let mut command = serve(directory.path(), number, &ports);
        nodes.push(Node::start(command.args(["--http", "127.0.0.1:0"])));
    }
    nodes[0].run(["machine", "create", "kv", "--module", "builtin:kv"]).ok();
    wait_for_replicas(&nodes[0], "kv");
    lead(&nodes[0], "kv", "n1");
    // Asked by a client that does not go to the leader, it passes everything on.
    let before = forwarded(&nodes[2]);
    let plain = Client::new([&nodes[2].client]).expect("an address");
    for number in 0..5 {
        put(&plain, number).await;
    }
    assert!(forwarded(&nodes[2]) >= before + 5);

    let before = forwarded(&nodes[2]);
    let client = Client::new([&nodes[2].client]).expect("an address").with_leader_hints();
    for number in 0..20 {
        put(&client, number).await;
    }
    assert_eq!(forwarded(&nodes[2]), before + 1, "after the first it knew better");

    nodes.remove(1).kill();
    for number in 0..5 {
        put(&client, number).await;
    }
    assert_eq!(nodes[0].run(["kv", "get", "k"]).ok(), "4");
}
