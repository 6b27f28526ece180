//! Reading: ranges at the present and in the past, and the comparisons of transactions.
//!
//! Nothing here writes. A range whose answer would be over the contract's limit is refused, never cut or
//! trapped.

use std::collections::BTreeMap;

use crate::host::Read;
use crate::messages::{
    Compare, CompareResult, CompareTarget, RangeRequest, SortOrder, SortTarget, TargetUnion,
};
use crate::refusal::Refusal;
use crate::rows::{self, Cursor, Keys, Meta};
use crate::wire::{self, Version};
use crate::{ANSWER_BYTES_MAX, SORT_BYTES_MAX};

/// So many history rows of one key are read past before the scan is restarted behind them.
const SKIPS_MAX: u32 = 64;

/// A view of the store as one request sees it.
pub(crate) struct Reader<'h, R> {
    /// The rows.
    pub host: &'h R,
    /// The store's revision before the request: the newest that can be asked for.
    pub begin: i64,
    /// The store's revision with the request's own writes.
    pub now: i64,
    /// The log's clock: reads of the present leave out keys whose own time to live has ended by then.
    pub time_ms: u64,
    /// Whether they leave out, too, what is still to be deleted of leases that have ended: so in queries.
    pub hide_ended: bool,
}

/// Which keys one read of the present leaves out.
struct Hidden<'r, 'h, R> {
    reader: &'r Reader<'h, R>,
    /// Whether there are ended leases with keys still to be deleted, once that was looked up.
    purging: Option<bool>,
    /// Leases that were asked about while there are: whether they have ended.
    ended: BTreeMap<i64, bool>,
}

impl<'r, 'h, R: Read> Hidden<'r, 'h, R> {
    fn new(reader: &'r Reader<'h, R>) -> Hidden<'r, 'h, R> {
        Hidden { reader, purging: None, ended: BTreeMap::new() }
    }

    #[inline]
    fn hides(&mut self, version: &Version<'_>) -> Result<bool, Refusal> {
        if version.lease == 0 || version.owns_lease() || !self.reader.hide_ended {
            return Ok(version.expired(self.reader.time_ms));
        }
        self.has_ended(version.lease)
    }

    /// A lease that has run out is no reason yet: until its end is in the log, its client may renew it.
    fn has_ended(&mut self, lease: i64) -> Result<bool, Refusal> {
        let host = self.reader.host;
        let purging = match self.purging {
            Some(purging) => purging,
            None => *self.purging.insert(Meta::read(host)?.purging),
        };
        let ended = |lease| host.remaining_ms(lease as u64).is_err();
        Ok(purging && *self.ended.entry(lease).or_insert_with_key(|&lease| ended(lease)))
    }
}

impl<R: Read> Reader<'_, R> {
    /// Answers a range: an encoded `RangeResponse`.
    pub fn range(&self, request: &RangeRequest) -> Result<Vec<u8>, Refusal> {
        let at = self.revision_of(request)?;
        let mut answer = Answer::new(request, self.now)?;
        self.visit(Keys::of(request), at, |row, version| answer.take(row, version))?;
        answer.finish()
    }

    /// The past revision that a range reads at; `None` for the present.
    fn revision_of(&self, request: &RangeRequest) -> Result<Option<i64>, Refusal> {
        if request.revision <= 0 {
            return Ok(None);
        }
        if request.revision > self.begin {
            return Err(Refusal::FUTURE_REVISION);
        }
        if request.revision < Meta::read(self.host)?.compact_revision() {
            return Err(Refusal::COMPACTED);
        }
        Ok(Some(request.revision))
    }

    /// Calls `take` with each version there is, in key order, until it says that it has seen enough.
    fn visit(
        &self,
        keys: Keys<'_>,
        at: Option<i64>,
        take: impl FnMut(&[u8], Version<'_>) -> Result<Enough, Refusal>,
    ) -> Result<(), Refusal> {
        match (at, keys) {
            (Some(revision), _) if revision < self.now => self.visit_past(keys, revision, take),
            (None, Keys::One(key)) => self.visit_one(key, take),
            // A revision that is named shows what was there at that time, and goes on doing so.
            (Some(_), _) => self.visit_current(keys, |_| Ok(false), take),
            (None, _) => {
                let mut hidden = Hidden::new(self);
                self.visit_current(keys, |version| hidden.hides(version), take)
            }
        }
    }

    fn visit_one(
        &self,
        key: &[u8],
        mut take: impl FnMut(&[u8], Version<'_>) -> Result<Enough, Refusal>,
    ) -> Result<(), Refusal> {
        // A longer key has no row, and asking for it would trap.
        if rows::check_key(key).is_err() {
            return Ok(());
        }
        let Some(row) = self.host.get(&rows::current(key)) else { return Ok(()) };
        let version = parse(&row)?;
        if !Hidden::new(self).hides(&version)? {
            take(&row, version)?;
        }
        Ok(())
    }

    fn visit_current(
        &self,
        keys: Keys<'_>,
        mut hides: impl FnMut(&Version<'_>) -> Result<bool, Refusal>,
        mut take: impl FnMut(&[u8], Version<'_>) -> Result<Enough, Refusal>,
    ) -> Result<(), Refusal> {
        let mut cursor = keys.current_rows();
        while let Some((_, row)) = cursor.next(self.host) {
            let version = parse(&row)?;
            if hides(&version)? {
                continue;
            }
            if take(&row, version)? == Enough::Yes {
                break;
            }
        }
        Ok(())
    }

    /// Merges the history rows of the span with its current rows: both come in key order.
    fn visit_past(
        &self,
        keys: Keys<'_>,
        revision: i64,
        mut take: impl FnMut(&[u8], Version<'_>) -> Result<Enough, Refusal>,
    ) -> Result<(), Refusal> {
        let mut current = keys.current_rows();
        let mut history = Past::new(keys, revision);
        let mut present = current.next(self.host).map(|(_, row)| row);
        let mut past = history.next(self.host)?;
        loop {
            let of_past = past.as_deref().map(parse).transpose()?;
            let of_present = present.as_deref().map(parse).transpose()?;
            // A version that was ended later than `revision` rules the key's current version out by its mod
            // revision, so the two never both answer for a key, and which of them goes first does
            // not matter.
            let from_past = match (&of_past, &of_present) {
                (None, None) => return Ok(()),
                (Some(past), Some(present)) => past.key <= present.key,
                (past, _) => past.is_some(),
            };
            let (row, version) = if from_past { (&past, of_past) } else { (&present, of_present) };
            if let (Some(row), Some(version)) = (row, version)
                && version.mod_revision <= revision
                && take(row, version)? == Enough::Yes
            {
                return Ok(());
            }
            if from_past {
                past = history.next(self.host)?;
            } else {
                present = current.next(self.host).map(|(_, row)| row);
            }
        }
    }

    /// Whether all conditions hold.
    pub fn holds(&self, compares: &[Compare]) -> Result<bool, Refusal> {
        for compare in compares {
            if !self.one_holds(compare)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn one_holds(&self, compare: &Compare) -> Result<bool, Refusal> {
        let mut any = false;
        let mut all = true;
        self.visit(Keys::new(&compare.key, &compare.range_end), None, |_, version| {
            any = true;
            all = relates(compare, &version)?;
            Ok(if all { Enough::No } else { Enough::Yes })
        })?;
        if any {
            return Ok(all);
        }
        // An absent key has no value, which is not the same as an empty one; its numbers are 0.
        Ok(compare.target() != CompareTarget::Value && relates(compare, &Version::default())?)
    }
}

fn parse(row: &[u8]) -> Result<Version<'_>, Refusal> {
    Version::parse(row).ok_or(Refusal::DAMAGED)
}

/// Walks history rows and gives, of each key, the version that was ended first after a revision.
struct Past {
    cursor: Cursor,
    revision: i64,
    /// The key that was given last: the rest of its rows are of later versions.
    given: Vec<u8>,
}

impl Past {
    fn new(keys: Keys<'_>, revision: i64) -> Past {
        let mut cursor = keys.history_rows();
        if let Keys::One(key) = keys {
            cursor = cursor.by(1);
            cursor.seek(rows::history(key, revision.saturating_add(1)));
        }
        Past { cursor, revision, given: Vec::new() }
    }

    /// The version may have been written after the revision too: then the key was not there at that time.
    fn next<R: Read>(&mut self, host: &R) -> Result<Option<Vec<u8>>, Refusal> {
        let mut skipped = 0;
        while let Some((row_key, row)) = self.cursor.next(host) {
            let key = parse(&row)?.key;
            let given = key == self.given;
            if !given && rows::ended_by(&row_key).ok_or(Refusal::DAMAGED)? > self.revision {
                self.given = key.to_vec();
                return Ok(Some(row));
            }
            skipped += 1;
            if skipped == SKIPS_MAX {
                let next = if given { i64::MAX } else { self.revision.saturating_add(1) };
                self.cursor.seek(rows::history(key, next));
                skipped = 0;
            }
        }
        Ok(None)
    }
}

/// Whether one version stands in the relation that a comparison asks for.
fn relates(compare: &Compare, version: &Version<'_>) -> Result<bool, Refusal> {
    let target = CompareTarget::try_from(compare.target).map_err(|_| Refusal::INVALID_COMPARE)?;
    let result = CompareResult::try_from(compare.result).map_err(|_| Refusal::INVALID_COMPARE)?;
    let given = compare.target_union.as_ref();
    // As in etcd, a union that holds something else than the target counts as 0 or empty.
    let number = |actual: i64, given: Option<i64>| actual.cmp(&given.unwrap_or(0));
    let ordering = match target {
        CompareTarget::Value => {
            let given = if let Some(TargetUnion::Value(value)) = given { value.as_slice() } else { &[] };
            version.value.cmp(given)
        }
        CompareTarget::Version => {
            number(version.version, if let Some(TargetUnion::Version(n)) = given { Some(*n) } else { None })
        }
        CompareTarget::Create => number(
            version.create_revision,
            if let Some(TargetUnion::CreateRevision(n)) = given { Some(*n) } else { None },
        ),
        CompareTarget::Mod => number(
            version.mod_revision,
            if let Some(TargetUnion::ModRevision(n)) = given { Some(*n) } else { None },
        ),
        CompareTarget::Lease => {
            number(version.lease, if let Some(TargetUnion::Lease(n)) = given { Some(*n) } else { None })
        }
    };
    Ok(match result {
        CompareResult::Equal => ordering.is_eq(),
        CompareResult::NotEqual => ordering.is_ne(),
        CompareResult::Greater => ordering.is_gt(),
        CompareResult::Less => ordering.is_lt(),
    })
}

/// Whether a visit has seen what it came for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Enough {
    Yes,
    No,
}

/// A row that waits to be sorted.
struct Kept {
    number: i64,
    bytes: Vec<u8>,
    ordinal: usize,
    row: Vec<u8>,
}

/// Makes a `RangeResponse` out of the versions of a range, given in key order.
struct Answer<'a> {
    request: &'a RangeRequest,
    target: SortTarget,
    /// `None`: key order, as the versions come.
    sorted: Option<SortOrder>,
    limit: usize,
    out: Vec<u8>,
    kept: Vec<Kept>,
    kept_bytes: usize,
    count: usize,
    matched: usize,
    more: bool,
}

impl<'a> Answer<'a> {
    fn new(request: &'a RangeRequest, now: i64) -> Result<Answer<'a>, Refusal> {
        let target = SortTarget::try_from(request.sort_target).map_err(|_| Refusal::INVALID_SORT)?;
        let order = SortOrder::try_from(request.sort_order).map_err(|_| Refusal::INVALID_SORT)?;
        let sorted = match (target, order) {
            (SortTarget::Key, SortOrder::None | SortOrder::Ascend) => None,
            (_, SortOrder::None) => Some(SortOrder::Ascend),
            (_, order) => Some(order),
        };
        let mut out = Vec::with_capacity(64);
        wire::header(&mut out, now);
        // Beyond memory there is no limit.
        let limit = usize::try_from(request.limit.max(0)).unwrap_or(0);
        Ok(Answer {
            request,
            target,
            sorted,
            limit,
            out,
            kept: Vec::new(),
            kept_bytes: 0,
            count: 0,
            matched: 0,
            more: false,
        })
    }

    fn take(&mut self, row: &[u8], version: Version<'_>) -> Result<Enough, Refusal> {
        self.count += 1;
        if self.request.count_only || self.filtered(&version) {
            return Ok(Enough::No);
        }
        self.matched += 1;
        match self.sorted {
            None if self.limit == 0 || self.matched <= self.limit => self.append(row, version)?,
            None => {
                self.more = true;
                if self.request.uncounted {
                    return Ok(Enough::Yes);
                }
            }
            Some(_) if self.cut_before_sort() => self.more = true,
            Some(_) => self.keep(row, version)?,
        }
        Ok(Enough::No)
    }

    /// Whether the revision filters leave it out.
    fn filtered(&self, version: &Version<'_>) -> bool {
        let request = self.request;
        let outside =
            |revision: i64, min: i64, max: i64| (min != 0 && revision < min) || (max != 0 && revision > max);
        outside(version.mod_revision, request.min_mod_revision, request.max_mod_revision)
            || outside(version.create_revision, request.min_create_revision, request.max_create_revision)
    }

    /// etcd sorts only what it fetched, and without an explicit order or a revision filter it fetches no
    /// more than the limit and one.
    fn cut_before_sort(&self) -> bool {
        let request = self.request;
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        let fetches_all = request.sort_order() != SortOrder::None || filters != [0; 4] || self.limit == 0;
        !fetches_all && self.matched - 1 > self.limit
    }

    fn append(&mut self, row: &[u8], version: Version<'_>) -> Result<(), Refusal> {
        if self.request.keys_only {
            wire::message_field(&mut self.out, 2, &Version { value: &[], ..version }.encode());
        } else {
            wire::message_field(&mut self.out, 2, row);
        }
        if self.out.len() > ANSWER_BYTES_MAX {
            Err(Refusal::answer_too_large(ANSWER_BYTES_MAX))
        } else {
            Ok(())
        }
    }

    fn keep(&mut self, row: &[u8], version: Version<'_>) -> Result<(), Refusal> {
        let ordinal = self.matched;
        let number = match self.target {
            SortTarget::Key => ordinal as i64,
            SortTarget::Version => version.version,
            SortTarget::Create => version.create_revision,
            SortTarget::Mod => version.mod_revision,
            SortTarget::Value => 0,
        };
        let bytes = if self.target == SortTarget::Value { version.value.to_vec() } else { Vec::new() };
        let row =
            if self.request.keys_only { Version { value: &[], ..version }.encode() } else { row.to_vec() };
        self.kept_bytes += row.len() + bytes.len();
        self.kept.push(Kept { number, bytes, ordinal, row });
        let many = self.limit > 0 && self.kept.len() > self.limit.saturating_mul(2).saturating_add(1024);
        if many || self.kept_bytes > SORT_BYTES_MAX {
            self.sort();
        }
        if self.kept_bytes > SORT_BYTES_MAX {
            Err(Refusal::answer_too_large(ANSWER_BYTES_MAX))
        } else {
            Ok(())
        }
    }

    /// Sorts what was kept and drops what the limit leaves out. Equals stay in key order.
    fn sort(&mut self) {
        let descending = self.sorted == Some(SortOrder::Descend);
        self.kept.sort_unstable_by(|a, b| {
            let ascending = a.number.cmp(&b.number).then_with(|| a.bytes.cmp(&b.bytes));
            let order = if descending { ascending.reverse() } else { ascending };
            order.then(a.ordinal.cmp(&b.ordinal))
        });
        if self.limit > 0 && self.kept.len() > self.limit {
            self.kept.truncate(self.limit);
            self.more = true;
        }
        self.kept_bytes = self.kept.iter().map(|kept| kept.row.len() + kept.bytes.len()).sum();
    }

    fn finish(mut self) -> Result<Vec<u8>, Refusal> {
        self.sort();
        for kept in std::mem::take(&mut self.kept) {
            wire::message_field(&mut self.out, 2, &kept.row);
            if self.out.len() > ANSWER_BYTES_MAX {
                return Err(Refusal::answer_too_large(ANSWER_BYTES_MAX));
            }
        }
        wire::bool_field(&mut self.out, 3, self.more);
        if !self.request.uncounted {
            wire::int_field(&mut self.out, 4, self.count as i64);
        }
        Ok(self.out)
    }
}
