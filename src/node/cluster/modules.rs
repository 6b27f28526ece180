//! The bytes of modules: on a majority of the nodes before the catalog names them, and on every node that has
//! a machine of them before it applies anything.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::words::{Answer, Question};
use crate::error::{Error, Fault};
use crate::id::{Digest, GroupId, NodeId};
use crate::net::{BulkName, FetchError, Net};
use crate::node::background;
use crate::node::lane::Job;
use crate::node::{Inner, Node};

/// How long a majority may take to take in a module.
const SPREAD_PATIENCE: Duration = Duration::from_secs(60);

/// How long a node may take to compile one: what that may cost of a processor by default, twice, as others
/// use it meanwhile.
const COMPILE_PATIENCE: Duration = Duration::from_secs(120);

/// How long a node that cannot be reached is left alone.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Tries to go on with a broken transfer, before the next node is asked.
const RESUMES_MAX: usize = 5;

impl Node {
    /// Has other nodes take in a module that is here, until a majority has it.
    ///
    /// # Errors
    /// `Unavailable` names how many have it and how many are needed.
    pub(in crate::node) async fn spread_module(&self, digest: Digest) -> Result<(), Error> {
        let others = self.other_nodes();
        let needed = others.len().div_ceil(2);
        let mut asking: FuturesUnordered<_> =
            others.into_iter().map(|node| self.clone().hand_module(node, digest)).collect();
        let mut have = 0;
        let spread = async {
            while have < needed && asking.next().await.is_some() {
                have += 1;
            }
        };
        let in_time = tokio::time::timeout(SPREAD_PATIENCE, spread).await.is_ok();
        if !in_time {
            return Err(Error::Unavailable(format!(
                "only {} of the {} nodes that are needed have taken in the module within {} s: push it again \
                 when more nodes are up",
                have + 1,
                needed + 1,
                SPREAD_PATIENCE.as_secs()
            )));
        }
        // The rest get it as well, but nobody waits for them; who misses it fetches it when it is needed.
        self.spawn(async move {
            let rest = async { while asking.next().await.is_some() {} };
            let _ = tokio::time::timeout(SPREAD_PATIENCE, rest).await;
        });
        Ok(())
    }

    /// Waits until a majority of the nodes has compiled a module that they took in, so that a machine of it
    /// finds a leader at once. Not for nodes that cannot be reached or cannot compile it, and not for ever:
    /// what is missing then is done when it is needed.
    pub(in crate::node) async fn wait_compiled(&self, digest: Digest) {
        let others = self.other_nodes();
        let needed = others.len().div_ceil(2);
        let ask = |node| self.ask(node, Question::CompileModule(digest.0.to_vec()), COMPILE_PATIENCE);
        let mut asking: FuturesUnordered<_> = others.into_iter().map(ask).collect();
        let mut compiled = 0;
        while compiled < needed
            && let Some(told) = asking.next().await
        {
            match told {
                Ok(_) => compiled += 1,
                Err(why) => tracing::warn!(%digest, %why, "a node has not compiled a module"),
            }
        }
    }

    /// The other nodes that are to stay.
    fn other_nodes(&self) -> Vec<NodeId> {
        let catalog = self.inner.catalog.load();
        let nodes = catalog.nodes.values().filter(|node| !node.leaving).map(|node| node.node());
        nodes.filter(|node| *node != self.id()).collect()
    }

    /// Tries until the node has it.
    async fn hand_module(self, node: NodeId, digest: Digest) {
        loop {
            let question = Question::TakeModule(digest.0.to_vec());
            match self.ask(node, question, SPREAD_PATIENCE).await {
                Ok(_) => return,
                Err(why) => tracing::debug!(%node, %digest, %why, "a node has not taken in a module yet"),
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Takes in a module that was pushed to another node, and begins to compile it.
    pub(super) async fn take_module(&self, from: NodeId, digest: Digest) -> Result<Answer, Error> {
        self.fetch_module(digest, &[from]).await?;
        self.inner.shelf.try_again(digest);
        let node = self.clone();
        drop(self.spawn(async move { drop(node.compile_ahead(digest).await) }));
        Ok(Answer::Done(()))
    }

    /// Has a module of another node compiled when it answers.
    pub(super) async fn compile_module(&self, from: NodeId, digest: Digest) -> Result<Answer, Error> {
        self.fetch_module(digest, &[from]).await?;
        self.compile_ahead(digest).await?;
        Ok(Answer::Done(()))
    }

    /// Sees to it that a module's bytes are here: from the first of `nodes` that has them.
    pub(in crate::node) async fn fetch_module(&self, digest: Digest, nodes: &[NodeId]) -> Result<(), Error> {
        if self.inner.shelf.has(digest) {
            return Ok(());
        }
        let net = self.inner.stage.net.as_ref().ok_or_else(|| {
            Error::NotFound(format!("the module {digest} is not on this node, and it has no peers to ask"))
        })?;
        let mut last = Error::NotFound(format!("no other node has the module {digest}"));
        for node in nodes {
            match fetch(net, *node, digest, self.inner.config.limits.module_bytes_max).await {
                Ok(bytes) => {
                    let inner = self.inner.clone();
                    let stored = tokio::task::spawn_blocking(move || inner.shelf.put(digest, &bytes)).await;
                    return stored.map_err(|e| Fault::new(format!("storing a module panicked: {e}")))?;
                }
                Err(why) => {
                    tracing::debug!(%node, %digest, %why, "a module was not fetched from this node");
                    last = why;
                }
            }
        }
        Err(last)
    }

    /// The same from whichever node has them, however long that takes.
    async fn fetch_for_certain(&self, digest: Digest) {
        loop {
            let catalog = self.inner.catalog.load_full();
            let others: Vec<NodeId> = catalog.nodes.keys().copied().filter(|id| *id != self.id()).collect();
            match self.fetch_module(digest, &others).await {
                Ok(()) => return,
                Err(why) => tracing::warn!(%digest, %why, "a module is not on this node yet"),
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Compiles a module that machines may soon run here, so that none of them waits for it.
    async fn compile_ahead(&self, digest: Digest) -> Result<(), Error> {
        let inner = self.inner.clone();
        match background::run("compilation", move || inner.shelf.compile_ahead(digest)).await {
            Ok(compiled) => {
                // Whoever needs it is told.
                compiled.inspect_err(|why| tracing::debug!(%digest, %why, "a module was not compiled ahead"))
            }
            Err(fault) => {
                self.inner.stage.fail(fault.clone());
                Err(fault.into())
            }
        }
    }

    /// Gets a module that a machine waits for, and has it go on.
    pub(super) async fn fetch_for(self, group: GroupId, digest: Digest) {
        self.fetch_for_certain(digest).await;
        let machine = self.inner.registry.by_group(group);
        if let Some(lane) = machine.as_ref().and_then(|machine| machine.lane()) {
            let since_ns = self.inner.stage.clock.elapsed_ns();
            self.inner.stage.lend(lane, Job { snapshot: None, entries: Vec::new(), since_ns });
        }
    }
}

async fn fetch(net: &Net, node: NodeId, digest: Digest, bytes_max: u64) -> Result<Bytes, Error> {
    let mut bytes = BytesMut::new();
    let mut resumed = 0;
    loop {
        match fetch_rest(net, node, digest, bytes_max, &mut bytes).await {
            Ok(()) => return Ok(bytes.freeze()),
            Err(Some(why)) if why.worth_retrying() && resumed < RESUMES_MAX => {
                resumed += 1;
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            Err(Some(why)) => return Err(Error::Unavailable(why.to_string())),
            Err(None) => {
                let text =
                    format!("the module {digest} of node {node} is over the limit of {bytes_max} bytes");
                return Err(Error::TooLarge(text));
            }
        }
    }
}

/// Fetches what is missing. `None` as the error: it is too large.
async fn fetch_rest(
    net: &Net,
    node: NodeId,
    digest: Digest,
    bytes_max: u64,
    bytes: &mut BytesMut,
) -> Result<(), Option<FetchError>> {
    let mut bulk = net.fetch(node, BulkName::Module(digest), bytes.len() as u64).await.map_err(Some)?;
    if bulk.total_bytes() > bytes_max {
        return Err(None);
    }
    while let Some(piece) = bulk.next().await.map_err(Some)? {
        bytes.extend_from_slice(&piece);
    }
    Ok(())
}

/// Fetches and compiles, in the background, the modules that machines of this node need and that are not
/// ready here, and has the machines opened when they are. Those under way are in `readying`.
pub fn ready_modules(inner: &Arc<Inner>, readying: &mut HashMap<Digest, tokio::task::JoinHandle<()>>) {
    readying.retain(|_, task| !task.is_finished());
    if inner.stage.net.is_none() {
        return;
    }
    let catalog = inner.catalog.load_full();
    for machine in catalog.machines.values().filter(|machine| machine.replica_on(inner.id()).is_some()) {
        let Ok(digest) = machine.module() else { continue };
        if readying.contains_key(&digest) || inner.shelf.is_settled(digest) {
            continue;
        }
        let node = Node { inner: inner.clone() };
        let make_ready = async move {
            node.fetch_for_certain(digest).await;
            // If it cannot be compiled, opening the machine tells.
            let _ = node.compile_ahead(digest).await;
            node.inner.catalog_changes.send_modify(|count| *count += 1);
        };
        let task = Node { inner: inner.clone() }.spawn(make_ready);
        readying.insert(digest, task);
    }
}
