//! Leases in crowds: many renewals are few operations, and many ends let commands through.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use statehouse::error::Error;
use statehouse::id::Index;
use statehouse::node::Node;
use statehouse_kv::Call;
use statehouse_kv::messages::PutRequest;

use super::guests::*;

async fn node_with_kv() -> (tempfile::TempDir, Node) {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(config(&directory)).await.unwrap();
    create_kv(&node).await;
    (directory, node)
}

async fn grant_many(node: &Node, count: usize, ttl_ms: u64) -> Vec<u64> {
    let granted = join_all((0..count).map(|_| node.grant_lease("kv", ttl_ms, 0))).await;
    granted.into_iter().map(Result::unwrap).collect()
}

fn applied(node: &Node) -> Index {
    node.machine("kv").unwrap().replica.unwrap().applied
}

async fn live(node: &Node) -> usize {
    let (mut count, mut after) = (0, 0);
    loop {
        let page = node.leases("kv", after, 0).await.unwrap();
        count += page.leases.len();
        match page.leases.last() {
            Some(last) if page.more => after = last.id,
            _ => return count,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn renewals_that_arrive_together_are_few_operations() {
    let (_directory, node) = node_with_kv().await;
    let leases = grant_many(&node, 1_000, 600_000).await;
    let before = applied(&node);
    let renewed = join_all(leases.iter().map(|&id| {
        let node = node.clone();
        async move { node.renew_leases("kv", &[id, u64::MAX]).await.unwrap() }
    }))
    .await;
    assert!(renewed.iter().all(|ttls_ms| ttls_ms == &[600_000, 0]));
    let entries = applied(&node).0 - before.0;
    assert!((1..=20).contains(&entries), "1,000 renewals took {entries} entries");

    // One that comes alone waits for nothing but the log.
    let alone = grant_many(&node, 5, 600_000).await;
    let (begun, before) = (Instant::now(), applied(&node));
    for lease in &alone {
        assert_eq!(node.renew_leases("kv", &[*lease]).await.unwrap(), [600_000]);
    }
    assert_eq!(applied(&node).0 - before.0, 5);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    node.shutdown().await;
    let refused = node.renew_leases("kv", &leases[..1]).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_was_renewed_a_moment_ago_is_told_what_is_left_without_the_log() {
    let (_directory, node) = node_with_kv().await;
    let lease = grant_many(&node, 1, 600_000).await[0];
    let before = applied(&node);
    let (mut whole, mut cut) = (0, 0);
    for _ in 0..500 {
        match node.renew_leases("kv", &[lease]).await.unwrap()[..] {
            [600_000] => whole += 1,
            [left_ms] if (599_750..600_000).contains(&left_ms) => cut += 1,
            ref other => panic!("{other:?}"),
        }
    }
    assert_eq!(applied(&node).0 - before.0, whole, "each that is not told what is left is in the log");
    assert!(cut > whole, "{cut} without the log, {whole} with it");
    node.revoke_lease("kv", lease).await.unwrap();
    assert_eq!(node.renew_leases("kv", &[lease]).await.unwrap(), [0], "it is gone");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_renews_more_leases_than_an_operation_but_not_any_number() {
    let (_directory, node) = node_with_kv().await;
    let leases = grant_many(&node, 5_000, 600_000).await;
    let ttls_ms = node.renew_leases("kv", &leases).await.unwrap();
    assert_eq!((ttls_ms.len(), ttls_ms.iter().all(|&ttl_ms| ttl_ms == 600_000)), (5_000, true));
    let refused = node.renew_leases("kv", &vec![1; 100_001]).await.unwrap_err();
    assert!(matches!(&refused, Error::TooLarge(text) if text.contains("100001") && text.contains("100000")));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_end_together_do_so_soon_and_commands_get_in_between() {
    const COUNT: usize = 20_000;
    let (_directory, node) = node_with_kv().await;
    let leases = grant_many(&node, COUNT, 600_000).await;
    let ends = grant_many(&node, 1, 1).await[0];
    wait_until("a lease of a millisecond ends", || {
        let lease = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(node.lease("kv", ends))
        });
        matches!(lease, Err(Error::NotFound(_)))
    })
    .await;
    assert_eq!(live(&node).await, COUNT);

    // As many again, that end within a second.
    grant_many(&node, COUNT, 4_000).await;
    let (mut slowest, mut ended_at, mut puts) = (Duration::ZERO, None, 0);
    let begun = Instant::now();
    while ended_at.is_none() {
        let asked = Instant::now();
        must_put(&node, "k", "v").await;
        slowest = slowest.max(asked.elapsed());
        puts += 1;
        if puts % 50 == 0 && node.machine("kv").is_ok() && live(&node).await == COUNT {
            ended_at = Some(begun.elapsed());
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{} leases are left", live(&node).await);
    }
    println!("{COUNT} leases ended {ended_at:?} after; {puts} puts meanwhile, the slowest took {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "a put took {slowest:?}");
    // None of those that live was ended by mistake.
    let ttls_ms = node.renew_leases("kv", &leases).await.unwrap();
    assert!(ttls_ms.iter().all(|&ttl_ms| ttl_ms == 600_000));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_keys_of_a_lease_are_told_however_many_there_are() {
    let (_directory, node) = node_with_kv().await;
    let lease = grant_many(&node, 1, 600_000).await[0];
    let put = |number: usize| PutRequest {
        key: format!("key/{number:04}").into(),
        lease: lease as i64,
        ..PutRequest::default()
    };
    let puts = join_all((0..2_345).map(|number| node.apply("kv", put(number).to_envelope().into()))).await;
    assert!(puts.iter().all(Result::is_ok));
    let shown = node.lease("kv", lease).await.unwrap();
    assert_eq!((shown.keys.len(), shown.more_keys), (1_000, true));
    let whole = node.lease_with_all_keys("kv", lease).await.unwrap();
    let expected: Vec<String> = (0..2_345).map(|number| format!("key/{number:04}")).collect();
    assert_eq!(whole.keys, expected);
    assert!(!whole.more_keys);
    assert!(matches!(node.lease_with_all_keys("kv", lease + 1).await, Err(Error::NotFound(_))));
    node.shutdown().await;
}
