//! Leases of machines: what clients do with them, and see of them.
//!
//! What changes a lease is an operation in its machine's log. What shows one is a linearizable read of the
//! table of leases, which the guest has no part in.

use std::sync::Arc;

use bytes::Bytes;

use super::Node;
use super::cluster::words::{LeasesWords, Question};
use super::machine::{Closed, Machine};
use super::request::{Consistency, LeaseInfo, LeasePage};
use crate::error::{Error, Fault};
use crate::id::Revision;
use crate::machine::batch::{Act, Grant, Operation};
use crate::machine::lease::{self, CHOSEN_ID_MAX, Lease, TTL_MS_MAX};
use crate::machine::outcome::{HostCode, Outcome};

use super::lane::Published;

/// Leases of one answer.
const PAGE_MAX: usize = 1_000;
/// Keys of a lease, and their bytes, that are shown at a time.
const KEYS_SHOWN_MAX: usize = 1_000;
const KEY_BYTES_SHOWN_MAX: usize = 1 << 20;

/// Leases that one request renews.
pub const RENEW_MAX: usize = 100_000;

/// What clients do.
impl Node {
    /// Grants a lease of a machine for `ttl_ms` milliseconds, under the id that the client chooses, or any
    /// for 0. Answers the id.
    ///
    /// # Errors
    /// `Invalid` for a time or an id out of range, `AlreadyExists` for an id in use, `LimitReached` if
    /// the machine has as many leases as it may; and as of [`apply`](Node::apply).
    pub async fn grant_lease(&self, machine: &str, ttl_ms: u64, id: u64) -> Result<u64, Error> {
        self.grant_lease_at(machine, ttl_ms, id).await.map(|(id, _)| id)
    }

    /// The same, with the machine's revision at that moment.
    ///
    /// # Errors
    /// As of [`grant_lease`](Node::grant_lease).
    pub async fn grant_lease_at(
        &self,
        machine: &str,
        ttl_ms: u64,
        id: u64,
    ) -> Result<(u64, Revision), Error> {
        check_ttl(ttl_ms)?;
        check_chosen(id)?;
        let found = self.find_ready(machine).await?;
        let applied = self.propose(found.record.group(), Act::Grant(Grant { ttl_ms, id }).into()).await?;
        match &applied.outcome {
            Outcome::Ok(answer) => {
                let id = Operation::granted(answer).ok_or_else(|| odd(&applied.outcome))?;
                Ok((id, applied.revision))
            }
            Outcome::Host(code) => Err(refused(&found, *code, id)),
            Outcome::Refused(_) => Err(odd(&applied.outcome)),
        }
    }

    /// Gives leases their whole time again. For each, in order, the milliseconds that it lives from now on; 0
    /// if there is no such lease, or it is the machine's own. Those of many clients go as one operation; a
    /// lease that was renewed a moment ago is told what is left of its time.
    ///
    /// # Errors
    /// `TooLarge` for more than [`RENEW_MAX`]; and as of [`apply`](Node::apply). Renewing again does no harm.
    pub async fn renew_leases(&self, machine: &str, leases: &[u64]) -> Result<Vec<u64>, Error> {
        if leases.len() > RENEW_MAX {
            return Err(Error::TooLarge(format!(
                "{} leases are to be renewed by one request, the limit is {RENEW_MAX}: send several",
                leases.len()
            )));
        }
        let found = self.find_ready(machine).await?;
        let _inside = self.enter()?;
        match self.renewed_lately(&found, leases).await {
            Some(left_ms) => Ok(left_ms),
            None => self.renew_gathered(found.record.group(), leases).await,
        }
    }

    /// Ends a lease. The machine is told, and makes of it what it will.
    ///
    /// # Errors
    /// `NotFound` if there is no such lease, or it is the machine's own; and as of [`apply`](Node::apply).
    pub async fn revoke_lease(&self, machine: &str, id: u64) -> Result<(), Error> {
        self.revoke_lease_at(machine, id).await.map(drop)
    }

    /// The same, with the machine's revision after it.
    ///
    /// # Errors
    /// As of [`revoke_lease`](Node::revoke_lease).
    pub async fn revoke_lease_at(&self, machine: &str, id: u64) -> Result<Revision, Error> {
        let found = self.find_ready(machine).await?;
        let applied = self.propose(found.record.group(), Act::Revoke(id).into()).await?;
        match &applied.outcome {
            Outcome::Ok(_) => Ok(applied.revision),
            Outcome::Host(code) => Err(refused(&found, *code, id)),
            Outcome::Refused(_) => Err(odd(&applied.outcome)),
        }
    }
}

/// What clients see.
impl Node {
    /// A lease, with the first thousand of the keys that are attached to it.
    ///
    /// # Errors
    /// `NotFound` if there is no such lease; and as of [`query`](Node::query).
    pub async fn lease(&self, machine: &str, id: u64) -> Result<LeaseInfo, Error> {
        self.lease_after(machine, id, None).await
    }

    /// A lease, with all keys that are attached to it. They are read a page at a time: what is attached or
    /// let go meanwhile may be among them or not.
    ///
    /// # Errors
    /// As of [`lease`](Node::lease), also if it ends meanwhile.
    pub async fn lease_with_all_keys(&self, machine: &str, id: u64) -> Result<LeaseInfo, Error> {
        let mut lease = self.lease(machine, id).await?;
        while lease.more_keys {
            let page = self.lease_after(machine, id, lease.keys.last().cloned()).await?;
            // None: they were let go of meanwhile.
            if page.keys.first().is_some_and(|first| Some(first) <= lease.keys.last()) {
                return Err(Error::Unavailable(format!(
                    "lease {id} of machine {machine:?} has more than {} keys, and a node that was asked for \
                     the rest is of a version that shows no more: update it",
                    lease.keys.len()
                )));
            }
            lease.keys.extend(page.keys);
            (lease.remaining_ms, lease.more_keys) = (page.remaining_ms, page.more_keys);
        }
        Ok(lease)
    }

    /// A lease, with keys after one.
    async fn lease_after(
        &self,
        machine: &str,
        id: u64,
        keys_after: Option<Bytes>,
    ) -> Result<LeaseInfo, Error> {
        let machine_name = machine.to_owned();
        let words = LeasesWords { machine: machine_name, id: Some(id), after: 0, limit: 1, keys_after };
        let mut page = self.leases_anywhere(words).await?;
        page.leases.pop().ok_or_else(|| unknown(machine, id))
    }

    /// The leases of a machine after one, by id, at most `limit` (0: a page), and whether there are more.
    ///
    /// # Errors
    /// As of [`query`](Node::query).
    pub async fn leases(&self, machine: &str, after: u64, limit: u32) -> Result<LeasePage, Error> {
        let machine = machine.to_owned();
        self.leases_anywhere(LeasesWords { machine, id: None, after, limit, keys_after: None }).await
    }

    async fn leases_anywhere(&self, words: LeasesWords) -> Result<LeasePage, Error> {
        let _inside = self.enter()?;
        let found = self.find_ready(&words.machine).await?;
        match &found.open {
            Err(Closed::Elsewhere | Closed::Waiting) => {
                self.ask_any(&found.record, Question::Leases(words)).await?.leases()
            }
            _ => self.leases_of(&found, &words).await,
        }
    }

    /// Answers another node, for a machine that has a replica here.
    pub(super) async fn leases_here(&self, words: &LeasesWords) -> Result<LeasePage, Error> {
        let found = self.find_ready(&words.machine).await?;
        self.leases_of(&found, words).await
    }

    async fn leases_of(&self, found: &Arc<Machine>, words: &LeasesWords) -> Result<LeasePage, Error> {
        let lane = found.serving()?.lane.clone();
        self.wait_fresh(&lane, Consistency::Linearizable).await?;
        let published = lane.published();
        let now_ms = lane.time_ms(&published, &self.inner.stage.clock);
        let page = match words.id {
            Some(id) => one(&published, id, words.keys_after.as_deref(), now_ms),
            None => some(&published, words.after, words.limit, now_ms),
        };
        page.map_err(|fault| self.noticed(fault.into()))
    }
}

fn one(published: &Published, id: u64, keys_after: Option<&[u8]>, now_ms: u64) -> Result<LeasePage, Fault> {
    let Some(lease) = lease::find_in(&*published.view, id)? else { return Ok(LeasePage::default()) };
    let mut info = info(published, id, &lease, now_ms);
    let mut bytes = 0;
    for key in lease::attached_in(&*published.view, id, keys_after, KEYS_SHOWN_MAX + 1)? {
        bytes += key.len();
        if info.keys.len() == KEYS_SHOWN_MAX || bytes > KEY_BYTES_SHOWN_MAX {
            info.more_keys = true;
            break;
        }
        info.keys.push(key.into());
    }
    Ok(LeasePage { leases: vec![info], more: false })
}

fn some(published: &Published, after: u64, limit: u32, now_ms: u64) -> Result<LeasePage, Fault> {
    let limit = if limit == 0 { PAGE_MAX } else { PAGE_MAX.min(limit as usize) };
    let mut ids = lease::ids_after(&*published.view, after, limit + 1)?;
    let more = ids.len() > limit;
    ids.truncate(limit);
    let mut leases = Vec::with_capacity(ids.len());
    for id in ids {
        if let Some(lease) = lease::find_in(&*published.view, id)? {
            leases.push(info(published, id, &lease, now_ms));
        }
    }
    Ok(LeasePage { leases, more })
}

fn info(published: &Published, id: u64, lease: &Lease, now_ms: u64) -> LeaseInfo {
    LeaseInfo {
        id,
        ttl_ms: lease.ttl_ms,
        remaining_ms: lease.end_ms(published.head.term_began.0).saturating_sub(now_ms),
        of_machine: lease.of_machine,
        is_session: lease.is_session,
        keys: Vec::new(),
        more_keys: false,
    }
}

/// Refuses a time that no lease can have.
pub(super) fn check_ttl(ttl_ms: u64) -> Result<(), Error> {
    if (1..=TTL_MS_MAX).contains(&ttl_ms) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "a time to live of {ttl_ms} ms: it may be 1 to {TTL_MS_MAX} ms (100 years of 365 days)"
    )))
}

fn check_chosen(id: u64) -> Result<(), Error> {
    if id <= CHOSEN_ID_MAX {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "lease id {id} cannot be chosen: it may be 1 to {CHOSEN_ID_MAX}, or 0 for any"
    )))
}

/// What a client is told whose operation on a lease the host ended.
fn refused(machine: &Machine, code: HostCode, id: u64) -> Error {
    let name = &machine.record.name;
    match code {
        HostCode::UnknownLease => unknown(name, id),
        HostCode::LeaseInUse => Error::AlreadyExists(format!(
            "lease {id} of machine {name:?} is in use, or was given before: choose another id, or none"
        )),
        HostCode::NotCreated => Error::NotFound(format!("machine {name:?} was not created")),
        other => odd(&Outcome::Host(other)),
    }
}

fn unknown(machine: &str, id: u64) -> Error {
    Error::NotFound(format!(
        "machine {machine:?} has no lease {id} of a client: it has ended or was revoked, or never was"
    ))
}

fn odd(outcome: &Outcome) -> Error {
    Error::Unknown(format!("the outcome of an operation on a lease was not expected: {outcome:?}"))
}
