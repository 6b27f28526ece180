//! The gallery's components, run through the heart.

use std::sync::Arc;

use bytes::Bytes;
use statehouse_kv::Call;
use statehouse_kv::messages::{PutRequest, RangeRequest};

use super::*;
use crate::id::{Digest, Index};
use crate::machine::apply;
use crate::machine::batch::{Batch, Head, Operation};
use crate::machine::frame::Frame;
use crate::machine::guest::{Ending, QueryView};
use crate::machine::outcome::Outcome;
use crate::machine::view::MemoryView;

const KV: &[u8] = include_bytes!("../../guests/kv/kv.component.wasm");
const COUNTER: &[u8] = include_bytes!("../../guests/counter/counter.component.wasm");
const NOTES: &[u8] = include_bytes!("../../guests/notes/notes.component.wasm");

fn load(bytes: &[u8]) -> (Module, World) {
    let engine = Engine::new(EngineSettings { instances_max: 16, ..EngineSettings::default() }).unwrap();
    let inspected = inspect(bytes, &Limits::default()).unwrap();
    let compiled = Compiler::InProcess.compile(&engine, &inspected.component).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), compiled).unwrap();
    (Module::load(&engine, file.path(), inspected.world).unwrap(), inspected.world)
}

#[test]
fn the_gallery_is_of_the_worlds_it_says() {
    for (bytes, world) in [(KV, World::Stored), (COUNTER, World::Resident), (NOTES, World::Stored)] {
        assert_eq!(inspect(bytes, &Limits::default()).unwrap().world, world);
    }
}

#[test]
fn a_put_is_read_back() {
    let (module, _) = load(KV);
    let mut guest = module.guest([0; 32], GuestSettings::default());
    let put = PutRequest { key: b"k".into(), value: b"v".into(), ..Default::default() };
    let operations = vec![
        Operation::create(Digest::of(KV), Bytes::new()),
        Operation::command(put.to_envelope().into()),
        Operation::command(Bytes::from_static(b"nonsense")),
    ];
    let batch = Batch { time_ms: 1, operations };
    let view = Arc::new(MemoryView::default());
    let applied = apply::stored(&Head::default(), Index(1), &batch, view, guest.as_mut()).unwrap();
    assert!(matches!(applied.outcomes[1], Outcome::Ok(_)), "{:?} {:?}", applied.outcomes, applied.notes);
    assert!(matches!(applied.outcomes[2], Outcome::Refused(_)), "{:?}", applied.outcomes);
    assert_eq!(applied.head.revision.0, 2);

    let mut rows = MemoryView::default();
    for write in applied.writes {
        rows.put(write.table, write.key, write.value);
    }
    let seen = QueryView { index: 1, time: 1, revision: 2 };
    let get = RangeRequest { key: b"k".into(), ..Default::default() }.to_envelope();
    let pool = module.queries([0; 32], GuestSettings::default());
    for _ in 0..3 {
        let frame = Frame::for_query(Arc::new(rows.clone()), seen);
        let (_, ending) = pool.query(frame, seen, &get, Budget { fuel: 10_000_000 });
        let Ending::Answer(answer) = ending else { panic!("an answer was expected, not {ending:?}") };
        assert_eq!(RangeRequest::answer(&answer).unwrap().kvs[0].value, b"v");
    }
}

#[test]
fn damaged_components_are_refused_or_still_whole() {
    for flip in 0..300_usize {
        let mut bytes = NOTES.to_vec();
        let at = flip * 7919 % bytes.len();
        bytes[at] ^= 1 << (flip % 8);
        // Either way it must not panic.
        drop(inspect(&bytes, &Limits::default()));
    }
    for length in (0..NOTES.len()).step_by(NOTES.len() / 50) {
        assert!(inspect(&NOTES[..length], &Limits::default()).is_err(), "cut to {length} bytes");
    }
}
