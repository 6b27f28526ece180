//! The catalog: which modules and machines there are. Group 0 orders it, and a machine written in Rust
//! applies it through the same heart as every uploaded one.
//!
//! [`CatalogGuest`] changes the rows; [`Catalog`] is what a node keeps of them in memory.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;

use crate::error::Fault;
use crate::id::{Digest, GroupId};
use crate::machine::frame::{CallError, Frame};
use crate::machine::guest::{Ending, Guest, Input, Instance, QueryView};
use crate::machine::outcome::{Context, Refusal};
use crate::machine::overlay::Write;
use crate::machine::view::{Direction, Span, Table, View};

/// Stands for the catalog's own code in its head: no component has this digest.
pub const CATALOG_MODULE: Digest = Digest([0; 32]);

/// Bytes of a machine's name, at most.
pub const NAME_BYTES_MAX: usize = 63;

/// The prefix of module rows; the digest follows.
const MODULE_ROWS: u8 = b'm';
/// The prefix of machine rows; the name follows.
const MACHINE_ROWS: u8 = b'n';
/// The row of the last group id given out.
const LAST_GROUP: &[u8] = b"g";

/// A module that every node can have.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ModuleRecord {
    /// The sha256 of the component.
    #[prost(bytes = "vec", tag = "1")]
    pub digest: Vec<u8>,
    /// Its size.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// Whether it keeps its state in its own memory.
    #[prost(bool, tag = "3")]
    pub resident: bool,
    /// For people: the name of the file it came from.
    #[prost(string, tag = "4")]
    pub label: String,
    /// The log's clock when it was registered.
    #[prost(uint64, tag = "5")]
    pub pushed_ms: u64,
}

/// A machine.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MachineRecord {
    /// Its name, unique among those that exist.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The group that orders its inputs, never used twice.
    #[prost(uint64, tag = "2")]
    pub group: u64,
    /// What it was created from.
    #[prost(bytes = "vec", tag = "3")]
    pub module: Vec<u8>,
    /// Its creator's configuration, kept until it is ready.
    #[prost(bytes = "bytes", tag = "4")]
    pub configuration: Bytes,
    /// The log's clock when it was created.
    #[prost(uint64, tag = "5")]
    pub created_ms: u64,
    /// Whether its first input was applied.
    #[prost(bool, tag = "6")]
    pub ready: bool,
    /// Fuel of each of its inputs. Decides outcomes, so it is fixed here at the creation: replicas and later
    /// starts go by the record, whatever their own settings say.
    #[prost(uint64, tag = "7")]
    pub input_fuel: u64,
    /// The fingerprint of the engine that its inputs run in. A node with another one does not apply them.
    #[prost(string, tag = "8")]
    pub engine: String,
}

impl ModuleRecord {
    /// Its digest. A failure is corruption.
    pub fn digest(&self) -> Result<Digest, Fault> {
        digest_of(&self.digest)
    }
}

impl MachineRecord {
    /// The group that orders its inputs.
    pub fn group(&self) -> GroupId {
        GroupId(self.group)
    }

    /// What it was created from. A failure is corruption.
    pub fn module(&self) -> Result<Digest, Fault> {
        digest_of(&self.module)
    }
}

fn digest_of(bytes: &[u8]) -> Result<Digest, Fault> {
    let damaged = |_| Fault::new("a catalog row is damaged: restore this node from its peers or a backup");
    bytes.try_into().map(Digest).map_err(damaged)
}

/// A command of the catalog.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Command {
    /// Which.
    #[prost(oneof = "Change", tags = "1, 2, 3, 4")]
    pub change: Option<Change>,
}

/// What a command changes.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Change {
    /// A module is on this node's disk. Does nothing if the digest is known.
    #[prost(message, tag = "1")]
    RegisterModule(ModuleRecord),
    /// A machine of this name, module, configuration, fuel and engine; the catalog fills in the rest and
    /// answers with the record.
    #[prost(message, tag = "2")]
    CreateMachine(MachineRecord),
    /// The machine of this group has applied its first input.
    #[prost(uint64, tag = "3")]
    MachineReady(u64),
    /// The machine of this group is gone. Answers nothing if it was gone already.
    #[prost(uint64, tag = "4")]
    RemoveMachine(u64),
}

impl Change {
    /// The bytes of the command that makes this change.
    pub fn command(self) -> Bytes {
        Command { change: Some(self) }.encode_to_vec().into()
    }
}

/// Why the catalog refuses. The numbers are part of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RefusalCode {
    /// The command cannot be read.
    Malformed = 1,
    /// The name breaks the rules.
    BadName = 2,
    /// There is a machine of this name.
    NameTaken = 3,
    /// There is no such module.
    UnknownModule = 4,
}

/// Whether `name` can name a machine; otherwise why not.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    let begins_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if name.len() <= NAME_BYTES_MAX && begins_well && name.chars().all(allowed) {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_BYTES_MAX + 1).collect();
    Err(format!(
        "{shown:?} cannot name a machine: 1 to {NAME_BYTES_MAX} of a-z, 0-9, '-', '_' and '.', the first a \
         letter or digit"
    ))
}

/// The catalog's own machine.
pub struct CatalogGuest;

impl Guest for CatalogGuest {
    fn instance(&mut self) -> Result<Box<dyn Instance>, Fault> {
        Ok(Box::new(CatalogInstance))
    }
}

struct CatalogInstance;

/// Why a change was not made.
enum Failure {
    Refused(RefusalCode, String),
    Call(CallError),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Failure {
        Failure::Call(error)
    }
}

impl Instance for CatalogInstance {
    fn apply(&mut self, mut frame: Frame, context: Context, input: &Input) -> (Frame, Ending) {
        let result = match input {
            Input::Command(bytes) => change(&mut frame, context, bytes),
            Input::Created(_) | Input::LeaseEnded { .. } | Input::Upgraded { .. } => Ok(Bytes::new()),
        };
        let ending = match result {
            Ok(answer) => Ending::Answer(answer),
            Err(Failure::Refused(code, message)) => Ending::Refused(Refusal { code: code as u32, message }),
            Err(Failure::Call(CallError::Limit(what))) => Ending::Trapped(what),
            Err(Failure::Call(CallError::Fault(fault))) => Ending::Fault(fault),
        };
        (frame, ending)
    }

    fn scale_budget(&mut self, _factor: u32) {
        // Native code has no fuel.
    }

    fn query(&mut self, frame: Frame, _view: QueryView, _request: &[u8]) -> (Frame, Ending) {
        (frame, Ending::Trapped("the catalog is read from the node's copy".into()))
    }

    fn save(&mut self, frame: Frame) -> (Frame, Ending) {
        (frame, Ending::Trapped("the catalog keeps its state in the store".into()))
    }

    fn restore(&mut self, frame: Frame) -> (Frame, Ending) {
        (frame, Ending::Trapped("the catalog keeps its state in the store".into()))
    }
}

fn change(frame: &mut Frame, context: Context, bytes: &Bytes) -> Result<Bytes, Failure> {
    let command = Command::decode(bytes.clone()).ok().and_then(|command| command.change);
    match command {
        Some(Change::RegisterModule(record)) => register_module(frame, context, record),
        Some(Change::CreateMachine(record)) => create_machine(frame, context, record),
        Some(Change::MachineReady(group)) => machine_ready(frame, group),
        Some(Change::RemoveMachine(group)) => remove_machine(frame, group),
        None => Err(Failure::Refused(RefusalCode::Malformed, "not a command of the catalog".into())),
    }
}

fn register_module(frame: &mut Frame, context: Context, mut record: ModuleRecord) -> Result<Bytes, Failure> {
    if record.digest.len() != 32 {
        let what = format!("a digest of {} bytes; 32 are needed", record.digest.len());
        return Err(Failure::Refused(RefusalCode::Malformed, what));
    }
    let key = row(MODULE_ROWS, &record.digest);
    if frame.get(&key)?.is_none() {
        record.pushed_ms = context.time;
        frame.set(key, record.encode_to_vec())?;
    }
    Ok(Bytes::new())
}

fn create_machine(frame: &mut Frame, context: Context, mut record: MachineRecord) -> Result<Bytes, Failure> {
    check_name(&record.name).map_err(|what| Failure::Refused(RefusalCode::BadName, what))?;
    let key = row(MACHINE_ROWS, record.name.as_bytes());
    if frame.get(&key)?.is_some() {
        let what =
            format!("there is a machine {:?} already; choose another name or delete it first", record.name);
        return Err(Failure::Refused(RefusalCode::NameTaken, what));
    }
    if frame.get(&row(MODULE_ROWS, &record.module))?.is_none() {
        let what = format!("no module {}; push it first", hex::encode(&record.module));
        return Err(Failure::Refused(RefusalCode::UnknownModule, what));
    }
    let last = frame.get(LAST_GROUP)?;
    record.group = 1 + last.and_then(|b| b[..].try_into().ok()).map_or(0, u64::from_be_bytes);
    record.created_ms = context.time;
    record.ready = false;
    let bytes = record.encode_to_vec();
    frame.set(LAST_GROUP.to_vec(), record.group.to_be_bytes().to_vec())?;
    frame.set(key, bytes.clone())?;
    Ok(bytes.into())
}

fn machine_ready(frame: &mut Frame, group: u64) -> Result<Bytes, Failure> {
    if let Some(mut record) = find_group(frame, group)? {
        record.ready = true;
        record.configuration = Bytes::new();
        frame.set(row(MACHINE_ROWS, record.name.as_bytes()), record.encode_to_vec())?;
    }
    Ok(Bytes::new())
}

fn remove_machine(frame: &mut Frame, group: u64) -> Result<Bytes, Failure> {
    if let Some(record) = find_group(frame, group)? {
        frame.delete(row(MACHINE_ROWS, record.name.as_bytes()))?;
    }
    Ok(Bytes::new())
}

/// The machine of a group. Machines are few and change rarely: a scan serves.
fn find_group(frame: &Frame, group: u64) -> Result<Option<MachineRecord>, Failure> {
    let mut start = vec![MACHINE_ROWS];
    loop {
        let pairs = frame.scan(&start, Some(&[MACHINE_ROWS + 1]), 0, Direction::Forward)?;
        let Some((last, _)) = pairs.last() else { return Ok(None) };
        start = [last.as_slice(), &[0]].concat();
        for (_, bytes) in &pairs {
            let record = MachineRecord::decode(bytes.as_slice());
            let record =
                record.map_err(|_| CallError::Fault(Fault::new("a machine's catalog row is damaged")))?;
            if record.group == group {
                return Ok(Some(record));
            }
        }
    }
}

fn row(prefix: u8, name: &[u8]) -> Vec<u8> {
    [&[prefix], name].concat()
}

/// What a node keeps of the catalog in memory: always as of an applied batch.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// By digest.
    pub modules: BTreeMap<Digest, ModuleRecord>,
    /// By name.
    pub machines: BTreeMap<String, MachineRecord>,
}

impl Catalog {
    /// Reads all of it.
    pub fn load(view: &dyn View) -> Result<Catalog, Fault> {
        let mut catalog = Catalog::default();
        let mut result = Ok(());
        let span = Span { start: &[], end: None };
        view.scan(Table::Store, span, Direction::Forward, &mut |key, value| {
            result = catalog.row(key, Some(value));
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        result.map(|()| catalog)
    }

    /// Takes over what a batch wrote.
    pub fn absorb(&mut self, writes: &[Write]) -> Result<(), Fault> {
        let mut own = writes.iter().filter(|write| write.table == Table::Store);
        own.try_for_each(|write| self.row(&write.key, write.value.as_deref()))
    }

    fn row(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), Fault> {
        let damaged = || Fault::new(format!("the catalog row {} is damaged", hex::encode(key)));
        let Some((prefix, name)) = key.split_first() else { return Err(damaged()) };
        match (*prefix, value) {
            (MODULE_ROWS, Some(value)) => {
                let record = ModuleRecord::decode(value).map_err(|_| damaged())?;
                self.modules.insert(record.digest()?, record);
            }
            (MODULE_ROWS, None) => drop(self.modules.remove(&digest_of(name)?)),
            (MACHINE_ROWS, Some(value)) => {
                let record = MachineRecord::decode(value).map_err(|_| damaged())?;
                self.machines.insert(record.name.clone(), record);
            }
            (MACHINE_ROWS, None) => {
                let name = std::str::from_utf8(name).map_err(|_| damaged())?;
                self.machines.remove(name);
            }
            _ => {}
        }
        Ok(())
    }

    /// The machine of a group.
    pub fn machine_of(&self, group: GroupId) -> Option<&MachineRecord> {
        self.machines.values().find(|record| record.group() == group)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::machine::apply;
    use crate::machine::batch::{Batch, Head, Operation};
    use crate::machine::outcome::Outcome;
    use crate::machine::view::MemoryView;

    /// The catalog's machine over a view in memory, with the node's copy beside it.
    struct Bench {
        head: Head,
        rows: MemoryView,
        copy: Catalog,
    }

    impl Bench {
        fn new() -> Bench {
            let mut bench =
                Bench { head: Head::default(), rows: MemoryView::default(), copy: Catalog::default() };
            bench.operation(Operation::create(CATALOG_MODULE, Bytes::new()));
            bench
        }

        fn operation(&mut self, operation: Operation) -> Outcome {
            let batch = Batch { time_ms: 5, operations: vec![operation] };
            let view = Arc::new(self.rows.clone());
            let index = self.head.index.next();
            let applied = apply::stored(&self.head, index, &batch, view, &mut CatalogGuest).unwrap();
            self.head = applied.head;
            self.copy.absorb(&applied.writes).unwrap();
            for write in applied.writes {
                self.rows.put(write.table, write.key, write.value);
            }
            let loaded = Catalog::load(&self.rows).unwrap();
            assert_eq!((&loaded.modules, &loaded.machines), (&self.copy.modules, &self.copy.machines));
            applied.outcomes[0].clone()
        }

        fn change(&mut self, change: Change) -> Outcome {
            self.operation(Operation::command(change.command()))
        }

        fn create(&mut self, name: &str) -> Outcome {
            let module = Digest::of(b"m").0.to_vec();
            self.change(Change::CreateMachine(MachineRecord {
                name: name.into(),
                module,
                ..Default::default()
            }))
        }

        fn register(&mut self) {
            let digest = Digest::of(b"m").0.to_vec();
            self.change(Change::RegisterModule(ModuleRecord { digest, ..Default::default() }));
        }
    }

    fn code(outcome: Outcome) -> u32 {
        match outcome {
            Outcome::Refused(refusal) => refusal.code,
            other => panic!("a refusal was expected, not {other:?}"),
        }
    }

    #[test]
    fn groups_are_never_used_twice() {
        let mut bench = Bench::new();
        bench.register();
        bench.create("a");
        assert_eq!(bench.copy.machines["a"].group, 1);
        bench.change(Change::RemoveMachine(1));
        assert!(bench.copy.machines.is_empty());
        bench.create("a");
        assert_eq!(bench.copy.machines["a"].group, 2);
        assert_eq!(bench.copy.machine_of(GroupId(2)).unwrap().name, "a");
    }

    #[test]
    fn a_machine_becomes_ready() {
        let mut bench = Bench::new();
        bench.register();
        bench.create("a");
        assert!(!bench.copy.machines["a"].ready);
        bench.change(Change::MachineReady(1));
        assert!(bench.copy.machines["a"].ready);
    }

    #[test]
    fn names_and_modules_are_checked() {
        let mut bench = Bench::new();
        assert_eq!(code(bench.create("a")), RefusalCode::UnknownModule as u32);
        bench.register();
        assert_eq!(code(bench.create("Bad name")), RefusalCode::BadName as u32);
        assert_eq!(code(bench.create(&"x".repeat(64))), RefusalCode::BadName as u32);
        bench.create("a");
        assert_eq!(code(bench.create("a")), RefusalCode::NameTaken as u32);
        assert_eq!(code(bench.operation(Operation::command(Bytes::from_static(b"\xff")))), 1);
    }
}
