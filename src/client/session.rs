//! Sessions.

use std::time::Duration;

use bytes::Bytes;

use super::{Again, Client};
use crate::error::Error;
use crate::machine::batch::Numbered;
use crate::node::request::{Applied, Opened};
use crate::proto::v1;
use crate::proto::v1::sessions_client::SessionsClient;

/// Sessions by hand: for programs that number their commands themselves.
impl Client {
    /// Opens a session of a machine, which ends when it is not kept alive for `ttl`.
    ///
    /// # Errors
    /// `Invalid` for a time to live that cannot be, `LimitReached`, `NotFound`.
    pub async fn open_session(&self, machine: &str, ttl: Duration) -> Result<Opened, Error> {
        let message = v1::OpenSessionRequest { machine: machine.into(), ttl_ms: ttl.as_millis() as u64 };
        let call = |channel, message| async move { SessionsClient::new(channel).open(message).await };
        // One too many ends by itself.
        Ok(self.call(Again::Always, message, call).await?.into())
    }

    /// Gives a session its whole time to live again, and says how long that is.
    ///
    /// # Errors
    /// `SessionExpired`, `NotFound`.
    pub async fn keep_session_alive(&self, machine: &str, session: u64) -> Result<Duration, Error> {
        let message = v1::KeepSessionAliveRequest { machine: machine.into(), session };
        let call = |channel, message| async move { SessionsClient::new(channel).keep_alive(message).await };
        Ok(Duration::from_millis(self.call(Again::Always, message, call).await?.ttl_ms))
    }

    /// Closes a session. None of its commands is applied from then on.
    ///
    /// # Errors
    /// `NotFound` if there is none, or none any more.
    pub async fn close_session(&self, machine: &str, session: u64) -> Result<(), Error> {
        let message = v1::CloseSessionRequest { machine: machine.into(), session };
        let call = |channel, message| async move { SessionsClient::new(channel).close(message).await };
        self.call(Again::Always, message, call).await.map(drop)
    }

    /// Sends a command that has a place in a session, once. Whatever comes of it, it may be sent again with
    /// the same place: it is applied once, and answered with its first outcome.
    ///
    /// # Errors
    /// `SessionExpired`, `NumberPassed`, `NumberAhead`; else as of [`apply`](Client::apply).
    pub async fn apply_numbered(
        &self,
        machine: &str,
        command: impl Into<Bytes>,
        numbered: Numbered,
    ) -> Result<Applied, Error> {
        let (machine, numbered) = (machine.into(), Some(numbered.into()));
        self.apply_message(v1::ApplyRequest { machine, command: command.into(), numbered }).await
    }
}
