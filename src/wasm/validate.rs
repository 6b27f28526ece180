//! What a module must be before anything compiles: hostile bytes end here.
//!
//! In this order: its size, its encoding, bounds on counts and nesting, validity, its imports and exports by
//! name, and their types against exactly one world of the contract. Each fault is named with its value and
//! limit.

use std::collections::BTreeSet;

use wasmparser::{Encoding, Parser, Payload, Validator, WasmFeatures};
use wit_component::ComponentEncoder;
use wit_parser::Resolve;

use super::wasi;

/// The contract, as it is published in `wit/`.
const CONTRACT: &str = include_str!("../../wit/machine.wit");

/// The contract's interfaces, without package and version.
const BEHAVIOR: &str = "statehouse:machine/behavior@0.1.0";
const SNAPSHOT: &str = "statehouse:machine/snapshot@0.1.0";
const STORE: &str = "statehouse:machine/store@0.1.0";
const STREAM: &str = "statehouse:machine/snapshot-stream@0.1.0";
const HOST: [&str; 4] = [
    "statehouse:machine/types@0.1.0",
    "statehouse:machine/events@0.1.0",
    "statehouse:machine/leases@0.1.0",
    "statehouse:machine/log@0.1.0",
];

/// Which of the contract's worlds a module implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// All state in the host's ordered map.
    Stored,
    /// State in the component's own memory.
    Resident,
}

/// Bounds on what is looked at and compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a module.
    pub bytes_max: u64,
    /// Functions of all core modules together.
    pub functions_max: u64,
    /// Bytes of one function's body: compile time grows faster than it.
    pub function_bytes_max: u64,
    /// Components and core modules, however nested.
    pub parts_max: u64,
    /// How deep components may nest.
    pub depth_max: usize,
    /// Types, imports, exports, globals, elements and data segments together.
    pub items_max: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            bytes_max: 64 << 20,
            functions_max: 100_000,
            function_bytes_max: 1 << 20,
            parts_max: 500,
            depth_max: 8,
            items_max: 500_000,
        }
    }
}

/// A module that may be compiled.
#[derive(Debug)]
pub struct Inspected {
    /// The component: the bytes that came, or made from the core module that came.
    pub component: Vec<u8>,
    /// Its world.
    pub world: World,
    /// The names of what it imports.
    pub imports: BTreeSet<String>,
}

/// Why a module is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// Too large.
    #[error("the module has {bytes} bytes, the limit is {bytes_max}: strip it, or raise `module_bytes_max`")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// Not WebAssembly in its binary form.
    #[error("this is not a WebAssembly component: {0}")]
    NotAComponent(String),
    /// Damaged, or beyond what the engine runs.
    #[error("the module is not valid: {0}")]
    Invalid(String),
    /// Something is too many or too deep to compile.
    #[error("the module has {what} {value}, the limit is {max}")]
    OverBound {
        /// What is counted.
        what: &'static str,
        /// How much there is.
        value: u64,
        /// The limit.
        max: u64,
    },
    /// An import that guests do not get.
    #[error("the module imports {name}, which machines cannot have: {why}")]
    ForbiddenImport {
        /// The import.
        name: String,
        /// What to do.
        why: &'static str,
    },
    /// An export of the contract is not there.
    #[error(
        "the module does not export {name}: build it against the world `stored` or `resident` of \
         statehouse:machine@0.1.0"
    )]
    MissingExport {
        /// The export.
        name: &'static str,
    },
    /// It mixes the two worlds.
    #[error("the module is of no single world: it {0}")]
    MixedWorlds(&'static str),
    /// The names are right and the types are not.
    #[error("the module's imports or exports are not of the contract's types: {0}")]
    WrongTypes(String),
}

/// Looks at a module. Takes time in proportion to its size and compiles nothing.
pub fn inspect(bytes: &[u8], limits: &Limits) -> Result<Inspected, Rejected> {
    let size = bytes.len() as u64;
    if size > limits.bytes_max {
        return Err(Rejected::TooLarge { bytes: size, bytes_max: limits.bytes_max });
    }
    let component = match encoding(bytes)? {
        Encoding::Component => bytes.to_vec(),
        Encoding::Module => componentize(bytes, limits)?,
    };
    let surface = survey(&component, limits)?;
    validate(&component)?;
    let world = world_of(&surface)?;
    check_imports(&surface, world)?;
    check_types(&component, &surface, world)?;
    Ok(Inspected { component, world, imports: surface.imports })
}

fn encoding(bytes: &[u8]) -> Result<Encoding, Rejected> {
    if !bytes.starts_with(b"\0asm") {
        let text = bytes.trim_ascii_start().starts_with(b"(");
        let why = if text {
            "it is WebAssembly text; send the binary form (`wasm-tools parse`)"
        } else {
            "it does not begin with the bytes \\0asm"
        };
        return Err(Rejected::NotAComponent(why.into()));
    }
    match Parser::new(0).parse_all(bytes).next() {
        Some(Ok(Payload::Version { encoding, .. })) => Ok(encoding),
        Some(Err(error)) => Err(Rejected::NotAComponent(error.to_string())),
        _ => Err(Rejected::NotAComponent("it has no version".into())),
    }
}

/// Makes a component of a core module that carries the metadata which `wit-bindgen` puts there.
fn componentize(module: &[u8], limits: &Limits) -> Result<Vec<u8>, Rejected> {
    survey(module, limits)?;
    validate(module)?;
    let described = Parser::new(0).parse_all(module).any(|payload| {
        matches!(payload, Ok(Payload::CustomSection(section)) if section.name().starts_with("component-type"))
    });
    if !described {
        return Err(Rejected::NotAComponent(
            "it is a core module without component metadata: build it with wit-bindgen, or make a component \
             of it with `wasm-tools component embed` and `component new`"
                .into(),
        ));
    }
    let encoded = ComponentEncoder::default().validate(false).module(module).and_then(|mut e| e.encode());
    encoded.map_err(|e| Rejected::Invalid(format!("no component can be made of this core module: {e:#}")))
}

/// What a component shows to the outside.
#[derive(Default)]
struct Surface {
    imports: BTreeSet<String>,
    exports: BTreeSet<String>,
}

/// Counts what there is, and notes the names at the top.
fn survey(bytes: &[u8], limits: &Limits) -> Result<Surface, Rejected> {
    let mut surface = Surface::default();
    let (mut depth, mut parts, mut functions, mut items) = (0, 0, 0, 0);
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(|e| Rejected::Invalid(e.to_string()))?;
        items += items_of(&payload);
        match payload {
            Payload::Version { .. } => {
                depth += 1;
                parts += 1;
                bound("components nested", depth as u64, limits.depth_max as u64)?;
                bound("components and modules", parts, limits.parts_max)?;
            }
            Payload::End(_) => depth -= 1,
            Payload::CodeSectionEntry(body) => {
                functions += 1;
                bound("functions", functions, limits.functions_max)?;
                bound("bytes in a function", body.range().len() as u64, limits.function_bytes_max)?;
            }
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    let import = import.map_err(|e| Rejected::Invalid(e.to_string()))?;
                    surface.imports.insert(import.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    let export = export.map_err(|e| Rejected::Invalid(e.to_string()))?;
                    surface.exports.insert(export.name.name.to_owned());
                }
            }
            _ => {}
        }
        bound("types, imports, exports and segments", items, limits.items_max)?;
    }
    Ok(surface)
}

fn items_of(payload: &Payload) -> u64 {
    let count = match payload {
        Payload::TypeSection(s) => s.count(),
        Payload::ImportSection(s) => s.count(),
        Payload::FunctionSection(s) => s.count(),
        Payload::TableSection(s) => s.count(),
        Payload::GlobalSection(s) => s.count(),
        Payload::ExportSection(s) => s.count(),
        Payload::ElementSection(s) => s.count(),
        Payload::DataSection(s) => s.count(),
        Payload::InstanceSection(s) => s.count(),
        Payload::CoreTypeSection(s) => s.count(),
        Payload::ComponentInstanceSection(s) => s.count(),
        Payload::ComponentAliasSection(s) => s.count(),
        Payload::ComponentTypeSection(s) => s.count(),
        Payload::ComponentCanonicalSection(s) => s.count(),
        Payload::ComponentImportSection(s) => s.count(),
        Payload::ComponentExportSection(s) => s.count(),
        _ => 0,
    };
    u64::from(count)
}

fn bound(what: &'static str, value: u64, max: u64) -> Result<(), Rejected> {
    if value <= max { Ok(()) } else { Err(Rejected::OverBound { what, value, max }) }
}

/// The features that the engine has on.
fn features() -> WasmFeatures {
    WasmFeatures::WASM1
        | WasmFeatures::SIMD
        | WasmFeatures::BULK_MEMORY
        | WasmFeatures::MULTI_VALUE
        | WasmFeatures::REFERENCE_TYPES
        | WasmFeatures::TAIL_CALL
        | WasmFeatures::EXTENDED_CONST
        | WasmFeatures::SATURATING_FLOAT_TO_INT
        | WasmFeatures::SIGN_EXTENSION
        | WasmFeatures::COMPONENT_MODEL
}

fn validate(bytes: &[u8]) -> Result<(), Rejected> {
    let validated = Validator::new_with_features(features()).validate_all(bytes);
    validated.map(drop).map_err(|e| Rejected::Invalid(e.to_string()))
}

fn world_of(surface: &Surface) -> Result<World, Rejected> {
    if !surface.exports.contains(BEHAVIOR) {
        return Err(Rejected::MissingExport { name: BEHAVIOR });
    }
    let (saves, streams) = (surface.exports.contains(SNAPSHOT), surface.imports.contains(STREAM));
    match (saves, streams, surface.imports.contains(STORE)) {
        (true, _, true) => Err(Rejected::MixedWorlds("exports `snapshot` and imports `store`")),
        (true, _, false) => Ok(World::Resident),
        (false, true, _) => Err(Rejected::MissingExport { name: SNAPSHOT }),
        (false, false, _) => Ok(World::Stored),
    }
}

fn check_imports(surface: &Surface, world: World) -> Result<(), Rejected> {
    let own = match world {
        World::Stored => STORE,
        World::Resident => STREAM,
    };
    for name in &surface.imports {
        if name == own || HOST.contains(&name.as_str()) || wasi::is_allowed(name) {
            continue;
        }
        let why = if name.starts_with("wasi:sockets") || name.starts_with("wasi:http") {
            "a machine has no network; build it without it"
        } else if name.starts_with("wasi:") {
            "it is not in the small deterministic part of WASI that machines get"
        } else if name.starts_with("statehouse:machine/") {
            "it is of the other world, or of another version of the contract"
        } else {
            "the host has nothing of this name"
        };
        return Err(Rejected::ForbiddenImport { name: name.clone(), why });
    }
    Ok(())
}

/// Compares types with the world's. A component that uses WASI is compared when it is linked, because the
/// contract's worlds do not have those imports.
fn check_types(component: &[u8], surface: &Surface, world: World) -> Result<(), Rejected> {
    if surface.imports.iter().any(|name| wasi::is_allowed(name)) {
        return Ok(());
    }
    let mut resolve = Resolve::default();
    let package = resolve.push_str("machine.wit", CONTRACT).map_err(|e| wrong(&e))?;
    let name = match world {
        World::Stored => "stored",
        World::Resident => "resident",
    };
    let world = resolve.select_world(&[package], Some(name)).map_err(|e| wrong(&e))?;
    wit_component::targets(&resolve, world, component).map_err(|e| wrong(&e))
}

fn wrong(error: &dyn std::fmt::Display) -> Rejected {
    Rejected::WrongTypes(format!("{error:#}"))
}
