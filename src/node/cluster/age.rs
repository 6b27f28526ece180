//! How old the data of nodes is, so that one that comes with an old copy of its data directory is noticed: it
//! has forgotten votes that it gave and entries that it acknowledged, and the others count on both. A voter
//! like that can silently lose commands that clients were told were done.
//!
//! A node counts its data's age up, durably, with each life and every minute, and tells the others, who
//! remember it; the catalog remembers the age of each life, and of every hour. Whoever comes with an age that
//! another life of the node had already is turned away for good, and stops with the reason. Starting it again
//! does not help it: a life that the catalog was not told of does not make the data older.
//!
//! What cannot be noticed: a copy that was made within the last minute before the node's data was lost, or
//! one that is newer than all that any node that is there has heard; the old copy of the only node of a
//! cluster; and old copies of all nodes together, which are a cluster that went back in time.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::catalog::{Catalog, Change, NodeRecord};
use crate::error::Error;
use crate::id::NodeId;
use crate::net::{DataAge, NotAdmitted};
use crate::node::Node;

/// How often the age is counted up.
const INTERVAL: Duration = Duration::from_secs(60);

/// Each so many times the catalog is told.
const RECORD_EVERY: u64 = 60;

/// The ages that other nodes came with.
#[derive(Default)]
pub struct Ages {
    of_nodes: Mutex<HashMap<NodeId, DataAge>>,
}

impl Ages {
    /// Whether a node may come with data of this age.
    ///
    /// # Errors
    /// What it is told if it comes with an old copy.
    pub fn admit(&self, node: NodeId, age: DataAge, catalog: &Catalog) -> Result<(), NotAdmitted> {
        let mut of_nodes = self.of_nodes.lock();
        let heard = of_nodes.get(&node).copied();
        let recorded = catalog.nodes.get(&node).map(|record| (record.age, record.life));
        let known = recorded.into_iter().chain(heard.map(|heard| (heard.age, heard.life)));
        if let Some((known_age, known_life)) = known.max_by_key(|(age, _)| *age) {
            let same_life = age.life == known_life;
            if age.age < known_age
                && same_life
                && heard.is_none_or(|heard| heard.incarnation != age.incarnation)
            {
                // Said before it said the other, or it is a copy made in this life: only that one says it
                // again.
                return Err(NotAdmitted::ForNow(old_copy(node, age.age, known_age)));
            }
            if age.age <= known_age && !same_life {
                return Err(NotAdmitted::ForGood(old_copy(node, age.age, known_age)));
            }
        }
        // What the same process said earlier may come later, on another connection.
        if heard.is_none_or(|heard| heard.age < age.age || heard.incarnation != age.incarnation) {
            of_nodes.insert(node, age);
        }
        Ok(())
    }

    /// A node was removed, and never comes back under this id.
    pub fn forget(&self, node: NodeId) {
        self.of_nodes.lock().remove(&node);
    }
}

/// What a node is told that comes with an old copy of its data.
fn old_copy(node: NodeId, age: u64, known: u64) -> String {
    format!(
        "node {node} comes with an old copy of its data: its age is {age}, and the cluster has seen it with \
         {known}. What it has acknowledged since is not in it, so it could lose commands that were answered, \
         and it is not let in. Start it with its newest data directory; if that is lost, remove the node \
         (statehouse member remove) and start this computer with an empty data directory and --join"
    )
}

impl Node {
    /// Counts the age of this node's data up as long as it runs.
    pub(in crate::node) async fn grow_older(self) {
        let Some(net) = self.inner.stage.net.clone() else { return };
        let mut stopping = self.inner.stopping.subscribe();
        for count in 1_u64.. {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                _ = stopping.wait_for(|stopping| *stopping) => return,
            }
            let inner = self.inner.clone();
            match tokio::task::spawn_blocking(move || inner.directory.grow_older()).await {
                Ok(Ok(age)) => age.into_iter().for_each(|age| net.grow_older(age.count)),
                // It is as young as before: an old copy would be noticed a little less well.
                Ok(Err(error)) => tracing::warn!(%error, "the age of the data was not counted up"),
                Err(panic) => tracing::error!(%panic, "counting the age of the data up panicked"),
            }
            if count % RECORD_EVERY == 0
                && let Err(why) = self.record_age().await
            {
                tracing::info!(%why, "the catalog was not told how old the data is: again later");
            }
        }
    }

    /// Has the catalog know how old this node's data is by now.
    async fn record_age(&self) -> Result<(), Error> {
        let known = self.inner.catalog.load().nodes.get(&self.id()).cloned();
        match (known, &self.inner.stage.net) {
            (Some(known), Some(net)) => {
                let DataAge { life, age, .. } = net.age();
                self.change_catalog(Change::AddNode(NodeRecord { life, age, ..known })).await?;
            }
            _ => tracing::debug!("this node is not in the catalog yet"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(3);

    /// The data of a life, in a process of the same number.
    fn age(life: u64, age: u64) -> DataAge {
        DataAge { incarnation: life, life, age }
    }

    fn is_old_copy(told: Result<(), NotAdmitted>) -> bool {
        match told {
            Err(NotAdmitted::ForGood(text)) => {
                assert!(text.contains("old copy") && text.contains("member remove"), "{text}");
                true
            }
            other => {
                assert_eq!(other, Ok(()));
                false
            }
        }
    }

    #[test]
    fn a_later_life_must_be_older_than_the_one_before() {
        let (ages, catalog) = (Ages::default(), Catalog::default());
        assert!(!is_old_copy(ages.admit(NODE, age(1, 5), &catalog)));
        assert!(!is_old_copy(ages.admit(NODE, age(1, 7), &catalog)));
        // A message of the same life that comes late.
        assert!(!is_old_copy(ages.admit(NODE, age(1, 6), &catalog)));
        assert!(is_old_copy(ages.admit(NODE, age(2, 7), &catalog)), "what comes late makes nobody younger");
        assert!(is_old_copy(ages.admit(NODE, age(2, 1), &catalog)));
        assert!(!is_old_copy(ages.admit(NODE, age(2, 8), &catalog)));
        assert!(!is_old_copy(ages.admit(NodeId(4), age(2, 1), &catalog)));
        // The life before is over, whatever still comes of it.
        assert!(is_old_copy(ages.admit(NODE, age(1, 7), &catalog)));
    }

    #[test]
    fn a_life_that_goes_on_in_another_process_comes_back_and_a_copy_made_in_it_does_not() {
        let (ages, catalog) = (Ages::default(), Catalog::default());
        let life = |incarnation, age| DataAge { incarnation, life: 1, age };
        assert_eq!(ages.admit(NODE, life(1, 5), &catalog), Ok(()));
        assert_eq!(ages.admit(NODE, life(2, 5), &catalog), Ok(()));
        assert_eq!(ages.admit(NODE, life(2, 6), &catalog), Ok(()));
        assert_eq!(ages.admit(NODE, life(2, 5), &catalog), Ok(()), "it was said before");
        assert!(matches!(ages.admit(NODE, life(3, 5), &catalog), Err(NotAdmitted::ForNow(_))));
    }

    #[test]
    fn what_the_catalog_knows_counts_after_all_others_were_restarted() {
        let mut catalog = Catalog::default();
        let record = NodeRecord { node: NODE.0, age: 9, life: 1, ..NodeRecord::default() };
        catalog.nodes.insert(NODE, record);
        assert!(is_old_copy(Ages::default().admit(NODE, age(2, 9), &catalog)));
        assert!(!is_old_copy(Ages::default().admit(NODE, age(1, 9), &catalog)));
        assert!(!is_old_copy(Ages::default().admit(NODE, age(2, 10), &catalog)));
    }
}
