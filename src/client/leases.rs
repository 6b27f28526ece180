//! Leases: granted, kept alive, ended and shown.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::{ANSWER_BYTES_MAX, Again, Client};
use crate::error::Error;
use crate::node::request::LeaseInfo;
use crate::proto::status;
use crate::proto::v1::leases_client::LeasesClient;
use crate::proto::v1::{self, keep_alive_response};

/// Messages that wait within this process to be sent.
const QUEUE: usize = 64;

/// Keeps leases alive on a stream. Dropping it ends the stream once everything sent is answered.
#[derive(Clone)]
pub struct KeepAliveSender {
    messages: mpsc::Sender<v1::KeepAliveRequest>,
}

/// Receives what became of leases that were kept alive.
pub struct KeepAliveAnswers {
    answers: Streaming<v1::KeepAliveResponse>,
    address: String,
}

impl Client {
    /// Grants a lease of a machine, under `id` or, if that is none, any. Answers the id.
    ///
    /// # Errors
    /// `Invalid` for a time or an id out of range, `AlreadyExists` for an id that is in use or was given
    /// before, `LimitReached` if the machine has as many leases as it may. `Unknown`: there may be a
    /// lease that nobody keeps alive.
    pub async fn grant_lease(&self, machine: &str, ttl: Duration, id: Option<u64>) -> Result<u64, Error> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let message = v1::GrantLeaseRequest { machine: machine.into(), ttl_ms, id: id.unwrap_or_default() };
        let call = |channel, message| async move { LeasesClient::new(channel).grant(message).await };
        Ok(self.call(Again::IfNotDone, message, call).await?.id)
    }

    /// Gives leases their whole time again. For each, in order, how long it lives from now on; `None`: there
    /// is no such lease any more, or it is the machine's own.
    ///
    /// # Errors
    /// `NotFound` (the machine), `TooLarge` for more than 100,000 leases, and what a network can do.
    pub async fn renew_leases(&self, machine: &str, leases: &[u64]) -> Result<Vec<Option<Duration>>, Error> {
        let message = v1::RenewLeasesRequest { machine: machine.into(), leases: leases.to_vec() };
        let call = |channel, message: Request<v1::RenewLeasesRequest>| async move {
            LeasesClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX).renew(message).await
        };
        renewed(self.call(Again::Always, message, call).await?, leases.len())
    }

    /// Opens a stream on which leases are kept alive, to the node that answered last.
    ///
    /// # Errors
    /// What a network can do.
    pub async fn keep_alive(&self) -> Result<(KeepAliveSender, KeepAliveAnswers), Error> {
        let (messages, queue) = mpsc::channel(QUEUE);
        let peer = self.nodes.current();
        let opened = LeasesClient::new(peer.channel.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
            .keep_alive(ReceiverStream::new(queue))
            .await;
        let answers = opened.map_err(|e| status::from_status(&e, &peer.address))?.into_inner();
        Ok((KeepAliveSender { messages }, KeepAliveAnswers { answers, address: peer.address.clone() }))
    }

    /// Ends a lease now.
    ///
    /// # Errors
    /// `NotFound` if there is no such lease, or it is the machine's own.
    pub async fn revoke_lease(&self, machine: &str, id: u64) -> Result<(), Error> {
        let message = v1::RevokeLeaseRequest { machine: machine.into(), id };
        let call = |channel, message| async move { LeasesClient::new(channel).revoke(message).await };
        self.call(Again::IfNotDone, message, call).await.map(drop)
    }

    /// A lease, with the keys that are attached to it.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn lease(&self, machine: &str, id: u64) -> Result<LeaseInfo, Error> {
        let message = v1::GetLeaseRequest { machine: machine.into(), id };
        let call = |channel, message| async move { LeasesClient::new(channel).get(message).await };
        self.call(Again::Always, message, call).await
    }

    /// All leases of a machine, by id, without their keys.
    ///
    /// # Errors
    /// `NotFound` (the machine), and what a network can do.
    pub async fn leases(&self, machine: &str) -> Result<Vec<LeaseInfo>, Error> {
        let mut leases: Vec<LeaseInfo> = Vec::new();
        loop {
            let after = leases.last().map_or(0, |lease| lease.id);
            let message = v1::ListLeasesRequest { machine: machine.into(), after, limit: 0 };
            let call = |channel, message| async move { LeasesClient::new(channel).list(message).await };
            let page = self.call(Again::Always, message, call).await?;
            let more = page.more && !page.leases.is_empty();
            leases.extend(page.leases);
            if !more {
                return Ok(leases);
            }
        }
    }
}

fn renewed(answer: v1::RenewLeasesResponse, asked: usize) -> Result<Vec<Option<Duration>>, Error> {
    if answer.ttls_ms.len() != asked {
        let text = format!("{asked} leases were to be renewed, and {} were answered", answer.ttls_ms.len());
        return Err(Error::Invalid(text));
    }
    let lives = |ttl_ms: u64| (ttl_ms > 0).then(|| Duration::from_millis(ttl_ms));
    Ok(answer.ttls_ms.into_iter().map(lives).collect())
}

impl KeepAliveSender {
    /// Has leases of a machine renewed. Waits while the node takes no more.
    ///
    /// # Errors
    /// `Unavailable` if the stream has ended: these were not sent.
    pub async fn send(&self, id: u64, machine: &str, leases: Vec<u64>) -> Result<(), Error> {
        let renew = Some(v1::RenewLeasesRequest { machine: machine.into(), leases });
        let sent = self.messages.send(v1::KeepAliveRequest { id, renew }).await;
        sent.map_err(|_| Error::Unavailable("the stream has ended; its last answer says why".into()))
    }
}

impl KeepAliveAnswers {
    /// The next answer: the request's id, and for each of its leases, in order, the milliseconds that it
    /// lives from now on (0: it does not). `None` when the sender is dropped and everything is answered.
    ///
    /// # Errors
    /// The stream has ended early. Renewing again does no harm.
    pub async fn next(&mut self) -> Result<Option<(u64, Result<Vec<u64>, Error>)>, Error> {
        let Some(answer) = self.answers.next().await else { return Ok(None) };
        let answer = answer.map_err(|e| status::from_status(&e, &self.address))?;
        let result = match answer.result {
            Some(keep_alive_response::Result::Renewed(renewed)) => Ok(renewed.ttls_ms),
            Some(keep_alive_response::Result::Failure(failure)) => Err(status::from_failure(failure)),
            None => Err(Error::Invalid("an answer without a result: the node may be newer".into())),
        };
        Ok(Some((answer.id, result)))
    }
}
