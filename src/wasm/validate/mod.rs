//! Looks at uploaded bytes before anything compiles them. The bytes may be hostile.
//!
//! In order: their size; what they are; the bounds that stop a small file from costing minutes of
//! compilation; validity under the features of the contract; and a comparison of imports and exports, types
//! included, with exactly one world. A core module that carries component metadata is turned into a component
//! on the way, in the compiler's process: a small file can make the converter recurse without end.
//!
//! Promises: ends in time linear in the size; never a panic or an overflown stack, whatever the bytes; an
//! error that names the fault, the value and limit where there is one, and what to do. What a valid component
//! has that the contract does not, and the other way round, is named whole: not the first of it. Never the
//! text format.

mod bounds;
mod features;
mod rejected;
mod world;

pub use bounds::Bounds;
pub(super) use features::{shown, without};
pub use rejected::Rejected;

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

/// A component that was looked at, taken or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look<'a> {
    /// What it is. Its world is the one that its names come nearest to.
    pub inspected: Inspected<'a>,
    /// Everything for which it is refused; nothing if it may be compiled.
    pub rejected: Vec<Rejected>,
}

/// Inspects uploaded bytes. Compiles nothing: `compiler` is for core modules, which it turns into components.
pub fn inspect<'a>(bytes: &'a [u8], limits: &Limits, compiler: &Compiler) -> Result<Inspected<'a>, Rejected> {
    let Look { inspected, rejected } = look(bytes, limits, compiler)?;
    match Rejected::all(rejected) {
        None => Ok(inspected),
        Some(rejected) => Err(rejected),
    }
}

/// The same, for showing what a component is although it is refused.
///
/// # Errors
/// If these bytes are no component, or a larger one than may be: then nothing else is known of it.
pub fn look<'a>(bytes: &'a [u8], limits: &Limits, compiler: &Compiler) -> Result<Look<'a>, Rejected> {
    // A thread of its own: with the stack that nested types may need, and so that a panic in a parser of
    // hostile bytes is an answer and not the end of the caller.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("inspect".into()).stack_size(STACK_BYTES);
        let inspector = thread
            .spawn_scoped(scope, || look_here(bytes, limits, compiler))
            .map_err(|e| Rejected::NotInspected(format!("no thread could be started: {e}")))?;
        inspector.join().unwrap_or_else(|_| Err(Rejected::Unreadable("the parser gave up on it".into())))
    })
}

fn look_here<'a>(bytes: &'a [u8], limits: &Limits, compiler: &Compiler) -> Result<Look<'a>, Rejected> {
    check_size(bytes, limits)?;
    let component = match kind_of(bytes)? {
        Kind::Component => Cow::Borrowed(bytes),
        Kind::CoreModule => Cow::Owned(convert(bytes, limits, compiler)?),
    };
    check_size(&component, limits)?;
    let world::Comparison { world, imports, exports, rejected } = match bounds::check(&component, limits) {
        Ok(()) => world::compare(&component)?,
        // To validate it could take minutes, or more stack than there is: only its names are read.
        Err(over @ Rejected::OverBound { .. }) => {
            world::Comparison { rejected: vec![over], ..world::by_names(&component)?.0 }
        }
        Err(why) => return Err(why),
    };
    let wasi = imports.iter().any(|name| name.starts_with("wasi:"));
    Ok(Look { inspected: Inspected { component, world, wasi, imports, exports }, rejected })
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
    if let Err(why) = wasmparser::Validator::new_with_features(super::engine::features()).validate_all(module)
    {
        return Err(Rejected::all(features::refused(module)).unwrap_or_else(|| invalid(&why)));
    }
    compiler.componentize(module).map_err(|error| match error {
        CompileError::Process { .. } => Rejected::NotInspected(error.to_string()),
        _ => Rejected::NotConvertible(error.to_string()),
    })
}

/// Neither valid here nor with all features that there are.
fn invalid(why: &wasmparser::BinaryReaderError) -> Rejected {
    Rejected::Invalid(why.to_string())
}

#[cfg(test)]
mod tests;
