//! Times to live in a cluster: what has ended for one reader has ended for all who read later, wherever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use statehouse::Node;
use statehouse::node::request::Consistency;
use statehouse_kv::Call;
use statehouse_kv::messages::{PutRequest, RangeRequest};

use super::harness::{Cluster, put};

const KEYS: u64 = 300;

async fn living(node: &Node) -> i64 {
    let all = RangeRequest {
        key: b"t/".to_vec(),
        range_end: b"t0".to_vec(),
        count_only: true,
        ..RangeRequest::default()
    };
    let answered = node.query("kv", all.to_envelope().into(), Consistency::Linearizable).await.unwrap();
    RangeRequest::answer(&answered.outcome.unwrap()).unwrap().count
}

/// Batches that take their time, so that replicas apply them now sooner, now later.
fn load(node: Node, ended: Arc<AtomicBool>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        for number in 0.. {
            if ended.load(Ordering::Relaxed) {
                break;
            }
            let value = "x".repeat(if number % 5 == 0 { 400_000 } else { 10 });
            node.apply("kv", put("load", &value)).await.unwrap();
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_has_ended_at_one_node_does_not_come_back_at_another() {
    let cluster = Cluster::of(3).await;
    cluster.create_kv("kv", 3).await;
    for number in 0..KEYS {
        let key = format!("t/{number}").into_bytes();
        // They end one by one, each a few milliseconds after the one before.
        let put = PutRequest { key, ttl_ms: Some(2_000 + 5 * number), ..PutRequest::default() };
        cluster.node((number % 3) as usize).apply("kv", put.to_envelope().into()).await.unwrap();
    }
    let ended = Arc::new(AtomicBool::new(false));
    let loads = [0, 1].map(|at| load(cluster.node(at).clone(), ended.clone()));
    let (mut least, mut seen, mut reads) = (KEYS as i64, 0, 0);
    let all_gone = async {
        while least > 0 {
            for node in cluster.nodes() {
                let living = living(node).await;
                assert!(living <= least, "{living} keys live at {}, where {least} lived before", node.id());
                seen += u64::from(living < least);
                reads += 1;
                least = living;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all_gone).await.expect("all keys end in time");
    assert!(seen > 20, "{reads} reads saw keys end only {seen} times: too few to tell anything");
    ended.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.unwrap();
    }
    cluster.shutdown().await;
}
