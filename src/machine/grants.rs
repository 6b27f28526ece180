//! What clients and the clock do to leases, as operations of a batch.

use bytes::Bytes;
use prost::Message;

use super::apply::{Abort, Run, done};
use super::batch::{Expire, Grant, Renew, Renewed};
use super::guest::Input;
use super::lease::{self, Lease};
use super::outcome::{HostCode, Outcome};
use crate::error::Fault;

impl<'a> Run<'a> {
    /// A lease for a client, or a session.
    pub(super) fn grant(&mut self, grant: &Grant, is_session: bool) -> Result<Outcome, Abort<'a>> {
        let (settings, now_ms) = (self.settings.in_force(), self.time_ms);
        let (overlay, tally) = self.host_rows();
        if grant.ttl_ms == 0 || grant.ttl_ms > lease::TTL_MS_MAX || grant.id > lease::CHOSEN_ID_MAX {
            return Ok(Outcome::Host(HostCode::Invalid));
        }
        if tally.live >= settings.leases_max {
            return Ok(Outcome::Host(HostCode::TooManyLeases));
        }
        if is_session && tally.sessions >= settings.sessions_max {
            return Ok(Outcome::Host(HostCode::TooManySessions));
        }
        let lease = Lease { is_session, ..Lease::granted(now_ms, grant.ttl_ms) };
        let id = match grant.id {
            0 => lease::insert(overlay, tally, lease)?,
            chosen if chosen <= tally.last || lease::find(overlay, chosen)?.is_some() => {
                return Ok(Outcome::Host(HostCode::LeaseInUse));
            }
            chosen => {
                lease::insert_as(overlay, tally, chosen, lease);
                chosen
            }
        };
        Ok(Outcome::Ok(Bytes::copy_from_slice(&id.to_be_bytes())))
    }

    /// Gives each of the leases its whole time again, if a client may still do that.
    pub(super) fn renew(&mut self, renew: &Renew) -> Result<Outcome, Abort<'a>> {
        let now_ms = self.time_ms;
        let mut ttls_ms = Vec::with_capacity(renew.leases.len());
        for &id in &renew.leases {
            let lease = self.clients(id)?;
            if let Some(lease) = &lease {
                lease::renew(self.host_rows().0, id, lease, now_ms);
            }
            ttls_ms.push(lease.map_or(0, |lease| lease.ttl_ms));
        }
        Ok(Outcome::Ok(Renewed { ttls_ms }.encode_to_vec().into()))
    }

    /// Ends a client's lease. What the machine makes of that changes nothing about it.
    pub(super) fn revoke(&mut self, id: u64) -> Result<Outcome, Abort<'a>> {
        let Some(lease) = self.clients(id)? else { return Ok(Outcome::Host(HostCode::UnknownLease)) };
        self.end(id, &lease)?;
        Ok(done())
    }

    /// Ends those of the leases that have reached their end by this batch's clock, and has the others looked
    /// at when theirs comes. Each end is an input of its own.
    pub(super) fn expire(&mut self, expire: &Expire) -> Result<Outcome, Abort<'a>> {
        let (now_ms, term_began_ms) = (self.time_ms, self.term_began_ms);
        let mut ended = Vec::new();
        for &id in &expire.leases {
            let (overlay, _) = self.host_rows();
            let Some(lease) = lease::find(overlay, id)? else { continue };
            let end_ms = lease.end_ms(term_began_ms);
            if end_ms <= now_ms {
                ended.push((end_ms, id));
            } else if end_ms > lease.due_ms && lease.due_ms <= now_ms {
                lease::put_off(overlay, id, &lease, end_ms);
            }
        }
        ended.sort_unstable();
        for (_, id) in ended {
            // The machine may have revoked it at the end of the one before.
            if let Some(lease) = lease::find(self.host_rows().0, id)? {
                self.end(id, &lease)?;
            }
        }
        Ok(done())
    }

    /// Whether the lease `id` lives.
    pub(super) fn lives(&mut self, id: u64) -> Result<bool, Fault> {
        let (now_ms, term_began_ms) = (self.time_ms, self.term_began_ms);
        let found = lease::find(self.host_rows().0, id)?;
        Ok(found.is_some_and(|lease| lease.lives(now_ms, term_began_ms)))
    }

    /// The lease `id`, if it lives and is a client's.
    fn clients(&mut self, id: u64) -> Result<Option<Lease>, Fault> {
        let (now_ms, term_began_ms) = (self.time_ms, self.term_began_ms);
        let found = lease::find(self.host_rows().0, id)?;
        Ok(found.filter(|lease| !lease.of_machine && lease.lives(now_ms, term_began_ms)))
    }

    fn end(&mut self, id: u64, lease: &Lease) -> Result<(), Abort<'a>> {
        let (overlay, tally) = self.host_rows();
        let keys = lease::remove(overlay, tally, id, lease)?;
        self.input(Input::LeaseEnded { lease: id, keys })?;
        Ok(())
    }
}
