//! Sessions: opened and closed, and what the host's codes about them mean to a caller.
//!
//! Promises: an error says whether the command was applied, as far as that can be known, names the number and
//! the limit, and says what to do. Must never open a session under an id that a client chose: ids that are
//! used twice would let a late copy of an old command into a new session.

use std::time::Duration;

use bytes::Bytes;

use super::Node;
use super::leases;
use super::request::{Applied, Opened};
use crate::error::{Error, Fault};
use crate::id::GroupId;
use crate::machine::batch::{Act, Grant, Numbered, Operation};
use crate::machine::outcome::{HostCode, Outcome};
use crate::machine::settings::InForce;

/// Sessions.
impl Node {
    /// Opens a session of a machine, which ends when it is not renewed for `ttl`: it is a lease, with
    /// [`renew_leases`](Node::renew_leases).
    ///
    /// # Errors
    /// `Invalid` for a time to live that cannot be, `LimitReached`; else as of [`apply`](Node::apply). After
    /// `Unknown` there may be a session that nobody knows, until its time is over.
    pub async fn open_session(&self, machine: &str, ttl: Duration) -> Result<Opened, Error> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        leases::check_ttl(ttl_ms)?;
        let found = self.find_ready(machine).await?;
        let grant = Act::OpenSession(Grant { ttl_ms, id: 0 });
        let applied = self.propose(found.record.group(), grant.into()).await?;
        let session = match &applied.outcome {
            Outcome::Ok(answer) => Operation::granted(answer),
            outcome => return Err(unexpected("opening a session", outcome)),
        };
        let session = session.ok_or_else(|| Fault::new("a granted session has no id"))?;
        let window = self.settings_of(&found, applied.index).await?.in_force().session_window;
        Ok(Opened { session, ttl: Duration::from_millis(ttl_ms), window })
    }

    /// Closes a session: what it keeps is dropped, and none of its commands is applied from now on.
    ///
    /// # Errors
    /// `NotFound` if it has ended already; else as of [`apply`](Node::apply).
    pub async fn close_session(&self, machine: &str, session: u64) -> Result<(), Error> {
        let found = self.find_ready(machine).await?;
        let applied = self.propose(found.record.group(), Act::Revoke(session).into()).await?;
        match applied.outcome {
            Outcome::Ok(_) => Ok(()),
            Outcome::Host(HostCode::UnknownLease) => Err(Error::NotFound(format!(
                "the machine {machine:?} has no session {session}: it has ended, or never was"
            ))),
            outcome => Err(unexpected("closing a session", &outcome)),
        }
    }

    /// Sends a command that has a place in a session. The same place again, here or at another node, whatever
    /// became of the first try, is answered with the first outcome, and the command is applied once. A node
    /// sends it again by itself when it does not know what became of it.
    ///
    /// # Errors
    /// `SessionExpired`, `NumberPassed`, `NumberAhead`; else as of [`apply`](Node::apply).
    pub async fn apply_numbered(
        &self,
        machine: &str,
        command: Bytes,
        numbered: Numbered,
    ) -> Result<Applied, Error> {
        self.apply_traced(machine, command, Some(numbered), None).await
    }

    /// What became of an operation that this node's replica ordered: the host's codes about sessions and
    /// limits are errors for whoever asked, told with the limits there are.
    pub(super) fn as_answered(
        &self,
        group: GroupId,
        numbered: Option<Numbered>,
        applied: Applied,
    ) -> Result<Applied, Error> {
        let Outcome::Host(code) = &applied.outcome else { return Ok(applied) };
        let Some(machine) = self.inner.registry.by_group(group) else { return Ok(applied) };
        let settings = machine.lane().map(|lane| lane.published().head.settings).unwrap_or_default();
        match told(*code, &machine.record.name, numbered.as_ref(), &settings.in_force()) {
            Some(error) => Err(error),
            None => Ok(applied),
        }
    }
}

/// Whether a place in a session can be one.
pub(super) fn check(numbered: &Numbered) -> Result<(), Error> {
    let Numbered { session, number, acknowledged } = *numbered;
    let wrong = if session == 0 {
        "a numbered command needs its session: an id as `statehouse session open` gave it, never 0".into()
    } else if number == 0 {
        "the commands of a session are numbered from 1: 0 is the number of none".into()
    } else if acknowledged >= number {
        format!(
            "acknowledged {acknowledged} with the command {number}: only numbers below its own can be \
             acknowledged with a command"
        )
    } else {
        return Ok(());
    };
    Err(Error::Invalid(wrong))
}

fn unexpected(what: &str, outcome: &Outcome) -> Error {
    match outcome {
        Outcome::Host(HostCode::NotCreated) => Error::Unavailable("the machine is being created".into()),
        outcome => Error::FailedPrecondition(format!("{what} ended as {outcome:?}")),
    }
}

/// What a caller is told of a code that is about sessions or limits.
fn told(code: HostCode, machine: &str, numbered: Option<&Numbered>, limits: &InForce) -> Option<Error> {
    let Numbered { session, number, .. } = numbered.copied().unwrap_or_default();
    Some(match code {
        HostCode::UnknownSession => Error::SessionExpired(format!(
            "the session {session} of {machine:?} has ended, or never was. The command {number} was not \
             applied now; whether it, and others whose outcome was not told, were applied before is unknown: \
             look at the machine's state, and open a new session"
        )),
        HostCode::NumberPassed => Error::NumberPassed(format!(
            "the outcome of command {number} of session {session} was acknowledged and is forgotten; the \
             command is not applied again: numbers only go up"
        )),
        HostCode::NumberAhead => Error::NumberAhead(format!(
            "command {number} of session {session} is too far ahead and was not applied: numbers may run {} \
             ahead of what is acknowledged: acknowledge outcomes first, or raise `session_window` of \
             {machine:?}",
            limits.session_window
        )),
        HostCode::TooManySessions => Error::LimitReached(format!(
            "{machine:?} has {} open sessions, as many as it may: close some, or raise its setting \
             `sessions_max`",
            limits.sessions_max
        )),
        HostCode::TooManyLeases => Error::LimitReached(format!(
            "{machine:?} has {} leases, as many as it may: revoke some, or raise its setting `leases_max`",
            limits.leases_max
        )),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::settings::DEFAULTS;

    #[test]
    fn a_place_that_can_be_none_is_refused_with_its_numbers() {
        let place = |session, number, acknowledged| check(&Numbered { session, number, acknowledged });
        assert!(place(1, 1, 0).is_ok() && place(9, 7, 6).is_ok());
        for (wrong, word) in [(place(0, 1, 0), "session"), (place(1, 0, 0), "0"), (place(1, 7, 7), "7")] {
            assert!(matches!(&wrong, Err(Error::Invalid(text)) if text.contains(word)), "{wrong:?}");
        }
    }

    #[test]
    fn every_code_of_sessions_is_an_error_of_its_own_that_names_the_limit() {
        let numbered = Numbered { session: 7, number: 300, acknowledged: 0 };
        let limits = InForce { sessions_max: 11, leases_max: 12, session_window: 13, ..DEFAULTS };
        let error = |code| told(code, "kv", Some(&numbered), &limits).map(|error| error.to_string());
        for (code, words) in [
            (HostCode::UnknownSession, ["session 7", "command 300"]),
            (HostCode::NumberPassed, ["session 7", "command 300"]),
            (HostCode::NumberAhead, ["command 300", " 13 "]),
            (HostCode::TooManySessions, [" 11 ", "sessions_max"]),
            (HostCode::TooManyLeases, [" 12 ", "leases_max"]),
        ] {
            let text = error(code).expect("an error");
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
        assert!(error(HostCode::Trapped).is_none(), "what became of a guest stays an outcome");
    }
}
