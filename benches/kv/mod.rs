//! The committed component of the kv machine, loaded, for benches that run it without a node.

use statehouse::id::Digest;
use statehouse::wasm::{Compiler, Engine, EngineSettings, Limits, Module, inspect};

const COMPONENT: &[u8] = include_bytes!("../../guests/kv/kv.component.wasm");

/// Its digest.
pub fn digest() -> Digest {
    Digest::of(COMPONENT)
}

/// It, compiled and loaded.
pub fn module() -> Module {
    let engine = Engine::new(EngineSettings::default()).expect("the engine starts");
    let inspected =
        inspect(COMPONENT, &Limits::default(), &Compiler::InProcess).expect("the component is sound");
    let compiled = Compiler::InProcess.compile(&inspected.component).expect("it compiles");
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), compiled).expect("the artefact is written");
    Module::load(&engine, file.path(), inspected.world).expect("it loads")
}
