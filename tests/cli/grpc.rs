//! The wire: what clients in other languages rely on.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use rustix::process::Signal;
use statehouse::client::Client;
use statehouse::error::Error;
use statehouse::machine::outcome::Outcome;
use statehouse::node::request::Consistency;
use statehouse::proto::v1;
use statehouse::proto::v1::commands_client::CommandsClient;
use statehouse::proto::v1::modules_client::ModulesClient;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use super::process::{Node, component, directory};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

async fn channel(node: &Node) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", node.client)).expect("an address");
    endpoint.connect().await.expect("the node listens")
}

/// A node with a machine `sum` that adds numbers, and a client of it.
async fn node_with_sum(directory: &tempfile::TempDir) -> (Node, Client) {
    let node = Node::serve(directory.path(), &[]);
    let client = Client::connect([&node.client]).await.unwrap();
    let component = Bytes::from(std::fs::read(component("counter")).unwrap());
    let module = client.push_module("counter", component, |_| {}).await.unwrap();
    client.create_machine("sum", &module.digest.to_string(), "").await.unwrap();
    (node, client)
}

fn number(outcome: &Outcome) -> i64 {
    let Outcome::Ok(answer) = outcome else { panic!("an answer was expected: {outcome:?}") };
    std::str::from_utf8(answer).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_thousand_commands_under_way_are_each_answered_once_and_applied_in_order() {
    let directory = directory();
    let (_node, client) = node_with_sum(&directory).await;
    let (sender, mut answers) = client.apply_stream().await.unwrap();
    let sending = tokio::spawn(async move {
        for id in 0..5_000 {
            sender.send(id, "sum", "1").await.unwrap();
        }
    });
    let mut sums = BTreeMap::new();
    let receive = async {
        while let Some((id, result)) = answers.next().await.unwrap() {
            let applied = result.unwrap();
            assert!(sums.insert(id, number(&applied.outcome)).is_none(), "two answers for {id}");
        }
    };
    tokio::time::timeout(PATIENCE, receive).await.expect("all answers in time");
    sending.await.unwrap();
    assert_eq!(sums.len(), 5_000);
    assert!(sums.iter().all(|(id, sum)| *sum == *id as i64 + 1), "applied in the order of sending");
}

#[tokio::test]
async fn an_error_of_one_command_does_not_end_the_stream() {
    let directory = directory();
    let (_node, client) = node_with_sum(&directory).await;
    let (sender, mut answers) = client.apply_stream().await.unwrap();
    sender.send(1, "sum", "5").await.unwrap();
    sender.send(2, "nobody", "5").await.unwrap();
    sender.send(3, "sum", "five").await.unwrap();
    sender.send(4, "sum", "5").await.unwrap();
    drop(sender);
    let mut results = BTreeMap::new();
    while let Some((id, result)) = answers.next().await.unwrap() {
        results.insert(id, result);
    }
    assert!(matches!(&results[&2], Err(Error::NotFound(text)) if text.contains("nobody")));
    assert!(matches!(&results[&3], Ok(applied) if matches!(applied.outcome, Outcome::Refused(_))));
    assert_eq!(number(&results[&4].as_ref().unwrap().outcome), 10);
}

#[tokio::test]
async fn a_stream_of_queries_answers_each() {
    let directory = directory();
    let (_node, client) = node_with_sum(&directory).await;
    client.apply("sum", "7").await.unwrap();
    let (sender, mut answers) = client.query_stream().await.unwrap();
    for id in 0..500 {
        let machine = if id == 250 { "nobody" } else { "sum" };
        sender.send(id, machine, "", Consistency::Linearizable).await.unwrap();
    }
    drop(sender);
    let mut answered = 0;
    while let Some((id, result)) = answers.next().await.unwrap() {
        match result {
            Ok(found) => assert_eq!(number(&found.outcome.into()), 7),
            Err(error) => assert!(id == 250 && matches!(error, Error::NotFound(_)), "{id}: {error}"),
        }
        answered += 1;
    }
    assert_eq!(answered, 500);
}

#[tokio::test]
async fn the_machine_of_a_stream_is_named_once() {
    let directory = directory();
    let (node, _client) = node_with_sum(&directory).await;
    let message = |id, machine: &str| v1::ApplyStreamRequest {
        id,
        machine: machine.into(),
        command: Bytes::from_static(b"1"),
        ..Default::default()
    };
    let messages = futures_util::stream::iter([message(1, ""), message(2, "sum"), message(3, "")]);
    let mut commands = CommandsClient::new(channel(&node).await);
    let answers = commands.apply_stream(messages).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| answer.unwrap()).collect().await;
    let result = |id| answers.iter().find(|answer| answer.id == id).and_then(|a| a.result.clone()).unwrap();
    let v1::apply_stream_response::Result::Failure(failure) = result(1) else {
        panic!("the first has no machine");
    };
    assert_eq!((failure.reason.as_str(), failure.code), ("INVALID", Code::InvalidArgument as i32));
    assert_eq!(failure.metadata["applied"], "no");
    for id in [2, 3] {
        assert!(matches!(result(id), v1::apply_stream_response::Result::Applied(_)));
    }
}

#[tokio::test]
async fn errors_carry_a_reason_and_the_fate() {
    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    let mut commands = CommandsClient::new(channel(&node).await);
    let request = v1::ApplyRequest { machine: "nobody".into(), ..Default::default() };
    let status = commands.apply(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("NOT_FOUND", "statehouse"));
    assert_eq!(info.metadata["applied"], "no");
}

#[tokio::test]
async fn an_upload_must_keep_its_word() {
    use v1::push_module_request::Part;
    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    let bytes = std::fs::read(component("notes")).unwrap();
    let digest = statehouse::id::Digest::of(&bytes).to_string();
    let header = |digest: &str, total_bytes: usize| {
        let label = "x".into();
        Part::Header(v1::PushModuleHeader { digest: digest.into(), label, total_bytes: total_bytes as u64 })
    };
    let chunk = |bytes: &[u8]| Part::Chunk(Bytes::copy_from_slice(bytes));
    let (all, mut flipped) = (bytes.len(), bytes.clone());
    flipped[all / 2] ^= 1;
    let channel = channel(&node).await;
    let push = |parts: Vec<Part>| {
        let messages = parts.into_iter().map(|part| v1::PushModuleRequest { part: Some(part) });
        let request = Request::new(futures_util::stream::iter(messages.collect::<Vec<_>>()));
        let mut modules = ModulesClient::new(channel.clone());
        async move { modules.push(request).await.map(|module| module.into_inner()) }
    };
    let refused = |result: Result<v1::Module, tonic::Status>, word: &str| {
        let status = result.expect_err("it is refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(word), "{word:?} is not in {:?}", status.message());
    };
    refused(push(vec![]).await, "header");
    refused(push(vec![chunk(&bytes)]).await, "header");
    refused(push(vec![header(&digest, all), header(&digest, all)]).await, "header");
    refused(push(vec![header(&digest, all), chunk(&bytes[1..])]).await, "ended after");
    refused(push(vec![header(&digest, all - 1), chunk(&bytes)]).await, "announced");
    refused(push(vec![header("12", all), chunk(&bytes)]).await, "\"12\"");
    refused(push(vec![header(&digest, all), chunk(&flipped)]).await, &digest);
    refused(push(vec![header(&digest, usize::MAX / 2)]).await, "module_bytes_max");
    let (left, right) = bytes.split_at(all / 3);
    let module = push(vec![header(&digest, all), chunk(left), chunk(&[]), chunk(right)]).await.unwrap();
    assert_eq!(module.digest, digest);
}

#[tokio::test]
async fn an_upload_tells_how_far_it_is() {
    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    let client = Client::connect([&node.client]).await.unwrap();
    let bytes = Bytes::from(std::fs::read(component("kv")).unwrap());
    let (send, steps) = std::sync::mpsc::channel();
    let total = bytes.len() as u64;
    client.push_module("kv", bytes, move |sent| send.send(sent).expect("the test listens")).await.unwrap();
    let steps: Vec<u64> = steps.iter().collect();
    assert!(steps.is_sorted() && steps.last() == Some(&total), "{steps:?}");
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServiceResponse};

    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    let channel = channel(&node).await;
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "statehouse.v1.Commands", "statehouse.v1.Machines", "statehouse.v1.Modules"] {
        let asked = HealthCheckRequest { service: service.into() };
        // The first report is made by a task of its own.
        let mut answer = health.check(asked.clone()).await;
        for _ in 0..100 {
            if answer.as_ref().is_ok_and(|a| a.get_ref().status() == ServingStatus::Serving) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            answer = health.check(asked.clone()).await;
        }
        assert_eq!(answer.unwrap().into_inner().status(), ServingStatus::Serving, "{service:?}");
    }

    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let asked = reflection.server_reflection_info(futures_util::stream::iter([ask])).await.unwrap();
    let answer = asked.into_inner().next().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("a list: {answer:?}") };
    let names: Vec<String> = list.service.into_iter().map(|ServiceResponse { name }| name).collect();
    for service in ["Commands", "Machines", "Modules", "Nodes"] {
        assert!(names.contains(&format!("statehouse.v1.{service}")), "{names:?}");
    }
}

#[tokio::test]
async fn a_stopping_node_loses_no_answer_that_it_gave() {
    let directory = directory();
    let (node, client) = node_with_sum(&directory).await;
    let (sender, mut answers) = client.apply_stream().await.unwrap();
    tokio::spawn(async move {
        // Goes on until the node takes no more.
        for id in 0.. {
            if sender.send(id, "sum", "1").await.is_err() {
                return;
            }
        }
    });
    let (mut acknowledged, mut count) = (0, 0);
    let end = loop {
        match tokio::time::timeout(PATIENCE, answers.next()).await.expect("the stream goes on or ends") {
            Ok(Some((_, Ok(applied)))) => {
                acknowledged = acknowledged.max(number(&applied.outcome));
                count += 1;
                if count == 1_000 {
                    node.signal(Signal::TERM);
                }
            }
            Ok(Some((_, Err(_)))) => {}
            Ok(None) => panic!("the stream ended as if everything had been answered"),
            Err(error) => break error,
        }
    };
    assert!(matches!(&end, Error::Unavailable(text) if text.contains("stopping")), "{end:?}");
    let (code, told) = node.end();
    assert_eq!(code, Some(0), "{told}");

    let node = Node::serve(directory.path(), &[]);
    let client = Client::connect([&node.client]).await.unwrap();
    let sum = number(&client.apply("sum", "0").await.unwrap().outcome);
    assert!(sum >= acknowledged, "{acknowledged} were acknowledged, {sum} are there");
    assert_eq!(sum, acknowledged, "everything that was begun was answered");
}
