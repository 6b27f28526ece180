//! What a node counts and times, in the text form that Prometheus reads.

use std::sync::Mutex;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::cluster::Counts;

/// A node's metrics. Each is cheap to bump from any thread.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Commands that clients sent.
    pub commands: Counter,
    /// Queries that clients sent.
    pub queries: Counter,
    /// Queries that went on with the full budget after the short one.
    pub queries_long: Counter,
    /// Machines open on this node.
    pub machines: Gauge,
    /// Threads that apply batches, those that stand in for slow ones included.
    pub apply_threads: Gauge,
    /// Flushes of the state.
    pub checkpoints: Counter,
    /// What happened to requests whose leader is not here.
    pub(super) routed: Counts,
    operations_applied: Counter,
    batch_operations: Histogram,
    batch_seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let metrics = Metrics {
            registry: Mutex::new(Registry::with_prefix("statehouse")),
            commands: Counter::default(),
            queries: Counter::default(),
            queries_long: Counter::default(),
            machines: Gauge::default(),
            apply_threads: Gauge::default(),
            checkpoints: Counter::default(),
            routed: Counts::default(),
            operations_applied: Counter::default(),
            batch_operations: Histogram::new(exponential_buckets(1.0, 2.0, 14)),
            batch_seconds: Histogram::new(exponential_buckets(20e-6, 2.0, 16)),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&self) {
        let mut registry = self.registry.lock().expect("nothing panics while it holds the registry");
        registry.register("commands", "Commands received", self.commands.clone());
        registry.register("queries", "Queries received", self.queries.clone());
        registry.register("queries_long", "Queries that outran the short budget", self.queries_long.clone());
        registry.register("machines", "Machines open on this node", self.machines.clone());
        registry.register("apply_threads", "Threads that apply batches", self.apply_threads.clone());
        registry.register("checkpoints", "Flushes of the state", self.checkpoints.clone());
        let Counts { held, forwarded, expired, refused } = self.routed.clone();
        registry.register("requests_held", "Requests that had to wait for a leader", held);
        registry.register("requests_forwarded", "Requests passed on to another node", forwarded);
        registry.register("requests_expired", "Requests that found no leader in time", expired);
        registry.register(
            "requests_refused",
            "Requests refused because too many waited for a leader",
            refused,
        );
        registry.register("operations_applied", "Operations applied", self.operations_applied.clone());
        registry.register("batch_operations", "Operations of a batch", self.batch_operations.clone());
        let seconds = "Time to apply a batch, the state write and the new view included";
        registry.register_with_unit("batch_apply", seconds, Unit::Seconds, self.batch_seconds.clone());
    }

    /// A batch was applied.
    pub fn batch_applied(&self, operations: usize, took_ns: u64) {
        self.operations_applied.inc_by(operations as u64);
        self.batch_operations.observe(operations as f64);
        self.batch_seconds.observe(took_ns as f64 / 1e9);
    }

    /// The text that a scrape gets.
    pub fn text(&self) -> String {
        let registry = self.registry.lock().expect("nothing panics while it holds the registry");
        let mut text = String::new();
        text::encode(&mut text, &registry).expect("a String takes all that is written to it");
        text
    }
}
