//! Sessions: numbered commands whose outcomes are kept until the client has seen them, so that a command that
//! is sent again is answered and not applied again. As rows of `Table::Leases`:
//!
//! | row | meaning |
//! | --- | --- |
//! | `s` id | the session: up to which number its client has seen the outcomes |
//! | `o` id number | the first outcome of a numbered command |
//!
//! A session is a lease with numbering: it has the lease's id and ends with it, its rows too. Numbers count
//! from 1. Those from the first that is not acknowledged on, as many as the window has, may come in any
//! order; what is below is forgotten, what is above must wait.
//!
//! The idea is that of RIFL (Lee, Park, Kejriwal, Matsushita, Ousterhout: Implementing Linearizability at
//! Large Scale and Low Latency, SOSP 2015), with the records in the replicated state.

use std::ops::ControlFlow;

use prost::Message;

use super::batch::Numbered;
use super::outcome::{HostCode, OutcomeAt, OutcomeRow};
use super::overlay::Overlay;
use super::settings::{SESSION_WINDOW_MAX, Settings};
use super::view::{Direction, Span, Table};
use crate::error::{Fault, REPAIR};

/// The stored form of a session.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Session {
    /// The outcomes up to this number were seen by the client and are forgotten here.
    #[prost(uint64, tag = "1")]
    acknowledged: u64,
}

/// What is to be done with a numbered command.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Apply it, then [`keep`] its outcome.
    Apply,
    /// It was applied before: this is what became of it.
    Again(OutcomeAt),
    /// It is not applied.
    Refuse(HostCode),
}

/// Opens the session of a new lease.
pub fn open(overlay: &mut Overlay, id: u64) {
    overlay.put(Table::Leases, session_key(id), Some(Session::default().encode_to_vec().into()));
}

/// Notes what the client has seen, and decides about its command. The session's lease must live.
pub fn turn(overlay: &mut Overlay, numbered: &Numbered, settings: &Settings) -> Result<Turn, Fault> {
    let Numbered { session: id, number, acknowledged } = *numbered;
    let Some(row) = overlay.get(Table::Leases, &session_key(id))? else {
        return Ok(Turn::Refuse(HostCode::UnknownSession));
    };
    if acknowledged >= number {
        return Ok(Turn::Refuse(HostCode::Invalid));
    }
    let mut session = Session::decode(row.as_ref()).map_err(|_| damaged())?;
    let window = settings.in_force().session_window;
    if acknowledged > session.acknowledged {
        // What is kept lies within the widest window that there can have been. Nothing is read: a row that is
        // not there is deleted for less than it takes to look.
        let kept_up_to = acknowledged.min(session.acknowledged.saturating_add(SESSION_WINDOW_MAX));
        for seen in session.acknowledged + 1..=kept_up_to {
            overlay.put(Table::Leases, outcome_key(id, seen), None);
        }
        session.acknowledged = acknowledged;
        overlay.put(Table::Leases, session_key(id), Some(session.encode_to_vec().into()));
    }
    if number <= session.acknowledged {
        return Ok(Turn::Refuse(HostCode::NumberPassed));
    }
    if let Some(row) = overlay.get(Table::Leases, &outcome_key(id, number))? {
        return OutcomeRow::read(&row).map(Turn::Again).ok_or_else(damaged);
    }
    if number - session.acknowledged > window {
        return Ok(Turn::Refuse(HostCode::NumberAhead));
    }
    Ok(Turn::Apply)
}

/// Keeps what became of a command.
pub fn keep(overlay: &mut Overlay, numbered: &Numbered, first: &OutcomeAt) {
    let key = outcome_key(numbered.session, numbered.number);
    overlay.put(Table::Leases, key, Some(OutcomeRow::of(first).encode_to_vec().into()));
}

/// Drops a session with all it keeps.
pub fn remove(overlay: &mut Overlay, id: u64) -> Result<(), Fault> {
    overlay.put(Table::Leases, session_key(id), None);
    let (start, mut end) = (outcome_key(id, 0), outcome_key(id, u64::MAX));
    end.push(0);
    let mut keys = Vec::new();
    let span = Span { start: &start, end: Some(&end) };
    overlay.scan(Table::Leases, span, Direction::Forward, &mut |key, _| {
        keys.push(key.to_vec());
        ControlFlow::Continue(())
    })?;
    for key in keys {
        overlay.put(Table::Leases, key, None);
    }
    Ok(())
}

fn damaged() -> Fault {
    Fault::new(format!("a session row is damaged. {REPAIR}"))
}

fn session_key(id: u64) -> Vec<u8> {
    [b"s".as_slice(), &id.to_be_bytes()].concat()
}

fn outcome_key(id: u64, number: u64) -> Vec<u8> {
    [b"o".as_slice(), &id.to_be_bytes(), &number.to_be_bytes()].concat()
}
