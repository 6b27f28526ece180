//! What a node is told when it is opened.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::request::Introducer;
use crate::open_files;
use crate::storage::state::StateSizes;
use crate::wasm::compile::CompileLimits;
use crate::wasm::limits::{QUERY_FUEL, QUERY_TIME};
use crate::wasm::{Budget, Compiler, EngineSettings, GuestSettings};

/// How a module is compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompileIn {
    /// A process of its own, with limits on memory and time: `program` is the `statehouse` binary, or a
    /// program that hands the subcommand `compile-module` to `statehouse::wasm::compile::child`.
    Process(PathBuf),
    /// This process, without limits: for programs that embed a node and run only modules they trust.
    ThisProcess,
}

/// Limits on what clients send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a module.
    pub module_bytes_max: u64,
    /// Bytes of a command.
    pub command_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { module_bytes_max: 64 << 20, command_bytes_max: 2 << 20 }
    }
}

/// How a node reaches the others of its cluster, and is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Where it listens for other nodes: `host:port`; port 0 leaves the choice to the system.
    pub listen: String,
    /// Where the others find it, if that is another address. Needed where it listens on all of a computer's
    /// addresses.
    pub advertise: Option<String>,
}

/// A node of the cluster to join.
#[derive(Clone)]
pub struct Join(pub Arc<dyn Introducer>);

impl fmt::Debug for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Join")
    }
}

/// What a node is told when it is opened.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where everything is kept. Made if it is not there.
    pub data_dir: PathBuf,
    /// The node's name; a data directory belongs to one name for ever.
    pub name: String,
    /// Begin a new cluster if the data directory is empty.
    pub bootstrap: bool,
    /// Join a cluster if the data directory is empty.
    pub join: Option<Join>,
    /// How it reaches other nodes; none: it is alone for ever.
    pub peer: Option<PeerConfig>,
    /// Where clients reach it, for those who ask another node; empty if nowhere.
    pub client_address: String,
    /// Where clients of etcd reach it; empty if nowhere.
    pub etcd_address: String,
    /// How modules are compiled.
    pub compile_in: CompileIn,
    /// Limits on what clients send.
    pub limits: Limits,
    /// Threads that apply batches of machines that are not slow: others stand in for those that a slow one
    /// holds.
    pub apply_workers: usize,
    /// Flush the state after this many bytes of applied commands: bounds what a restart replays.
    pub flush_bytes: u64,
    /// Flush the state after this long, if anything was written.
    pub flush_interval_ms: u64,
    /// Have a resident machine saved after this many entries.
    pub resident_snapshot_entries: u64,
    /// How long a request waits for a leader.
    pub leader_wait_ms: u64,
    /// Bytes of the requests that wait for one, together.
    pub leader_wait_bytes_max: usize,
    /// The time between two ticks of Raft. A leader speaks every second one; a follower stands for election
    /// after ten to twenty without a word. The same on all nodes.
    pub tick_ms: u64,
    /// Log entries that are kept for replicas that lag; those further behind get a snapshot.
    pub log_keep_entries: u64,
    /// Of one machine, and no more than about this many bytes of them.
    pub log_keep_bytes: u64,
    /// How long a read waits for an index to be applied.
    pub read_wait_ms: u64,
    /// Watches through this node at the same time.
    pub watches_max: usize,
    /// Of those, watches of machines without a replica here: each holds a question to another node.
    pub remote_watches_max: usize,
    /// Bytes of events that wait for them, together: three quarters in queues, a quarter read from disk. A
    /// watch that finds no room reads from disk, a revision at a time.
    pub watch_queue_bytes_max: usize,
    /// After so long without a word, a watch that asked for it is told up to where it has everything.
    pub watch_progress_ms: u64,
    /// Fuel of one input of the machines that are created here: about one unit for each instruction of the
    /// guest. Recorded with the machine; those that exist keep theirs.
    pub input_fuel: u64,
    /// Fuel of one query.
    pub query_fuel: u64,
    /// Time of one query.
    pub query_time_ms: u64,
    /// Memory of one instance. Part of the engine's fingerprint: machines that were created with another one
    /// are not served.
    pub memory_bytes_max: usize,
    /// Instances alive at the same time, of all machines together; a quarter may be kept warm for queries.
    /// Costs address space, 4 GiB each: where many nodes are in one process, lower it.
    pub instances_max: u32,
    /// Memory of the process that compiles a module.
    pub compile_memory_bytes_max: u64,
    /// Processor time of the process that compiles a module.
    pub compile_seconds_max: u64,
}

/// Fuel of a query's first try, which runs on the thread that serves the network: about a millisecond.
const SHORT_QUERY_FUEL: u64 = 1_000_000;
/// Time of it, for calls of the host that cost more than their fuel says.
const SHORT_QUERY_TIME: Duration = Duration::from_millis(10);

impl NodeConfig {
    /// A node called `name` in `data_dir`, with the defaults for all else.
    pub fn new(data_dir: impl Into<PathBuf>, name: impl Into<String>) -> NodeConfig {
        let compile = CompileLimits::default();
        NodeConfig {
            data_dir: data_dir.into(),
            name: name.into(),
            bootstrap: false,
            join: None,
            peer: None,
            client_address: String::new(),
            etcd_address: String::new(),
            compile_in: CompileIn::ThisProcess,
            limits: Limits::default(),
            apply_workers: 4,
            flush_bytes: 32 << 20,
            flush_interval_ms: 60_000,
            resident_snapshot_entries: 10_000,
            leader_wait_ms: 10_000,
            leader_wait_bytes_max: 64 << 20,
            tick_ms: 100,
            log_keep_entries: 10_000,
            log_keep_bytes: 64 << 20,
            read_wait_ms: 10_000,
            watches_max: 100_000,
            remote_watches_max: 1_000,
            watch_queue_bytes_max: 64 << 20,
            watch_progress_ms: 10_000,
            input_fuel: GuestSettings::default().input_fuel,
            query_fuel: QUERY_FUEL,
            query_time_ms: QUERY_TIME.as_millis() as u64,
            memory_bytes_max: EngineSettings::default().memory_bytes_max,
            instances_max: EngineSettings::default().instances_max,
            compile_memory_bytes_max: compile.memory_bytes_max,
            compile_seconds_max: compile.seconds_max,
        }
    }

    pub(super) fn state_sizes(&self) -> StateSizes {
        StateSizes { open_files_max: open_files::for_state(), ..StateSizes::default() }
    }

    pub(super) fn engine_settings(&self) -> EngineSettings {
        EngineSettings {
            memory_bytes_max: self.memory_bytes_max,
            instances_max: self.instances_max,
            query_instances_max: self.instances_max / 4,
        }
    }

    /// For a machine whose record says `input_fuel`. The rest is this node's own: it changes no outcome.
    pub(super) fn guest_settings(&self, input_fuel: u64) -> GuestSettings {
        GuestSettings { input_fuel, query: self.query_budget(), ..GuestSettings::default() }
    }

    pub(super) fn compiler(&self) -> Compiler {
        match &self.compile_in {
            CompileIn::ThisProcess => Compiler::InProcess,
            CompileIn::Process(program) => Compiler::Process {
                program: program.clone(),
                limits: CompileLimits {
                    memory_bytes_max: self.compile_memory_bytes_max,
                    seconds_max: self.compile_seconds_max,
                },
            },
        }
    }

    pub(super) fn short_query_budget(&self) -> Budget {
        Budget::new(self.query_fuel.min(SHORT_QUERY_FUEL), SHORT_QUERY_TIME)
    }

    pub(super) fn query_budget(&self) -> Budget {
        Budget::new(self.query_fuel, Duration::from_millis(self.query_time_ms))
    }
}
