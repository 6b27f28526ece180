//! Components from text, sound and hostile: for the tests of this room, and for those that run a whole node,
//! which include this file. It must name nothing of this crate.

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

/// A component of a world of one's own, the last of the packages in `sources`, which can name ours.
pub fn component_of(core: &str, sources: &[&str], world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(core).unwrap();
    embed(&mut module, sources, world);
    wit_component::ComponentEncoder::default().module(&module).unwrap().encode().unwrap()
}

/// A core module with the metadata of one of our worlds.
pub fn core_module(core: &str, world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(core).unwrap();
    embed(&mut module, &[], world);
    module
}

fn embed(module: &mut Vec<u8>, sources: &[&str], world: &str) {
    let mut resolve = wit_parser::Resolve::default();
    let mut package = resolve.push_source("machine.wit", include_str!("../../../wit/machine.wit")).unwrap();
    for source in sources {
        package = resolve.push_source("guest.wit", source).unwrap();
    }
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    let encoding = wit_component::StringEncoding::UTF8;
    wit_component::embed_component_metadata(module, &resolve, world, encoding).unwrap();
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

/// With the metadata of the world `stored`.
pub fn core_module_of(mut module: Vec<u8>) -> Vec<u8> {
    let donor = core_module("(module)", "stored");
    // All that is in the donor behind its header is the metadata's section.
    module.extend_from_slice(&donor[8..]);
    module
}

/// A module of `count` functions with a body of `body`, each.
pub fn many_functions(count: usize, body: &str) -> Vec<u8> {
    wat::parse_str(format!("(module {})", format!("(func {body})").repeat(count))).unwrap()
}

/// Puts a core module into a component.
pub fn wrapped(module: &[u8]) -> Vec<u8> {
    let mut component = b"\0asm\x0d\0\x01\0".to_vec();
    section(&mut component, 1, module);
    component
}

/// Adds a section to a component.
pub fn section(component: &mut Vec<u8>, id: u8, content: &[u8]) {
    component.push(id);
    let mut length = content.len();
    loop {
        let more = length > 0x7f;
        component.push((length & 0x7f) as u8 | if more { 0x80 } else { 0 });
        length >>= 7;
        if !more {
            break;
        }
    }
    component.extend_from_slice(content);
}

/// A guest that does what the first letter of a command or query says: loop, trap, recurse, take memory,
/// answer with an outcome that is too long, emit events without end, give a list a negative length, or write.
pub fn attacker() -> Vec<u8> {
    let items = r#"
        (import "statehouse:machine/store@0.1.0" "set" (func $set (param i32 i32 i32 i32)))
        (import "statehouse:machine/events@0.1.0" "emit" (func $emit (param i32 i32 i32 i32 i32)))
        (func $down (param i32) (result i32) (i32.add (call $down (local.get 0)) (i32.const 1)))
        (func $write (call $set (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 5)))
        (func $is (param i32 i32) (result i32) (i32.eq (i32.load8_u (local.get 0)) (local.get 1)))
        (func $attack (param $at i32) (result i32)
            (if (call $is (local.get $at) (i32.const 108)) (then (loop (br 0))))
            (if (call $is (local.get $at) (i32.const 116)) (then unreachable))
            (if (call $is (local.get $at) (i32.const 114)) (then (drop (call $down (i32.const 0)))))
            (if (call $is (local.get $at) (i32.const 109)) (then
                (loop (br_if 0 (i32.ne (i32.const -1) (memory.grow (i32.const 64))))) unreachable))
            (if (call $is (local.get $at) (i32.const 111)) (then
                (drop (memory.grow (i32.const 100)))
                (return (call $answer (i32.const 0) (i32.const 4194305)))))
            (if (call $is (local.get $at) (i32.const 101)) (then (loop
                (call $emit (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0)) (br 0))))
            (if (call $is (local.get $at) (i32.const 110)) (then
                (return (call $answer (i32.const 0) (i32.const -1)))))
            (if (call $is (local.get $at) (i32.const 119)) (then (call $write)))
            (call $ok))"#;
    // The input `created` has no bytes to obey.
    let apply = "(if (i32.eqz (local.get $case)) (then (return (call $ok))))
        (call $attack (i32.wrap_i64 (local.get $a)))";
    stored(&guest_text(items, apply, "(call $attack (local.get $at))"))
}

/// A component with so many functions that take far more than a second to compile, together; each has 20
/// bytes for each of its `steps`.
pub fn slow_component(functions: usize, steps: usize) -> Vec<u8> {
    let step = "(local.set $x (i64.xor (local.get $x) (i64.mul (local.get $y) (local.get $x))))
        (if (i64.eqz (local.get $x)) (then (local.set $y (local.get $x))))";
    let body = step.repeat(steps);
    let function = format!("(func (param $x i64) (param $y i64) (result i64) {body} (local.get $x))");
    // On one line: lines of items are looked at for imports.
    let items = function.replace('\n', " ").repeat(functions);
    stored(&guest_text(&items, "(call $ok)", "(call $ok)"))
}
