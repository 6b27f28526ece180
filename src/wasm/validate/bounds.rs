//! Counts, sizes and nesting of a module: what stops a small file from costing minutes of compilation.
//!
//! Every figure leaves room for the largest guests known (a JavaScript engine, Python with its libraries),
//! and compiling is bounded in time and memory besides.

use std::ops::Range;

use wasmparser::{BinaryReaderError, Parser, Payload, TypeRef};

use super::{Limits, Rejected, features};
use crate::wasm::limits::{CORE_INSTANCES_MAX, MEMORIES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX};

/// How much of each thing a module may have, all nested modules and components together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Levels of components within components.
    pub nesting_max: u64,
    /// Components.
    pub components_max: u64,
    /// Core modules.
    pub modules_max: u64,
    /// Functions with a body.
    pub functions_max: u64,
    /// Bytes of one function's body. Compiling takes more than linear time in it.
    pub function_bytes_max: u64,
    /// Core types, imports, exports, globals: each.
    pub items_max: u64,
    /// Element and data segments: each.
    pub segments_max: u64,
    /// Types, functions, instances, aliases, imports and exports of components: each.
    pub component_items_max: u64,
    /// Instances of core modules.
    pub core_instances_max: u64,
    /// Levels of types within types.
    pub type_nesting_max: u64,
    /// Bytes of the metadata that turns a core module into a component.
    pub metadata_bytes_max: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            nesting_max: 8,
            components_max: 100,
            modules_max: 100,
            functions_max: 100_000,
            function_bytes_max: 1 << 20,
            items_max: 100_000,
            // Go's linker makes a data segment of each run of bytes that are not zero: 28,000 in a small
            // program.
            segments_max: 100_000,
            component_items_max: 20_000,
            core_instances_max: u64::from(CORE_INSTANCES_MAX),
            type_nesting_max: 1_000,
            metadata_bytes_max: 1 << 20,
        }
    }
}

/// A thing that is counted: its name, and what to do if there are too many.
#[derive(Clone, Copy)]
struct Counted {
    what: &'static str,
    advice: &'static str,
}

const SMALLER: &str = "leave out dependencies that it does not need, and link with --gc-sections or LTO";
const FEWER_PARTS: &str = "compose it of fewer components and core modules, or link these into one";

const fn counted(what: &'static str, advice: &'static str) -> Counted {
    Counted { what, advice }
}

const NESTED: Counted = counted("levels of nested components", FEWER_PARTS);
const COMPONENTS: Counted = counted("components", FEWER_PARTS);
const MODULES: Counted = counted("core modules", FEWER_PARTS);
const CORE_INSTANCES: Counted = counted("core instances", FEWER_PARTS);
const ITEMS: Counted = counted("items of components", FEWER_PARTS);
const FUNCTIONS: Counted = counted("functions", SMALLER);
const TYPES: Counted = counted("core types", SMALLER);
const IMPORTS: Counted = counted("core imports", SMALLER);
const EXPORTS: Counted = counted("core exports", SMALLER);
const GLOBALS: Counted = counted("globals", SMALLER);
const ELEMENTS: Counted = counted("element segments", SMALLER);
const SEGMENTS: Counted = counted(
    "data segments",
    "merge them (wasm-opt --memory-packing keeps few, and linkers have an option for it), or move data into \
     the machine's state",
);
const TABLES: Counted = counted("tables", FEWER_PARTS);
const MEMORIES: Counted = counted("memories", FEWER_PARTS);
const FUNCTION_BYTES: Counted = counted(
    "bytes in one function",
    "split it, have less inlined (clang: -Os; rustc: opt-level = \"s\"), or make data of a table that it \
     fills",
);
const METADATA_BYTES: Counted =
    counted("bytes of component metadata", "build it for one world of statehouse:machine and nothing else");
const MEMORY_BYTES: Counted = counted(
    "bytes of memory from the start",
    "make its static data and stack smaller (linkers: --initial-memory, -z stack-size), or raise \
     memory_bytes_max on all nodes",
);
const TABLE_ELEMENTS: Counted =
    counted("elements in one table", "let it have as many as it has functions that are called by pointer");
const TYPE_NESTING: Counted = counted(
    "levels of nested types, by the most that its bytes allow,",
    "make the types of its interfaces flatter and fewer",
);

/// What was counted so far.
#[derive(Default)]
struct Counts {
    nesting: u64,
    components: u64,
    modules: u64,
    functions: u64,
    types: u64,
    imports: u64,
    exports: u64,
    globals: u64,
    elements: u64,
    data: u64,
    tables: u64,
    memories: u64,
    core_instances: u64,
    component_items: u64,
}

/// Walks over the sections without looking into functions.
pub fn check(bytes: &[u8], limits: &Limits) -> Result<(), Rejected> {
    let mut counts = Counts::default();
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(unreadable)?;
        check_payload(&payload, bytes, &mut counts, limits)?;
    }
    Ok(())
}

fn check_payload(
    payload: &Payload,
    bytes: &[u8],
    counts: &mut Counts,
    limits: &Limits,
) -> Result<(), Rejected> {
    let bounds = &limits.bounds;
    match payload {
        Payload::ComponentSection { .. } => {
            counts.nesting += 1;
            bound(NESTED, counts.nesting, bounds.nesting_max)?;
            add(COMPONENTS, &mut counts.components, 1, bounds.components_max)
        }
        Payload::ModuleSection { .. } => {
            // Its end lowers the nesting again, as a component's does.
            counts.nesting += 1;
            add(MODULES, &mut counts.modules, 1, bounds.modules_max)
        }
        Payload::End(_) => {
            counts.nesting = counts.nesting.saturating_sub(1);
            Ok(())
        }
        Payload::CustomSection(section) if is_metadata(section.name()) => {
            let length = section.data().len() as u64;
            bound(METADATA_BYTES, length, bounds.metadata_bytes_max)?;
            check_type_nesting(section.data(), bounds)
        }
        Payload::CoreTypeSection(section) => {
            check_type_nesting(slice(bytes, section.range()), bounds)?;
            add(TYPES, &mut counts.types, section.count(), bounds.items_max)
        }
        Payload::ComponentTypeSection(section) => {
            check_type_nesting(slice(bytes, section.range()), bounds)?;
            add(ITEMS, &mut counts.component_items, section.count(), bounds.component_items_max)
        }
        Payload::InstanceSection(section) => {
            // Bundles of exports are instances too, but cost nothing; the count of real ones is checked
            // below.
            let mut real = 0;
            for instance in section.clone() {
                if let wasmparser::Instance::Instantiate { .. } = instance.map_err(unreadable)? {
                    real += 1;
                }
            }
            add(ITEMS, &mut counts.component_items, section.count(), bounds.component_items_max)?;
            add(CORE_INSTANCES, &mut counts.core_instances, real, bounds.core_instances_max)
        }
        _ => check_component_items(payload, counts, bounds)
            .unwrap_or_else(|| check_core(payload, counts, limits)),
    }
}

/// `None`: not a section of a component.
fn check_component_items(
    payload: &Payload,
    counts: &mut Counts,
    bounds: &Bounds,
) -> Option<Result<(), Rejected>> {
    let count = match payload {
        Payload::ComponentInstanceSection(section) => section.count(),
        Payload::ComponentAliasSection(section) => section.count(),
        Payload::ComponentCanonicalSection(section) => section.count(),
        Payload::ComponentImportSection(section) => section.count(),
        Payload::ComponentExportSection(section) => section.count(),
        _ => return None,
    };
    Some(add(ITEMS, &mut counts.component_items, count, bounds.component_items_max))
}

/// The sections of a core module.
fn check_core(payload: &Payload, counts: &mut Counts, limits: &Limits) -> Result<(), Rejected> {
    let bounds = &limits.bounds;
    match payload {
        Payload::TypeSection(section) => add(TYPES, &mut counts.types, section.count(), bounds.items_max),
        Payload::ImportSection(section) => {
            add(IMPORTS, &mut counts.imports, section.count(), bounds.items_max)?;
            for import in section.clone().into_imports() {
                match import.map_err(unreadable)?.ty {
                    TypeRef::Memory(memory) => check_memory(&memory, limits)?,
                    TypeRef::Table(table) => check_table(&table)?,
                    _ => {}
                }
            }
            Ok(())
        }
        Payload::ExportSection(section) => {
            add(EXPORTS, &mut counts.exports, section.count(), bounds.items_max)
        }
        Payload::GlobalSection(section) => {
            add(GLOBALS, &mut counts.globals, section.count(), bounds.items_max)
        }
        Payload::ElementSection(section) => {
            add(ELEMENTS, &mut counts.elements, section.count(), bounds.segments_max)
        }
        Payload::DataSection(section) => {
            add(SEGMENTS, &mut counts.data, section.count(), bounds.segments_max)
        }
        Payload::TableSection(section) => {
            add(TABLES, &mut counts.tables, section.count(), u64::from(TABLES_MAX))?;
            section.clone().into_iter().try_for_each(|table| check_table(&table.map_err(unreadable)?.ty))
        }
        Payload::MemorySection(section) => {
            add(MEMORIES, &mut counts.memories, section.count(), u64::from(MEMORIES_MAX))?;
            section
                .clone()
                .into_iter()
                .try_for_each(|memory| check_memory(&memory.map_err(unreadable)?, limits))
        }
        Payload::FunctionSection(section) => {
            add(FUNCTIONS, &mut counts.functions, section.count(), bounds.functions_max)
        }
        Payload::CodeSectionEntry(body) => {
            let length = body.range().len() as u64;
            bound(FUNCTION_BYTES, length, bounds.function_bytes_max)
        }
        _ => Ok(()),
    }
}

fn check_memory(memory: &wasmparser::MemoryType, limits: &Limits) -> Result<(), Rejected> {
    if memory.shared {
        let found = "a memory is shared between them".to_owned();
        return Err(features::refusal("threads", found));
    }
    let bytes = memory.initial.saturating_mul(64 << 10);
    bound(MEMORY_BYTES, bytes, limits.memory_bytes_max as u64)
}

fn check_table(table: &wasmparser::TableType) -> Result<(), Rejected> {
    bound(TABLE_ELEMENTS, table.initial, TABLE_ELEMENTS_MAX as u64)
}

/// The parser reads types within types by recursion. Each level begins with one of four bytes, so their
/// number is a bound on the depth; sections of real components have some hundreds.
fn check_type_nesting(section: &[u8], bounds: &Bounds) -> Result<(), Rejected> {
    let openers = section.iter().filter(|byte| matches!(byte, 0x41 | 0x42 | 0x50)).count();
    bound(TYPE_NESTING, openers as u64, bounds.type_nesting_max)
}

/// Whether a core module says which world it was built for.
pub fn has_component_metadata(module: &[u8]) -> Result<bool, Rejected> {
    for payload in Parser::new(0).parse_all(module) {
        if let Payload::CustomSection(section) = payload.map_err(unreadable)?
            && is_metadata(section.name())
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_metadata(name: &str) -> bool {
    name.starts_with("component-type")
}

fn unreadable(error: BinaryReaderError) -> Rejected {
    Rejected::Unreadable(error.to_string())
}

fn slice(bytes: &[u8], range: Range<usize>) -> &[u8] {
    bytes.get(range).unwrap_or_default()
}

fn add(counted: Counted, count: &mut u64, more: u32, max: u64) -> Result<(), Rejected> {
    *count += u64::from(more);
    bound(counted, *count, max)
}

fn bound(counted: Counted, value: u64, max: u64) -> Result<(), Rejected> {
    let Counted { what, advice } = counted;
    if value <= max { Ok(()) } else { Err(Rejected::OverBound { what, value, max, advice }) }
}
