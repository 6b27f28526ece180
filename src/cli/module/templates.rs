//! The files of new projects, from `guests/templates` and `guests/sdk-rust`, as they are in this build.

use super::project::{Language, ProjectWorld};

type File = (&'static str, &'static str);

/// The text of a file of `guests`.
macro_rules! guests {
    ($path:literal) => {
        include_str!(concat!("../../../guests/", $path))
    };
}

/// Files that both worlds have, and those of each: `path in the project <- path in guests`.
macro_rules! files {
    ($($path:literal <- $from:literal),* $(,)?) => {
        &[$(($path, guests!($from))),*]
    };
}

/// The contract, for people and for the languages' tools.
const CONTRACT: File = ("wit/machine.wit", include_str!("../../../wit/machine.wit"));

/// The files of a project but its README.
pub fn of(language: Language, world: ProjectWorld) -> Vec<File> {
    let (both, of_world): (&[File], &[File]) = match (language, world) {
        (Language::Rust, ProjectWorld::Stored) => (RUST, RUST_STORED),
        (Language::Rust, ProjectWorld::Resident) => (RUST, RUST_RESIDENT),
        (Language::Go, ProjectWorld::Stored) => (GO, GO_STORED),
        (Language::Go, ProjectWorld::Resident) => (GO, GO_RESIDENT),
        (Language::Js, ProjectWorld::Stored) => (JS, JS_STORED),
        (Language::Js, ProjectWorld::Resident) => (JS, JS_RESIDENT),
        (Language::Ts, ProjectWorld::Stored) => (TS, TS_STORED),
        (Language::Ts, ProjectWorld::Resident) => (TS, TS_RESIDENT),
        (Language::Python, ProjectWorld::Stored) => (PYTHON, PYTHON_STORED),
        (Language::Python, ProjectWorld::Resident) => (PYTHON, PYTHON_RESIDENT),
        (Language::C, ProjectWorld::Stored) => (C, C_STORED),
        (Language::C, ProjectWorld::Resident) => (C, C_RESIDENT),
        (Language::Zig, ProjectWorld::Stored) => (ZIG, ZIG_STORED),
        (Language::Zig, ProjectWorld::Resident) => (ZIG, ZIG_RESIDENT),
    };
    let contract = match language {
        // The crate that it uses has it.
        Language::Rust => ("statehouse-guest/wit/machine.wit", CONTRACT.1),
        _ => CONTRACT,
    };
    let ignore = (".gitignore", guests!("templates/gitignore"));
    let scenario = ("scenario.txt", guests!("templates/scenario.txt"));
    [both, of_world, &[contract, ignore, scenario]].concat()
}

/// The README: what is of the language, then what is of all.
pub fn readme(language: Language) -> String {
    let of_language = match language {
        Language::Rust => guests!("templates/rust/README.md"),
        Language::Go => guests!("templates/go/README.md"),
        Language::Js => guests!("templates/js/README.md"),
        Language::Ts => guests!("templates/ts/README.md"),
        Language::Python => guests!("templates/python/README.md"),
        Language::C => guests!("templates/c/README.md"),
        Language::Zig => guests!("templates/zig/README.md"),
    };
    format!("{of_language}\n{}", guests!("templates/README.md"))
}

const RUST: &[File] = files! {
    "Cargo.toml" <- "templates/rust/cargo.toml",
    "src/counter.rs" <- "templates/rust/counter.rs",
    // The crate is not published yet: it comes along.
    "statehouse-guest/Cargo.toml" <- "sdk-rust/Cargo.toml",
    "statehouse-guest/src/lib.rs" <- "sdk-rust/src/lib.rs",
    "statehouse-guest/src/component.rs" <- "sdk-rust/src/component.rs",
    "statehouse-guest/src/host.rs" <- "sdk-rust/src/host.rs",
    "statehouse-guest/src/json.rs" <- "sdk-rust/src/json.rs",
    "statehouse-guest/src/machine.rs" <- "sdk-rust/src/machine.rs",
    "statehouse-guest/src/place.rs" <- "sdk-rust/src/place.rs",
    "statehouse-guest/src/store.rs" <- "sdk-rust/src/store.rs",
    "statehouse-guest/src/table.rs" <- "sdk-rust/src/table.rs",
    "statehouse-guest/src/testing/mod.rs" <- "sdk-rust/src/testing/mod.rs",
    "statehouse-guest/src/testing/guest.rs" <- "sdk-rust/src/testing/guest.rs",
    "statehouse-guest/src/testing/script.rs" <- "sdk-rust/src/testing/script.rs",
    "statehouse-guest/src/testing/simulated.rs" <- "sdk-rust/src/testing/simulated.rs",
};
const RUST_STORED: &[File] = files! {
    "src/lib.rs" <- "templates/rust/stored/lib.rs",
    "src/tests.rs" <- "templates/rust/stored/tests.rs",
};
const RUST_RESIDENT: &[File] = files! {
    "src/lib.rs" <- "templates/rust/resident/lib.rs",
    "src/tests.rs" <- "templates/rust/resident/tests.rs",
};

const GO: &[File] = files! {
    "go.mod" <- "templates/go/go.mod.txt",
    "counter/counter.go" <- "templates/go/counter/counter.go",
    "counter/counter_test.go" <- "templates/go/counter/counter_test.go",
    "gen/wit/runtime/runtime.go" <- "templates/go/gen/wit/runtime/runtime.go",
    "gen/wit/types/types.go" <- "templates/go/gen/wit/types/types.go",
    "gen/statehouse_machine_events/empty.s" <- "templates/go/gen/statehouse_machine_events/empty.s",
    "gen/statehouse_machine_events/wit_bindings.go" <-
        "templates/go/gen/statehouse_machine_events/wit_bindings.go",
    "gen/statehouse_machine_leases/empty.s" <- "templates/go/gen/statehouse_machine_leases/empty.s",
    "gen/statehouse_machine_leases/wit_bindings.go" <-
        "templates/go/gen/statehouse_machine_leases/wit_bindings.go",
    "gen/statehouse_machine_log/empty.s" <- "templates/go/gen/statehouse_machine_log/empty.s",
    "gen/statehouse_machine_log/wit_bindings.go" <- "templates/go/gen/statehouse_machine_log/wit_bindings.go",
    "gen/statehouse_machine_types/wit_bindings.go" <-
        "templates/go/gen/statehouse_machine_types/wit_bindings.go",
};
const GO_STORED: &[File] = files! {
    "wit_exports.go" <- "templates/go/stored/wit_exports.go",
    "machine/machine.go" <- "templates/go/stored/machine/machine.go",
    "gen/statehouse_machine_store/empty.s" <- "templates/go/stored/gen/statehouse_machine_store/empty.s",
    "gen/statehouse_machine_store/wit_bindings.go" <-
        "templates/go/stored/gen/statehouse_machine_store/wit_bindings.go",
};
const GO_RESIDENT: &[File] = files! {
    "wit_exports.go" <- "templates/go/resident/wit_exports.go",
    "machine/machine.go" <- "templates/go/resident/machine/machine.go",
    "gen/statehouse_machine_snapshot_stream/empty.s" <-
        "templates/go/resident/gen/statehouse_machine_snapshot_stream/empty.s",
    "gen/statehouse_machine_snapshot_stream/wit_bindings.go" <-
        "templates/go/resident/gen/statehouse_machine_snapshot_stream/wit_bindings.go",
};

const JS: &[File] = files! {
    "package.json" <- "templates/js/package.json",
    "counter.js" <- "templates/js/counter.js",
    "test/host.js" <- "templates/js/test/host.js",
    "test/imports.js" <- "templates/js/test/imports.js",
    "test/machine.test.js" <- "templates/js/test/machine.test.js",
};
const JS_STORED: &[File] = files! { "machine.js" <- "templates/js/stored/machine.js" };
const JS_RESIDENT: &[File] = files! { "machine.js" <- "templates/js/resident/machine.js" };

const TS: &[File] = files! {
    "package.json" <- "templates/ts/package.json",
    "tsconfig.json" <- "templates/ts/tsconfig.json",
    "contract.d.ts" <- "templates/ts/contract.d.ts",
    "counter.ts" <- "templates/ts/counter.ts",
    "test/host.js" <- "templates/js/test/host.js",
    "test/imports.js" <- "templates/js/test/imports.js",
    "test/machine.test.js" <- "templates/ts/test/machine.test.js",
};
const TS_STORED: &[File] = files! { "machine.ts" <- "templates/ts/stored/machine.ts" };
const TS_RESIDENT: &[File] = files! { "machine.ts" <- "templates/ts/resident/machine.ts" };

const PYTHON: &[File] = files! {
    "counter.py" <- "templates/python/counter.py",
    "host.py" <- "templates/python/host.py",
    "test_machine.py" <- "templates/python/test_machine.py",
};
const PYTHON_STORED: &[File] = files! { "machine.py" <- "templates/python/stored/machine.py" };
const PYTHON_RESIDENT: &[File] = files! { "machine.py" <- "templates/python/resident/machine.py" };

const C: &[File] = files! {
    "counter.c" <- "templates/c/counter.c",
    "counter.h" <- "templates/c/counter.h",
};
const C_STORED: &[File] = files! {
    "machine.c" <- "templates/c/stored/machine.c",
    "world.h" <- "templates/c/stored/world.h",
    "test.c" <- "templates/c/stored/test.c",
    "gen/stored.c" <- "templates/c/stored/gen/stored.c",
    "gen/stored.h" <- "templates/c/stored/gen/stored.h",
};
const C_RESIDENT: &[File] = files! {
    "machine.c" <- "templates/c/resident/machine.c",
    "world.h" <- "templates/c/resident/world.h",
    "test.c" <- "templates/c/resident/test.c",
    "gen/resident.c" <- "templates/c/resident/gen/resident.c",
    "gen/resident.h" <- "templates/c/resident/gen/resident.h",
};

const ZIG: &[File] = files! {
    "counter.zig" <- "templates/zig/counter.zig",
};
const ZIG_STORED: &[File] = files! {
    "machine.zig" <- "templates/zig/stored/machine.zig",
    "gen/stored.c" <- "templates/c/stored/gen/stored.c",
    "gen/stored.h" <- "templates/c/stored/gen/stored.h",
};
const ZIG_RESIDENT: &[File] = files! {
    "machine.zig" <- "templates/zig/resident/machine.zig",
    "gen/resident.c" <- "templates/c/resident/gen/resident.c",
    "gen/resident.h" <- "templates/c/resident/gen/resident.h",
};
