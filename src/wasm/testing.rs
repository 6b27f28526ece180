//! For the tests of this room: an engine, components from text, and calls into them.

mod text;

use std::sync::{Arc, OnceLock};

pub use self::text::*;
use super::compile::Compiler;
use super::engine::{Engine, EngineSettings};
use super::instance::{GuestSettings, WasmGuest};
use super::module::{LoadError, Module};
use super::validate::{Limits, inspect};
use crate::machine::batch::Head;
use crate::machine::frame::Frame;
use crate::machine::guest::{Ending, Input, Instance, QueryView};
use crate::machine::outcome::Context;
use crate::machine::view::MemoryView;

/// The guests of the gallery, as committed.
pub const KV: &[u8] = include_bytes!("../../guests/kv/kv.component.wasm");
pub const COUNTER: &[u8] = include_bytes!("../../guests/counter/counter.component.wasm");
pub const NOTES: &[u8] = include_bytes!("../../guests/notes/notes.component.wasm");

/// One engine for all tests: its address space is the largest thing in them.
pub fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        Engine::new(EngineSettings { instances_max: 256, query_instances_max: 64, ..Default::default() })
            .unwrap()
    })
}

/// Inspects, compiles in process and loads.
pub fn try_load(bytes: &[u8]) -> Result<Module, LoadError> {
    let inspected = inspect(bytes, &Limits::default(), &Compiler::InProcess)
        .map_err(|e| LoadError::Rejected(e.to_string()))?;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), Compiler::InProcess.compile(&inspected.component).unwrap()).unwrap();
    Module::load(engine(), file.path(), inspected.world)
}

pub fn load(bytes: &[u8]) -> Module {
    try_load(bytes).unwrap()
}

pub fn guest(bytes: &[u8]) -> WasmGuest {
    load(bytes).wasm_guest([7; 32], GuestSettings::default())
}

pub fn empty_view() -> Arc<MemoryView> {
    Arc::new(MemoryView::default())
}

/// The place of the input `offset` of the batch 5.
pub fn context(offset: u32) -> Context {
    Context { index: 5, offset, time: 1_700_000_000_123, revision: 2 }
}

pub const VIEW: QueryView = QueryView { index: 5, time: 1_700_000_000_123, revision: 1 };

pub fn command(bytes: &[u8]) -> Input {
    Input::Command(bytes.to_vec().into())
}

/// Applies one command on an empty state.
pub fn apply_once(instance: &mut dyn Instance, bytes: &[u8]) -> (Frame, Ending) {
    let mut frame = Frame::for_batch(empty_view(), &Head::default());
    frame.begin(context(0));
    instance.apply(frame, context(0), &command(bytes))
}

pub fn query_frame() -> Frame {
    Frame::for_query(empty_view(), VIEW, &Head::default())
}

/// The guest's answer.
///
/// # Panics
/// If the call ended otherwise.
pub fn answer(ending: Ending) -> Vec<u8> {
    match ending {
        Ending::Answer(bytes) => bytes.to_vec(),
        other => panic!("an answer was expected: {other:?}"),
    }
}
