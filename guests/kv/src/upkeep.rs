//! Work done by and by: removing what a compaction gave up, and deleting the keys of ended leases.
//!
//! One input may write so much and no more, so neither can be done at once when it is large. Both count as
//! done when they are asked for: a read below a compaction is refused, and queries leave out keys whose
//! lease is gone. The rows go in steps of bounded size, with the inputs that come later. When a step is due
//! depends on the revision alone, so it is the same on every replica.

use prost::Message;

use crate::host::Host;
use crate::messages::CompactionRequest;
use crate::refusal::Refusal;
use crate::rows::{self, Keys, Meta, PurgeSpan};
use crate::wire::{self, Version};
use crate::write::Writer;
use crate::{EVENTS_MAX, WRITE_BYTES_MAX};

/// Inputs whose revision is a multiple of this do a step, after their own work.
const STEP_INTERVAL_REVISIONS: i64 = 16;

/// How much is read at once: so many rows, or bytes if they are large. Looking at a row costs its value too.
struct Effort {
    rows_max: usize,
    bytes_max: usize,
}

/// A step with another input: eight rows for every revision, of which each adds one or a few.
const STEP: Effort = Effort { rows_max: 128, bytes_max: 32 << 20 };
/// What the compaction does itself.
const COMPACTION: Effort = Effort { rows_max: 1_000, bytes_max: 32 << 20 };
/// What it does if it is to be physical.
const PHYSICAL_COMPACTION: Effort = Effort { rows_max: 10_000, bytes_max: 128 << 20 };
/// Rows asked of the host at a time.
const PAGE_ROWS: u32 = 128;
/// Upkeep leaves the rest to later inputs when an input has done so much.
const WRITE_BYTES_ENOUGH: usize = WRITE_BYTES_MAX / 2;
const EVENTS_ENOUGH: usize = EVENTS_MAX / 2;

/// Gives up the history before a revision, and answers with an encoded `CompactionResponse`.
pub(crate) fn compact<H: Host>(
    writer: &mut Writer<'_, H>,
    request: &CompactionRequest,
) -> Result<Vec<u8>, Refusal> {
    let mut meta = Meta::read(writer.host)?;
    if request.revision <= meta.compact_revision() {
        return Err(Refusal::COMPACTED);
    }
    if request.revision > writer.now() {
        return Err(Refusal::FUTURE_REVISION);
    }
    meta.compacted = Some(request.revision);
    if meta.removing.is_none() {
        meta.removing = meta.compacted;
    }
    let effort = if request.physical { PHYSICAL_COMPACTION } else { COMPACTION };
    remove_step(writer, &mut meta, effort)?;
    writer.set_meta(&meta)?;
    let mut answer = Vec::new();
    wire::header(&mut answer, writer.now());
    Ok(answer)
}

/// Does a step if one is due and there is something to do.
pub(crate) fn step<H: Host>(writer: &mut Writer<'_, H>) -> Result<(), Refusal> {
    if !writer.changed() || writer.revision % STEP_INTERVAL_REVISIONS != 0 || enough(writer) {
        return Ok(());
    }
    let mut meta = Meta::read(writer.host)?;
    if meta.removing.is_none() && !meta.purging {
        return Ok(());
    }
    if meta.purging {
        purge_step(writer, &mut meta)?;
    }
    remove_step(writer, &mut meta, STEP)?;
    writer.set_meta(&meta)
}

fn enough<H: Host>(writer: &Writer<'_, H>) -> bool {
    writer.bytes >= WRITE_BYTES_ENOUGH || writer.events >= EVENTS_ENOUGH
}

/// Looks at so many history rows from where the last step ended, and removes those that ended by the last
/// compaction. A compaction that came after a pass began is in time for the rest of it, and begins another.
fn remove_step<H: Host>(writer: &mut Writer<'_, H>, meta: &mut Meta, effort: Effort) -> Result<(), Refusal> {
    let (Some(pass), Some(compacted)) = (meta.removing, meta.compacted) else { return Ok(()) };
    let mut cursor = rows::history_rows_from(&meta.remove_from).by(PAGE_ROWS);
    let mut bytes = 0;
    for _ in 0..effort.rows_max {
        let Some((row_key, row)) = cursor.next(writer.host) else {
            meta.remove_from.clear();
            meta.removing = (pass < compacted).then_some(compacted);
            return Ok(());
        };
        if rows::ended_by(&row_key).ok_or(Refusal::DAMAGED)? <= compacted {
            writer.remove(&row_key)?;
        }
        meta.remove_from.clone_from(&row_key);
        meta.remove_from.push(0);
        bytes += row.len();
        if enough(writer) || bytes >= effort.bytes_max {
            break;
        }
    }
    Ok(())
}

/// Deletes the keys of an ended lease, as many as one input can, and notes the span of the rest.
pub(crate) fn lease_ended<H: Host>(
    writer: &mut Writer<'_, H>,
    lease: u64,
    keys: &[Vec<u8>],
) -> Result<(), Refusal> {
    for (done, key) in keys.iter().enumerate() {
        if enough(writer) {
            return note_rest(writer, lease, &keys[done..]);
        }
        // Only what this machine attached can be here, and it attaches no key that fails this.
        if rows::check_key(key).is_ok() {
            delete_of_lease(writer, lease, &rows::current(key))?;
        }
    }
    step(writer)
}

fn note_rest<H: Host>(writer: &mut Writer<'_, H>, lease: u64, keys: &[Vec<u8>]) -> Result<(), Refusal> {
    let (Some(next), Some(last)) = (keys.first(), keys.last()) else { return Ok(()) };
    let span = PurgeSpan { next: next.clone(), last: last.clone() };
    writer.set(&rows::purge(lease), &span.encode_to_vec())?;
    let mut meta = Meta::read(writer.host)?;
    meta.purging = true;
    writer.set_meta(&meta)
}

fn delete_of_lease<H: Host>(writer: &mut Writer<'_, H>, lease: u64, row_key: &[u8]) -> Result<(), Refusal> {
    let Some(row) = writer.host.get(row_key) else { return Ok(()) };
    if Version::parse(&row).ok_or(Refusal::DAMAGED)?.lease as u64 == lease {
        writer.delete_unleased(row_key, &row)?;
    }
    Ok(())
}

/// Looks at some of the keys in the span of one ended lease, and deletes those that still name it.
fn purge_step<H: Host>(writer: &mut Writer<'_, H>, meta: &mut Meta) -> Result<(), Refusal> {
    let Some((purge_row, span)) = rows::purge_rows().by(1).next(writer.host) else {
        meta.purging = false;
        return Ok(());
    };
    let lease = rows::purged_lease(&purge_row).ok_or(Refusal::DAMAGED)?;
    let mut span = PurgeSpan::decode(span.as_slice()).map_err(|_| Refusal::DAMAGED)?;
    let mut end = span.last.clone();
    end.push(0);
    let mut cursor = Keys::Between(&span.next, &end).current_rows().by(PAGE_ROWS);
    let mut bytes = 0;
    for _ in 0..STEP.rows_max {
        let Some((row_key, row)) = cursor.next(writer.host) else {
            return writer.remove(&purge_row);
        };
        let version = Version::parse(&row).ok_or(Refusal::DAMAGED)?;
        span.next = version.key.to_vec();
        span.next.push(0);
        if version.lease as u64 == lease {
            writer.delete_unleased(&row_key, &row)?;
        }
        bytes += row.len();
        if enough(writer) || bytes >= STEP.bytes_max {
            break;
        }
    }
    writer.set(&purge_row, &span.encode_to_vec())
}
