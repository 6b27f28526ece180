//! Transactions: what may be in one, which branch is taken, and doing it.
//!
//! As in etcd, all conditions, those of nested transactions too, are judged on the store as it was before
//! the first step; steps see the writes of the steps before them; and no key is written twice.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::host::{Host, Read};
use crate::messages::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest, RangeRequest, Request, RequestOp,
    SortOrder, SortTarget, TxnRequest,
};
use crate::read::Reader;
use crate::refusal::Refusal;
use crate::rows::Keys;
use crate::wire;
use crate::write::Writer;
use crate::{ANSWER_BYTES_MAX, OPERATIONS_MAX, TTL_MS_MAX};

/// Refuses a range that no store could answer.
pub(crate) fn check_range(request: &RangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        return Err(Refusal::EMPTY_KEY);
    }
    let known =
        SortOrder::try_from(request.sort_order).is_ok() && SortTarget::try_from(request.sort_target).is_ok();
    if known { Ok(()) } else { Err(Refusal::INVALID_SORT) }
}

/// Refuses a put that contradicts itself.
pub(crate) fn check_put(request: &PutRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        Err(Refusal::EMPTY_KEY)
    } else if request.ignore_value && !request.value.is_empty() {
        Err(Refusal::VALUE_PROVIDED)
    } else if request.ignore_lease && request.lease != 0 {
        Err(Refusal::LEASE_PROVIDED)
    } else if let Some(ttl_ms) = request.ttl_ms {
        check_ttl(request, ttl_ms)
    } else {
        Ok(())
    }
}

fn check_ttl(request: &PutRequest, ttl_ms: u64) -> Result<(), Refusal> {
    if !(1..=TTL_MS_MAX).contains(&ttl_ms) {
        Err(Refusal::ttl_out_of_range(ttl_ms, TTL_MS_MAX))
    } else if request.lease != 0 || request.ignore_lease {
        Err(Refusal::TTL_AND_LEASE)
    } else {
        Ok(())
    }
}

/// Refuses a deletion without a key.
pub(crate) fn check_delete(request: &DeleteRangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() { Err(Refusal::EMPTY_KEY) } else { Ok(()) }
}

/// Refuses a transaction that no store could do.
pub(crate) fn check_txn(request: &TxnRequest) -> Result<(), Refusal> {
    check_steps(request, OPERATIONS_MAX)?;
    check_written_once(&request.success)?;
    check_written_once(&request.failure)?;
    Ok(())
}

/// A nested transaction may have as many steps as the one around it left over.
fn check_steps(request: &TxnRequest, operations_max: usize) -> Result<(), Refusal> {
    let operations = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = operations_max.checked_sub(operations).ok_or(Refusal::TOO_MANY_OPERATIONS)?;
    request.compare.iter().try_for_each(check_compare)?;
    for step in request.success.iter().chain(&request.failure) {
        match &step.request {
            Some(Request::RequestRange(range)) => check_range(range)?,
            Some(Request::RequestPut(put)) => check_put(put)?,
            Some(Request::RequestDeleteRange(delete)) => check_delete(delete)?,
            Some(Request::RequestTxn(txn)) => check_steps(txn, left)?,
            None => return Err(Refusal::KEY_NOT_FOUND),
        }
    }
    Ok(())
}

fn check_compare(compare: &Compare) -> Result<(), Refusal> {
    if compare.key.is_empty() {
        return Err(Refusal::EMPTY_KEY);
    }
    let known =
        CompareTarget::try_from(compare.target).is_ok() && CompareResult::try_from(compare.result).is_ok();
    if known { Ok(()) } else { Err(Refusal::INVALID_COMPARE) }
}

/// What a branch writes.
#[derive(Default)]
struct Written<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Spans<'a>,
}

/// Disjoint spans of keys by their first key, each with what bounds it above.
#[derive(Default)]
struct Spans<'a> {
    by_start: BTreeMap<&'a [u8], Bound<&'a [u8]>>,
}

impl<'a> Spans<'a> {
    fn add(&mut self, keys: Keys<'a>) {
        match keys {
            Keys::One(key) => self.insert(key, Bound::Included(key)),
            Keys::From(key) => self.insert(key, Bound::Unbounded),
            Keys::Between(start, end) if start < end => self.insert(start, Bound::Excluded(end)),
            Keys::Between(..) => {}
        }
    }

    /// Joins the new span with those it touches, so that finding a key stays one step.
    fn insert(&mut self, mut start: &'a [u8], mut end: Bound<&'a [u8]>) {
        if let Some((&before, &bound)) = self.by_start.range(..=start).next_back()
            && below(start, bound)
        {
            start = before;
            end = further(end, bound);
        }
        while let Some((&next, &bound)) = self.by_start.range(start..).next() {
            if !below(next, end) {
                break;
            }
            end = further(end, bound);
            self.by_start.remove(next);
        }
        self.by_start.insert(start, end);
    }

    fn contains(&self, key: &[u8]) -> bool {
        let span = self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        span.is_some_and(|(_, &end)| below(key, end))
    }
}

/// Whether `key` is within the upper bound.
fn below(key: &[u8], bound: Bound<&[u8]>) -> bool {
    match bound {
        Bound::Included(end) => key <= end,
        Bound::Excluded(end) => key < end,
        Bound::Unbounded => true,
    }
}

/// The bound that reaches further.
fn further<'a>(a: Bound<&'a [u8]>, b: Bound<&'a [u8]>) -> Bound<&'a [u8]> {
    // Excluded(k) and Included(k) differ in k itself.
    let reach = |bound: Bound<&'a [u8]>| match bound {
        Bound::Unbounded => (true, &[][..], false),
        Bound::Excluded(end) => (false, end, false),
        Bound::Included(end) => (false, end, true),
    };
    if reach(a) >= reach(b) { a } else { b }
}

/// Refuses a branch that writes a key twice, by etcd's rule: the two branches of a nested transaction
/// exclude each other, so both may put a key; deletions may overlap; and a nested transaction may delete
/// what an earlier one put.
fn check_written_once(steps: &[RequestOp]) -> Result<Written<'_>, Refusal> {
    let mut written = Written::default();
    for step in steps {
        if let Some(Request::RequestDeleteRange(delete)) = &step.request {
            written.deletes.add(Keys::new(&delete.key, &delete.range_end));
        }
    }
    for step in steps {
        if let Some(Request::RequestTxn(txn)) = &step.request {
            add_nested(&mut written, check_written_once(&txn.success)?, check_written_once(&txn.failure)?)?;
        }
    }
    for step in steps {
        if let Some(Request::RequestPut(put)) = &step.request
            && (written.deletes.contains(&put.key) || !written.puts.insert(&put.key))
        {
            return Err(Refusal::DUPLICATE_KEY);
        }
    }
    Ok(written)
}

fn add_nested<'a>(
    written: &mut Written<'a>,
    success: Written<'a>,
    failure: Written<'a>,
) -> Result<(), Refusal> {
    let clashes = |key: &&[u8]| written.puts.contains(key) || written.deletes.contains(key);
    if success.puts.iter().any(clashes) || failure.puts.iter().any(clashes) {
        return Err(Refusal::DUPLICATE_KEY);
    }
    written.puts.extend(success.puts);
    written.puts.extend(failure.puts);
    for (start, end) in success.deletes.by_start.into_iter().chain(failure.deletes.by_start) {
        written.deletes.insert(start, end);
    }
    Ok(())
}

/// Which branch each transaction takes, in the order in which they are met.
pub(crate) struct Path {
    taken: std::vec::IntoIter<bool>,
}

impl Path {
    /// Judges all conditions.
    pub fn find<R: Read>(reader: &Reader<'_, R>, request: &TxnRequest) -> Result<Path, Refusal> {
        fn walk<R: Read>(
            reader: &Reader<'_, R>,
            request: &TxnRequest,
            taken: &mut Vec<bool>,
        ) -> Result<(), Refusal> {
            let holds = reader.holds(&request.compare)?;
            taken.push(holds);
            for step in if holds { &request.success } else { &request.failure } {
                if let Some(Request::RequestTxn(nested)) = &step.request {
                    walk(reader, nested, taken)?;
                }
            }
            Ok(())
        }
        let mut taken = Vec::new();
        walk(reader, request, &mut taken)?;
        Ok(Path { taken: taken.into_iter() })
    }

    /// The next transaction's branch.
    fn branch<'a>(&mut self, request: &'a TxnRequest) -> (bool, &'a [RequestOp]) {
        // There is one entry per transaction on the way; the default is never used.
        let holds = self.taken.next().unwrap_or_default();
        (holds, if holds { &request.success } else { &request.failure })
    }
}

/// Where the steps of a transaction are done: on the store, or, of one that only reads, on a view.
trait Steps {
    fn range(&mut self, request: &RangeRequest) -> Result<Vec<u8>, Refusal>;
    fn put(&mut self, request: &PutRequest) -> Result<Vec<u8>, Refusal>;
    fn delete_range(&mut self, request: &DeleteRangeRequest) -> Result<Vec<u8>, Refusal>;
    /// The store's revision with the steps done so far.
    fn revision(&self) -> i64;
}

impl<H: Host> Steps for Writer<'_, H> {
    fn range(&mut self, request: &RangeRequest) -> Result<Vec<u8>, Refusal> {
        self.reader().range(request)
    }

    fn put(&mut self, request: &PutRequest) -> Result<Vec<u8>, Refusal> {
        Writer::put(self, request)
    }

    fn delete_range(&mut self, request: &DeleteRangeRequest) -> Result<Vec<u8>, Refusal> {
        Writer::delete_range(self, request)
    }

    fn revision(&self) -> i64 {
        self.now()
    }
}

impl<R: Read> Steps for &Reader<'_, R> {
    fn range(&mut self, request: &RangeRequest) -> Result<Vec<u8>, Refusal> {
        Reader::range(self, request)
    }

    fn put(&mut self, _: &PutRequest) -> Result<Vec<u8>, Refusal> {
        Err(Refusal::WRITE_IN_QUERY)
    }

    fn delete_range(&mut self, _: &DeleteRangeRequest) -> Result<Vec<u8>, Refusal> {
        Err(Refusal::WRITE_IN_QUERY)
    }

    fn revision(&self) -> i64 {
        self.now
    }
}

/// Does a transaction that was checked, and answers with an encoded `TxnResponse`.
pub(crate) fn execute<H: Host>(writer: &mut Writer<'_, H>, request: &TxnRequest) -> Result<Vec<u8>, Refusal> {
    let mut path = Path::find(&writer.reader(), request)?;
    run(writer, request, &mut path)
}

/// The same for a transaction of which no branch writes, in a query.
pub(crate) fn read_only<R: Read>(
    mut reader: &Reader<'_, R>,
    request: &TxnRequest,
) -> Result<Vec<u8>, Refusal> {
    if !only_reads(request) {
        return Err(Refusal::WRITE_IN_QUERY);
    }
    let mut path = Path::find(reader, request)?;
    run(&mut reader, request, &mut path)
}

fn only_reads(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|step| match &step.request {
        Some(Request::RequestRange(_)) => true,
        Some(Request::RequestTxn(txn)) => only_reads(txn),
        _ => false,
    })
}

/// Takes the branches of `path` and answers with their steps' answers.
fn run<S: Steps>(steps: &mut S, request: &TxnRequest, path: &mut Path) -> Result<Vec<u8>, Refusal> {
    let (succeeded, operations) = path.branch(request);
    let mut answers = Vec::new();
    let mut wrapped = Vec::new();
    for operation in operations {
        let (tag, answer) = match &operation.request {
            Some(Request::RequestRange(range)) => (1, steps.range(range)?),
            Some(Request::RequestPut(put)) => (2, steps.put(put)?),
            Some(Request::RequestDeleteRange(delete)) => (3, steps.delete_range(delete)?),
            Some(Request::RequestTxn(nested)) => (4, run(steps, nested, path)?),
            None => return Err(Refusal::KEY_NOT_FOUND),
        };
        wrapped.clear();
        wire::message_field(&mut wrapped, tag, &answer);
        wire::message_field(&mut answers, 3, &wrapped);
        if answers.len() > ANSWER_BYTES_MAX {
            return Err(Refusal::answer_too_large(ANSWER_BYTES_MAX));
        }
    }
    let mut out = Vec::with_capacity(answers.len() + 32);
    wire::header(&mut out, steps.revision());
    wire::bool_field(&mut out, 2, succeeded);
    out.extend_from_slice(&answers);
    Ok(out)
}
