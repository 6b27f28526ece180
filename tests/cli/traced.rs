//! A command is followed through three processes: their spans come to a collector, or into their logs.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use rustix::process::Signal;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::killed::{Ports, ports, serve, wait_for_replicas};
use super::process::Node;

/// A span as a node told it.
#[derive(Clone, Debug)]
struct Told {
    node: String,
    name: String,
    trace: String,
    span: Vec<u8>,
    parent: Vec<u8>,
}

/// Keeps what it is sent.
#[derive(Clone, Default)]
struct Collector {
    told: Arc<Mutex<Vec<Told>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for spans in request.into_inner().resource_spans {
            let attributes = spans.resource.expect("who it is").attributes;
            let instance = attributes.into_iter().find(|a| a.key == "service.instance.id");
            let node = match instance.and_then(|a| a.value).and_then(|value| value.value) {
                Some(Value::StringValue(node)) => node,
                other => panic!("no name of a node: {other:?}"),
            };
            let told = spans.scope_spans.into_iter().flat_map(|scope| scope.spans).map(|span| Told {
                node: node.clone(),
                name: span.name,
                trace: hex::encode(span.trace_id),
                span: span.span_id,
                parent: span.parent_span_id,
            });
            self.told.lock().unwrap().extend(told);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Waits until it has so many spans of a trace.
    async fn wait(&self, trace: &str, count: usize) -> Vec<Told> {
        let begun = Instant::now();
        loop {
            let of_trace = |told: &&Told| told.trace == trace;
            let told: Vec<Told> = self.told.lock().unwrap().iter().filter(of_trace).cloned().collect();
            if told.len() >= count {
                return told;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{count} spans in vain: {told:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn start(root: &std::path::Path, ports: &[Ports], otlp: Option<&str>) -> Vec<Node> {
    let mut nodes = Vec::new();
    for number in 0..3 {
        let mut command = serve(root, number, ports);
        if let Some(otlp) = otlp {
            command.args(["--otlp", otlp]);
        }
        nodes.push(Node::start(&mut command));
    }
    nodes[0].run(["machine", "create", "kv", "--module", "builtin:kv"]).ok();
    wait_for_replicas(&nodes[0], "kv");
    nodes
}

/// Sends a traced command to a node that does not lead; the name of its trace.
fn put_traced(nodes: &[Node]) -> String {
    let shown = nodes[0].run(["machine", "show", "kv", "--json"]).json();
    let leads = |replica: &&serde_json::Value| replica["role"] == "leader";
    let logs = shown["replica_logs"].as_array().expect("replicas");
    let leader = logs.iter().find(leads).expect("one leads")["name"].clone();
    let other = (0..3).find(|number| leader != format!("n{number}")).expect("two do not lead");
    let done = nodes[other].run(["kv", "put", "a", "1", "--trace"]);
    assert_eq!(done.code, 0, "{done:?}");
    let trace = done.stderr.lines().find_map(|line| line.strip_prefix("trace "));
    trace.expect("the name of the trace").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_traced_command_leaves_a_span_of_every_stage_on_every_node() {
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let otlp = listener.local_addr().unwrap().to_string();
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let directory = tempfile::tempdir().unwrap();
    let (nodes, trace) = tokio::task::block_in_place(|| {
        let nodes = start(directory.path(), &[ports(), ports(), ports()], Some(&otlp));
        let trace = put_traced(&nodes);
        (nodes, trace)
    });
    let told = collector.wait(&trace, 6).await;
    let named = |name: &str| told.iter().filter(|told| told.name == name).cloned().collect::<Vec<_>>();
    let (request, forward, commit) = (named("request"), named("forward"), named("commit"));
    assert_eq!((request.len(), forward.len(), commit.len()), (1, 1, 1), "{told:?}");
    assert_eq!(forward[0].node, request[0].node, "the node that was asked passes it on");
    assert_ne!(commit[0].node, request[0].node, "another one leads");
    assert_eq!(forward[0].parent, request[0].span);
    assert_eq!(commit[0].parent, forward[0].span);
    let applied: BTreeSet<String> = named("apply").into_iter().map(|told| told.node).collect();
    assert_eq!(applied.into_iter().collect::<Vec<_>>(), ["n0", "n1", "n2"]);
    tokio::task::block_in_place(|| drop(nodes));
}

#[test]
fn without_a_collector_the_logs_tell_of_a_traced_command() {
    let directory = tempfile::tempdir().unwrap();
    let nodes = start(directory.path(), &[ports(), ports(), ports()], None);
    let trace = put_traced(&nodes);
    nodes[0].run(["kv", "put", "b", "2"]).ok();
    // Each node has applied what came before that.
    nodes.iter().for_each(|node| assert_eq!(node.run(["kv", "get", "b"]).ok(), "2"));
    let mut lines = Vec::new();
    for node in nodes {
        node.signal(Signal::TERM);
        let log = node.end().1;
        lines.extend(log.lines().filter(|line| line.contains(&trace)).map(str::to_owned));
    }
    let of =
        |stage: &str| lines.iter().filter(|line| line.contains(&format!("\"name\":\"{stage}\""))).count();
    assert_eq!((of("request"), of("forward"), of("commit"), of("apply")), (1, 1, 1, 3), "{lines:#?}");
}
