//! What a point read costs beyond the network: one key of 10,000 through the kv guest, in a warm instance, on
//! a view of the state database.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use statehouse::node::Node;
use statehouse::node::config::NodeConfig;
use statehouse::node::request::Consistency;
use statehouse_kv::Call;
use statehouse_kv::messages::{PutRequest, RangeRequest};

const KEYS: usize = 10_000;

fn bench(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let node = runtime.block_on(async {
        let config = NodeConfig { bootstrap: true, ..NodeConfig::new(directory.path(), "bench") };
        let node = Node::open(config).await.expect("the node opens");
        let kv = node.builtin("kv").await.expect("the built-in module");
        node.create_machine("kv", kv, Bytes::new()).await.expect("a machine");
        let puts = (0..KEYS).map(|number| {
            let key = format!("{number:08}").into_bytes();
            let put = PutRequest { key, value: vec![b'v'; 256], ..Default::default() };
            node.apply("kv", put.to_envelope().into())
        });
        for applied in futures_util::future::join_all(puts).await {
            applied.expect("a put");
        }
        node
    });
    let mut number = 0;
    criterion.bench_function("point read", |bencher| {
        bencher.iter(|| {
            number = (number + 7_919) % KEYS;
            let get = RangeRequest { key: format!("{number:08}").into_bytes(), ..Default::default() };
            let query = node.query("kv", get.to_envelope().into(), Consistency::Linearizable);
            black_box(runtime.block_on(query).expect("an answer"))
        });
    });
    runtime.block_on(node.shutdown());
}

criterion_group!(benches, bench);
criterion_main!(benches);
