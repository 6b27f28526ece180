//! Compares a component's imports and exports, types included, with exactly one world of the contract.
//!
//! Linking is no such comparison: it does not notice an export that is missing, and comes only after
//! compiling.

use wasmparser::component_types::{ComponentAnyTypeId, ComponentEntityType, ComponentItem, ComponentType};
use wasmparser::types::{Types, TypesRef};
use wasmparser::{Parser, Payload, Validator};

use super::{Rejected, features};
use crate::machine::guest::World;
use crate::wasm::{engine, wasi};

/// The contract, as the project publishes it.
const CONTRACT: &str = include_str!("../../../wit/machine.wit");
/// What names of the contract begin with.
const PACKAGE: &str = "statehouse:machine/";

/// What a component is beside the contract.
pub struct Comparison {
    pub world: World,
    pub imports: Vec<String>,
    pub exports: Vec<String>,
    /// Everything that keeps it from being a machine.
    pub rejected: Vec<Rejected>,
}

/// Validates a component and compares it with the world that it seems to be for.
pub fn compare(component: &[u8]) -> Result<Comparison, Rejected> {
    let (named, shared_libraries) = by_names(component)?;
    let Comparison { world, imports, exports, .. } = named;

    // One validator for both, because it can compare only types that it has seen itself.
    let mut validator = Validator::new_with_features(engine::features());
    let contract = validator.validate_all(&contract()?).map_err(|e| broken(&e))?;
    validator.reset();
    let rejected = match validator.validate_all(component) {
        Ok(types) => {
            let ty = world_type(&contract, world)?;
            Expected { world, types: contract.as_ref(), ty, shared_libraries }.all(
                &imports,
                &exports,
                types.as_ref(),
            )
        }
        // What has no valid types is compared with nothing.
        Err(why) => match features::refused(component) {
            none if none.is_empty() => return Err(super::invalid(&why)),
            refused => refused,
        },
    };
    Ok(Comparison { world, imports, exports, rejected })
}

/// What a component is by the names of its imports and exports, which nothing is compared with; and whether
/// it is made of shared libraries.
pub fn by_names(component: &[u8]) -> Result<(Comparison, bool), Rejected> {
    let Names { imports, exports, shared_libraries } = names_of(component)?;
    let resident = |name: &String| name.starts_with("statehouse:machine/snapshot");
    let world = if imports.iter().chain(&exports).any(resident) { World::Resident } else { World::Stored };
    Ok((Comparison { world, imports, exports, rejected: Vec::new() }, shared_libraries))
}

/// The contract as a component whose exports are its worlds.
fn contract() -> Result<Vec<u8>, Rejected> {
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_source("machine.wit", CONTRACT).map_err(|e| broken(&e))?;
    wit_component::encode(&resolve, package).map_err(|e| broken(&e))
}

/// The contract itself is part of the program, and tests read it: this does not happen.
fn broken(error: &dyn std::fmt::Display) -> Rejected {
    Rejected::Unreadable(format!("this build's own contract is broken: {error:#}"))
}

/// The component type of a world: an export of an export of the encoded contract.
fn world_type(contract: &Types, world: World) -> Result<&ComponentType, Rejected> {
    let missing = || broken(&format!("no world {}", world.name()));
    let types = contract.as_ref();
    let component = |item: &ComponentItem| match item.ty {
        ComponentEntityType::Component(id) => Some(id),
        ComponentEntityType::Type { referenced: ComponentAnyTypeId::Component(id), .. } => Some(id),
        _ => None,
    };
    let outer = types.component_item_for_export(world.name()).and_then(component).ok_or_else(missing)?;
    let inner = contract[outer].exports.values().find_map(component).ok_or_else(missing)?;
    Ok(&contract[inner])
}

/// What a component says of itself.
#[derive(Default)]
struct Names {
    /// Its own imports, not those of what is nested in it.
    imports: Vec<String>,
    /// Its own exports.
    exports: Vec<String>,
    /// Whether core modules in it are shared libraries, linked with each other when it is instantiated.
    shared_libraries: bool,
}

fn names_of(component: &[u8]) -> Result<Names, Rejected> {
    let invalid = |e: wasmparser::BinaryReaderError| Rejected::Invalid(e.to_string());
    let (mut names, mut depth) = (Names::default(), 0u32);
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(invalid)? {
            Payload::ComponentSection { .. } | Payload::ModuleSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    names.imports.push(import.map_err(invalid)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    names.exports.push(export.map_err(invalid)?.name.name.to_owned());
                }
            }
            // The convention of LLVM's linker: DynamicLinking.md of github.com/WebAssembly/tool-conventions.
            Payload::CustomSection(section) if section.name() == "dylink.0" => names.shared_libraries = true,
            _ => {}
        }
    }
    Ok(names)
}

/// A world of the contract.
struct Expected<'a> {
    world: World,
    types: TypesRef<'a>,
    ty: &'a ComponentType,
    /// Whether the component is made of shared libraries. Each is there as a whole, libc with its network, so
    /// that the imports do not tell what the program uses: CPython's always ask for it.
    shared_libraries: bool,
}

impl Expected<'_> {
    /// Everything that is not as the world has it, imports first.
    fn all(&self, imports: &[String], exports: &[String], types: TypesRef) -> Vec<Rejected> {
        let imports = imports.iter().filter_map(|name| self.check_import(name, types).err());
        imports.chain(self.wrong_exports(types, exports)).collect()
    }

    /// The import must be one that the host gives, with a type that the host's fits.
    fn check_import(&self, name: &str, types: TypesRef) -> Result<(), Rejected> {
        if wasi::is_allowed(name) || (self.shared_libraries && wasi::is_network(name)) {
            // Types of WASI are compared when the module is linked: only functions that do something have
            // one.
            return Ok(());
        }
        let refuse = |why: String| Err(Rejected::Import { name: name.to_owned(), why });
        let Some(ours) = self.ty.imports.get(name) else {
            return refuse(self.why_not(name));
        };
        let Some(theirs) = types.component_item_for_import(name) else {
            return refuse("it has no type".into());
        };
        if ComponentEntityType::is_subtype_of(&ours.ty, self.types, &theirs.ty, types) {
            return Ok(());
        }
        Err(Rejected::Type { name: name.to_owned(), detail: difference(theirs, types, ours, self.types) })
    }

    /// Every export of the world must be there, with a type that fits. Others are tolerated.
    fn wrong_exports(&self, types: TypesRef, exports: &[String]) -> impl Iterator<Item = Rejected> {
        self.ty.exports.iter().filter_map(move |(name, ours)| {
            let Some(theirs) = types.component_item_for_export(name) else {
                let (world, instead) = (self.world.name(), instead_of(name, exports));
                return Some(Rejected::MissingExport { name: name.clone(), world, instead });
            };
            if ComponentEntityType::is_subtype_of(&theirs.ty, types, &ours.ty, self.types) {
                return None;
            }
            let detail = difference(ours, self.types, theirs, types);
            Some(Rejected::Type { name: name.clone(), detail })
        })
    }

    fn why_not(&self, name: &str) -> String {
        let world = self.world.name();
        if name.starts_with("wasi:sockets/") || name.starts_with("wasi:http/") {
            return "a machine reaches nothing but its own state, or replicas would differ; build the guest \
                    without networking (componentize-js: -d http fetch-event)"
                .into();
        }
        if name.starts_with("wasi:") {
            return "only a small part of WASI 0.2 is given to machines: clocks, random, cli, io and empty \
                    filesystem preopens; build the guest with WASI stubbed (componentize-py: --stub-wasi; \
                    componentize-js: -d stdio random clocks http fetch-event)"
                .into();
        }
        if name.starts_with(PACKAGE) {
            return format!(
                "the world {world} of statehouse:machine@0.1.0 does not have it; build the guest for one \
                 world, with the machine.wit of this version, which `statehouse module new` writes"
            );
        }
        "only interfaces of statehouse:machine and a small part of WASI are given to machines; leave out \
         what asks for it, or compose the component with one that gives it (wac plug)"
            .into()
    }
}

/// An export that has the name in another version.
fn instead_of(name: &str, exports: &[String]) -> Option<String> {
    let base = |name: &str| name.split('@').next().unwrap_or_default().to_owned();
    exports.iter().find(|export| base(export) == base(name)).cloned()
}

/// Names the first function or type of an interface that is wanted and not given as wanted.
fn difference(
    wanted: &ComponentItem,
    wanted_in: TypesRef,
    given: &ComponentItem,
    given_in: TypesRef,
) -> String {
    let (ComponentEntityType::Instance(wanted), ComponentEntityType::Instance(given)) = (wanted.ty, given.ty)
    else {
        return "it is not an interface".into();
    };
    let (wanted, given) = (&wanted_in[wanted], &given_in[given]);
    for (name, item) in &wanted.exports {
        match given.exports.get(name) {
            None => return format!("{name} is missing"),
            Some(other) => {
                if !ComponentEntityType::is_subtype_of(&other.ty, given_in, &item.ty, wanted_in) {
                    return format!("{name} differs");
                }
            }
        }
    }
    "their types differ".into()
}
