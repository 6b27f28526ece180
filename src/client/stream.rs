//! Many commands or queries under way on one stream: the fast way to send many.
//!
//! Each has an id that the caller chooses and that comes back with its answer; answers come in any order. A
//! sender waits while as many are under way as the node accepts.

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{ANSWER_BYTES_MAX, Client, query_message};
use crate::error::Error;
use crate::node::request::{Answered, Applied, Consistency};
use crate::proto::status;
use crate::proto::v1::commands_client::CommandsClient;
use crate::proto::v1::{self, apply_stream_response, query_stream_response};

/// Messages that wait within this process to be sent.
const QUEUE: usize = 1_024;

/// Sends commands. Dropping it ends the stream once everything sent is answered.
#[derive(Clone)]
pub struct ApplySender {
    messages: mpsc::Sender<v1::ApplyStreamRequest>,
}

/// Receives what became of commands.
pub struct ApplyAnswers {
    answers: Streaming<v1::ApplyStreamResponse>,
    address: String,
}

/// Sends queries. Dropping it ends the stream once everything sent is answered.
#[derive(Clone)]
pub struct QuerySender {
    messages: mpsc::Sender<v1::QueryStreamRequest>,
}

/// Receives the answers to queries.
pub struct QueryAnswers {
    answers: Streaming<v1::QueryStreamResponse>,
    address: String,
}

impl Client {
    /// Opens a stream of commands to the node that answered last.
    ///
    /// # Errors
    /// What a network can do.
    pub async fn apply_stream(&self) -> Result<(ApplySender, ApplyAnswers), Error> {
        let (messages, queue) = mpsc::channel(QUEUE);
        let peer = self.nodes.current();
        let opened = CommandsClient::new(peer.channel.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
            .apply_stream(ReceiverStream::new(queue))
            .await;
        let answers = opened.map_err(|e| status::from_status(&e, &peer.address))?.into_inner();
        Ok((ApplySender { messages }, ApplyAnswers { answers, address: peer.address.clone() }))
    }

    /// Opens a stream of queries to the node that answered last.
    ///
    /// # Errors
    /// What a network can do.
    pub async fn query_stream(&self) -> Result<(QuerySender, QueryAnswers), Error> {
        let (messages, queue) = mpsc::channel(QUEUE);
        let peer = self.nodes.current();
        let opened = CommandsClient::new(peer.channel.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
            .query_stream(ReceiverStream::new(queue))
            .await;
        let answers = opened.map_err(|e| status::from_status(&e, &peer.address))?.into_inner();
        Ok((QuerySender { messages }, QueryAnswers { answers, address: peer.address.clone() }))
    }
}

fn ended<T>(_: T) -> Error {
    Error::Unavailable("the stream has ended; its last answer says why".into())
}

impl ApplySender {
    /// Sends a command. Waits while the node takes no more.
    ///
    /// # Errors
    /// `Unavailable` if the stream has ended: this command was not sent.
    pub async fn send(&self, id: u64, machine: &str, command: impl Into<Bytes>) -> Result<(), Error> {
        let (machine, command) = (machine.into(), command.into());
        let message = v1::ApplyStreamRequest { id, machine, command, ..Default::default() };
        self.messages.send(message).await.map_err(ended)
    }
}

impl ApplyAnswers {
    /// The next answer: the command's id, and what became of it. `None` when the sender is dropped and
    /// everything is answered.
    ///
    /// # Errors
    /// The stream has ended early: commands without an answer may or may not have been applied.
    pub async fn next(&mut self) -> Result<Option<(u64, Result<Applied, Error>)>, Error> {
        let Some(answer) = self.answers.next().await else { return Ok(None) };
        let answer = answer.map_err(|e| status::from_status(&e, &self.address))?;
        let result = match answer.result {
            Some(apply_stream_response::Result::Applied(applied)) => applied.try_into(),
            Some(apply_stream_response::Result::Failure(failure)) => Err(status::from_failure(failure)),
            None => Err(Error::Invalid("an answer without a result: the node may be newer".into())),
        };
        Ok(Some((answer.id, result)))
    }
}

impl QuerySender {
    /// Sends a query. Waits while the node takes no more.
    ///
    /// # Errors
    /// `Unavailable` if the stream has ended: this query was not sent.
    pub async fn send(
        &self,
        id: u64,
        machine: &str,
        request: impl Into<Bytes>,
        consistency: Consistency,
    ) -> Result<(), Error> {
        let query = Some(query_message(machine, request.into(), consistency));
        self.messages.send(v1::QueryStreamRequest { id, query }).await.map_err(ended)
    }
}

impl QueryAnswers {
    /// The next answer: the query's id, and what it found. `None` when the sender is dropped and everything
    /// is answered.
    ///
    /// # Errors
    /// The stream has ended early.
    pub async fn next(&mut self) -> Result<Option<(u64, Result<Answered, Error>)>, Error> {
        let Some(answer) = self.answers.next().await else { return Ok(None) };
        let answer = answer.map_err(|e| status::from_status(&e, &self.address))?;
        let result = match answer.result {
            Some(query_stream_response::Result::Answered(answered)) => answered.try_into(),
            Some(query_stream_response::Result::Failure(failure)) => Err(status::from_failure(failure)),
            None => Err(Error::Invalid("an answer without a result: the node may be newer".into())),
        };
        Ok(Some((answer.id, result)))
    }
}
