//! Commands and queries: what clients do with machines.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Node;
use super::lane::Lane;
use super::machine::{self, Closed, Machine, Queries};
use super::metrics::seconds;
use super::order::Order;
use super::registry::Registry;
use super::request::{Answered, Applied, Consistency};
use super::sessions;
use crate::error::{Error, Fault};
use crate::id::{GroupId, Index};
use crate::machine::batch::{Numbered, Operation};
use crate::raft::ReadPoint;
use crate::trace::TraceContext;

/// Commands and queries.
impl Node {
    /// Sends a command to a machine and waits for its outcome.
    ///
    /// # Errors
    /// `NotFound`, `TooLarge`, `Overloaded`, `Unavailable`: it was not done. `Unknown`: it may have been.
    pub async fn apply(&self, machine: &str, command: Bytes) -> Result<Applied, Error> {
        self.apply_traced(machine, command, None, None).await
    }

    /// The same for a command that may have a place in a session, or be followed through the nodes.
    ///
    /// # Errors
    /// As of [`apply`](Node::apply).
    pub async fn apply_traced(
        &self,
        machine: &str,
        command: Bytes,
        numbered: Option<Numbered>,
        trace: Option<TraceContext>,
    ) -> Result<Applied, Error> {
        let found = self.find_ready(machine).await?;
        numbered.as_ref().map_or(Ok(()), sessions::check)?;
        let bytes_max = self.inner.config.limits.command_bytes_max as usize;
        if command.len() > bytes_max {
            return Err(Error::TooLarge(format!(
                "the command has {} bytes, the limit is {bytes_max}: split it, or raise `command_bytes_max`",
                command.len()
            )));
        }
        self.inner.stage.metrics.commands.inc();
        if let Err(why) = found.serving()
            && self.inner.stage.net.is_none()
        {
            return Err(why);
        }
        let trace = trace.map(TraceContext::to_bytes).unwrap_or_default();
        let operation = Operation { numbered, trace, ..Operation::command(command) };
        let clock = self.inner.stage.clock;
        let begun_ns = clock.elapsed_ns();
        let applied = self.propose(found.record.group(), operation).await;
        self.inner.stage.metrics.stages.command.observe(seconds(clock.elapsed_ns() - begun_ns));
        applied
    }

    /// Sends a command that is done only if this node leads the machine: it is neither passed on nor held.
    ///
    /// # Errors
    /// `NotLeader`, with the node that leads if that is known here: it was not done. Else as of
    /// [`apply`](Node::apply).
    pub async fn apply_as_leader(&self, machine: &str, command: Bytes) -> Result<Applied, Error> {
        let _inside = self.enter()?;
        let found = self.find_ready(machine).await?;
        found.serving()?;
        self.propose_here(found.record.group(), Operation::command(command)).await
    }

    /// Asks a machine a question.
    ///
    /// # Errors
    /// As of [`apply`](Node::apply); `Guest` if the query trapped or used up its budget.
    pub async fn query(
        &self,
        machine: &str,
        request: Bytes,
        consistency: Consistency,
    ) -> Result<Answered, Error> {
        let _inside = self.enter()?;
        let found = self.find_ready(machine).await?;
        match &found.open {
            Err(Closed::Elsewhere | Closed::Waiting) => {
                self.query_elsewhere(&found.record, request, consistency).await
            }
            _ => self.query_open(found, request, consistency).await,
        }
    }

    /// Answers another node's query, of a machine that has a replica here.
    pub(super) async fn query_here(
        &self,
        machine: &str,
        request: Bytes,
        consistency: Consistency,
    ) -> Result<Answered, Error> {
        let found = self.find_ready(machine).await?;
        self.query_open(found, request, consistency).await
    }

    async fn query_open(
        &self,
        found: Arc<Machine>,
        request: Bytes,
        consistency: Consistency,
    ) -> Result<Answered, Error> {
        let parts = found.serving()?;
        self.inner.stage.metrics.queries.inc();
        self.wait_fresh(&parts.lane, consistency).await?;
        if let Queries::Stored(pools) = &parts.queries {
            let short = self.inner.config.short_query_budget();
            let answered = machine::query_stored(&parts.lane, pools, &self.inner.stage, &request, short);
            if let Some(answered) = answered.map_err(|why| self.noticed(why))? {
                return Ok(answered);
            }
            // It has had this thread for a while; those who wait behind it come first.
            step_aside().await;
        }
        self.query_long(found, request).await.map_err(|why| self.noticed(why))
    }

    /// A read that found the state database failed is the first to know: the node stops serving.
    pub(super) fn noticed(&self, why: Error) -> Error {
        if matches!(why, Error::Fault(_))
            && let Some(fault) = self.inner.stage.state.failure()
        {
            self.inner.stage.fail(fault);
        }
        why
    }

    /// Runs a query with the full budget, on a thread that may block.
    async fn query_long(&self, machine: Arc<Machine>, request: Bytes) -> Result<Answered, Error> {
        let own = machine.serving()?.long_queries.clone();
        let _of_machine = own.acquire().await;
        let _of_node = self.inner.long_queries.acquire().await;
        self.inner.stage.metrics.queries_long.inc();
        let (stage, budget) = (self.inner.stage.clone(), self.inner.config.query_budget());
        let run = move || {
            let parts = machine.serving()?;
            match &parts.queries {
                Queries::Stored(pools) => {
                    machine::query_stored_long(&parts.lane, pools, &stage, &request, budget)
                }
                Queries::Resident(resident) => resident.query(&parts.lane, &stage, &request),
            }
        };
        let ran = tokio::task::spawn_blocking(run).await;
        match ran.map_err(|e| Fault::new(format!("a query panicked: {e}")))? {
            Err(Error::Fault(_)) if self.inner.stage.is_interrupted() => {
                Err(Error::Unavailable("the node is stopping; the query was not answered".into()))
            }
            answered => answered,
        }
    }

    pub(super) async fn wait_fresh(&self, lane: &Lane, consistency: Consistency) -> Result<(), Error> {
        match consistency {
            Consistency::Linearizable | Consistency::Lease if lane.reads_at_once() => Ok(()),
            Consistency::Linearizable | Consistency::Lease => {
                let point = self.read_point(lane.group, consistency == Consistency::Lease).await?;
                lane.note_time(point.time);
                self.wait_applied(lane, point.index).await
            }
            Consistency::Local { min_index } => self.wait_applied(lane, min_index).await,
        }
    }

    pub(super) async fn wait_applied(&self, lane: &Lane, index: Index) -> Result<(), Error> {
        if lane.published().head.index >= index {
            return Ok(());
        }
        let patience = Duration::from_millis(self.inner.config.read_wait_ms);
        let reached = tokio::select! {
            reached = tokio::time::timeout(patience, lane.wait_applied(index)) => reached,
            fault = self.failed() => return Err(Error::Fault(fault)),
        };
        match reached {
            Ok(reached) => reached,
            Err(_) => Err(Error::DeadlineExceeded(format!(
                "index {index} was not applied here within {} ms; this replica stands at {}: try again or \
                 ask for less",
                patience.as_millis(),
                lane.published().head.index
            ))),
        }
    }

    pub(super) async fn read_point(&self, group: GroupId, lease: bool) -> Result<ReadPoint, Error> {
        let (waiter, told) = oneshot::channel();
        let clock = self.inner.stage.clock;
        let begun_ns = clock.elapsed_ns();
        self.inner.stage.orders.send(Order::Read { group, lease, waiter });
        let told = told.await;
        self.inner.stage.metrics.stages.read_point.observe(seconds(clock.elapsed_ns() - begun_ns));
        match told {
            Ok(answer) => answer,
            Err(_) => Err(Error::Unavailable(self.stopped("the read was not done"))),
        }
    }

    /// Brings the catalog here up to date with every change that was acknowledged before this began.
    pub(super) async fn confirm_catalog(&self) -> Result<(), Error> {
        let point = self.read_point(GroupId::CATALOG, false).await?;
        self.wait_applied(&self.inner.catalog_lane, point.index).await
    }

    /// Puts an operation into the log of a group that this node leads, and waits for what becomes of it.
    pub(super) async fn propose_here(&self, group: GroupId, operation: Operation) -> Result<Applied, Error> {
        let (waiter, told) = oneshot::channel();
        let numbered = operation.numbered;
        self.inner.stage.orders.send(Order::Propose { group, operation, waiter: Some(waiter) });
        match told.await {
            Ok(answer) => answer.and_then(|applied| self.as_answered(group, numbered, applied)),
            Err(_) => Err(Error::Unknown(self.stopped("it is unknown whether the command was applied"))),
        }
    }

    fn stopped(&self, consequence: &str) -> String {
        match self.inner.stage.failure() {
            Some(fault) => format!("the node failed ({fault}); {consequence}"),
            None => format!("the node is stopping; {consequence}"),
        }
    }

    /// The machine of this name. One that is not known here may have been created elsewhere a moment ago:
    /// then the catalog is brought up to date first.
    pub(super) async fn find(&self, name: &str) -> Result<Arc<Machine>, Error> {
        self.check_alive()?;
        if let Some(machine) = self.inner.registry.get(name).filter(|machine| machine.record.ready) {
            return Ok(machine);
        }
        self.ready()?;
        if self.inner.stage.net.is_some() {
            self.confirm_catalog().await?;
            let in_step = |registry: &Registry| {
                let catalog = self.inner.catalog.load();
                let (record, known) = (catalog.machines.get(name), registry.get(name));
                let same = record.map(|r| (r.group, r.ready))
                    == known.map(|machine| (machine.record.group, machine.record.ready));
                same.then_some(())
            };
            self.inner.registry.wait(in_step).await;
        }
        self.known(name)
    }

    /// The machine of this name, if clients may use it.
    pub(super) async fn find_ready(&self, name: &str) -> Result<Arc<Machine>, Error> {
        let found = self.find(name).await?;
        found.check_ready()?;
        Ok(found)
    }

    /// The machine of this name, as far as it is known here.
    pub(super) fn known(&self, name: &str) -> Result<Arc<Machine>, Error> {
        self.inner.registry.get(name).ok_or_else(|| {
            Error::NotFound(format!(
                "no machine is called {name:?}; `statehouse machine list` shows those there are"
            ))
        })
    }
}

/// Lets other tasks of this thread go first. Wakes itself within the poll, which those who drive many futures
/// in one task take as the word to give way; tokio's own `yield_now` wakes only later.
async fn step_aside() {
    let mut stepped = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut stepped, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
