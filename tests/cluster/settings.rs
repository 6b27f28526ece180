//! Settings of machines, told by every node, also by those without a replica.

use std::time::Duration;

use statehouse::error::Error;
use statehouse::machine::settings::Settings;

use super::harness::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn every_node_tells_and_changes_the_settings_of_a_machine() {
    let cluster = Cluster::of(3).await;
    let kv = cluster.node(0).builtin("kv").await.unwrap();
    let given = Settings { sessions_max: Some(5), ..Settings::default() };
    let create = |settings: Settings| {
        let node = cluster.node(0).clone();
        async move { node.create_settled("one", kv, "".into(), 1, Some(settings)).await }
    };
    let over = create(Settings { session_window: Some(4_097), ..given }).await.unwrap_err();
    assert!(matches!(&over, Error::Invalid(text) if text.contains("4096")), "{over:?}");
    create(given).await.unwrap();
    for node in cluster.nodes() {
        assert_eq!(node.find_machine("one").await.unwrap().settings, Some(given));
    }
    let elsewhere = cluster.nodes().filter(|node| node.machine("one").unwrap().replica.is_none()).count();
    assert_eq!(elsewhere, 2, "one node has the replica");
    let mut settled = given;
    for (node, window) in cluster.nodes().zip(7..) {
        let change = Settings { session_window: Some(window), ..Settings::default() };
        settled.session_window = Some(window);
        assert_eq!(node.configure_machine("one", change).await.unwrap().settings, Some(settled));
        let opened = node.open_session("one", Duration::from_secs(60)).await.unwrap();
        assert_eq!(opened.window, window);
        let over = Settings { leases_max: Some(u64::MAX), ..Settings::default() };
        let refused = node.configure_machine("one", over).await.unwrap_err();
        assert!(matches!(&refused, Error::Invalid(text) if text.contains("leases_max")), "{refused:?}");
    }
    cluster.shutdown().await;
}
