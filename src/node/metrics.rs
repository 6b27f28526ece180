//! What a node counts and times, in the text form that Prometheus reads.

use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::cluster::Counts;
use super::request::NodeReport;
use crate::net::NetCounters;

/// A node's metrics. Each is cheap to bump from any thread.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Commands that clients sent.
    pub commands: Counter,
    /// Queries that clients sent.
    pub queries: Counter,
    /// Queries that went on with the full budget after the short one.
    pub queries_long: Counter,
    /// Watches through this node.
    pub watches: Gauge,
    /// Bytes of events that wait for them, as of the last scrape.
    pub watch_queue_bytes: Gauge,
    /// Machines that the catalog has.
    pub machines: Gauge,
    /// Threads that apply batches, those that stand in for slow ones included.
    pub apply_threads: Gauge,
    /// Flushes of the state.
    pub checkpoints: Counter,
    /// What happened to requests whose leader is not here.
    pub(super) routed: Counts,
    /// How long the stages of a request take.
    pub(super) stages: Stages,
    operations_applied: Counter,
    batch_operations: Histogram,
    batch_seconds: Histogram,
    standing: Standing,
    links: Links,
}

/// How long the stages of a request take, in seconds.
#[derive(Clone, Debug)]
pub struct Stages {
    /// A command, on the node that the client asked, from its arrival to its outcome.
    pub command: Histogram,
    /// Of that, while another node had it.
    pub forward: Histogram,
    /// From a batch's place in the leader's log until a majority has it on disk.
    pub commit: Histogram,
    /// From there until a thread takes it up.
    pub apply_wait: Histogram,
    /// From which index on a linearizable read may be served.
    pub read_point: Histogram,
    log_write: Histogram,
    log_bytes: Counter,
}

impl Default for Stages {
    fn default() -> Stages {
        Stages {
            command: times(),
            forward: times(),
            commit: times(),
            apply_wait: times(),
            read_point: times(),
            log_write: times(),
            log_bytes: Counter::default(),
        }
    }
}

impl Stages {
    /// The log was written and synced.
    pub fn log_written(&self, bytes: usize, took_ns: u64) {
        self.log_bytes.inc_by(bytes as u64);
        self.log_write.observe(seconds(took_ns));
    }

    fn register(&self, registry: &mut Registry) {
        let Stages { command, forward, commit, apply_wait, read_point, log_write, log_bytes } = self.clone();
        let mut stage = |name: &str, help: &str, times: Histogram| {
            registry.register_with_unit(name, help, Unit::Seconds, times);
        };
        stage("command", "A command, from its arrival at the node that was asked to its outcome", command);
        stage("forward", "Of a command: the time that another node had it", forward);
        stage("log_write", "One write to the log, its sync included", log_write);
        stage("commit", "From a batch's place in the log until a majority has it on disk", commit);
        stage("apply_wait", "From there until a thread takes it up", apply_wait);
        stage("read_point", "Finding from which index on a linearizable read may be served", read_point);
        registry.register("log_bytes", "Bytes written to the log", log_bytes);
    }
}

/// Where the node stands, as of the last scrape.
#[derive(Default)]
struct Standing {
    groups: Gauge,
    leading: Gauge,
    asleep: Gauge,
    halted: Gauge,
    unapplied: Gauge,
    disk_bytes: Family<Part, Gauge>,
    disk_free_bytes: Gauge,
}

/// What is on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Part {
    part: &'static str,
}

impl Standing {
    fn register(&self, registry: &mut Registry) {
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("groups", "Raft groups with a replica here", &self.groups);
        gauge("groups_leading", "Raft groups that this node leads", &self.leading);
        gauge("groups_asleep", "Raft groups that have nothing to do", &self.asleep);
        gauge("machines_halted", "Machines whose replica here has stopped", &self.halted);
        gauge("entries_unapplied", "The most entries that a replica has yet to apply", &self.unapplied);
        gauge("disk_free_bytes", "What the disk still takes", &self.disk_free_bytes);
        registry.register("disk_bytes", "What the data directory takes", self.disk_bytes.clone());
    }

    fn set(&self, report: &NodeReport) {
        self.groups.set(report.groups as i64);
        self.leading.set(report.leading as i64);
        self.asleep.set(report.asleep as i64);
        self.halted.set(report.halted as i64);
        self.unapplied.set(report.unapplied as i64);
        let disk = report.disk.unwrap_or_default();
        self.disk_free_bytes.set(disk.free_bytes.unwrap_or_default() as i64);
        let parts = [
            ("log", disk.log_bytes),
            ("state", disk.state_bytes),
            ("snapshots", disk.snapshots_bytes),
            ("modules", disk.modules_bytes),
        ];
        for (part, bytes) in parts {
            self.disk_bytes.get_or_create(&Part { part }).set(bytes as i64);
        }
    }
}

/// The links to other nodes, as of the last scrape.
#[derive(Default)]
struct Links {
    connected: Family<Peer, Gauge>,
    queued_bytes: Family<Peer, Gauge>,
    /// Entries that a replica on the other node lacks, of the groups led here.
    behind: Family<Peer, Gauge>,
    sent_bytes: Family<Peer, Counter>,
    received_bytes: Family<Peer, Counter>,
    messages_dropped: Family<Peer, Counter>,
    snapshots_sent_bytes: Counter,
    snapshots_received_bytes: Counter,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Peer {
    peer: u64,
}

impl Links {
    fn register(&self, registry: &mut Registry) {
        let mut gauges = |name: &str, help: &str, family: &Family<Peer, Gauge>| {
            registry.register(name, help, family.clone());
        };
        gauges(
            "peer_connected",
            "Whether the connection to a node stands and it is heard of",
            &self.connected,
        );
        gauges("peer_queued_bytes", "Bytes that wait to be sent to a node", &self.queued_bytes);
        gauges("peer_entries_behind", "The most entries that a replica lacks on a node", &self.behind);
        let mut counters = |name: &str, help: &str, family: &Family<Peer, Counter>| {
            registry.register(name, help, family.clone());
        };
        counters("peer_sent_bytes", "Bytes sent to a node", &self.sent_bytes);
        counters("peer_received_bytes", "Bytes received from a node", &self.received_bytes);
        counters("peer_messages_dropped", "Messages to a node that were dropped", &self.messages_dropped);
        let (sent, received) = (self.snapshots_sent_bytes.clone(), self.snapshots_received_bytes.clone());
        registry.register("bulk_sent_bytes", "Bytes of snapshots and modules sent to nodes", sent);
        registry.register("bulk_received_bytes", "Bytes of snapshots and modules received", received);
    }

    fn set(&self, report: &NodeReport, counters: &NetCounters) {
        self.connected.clear();
        self.queued_bytes.clear();
        self.behind.clear();
        for behind in &report.behind {
            self.behind.get_or_create(&Peer { peer: behind.node }).set(behind.entries as i64);
        }
        for link in &counters.peers {
            let peer = Peer { peer: link.node.0 };
            self.connected.get_or_create(&peer).set(i64::from(link.connected && !link.silent));
            self.queued_bytes.get_or_create(&peer).set(link.queued_bytes as i64);
            set_counter(&self.sent_bytes.get_or_create(&peer), link.bytes_sent);
            set_counter(&self.received_bytes.get_or_create(&peer), link.bytes_received);
            set_counter(&self.messages_dropped.get_or_create(&peer), link.messages_dropped);
        }
        set_counter(&self.snapshots_sent_bytes, counters.bulk_sent_bytes);
        set_counter(&self.snapshots_received_bytes, counters.bulk_received_bytes);
    }
}

/// What is counted elsewhere.
fn set_counter(counter: &Counter, count: u64) {
    counter.inner().store(count, Ordering::Relaxed);
}

impl Default for Metrics {
    fn default() -> Metrics {
        let metrics = Metrics {
            registry: Mutex::new(Registry::with_prefix("statehouse")),
            commands: Counter::default(),
            queries: Counter::default(),
            queries_long: Counter::default(),
            watches: Gauge::default(),
            watch_queue_bytes: Gauge::default(),
            machines: Gauge::default(),
            apply_threads: Gauge::default(),
            checkpoints: Counter::default(),
            routed: Counts::default(),
            stages: Stages::default(),
            operations_applied: Counter::default(),
            batch_operations: Histogram::new(exponential_buckets(1.0, 2.0, 14)),
            batch_seconds: times(),
            standing: Standing::default(),
            links: Links::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&self) {
        let mut registry = self.registry.lock();
        registry.register("commands", "Commands received", self.commands.clone());
        registry.register("queries", "Queries received", self.queries.clone());
        registry.register("queries_long", "Queries that outran the short budget", self.queries_long.clone());
        registry.register("watches", "Watches through this node", self.watches.clone());
        let help = "Bytes of events that wait for watches to be read";
        registry.register("watch_queue_bytes", help, self.watch_queue_bytes.clone());
        registry.register("machines", "Machines that the catalog has", self.machines.clone());
        registry.register("apply_threads", "Threads that apply batches", self.apply_threads.clone());
        registry.register("checkpoints", "Flushes of the state", self.checkpoints.clone());
        let Counts { held, forwarded, repeated, expired, refused } = self.routed.clone();
        registry.register("requests_held", "Requests that had to wait for a leader", held);
        registry.register("requests_forwarded", "Requests passed on to another node", forwarded);
        registry.register(
            "requests_repeated",
            "Commands of sessions sent again because their fate was unknown",
            repeated,
        );
        registry.register("requests_expired", "Requests that found no leader in time", expired);
        registry.register(
            "requests_refused",
            "Requests refused because too many waited for a leader",
            refused,
        );
        registry.register("operations_applied", "Operations applied", self.operations_applied.clone());
        registry.register("batch_operations", "Operations of a batch", self.batch_operations.clone());
        let help = "Time to apply a batch, the state write and the new view included";
        registry.register_with_unit("batch_apply", help, Unit::Seconds, self.batch_seconds.clone());
        self.stages.register(&mut registry);
        self.standing.register(&mut registry);
        self.links.register(&mut registry);
    }

    /// A batch was applied.
    pub fn batch_applied(&self, operations: usize, took_ns: u64) {
        self.operations_applied.inc_by(operations as u64);
        self.batch_operations.observe(operations as f64);
        self.batch_seconds.observe(seconds(took_ns));
    }

    /// The text that a scrape gets, of a node that is as `report` and `links` say.
    pub fn text(&self, report: &NodeReport, links: &NetCounters) -> String {
        // One scrape at a time: each sets what the next one reads.
        let registry = self.registry.lock();
        self.standing.set(report);
        self.links.set(report, links);
        let mut text = String::new();
        text::encode(&mut text, &registry).expect("a String takes all that is written to it");
        text
    }
}

/// Times from 20 microseconds to half a second, each twice the one before.
fn times() -> Histogram {
    Histogram::new(exponential_buckets(20e-6, 2.0, 16))
}

/// As Prometheus wants it.
pub fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
