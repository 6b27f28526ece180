//! What is refused before anything compiles it, sound and hostile components side by side.

use super::*;
use crate::wasm::testing::*;

fn refused(bytes: &[u8]) -> Rejected {
    match inspect(bytes, &Limits::default(), &Compiler::InProcess) {
        Ok(inspected) => panic!("it was taken, as {:?}", inspected.world),
        Err(rejected) => rejected,
    }
}

fn refused_text(text: &str) -> Rejected {
    refused(&wat::parse_str(text).unwrap())
}

/// The first thing that is wrong with a component.
fn first_refused(text: &str) -> Rejected {
    refused_text(text).each()[0].clone()
}

/// A sound guest with `items` added.
fn with_items(items: &str) -> Vec<u8> {
    stored(&guest_text(items, "(call $ok)", "(call $ok)"))
}

#[test]
fn the_gallery_is_taken() {
    for (bytes, world) in [(KV, World::Stored), (NOTES, World::Stored), (COUNTER, World::Resident)] {
        let inspected = inspect(bytes, &Limits::default(), &Compiler::InProcess).unwrap();
        assert_eq!((inspected.world, inspected.wasi), (world, false));
        assert!(inspected.exports.iter().any(|name| name == "statehouse:machine/behavior@0.1.0"));
        assert!(matches!(inspected.component, Cow::Borrowed(_)));
    }
}

#[test]
fn a_core_module_with_metadata_becomes_a_component() {
    let module = core_module(&guest_text("", "(call $ok)", "(call $ok)"), "stored");
    let inspected = inspect(&module, &Limits::default(), &Compiler::InProcess).unwrap();
    assert_eq!(inspected.world, World::Stored);
    let again = inspect(&inspected.component, &Limits::default(), &Compiler::InProcess).unwrap();
    assert_eq!(again.component, inspected.component);
}

#[test]
fn a_core_module_without_metadata_is_told_what_to_do() {
    let why = refused_text("(module (func (export \"f\")))").to_string();
    assert!(why.contains("wasm-tools component new"), "{why}");
}

#[test]
fn text_and_other_files_are_told_apart() {
    assert_eq!(refused(b"  (component)"), Rejected::Text);
    assert_eq!(refused(b";; text\n(module)"), Rejected::Text);
    assert!(refused(b"\x7fELF....").to_string().contains("7f454c46"));
    assert!(refused(b"").to_string().contains("empty"));
    assert!(refused(b"\0asm\x02\0\0\0").to_string().contains("0061736d02000000"));
}

#[test]
fn the_size_limit_is_named() {
    let limits = Limits { bytes_max: 1_000, ..Default::default() };
    let why = inspect(NOTES, &limits, &Compiler::InProcess).unwrap_err().to_string();
    assert!(why.contains(&NOTES.len().to_string()) && why.contains("1000"), "{why}");
}

#[test]
fn a_missing_export_is_named() {
    let why = refused_text("(component)").to_string();
    assert!(why.contains("statehouse:machine/behavior@0.1.0") && why.contains("stored"), "{why}");
    let why = refused_text("(component (import \"statehouse:machine/snapshot-stream@0.1.0\" (instance)))")
        .to_string();
    assert!(why.contains("behavior@0.1.0") && why.contains("resident"), "{why}");
}

#[test]
fn an_export_of_another_version_is_mentioned() {
    let text = "(component (instance $i) (export \"statehouse:machine/behavior@0.2.0\" (instance $i)))";
    let why = refused_text(text).to_string();
    assert!(why.contains("behavior@0.2.0, which is another version"), "{why}");
}

#[test]
fn an_export_of_another_type_is_named_with_its_function() {
    let text = "(component
        (core module $m (func (export \"f\")))
        (core instance $m (instantiate $m))
        (func $f (canon lift (core func $m \"f\")))
        (instance $i (export \"apply\" (func $f)) (export \"query\" (func $f)))
        (export \"statehouse:machine/behavior@0.1.0\" (instance $i)))";
    let Rejected::Type { name, detail } = refused_text(text) else { panic!("it has no wrong type") };
    assert_eq!(name, "statehouse:machine/behavior@0.1.0");
    assert!(!detail.is_empty());
}

#[test]
fn an_import_of_another_type_is_named_with_its_function() {
    let text = "(component (import \"statehouse:machine/store@0.1.0\" (instance
        (export \"set\" (func (param \"key\" string) (param \"value\" (list u8)))))))";
    let Rejected::Type { name, detail } = first_refused(text) else { panic!("it has no wrong type") };
    assert_eq!(name, "statehouse:machine/store@0.1.0");
    assert!(detail.contains("set differs"), "{detail}");
}

#[test]
fn imports_that_machines_may_not_have_are_named() {
    for (name, word) in [
        ("wasi:sockets/tcp@0.2.0", "networking"),
        ("wasi:http/types@0.2.3", "networking"),
        ("wasi:keyvalue/store@0.2.0", "small part of WASI"),
        ("wasi:io/streams@0.3.0", "small part of WASI"),
        ("statehouse:machine/snapshot@0.1.0", "the world resident"),
        ("statehouse:machine/store@0.2.0", "the world stored"),
        ("other:thing/api@1.0.0", "only interfaces"),
        ("plain-function", "only interfaces"),
    ] {
        let Rejected::Import { name: found, why } =
            first_refused(&format!("(component (import \"{name}\" (instance)))"))
        else {
            panic!("{name} was not refused as an import")
        };
        assert_eq!(found, name);
        assert!(why.contains(word), "{name}: {why}");
    }
}

#[test]
fn shared_libraries_may_bring_the_network_but_nothing_else_of_it() {
    let library = "(core module (@custom \"dylink.0\" \"\"))";
    let refused_with =
        |import: &str| first_refused(&format!("(component {library} (import \"{import}\" (instance)))"));
    assert!(matches!(refused_with("wasi:sockets/tcp@0.2.0"), Rejected::MissingExport { .. }));
    for name in ["wasi:sockets/tcp@0.3.0", "wasi:http/types@0.2.3"] {
        assert!(matches!(refused_with(name), Rejected::Import { .. }), "{name}");
    }
}

#[test]
fn everything_that_is_wrong_is_named() {
    let text = "(component
        (import \"wasi:http/types@0.2.3\" (instance))
        (import \"statehouse:machine/store@0.1.0\" (instance (export \"set\" (func))))
        (import \"wasi:clocks/wall-clock@0.2.6\" (instance))
        (import \"wasi:http/outgoing-handler@0.2.3\" (instance))
        (import \"wasi:keyvalue/store@0.2.0\" (instance)))";
    let rejected = refused_text(text);
    let names: Vec<&str> = rejected.each().iter().filter_map(Rejected::name).collect();
    let expected = [
        "wasi:http/types@0.2.3",
        "statehouse:machine/store@0.1.0",
        "wasi:http/outgoing-handler@0.2.3",
        "wasi:keyvalue/store@0.2.0",
        "statehouse:machine/behavior@0.1.0",
    ];
    assert_eq!(names, expected);
    let told = rejected.to_string();
    let together =
        "the imports wasi:http/types@0.2.3, wasi:http/outgoing-handler@0.2.3 are not allowed: a machine";
    assert!(told.contains(together), "{told}");
}

#[test]
fn a_refused_component_can_still_be_looked_at() {
    let bytes = wat::parse_str("(component (import \"wasi:http/types@0.2.3\" (instance)))").unwrap();
    let look = look(&bytes, &Limits::default(), &Compiler::InProcess).unwrap();
    assert_eq!(look.inspected.imports, ["wasi:http/types@0.2.3"]);
    assert_eq!((look.inspected.world, look.rejected.len()), (World::Stored, 2));
}

/// What is said of each thing that can be wrong has its name or value, the limit, and what to do.
#[test]
fn every_refusal_says_what_to_do() {
    let import = |items: &str| first_refused(&format!("(component {items})")).to_string();
    let many = |count: usize| wrapped(&many_functions(count, ""));
    for (told, parts) in [
        (
            import(""),
            ["behavior@0.1.0 is missing", "the world stored", "build the guest for one of the worlds"],
        ),
        (
            import("(instance $i) (export \"statehouse:machine/behavior@0.9.0\" (instance $i))"),
            [
                "behavior@0.1.0 is missing",
                "it has statehouse:machine/behavior@0.9.0",
                "build it with the machine.wit",
            ],
        ),
        (
            import("(import \"statehouse:machine/store@0.1.0\" (instance (export \"set\" (func))))"),
            ["store@0.1.0 does not have the type", "set differs", "build the guest with the machine.wit"],
        ),
        (
            import("(import \"a:b/c@1.0.0\" (instance))"),
            ["a:b/c@1.0.0", "not allowed", "leave out what asks"],
        ),
        (
            refused(&many(100_001)).to_string(),
            ["100001 functions", "at most 100000", "leave out dependencies"],
        ),
        (refused(b"\x7fELF").to_string(), ["7f454c46", "0061736d0d000100", "give the file"]),
        (refused(&NOTES[..2_000]).to_string(), ["cannot be read", "cut short", "sha256"]),
    ] {
        for part in parts {
            assert!(told.contains(part), "{part:?} is not in {told}");
        }
    }
}

#[test]
fn a_component_of_both_worlds_is_refused() {
    let text = "(component
        (import \"statehouse:machine/snapshot-stream@0.1.0\" (instance))
        (import \"statehouse:machine/store@0.1.0\" (instance)))";
    let Rejected::Import { name, why } = first_refused(text) else { panic!("it mixes two worlds") };
    assert_eq!(name, "statehouse:machine/store@0.1.0");
    assert!(why.contains("resident"), "{why}");
}

#[test]
fn the_small_part_of_wasi_and_further_exports_are_tolerated() {
    let mut component =
        wat::parse_str("(component (import \"wasi:clocks/wall-clock@0.2.6\" (instance)))").unwrap();
    assert!(matches!(refused(&component), Rejected::MissingExport { .. }));
    // The sections of a sound component, behind the import of this one.
    component.extend_from_slice(&NOTES[8..]);
    // Its indices are off by one now, so it is not valid: but not because of the import.
    assert!(!matches!(refused(&component), Rejected::Import { .. }));
}

#[test]
fn features_that_the_contract_leaves_out_are_refused_by_name() {
    for (items, word) in [
        ("(memory (export \"second\") 1)", "multi"),
        ("(table i64 1 funcref)", "64"),
        ("(global externref (ref.null extern))", "gc"),
        ("(tag)", "exceptions"),
        ("(type (struct))", "gc"),
        ("(func (param f32x4) unreachable)", ""),
        (
            "(func (result v128)
            (i32x4.relaxed_trunc_f32x4_s (v128.const i32x4 0 0 0 0)))",
            "relaxed SIMD",
        ),
        ("(func (drop (i32.atomic.load (i32.const 0))))", "threads"),
    ] {
        let Ok(module) = wat::parse_str(guest_text(items, "(call $ok)", "(call $ok)")) else {
            assert!(word.is_empty(), "{items} is no text");
            continue;
        };
        let why = refused(&core_module_of(module));
        assert!(why.to_string().to_lowercase().contains(&word.to_lowercase()), "{items}: {why}");
        let is_feature = |why: &Rejected| matches!(why, Rejected::Feature { .. });
        assert!(why.each().iter().all(is_feature), "{items}: {why:?}");
    }
}

#[test]
fn all_features_that_are_left_out_are_named_with_what_to_do() {
    let items = "(func (drop (i32.atomic.load (i32.const 0))))
        (func (drop (i32x4.relaxed_trunc_f32x4_s (v128.const i32x4 0 0 0 0))))";
    let text = guest_text(items, "(call $ok)", "(call $ok)");
    let rejected = refused(&core_module_of(wat::parse_str(text).unwrap()));
    let names: Vec<&str> = rejected.each().iter().filter_map(Rejected::name).collect();
    assert_eq!(names, ["relaxed-simd", "threads"]);
    for part in ["no -pthread", "-mno-relaxed-simd", "at offset 0x"] {
        assert!(rejected.to_string().contains(part), "{part:?} is not in {rejected}");
    }
}

#[test]
fn shared_memory_and_memory_over_the_limit_are_refused() {
    for (memory, word) in [
        ("(memory (export \"memory\") 1 2 shared)", "shared"),
        ("(memory (export \"memory\") 4097)", "268500992 bytes of memory from the start, at most 268435456"),
        ("(memory (export \"memory\") i64 1)", "memory64"),
    ] {
        let text = guest_text_with_memory(memory, "", "(call $ok)", "(call $ok)");
        let Ok(module) = wat::parse_str(&text) else { panic!("{memory} is no text") };
        let why = refused(&core_module_of(module)).to_string();
        assert!(why.contains(word), "{memory}: {why}");
    }
}

#[test]
fn a_table_over_the_limit_is_refused() {
    let module = core_module(&guest_text("(table 100000000 funcref)", "(call $ok)", "(call $ok)"), "stored");
    let told = refused(&module).to_string();
    let begins = "the module has 100000000 elements in one table, at most 100000 are allowed: let it have";
    assert!(told.starts_with(begins), "{told}");
}

#[test]
fn the_compile_bombs_are_refused() {
    let functions = wrapped(&many_functions(100_001, ""));
    assert!(matches!(refused(&functions), Rejected::OverBound { what: "functions", .. }));

    let long = wrapped(&many_functions(1, &"(drop (i32.const 0))".repeat(400_000)));
    assert!(matches!(refused(&long), Rejected::OverBound { what: "bytes in one function", .. }));

    let mut nested = b"\0asm\x0d\0\x01\0".to_vec();
    for _ in 0..2_000 {
        let inner = std::mem::replace(&mut nested, b"\0asm\x0d\0\x01\0".to_vec());
        section(&mut nested, 4, &inner);
    }
    assert!(matches!(refused(&nested), Rejected::OverBound { what: "levels of nested components", .. }));

    let mut beside = b"\0asm\x0d\0\x01\0".to_vec();
    for _ in 0..20_000 {
        section(&mut beside, 4, b"\0asm\x0d\0\x01\0");
    }
    assert!(matches!(refused(&beside), Rejected::OverBound { what: "components", .. }));
}

#[test]
fn types_nested_without_end_do_not_overflow_the_stack() {
    // A component type in a component type, and so on; each level is opened by four bytes.
    for (depth, named) in [(900usize, false), (1_000_000, true)] {
        let mut types = vec![1];
        for _ in 0..depth {
            types.extend_from_slice(&[0x41, 1, 1]);
        }
        types.extend_from_slice(&[0x41, 0]);
        let mut component = b"\0asm\x0d\0\x01\0".to_vec();
        section(&mut component, 7, &types);
        let rejected = refused(&component);
        assert_eq!(matches!(rejected, Rejected::OverBound { .. }), named, "{rejected}");
    }
}

#[test]
fn cut_and_damaged_components_are_answered_and_never_panic() {
    for bytes in [NOTES, COUNTER] {
        for length in (0..bytes.len()).step_by(bytes.len() / 60) {
            refused(&bytes[..length]);
        }
        let mut taken = 0;
        for round in 0..300_u64 {
            // A fixed sequence that visits all parts of the file.
            let random = blake3::hash(&round.to_le_bytes());
            let random = u64::from_le_bytes(random.as_bytes()[..8].try_into().unwrap());
            let mut damaged = bytes.to_vec();
            let at = random as usize % damaged.len();
            damaged[at] ^= 1 << (random >> 60 & 7);
            let looked = look_here(&damaged, &Limits::default(), &Compiler::InProcess);
            taken += usize::from(looked.is_ok_and(|look| look.rejected.is_empty()));
        }
        // Most of a component is code and data in which a flipped bit is as good as another: hence the
        // digest.
        assert!((1..300).contains(&taken), "{taken} of 300");
    }
}

#[test]
fn a_sound_guest_with_anything_allowed_is_taken() {
    let simd = "(func (result i32) (i32x4.extract_lane 0 (v128.const i32x4 1 2 3 4)))";
    let tail = "(func $f (result i32) (return_call $ok))";
    for items in [simd, tail, "(table 20000 funcref)", "(global (mut i64) (i64.const 5))"] {
        inspect(&with_items(items), &Limits::default(), &Compiler::InProcess).unwrap();
    }
}
