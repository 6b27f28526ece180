//! What a batch costs: 256-byte puts into the kv guest, in batches of 1 to 1,000, beside the same code
//! compiled natively.
//!
//! Both sides start from an empty machine and write to memory; the WebAssembly side makes its instance, runs
//! the heart and computes the hash chain, the native side only runs the kv code over its own map.

#[path = "kv/mod.rs"]
mod kv;

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use statehouse::id::Index;
use statehouse::machine::apply;
use statehouse::machine::batch::{Batch, Head, Operation};
use statehouse::machine::guest::Guest;
use statehouse::machine::view::MemoryView;
use statehouse::wasm::GuestSettings;
use statehouse_kv::memory::Memory;
use statehouse_kv::messages::PutRequest;
use statehouse_kv::{Call, Input, Moment};

fn puts(count: usize) -> Vec<Bytes> {
    let put = |number: usize| {
        let key = format!("{number:08}").into_bytes();
        PutRequest { key, value: vec![b'v'; 256], ..Default::default() }.to_envelope().into()
    };
    (0..count).map(put).collect()
}

fn at(revision: u64) -> Moment {
    Moment { revision, time_ms: 1 }
}

/// The kv machine, created and otherwise empty.
fn created() -> (Head, Arc<MemoryView>, Box<dyn Guest>) {
    let mut guest = kv::module().guest([0; 32], GuestSettings::default());
    let create = Batch {
        time_ms: 1,
        operations: vec![Operation::create(kv::digest(), Bytes::new())],
        begins_term: false,
    };
    let view = Arc::new(MemoryView::default());
    let applied =
        apply::stored(&Head::default(), Index(1), &create, view, guest.as_mut()).expect("it applies");
    let mut rows = MemoryView::default();
    for write in applied.writes {
        rows.put(write.table, write.key, write.value);
    }
    (applied.head, Arc::new(rows), guest)
}

fn bench(criterion: &mut Criterion) {
    let (head, view, mut guest) = created();
    let mut group = criterion.benchmark_group("put of 256 bytes");
    for count in [1, 10, 100, 1_000] {
        group.throughput(Throughput::Elements(count as u64));
        let batch = Batch::of_commands(2, puts(count));
        group.bench_with_input(BenchmarkId::new("guest", count), &batch, |bencher, batch| {
            bencher.iter(|| {
                apply::stored(&head, Index(2), black_box(batch), view.clone(), guest.as_mut())
                    .expect("it applies")
            });
        });
        let commands = puts(count);
        group.bench_with_input(BenchmarkId::new("native", count), &commands, |bencher, commands| {
            let fresh = || {
                let mut memory = Memory::default();
                statehouse_kv::apply(&mut memory, at(2), Input::Created(b"")).expect("it is created");
                memory
            };
            let run = |mut memory: Memory| {
                for (number, command) in commands.iter().enumerate() {
                    let input = Input::Command(black_box(command));
                    let applied = statehouse_kv::apply(&mut memory, at(number as u64 + 2), input);
                    black_box(applied.expect("it applies"));
                }
                memory
            };
            bencher.iter_batched(fresh, run, BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
