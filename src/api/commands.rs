//! The gRPC service `Commands`: apply and query, one at a time or many on a stream.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::Stream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::in_flight::{Bounds, InFlight};
use super::{Serving, refused};
use crate::error::Error;
use crate::node::Node;
use crate::node::request::{Answered, Applied, Consistency};
use crate::proto::v1::commands_server::Commands;
use crate::proto::v1::{self, apply_stream_response, query_stream_response};
use crate::proto::{LEADER, convert, status};
use crate::trace::{self, TraceContext};

/// Room for the fields of a request beside its payload when a stream counts bytes.
const REQUEST_BYTES: usize = 64;

/// The service.
pub struct CommandsService {
    serving: Arc<Serving>,
}

impl CommandsService {
    /// Serves the node.
    pub fn new(serving: Arc<Serving>) -> CommandsService {
        CommandsService { serving }
    }
}

/// How much of a stream may be under way.
pub(super) fn bounds(serving: &Serving) -> Bounds {
    let limits = &serving.limits;
    Bounds {
        requests_max: limits.stream_requests_max as usize,
        bytes_max: usize::try_from(limits.stream_bytes_max).unwrap_or(usize::MAX),
    }
}

/// The machine that a message of a stream is for: it need not be said again while it stays the same.
pub(super) struct Addressee {
    name: Arc<str>,
}

impl Addressee {
    pub(super) fn unknown() -> Addressee {
        Addressee { name: "".into() }
    }

    /// The machine of a message that names `name`, which may be empty.
    pub(super) fn follow(&mut self, name: &str) -> Result<Arc<str>, Error> {
        if !name.is_empty() && *name != *self.name {
            self.name = name.into();
        }
        if self.name.is_empty() {
            let text = "the first message of a stream must name its machine";
            return Err(Error::Invalid(text.into()));
        }
        Ok(self.name.clone())
    }
}

async fn apply(
    node: Node,
    machine: Result<Arc<str>, Error>,
    command: Bytes,
    numbered: Option<v1::Numbered>,
    traceparent: String,
) -> Result<Applied, Error> {
    let machine = machine?;
    let trace = traceparent.parse::<TraceContext>().ok();
    let (span, within) = trace.map(|trace| trace.request("command", &machine)).unzip();
    let applied = node.apply_traced(&machine, command, numbered.map(Into::into), within).await;
    drop(span);
    applied
}

/// The trace that a request says it belongs to. What does not read is none, as the standard has it.
fn trace_of(metadata: &MetadataMap) -> Option<TraceContext> {
    metadata.get(trace::HEADER)?.to_str().ok()?.parse().ok()
}

async fn query(
    node: Node,
    machine: Result<Arc<str>, Error>,
    request: Bytes,
    consistency: Result<Consistency, Error>,
    request_bytes_max: u64,
) -> Result<Answered, Error> {
    let (machine, consistency) = (machine?, consistency?);
    check_query(&request, request_bytes_max)?;
    node.query(&machine, request, consistency).await
}

fn check_query(request: &[u8], bytes_max: u64) -> Result<(), Error> {
    if request.len() as u64 <= bytes_max {
        return Ok(());
    }
    Err(Error::TooLarge(format!(
        "the query has {} bytes, the limit is {bytes_max}: ask for less, or raise `limits.query_bytes_max`",
        request.len()
    )))
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Commands for CommandsService {
    type ApplyStreamStream = Answers<v1::ApplyStreamResponse>;
    type QueryStreamStream = Answers<v1::QueryStreamResponse>;

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let trace = trace_of(request.metadata());
        let v1::ApplyRequest { machine, command, numbered } = request.into_inner();
        let (span, within) = trace.map(|trace| trace.request("command", &machine)).unzip();
        let numbered = numbered.map(Into::into);
        let applied = self.serving.node.apply_traced(&machine, command, numbered, within).await;
        drop(span);
        let mut answer = Response::new(applied.map_err(refused)?.into());
        let leader = self.serving.node.leader_elsewhere(&machine);
        // An address that is no text of a header is no use to anybody.
        if let Some(leader) = leader.and_then(|address| address.parse().ok()) {
            answer.metadata_mut().insert(LEADER, leader);
        }
        Ok(answer)
    }

    async fn apply_stream(
        &self,
        requests: Request<Streaming<v1::ApplyStreamRequest>>,
    ) -> Result<Response<Self::ApplyStreamStream>, Status> {
        let (node, mut addressee) = (self.serving.node.clone(), Addressee::unknown());
        let begin = move |request: v1::ApplyStreamRequest| {
            let v1::ApplyStreamRequest { id, machine, command, traceparent, numbered } = request;
            let bytes = command.len() + REQUEST_BYTES;
            let applying = apply(node.clone(), addressee.follow(&machine), command, numbered, traceparent);
            (bytes, apply_answer(id, applying))
        };
        let stopping = self.serving.stopping();
        let answers = InFlight::new(requests.into_inner(), bounds(&self.serving), stopping, begin);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn query(&self, request: Request<v1::QueryRequest>) -> Result<Response<v1::QueryResponse>, Status> {
        let trace = trace_of(request.metadata());
        let query = request.into_inner();
        let span = trace.map(|trace| trace.request("query", &query.machine).0);
        let consistency = convert::consistency(&query).map_err(refused)?;
        check_query(&query.request, self.serving.limits.query_bytes_max).map_err(refused)?;
        let answered = self.serving.node.query(&query.machine, query.request, consistency).await;
        drop(span);
        Ok(Response::new(answered.map_err(refused)?.into()))
    }

    async fn query_stream(
        &self,
        requests: Request<Streaming<v1::QueryStreamRequest>>,
    ) -> Result<Response<Self::QueryStreamStream>, Status> {
        let (node, mut addressee) = (self.serving.node.clone(), Addressee::unknown());
        let request_bytes_max = self.serving.limits.query_bytes_max;
        let begin = move |request: v1::QueryStreamRequest| {
            let asked = request.query.unwrap_or_default();
            let consistency = convert::consistency(&asked);
            let bytes = asked.request.len() + REQUEST_BYTES;
            let machine = addressee.follow(&asked.machine);
            let asking = query(node.clone(), machine, asked.request, consistency, request_bytes_max);
            (bytes, query_answer(request.id, asking))
        };
        let stopping = self.serving.stopping();
        let answers = InFlight::new(requests.into_inner(), bounds(&self.serving), stopping, begin);
        Ok(Response::new(Box::pin(answers)))
    }
}

async fn apply_answer(
    id: u64,
    applying: impl Future<Output = Result<Applied, Error>>,
) -> v1::ApplyStreamResponse {
    let result = match applying.await {
        Ok(applied) => apply_stream_response::Result::Applied(applied.into()),
        Err(error) => apply_stream_response::Result::Failure(status::to_failure(&error)),
    };
    v1::ApplyStreamResponse { id, result: Some(result) }
}

async fn query_answer(
    id: u64,
    asking: impl Future<Output = Result<Answered, Error>>,
) -> v1::QueryStreamResponse {
    let result = match asking.await {
        Ok(answered) => query_stream_response::Result::Answered(answered.into()),
        Err(error) => query_stream_response::Result::Failure(status::to_failure(&error)),
    };
    v1::QueryStreamResponse { id, result: Some(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_without_a_machine_is_for_that_of_the_message_before() {
        let mut addressee = Addressee::unknown();
        assert!(matches!(addressee.follow(""), Err(Error::Invalid(_))));
        let said = [("a", "a"), ("", "a"), ("b", "b"), ("", "b"), ("", "b"), ("a", "a")];
        for (name, meant) in said {
            assert_eq!(&*addressee.follow(name).unwrap(), meant);
        }
    }

    #[test]
    fn a_query_over_the_limit_is_told_its_size_and_the_limit() {
        assert!(check_query(&[0; 100], 100).is_ok());
        let error = check_query(&[0; 101], 100).unwrap_err();
        assert!(matches!(&error, Error::TooLarge(text) if text.contains("101") && text.contains("100")));
    }
}
