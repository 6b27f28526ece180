//! Watchers that move from node to node, stall, and go on with their next revision; and what each node has to
//! show them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Poll, Waker};

use crate::error::Error;
use crate::id::{Index, NodeId, Revision};
use crate::machine::event::Event;
use crate::node::simulation::mistake::Mistake;
use crate::node::simulation::truth::Truth;
use crate::raft::simulation::Rng;
use crate::raft::simulation::tenant::Asked;
use crate::watch::{Bounds, Budget, Hub, KeySpan, Revised, Selection, Standing, Step, Watcher};

/// Watchers of a group.
const WATCHERS: usize = 4;

/// Small, so that a few events go over them.
const BOUNDS: Bounds =
    Bounds { queue_revisions_max: 4, queue_bytes_max: 1_000, portion_bytes: 300, scan_bytes: 900 };

/// What all queues of a node may take.
const BUDGET_BYTES: usize = 10_000;

/// One node's replica, as far as watchers are concerned.
struct Replica {
    applied: Index,
    hub: Arc<Hub>,
}

/// All watchers of a group, and the replicas that they watch.
#[derive(Default)]
pub(super) struct Watchers {
    replicas: BTreeMap<NodeId, Replica>,
    watching: Vec<Watching>,
    seen: u64,
    moved: u64,
    compacted: u64,
    progress: u64,
}

/// One client's watch.
struct Watching {
    selection: Selection,
    /// It has seen everything that concerns it before this revision.
    next: Revision,
    at: Option<(NodeId, Watcher)>,
    /// It does not look until then.
    stalled_until_ms: u64,
}

impl Watchers {
    /// A node has applied an entry.
    pub(super) fn applied(&mut self, node: NodeId, index: Index, truth: &Truth) {
        let Some(replica) = self.replicas.get_mut(&node) else { return };
        replica.applied = index;
        let rows = truth.rows_of(index).iter().map(|(key, row)| (key.as_slice(), row));
        replica.hub.publish(truth.revisions_at(index).0, rows);
    }

    /// A snapshot took the place of a node's state.
    pub(super) fn installed(&mut self, node: NodeId, index: Index, truth: &Truth) {
        let Some(replica) = self.replicas.get_mut(&node) else { return };
        replica.applied = index;
        replica.hub.reset(truth.revisions_at(index).0);
    }

    /// A node starts.
    pub(super) fn started(&mut self, node: NodeId, applied: Index, truth: &Truth) {
        let budget = Budget::new(BUDGET_BYTES);
        let hub = Arc::new(Hub::new(truth.revisions_at(applied).0, budget, BOUNDS, node.0));
        self.replicas.insert(node, Replica { applied, hub });
    }

    /// A node loses what it had in memory, and watchers their connections to it.
    pub(super) fn crashed(&mut self, node: NodeId) {
        self.replicas.remove(&node);
        for watching in &mut self.watching {
            watching.at.take_if(|(at, _)| *at == node);
        }
    }

    /// Watchers of this node look what there is; some of the others come.
    pub(super) fn look(&mut self, asked: &Asked, rng: &mut Rng, truth: &Truth, mistake: Option<Mistake>) {
        let spans = ["s", "l", "l1"];
        while self.watching.len() < WATCHERS {
            let place = self.watching.len();
            let span = match spans.get(place) {
                Some(prefix) => KeySpan::prefix(*prefix).expect("it is short"),
                None => KeySpan::key("s1").expect("it is short"),
            };
            let selection = Selection::of(span);
            let next = Revision::FIRST.next();
            self.watching.push(Watching { selection, next, at: None, stalled_until_ms: 0 });
        }
        let Watchers { replicas, watching, seen, moved, compacted, progress } = self;
        let Some(replica) = replicas.get(&asked.node) else { return };
        for watching in watching {
            if !asked.calm && rng.one_in(200) {
                watching.stalled_until_ms = asked.now_ms + rng.below(3_000);
            }
            if rng.one_in(100) {
                watching.at = None;
            }
            if watching.at.is_none() && rng.one_in(3) {
                let next = match mistake {
                    Some(Mistake::SkipOnMove) => watching.next.next(),
                    Some(Mistake::RepeatOnMove) => Revision(watching.next.0 - 1),
                    _ => watching.next,
                };
                let watcher = Watcher::new(replica.hub.clone(), watching.selection.clone(), next);
                watching.at = Some((asked.node, watcher));
                *moved += 1;
            }
            let here = watching.at.as_ref().is_some_and(|(at, _)| *at == asked.node);
            if here && asked.now_ms >= watching.stalled_until_ms {
                let Told { events, marks, lost } = watching.look(replica, rng, truth);
                (*seen, *progress, *compacted) = (*seen + events, *progress + marks, *compacted + lost);
            }
        }
    }

    /// Whether everybody has seen everything.
    pub(super) fn is_settled(&self, truth: &Truth) -> bool {
        self.watching.iter().all(|watching| watching.due(truth).is_none())
    }

    pub(super) fn counts(&self) -> [(&'static str, u64); 4] {
        [
            ("revision seen", self.seen),
            ("watch moved", self.moved),
            ("watch told that history is gone", self.compacted),
            ("progress told", self.progress),
        ]
    }
}

/// What a watcher was told when it looked.
#[derive(Default)]
struct Told {
    events: u64,
    marks: u64,
    lost: u64,
}

impl Watching {
    /// The events of the next revision that concerns it.
    fn due(&self, truth: &Truth) -> Option<(Revision, Vec<Event>)> {
        let concerns = |event: &&Event| event.revision >= self.next && self.selection.matches(event);
        let first = truth.events().iter().find(concerns)?.revision;
        let same = truth.events().iter().filter(|event| event.revision == first).filter(concerns);
        Some((first, same.cloned().collect()))
    }

    fn look(&mut self, replica: &Replica, rng: &mut Rng, truth: &Truth) -> Told {
        let mut told = Told::default();
        for _ in 0..1 + rng.below(6) {
            let Some((_, watcher)) = &mut self.at else { return told };
            if rng.one_in(20) {
                watcher.asker().want_progress();
            }
            match watcher.poll(Waker::noop()) {
                Poll::Pending => return told,
                Poll::Ready(Ok(Step::Events(revised))) => {
                    self.check(revised, truth);
                    told.events += 1;
                }
                Poll::Ready(Ok(Step::Progress(revision))) => {
                    let due = self.due(truth).filter(|(due, _)| *due <= revision);
                    assert_eq!(due, None, "progress to {revision} is told too early");
                    self.next = self.next.max(revision.next());
                    told.marks += 1;
                }
                Poll::Ready(Ok(Step::Read)) => {
                    let (revision, first) = truth.revisions_at(replica.applied);
                    let view = truth.history_at(replica.applied);
                    match watcher.read(Standing { revision, first, view: &view }) {
                        Ok(()) => {}
                        Err(Error::Compacted { first: kept, .. }) => {
                            assert!(self.next < kept && kept == first, "what is kept is said to be gone");
                            (self.next, self.at) = (kept, None);
                            told.lost += 1;
                        }
                        Err(other) => panic!("a watcher cannot read: {other}"),
                    }
                }
                Poll::Ready(Err(why)) => panic!("a watch ends: {why}"),
            }
        }
        told
    }

    /// What it is told is the next that concerns it.
    fn check(&mut self, told: Revised, truth: &Truth) {
        let due = self.due(truth);
        assert_eq!(Some((told.revision, told.events)), due, "a watcher misses something, or sees it again");
        self.next = told.revision.next();
    }
}
