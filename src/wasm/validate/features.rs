//! Which features of WebAssembly a module needs that the contract leaves out.
//!
//! Promises: time linear in the size, for some thirty features.

use wasmparser::{Validator, WasmFeatures};

use super::Rejected;
use crate::wasm::engine;

/// What no machine may use of what these bytes use; nothing if they would not be valid with every feature
/// there is.
pub fn refused(module: &[u8]) -> Vec<Rejected> {
    let valid_with = |features| Validator::new_with_features(features).validate_all(module);
    let all = engine::features() | engine::features_off();
    if valid_with(all).is_err() {
        return Vec::new();
    }
    let off = engine::features_off();
    let needed = off.iter_names().filter_map(|(name, feature)| {
        let why = valid_with(without(all, feature)).err()?;
        Some(refusal(&shown(name), why.to_string()))
    });
    needed.collect()
}

/// What is said of a feature that was found.
pub fn refusal(name: &str, found: String) -> Rejected {
    Rejected::Feature { name: name.to_owned(), found, advice: advice(name) }
}

/// All but one.
pub fn without(mut features: WasmFeatures, one: WasmFeatures) -> WasmFeatures {
    features.remove(one);
    features
}

/// As proposals and compilers write it.
pub fn shown(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}

fn advice(name: &str) -> &'static str {
    match name {
        "threads" | "shared-everything-threads" => {
            "a machine has one thread: build without them (clang: no -pthread and no -matomics; rustc: no \
             +atomics)"
        }
        "relaxed-simd" => {
            "its results are the processor's choice, so replicas would differ: build with plain SIMD (clang: \
             -mno-relaxed-simd; rustc: -C target-feature=-relaxed-simd)"
        }
        "memory64" | "cm64" => "build for wasm32, which has room for all the memory that a machine may have",
        "exceptions" | "legacy-exceptions" => {
            "build without them (clang: no -fwasm-exceptions; rustc: panic = \"abort\")"
        }
        "gc" | "gc-types" | "function-references" => {
            "a language that needs the garbage collector of its host cannot be a machine yet: use one that \
             brings its own"
        }
        name if name.starts_with("cm-") => {
            "build with bindings that do without it: a plain wit-bindgen for the world, with nothing async"
        }
        _ => "switch it off where the guest is built (clang: -mno-NAME; rustc: -C target-feature=-NAME)",
    }
}
