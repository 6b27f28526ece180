//! Guests made for these tests, and what the tests ask of a node.

use bytes::Bytes;
use statehouse::error::Error;
use statehouse::id::Digest;
use statehouse::machine::outcome::Outcome;
use statehouse::node::Node;
use statehouse::node::config::NodeConfig;
use statehouse::node::request::{Applied, Consistency, ModuleInfo, Push};
use statehouse_kv::Call;
use statehouse_kv::messages::{PutRequest, RangeRequest};

#[path = "../../src/wasm/testing/text.rs"]
#[expect(dead_code, reason = "the tests inside the crate use the rest of it")]
mod text;

pub use text::{
    attacker, component_of, core_module_of, guest_text, guest_text_with_memory, many_functions, resident,
    section, stored, wrapped,
};

/// A node with the default settings, but fuel for a tenth of a second, so that tests of loops are short.
pub fn config(directory: &tempfile::TempDir) -> NodeConfig {
    let node = NodeConfig::new(directory.path(), "test");
    NodeConfig { bootstrap: true, input_fuel: 100_000_000, query_fuel: 500_000_000, ..node }
}

/// Pushes a component.
pub async fn push(node: &Node, bytes: &[u8]) -> Result<ModuleInfo, Error> {
    let push = Push { digest: Digest::of(bytes), label: "test".into(), bytes: bytes.to_vec().into() };
    node.push_module(push).await
}

/// Pushes a component and makes a machine of it.
pub async fn create(node: &Node, name: &str, bytes: &[u8]) {
    let module = push(node, bytes).await.unwrap();
    node.create_machine(name, module.digest, Bytes::new()).await.unwrap();
}

/// A machine called `kv`.
pub async fn create_kv(node: &Node) {
    let kv = node.builtin("kv").await.unwrap();
    node.create_machine("kv", kv, Bytes::new()).await.unwrap();
}

pub async fn put(node: &Node, key: &str, value: &str) -> Result<Applied, Error> {
    let put = PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    node.apply("kv", put.to_envelope().into()).await
}

/// Puts, and expects that it was done.
pub async fn must_put(node: &Node, key: &str, value: &str) {
    let applied = put(node, key, value).await.unwrap();
    assert!(matches!(applied.outcome, Outcome::Ok(_)), "{applied:?}");
}

pub async fn get(node: &Node, key: &str) -> Option<Vec<u8>> {
    let request = RangeRequest { key: key.into(), ..Default::default() }.to_envelope();
    let answered = node.query("kv", request.into(), Consistency::Linearizable).await.unwrap();
    RangeRequest::answer(&answered.outcome.unwrap()).unwrap().kvs.pop().map(|kv| kv.value)
}

/// The smallest stored guest of the gallery: keeps `NAME=TEXT`.
pub const NOTES: &[u8] = include_bytes!("../../guests/notes/notes.component.wasm");

/// What a scrape of the node's metrics gets. For tests on several threads.
pub fn metrics(node: &Node) -> String {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(node.metrics()))
}

/// Waits until `done` holds, within a bound.
pub async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("waited for 10 s in vain: {what}");
}
