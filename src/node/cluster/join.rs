//! How a data directory comes to belong to a cluster: it begins one, or a node of one introduces it.
//!
//! Promises: the node's id is durable before the cluster hears of it, so that a crash in between leaves one
//! node and not two; nothing is opened before the cluster has let it in.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::host::Gate;
use crate::catalog::FOUNDER;
use crate::error::{Error, Fault};
use crate::id::NodeId;
use crate::net::{Net, NetConfig};
use crate::node::config::{Join, NodeConfig};
use crate::node::request::{Introduction, Invitation};
use crate::storage::directory::{Contact, Directory, Identity};
use crate::time::{self, Clock};

/// How long a node that is to be joined may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is asked again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// How long a node is asked that is named without need.
const GLANCE: Duration = Duration::from_secs(1);

/// A data directory that belongs to a cluster, and the peer link, if the node has one.
pub struct Joined {
    pub directory: Directory,
    pub gate: Arc<Gate>,
    pub net: Option<Arc<Net>>,
}

/// Takes the data directory, makes it one of a cluster if it is not yet, and opens the peer link.
pub async fn enter(config: &NodeConfig) -> Result<Joined, Error> {
    let (root, name) = (config.data_dir.clone(), config.name.clone());
    let opened = tokio::task::spawn_blocking(move || Directory::open(&root, &name)).await;
    let mut directory = opened.map_err(|e| Fault::new(format!("taking the directory panicked: {e}")))??;
    if directory.identity().is_none() {
        directory.establish(draw(config).await?)?;
    }
    let identity = directory.identity().cloned().ok_or_else(|| Fault::new("it was just given"))?;
    let gate = Arc::new(Gate::default());
    let (directory, age) = tokio::task::spawn_blocking(move || {
        let age = directory.begin_life(time::seed());
        (directory, age)
    })
    .await
    .map_err(|e| Fault::new(format!("noting the start in the directory panicked: {e}")))?;
    let (mut directory, age) = (directory, age?);
    let net = match &config.peer {
        Some(peer) => {
            let listen = NetConfig {
                advertise: peer.advertise.clone(),
                age: age.count,
                life: age.life,
                ..NetConfig::new(identity.cluster, NodeId(identity.node), &peer.listen)
            };
            Some(Arc::new(Net::start(listen, gate.clone()).await?))
        }
        None => None,
    };
    let entered = match identity.replica {
        0 => introduce(config, &mut directory, identity, net.as_deref()).await,
        _ => check_named(config, &identity).await,
    };
    if let (Err(_), Some(net)) = (&entered, &net) {
        net.shutdown().await;
    }
    entered?;
    Ok(Joined { directory, gate, net })
}

/// A new identity: of a cluster that begins, or of one that is there and has not let the node in yet.
async fn draw(config: &NodeConfig) -> Result<Identity, Error> {
    let (cluster, replica) = match &config.join {
        Some(_) if config.bootstrap => {
            let text = "begin a new cluster or join one: --bootstrap and --join exclude each other";
            return Err(Error::Invalid(text.into()));
        }
        Some(introducer) => (cluster_of(introducer).await?, 0),
        None if config.bootstrap => (time::seed(), FOUNDER.0),
        None => {
            return Err(Error::FailedPrecondition(format!(
                "the data directory {} is empty: start the node once with --bootstrap to begin a new \
                 cluster, or with --join and the client address of a node to join its cluster",
                config.data_dir.display()
            )));
        }
    };
    let (node, name) = (time::seed(), config.name.clone());
    Ok(Identity { node, name, cluster, replica, contacts: Vec::new() })
}

async fn cluster_of(introducer: &Join) -> Result<u64, Error> {
    patiently(|| introducer.0.cluster()).await
}

/// Asks again for a while: the nodes of a cluster are often started together.
async fn patiently<'i, T>(mut ask: impl FnMut() -> BoxFuture<'i, Result<T, Error>>) -> Result<T, Error> {
    let clock = Clock::start();
    loop {
        match ask().await {
            Err(Error::Unavailable(why)) if clock.elapsed_ns() < PATIENCE.as_nanos() as u64 => {
                tracing::info!(why, "waiting for the node to join");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            told => return told,
        }
    }
}

async fn introduce(
    config: &NodeConfig,
    directory: &mut Directory,
    identity: Identity,
    net: Option<&Net>,
) -> Result<(), Error> {
    let introducer = config.join.as_ref().ok_or_else(|| {
        Error::FailedPrecondition(format!(
            "the data directory {} is of a node that was not let into its cluster yet: start it with --join \
             and the client address of a node of the cluster",
            config.data_dir.display()
        ))
    })?;
    let net = net.ok_or_else(|| {
        Error::Invalid("a node without an address for its peers cannot join a cluster: give it one".into())
    })?;
    check_same(config, &identity, cluster_of(introducer).await?)?;
    let introduction = introduction(config, NodeId(identity.node), Some(net));
    let Invitation { replica, contacts } = patiently(|| introducer.0.introduce(introduction.clone())).await?;
    let contacts = contacts.into_iter().map(|contact| Contact {
        node: contact.node.0,
        replica: contact.replica.0,
        peer_address: contact.peer_address,
    });
    directory.complete(Identity { replica: replica.0, contacts: contacts.collect(), ..identity })?;
    Ok(())
}

/// A node that was let in long ago needs nobody to introduce it. But if one is named, and is there, it must
/// be of the same cluster: whoever starts the node means that one.
async fn check_named(config: &NodeConfig, identity: &Identity) -> Result<(), Error> {
    let Some(introducer) = &config.join else { return Ok(()) };
    match tokio::time::timeout(GLANCE, introducer.0.cluster()).await {
        Ok(Ok(cluster)) => check_same(config, identity, cluster),
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

fn check_same(config: &NodeConfig, identity: &Identity, cluster: u64) -> Result<(), Error> {
    if cluster == identity.cluster {
        return Ok(());
    }
    Err(Error::FailedPrecondition(format!(
        "the data directory {} is of the cluster {:016x}, and the node given to --join is of {cluster:016x}: \
         join its own cluster, or give this node another --data-dir",
        config.data_dir.display(),
        identity.cluster
    )))
}

/// What the cluster is told of this node.
pub fn introduction(config: &NodeConfig, node: NodeId, net: Option<&Net>) -> Introduction {
    Introduction {
        node,
        name: config.name.clone(),
        peer_address: net.map(|net| net.advertised().to_owned()).unwrap_or_default(),
        client_address: config.client_address.clone(),
        etcd_address: config.etcd_address.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
