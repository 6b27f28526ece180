//! Entries a second through the log thread, beside RocksDB alone in the same run on the same disk.
//!
//! Each writer is a group with one entry of 300 bytes under way; when it is durable the next one is queued,
//! as a shard does: together for all groups that were reported together. `rocksdb` writes as many bytes as
//! batches with a sync each and keys that only grow: the row "RocksDB synced WAL" of `baseline.md`, measured
//! again.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use statehouse::id::{GroupId, Index, Term};
use statehouse::storage::entry::{Entry, EntryKind, LogWrite};
use statehouse::storage::log::{LogDb, LogThread};

const ENTRY_BYTES: usize = 300;
const WRITERS: [u64; 4] = [1, 10, 100, 1_000];
/// A group drops what its snapshots cover, as a node does.
const TRUNCATE_EVERY: u64 = 10_000;

/// Written before measuring, so that the write-ahead log overwrites old files, as it does on a node that has
/// run for a minute.
const WARM_UP_BYTES: usize = 100 << 20;

/// A log with `writers` groups that write one entry after another.
struct Writers {
    thread: LogThread,
    reports: Receiver<Vec<(GroupId, u64)>>,
    next: Vec<u64>,
    data: Bytes,
}

impl Writers {
    fn start(directory: &std::path::Path, writers: u64) -> Writers {
        let (log, _) = LogDb::open(directory).expect("a new log opens");
        let (done, reports) = channel();
        // The benchmark may have ended when the last report comes.
        let on_done = move |pairs| drop(done.send(pairs));
        let thread =
            LogThread::start(log, on_done, |fault| panic!("{fault}")).expect("the log thread starts");
        let data = Bytes::from((0..ENTRY_BYTES).map(|at| (at * 31) as u8).collect::<Vec<_>>());
        Writers { thread, reports, next: vec![1; writers as usize], data }.warmed_up()
    }

    fn warmed_up(mut self) -> Writers {
        const PORTION: usize = 2_000;
        for _ in 0..WARM_UP_BYTES / PORTION / ENTRY_BYTES {
            self.queue(std::iter::repeat_n(GroupId(0), PORTION));
            let mut under_way = PORTION;
            while under_way > 0 {
                under_way -= self.reports.recv().expect("the log thread lives").len();
            }
        }
        self
    }

    /// Each writer's next entry, for the groups given.
    fn queue(&mut self, groups: impl Iterator<Item = GroupId>) {
        let writes = groups.map(|group| {
            let index = self.next[group.0 as usize];
            self.next[group.0 as usize] += 1;
            let data = self.data.clone();
            let entries = vec![Entry { index: Index(index), term: Term(1), kind: EntryKind::Batch, data }];
            let old =
                index.is_multiple_of(TRUNCATE_EVERY).then_some((Index(index - TRUNCATE_EVERY / 2), Term(1)));
            LogWrite { group, number: index, entries, truncate: old, ..LogWrite::default() }
        });
        let writes = writes.collect();
        self.thread.queue().write(writes).expect("the log takes writes");
    }

    /// `rounds` entries of every writer, all durable at the end.
    fn run(&mut self, rounds: u64) -> Duration {
        let writers = self.next.len() as u64;
        let started = Instant::now();
        self.queue((0..writers).map(GroupId));
        let mut under_way = writers;
        let mut left = (rounds - 1) * writers;
        while under_way > 0 {
            let mut reported = self.reports.recv().expect("the log thread lives");
            under_way -= reported.len() as u64;
            reported.truncate(left as usize);
            if !reported.is_empty() {
                left -= reported.len() as u64;
                under_way += reported.len() as u64;
                self.queue(reported.into_iter().map(|(group, _)| group));
            }
        }
        started.elapsed()
    }
}

fn log_thread(c: &mut Criterion) {
    let mut group = c.benchmark_group("log_thread");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(5));
    for writers in WRITERS {
        let place = tempfile::tempdir().expect("a directory for the log");
        let mut log = Writers::start(place.path(), writers);
        group.throughput(Throughput::Elements(writers));
        group.bench_function(BenchmarkId::from_parameter(writers), |b| {
            b.iter_custom(|rounds| log.run(rounds))
        });
        log.thread.stop().expect("the log stops");
    }
}

fn rocksdb_alone(c: &mut Criterion) {
    let mut group = c.benchmark_group("rocksdb");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(5));
    for entries in WRITERS {
        let place = tempfile::tempdir().expect("a directory for the database");
        let mut options = rocksdb::Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(32 << 20);
        options.set_recycle_log_file_num(2);
        let db = rocksdb::DB::open(&options, place.path()).expect("a new database opens");
        let mut key = 0u64;
        let mut write = |entries| {
            let mut batch = rocksdb::WriteBatch::default();
            for _ in 0..entries {
                key += 1;
                batch.put([key.to_be_bytes(), key.to_be_bytes()].concat(), [7; ENTRY_BYTES]);
            }
            let mut synced = rocksdb::WriteOptions::default();
            synced.set_sync(true);
            db.write_opt(batch, &synced).expect("the database writes");
        };
        (0..WARM_UP_BYTES / 2_000 / ENTRY_BYTES).for_each(|_| write(2_000));
        group.throughput(Throughput::Elements(entries));
        group.bench_function(BenchmarkId::from_parameter(entries), |b| b.iter(|| write(entries)));
    }
}

criterion_group!(benches, log_thread, rocksdb_alone);
criterion_main!(benches);
