//! Watches in a cluster: of a machine elsewhere, and on the move from node to node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use statehouse::Node;
use statehouse::error::Error;
use statehouse::id::Revision;
use statehouse::node::request::{Consistency, KeySpan, WatchEvents, WatchSpec, Watched};
use statehouse::node::watches::Watch;
use statehouse_kv::Call;
use statehouse_kv::messages::PutRequest;
use tokio::sync::RwLock;

use super::harness::{Cluster, put, serves};

const PATIENCE: Duration = Duration::from_secs(60);

async fn next(watch: &mut Watch) -> Watched {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("in time").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_replica_watches_like_one_that_has_one() {
    const WRITES: u64 = 300;
    let cluster = Cluster::of(3).await;
    cluster.create_kv("one", 1).await;
    let writer = cluster.node(0).clone();
    writer.apply("one", put("k0", "first")).await.unwrap();
    let spec = |from| WatchSpec { from, previous: true, ..WatchSpec::of(KeySpan::prefix("k").unwrap()) };
    let mut all = Vec::new();
    for node in cluster.nodes() {
        all.push((2, node.watch("one", spec(Some(Revision(2)))).await.unwrap()));
        all.push((3, node.watch("one", spec(None)).await.unwrap()));
    }
    let here = cluster.nodes().filter(|node| node.machine("one").unwrap().replica.is_some()).count();
    assert_eq!(here, 1, "two of the nodes have no replica");
    let writing = tokio::spawn(async move {
        for number in 1..WRITES {
            writer.apply("one", put(&format!("k{}", number % 3), &number.to_string())).await.unwrap();
        }
        writer.apply("one", put("other", "x")).await.unwrap();
    });
    for (first, watch) in &mut all {
        assert_eq!(watch.first(), Revision(*first));
        for revision in *first..WRITES + 2 {
            let Watched::Events(told) = next(watch).await else { panic!("nobody asked how far it is") };
            assert_eq!((told.revision, told.events.len()), (Revision(revision), 1));
            assert_eq!(told.events[0].previous.is_some(), revision >= 5, "at {revision}");
        }
    }
    writing.await.unwrap();
    for (_, watch) in &mut all {
        watch.asker().want_progress();
        assert_eq!(next(watch).await, Watched::Progress(Revision(WRITES + 2)));
    }
    for node in cluster.nodes() {
        let future = node.watch("one", spec(Some(Revision(WRITES + 9)))).await.err();
        assert!(matches!(&future, Some(Error::Invalid(text)) if text.contains("future")), "{future:?}");
    }
    cluster.shutdown().await;
}

/// A watcher that goes to the next node when its own ends the watch.
async fn follow(
    nodes: Arc<RwLock<Vec<Option<Node>>>>,
    stop: Arc<AtomicBool>,
    begun: usize,
) -> Vec<WatchEvents> {
    let (mut told, mut from, mut at, mut moves) = (Vec::new(), Revision(2), begun, 0);
    loop {
        let node = nodes.read().await[at % 3].clone();
        at += 1;
        let Some(node) = node else { continue };
        let spec = WatchSpec { from: Some(from), ..WatchSpec::of(KeySpan::prefix("k").unwrap()) };
        let mut watch = match node.watch("kv", spec).await {
            Ok(watch) => watch,
            Err(Error::Unavailable(_) | Error::DeadlineExceeded(_)) => continue,
            Err(why) => panic!("no reason to end: {why:?}"),
        };
        // Its directory is to be free when it stops.
        drop(node);
        moves += 1;
        loop {
            match tokio::time::timeout(Duration::from_millis(300), watch.next()).await {
                Ok(Ok(Watched::Events(events))) => {
                    from = events.revision.next();
                    told.push(events);
                }
                Ok(Ok(Watched::Progress(_))) => panic!("nobody asked how far it is"),
                Ok(Err(Error::Unavailable(_))) => break,
                Ok(Err(why)) => panic!("no reason to end: {why:?}"),
                Err(_) if stop.load(Ordering::SeqCst) => {
                    assert!(moves > 1, "it never had to move");
                    return told;
                }
                Err(_) => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_of_machines_elsewhere_are_bounded_apart_from_others() {
    let cluster = Cluster::with(2, |config| config.remote_watches_max = 2).await;
    cluster.create_kv("one", 1).await;
    let (mut here, mut elsewhere) = (None, None);
    for node in cluster.nodes() {
        match node.machine("one").unwrap().replica {
            Some(_) => here = Some(node.clone()),
            None => elsewhere = Some(node.clone()),
        }
    }
    let (here, elsewhere) = (here.unwrap(), elsewhere.unwrap());
    let all = || WatchSpec::of(KeySpan::all());
    let mut two =
        vec![elsewhere.watch("one", all()).await.unwrap(), elsewhere.watch("one", all()).await.unwrap()];
    let told = elsewhere.watch("one", all()).await.err();
    let named = |text: &str| text.contains("2 watches") && text.contains("limits.remote_watches_max");
    assert!(matches!(&told, Some(Error::Overloaded(text)) if named(text)), "{told:?}");
    for _ in 0..3 {
        two.push(here.watch("one", all()).await.unwrap());
    }
    drop(two);
    elsewhere.watch("one", all()).await.unwrap();
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_replica_looks_after_leases_like_one_that_has_one() {
    let cluster = Cluster::of(3).await;
    cluster.create_kv("one", 1).await;
    let here = |node: &&Node| node.machine("one").unwrap().replica.is_some();
    let (there, node) = (cluster.nodes().find(here).unwrap(), cluster.nodes().find(|n| !here(n)).unwrap());
    let id = node.grant_lease("one", 3_600_000, 0).await.unwrap();
    let chosen = node.grant_lease("one", 3_600_000, 77).await.unwrap();
    assert_eq!(chosen, 77);
    for number in 0..1_200_u64 {
        let key = format!("k{number:04}").into_bytes();
        let put = PutRequest { key, lease: id as i64, ..PutRequest::default() };
        node.apply("one", put.to_envelope().into()).await.unwrap();
    }
    assert_eq!(node.renew_leases("one", &[id, 5, 77]).await.unwrap(), [3_600_000, 0, 3_600_000]);
    let shown = node.lease_with_all_keys("one", id).await.unwrap();
    assert_eq!(shown.keys.len(), 1_200);
    assert_eq!(shown.keys, there.lease_with_all_keys("one", id).await.unwrap().keys);
    let listed: Vec<u64> =
        node.leases("one", 0, 0).await.unwrap().leases.iter().map(|lease| lease.id).collect();
    assert!(listed.contains(&id) && listed.contains(&77) && listed.len() == 2, "{listed:?}");
    let page = node.leases("one", 77.min(id), 1).await.unwrap();
    assert_eq!((page.leases[0].id, page.more), (77.max(id), false));
    node.revoke_lease("one", id).await.unwrap();
    assert!(matches!(node.revoke_lease("one", id).await, Err(Error::NotFound(_))));
    assert!(matches!(node.lease("one", id).await, Err(Error::NotFound(_))));
    assert!(matches!(node.grant_lease("one", 3_600_000, 77).await, Err(Error::AlreadyExists(_))));
    assert_eq!(super::harness::get(node, "one", "k0000", Consistency::Linearizable).await, None);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_move_from_node_to_node_while_nodes_stop_and_miss_nothing() {
    let mut cluster = Cluster::of(3).await;
    cluster.create_kv("kv", 3).await;
    cluster.wait("kv is everywhere", |node| serves(node, "kv")).await;
    let nodes: Vec<Option<Node>> = (0..3).map(|number| Some(cluster.node(number).clone())).collect();
    let nodes = Arc::new(RwLock::new(nodes));
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let watching: Vec<_> =
        (0..6).map(|number| tokio::spawn(follow(nodes.clone(), stop.clone(), number))).collect();
    let (writing_nodes, writing_done) = (nodes.clone(), done.clone());
    let writing = tokio::spawn(async move {
        let mut number = 0_u64;
        while !writing_done.load(Ordering::SeqCst) {
            let node = writing_nodes.read().await[number as usize % 3].clone();
            number += 1;
            let key = if number.is_multiple_of(4) { "other".to_owned() } else { format!("k{}", number % 5) };
            if let Some(node) = node {
                // A node that stops does not take it: what counts is what the history says in the end.
                let _ = node.apply("kv", put(&key, &number.to_string())).await;
            }
        }
    });
    // Whichever leads, and between that each of them: nobody watches in peace.
    for round in 0..6 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let leader = (0..3).find(|number| cluster.leads(*number, "kv"));
        let stopped = leader.filter(|_| round % 2 == 0).unwrap_or(round / 2);
        nodes.write().await[stopped] = None;
        cluster.stop(stopped).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        cluster.start(stopped).await;
        nodes.write().await[stopped] = Some(cluster.node(stopped).clone());
    }
    done.store(true, Ordering::SeqCst);
    writing.await.unwrap();
    cluster.assert_lockstep("kv").await;
    let last = cluster.node(0).machine("kv").unwrap().replica.unwrap().revision;
    let spec = WatchSpec { from: Some(Revision(2)), ..WatchSpec::of(KeySpan::prefix("k").unwrap()) };
    let mut history = cluster.node(1).watch("kv", spec).await.unwrap();
    history.asker().want_progress();
    let mut due = Vec::new();
    loop {
        match next(&mut history).await {
            Watched::Events(events) => due.push(events),
            Watched::Progress(revision) => {
                assert_eq!(revision, last);
                break;
            }
        }
    }
    assert!(due.len() > 100, "only {} revisions", due.len());
    stop.store(true, Ordering::SeqCst);
    for watching in watching {
        let told = tokio::time::timeout(PATIENCE, watching).await.expect("it ends").unwrap();
        assert_eq!(told.len(), due.len());
        assert!(told == due, "a watcher was told something else than what happened");
    }
    drop(history);
    cluster.shutdown().await;
}
