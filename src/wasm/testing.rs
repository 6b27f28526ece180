//! For the tests of this room: an engine, components from text, and calls into them.

use std::sync::{Arc, OnceLock};

use super::compile::Compiler;
use super::engine::{Engine, EngineSettings};
use super::instance::{GuestSettings, WasmGuest};
use super::module::{LoadError, Module};
use super::validate::{Limits, inspect};
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
    let mut frame = Frame::for_batch(empty_view(), 0);
    frame.begin(context(0));
    instance.apply(frame, context(0), &command(bytes))
}

pub fn query_frame() -> Frame {
    Frame::for_query(empty_view(), VIEW)
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

/// A component of the world `stored` from the text of a core module, which imports what it uses of the
/// contract in canonical form (`wit-component`'s names) and exports a memory, `cabi_realloc` and the two
/// functions.
pub fn stored(core: &str) -> Vec<u8> {
    component(core, "stored")
}

/// The same for the world `resident`.
pub fn resident(core: &str) -> Vec<u8> {
    component(core, "resident")
}

fn component(core: &str, world: &str) -> Vec<u8> {
    let module = core_module(core, world);
    wit_component::ComponentEncoder::default().module(&module).unwrap().encode().unwrap()
}

/// A core module with the metadata of a world.
pub fn core_module(core: &str, world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(core).unwrap();
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_source("machine.wit", include_str!("../../wit/machine.wit")).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    wit_component::embed_component_metadata(
        &mut module,
        &resolve,
        world,
        wit_component::StringEncoding::UTF8,
    )
    .unwrap();
    module
}

/// The text of a core module whose `apply` and `query` run `apply` and `query`, with `items` beside them.
///
/// Both bodies see the parameters of the canonical form, and leave the address of a result: `$ok` is one with
/// an empty answer. `apply`: index, offset, time, revision, then the input as case and five words. `query`:
/// index, time, revision, then the request's address and length.
pub fn guest_text(items: &str, apply: &str, query: &str) -> String {
    guest_text_with_memory("(memory (export \"memory\") 2)", items, apply, query)
}

pub fn guest_text_with_memory(memory: &str, items: &str, apply: &str, query: &str) -> String {
    let imports: String = items.lines().filter(|line| line.trim_start().starts_with("(import")).collect();
    let items: String = items.lines().filter(|line| !line.trim_start().starts_with("(import")).collect();
    format!(
        r#"(module
            {imports}
            {memory}
            (global $free (mut i32) (i32.const 4096))
            ;; An address for each request: memory is given out once and never taken back.
            (func $alloc (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (local $at i32)
                (local.set $at (i32.and (i32.add (global.get $free) (i32.const 15)) (i32.const -16)))
                (global.set $free (i32.add (local.get $at) (local.get 3)))
                (block $fits
                    (br_if $fits (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
                    (br_if $fits (i32.ne (i32.const -1) (memory.grow
                        (i32.add (i32.const 1) (i32.div_u (local.get 3) (i32.const 65536))))))
                    unreachable)
                (local.get $at))
            ;; A result at 64: the answer of $length bytes at $at.
            (func $answer (param $at i32) (param $length i32) (result i32)
                (i32.store8 (i32.const 64) (i32.const 0))
                (i32.store (i32.const 68) (local.get $at))
                (i32.store (i32.const 72) (local.get $length))
                (i32.const 64))
            ;; A result at 64: the refusal with $code and a message of $length bytes at $at.
            (func $refuse (param $code i32) (param $at i32) (param $length i32) (result i32)
                (i32.store8 (i32.const 64) (i32.const 1))
                (i32.store (i32.const 68) (local.get $code))
                (i32.store (i32.const 72) (local.get $at))
                (i32.store (i32.const 76) (local.get $length))
                (i32.const 64))
            (func $ok (result i32) (call $answer (i32.const 0) (i32.const 0)))
            {items}
            (func (export "statehouse:machine/behavior@0.1.0#apply")
                (param $index i64) (param $offset i32) (param $time i64) (param $revision i64)
                (param $case i32) (param $a i64) (param $b i32) (param $c i32) (param $d i32)
                (result i32)
                {apply})
            (func (export "statehouse:machine/behavior@0.1.0#query")
                (param $index i64) (param $time i64) (param $revision i64) (param $at i32) (param $length i32)
                (result i32)
                {query}))"#
    )
}
