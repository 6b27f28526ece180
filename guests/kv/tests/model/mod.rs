//! What the machine must do, in the plainest form there is: a copy of the whole map for every revision.
//!
//! Nothing is shared with the machine but the messages. [`Run`] plays the host around the machine: it rolls
//! refused inputs back and numbers the events, and holds the machine to the model after every input.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use statehouse_kv::memory::Memory;
use statehouse_kv::messages::*;
use statehouse_kv::{Call, EventKind, Input, Moment, Refusal, TTL_MS_MAX, apply, query};

pub type Key = Vec<u8>;
type Map = BTreeMap<Key, KeyValue>;
type Answer<T> = Result<T, Refusal>;

/// The machine's state by definition.
#[derive(Clone, Debug)]
pub struct Model {
    /// The map at revision 1, 2 and so on.
    pub past: Vec<Map>,
    pub compacted: i64,
    /// The log's clock.
    pub time_ms: u64,
    pub leases: Leases,
}

#[derive(Clone, Debug, Default)]
pub struct Leases {
    /// Those that have not ended.
    pub live: BTreeSet<i64>,
    /// Of these, those that keys own for their time to live.
    pub owned: BTreeSet<i64>,
    pub last: i64,
}

impl Leases {
    fn grant(&mut self) -> i64 {
        self.last += 1;
        self.live.insert(self.last);
        self.last
    }

    fn end(&mut self, lease: i64) {
        self.live.remove(&lease);
        self.owned.remove(&lease);
    }
}

/// One input on its way.
struct Work<'a> {
    model: &'a Model,
    map: Map,
    events: Vec<Event>,
    leases: Leases,
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

fn within(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        end => key >= start && key < end,
    }
}

impl Model {
    pub fn new() -> Model {
        Model { past: vec![Map::new()], compacted: -1, time_ms: 1_000, leases: Leases::default() }
    }

    pub fn revision(&self) -> i64 {
        self.past.len() as i64
    }

    pub fn now(&self) -> &Map {
        self.past.last().expect("there is always the first revision")
    }

    fn work(&self) -> Work<'_> {
        Work { model: self, map: self.now().clone(), events: Vec::new(), leases: self.leases.clone() }
    }

    /// A command, and the events it makes.
    pub fn command(&mut self, request: &Request) -> Answer<(Response, Vec<Event>)> {
        check(request, 128)?;
        if let Request::RequestPut(put) = request
            && put.lease != 0
            && !self.leases.live.contains(&put.lease)
        {
            return Err(Refusal::LEASE_NOT_FOUND);
        }
        let mut work = self.work();
        let answer = work.request(request)?;
        let (map, events) = (work.map, work.events);
        self.leases = work.leases;
        if !events.is_empty() {
            self.past.push(map);
        }
        Ok((answer, events))
    }

    pub fn query(&self, request: &Request) -> Answer<Response> {
        check(request, 128)?;
        self.work().request(request)
    }

    pub fn compact(&mut self, revision: i64) -> Answer<CompactionResponse> {
        if revision <= self.compacted {
            return Err(Refusal::COMPACTED);
        }
        if revision > self.revision() {
            return Err(Refusal::FUTURE_REVISION);
        }
        self.compacted = revision;
        Ok(CompactionResponse { header: header(self.revision()) })
    }

    pub fn end_lease(&mut self, lease: i64) -> Vec<Event> {
        self.leases.end(lease);
        let mut work = self.work();
        let keys: Vec<Key> =
            work.map.values().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect();
        for key in keys {
            work.delete(&key);
        }
        let (map, events) = (work.map, work.events);
        if !events.is_empty() {
            self.past.push(map);
        }
        events
    }
}

impl Work<'_> {
    fn begin(&self) -> i64 {
        self.model.revision()
    }

    fn now(&self) -> i64 {
        self.begin() + i64::from(!self.events.is_empty())
    }

    fn request(&mut self, request: &Request) -> Answer<Response> {
        let branches = self.branches(request);
        self.step(request, &mut branches.into_iter())
    }

    /// Which way each transaction goes, judged before anything is done.
    fn branches(&self, request: &Request) -> Vec<bool> {
        let Request::RequestTxn(txn) = request else { return Vec::new() };
        let holds = txn.compare.iter().all(|compare| self.holds(compare));
        let mut branches = vec![holds];
        for op in if holds { &txn.success } else { &txn.failure } {
            branches.extend(op.request.as_ref().map(|request| self.branches(request)).unwrap_or_default());
        }
        branches
    }

    fn step(&mut self, request: &Request, branches: &mut impl Iterator<Item = bool>) -> Answer<Response> {
        match request {
            Request::RequestRange(range) => Ok(Response::ResponseRange(self.range(range)?)),
            Request::RequestPut(put) => Ok(Response::ResponsePut(self.put(put)?)),
            Request::RequestDeleteRange(delete) => {
                let within = |kv: &&KeyValue| within(&kv.key, &delete.key, &delete.range_end);
                let there = self.map.values().filter(within).filter(|kv| self.visible(kv));
                let keys: Vec<Key> = there.map(|kv| kv.key.clone()).collect();
                let gone: Vec<KeyValue> = keys.iter().map(|key| self.delete(key)).collect();
                for kv in gone.iter().filter(|kv| kv.expires_at_ms != 0) {
                    self.leases.end(kv.lease);
                }
                Ok(Response::ResponseDeleteRange(DeleteRangeResponse {
                    header: header(self.now()),
                    deleted: gone.len() as i64,
                    prev_kvs: if delete.prev_kv { gone } else { Vec::new() },
                }))
            }
            Request::RequestTxn(txn) => {
                let succeeded = branches.next().expect("a branch for every transaction");
                let mut responses = Vec::new();
                for op in if succeeded { &txn.success } else { &txn.failure } {
                    let request = op.request.as_ref().expect("checked");
                    responses.push(ResponseOp { response: Some(self.step(request, branches)?) });
                }
                Ok(Response::ResponseTxn(TxnResponse { header: header(self.now()), succeeded, responses }))
            }
        }
    }

    fn put(&mut self, put: &PutRequest) -> Answer<PutResponse> {
        let stored = self.map.get(&put.key).cloned();
        let old = stored.clone().filter(|kv| self.visible(kv));
        if old.is_none() && (put.ignore_value || put.ignore_lease) {
            return Err(Refusal::KEY_NOT_FOUND);
        }
        if self.leases.owned.contains(&put.lease) {
            return Err(Refusal::owned_lease(put.lease));
        }
        if put.lease != 0 && !self.leases.live.contains(&put.lease) {
            return Err(Refusal::LEASE_NOT_FOUND);
        }
        let (lease, expires_at_ms) = self.put_leases(put, &stored.unwrap_or_default());
        let revision = self.begin() + 1;
        let before = old.clone().unwrap_or_default();
        let new = KeyValue {
            key: put.key.clone(),
            create_revision: if old.is_some() { before.create_revision } else { revision },
            mod_revision: revision,
            version: before.version + 1,
            value: if put.ignore_value { before.value } else { put.value.clone() },
            lease,
            expires_at_ms,
        };
        self.map.insert(put.key.clone(), new.clone());
        self.events.push(Event { r#type: EventType::Put as i32, kv: Some(new), prev_kv: None });
        Ok(PutResponse { header: header(revision), prev_kv: old.filter(|_| put.prev_kv) })
    }

    /// The lease and the deadline of a put.
    fn put_leases(&mut self, put: &PutRequest, stored: &KeyValue) -> (i64, u64) {
        if put.ignore_lease {
            return (stored.lease, stored.expires_at_ms);
        }
        if stored.expires_at_ms != 0 {
            self.leases.end(stored.lease);
        }
        let Some(ttl_ms) = put.ttl_ms else { return (put.lease, 0) };
        let lease = self.leases.grant();
        self.leases.owned.insert(lease);
        (lease, self.model.time_ms + ttl_ms)
    }

    fn delete(&mut self, key: &Key) -> KeyValue {
        let tombstone = KeyValue { key: key.clone(), mod_revision: self.begin() + 1, ..Default::default() };
        self.events.push(Event { r#type: EventType::Delete as i32, kv: Some(tombstone), prev_kv: None });
        self.map.remove(key).expect("only keys that are there are deleted")
    }

    fn visible(&self, kv: &KeyValue) -> bool {
        kv.expires_at_ms == 0 || kv.expires_at_ms > self.model.time_ms
    }

    fn range(&self, range: &RangeRequest) -> Answer<RangeResponse> {
        if range.revision > self.begin() {
            return Err(Refusal::FUTURE_REVISION);
        }
        if range.revision > 0 && range.revision < self.model.compacted {
            return Err(Refusal::COMPACTED);
        }
        let all: Vec<&KeyValue> = if range.revision > 0 {
            self.model.past[range.revision as usize - 1].values().collect()
        } else {
            self.map.values().filter(|kv| self.visible(kv)).collect()
        };
        let mut kvs: Vec<KeyValue> =
            all.into_iter().filter(|kv| within(&kv.key, &range.key, &range.range_end)).cloned().collect();
        let count = if range.uncounted { 0 } else { kvs.len() as i64 };
        if range.count_only {
            return Ok(RangeResponse { header: header(self.now()), count, ..Default::default() });
        }
        let limit = usize::try_from(range.limit.max(0)).expect("not negative");
        let filters = [
            range.min_mod_revision,
            range.max_mod_revision,
            range.min_create_revision,
            range.max_create_revision,
        ];
        // etcd's shortcut: what it does not fetch it does not sort.
        if range.sort_order() == SortOrder::None && filters == [0; 4] && limit > 0 {
            kvs.truncate(limit + 1);
        }
        kvs.retain(|kv| {
            (range.min_mod_revision == 0 || kv.mod_revision >= range.min_mod_revision)
                && (range.max_mod_revision == 0 || kv.mod_revision <= range.max_mod_revision)
                && (range.min_create_revision == 0 || kv.create_revision >= range.min_create_revision)
                && (range.max_create_revision == 0 || kv.create_revision <= range.max_create_revision)
        });
        sort(&mut kvs, range.sort_target(), range.sort_order());
        let more = limit > 0 && kvs.len() > limit;
        if more {
            kvs.truncate(limit);
        }
        if range.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        Ok(RangeResponse { header: header(self.now()), kvs, more, count })
    }

    fn holds(&self, compare: &Compare) -> bool {
        let found: Vec<&KeyValue> = self
            .map
            .values()
            .filter(|kv| self.visible(kv) && within(&kv.key, &compare.key, &compare.range_end))
            .collect();
        if found.is_empty() {
            return compare.target() != CompareTarget::Value && relates(compare, &KeyValue::default());
        }
        found.into_iter().all(|kv| relates(compare, kv))
    }
}

fn relates(compare: &Compare, kv: &KeyValue) -> bool {
    use std::cmp::Ordering;
    let ordering = match (compare.target(), &compare.target_union) {
        (CompareTarget::Value, Some(TargetUnion::Value(value))) => kv.value.cmp(value),
        (CompareTarget::Value, _) => kv.value.cmp(&Vec::new()),
        (CompareTarget::Version, Some(TargetUnion::Version(n))) => kv.version.cmp(n),
        (CompareTarget::Version, _) => kv.version.cmp(&0),
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(n))) => kv.create_revision.cmp(n),
        (CompareTarget::Create, _) => kv.create_revision.cmp(&0),
        (CompareTarget::Mod, Some(TargetUnion::ModRevision(n))) => kv.mod_revision.cmp(n),
        (CompareTarget::Mod, _) => kv.mod_revision.cmp(&0),
        (CompareTarget::Lease, Some(TargetUnion::Lease(n))) => kv.lease.cmp(n),
        (CompareTarget::Lease, _) => kv.lease.cmp(&0),
    };
    match compare.result() {
        CompareResult::Equal => ordering == Ordering::Equal,
        CompareResult::Greater => ordering == Ordering::Greater,
        CompareResult::Less => ordering == Ordering::Less,
        CompareResult::NotEqual => ordering != Ordering::Equal,
    }
}

fn sort(kvs: &mut [KeyValue], target: SortTarget, order: SortOrder) {
    let by = |a: &KeyValue, b: &KeyValue| match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    };
    match order {
        SortOrder::None | SortOrder::Ascend => kvs.sort_by(by),
        SortOrder::Descend => kvs.sort_by(|a, b| by(b, a)),
    }
}

/// The rules that need no state.
fn check(request: &Request, left: usize) -> Answer<()> {
    match request {
        Request::RequestRange(range) if range.key.is_empty() => Err(Refusal::EMPTY_KEY),
        Request::RequestRange(range) if !(0..=2).contains(&range.sort_order) => Err(Refusal::INVALID_SORT),
        Request::RequestRange(range) if !(0..=4).contains(&range.sort_target) => Err(Refusal::INVALID_SORT),
        Request::RequestPut(put) if put.key.is_empty() => Err(Refusal::EMPTY_KEY),
        Request::RequestPut(put) if put.ignore_value && !put.value.is_empty() => Err(Refusal::VALUE_PROVIDED),
        Request::RequestPut(put) if put.ignore_lease && put.lease != 0 => Err(Refusal::LEASE_PROVIDED),
        Request::RequestPut(PutRequest { ttl_ms: Some(ttl_ms), lease, ignore_lease, .. }) => {
            if *ttl_ms == 0 || *ttl_ms > TTL_MS_MAX {
                Err(Refusal::ttl_out_of_range(*ttl_ms, TTL_MS_MAX))
            } else if *lease != 0 || *ignore_lease {
                Err(Refusal::TTL_AND_LEASE)
            } else {
                Ok(())
            }
        }
        Request::RequestDeleteRange(delete) if delete.key.is_empty() => Err(Refusal::EMPTY_KEY),
        Request::RequestTxn(txn) => {
            check_txn(txn, left)?;
            writes(&txn.success)?;
            writes(&txn.failure)?;
            Ok(())
        }
        _ => Ok(()),
    }
}

fn check_txn(txn: &TxnRequest, left: usize) -> Answer<()> {
    let most = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if most > left {
        return Err(Refusal::TOO_MANY_OPERATIONS);
    }
    for compare in &txn.compare {
        if compare.key.is_empty() {
            return Err(Refusal::EMPTY_KEY);
        }
        if !(0..=4).contains(&compare.target) || !(0..=3).contains(&compare.result) {
            return Err(Refusal::INVALID_COMPARE);
        }
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            None => return Err(Refusal::KEY_NOT_FOUND),
            Some(Request::RequestTxn(txn)) => check_txn(txn, left - most)?,
            Some(request) => check(request, left - most)?,
        }
    }
    Ok(())
}

/// The keys that a branch puts and the ranges that it deletes.
type Writes = (BTreeSet<Key>, Vec<(Key, Key)>);

/// What a branch writes; refused if it writes a key twice.
fn writes(ops: &[RequestOp]) -> Answer<Writes> {
    let mut puts = BTreeSet::new();
    let mut deletes = Vec::new();
    let of = |ops: &[RequestOp]| ops.iter().filter_map(|op| op.request.clone()).collect::<Vec<_>>();
    let meets = |key: &Key, puts: &BTreeSet<Key>, deletes: &[(Key, Key)]| {
        puts.contains(key) || deletes.iter().any(|(start, end)| within(key, start, end))
    };
    for request in of(ops) {
        if let Request::RequestDeleteRange(delete) = request {
            deletes.push((delete.key, delete.range_end));
        }
    }
    for request in of(ops) {
        if let Request::RequestTxn(txn) = request {
            let (then_puts, then_deletes) = writes(&txn.success)?;
            let (else_puts, else_deletes) = writes(&txn.failure)?;
            if then_puts.iter().chain(&else_puts).any(|key| meets(key, &puts, &deletes)) {
                return Err(Refusal::DUPLICATE_KEY);
            }
            puts.extend(then_puts);
            puts.extend(else_puts);
            deletes.extend(then_deletes);
            deletes.extend(else_deletes);
        }
    }
    for request in of(ops) {
        if let Request::RequestPut(put) = request {
            if meets(&put.key, &puts, &deletes) {
                return Err(Refusal::DUPLICATE_KEY);
            }
            puts.insert(put.key);
        }
    }
    Ok((puts, deletes))
}

/// The machine and its model, side by side.
pub struct Run {
    pub host: Memory,
    pub revision: u64,
    pub model: Model,
}

impl Default for Run {
    fn default() -> Run {
        let mut run = Run { host: Memory::default(), revision: 1, model: Model::new() };
        assert_eq!(run.input(Input::Created(b"")), Ok((Vec::new(), Vec::new())));
        run
    }
}

impl Run {
    /// Where a query stands.
    pub fn view(&self) -> Moment {
        Moment { revision: self.revision, time_ms: self.model.time_ms }
    }

    /// Where the next input stands.
    pub fn context(&self) -> Moment {
        Moment { revision: self.revision + 1, time_ms: self.model.time_ms }
    }

    /// The log's clock goes on.
    pub fn wait(&mut self, ms: u64) {
        self.model.time_ms += ms;
    }

    /// One input as the host does it: all or nothing. Gives the answer and the events.
    pub fn input(&mut self, input: Input) -> Result<(Vec<u8>, Vec<Event>), Refusal> {
        let before = self.host.clone();
        self.unguarded(input).inspect_err(|refusal| {
            assert!(refusal.code != 0 && refusal.message.len() <= 4096, "{refusal:?}");
            self.host = before;
        })
    }

    /// One input that will not be refused: without the copy that a refusal would be undone with.
    pub fn accepted(&mut self, input: Input) -> (Vec<u8>, Vec<Event>) {
        self.unguarded(input).expect("no reason to refuse")
    }

    fn unguarded(&mut self, input: Input) -> Result<(Vec<u8>, Vec<Event>), Refusal> {
        let moment = self.context();
        let outcome = apply(&mut self.host, moment, input);
        let emitted = self.host.next_input();
        let answer = outcome?;
        self.revision += u64::from(!emitted.is_empty());
        let event = |emitted: statehouse_kv::memory::Emitted| {
            let kv = KeyValue::decode(emitted.value.as_slice()).expect("an event carries a KeyValue");
            assert_eq!(kv.key, emitted.key);
            assert_eq!(kv.mod_revision as u64, self.revision);
            let kind = match emitted.kind {
                EventKind::Put => EventType::Put,
                EventKind::Delete => EventType::Delete,
            };
            Event { r#type: kind as i32, kv: Some(kv), prev_kv: None }
        };
        Ok((answer, emitted.into_iter().map(event).collect()))
    }

    /// A command that both must answer alike.
    pub fn command(&mut self, request: &Request) -> Answer<Response> {
        let expected = self.model.command(request);
        let found = self
            .input(Input::Command(&envelope(request)))
            .map(|(bytes, events)| (read(request, &bytes), events));
        assert_eq!(found, expected, "command {request:?}");
        assert_eq!(self.revision as i64, self.model.revision());
        expected.map(|(answer, _)| answer)
    }

    /// A query that both must answer alike.
    pub fn query(&self, request: &Request) -> Answer<Response> {
        let expected = self.model.query(request);
        let found = query(&self.host, self.view(), &envelope(request)).map(|bytes| read(request, &bytes));
        assert_eq!(found, expected, "query {request:?}");
        expected
    }

    pub fn compact(&mut self, revision: i64, physical: bool) -> Answer<CompactionResponse> {
        let expected = self.model.compact(revision);
        let request = CompactionRequest { revision, physical };
        let found = self.input(Input::Command(&request.to_envelope()));
        let found = found.map(|(bytes, events)| {
            assert_eq!(events, []);
            CompactionRequest::answer(&bytes).expect("an answer")
        });
        assert_eq!(found, expected, "compaction {revision}");
        expected
    }

    pub fn grant(&mut self) -> u64 {
        let lease = self.host.grant_to_client(1_000);
        assert_eq!(self.model.leases.grant() as u64, lease);
        lease
    }

    /// The lease's time is over, but its end is not yet in the log.
    pub fn run_out(&mut self, lease: u64) {
        if let Some(granted) = self.host.leases.get_mut(&lease) {
            granted.remaining_ms = 0;
        }
    }

    pub fn end_lease(&mut self, lease: u64) {
        let expected = self.model.end_lease(lease as i64);
        let keys = self.host.end_lease(lease);
        let (_, events) = self.accepted(Input::LeaseEnded { lease, keys: &keys });
        assert_eq!(events, expected);
        assert_eq!(self.revision as i64, self.model.revision());
    }

    pub fn status(&self) -> StatusResponse {
        let answer = query(&self.host, self.view(), &StatusRequest {}.to_envelope()).expect("a status");
        StatusRequest::answer(&answer).expect("a status")
    }

    /// Every revision that can be read, read whole; attachments; and that nothing is kept without need.
    pub fn check_everything(&self) {
        for revision in self.model.compacted.max(1)..=self.model.revision() {
            let range = RangeRequest { key: vec![0], range_end: vec![0], revision, ..Default::default() };
            self.query(&Request::RequestRange(range)).expect("a kept revision");
        }
        let mut attached: BTreeMap<u64, BTreeSet<Key>> = BTreeMap::new();
        for kv in self.model.now().values().filter(|kv| self.model.leases.live.contains(&kv.lease)) {
            attached.entry(kv.lease as u64).or_default().insert(kv.key.clone());
        }
        let found: BTreeMap<u64, BTreeSet<Key>> = self
            .host
            .leases
            .iter()
            .filter(|(_, lease)| !lease.keys.is_empty())
            .map(|(&id, lease)| (id, lease.keys.clone()))
            .collect();
        assert_eq!(found, attached);
        let live: Vec<i64> = self.host.leases.keys().map(|&id| id as i64).collect();
        assert!(self.model.leases.live.iter().eq(&live), "leases: {live:?}, not {:?}", self.model.leases);
        let owned = self.host.rows.keys().filter(|row| row[0] == b't');
        let owned: BTreeSet<i64> =
            owned.map(|row| i64::from_be_bytes(*row.last_chunk().expect("a lease"))).collect();
        assert_eq!(owned, self.model.leases.owned);
        assert_eq!(self.status().compact_revision, self.model.compacted);
        if !self.status().compacting {
            assert_eq!(self.history_rows(), self.superseded_versions());
        }
    }

    pub fn history_rows(&self) -> usize {
        self.host.rows.keys().filter(|row| row[0] == b'h').count()
    }

    /// Versions that a readable revision shows and the present does not, each until the revision that ended
    /// it.
    fn superseded_versions(&self) -> usize {
        let first = self.model.compacted.max(1) as usize - 1;
        let pairs = self.model.past[first..].windows(2);
        pairs.map(|pair| pair[0].values().filter(|kv| pair[1].get(&kv.key) != Some(kv)).count()).sum()
    }
}

pub fn envelope(request: &Request) -> Vec<u8> {
    match request {
        Request::RequestRange(range) => range.to_envelope(),
        Request::RequestPut(put) => put.to_envelope(),
        Request::RequestDeleteRange(delete) => delete.to_envelope(),
        Request::RequestTxn(txn) => txn.to_envelope(),
    }
}

pub fn read(request: &Request, bytes: &[u8]) -> Response {
    let read = match request {
        Request::RequestRange(_) => RangeRequest::answer(bytes).map(Response::ResponseRange),
        Request::RequestPut(_) => PutRequest::answer(bytes).map(Response::ResponsePut),
        Request::RequestDeleteRange(_) => {
            DeleteRangeRequest::answer(bytes).map(Response::ResponseDeleteRange)
        }
        Request::RequestTxn(_) => TxnRequest::answer(bytes).map(Response::ResponseTxn),
    };
    read.expect("an answer that decodes")
}
