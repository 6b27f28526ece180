//! Keeps the event history of machines within its bounds, where this node leads: proposes the cuts that
//! [`machine::retention`](crate::machine::retention) finds.
//!
//! Must cost nothing for machines to which nothing happens: such a one is looked at again when its oldest
//! events come of age, not before.

use std::collections::HashMap;
use std::sync::Arc;

use super::machine::Machine;
use super::order::Order;
use super::stage::Stage;
use crate::error::Fault;
use crate::id::{GroupId, Revision};
use crate::machine::batch::{Act, Head};
use crate::machine::retention::{self, Found};
use crate::machine::settings::Settings;
use crate::raft::Role;

/// What was found at the last looks.
#[derive(Default)]
pub struct Retention {
    looked: HashMap<GroupId, Looked>,
}

/// What was found at the last look at a machine.
struct Looked {
    at: Seen,
    /// Until then nothing changes if the machine does not.
    until_ms: u64,
}

/// All of a machine, beside the time, that decides how much of its history is kept.
#[derive(PartialEq, Eq)]
struct Seen {
    revision: Revision,
    first: Revision,
    settings: Settings,
}

impl Seen {
    fn of(head: &Head) -> Seen {
        Seen { revision: head.revision, first: head.history_first, settings: head.settings }
    }
}

impl Retention {
    /// Looks at all machines that have changed, or whose history has come of age.
    pub fn round(&mut self, machines: &[Arc<Machine>], stage: &Stage) -> Result<(), Fault> {
        if self.looked.len() > machines.len() {
            self.looked.retain(|group, _| machines.iter().any(|machine| machine.record.group() == *group));
        }
        machines.iter().try_for_each(|machine| self.look(machine, stage))
    }

    fn look(&mut self, machine: &Machine, stage: &Stage) -> Result<(), Fault> {
        let Ok(parts) = machine.serving() else { return Ok(()) };
        let lane = &parts.lane;
        if lane.role().is_none_or(|role| role.role != Role::Leader) {
            return Ok(());
        }
        let published = lane.published();
        let (head, now_ms) = (&published.head, lane.time_ms(&published, &stage.clock));
        let at = Seen::of(head);
        if self.looked.get(&lane.group).is_some_and(|last| last.at == at && now_ms < last.until_ms) {
            return Ok(());
        }
        let until_ms = match retention::look(&*published.view, head, now_ms)? {
            Found::Within { until_ms } => until_ms,
            Found::Cut(first) => {
                let operation = Act::Trim(first.0).into();
                stage.orders.send(Order::Propose { group: lane.group, operation, waiter: None });
                // It is looked at again when that is applied, and anew until it is.
                0
            }
        };
        self.looked.insert(lane.group, Looked { at, until_ms });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::time::Duration;

    use bytes::Bytes;
    use statehouse_kv::Call;
    use statehouse_kv::messages::PutRequest;

    use super::*;
    use crate::error::Error;
    use crate::machine::event;
    use crate::node::Node;
    use crate::node::config::NodeConfig;
    use crate::node::request::{KeySpan, WatchSpec, Watched};

    async fn put(node: &Node, number: u64) {
        let put = PutRequest { key: b"k".into(), value: number.to_string().into(), ..Default::default() };
        node.apply("kv", put.to_envelope().into()).await.unwrap();
    }

    /// The first revision whose events are kept, and the first whose events are there.
    fn kept(node: &Node) -> (Revision, Option<Revision>) {
        let lane = node.inner.registry.get("kv").unwrap().lane().unwrap().clone();
        let published = lane.published();
        let mut there = None;
        event::visit_from(&*published.view, Revision(1), &mut |event| {
            there = Some(event.revision);
            ControlFlow::Break(())
        })
        .unwrap();
        (published.head.history_first, there)
    }

    async fn refused(node: &Node, from: u64) -> Error {
        let spec = WatchSpec { from: Some(Revision(from)), ..WatchSpec::of(KeySpan::all()) };
        node.watch("kv", spec).await.err().expect("it is refused")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn history_beyond_its_bounds_goes_and_who_asks_for_it_is_told_what_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let config = || NodeConfig { bootstrap: true, ..NodeConfig::new(directory.path(), "test") };
        let node = Node::open(config()).await.unwrap();
        let kv = node.builtin("kv").await.unwrap();
        node.create_machine("kv", kv, Bytes::new()).await.unwrap();
        let mut watch = node.watch("kv", WatchSpec::of(KeySpan::all())).await.unwrap();
        let settings = Settings { history_revisions: Some(40), ..Settings::default() };
        let group = node.inner.registry.get("kv").unwrap().record.group();
        node.propose(group, Act::Configure(settings).into()).await.unwrap();
        for number in 0..200 {
            put(&node, number).await;
            // Who keeps up misses nothing.
            let Watched::Events(told) = watch.next().await.unwrap() else { panic!("nobody asked") };
            assert_eq!(told.revision, Revision(number + 2));
        }
        // The last revision is 201; 40 are kept, and up to an eighth more. Each put alone was a row.
        let cutting = async {
            while kept(&node).0 < Revision(202 - 45) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), cutting).await.expect("it is cut");
        let (first, there) = kept(&node);
        assert!(first <= Revision(202 - 40) && there == Some(first), "{first}, and {there:?} is there");
        for from in [1, 2, first.0 - 1] {
            let asked = Revision(from.max(2));
            match refused(&node, from).await {
                Error::Compacted { asked: a, first: f } => assert_eq!((a, f), (asked, first)),
                other => panic!("{other:?}"),
            }
        }
        node.shutdown().await;
        drop((node, watch));

        // The same after a restart.
        let node = Node::open(config()).await.unwrap();
        assert_eq!(kept(&node).0, first);
        assert!(matches!(refused(&node, first.0 - 1).await, Error::Compacted { .. }));
        let spec = WatchSpec { from: Some(first), ..WatchSpec::of(KeySpan::all()) };
        let mut watch = node.watch("kv", spec).await.unwrap();
        for revision in first.0..202 {
            let Watched::Events(told) = watch.next().await.unwrap() else { panic!("nobody asked") };
            assert_eq!(told.revision, Revision(revision));
        }
        node.shutdown().await;
    }
}
