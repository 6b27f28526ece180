//! Components as other people's tools make them, with all of WASI that these ask for and nothing of ours in
//! between: they run as they are, and three replicas of them stay alike.

use std::path::Path;
use std::process::Command;

use wasi_preview1_component_adapter_provider as adapter;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use super::gallery::plays;
use super::languages::{new, path};
use super::process::directory;

/// Runs a tool in a project.
fn run(project: &Path, tool: &str, arguments: &[&str], environment: &[(&str, &str)]) {
    let mut command = Command::new(tool);
    command.args(arguments).current_dir(project).env("PATH", path()).envs(environment.iter().copied());
    let output = command.output().unwrap_or_else(|why| panic!("{tool}: {why}"));
    assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The project of a new stored counter.
fn project(parent: &Path, language: &str) -> std::path::PathBuf {
    new(parent, language, "stored").ok();
    parent.join("tally")
}

/// A component of a core module that says which world it is of, as `wasm-tools component new
/// --realloc-via-memory-grow` makes it with the published adapter, which wants memory before the guest has
/// begun.
fn adapted(core: &[u8]) -> Vec<u8> {
    let encoder = ComponentEncoder::default().realloc_via_memory_grow(true).module(core).unwrap();
    let (name, bytes) =
        (adapter::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, adapter::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER);
    encoder.adapter(name, bytes).unwrap().encode().unwrap()
}

#[test]
#[ignore = "takes Go: make test-guests"]
fn what_go_and_the_published_adapter_make_plays_the_counters_scenario() {
    let directory = directory();
    let project = project(directory.path(), "go");
    let target = [("GOOS", "wasip1"), ("GOARCH", "wasm")];
    run(&project, "go", &["build", "-buildmode=c-shared", "-o", "core.wasm", "."], &target);
    let mut core = std::fs::read(project.join("core.wasm")).unwrap();
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(project.join("wit")).unwrap();
    let world = resolve.select_world(&[package], Some("stored")).unwrap();
    embed_component_metadata(&mut core, &resolve, world, StringEncoding::UTF8).unwrap();
    let component = directory.path().join("adapted.wasm");
    std::fs::write(&component, adapted(&core)).unwrap();
    plays("counter", &component.display().to_string(), "40");
}

#[test]
#[ignore = "takes componentize-js: make test-guests"]
fn what_componentize_js_makes_with_clocks_randomness_and_streams_plays_the_counters_scenario() {
    let directory = directory();
    let project = project(directory.path(), "js");
    let arguments =
        ["machine.js", "-w", "wit", "-n", "stored", "-d", "http", "fetch-event", "-o", "full.wasm"];
    run(&project, "componentize-js", &arguments, &[]);
    plays("counter", &project.join("full.wasm").display().to_string(), "40");
}

/// Adds lines to a file of a template.
fn insert(file: &Path, behind: &str, lines: &str) {
    let source = std::fs::read_to_string(file).unwrap();
    let (before, after) = source.split_once(behind).expect("the template has the place");
    std::fs::write(file, format!("{before}{behind}{lines}{after}")).unwrap();
}

/// What Python's machine does besides with each input: the clock that it reads is the log's, and what it
/// draws is the same on all replicas, or their hashes would differ at the scenario's end.
const CLOCK_AND_CHANCE_IN_PYTHON: &str = "        import os, time
        assert time.time_ns() // 1_000_000 == context.time
        store.set(b\"drawn\", os.urandom(8))
";

#[test]
#[ignore = "takes componentize-py: make test-guests"]
fn what_componentize_py_makes_with_all_of_wasi_plays_the_counters_scenario() {
    let directory = directory();
    let project = project(directory.path(), "python");
    let apply = "def apply(self, context: Context, input: Input) -> bytes:\n";
    insert(&project.join("machine.py"), apply, CLOCK_AND_CHANCE_IN_PYTHON);
    let arguments = ["-d", "wit", "-w", "stored", "componentize", "machine", "-o", "full.wasm"];
    run(&project, "componentize-py", &arguments, &[]);
    plays("counter", &project.join("full.wasm").display().to_string(), "40");
}

/// The same with each command in Rust, by the standard library, which is asked for more besides.
const CLOCK_AND_CHANCE_IN_RUST: &str = "        use std::hash::{BuildHasher, RandomState};
        const DRAWN: Table<(), i64> = Table::new(b\"drawn\");
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(since.as_millis(), u128::from(change.time_ms()));
        eprintln!(\"it is {since:?}, {:?}\", std::env::args());
        DRAWN.set(store, &(), &(RandomState::new().hash_one(step) as i64));
";

/// Builds a project in Rust for WASI 0.2, with rustup's target or with Debian's source of the standard
/// library.
fn rust_for_wasi(project: &Path) -> Vec<u8> {
    const TARGET: &str = "wasm32-wasip2";
    // The standard library takes a minute to compile.
    let kept = concat!(env!("CARGO_TARGET_TMPDIR"), "/machines");
    let build = ["build", "--release", "--target", TARGET, "--target-dir", kept];
    let built = Path::new(kept).join(TARGET).join("release/tally.wasm");
    let libraries = Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output();
    let libraries = String::from_utf8(libraries.unwrap().stdout).unwrap();
    if Path::new(libraries.trim()).is_dir() {
        run(project, "cargo", &build, &[]);
        return std::fs::read(built).unwrap();
    }
    const WASI_LIBC: &str = "-C linker-flavor=wasm-ld -C link-self-contained=no -L /usr/lib/wasm32-wasi \
                             -C link-arg=/usr/lib/wasm32-wasi/crt1-reactor.o -C link-arg=-lc";
    let environment = [
        ("RUSTC", "/usr/bin/rustc"),
        ("RUSTC_BOOTSTRAP", "1"),
        ("CARGO_TARGET_WASM32_WASIP2_LINKER", "wasm-ld"),
        ("CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS", WASI_LIBC),
    ];
    let with_std: Vec<&str> = build.into_iter().chain(["-Zbuild-std=std,panic_abort"]).collect();
    run(project, "/usr/bin/cargo", &with_std, &environment);
    adapted(&std::fs::read(built).unwrap())
}

#[test]
#[ignore = "takes Rust's standard library for WASI: make test-guests"]
fn what_rust_makes_with_its_standard_library_plays_the_counters_scenario() {
    let directory = directory();
    let project = project(directory.path(), "rust");
    insert(&project.join("src/lib.rs"), "counter::command(command)?;\n", CLOCK_AND_CHANCE_IN_RUST);
    let component = directory.path().join("wasi.wasm");
    std::fs::write(&component, rust_for_wasi(&project)).unwrap();
    plays("counter", &component.display().to_string(), "40");
}
