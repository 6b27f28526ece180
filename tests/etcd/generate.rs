//! Requests of all kinds from a seed, valid and invalid ones: few keys, values and leases, so that they meet.
//!
//! Promises: what comes next depends on the seed and on what the servers told so far (revisions, leases,
//! watches), of which both sides tell the same. Never generates what crashes etcd itself: see `spare_etcd`.

use statehouse::proto::etcd::etcdserverpb::{
    LeaseGrantRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, WatchCreateRequest,
};
use statehouse_kv::messages::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, Request as Step, RequestOp,
    TargetUnion, TxnRequest,
};

use super::answer::SHORT_LEASES;
use super::chance::Chance;
use super::request::Request;

/// At most twelve: Go sorts no more than twelve stably, and what it makes of ties among more is up to chance.
const KEYS: [&[u8]; 12] = [
    b"\x00",
    b"a",
    b"a\x00",
    b"a/1",
    b"a/2",
    b"a/2/x",
    b"b",
    b"b\xff",
    b"c",
    b"c/\x00\x01",
    b"\xff",
    b"\xff\xff",
];

const VALUES: [&[u8]; 6] = [b"", b"\x00", b"1", b"two", b"two", b"\xff\xfe not text"];

/// Leases that are granted, kept and attached to: many requests meet each of them.
const LEASES: i64 = 6;

/// Their time to live, in seconds: long after the test.
const TTL_MIN: i64 = 3_600;

/// Streams of watches that can be settled; the next one has those that keep a stream of etcd's from ever
/// announcing progress.
pub const STREAMS: usize = 2;

/// What the servers told so far.
#[derive(Clone, Debug, Default)]
pub struct Past {
    pub revision: i64,
    pub compacted: i64,
    /// The live watches of each stream, by id.
    pub watches: Vec<Vec<i64>>,
}

/// The requests that follow from a seed.
pub struct Generator {
    chance: Chance,
    short_leases: i64,
}

impl Generator {
    pub fn new(seed: u64) -> Generator {
        Generator { chance: Chance::new(seed), short_leases: SHORT_LEASES }
    }

    pub fn next(&mut self, past: &Past) -> Request {
        match self.chance.below(100) {
            0..24 => Request::Put(self.put()),
            24..42 => Request::Range(self.range(past)),
            42..47 => Request::RangeStream(self.streamed_range(past)),
            47..56 => Request::DeleteRange(self.delete()),
            56..76 => Request::Txn(self.txn(past)),
            76..78 => Request::Compact(self.compact(past)),
            78..83 => Request::LeaseGrant(self.grant()),
            83..85 => Request::LeaseRevoke(LeaseRevokeRequest { id: self.lease() }),
            85..87 => {
                Request::LeaseTimeToLive(LeaseTimeToLiveRequest { id: self.lease(), keys: self.likely(50) })
            }
            87 => Request::LeaseLeases,
            88 => Request::KeepAlive((0..self.chance.below(4)).map(|_| self.lease()).collect()),
            89..94 => self.watch(past),
            94..97 => self.cancel(past),
            _ => Request::Settle(self.chance.below(STREAMS as u64) as usize),
        }
    }

    fn likely(&mut self, percent: u64) -> bool {
        self.chance.below(100) < percent
    }

    fn key(&mut self) -> Vec<u8> {
        if self.likely(1) { Vec::new() } else { self.chance.pick(&KEYS).to_vec() }
    }

    /// Nothing, everything from the key on, another key (also a smaller one), or the end of the key's prefix.
    fn range_end(&mut self, key: &[u8], single: u64) -> Vec<u8> {
        if self.likely(single) {
            return Vec::new();
        }
        match self.chance.below(4) {
            0 => vec![0],
            1 => self.chance.pick(&KEYS).to_vec(),
            2 => [key, b"\xff"].concat(),
            _ => prefix_end(key),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        match self.chance.below(300) {
            0 => vec![b'v'; 100 << 10],
            // etcd's limit is 1.5 MiB for what goes into its log.
            1 => vec![b'w'; (1 << 20) + (1 << 19) + self.chance.below(3) as usize * 4096 - 6144],
            2..30 => self.chance.below(10_000).to_string().into_bytes(),
            _ => self.chance.pick(&VALUES).to_vec(),
        }
    }

    fn lease(&mut self) -> i64 {
        match self.chance.below(20) {
            0 => 0,
            1 => self.chance.pick(&[-1, 999, i64::MAX, i64::MIN]),
            _ => 1 + self.chance.below(LEASES as u64) as i64,
        }
    }

    /// A revision of the past, of now, of the future, or none at all.
    fn revision(&mut self, past: &Past) -> i64 {
        let kept = (past.revision - past.compacted.max(0)).max(1) as u64;
        match self.chance.below(12) {
            0 => past.revision,
            1 => past.revision + 1,
            2 => past.compacted,
            3 => past.compacted - 1,
            4 => past.compacted + 1,
            5 => self.chance.pick(&[-1, 1, 2, i64::MAX, i64::MIN, past.revision + 1_000]),
            6..8 => past.revision - self.chance.below(kept.min(20)) as i64,
            _ => past.revision - self.chance.below(kept) as i64,
        }
    }

    fn maybe_revision(&mut self, past: &Past, percent: u64) -> i64 {
        if self.likely(percent) { self.revision(past) } else { 0 }
    }

    fn put(&mut self) -> PutRequest {
        let (ignore_value, ignore_lease) = (self.likely(8), self.likely(8));
        let lease = if self.likely(25) { self.lease() } else { 0 };
        PutRequest {
            key: self.key(),
            value: if ignore_value && self.likely(85) { Vec::new() } else { self.value() },
            lease: if ignore_lease && self.likely(85) { 0 } else { lease },
            prev_kv: self.likely(40),
            ignore_value,
            ignore_lease,
            ttl_ms: None,
        }
    }

    fn range(&mut self, past: &Past) -> RangeRequest {
        let key = self.key();
        RangeRequest {
            range_end: self.range_end(&key, 30),
            key,
            limit: if self.likely(40) {
                self.chance.pick(&[1, 2, 3, 5, 12, -1, i64::MAX, i64::MIN])
            } else {
                0
            },
            revision: self.maybe_revision(past, 35),
            sort_order: if self.likely(50) { self.chance.pick(&[1, 1, 1, 2, 2, 2, 2, 3, -1]) } else { 0 },
            sort_target: if self.likely(50) {
                self.chance.pick(&[1, 2, 3, 4, 1, 2, 3, 4, 4, 5, -7])
            } else {
                0
            },
            serializable: self.likely(30),
            keys_only: self.likely(20),
            count_only: self.likely(12),
            min_mod_revision: self.maybe_revision(past, 10),
            max_mod_revision: self.maybe_revision(past, 10),
            min_create_revision: self.maybe_revision(past, 10),
            max_create_revision: self.maybe_revision(past, 10),
            // Not etcd's.
            uncounted: false,
        }
    }

    /// etcd streams neither in another order nor with filters of revisions.
    fn streamed_range(&mut self, past: &Past) -> RangeRequest {
        let range = self.range(past);
        if self.likely(15) {
            // Without an order etcd sorts each part by the target, and goes on behind its last key: it counts
            // wrong, and tells keys twice.
            let sort_target = if range.sort_order == 0 { 0 } else { range.sort_target };
            return RangeRequest { sort_target, ..range };
        }
        RangeRequest {
            sort_order: 0,
            sort_target: 0,
            min_mod_revision: 0,
            max_mod_revision: 0,
            min_create_revision: 0,
            max_create_revision: 0,
            ..range
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let key = self.key();
        // Mostly single keys: a store that is always empty tells little.
        DeleteRangeRequest { range_end: self.range_end(&key, 80), key, prev_kv: self.likely(50) }
    }

    fn compact(&mut self, past: &Past) -> CompactionRequest {
        let revision = if self.likely(30) {
            self.revision(past)
        } else {
            past.revision - self.chance.below(60).min(past.revision as u64) as i64
        };
        CompactionRequest { revision, physical: self.likely(50) }
    }

    fn grant(&mut self) -> LeaseGrantRequest {
        if self.likely(25) {
            self.short_leases += 1;
            let ttl = self.chance.pick(&[0, -1, 1, 2, i64::MIN, 9_000_000_001, i64::MAX]);
            return LeaseGrantRequest { id: self.short_leases, ttl };
        }
        let id = 1 + self.chance.below(LEASES as u64) as i64;
        LeaseGrantRequest { id, ttl: TTL_MIN + self.chance.below(3) as i64 }
    }

    fn txn(&mut self, past: &Past) -> TxnRequest {
        let mut txn = self.txn_of_depth(past, 2);
        if self.likely(2) {
            let over = 128 + self.chance.below(2) as usize;
            let range = RangeRequest { key: b"a".to_vec(), ..RangeRequest::default() };
            let step = RequestOp { request: Some(Step::RequestRange(range)) };
            let at = if self.likely(50) { &mut txn.success } else { &mut txn.failure };
            at.resize(over, step);
        }
        spare_etcd(&mut txn);
        txn
    }

    fn txn_of_depth(&mut self, past: &Past, depth: u32) -> TxnRequest {
        // Reading alone is another path: a transaction without writes is not in the log.
        let reads_only = self.likely(20);
        TxnRequest {
            compare: (0..self.chance.pick(&[0, 0, 1, 1, 1, 2, 3])).map(|_| self.compare(past)).collect(),
            success: self.steps(past, depth, reads_only),
            failure: self.steps(past, depth, reads_only),
        }
    }

    fn steps(&mut self, past: &Past, depth: u32, reads_only: bool) -> Vec<RequestOp> {
        let count = self.chance.pick(&[0, 1, 1, 2, 2, 3, 4]);
        // Mostly without meeting itself, or nearly every transaction would be refused.
        let mut unused: Vec<&[u8]> = KEYS.to_vec();
        self.chance.shuffle(&mut unused);
        (0..count).map(|_| self.step(past, depth, reads_only, &mut unused)).collect()
    }

    fn step(&mut self, past: &Past, depth: u32, reads_only: bool, unused: &mut Vec<&[u8]>) -> RequestOp {
        let kind = if reads_only { 0 } else { self.chance.below(100) };
        let meets = self.likely(10);
        let mut key = |default: Vec<u8>| match unused.pop() {
            Some(key) if !meets => key.to_vec(),
            _ => default,
        };
        let request = match kind {
            0..30 => {
                let range = self.range(past);
                // A revision refuses the whole transaction: seldom.
                let revision = if self.likely(20) { range.revision } else { 0 };
                Some(Step::RequestRange(RangeRequest { revision, ..range }))
            }
            30..65 => {
                let put = self.put();
                Some(Step::RequestPut(PutRequest { key: key(put.key), ..put }))
            }
            65..85 => {
                let delete = self.delete();
                let range_end = if meets { delete.range_end } else { Vec::new() };
                Some(Step::RequestDeleteRange(DeleteRangeRequest {
                    key: key(delete.key),
                    range_end,
                    ..delete
                }))
            }
            85..99 if depth > 0 => Some(Step::RequestTxn(self.txn_of_depth(past, depth - 1))),
            99 => None,
            _ => Some(Step::RequestRange(self.range(past))),
        };
        RequestOp { request }
    }

    fn compare(&mut self, past: &Past) -> Compare {
        let key = self.key();
        let target = self.chance.below(5) as i32;
        let revision = self.revision(past);
        // Sometimes of another target than the one that is named.
        let union = if self.likely(96) { target } else { self.chance.below(6) as i32 };
        let target_union = match union {
            0 => Some(TargetUnion::Version(self.chance.below(4) as i64)),
            1 => Some(TargetUnion::CreateRevision(self.chance.pick(&[0, revision]))),
            2 => Some(TargetUnion::ModRevision(self.chance.pick(&[0, revision]))),
            3 => Some(TargetUnion::Value(self.value())),
            4 => Some(TargetUnion::Lease(self.lease())),
            _ => None,
        };
        let result = self.chance.below(4) as i32;
        Compare { result, target, target_union, range_end: self.range_end(&key, 80), key }
    }

    fn watch(&mut self, past: &Past) -> Request {
        let strange = self.likely(25);
        let stream = if strange { STREAMS } else { self.chance.below(STREAMS as u64) as usize };
        let key = self.key();
        let start_revision = match strange {
            true => self.chance.pick(&[past.compacted - 1, past.revision + 3, 1, -1, i64::MIN, i64::MAX]),
            // Of what is kept: the watch catches up.
            false if self.likely(50) => {
                let kept = (past.revision - past.compacted.max(1)).max(1) as u64;
                past.revision - self.chance.below(kept.min(200)) as i64
            }
            false => 0,
        };
        let filters: &[i32] = self.chance.pick(&[&[], &[], &[], &[0], &[1], &[0, 1], &[1, 1], &[7]]);
        let create = WatchCreateRequest {
            range_end: self.range_end(&key, 30).into(),
            key: key.into(),
            start_revision,
            progress_notify: self.likely(30),
            filters: filters.to_vec(),
            prev_kv: self.likely(50),
            watch_id: if self.likely(25) { self.chance.pick(&[1, 2, 3, 7, 1_000, -5, i64::MAX]) } else { 0 },
            fragment: self.likely(30),
        };
        Request::Watch(stream, create)
    }

    /// Mostly of a live watch; there are as many as the creations leave.
    fn cancel(&mut self, past: &Past) -> Request {
        let stream = self.chance.below(past.watches.len() as u64) as usize;
        let live = &past.watches[stream];
        let id = if live.is_empty() || self.likely(10) {
            self.chance.pick(&[0, 1, 5_000, -1])
        } else {
            live[self.chance.below(live.len() as u64) as usize]
        };
        Request::CancelWatch(stream, id)
    }
}

/// The first key after all that begin with `prefix`; one zero byte if there is none.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// A transaction that deletes to the end of the keys and puts one of them passes etcd's checks, which see an
/// empty span there; if the put keeps the value or the lease, it ends etcd's process. We refuse it. So such a
/// deletion comes without puts only.
fn spare_etcd(txn: &mut TxnRequest) {
    if deletes_to_the_end(txn) && puts(txn) {
        delete_single_keys(txn);
    }
}

fn deletes_to_the_end(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|step| match &step.request {
        Some(Step::RequestDeleteRange(delete)) => delete.range_end == [0],
        Some(Step::RequestTxn(inner)) => deletes_to_the_end(inner),
        _ => false,
    })
}

fn puts(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|step| match &step.request {
        Some(Step::RequestPut(_)) => true,
        Some(Step::RequestTxn(inner)) => puts(inner),
        _ => false,
    })
}

fn delete_single_keys(txn: &mut TxnRequest) {
    for step in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut step.request {
            Some(Step::RequestDeleteRange(delete)) => delete.range_end.clear(),
            Some(Step::RequestTxn(inner)) => delete_single_keys(inner),
            _ => {}
        }
    }
}
