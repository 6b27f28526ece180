//! Checks how the code is laid out and written: the arrows between modules, where foreign libraries may be
//! used, the sizes of files, functions and lines, and that whatever is risky carries its reason.
//!
//! Every finding names the file, the line
//! and what to do. Where breaking a size makes the code plainer, say why in a comment that starts with
//! `tidy: long function:` or `tidy: long file:`, right above the function or among the file's first lines.

#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use source::Source;

/// Where the project's own Rust lives.
const ROOTS: [&str; 6] = ["src", "proto", "tests", "benches", "examples", "guests"];

/// Reads all Rust files under `directory`, except for what cargo built there.
fn read_all(project: &Path, directory: &Path, sources: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.map(|entry| entry.expect("a directory of the project can be listed")) {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "target" {
            read_all(project, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file is readable UTF-8");
            let relative = path.strip_prefix(project).expect("it is inside the project");
            sources.push(Source::read(&relative.to_string_lossy(), &text));
        }
    }
}

/// Marks the files of modules that others declare under `#[cfg(test)]`.
fn mark_test_modules(sources: &mut [Source]) {
    let mut stems = BTreeSet::new();
    for source in &*sources {
        let directory = rules::directory_of_submodules(&source.path);
        stems.extend(source.test_modules().into_iter().map(|name| format!("{directory}/{name}")));
    }
    for source in sources {
        let is_below = |stem: &String| {
            source.path.strip_prefix(stem.as_str()).is_some_and(|r| r == ".rs" || r.starts_with('/'))
        };
        source.is_test |= stems.iter().any(is_below);
    }
}

fn project_sources() -> Vec<Source> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for root in ROOTS {
        read_all(project, &project.join(root), &mut sources);
    }
    mark_test_modules(&mut sources);
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

#[test]
fn the_project_keeps_its_rules() {
    let sources = project_sources();
    assert!(sources.len() > 20, "only {} files found: are the roots still right?", sources.len());
    let findings: Vec<String> =
        sources.iter().flat_map(rules::check).map(|finding| finding.to_string()).collect();
    assert!(findings.is_empty(), "{} findings:\n{}\n", findings.len(), findings.join("\n"));
}

#[test]
fn every_module_of_the_crate_has_its_arrows() {
    let found: BTreeSet<String> =
        project_sources().iter().filter_map(|source| rules::top_module(&source.path)).collect();
    let unknown: Vec<_> = found.iter().filter(|module| rules::arrows_of(module).is_none()).collect();
    assert!(unknown.is_empty(), "no row in tests/tidy/rules.rs ARROWS for {unknown:?}: say what it may know");
}

/// A file that breaks every rule, each at the line that its comment names.
const BAD: &str = r####"use crate::wasm::engine; // 1: arrow, no header
use super::super::node::Node; // 2: arrow through super
use crate::{id::Index, storage::{log, entry}}; // 3: two arrows
use tokio::sync; // 4: not pure
use std::time::Instant; // 5: not pure

struct Registry_Manager { at: Instant } // 7: name

impl Registry_Manager {
    fn run(&mut self) {
        self.at = Instant::now(); // 11: clock
        self.value.unwrap();
        self.value.expect("");
        unsafe { std::hint::unreachable_unchecked() }
        let text = "unsafe { crate::wasm } // not code";
        let raw = r#"todo!() "quoted" "#;
        todo!();
    }
}

#[allow(dead_code)]
fn long() {
LONG
}

fn fine(c: char) -> bool {
    // Reason: the caller checked.
    let checked = unsafe { check(c) };
    let found = "x".find(c).expect("the caller looked for it before");
    matches!(c, '"' | '\'' | '{') && checked
}

#[cfg(test)]
mod tests {
    use crate::api::Server;
    fn allowed_here() { Some(1).unwrap(); }
}
"####;

#[test]
fn a_bad_file_is_caught_at_every_line() {
    let bad = BAD.replace("LONG", &"    step();\n".repeat(80)) + "// " + &"w".repeat(120) + "\n";
    let source = Source::read("src/machine/bad.rs", &bad);
    let found: BTreeSet<(usize, &str)> = rules::check(&source).iter().map(|f| (f.line, f.rule)).collect();
    let long = bad.lines().count();
    let expected = BTreeSet::from([
        (1, "header"),
        (1, "arrow"),
        (2, "arrow"),
        (3, "arrow"),
        (4, "library"),
        (5, "library"),
        (7, "name"),
        (11, "library"),
        (12, "reason"),
        (13, "reason"),
        (14, "reason"),
        (17, "unfinished"),
        (21, "reason"),
        (22, "long function"),
        (long, "long line"),
    ]);
    assert_eq!(found, expected);
}

#[test]
fn sizes_of_files_are_caught_and_tests_do_not_count() {
    let rules_of = |path: &str, text: &str| -> Vec<&'static str> {
        rules::check(&Source::read(path, text)).iter().map(|finding| finding.rule).collect()
    };
    let code = "//! A file.\n".to_owned() + &"fn f() {}\n".repeat(600);
    assert_eq!(rules_of("src/node/long.rs", &code), ["long file"]);
    assert_eq!(rules_of("src/main.rs", &code), ["long file"]);
    assert_eq!(rules_of("src/node/tests/long.rs", &code), [""; 0]);
    let reason = code.replace("//! A file.", "//! A file.\n//!\n//! tidy: long file: it is one table.");
    assert_eq!(rules_of("src/node/long.rs", &reason), [""; 0]);
    let tests = "//! A file.\n#[cfg(test)]\nmod tests {\n".to_owned() + &"fn f() {}\n".repeat(600) + "}\n";
    assert_eq!(rules_of("src/node/long.rs", &tests), [""; 0]);
}

#[test]
fn a_library_is_allowed_in_its_own_file() {
    let text = "//! A file.\nuse rocksdb::DB;\nuse ::raft::RawNode;\nuse crate::raft::Shard;\n";
    let found = |path: &str| -> Vec<usize> {
        rules::check(&Source::read(path, text)).iter().map(|finding| finding.line).collect()
    };
    assert_eq!(found("src/storage/db.rs"), [3, 4]);
    assert_eq!(found("src/node/mod.rs"), [2, 3]);
    assert_eq!(found("src/raft/group.rs"), [2]);
}

#[test]
fn modules_declared_for_tests_are_tests() {
    let mut sources = vec![
        Source::read("src/raft/mod.rs", "//! x\n#[cfg(test)]\nmod simulation;\nmod shard;\n"),
        Source::read("src/raft/simulation.rs", "//! x\n"),
        Source::read("src/raft/simulation/fault.rs", "//! x\n"),
        Source::read("src/raft/shard.rs", "//! x\n"),
    ];
    mark_test_modules(&mut sources);
    let tests: Vec<bool> = sources.iter().map(|source| source.is_test).collect();
    assert_eq!(tests, [false, true, true, false]);
}
