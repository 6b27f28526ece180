//! The built-in machine, run through the heart.

use std::sync::Arc;

use bytes::Bytes;
use statehouse_kv::Call;
use statehouse_kv::messages::{PutRequest, RangeRequest};

use super::testing::*;
use super::*;
use crate::id::{Digest, Index};
use crate::machine::apply;
use crate::machine::batch::{Batch, Head, Operation};
use crate::machine::frame::Frame;
use crate::machine::guest::{Ending, QueryView};
use crate::machine::outcome::Outcome;
use crate::machine::view::MemoryView;

#[test]
fn a_put_is_read_back() {
    let module = load(KV);
    let mut guest = module.guest([0; 32], GuestSettings::default());
    let put = PutRequest { key: b"k".into(), value: b"v".into(), ..Default::default() };
    let operations = vec![
        Operation::create(Digest::of(KV), Bytes::new()),
        Operation::command(put.to_envelope().into()),
        Operation::command(Bytes::from_static(b"nonsense")),
    ];
    let batch = Batch { time_ms: 1, operations, begins_term: false };
    let view = Arc::new(MemoryView::default());
    let applied = apply::stored(&Head::default(), Index(1), &batch, view, guest.as_mut()).unwrap();
    assert!(
        matches!(applied.outcomes[1].outcome, Outcome::Ok(_)),
        "{:?} {:?}",
        applied.outcomes,
        applied.notes
    );
    assert!(matches!(applied.outcomes[2].outcome, Outcome::Refused(_)), "{:?}", applied.outcomes);
    assert_eq!(applied.head.revision.0, 2);

    let mut rows = MemoryView::default();
    for write in applied.writes {
        rows.put(write.table, write.key, write.value);
    }
    let seen = QueryView { index: 1, time: 1, revision: 2 };
    let get = RangeRequest { key: b"k".into(), ..Default::default() }.to_envelope();
    let pool = module.queries([0; 32]);
    for _ in 0..3 {
        let frame = Frame::for_query(Arc::new(rows.clone()), seen, &applied.head);
        let (_, ending) = pool.query(frame, seen, &get, Budget { fuel: 10_000_000, epoch_ticks: 100 });
        let Ending::Answer(answer) = ending else { panic!("an answer was expected, not {ending:?}") };
        assert_eq!(RangeRequest::answer(&answer).unwrap().kvs[0].value, b"v");
    }
}
