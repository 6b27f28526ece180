//! The hub and its watchers against a model: whatever happens in whatever order, a watcher gets exactly its
//! events.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Wake, Waker};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::error::Error;
use crate::machine::event::{self, EventKind, EventRows};
use crate::machine::outcome::Context;
use crate::machine::view::{MemoryView, Table};

/// Small, so that a few events go over them.
const BOUNDS: Bounds =
    Bounds { queue_revisions_max: 3, queue_bytes_max: 600, portion_bytes: 250, scan_bytes: 500 };

/// One input's events: keys, and whether each is deleted.
type Input = Vec<(u8, bool)>;

/// The rows of a batch, with their keys.
type Rows = Vec<(Vec<u8>, bytes::Bytes)>;

/// A machine: what it wrote, and what its hub was told of that.
struct World {
    view: MemoryView,
    revision: Revision,
    index: u64,
    hub: Arc<Hub>,
    budget: Arc<Budget>,
    /// Batches that are in the view and that the hub was not told of yet.
    untold: VecDeque<(Revision, Rows)>,
    /// Up to where the hub was told.
    told: Revision,
}

/// A flag that a watcher was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Woken>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A watcher, what it was told, and what it should have been told from its start on.
struct Watching {
    watcher: Watcher,
    selection: Selection,
    from: Revision,
    told: Vec<Event>,
    woken: Arc<Woken>,
    idle: bool,
    wants_read: bool,
}

impl World {
    fn new(budget_bytes: usize) -> World {
        let budget = Budget::new(budget_bytes);
        let hub = Arc::new(Hub::new(Revision::FIRST, budget.clone(), BOUNDS, 7));
        let (view, revision, untold) = (MemoryView::default(), Revision::FIRST, VecDeque::new());
        World { view, revision, index: 0, hub, budget, untold, told: revision }
    }

    /// A batch is applied and its state is published.
    fn write(&mut self, inputs: &[Input]) {
        self.index += 1;
        let mut rows = EventRows::default();
        for input in inputs.iter().filter(|input| !input.is_empty()) {
            self.revision = self.revision.next();
            let context =
                Context { index: self.index, offset: 0, time: self.index, revision: self.revision.0 };
            rows.savepoint();
            for &(key, delete) in input {
                let kind = if delete { EventKind::Delete } else { EventKind::Put };
                rows.push(&context, kind, vec![b'a' + key], self.revision.0.to_be_bytes().to_vec());
            }
        }
        let rows: Rows = rows.into_rows().collect();
        for (key, row) in &rows {
            self.view.put(Table::Events, key.clone(), Some(row.clone()));
        }
        self.untold.push_back((self.revision, rows));
    }

    /// The hub is told of the oldest batch that it does not know.
    fn tell(&mut self) {
        if let Some((revision, rows)) = self.untold.pop_front() {
            self.hub.publish(revision, rows.iter().map(|(key, row)| (&key[..], row)));
            self.told = revision;
        }
    }

    /// A snapshot that holds the same history takes the place of the state, or of a state that lags.
    fn install(&mut self) {
        self.untold.clear();
        self.hub.reset(self.revision);
        self.told = self.revision;
    }

    fn events(&self, selection: &Selection, from: Revision) -> Vec<Event> {
        let mut events = Vec::new();
        event::visit_from(&self.view, from, &mut |event| {
            if selection.matches(&event) {
                events.push(event);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        events
    }

    fn watch(&self, selection: Selection, from: Revision) -> Watching {
        let watcher = Watcher::new(self.hub.clone(), selection.clone(), from);
        let woken = Arc::default();
        Watching { watcher, selection, from, told: Vec::new(), woken, idle: false, wants_read: false }
    }

    fn read(&self, watching: &mut Watching) {
        let first = Revision::FIRST.next();
        watching.watcher.read(Standing { revision: self.revision, first, view: &self.view }).unwrap();
        watching.wants_read = false;
    }
}

impl Watching {
    /// One step, as far as it goes without the disk.
    fn step(&mut self) {
        if self.wants_read {
            return;
        }
        let waker = Waker::from(self.woken.clone());
        self.woken.0.store(false, Ordering::SeqCst);
        self.idle = false;
        match self.watcher.poll(&waker) {
            Poll::Pending => self.idle = true,
            Poll::Ready(Ok(Step::Read)) => self.wants_read = true,
            Poll::Ready(Ok(Step::Events(revised))) => {
                assert!(revised.events.iter().all(|event| event.revision == revised.revision));
                assert!(self.told.last().is_none_or(|last| last.revision < revised.revision));
                self.told.extend(revised.events);
            }
            Poll::Ready(Ok(Step::Progress(_))) => panic!("nobody asked"),
            Poll::Ready(Err(why)) => panic!("{why}"),
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Write(Vec<Input>),
    Tell,
    Install,
    Begin { span: u8, puts: bool, deletes: bool, back: u64 },
    Step(usize, usize),
    Read(usize),
    Progress(usize),
    Leave(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let input = || proptest::collection::vec((0..3_u8, any::<bool>()), 0..4);
    let begin = (0..5_u8, any::<bool>(), any::<bool>(), 0..12_u64)
        .prop_map(|(span, puts, deletes, back)| Act::Begin { span, puts, deletes, back });
    let act = prop_oneof![
        4 => proptest::collection::vec(input(), 1..4).prop_map(Act::Write),
        4 => Just(Act::Tell),
        1 => Just(Act::Install),
        2 => begin,
        6 => (0..6_usize, 1..5_usize).prop_map(|(who, steps)| Act::Step(who, steps)),
        4 => (0..6_usize).prop_map(Act::Read),
        1 => (0..6_usize).prop_map(Act::Progress),
        1 => (0..6_usize).prop_map(Act::Leave),
    ];
    proptest::collection::vec(act, 1..120)
}

fn selection(span: u8, puts: bool, deletes: bool) -> Selection {
    let span = match span {
        0 => KeySpan::key("a").unwrap(),
        1 => KeySpan::prefix("b").unwrap(),
        2 => KeySpan::range("a", Some("c".into())).unwrap(),
        3 => KeySpan::range("b", None).unwrap(),
        _ => KeySpan::all(),
    };
    Selection::new(span.clone(), puts, deletes).unwrap_or_else(|_| Selection::of(span))
}

/// Asks a watcher how far it is, and takes what it tells until it says so, or until it must read.
fn ask(world: &World, watching: &mut Watching) {
    watching.watcher.asker().want_progress();
    for _ in 0..10_000 {
        match watching.watcher.poll(Waker::noop()) {
            Poll::Ready(Ok(Step::Events(revised))) => watching.told.extend(revised.events),
            Poll::Ready(Ok(Step::Read)) => world.read(watching),
            Poll::Ready(Ok(Step::Progress(up_to))) => {
                let due = world.events(&watching.selection, watching.from);
                let due: Vec<Event> = due.into_iter().filter(|event| event.revision <= up_to).collect();
                assert_eq!(watching.told, due, "up to {up_to}");
                return;
            }
            other => panic!("it was asked how far it is: {other:?}"),
        }
    }
    panic!("it never says how far it is");
}

fn carry_out(act: Act, world: &mut World, all: &mut Vec<Watching>) {
    match act {
        Act::Write(inputs) => world.write(&inputs),
        Act::Tell => world.tell(),
        Act::Install => world.install(),
        Act::Begin { span, puts, deletes, back } => {
            let from = Revision((world.revision.0 + 1).saturating_sub(back).max(2));
            all.push(world.watch(selection(span, puts, deletes), from));
        }
        Act::Step(who, steps) => {
            if let Some(watching) = all.get_mut(who) {
                (0..steps).for_each(|_| watching.step());
            }
        }
        Act::Read(who) => {
            if let Some(watching) = all.get_mut(who).filter(|watching| watching.wants_read) {
                world.read(watching);
            }
        }
        Act::Progress(who) => {
            if let Some(watching) = all.get_mut(who) {
                if std::mem::take(&mut watching.wants_read) {
                    world.read(watching);
                }
                ask(world, watching);
            }
        }
        Act::Leave(who) => {
            if who < all.len() {
                all.swap_remove(who);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 256 } else { 1_500 }))]

    #[test]
    fn every_watcher_gets_exactly_its_events(
        acts in acts(),
        budget_bytes in prop_oneof![Just(300), Just(1 << 20)],
    ) {
        let mut world = World::new(budget_bytes);
        let mut all: Vec<Watching> = Vec::new();
        for act in acts {
            carry_out(act, &mut world, &mut all);
            for watching in &all {
                let due = world.events(&watching.selection, watching.from);
                prop_assert!(due.starts_with(&watching.told), "told {:?} of {due:?}", watching.told);
            }
        }
        // Whoever has nothing to do and was not woken has all that the hub was told of.
        let waits = |watching: &&Watching| watching.idle && !watching.woken.0.load(Ordering::SeqCst);
        for watching in all.iter().filter(waits) {
            let due = world.events(&watching.selection, watching.from);
            let due = due.into_iter().filter(|event| event.revision <= world.told).count();
            prop_assert!(watching.told.len() >= due, "{} of {due} events", watching.told.len());
        }
        while !world.untold.is_empty() {
            world.tell();
        }
        for watching in &mut all {
            for _ in 0..10_000 {
                watching.step();
                if watching.wants_read {
                    world.read(watching);
                } else if watching.idle {
                    break;
                }
            }
            prop_assert!(watching.idle, "it comes to an end");
            prop_assert_eq!(&watching.told, &world.events(&watching.selection, watching.from));
        }
        prop_assert_eq!(world.hub.present(), all.len());
        all.clear();
        prop_assert_eq!((world.hub.present(), world.budget.bytes()), (0, 0));
    }
}

#[test]
fn watchers_that_stop_reading_hold_no_memory() {
    let mut world = World::new(64 << 10);
    let mut all: Vec<Watching> =
        (0..10_000).map(|_| world.watch(Selection::of(KeySpan::all()), Revision(2))).collect();
    for watching in &mut all {
        watching.step();
        world.read(watching);
        watching.step();
        assert!(watching.idle);
    }
    assert_eq!(world.hub.present(), 10_000);
    let mut most = 0;
    for _ in 0..100 {
        world.write(&[vec![(0, false)]]);
        world.tell();
        most = most.max(world.budget.bytes());
    }
    // Each of the queues would hold three revisions; they share them.
    assert!(most > 0 && most < 1_000, "{most} bytes");
    assert_eq!((world.hub.present(), world.budget.bytes()), (0, 0), "all were sent away");
    let last = &mut all[9_999];
    while last.told.len() < 100 {
        last.step();
        if last.wants_read {
            world.read(last);
        }
    }
    assert_eq!(last.told, world.events(&last.selection, Revision(2)));
}

#[test]
fn watchers_that_stop_reading_in_the_past_hold_a_revision_each_beyond_their_share() {
    const READ_SHARE: usize = (64 << 10) / 4;
    let mut world = World::new(64 << 10);
    for _ in 0..500 {
        world.write(&[vec![(0, false)]]);
        world.tell();
    }
    let mut all: Vec<Watching> =
        (0..2_000).map(|_| world.watch(Selection::of(KeySpan::all()), Revision(2))).collect();
    for watching in &mut all {
        watching.step();
        world.read(watching);
        // It is told the first of what was read, and stops there.
        assert!(matches!(watching.watcher.poll(Waker::noop()), Poll::Ready(Ok(Step::Events(_)))));
    }
    let held = world.budget.bytes();
    assert!(held > READ_SHARE / 2 && held <= READ_SHARE, "{held} bytes of {READ_SHARE}");
    let last = &mut all[1_999];
    assert!(matches!(last.watcher.poll(Waker::noop()), Poll::Ready(Ok(Step::Read))), "it had one revision");
    // Those who keep up have their own share.
    let mut present = world.watch(Selection::of(KeySpan::all()), world.revision.next());
    present.step();
    world.read(&mut present);
    present.step();
    world.write(&[vec![(0, false)]]);
    world.tell();
    assert_eq!(world.hub.present(), 1);
    drop((all, present));
    assert_eq!(world.budget.bytes(), 0);
}

#[test]
fn a_hub_that_ends_tells_its_watchers_why_and_those_who_come() {
    let world = World::new(1 << 20);
    let mut watching = world.watch(Selection::of(KeySpan::all()), Revision(2));
    watching.step();
    world.read(&mut watching);
    watching.step();
    assert!(watching.idle);
    world.hub.end(&Error::Unavailable("halted".into()));
    assert!(watching.woken.0.load(Ordering::SeqCst));
    let told = watching.watcher.poll(Waker::noop());
    assert!(matches!(&told, Poll::Ready(Err(Error::Unavailable(why))) if why == "halted"), "{told:?}");
    let mut late = world.watch(Selection::of(KeySpan::all()), Revision(2));
    let first = Revision(2);
    let read = late.watcher.read(super::Standing { revision: world.revision, first, view: &world.view });
    assert!(matches!(read, Err(Error::Unavailable(_))));
    world.hub.reset(world.revision);
    world.read(&mut late);
    late.step();
    assert!(late.idle);
}

#[test]
fn history_that_is_gone_is_told_with_the_first_revision_that_is_kept() {
    let mut world = World::new(1 << 20);
    world.write(&[vec![(0, false)], vec![(0, false)], vec![(0, false)]]);
    let read = |from| {
        let mut watching = world.watch(Selection::of(KeySpan::all()), Revision(from));
        watching.watcher.read(super::Standing {
            revision: world.revision,
            first: Revision(3),
            view: &world.view,
        })
    };
    assert!(matches!(read(2), Err(Error::Compacted { asked: Revision(2), first: Revision(3) })));
    assert!(read(3).is_ok());
}

/// What a real machine does, on threads of their own: batches are published and the hub is told, while
/// watchers read, come and fall behind.
#[test]
fn watchers_on_other_threads_get_exactly_their_events() {
    const BATCHES: u64 = 20_000;
    let hub = Arc::new(Hub::new(Revision::FIRST, Budget::new(1 << 20), BOUNDS, 7));
    let published = Mutex::new((MemoryView::default(), Revision::FIRST));
    let follow = |key: u8, lazy: u64| {
        let selection = Selection::of(KeySpan::key(vec![key]).unwrap());
        let mut watcher = Watcher::new(hub.clone(), selection, Revision(2));
        let (thread, mut told) = (std::thread::current(), Vec::new());
        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Unpark>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(thread)));
        while told.len() < BATCHES as usize / 2 {
            match watcher.poll(&waker) {
                Poll::Pending => std::thread::park(),
                Poll::Ready(step) => match step.unwrap() {
                    Step::Events(revised) => told.push(revised.revision.0),
                    Step::Read => {
                        let published = published.lock();
                        let (view, revision) = (&published.0, published.1);
                        watcher.read(super::Standing { revision, first: Revision(2), view }).unwrap();
                    }
                    Step::Progress(_) => panic!("nobody asked"),
                },
            }
            if lazy > 0 && (told.len() as u64).is_multiple_of(lazy) {
                std::thread::yield_now();
            }
        }
        told
    };
    std::thread::scope(|scope| {
        let watching: Vec<_> = [(0, 0), (1, 0), (0, 7), (1, 100)]
            .map(|(key, lazy)| (key, scope.spawn(move || follow(key, lazy))))
            .into();
        for index in 1..=BATCHES {
            let revision = Revision(index + 1);
            let mut rows = EventRows::default();
            rows.savepoint();
            let context = Context { index, offset: 0, time: 1, revision: revision.0 };
            rows.push(&context, EventKind::Put, vec![(index % 2) as u8], b"v".to_vec());
            let rows: Rows = rows.into_rows().collect();
            {
                let mut published = published.lock();
                for (key, row) in &rows {
                    published.0.put(Table::Events, key.clone(), Some(row.clone()));
                }
                published.1 = revision;
            }
            hub.publish(revision, rows.iter().map(|(key, row)| (&key[..], row)));
        }
        for (key, watching) in watching {
            let told = watching.join().expect("the watcher ends");
            let due: Vec<u64> =
                (1..=BATCHES).filter(|index| (index % 2) as u8 == key).map(|index| index + 1).collect();
            assert_eq!(told, due);
        }
    });
}
