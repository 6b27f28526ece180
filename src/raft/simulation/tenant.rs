//! What runs on the simulated cluster beside the plain clients: it sees what nodes commit and apply, lives
//! through their crashes, and has wishes of its own. The room that builds nodes has one, for what the raft
//! room knows nothing of: leases, sessions, watches.

use crate::id::{GroupId, Index, LogTime, NodeId, Term};
use crate::machine::batch::Operation;
use crate::raft::input::ProposalId;
use crate::raft::output::ProposeError;
use crate::raft::simulation::Rng;
use crate::raft::simulation::world::World;
use crate::storage::entry::Entry;

/// A node that may be asked for something.
pub(crate) struct Asked {
    pub(crate) node: NodeId,
    pub(crate) group: GroupId,
    /// What the clock of its batches shows, if it leads the group.
    pub(crate) leader_clock: Option<LogTime>,
    /// Whether nothing goes wrong any more.
    pub(crate) calm: bool,
    /// Whether clients want something.
    pub(crate) busy: bool,
    pub(crate) now_ms: u64,
}

/// A proposal's fate.
pub(crate) enum Fate {
    /// It is applied: the index of its batch, and its place there.
    Applied(Index, usize),
    /// It certainly is not and will not be.
    Never,
    /// Nobody can say.
    Unknown,
}

/// What runs on the cluster.
pub(crate) trait Tenant {
    /// The first node is told to apply an entry: it is committed.
    fn committed(&mut self, group: GroupId, entry: &Entry, now_ms: u64);
    /// A node has applied an entry.
    fn applied(&mut self, node: NodeId, group: GroupId, index: Index);
    /// A snapshot took the place of a node's state.
    fn installed(&mut self, node: NodeId, group: GroupId, index: Index);
    /// A node starts with these states.
    fn started(&mut self, node: NodeId, states: &[(GroupId, Index)]);
    /// A node loses what it had in memory.
    fn crashed(&mut self, node: NodeId);
    /// A node leads a group from now on.
    fn leads(&mut self, group: GroupId, term: Term, now_ms: u64);
    /// What it wants of a node now.
    fn wants(&mut self, asked: &Asked, rng: &mut Rng) -> Vec<Wish>;
    /// What became of a wish. A node that crashes tells nothing.
    fn told(&mut self, wish: Token, fate: Fate);
    /// Whether everything that it wanted has come to its end, and everybody knows what there is to know.
    fn is_settled(&self) -> bool;
    /// What it did and saw, by name.
    fn counts(&self) -> Vec<(&'static str, u64)>;
}

/// Names a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Token(pub(crate) u64);

/// An operation that it wants proposed. Who it is goes before its trace.
pub(crate) struct Wish {
    pub(crate) token: Token,
    pub(crate) operation: Operation,
}

impl World {
    /// A cluster with a tenant.
    pub(super) fn with_tenant(seed: u64, tenant: Box<dyn Tenant>) -> World {
        let mut world = World::new(seed, None, false);
        world.tenant = Some(tenant);
        world
    }

    /// Tells the tenant something, if there is one.
    pub(super) fn tell_tenant(&mut self, tell: impl FnOnce(&mut dyn Tenant)) {
        if let Some(tenant) = &mut self.tenant {
            tell(tenant.as_mut());
        }
    }

    /// The tenant asks a node for what it wants.
    pub(super) fn tenant_asks(&mut self, node: NodeId, group: GroupId, leads: bool) {
        let Some(mut tenant) = self.tenant.take() else { return };
        let now = self.nodes[&node].now(self.now_ms);
        let busy = self.now_ms >= self.lull_until_ms;
        let life = self.life(node);
        let asked = Asked {
            node,
            group,
            leader_clock: leads.then(|| life.shard.log_time(now, group)).flatten(),
            calm: self.calm,
            busy,
            now_ms: self.now_ms,
        };
        for Wish { token, mut operation } in tenant.wants(&asked, &mut self.rng) {
            let id = self.propose(node, group, |id| {
                operation.trace.splice(..0, id.0.to_be_bytes());
                operation
            });
            self.wishes.insert(id, token);
        }
        self.tenant = Some(tenant);
    }

    /// What became of a proposal, if it was a tenant's.
    pub(super) fn tell_fate(&mut self, id: ProposalId, fate: Fate) {
        if let Some(token) = self.wishes.remove(&id) {
            self.tell_tenant(|tenant| tenant.told(token, fate));
        }
    }
}

/// What a refusal says of a wish.
pub(super) fn fate_of(error: &ProposeError) -> Fate {
    match error {
        ProposeError::Unknown => Fate::Unknown,
        _ => Fate::Never,
    }
}

/// A run of a cluster with a tenant: trouble, peace and rest. Gives the tenant back.
pub(crate) fn run_with_tenant(seed: u64, tenant: Box<dyn Tenant>) -> Box<dyn Tenant> {
    let mut world = World::with_tenant(seed, tenant);
    world.trouble(3_000);
    world.heal();
    world.rest_and_wake();
    world.tenant.take().expect("it is there between two steps")
}
