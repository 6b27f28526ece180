//! Writing: puts and deletions of one input, which share its revision.
//!
//! The contract limits what one input may do and traps beyond. A [`Writer`] counts along and refuses
//! before.

use crate::host::{EventKind, Host, TooManyLeases};
use crate::messages::{DeleteRangeRequest, PutRequest};
use crate::read::Reader;
use crate::refusal::Refusal;
use crate::rows::{self, Keys, Meta};
use crate::wire::{self, Version};
use crate::{ANSWER_BYTES_MAX, EVENTS_MAX, LEASE_CHANGES_MAX, VALUE_BYTES_MAX, WRITE_BYTES_MAX};

/// One input at work.
pub(crate) struct Writer<'h, H> {
    pub host: &'h mut H,
    /// The revision that the events of this input carry.
    pub revision: i64,
    /// The log's clock, by which times to live are judged and begin.
    pub time_ms: u64,
    /// How many events there are.
    pub events: usize,
    /// Bytes written, as the contract counts them.
    pub bytes: usize,
    lease_changes: usize,
}

impl<'h, H: Host> Writer<'h, H> {
    /// An input that has done nothing yet.
    pub fn new(host: &'h mut H, revision: i64, time_ms: u64) -> Writer<'h, H> {
        Writer { host, revision, time_ms, events: 0, bytes: 0, lease_changes: 0 }
    }

    /// Whether the store's revision is this input's.
    pub fn changed(&self) -> bool {
        self.events > 0
    }

    /// The store's revision with what was done so far.
    pub fn now(&self) -> i64 {
        if self.changed() { self.revision } else { self.revision - 1 }
    }

    /// The store as the input sees it: with its own writes.
    pub fn reader(&self) -> Reader<'_, H> {
        let (begin, now) = (self.revision - 1, self.now());
        Reader { host: self.host, begin, now, time_ms: self.time_ms, hide_ended: false }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.bytes += bytes;
        if self.bytes > WRITE_BYTES_MAX {
            Err(Refusal::too_much("bytes of writes", WRITE_BYTES_MAX))
        } else {
            Ok(())
        }
    }

    /// Sets a row.
    pub fn set(&mut self, row: &[u8], value: &[u8]) -> Result<(), Refusal> {
        self.charge(row.len() + value.len())?;
        self.host.set(row, value);
        Ok(())
    }

    /// Removes a row.
    pub fn remove(&mut self, row: &[u8]) -> Result<(), Refusal> {
        self.charge(row.len())?;
        self.host.delete(row);
        Ok(())
    }

    /// Writes what the store remembers of itself.
    pub fn set_meta(&mut self, meta: &Meta) -> Result<(), Refusal> {
        let (row, value) = meta.row();
        self.set(row, &value)
    }

    fn emit(&mut self, kind: EventKind, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        self.charge(key.len() + value.len())?;
        self.events += 1;
        if self.events > EVENTS_MAX {
            return Err(Refusal::too_much("changes of keys", EVENTS_MAX));
        }
        self.host.emit(kind, key, value);
        Ok(())
    }

    fn change_lease(&mut self) -> Result<(), Refusal> {
        self.lease_changes += 1;
        if self.lease_changes > LEASE_CHANGES_MAX {
            return Err(Refusal::too_much("changes of leases", LEASE_CHANGES_MAX));
        }
        Ok(())
    }

    /// Writes a key and answers with an encoded `PutResponse`.
    pub fn put(&mut self, request: &PutRequest) -> Result<Vec<u8>, Refusal> {
        rows::check_key(&request.key)?;
        let row = rows::current(&request.key);
        let stored_row = self.host.get(&row);
        let stored = match &stored_row {
            Some(row) => Some(Version::parse(row).ok_or(Refusal::DAMAGED)?),
            None => None,
        };
        // What has expired is still to be put an end to in the store, but for the request it is not there.
        let old = stored.filter(|version| !version.expired(self.time_ms));
        if old.is_none() && (request.ignore_value || request.ignore_lease) {
            return Err(Refusal::KEY_NOT_FOUND);
        }
        let before = old.unwrap_or_default();
        let (lease, expires_at_ms) = self.lease_of(request, &stored.unwrap_or_default())?;
        let new = Version {
            key: &request.key,
            create_revision: if old.is_some() { before.create_revision } else { self.revision },
            mod_revision: self.revision,
            version: before.version.saturating_add(1),
            value: if request.ignore_value { before.value } else { &request.value },
            lease,
            expires_at_ms,
        };
        let new_row = new.encode();
        if new_row.len() > VALUE_BYTES_MAX {
            return Err(Refusal::TOO_LARGE);
        }
        if let (Some(stored), Some(stored_row)) = (&stored, &stored_row) {
            self.end(stored, stored_row)?;
        }
        self.set(&row, &new_row)?;
        self.emit(EventKind::Put, &request.key, &new_row)?;

        let mut answer = Vec::with_capacity(32);
        wire::header(&mut answer, self.revision);
        if let (true, Some(_), Some(old_row)) = (request.prev_kv, old, &stored_row) {
            wire::message_field(&mut answer, 2, old_row);
        }
        Ok(answer)
    }

    /// Ties the key to the lease that the request is for, and unties it from the one it had. Gives the lease,
    /// and the deadline if it is the key's own.
    #[inline]
    fn lease_of(&mut self, request: &PutRequest, stored: &Version<'_>) -> Result<(i64, u64), Refusal> {
        if request.ignore_lease {
            return Ok((stored.lease, stored.expires_at_ms));
        }
        if request.lease == 0 && request.ttl_ms.is_none() && stored.lease == 0 {
            return Ok((0, 0));
        }
        self.move_lease(request, stored)
    }

    /// A client's lease is asked for again even if the key has it already: it may have ended.
    fn move_lease(&mut self, request: &PutRequest, stored: &Version<'_>) -> Result<(i64, u64), Refusal> {
        let (key, lease) = (&request.key, request.lease as u64);
        if lease != 0 && self.host.get(&rows::owned(lease)).is_some() {
            return Err(Refusal::owned_lease(request.lease));
        }
        if stored.owns_lease() {
            self.give_up(stored)?;
        }
        if let Some(ttl_ms) = request.ttl_ms {
            return self.own_lease(key, ttl_ms);
        }
        if lease != 0 {
            self.change_lease()?;
            self.host.attach(lease, key).map_err(|_| Refusal::LEASE_NOT_FOUND)?;
        } else if !stored.owns_lease() {
            self.change_lease()?;
            self.host.detach(key);
        }
        Ok((request.lease, 0))
    }

    /// Grants the key a lease of its own; gives it and its deadline.
    fn own_lease(&mut self, key: &[u8], ttl_ms: u64) -> Result<(i64, u64), Refusal> {
        self.change_lease()?;
        let lease = self.host.grant(ttl_ms).map_err(|TooManyLeases| Refusal::too_many_leases())?;
        self.change_lease()?;
        self.host.attach(lease, key).map_err(|_| Refusal::LEASE_NOT_FOUND)?;
        self.set(&rows::owned(lease), &[])?;
        Ok((lease as i64, self.time_ms.saturating_add(ttl_ms)))
    }

    /// Revokes the lease that a version owns.
    fn give_up(&mut self, version: &Version<'_>) -> Result<(), Refusal> {
        self.change_lease()?;
        // The contract counts the keys that a revoked lease lets go of as written.
        self.charge(version.key.len())?;
        // One that is gone was ended by the host, which is as good.
        let _ = self.host.revoke(version.lease as u64);
        self.remove(&rows::owned(version.lease as u64))
    }

    /// Moves a version into the history. One that this same input wrote was never to be seen: it leaves no
    /// trace.
    fn end(&mut self, version: &Version<'_>, row: &[u8]) -> Result<(), Refusal> {
        if version.mod_revision == self.revision {
            return Ok(());
        }
        self.set(&rows::history(version.key, self.revision), row)
    }

    /// Deletes a key, given its current row, and unties it from its lease.
    pub fn delete(&mut self, row_key: &[u8], row: &[u8]) -> Result<(), Refusal> {
        let version = Version::parse(row).ok_or(Refusal::DAMAGED)?;
        self.take_away(row_key, row, &version)?;
        if version.owns_lease() {
            self.give_up(&version)?;
        } else if version.lease != 0 {
            self.change_lease()?;
            self.host.detach(version.key);
        }
        Ok(())
    }

    /// Deletes a key whose lease has ended, given its current row.
    pub fn delete_unleased(&mut self, row_key: &[u8], row: &[u8]) -> Result<(), Refusal> {
        let version = Version::parse(row).ok_or(Refusal::DAMAGED)?;
        self.take_away(row_key, row, &version)?;
        if version.owns_lease() {
            self.remove(&rows::owned(version.lease as u64))?;
        }
        Ok(())
    }

    fn take_away(&mut self, row_key: &[u8], row: &[u8], version: &Version<'_>) -> Result<(), Refusal> {
        self.end(version, row)?;
        self.remove(row_key)?;
        let tombstone = Version { key: version.key, mod_revision: self.revision, ..Version::default() };
        self.emit(EventKind::Delete, version.key, &tombstone.encode())
    }

    /// Deletes keys and answers with an encoded `DeleteRangeResponse`.
    pub fn delete_range(&mut self, request: &DeleteRangeRequest) -> Result<Vec<u8>, Refusal> {
        let mut previous = Vec::new();
        let mut deleted = 0;
        let mut cursor = match Keys::new(&request.key, &request.range_end) {
            // A longer key has no row, and asking for it would trap.
            Keys::One(key) if rows::check_key(key).is_err() => None,
            Keys::One(key) => {
                let row_key = rows::current(key);
                if let Some(row) = self.host.get(&row_key) {
                    deleted += self.delete_noting(&row_key, &row, request.prev_kv, &mut previous)?;
                }
                None
            }
            keys => Some(keys.current_rows()),
        };
        while let Some((row_key, row)) = cursor.as_mut().and_then(|cursor| cursor.next(self.host)) {
            deleted += self.delete_noting(&row_key, &row, request.prev_kv, &mut previous)?;
        }
        let mut answer = Vec::with_capacity(32 + previous.len());
        wire::header(&mut answer, self.now());
        wire::int_field(&mut answer, 2, deleted);
        answer.extend_from_slice(&previous);
        Ok(answer)
    }

    /// Deletes a key, and says how many that makes: none if it has expired, for then it goes with its lease.
    fn delete_noting(
        &mut self,
        row_key: &[u8],
        row: &[u8],
        note: bool,
        previous: &mut Vec<u8>,
    ) -> Result<i64, Refusal> {
        if Version::parse(row).ok_or(Refusal::DAMAGED)?.expired(self.time_ms) {
            return Ok(0);
        }
        self.delete(row_key, row)?;
        if note {
            wire::message_field(previous, 3, row);
            if previous.len() > ANSWER_BYTES_MAX {
                return Err(Refusal::answer_too_large(ANSWER_BYTES_MAX));
            }
        }
        Ok(1)
    }
}
