//! More machines that loop in commands than there are threads to apply: the others do not wait for them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use statehouse::error::Error;
use statehouse::node::Node;
use statehouse::node::config::NodeConfig;
use statehouse::node::request::Applied;
use tokio::task::JoinHandle;

use super::guests::*;

/// Twice the threads that apply, unless the settings say otherwise.
const LOOPING: usize = 8;

/// Makes machines of the attacker and has each loop in a command.
async fn loop_in_commands(node: &Node) -> Vec<JoinHandle<Result<Applied, Error>>> {
    let module = push(node, &attacker()).await.unwrap().digest;
    for number in 0..LOOPING {
        node.create_machine(&format!("loops-{number}"), module, Bytes::new()).await.unwrap();
    }
    let begin = |number| {
        let node = node.clone();
        tokio::spawn(async move { node.apply(&format!("loops-{number}"), Bytes::from_static(b"loop")).await })
    };
    (0..LOOPING).map(begin).collect()
}

fn apply_threads(node: &Node) -> usize {
    let text = metrics(node);
    let line = text.lines().find_map(|line| line.strip_prefix("statehouse_apply_threads "));
    line.expect("the metric").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_machines_that_loop_in_commands_leave_a_thread_to_the_others() {
    let directory = tempfile::tempdir().unwrap();
    // Fuel for a quarter of an hour.
    let node = Node::open(NodeConfig { input_fuel: 1_000_000_000_000, ..config(&directory) }).await.unwrap();
    create_kv(&node).await;
    let commands = loop_in_commands(&node).await;
    wait_until("eight threads loop", || apply_threads(&node) >= LOOPING).await;

    let begun = Instant::now();
    let work = async {
        for round in 0..20 {
            must_put(&node, "k", &round.to_string()).await;
            assert_eq!(get(&node, "k").await.unwrap(), round.to_string().into_bytes());
        }
        // Making a machine takes the catalog's lane and a new one.
        create(&node, "notes", NOTES).await;
    };
    let worked = tokio::time::timeout(Duration::from_secs(20), work).await;
    worked.unwrap_or_else(|_| panic!("the others waited for the machines that loop: {:?}", begun.elapsed()));
    assert!(commands.iter().all(|command| !command.is_finished()), "the commands did not loop meanwhile");
    let threads = apply_threads(&node);
    assert!((LOOPING..=LOOPING + 4).contains(&threads), "{threads} threads");

    node.shutdown_within(Duration::from_millis(100)).await;
    for command in commands {
        assert!(matches!(command.await.unwrap(), Err(Error::Unknown(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_that_stood_in_for_slow_ones_end() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(config(&directory)).await.unwrap();
    let commands = loop_in_commands(&node).await;
    wait_until("more threads than configured", || apply_threads(&node) > 4).await;
    for command in commands {
        command.await.unwrap().unwrap();
    }
    wait_until("as many threads as configured", || apply_threads(&node) == 4).await;
    create_kv(&node).await;
    must_put(&node, "k", "v").await;
    node.shutdown().await;
}
