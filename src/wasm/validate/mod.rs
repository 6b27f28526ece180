//! Looks at uploaded bytes before anything compiles them. The bytes may be hostile.
//!
//! In order: their size; what they are; the bounds that stop a small file from costing minutes of
//! compilation; validity under the features of the contract; and a comparison of imports and exports, types
//! included, with exactly one world. A core module that carries component metadata is turned into a component
//! on the way, in the compiler's process: a small file can make the converter recurse without end.
//!
//! Promises: ends in time linear in the size; never a panic or an overflown stack, whatever the bytes; an
//! error that names the fault, and the value and limit where there is one. Never the text format.

mod bounds;
mod world;

pub use bounds::Bounds;

use std::borrow::Cow;

use super::compile::{CompileError, Compiler};
use crate::machine::guest::World;

/// Room for the parser's recursion over nested types, which [`Bounds`] limits.
pub(super) const STACK_BYTES: usize = 64 << 20;

/// What an upload may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a module.
    pub bytes_max: u64,
    /// Bytes of memory that an instance may have: no module may ask for more from the start.
    pub memory_bytes_max: usize,
    /// Counts, sizes and nesting.
    pub bounds: Bounds,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { bytes_max: 64 << 20, memory_bytes_max: 256 << 20, bounds: Bounds::default() }
    }
}

/// A module that may be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected<'a> {
    /// The component: the uploaded bytes, or what was made of them if they were a core module.
    pub component: Cow<'a, [u8]>,
    /// The world that it is of.
    pub world: World,
    /// Whether it imports anything of WASI.
    pub wasi: bool,
    /// What it imports, by name.
    pub imports: Vec<String>,
    /// What it exports, by name.
    pub exports: Vec<String>,
}

/// Why a module is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// Over the size limit.
    #[error(
        "the module has {bytes} bytes, at most {max} are allowed: strip debug information, or raise \
         module_bytes_max"
    )]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// Not WebAssembly.
    #[error("this is not a WebAssembly component: it begins with {0}")]
    NotWasm(String),
    /// The text format.
    #[error("this is WebAssembly's text format, which is not taken: make it binary with `wasm-tools parse`")]
    Text,
    /// A core module that does not say which world it is of.
    #[error(
        "this is a core module without component metadata: build it with wit-bindgen for one of the worlds \
         of statehouse:machine, or run `wasm-tools component embed` and `wasm-tools component new`"
    )]
    CoreModule,
    /// A core module with metadata that does not fit it.
    #[error("this core module cannot be turned into a component: {0}")]
    NotConvertible(String),
    /// Over one of the [`Bounds`].
    #[error("the module has {value} {what}, at most {max} are allowed")]
    OverBound {
        /// What was counted.
        what: &'static str,
        /// How many there are; counting stopped here.
        value: u64,
        /// The limit.
        max: u64,
    },
    /// Not valid, or in need of a feature that the contract leaves out.
    #[error("the module is not valid here: {0}")]
    Invalid(String),
    /// An import that no machine may have.
    #[error("the import {name} is not allowed: {why}")]
    Import {
        /// Its name.
        name: String,
        /// Why not, and what to do.
        why: String,
    },
    /// An import or export whose type is not the contract's.
    #[error("{name} does not have the type that statehouse:machine@0.1.0 gives it: {detail}")]
    Type {
        /// Its name.
        name: String,
        /// Which part differs.
        detail: String,
    },
    /// An export that the world demands.
    #[error("the export {name} is missing, which the world {world} demands{hint}")]
    MissingExport {
        /// Its name.
        name: String,
        /// The world's name.
        world: &'static str,
        /// What it has in place of it, if that is near.
        hint: String,
    },
    /// This computer could not inspect it: try again.
    #[error("the module was not inspected: {0}")]
    NotInspected(String),
    /// The parser failed on it: damaged or hostile.
    #[error("the module cannot be read: {0}")]
    Unreadable(String),
}

/// Inspects uploaded bytes. Compiles nothing: `compiler` is for core modules, which it turns into components.
pub fn inspect<'a>(bytes: &'a [u8], limits: &Limits, compiler: &Compiler) -> Result<Inspected<'a>, Rejected> {
    // A thread of its own: with the stack that nested types may need, and so that a panic in a parser of
    // hostile bytes is an answer and not the end of the caller.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("inspect".into()).stack_size(STACK_BYTES);
        let inspector = thread
            .spawn_scoped(scope, || inspect_here(bytes, limits, compiler))
            .map_err(|e| Rejected::NotInspected(format!("no thread could be started: {e}")))?;
        inspector.join().unwrap_or_else(|_| Err(Rejected::Unreadable("the parser gave up on it".into())))
    })
}

fn inspect_here<'a>(
    bytes: &'a [u8],
    limits: &Limits,
    compiler: &Compiler,
) -> Result<Inspected<'a>, Rejected> {
    check_size(bytes, limits)?;
    let component = match kind_of(bytes)? {
        Kind::Component => Cow::Borrowed(bytes),
        Kind::CoreModule => Cow::Owned(convert(bytes, limits, compiler)?),
    };
    check_size(&component, limits)?;
    bounds::check(&component, limits)?;
    let world::Fit { world, wasi, imports, exports } = world::compare(&component)?;
    Ok(Inspected { component, world, wasi, imports, exports })
}

fn check_size(bytes: &[u8], limits: &Limits) -> Result<(), Rejected> {
    let (bytes, max) = (bytes.len() as u64, limits.bytes_max);
    if bytes <= max { Ok(()) } else { Err(Rejected::TooLarge { bytes, max }) }
}

enum Kind {
    Component,
    CoreModule,
}

/// Tells by the first eight bytes: the magic, a version and a layer.
fn kind_of(bytes: &[u8]) -> Result<Kind, Rejected> {
    match bytes.get(..8) {
        Some(b"\0asm\x0d\0\x01\0") => Ok(Kind::Component),
        Some(b"\0asm\x01\0\0\0") => Ok(Kind::CoreModule),
        _ if looks_like_text(bytes) => Err(Rejected::Text),
        _ if bytes.is_empty() => Err(Rejected::NotWasm("nothing, it is empty".into())),
        _ => Err(Rejected::NotWasm(format!("the bytes {}", hex::encode(&bytes[..bytes.len().min(8)])))),
    }
}

fn looks_like_text(bytes: &[u8]) -> bool {
    let start = bytes.trim_ascii_start();
    start.starts_with(b"(module") || start.starts_with(b"(component") || start.starts_with(b";;")
}

/// Makes a component of a core module by the metadata that wit-bindgen left in it.
fn convert(module: &[u8], limits: &Limits, compiler: &Compiler) -> Result<Vec<u8>, Rejected> {
    bounds::check(module, limits)?;
    if !bounds::has_component_metadata(module)? {
        return Err(Rejected::CoreModule);
    }
    wasmparser::Validator::new_with_features(super::engine::features())
        .validate_all(module)
        .map_err(|e| Rejected::Invalid(e.to_string()))?;
    compiler.componentize(module).map_err(|error| match error {
        CompileError::Process { .. } => Rejected::NotInspected(error.to_string()),
        _ => Rejected::NotConvertible(error.to_string()),
    })
}

#[cfg(test)]
mod tests;
