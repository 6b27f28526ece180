//! Nodes that stop while clients are at work: nobody's request is lost, and of none is the fate unknown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use statehouse::Node;
use statehouse::error::Error;
use statehouse::node::request::Consistency;
use tokio::sync::RwLock;
use tokio::task::JoinHandle;

use super::harness::{Cluster, get, put};

/// Clients of each node, with one request at a time each.
const CLIENTS: usize = 8;

/// Commands that must be done between two events.
const COMMANDS: u64 = 100;

/// Clients at work at all nodes that take requests.
struct Load {
    /// By number; a node that stops is taken out when it says that it takes no more.
    nodes: Arc<RwLock<Vec<Option<Node>>>>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Written>>,
}

/// What was written last to each key.
type Written = BTreeMap<String, String>;

impl Load {
    fn start(cluster: &Cluster) -> Load {
        let nodes: Vec<Option<Node>> = (0..3).map(|number| Some(cluster.node(number).clone())).collect();
        let mut load = Load {
            nodes: Arc::new(RwLock::new(nodes)),
            stop: Arc::default(),
            done: Arc::default(),
            clients: Vec::new(),
        };
        for number in 0..3 * CLIENTS {
            let (nodes, stop, done) = (load.nodes.clone(), load.stop.clone(), load.done.clone());
            load.clients.push(tokio::spawn(async move {
                let (mut written, mut turn) = (Written::new(), 0_u64);
                while !stop.load(Ordering::SeqCst) {
                    turn += 1;
                    let (key, value) = (format!("{number}-{}", turn % 7), format!("{turn}"));
                    write(&nodes, number, &key, &value).await;
                    written.insert(key, value);
                    done.fetch_add(1, Ordering::SeqCst);
                }
                written
            }));
        }
        load
    }

    /// Waits until more commands are done.
    async fn go_on(&self) {
        let before = self.done.load(Ordering::SeqCst);
        let going_on = async {
            while self.done.load(Ordering::SeqCst) < before + COMMANDS {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), going_on).await.expect("the others go on");
    }

    async fn end(self) -> Vec<Written> {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Vec::new();
        for client in self.clients {
            all.push(client.await.expect("a client was told what no client should be"));
        }
        all
    }
}

/// Writes by way of a client's own node, or, if that one does not take it, by way of the next.
async fn write(nodes: &RwLock<Vec<Option<Node>>>, client: usize, key: &str, value: &str) {
    let known = nodes.read().await.clone();
    for place in 0..known.len() {
        let Some(node) = &known[(client + place) % known.len()] else { continue };
        match node.apply("kv", put(key, value)).await {
            Ok(_) => return,
            // Only a node that is told to stop says so, and then it was not done.
            Err(Error::Unavailable(text)) if node.is_leaving() => {
                assert!(text.contains("not done"), "{text}")
            }
            Err(other) => panic!("a stop of another node costs this: {other:?}"),
        }
    }
    panic!("no node did it");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_stop_under_load_leave_no_fate_unknown() {
    let mut cluster = Cluster::of(3).await;
    cluster.create_kv("kv", 3).await;
    let load = Load::start(&cluster);
    let mut led = 0;
    for round in 0..6 {
        load.go_on().await;
        // Every second time the one that leads.
        let leader = (0..3).find(|number| cluster.leads(*number, "kv"));
        let stopped = leader.filter(|_| round % 2 == 0).unwrap_or(round % 3);
        led += u32::from(leader == Some(stopped));
        // Clients that are on their way to it find it closed.
        cluster.stop(stopped).await;
        load.nodes.write().await[stopped] = None;
        load.go_on().await;
        cluster.start(stopped).await;
        load.nodes.write().await[stopped] = Some(cluster.node(stopped).clone());
    }
    assert!(led >= 2, "hardly a leader was stopped");
    load.go_on().await;
    for written in load.end().await {
        for (key, value) in written {
            let found = get(cluster.node(0), "kv", &key, Consistency::Linearizable).await;
            assert_eq!(found.as_deref(), Some(value.as_str()), "{key}");
        }
    }
    cluster.assert_lockstep("kv").await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_has_handed_over_what_it_led_and_serves_until_then() {
    let cluster = Cluster::of(3).await;
    cluster.create_kv("kv", 3).await;
    let leader = (0..3).find(|number| cluster.leads(*number, "kv")).expect("somebody leads");
    let leaving = cluster.node(leader);
    assert!(!leaving.is_leaving());
    leaving.hand_over_within(Duration::from_secs(10)).await;
    assert!(leaving.is_leaving());
    assert!(!cluster.leads(leader, "kv"), "it leads still");
    assert!(!leaving.members().iter().any(|member| member.leader && member.node == leaving.status().node));
    // What comes to it is passed on.
    leaving.apply("kv", put("a", "1")).await.unwrap();
    assert_eq!(get(leaving, "kv", "a", Consistency::Linearizable).await.as_deref(), Some("1"));
    leaving.close_door();
    let refused = leaving.apply("kv", put("b", "1")).await.unwrap_err();
    assert!(matches!(&refused, Error::Unavailable(text) if text.contains("not done")), "{refused:?}");
    let other = cluster.node((leader + 1) % 3);
    assert_eq!(get(other, "kv", "b", Consistency::Linearizable).await, None);
    cluster.shutdown().await;
}
