//! What times to live cost those who do not use them: reads that meet no expired key, and puts without one.
//!
//! The same requests run against the kv code compiled natively over its own map, where a difference of some
//! nanoseconds shows, and through the committed component, where it must drown. Each read finds 1 key of
//! 1,000 by name, or counts all 1,000 (the figure is then for one key). The keys have no time to live, or one
//! that is far off, or one that is over. The first against the second is what such keys cost: their two
//! fields more are read, and told. All are counted once more without the check: that against the count is
//! what it costs.
//!
//! Targets: the check on a read of keys that have not expired under 50 ns, and a put without a time to live
//! under 10 ns more than before there were any. As measured in November 2026 against the code before,
//! natively and side by side: a read 7 to 40 ns less (leases are no longer asked), a key of a range 0 to 4 ns
//! more, a put 7 to 13 ns less.

#[path = "kv/mod.rs"]
mod kv;

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use statehouse::id::Index;
use statehouse::machine::apply;
use statehouse::machine::batch::{Batch, Head, Operation};
use statehouse::machine::frame::Frame;
use statehouse::machine::guest::{Ending, Guest, QueryView};
use statehouse::machine::view::MemoryView;
use statehouse::wasm::{Budget, GuestSettings, QueryPool};
use statehouse_kv::memory::Memory;
use statehouse_kv::messages::{PutRequest, RangeRequest};
use statehouse_kv::{Call, Input, Moment};

const KEYS: usize = 1_000;
const WRITTEN_MS: u64 = 1_000;
const READ_MS: u64 = 2_000;

/// What the keys have.
const CASES: [(&str, Option<u64>); 3] =
    [("no time to live", None), ("living", Some(3_600_000)), ("expired", Some(500))];

fn key(number: usize) -> Vec<u8> {
    format!("{number:08}").into_bytes()
}

fn puts(ttl_ms: Option<u64>) -> Vec<Bytes> {
    let put = |number: usize| {
        let value = vec![b'v'; 256];
        PutRequest { key: key(number), value, ttl_ms, ..Default::default() }.to_envelope().into()
    };
    (0..KEYS).map(put).collect()
}

fn get() -> Vec<u8> {
    RangeRequest { key: key(KEYS / 2), ..Default::default() }.to_envelope()
}

/// `revision`: 0, or one that is named, which shows what was there then, over or not: nothing is checked.
fn count(revision: i64) -> Vec<u8> {
    let all = RangeRequest { key: vec![0], range_end: vec![0], ..Default::default() };
    RangeRequest { count_only: true, revision, ..all }.to_envelope()
}

/// The machine as native code.
fn native() -> Memory {
    let mut memory = Memory::default();
    let moment = Moment { revision: 2, time_ms: WRITTEN_MS };
    statehouse_kv::apply(&mut memory, moment, Input::Created(b"")).expect("it is created");
    memory
}

fn put_natively(memory: &mut Memory, commands: &[Bytes]) {
    for (number, command) in commands.iter().enumerate() {
        let moment = Moment { revision: number as u64 + 2, time_ms: WRITTEN_MS };
        let input = Input::Command(black_box(command));
        black_box(statehouse_kv::apply(memory, moment, input).expect("it applies"));
        memory.next_input();
    }
}

/// The machine as a component, on a view in memory.
struct Component {
    head: Head,
    view: Arc<MemoryView>,
    guest: Box<dyn Guest>,
    pool: QueryPool,
}

impl Component {
    fn created() -> Component {
        let module = kv::module();
        let (guest, pool) = (module.guest([0; 32], GuestSettings::default()), module.queries([0; 32]));
        let mut made = Component { head: Head::default(), view: Arc::default(), guest, pool };
        let operations = vec![Operation::create(kv::digest(), Bytes::new())];
        made.keep(&Batch { time_ms: WRITTEN_MS, operations, begins_term: true });
        made
    }

    fn apply(&mut self, batch: &Batch) -> apply::Applied {
        let index = Index(self.head.index.0 + 1);
        apply::stored(&self.head, index, batch, self.view.clone(), self.guest.as_mut()).expect("it applies")
    }

    fn keep(&mut self, batch: &Batch) {
        let applied = self.apply(batch);
        let mut rows = (*self.view).clone();
        for write in applied.writes {
            rows.put(write.table, write.key, write.value);
        }
        self.head = applied.head;
        self.view = Arc::new(rows);
    }

    fn query(&self, request: &[u8]) -> Bytes {
        let revision = self.head.revision.0;
        let view = QueryView { index: self.head.index.0, time: READ_MS, revision };
        let frame = Frame::for_query(self.view.clone(), view, &self.head);
        let budget = Budget::new(1_000_000_000, std::time::Duration::from_secs(5));
        match self.pool.query(frame, view, request, budget).1 {
            Ending::Answer(answer) => answer,
            other => panic!("{other:?}"),
        }
    }
}

fn reads(criterion: &mut Criterion) {
    let now = Moment { revision: KEYS as u64 + 1, time_ms: READ_MS };
    let requests = [
        ("get", get(), 1),
        ("count", count(0), KEYS as u64),
        ("count without the check", count(now.revision as i64), KEYS as u64),
    ];
    for (name, request, elements) in requests {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(elements));
        for (case, ttl_ms) in CASES {
            let mut memory = native();
            put_natively(&mut memory, &puts(ttl_ms));
            group.bench_function(BenchmarkId::new("native", case), |bencher| {
                bencher.iter(|| statehouse_kv::query(&memory, now, black_box(&request)).expect("an answer"));
            });
        }
        for (case, ttl_ms) in CASES {
            let mut component = Component::created();
            component.keep(&Batch::of_commands(WRITTEN_MS, puts(ttl_ms)));
            group.bench_function(BenchmarkId::new("component", case), |bencher| {
                bencher.iter(|| component.query(black_box(&request)));
            });
        }
    }
}

fn writes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("put");
    group.throughput(Throughput::Elements(KEYS as u64));
    for (case, ttl_ms) in [CASES[0], CASES[1]] {
        put_native(&mut group, &format!("{case}, new keys"), native(), ttl_ms);
        let mut full = native();
        put_natively(&mut full, &puts(None));
        put_native(&mut group, &format!("{case}, over keys without"), full, ttl_ms);
        let mut component = Component::created();
        let batch = Batch::of_commands(WRITTEN_MS, puts(ttl_ms));
        group.bench_function(BenchmarkId::new("component", format!("{case}, new keys")), |bencher| {
            bencher.iter(|| component.apply(black_box(&batch)));
        });
    }
}

fn put_native(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, start: Memory, ttl_ms: Option<u64>) {
    let commands = puts(ttl_ms);
    group.bench_function(BenchmarkId::new("native", name), |bencher| {
        let run = |mut memory: Memory| {
            put_natively(&mut memory, &commands);
            memory
        };
        bencher.iter_batched(|| start.clone(), run, BatchSize::LargeInput);
    });
}

criterion_group!(benches, reads, writes);
criterion_main!(benches);
