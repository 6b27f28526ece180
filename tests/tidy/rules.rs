//! The rules themselves: tables first, then one function a rule.

use std::fmt;

use super::source::Source;

const LINE_CHARS_MAX: usize = 110;
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;
const MAIN_LINES_MAX: usize = 40;
/// The fewest characters that can be a reason.
const REASON_CHARS_MIN: usize = 8;

/// What each top-level module of the crate may know besides itself. A name with `::` is one file of a module.
const ARROWS: [(&str, &[&str]); 24] = [
    ("id", &[]),
    ("error", &["id"]),
    ("time", &[]),
    ("trace", &["id"]),
    ("inbox", &[]),
    ("priority", &[]),
    ("open_files", &[]),
    ("config", &["id", "error", "time"]),
    ("machine", &["id", "error"]),
    ("storage", &["id", "error", "time", "inbox", "priority", "config", "machine"]),
    ("wasm", &["id", "error", "time", "config", "machine"]),
    // A machine alone in memory: knows neither disks nor sockets nor the log, and only the program knows it.
    ("trial", &["id", "error", "time", "machine", "wasm"]),
    ("raft", &["id", "error", "time", "machine", "storage::entry"]),
    ("net", &["id", "error", "time", "inbox", "machine", "storage::entry", "raft::message", "raft::output"]),
    ("watch", &["id", "error", "time", "config", "machine", "storage", "raft", "net"]),
    ("catalog", &["id", "error", "time", "config", "machine", "storage", "raft", "net"]),
    (
        "node",
        &[
            "id",
            "error",
            "time",
            "trace",
            "inbox",
            "priority",
            "open_files",
            "config",
            "machine",
            "storage",
            "wasm",
            "raft",
            "net",
            "watch",
            "catalog",
        ],
    ),
    // The values of a node that messages are made of are a file without arrows of its own.
    ("proto", &["id", "error", "machine", "node::request"]),
    // Knows nothing of the crate.
    ("bbolt", &[]),
    ("client", &["id", "error", "time", "trace", "machine", "node::request", "proto"]),
    (
        "api",
        &[
            "id",
            "error",
            "time",
            "trace",
            "open_files",
            "bbolt",
            "config",
            "machine",
            "watch",
            "catalog",
            "node",
            "proto",
        ],
    ),
    (
        "cli",
        &[
            "id",
            "error",
            "time",
            "trace",
            "open_files",
            "bbolt",
            "config",
            "machine",
            // A component is checked before it is pushed, as a node would.
            "wasm::compile",
            "wasm::validate",
            "wasm::Codegen",
            "wasm::Compiler",
            "wasm::survey",
            "trial",
            "catalog",
            "node",
            "api",
            "client",
            "proto",
        ],
    ),
    ("main", &["cli"]),
    // The map of the crate: it names every module.
    ("lib", &["*"]),
];

/// A foreign thing and the only places that may name it.
struct Foreign {
    /// The beginning of a path; with a leading `*`, its end.
    path: &'static [&'static str],
    /// Beginnings of the paths of files that may.
    only_in: &'static [&'static str],
    /// Whether tests may too.
    tests_may: bool,
    instead: &'static str,
}

/// Where the Raft engine is driven.
const DRIVES_THE_ENGINE: [&str; 5] =
    ["src/raft/group", "src/raft/log_cache", "src/raft/membership", "src/raft/message", "src/raft/start"];

const FOREIGN: [Foreign; 12] = [
    Foreign {
        path: &["rocksdb"],
        only_in: &["src/storage/db.rs", "src/storage/db/"],
        tests_may: false,
        instead: "go through storage::db",
    },
    Foreign {
        path: &["raft"],
        only_in: &DRIVES_THE_ENGINE,
        tests_may: false,
        instead: "the engine is named only where it is driven; for our own module write crate::raft",
    },
    Foreign {
        path: &["protobuf"],
        only_in: &DRIVES_THE_ENGINE,
        tests_may: false,
        instead: "use prost: rust-protobuf must not see bytes from a network",
    },
    Foreign {
        path: &["wasmtime", "Config"],
        only_in: &["src/wasm/engine.rs"],
        tests_may: false,
        instead: "settings of the engine decide what machines compute: they are in wasm/engine.rs",
    },
    Foreign {
        path: &["wasmtime"],
        only_in: &["src/wasm/"],
        tests_may: false,
        instead: "go through crate::wasm",
    },
    Foreign {
        path: &["tonic"],
        only_in: &["src/api/", "src/client", "src/cli/", "src/proto/"],
        tests_may: true,
        instead: "go through api or client",
    },
    Foreign {
        path: &["*", "Instant", "now"],
        only_in: &["src/time.rs"],
        tests_may: true,
        instead: "use time::Clock",
    },
    Foreign {
        path: &["*", "SystemTime", "now"],
        only_in: &["src/time.rs", "guests/bad/clock/"],
        tests_may: true,
        instead: "use time::Clock",
    },
    Foreign { path: &["getrandom"], only_in: &["src/time.rs"], tests_may: true, instead: "use time::seed" },
    Foreign {
        path: &["rand"],
        only_in: &["guests/bad/randomness/"],
        tests_may: true,
        instead: "take a seed from time::seed",
    },
    Foreign {
        path: &["std", "hash", "RandomState"],
        only_in: &[],
        tests_may: true,
        instead: "take a seed from time::seed",
    },
    Foreign {
        path: &["anyhow"],
        only_in: &["src/cli/", "src/cli.rs", "src/main.rs"],
        tests_may: true,
        instead: "use an error enum: callers act on its kinds",
    },
];

/// Modules that must compute the same everywhere, and what they may not even name.
const PURE: [&str; 2] = ["machine", "raft"];
const IMPURE: [&[&str]; 13] = [
    &["tokio"],
    &["wasmtime"],
    &["rocksdb"],
    &["tonic"],
    &["rand"],
    &["getrandom"],
    &["std", "fs"],
    &["std", "net"],
    &["std", "env"],
    &["std", "process"],
    &["std", "thread"],
    &["std", "time", "Instant"],
    &["std", "time", "SystemTime"],
];

const EMPTY_NAMES: [&str; 8] = ["manager", "helper", "helpers", "util", "utils", "common", "misc", "stuff"];
const UNFINISHED: [&str; 3] = ["todo", "unimplemented", "dbg"];

/// A rule broken at a place.
#[derive(Debug)]
pub struct Finding {
    pub path: String,
    pub line: usize,
    pub rule: &'static str,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.what)
    }
}

/// All findings in one file.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Findings { source, found: Vec::new() };
    findings.header();
    findings.lengths();
    findings.functions();
    findings.names();
    findings.unfinished();
    findings.reasons();
    findings.arrows();
    findings.libraries();
    findings.found.sort_by_key(|finding| finding.line);
    findings.found
}

/// The top-level module of the crate that a file belongs to.
pub fn top_module(path: &str) -> Option<String> {
    let first = path.strip_prefix("src/")?.split('/').next()?;
    Some(first.strip_suffix(".rs").unwrap_or(first).to_owned())
}

/// What a module may know; `None` if the table does not say.
pub fn arrows_of(module: &str) -> Option<&'static [&'static str]> {
    ARROWS.iter().find(|(name, _)| *name == module).map(|(_, may)| *may)
}

/// Where the modules that a file declares have their files.
pub fn directory_of_submodules(path: &str) -> String {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    let own = ["/mod", "/lib", "/main"].iter().find_map(|name| stem.strip_suffix(name));
    own.unwrap_or(stem).to_owned()
}

struct Findings<'a> {
    source: &'a Source,
    found: Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, line: usize, rule: &'static str, what: String) {
        self.found.push(Finding { path: self.source.path.clone(), line, rule, what });
    }

    fn header(&mut self) {
        if !self.source.lines.first().is_some_and(|line| line.starts_with("//! ")) {
            self.add(
                1,
                "header",
                "begin with //!: what it is for, what it promises, what it must never do".into(),
            );
        }
    }

    fn lengths(&mut self) {
        let source = self.source;
        for (number, line) in source.lines.iter().enumerate() {
            let chars = line.chars().count();
            if chars > LINE_CHARS_MAX {
                self.add(
                    number + 1,
                    "long line",
                    format!("{chars} characters, at most {LINE_CHARS_MAX}: wrap it"),
                );
            }
        }
        let (lines, max) = match source.path.as_str() {
            "src/main.rs" => (source.lines.len(), MAIN_LINES_MAX),
            _ => (source.lines_without_tests(), FILE_LINES_MAX),
        };
        let excused = source.lines.iter().take(40).any(|line| line.starts_with("//! tidy: long file: "));
        if lines >= max && !excused {
            self.add(1, "long file", format!("{lines} lines without tests, under {max} expected: split it"));
        }
    }

    fn functions(&mut self) {
        let source = self.source;
        for at in 0..source.tokens.len() {
            let named = source.tokens.get(at + 1).is_some_and(|token| token.text != "(");
            if source.tokens[at].text != "fn" || !named {
                continue;
            }
            let Some(open) = source.body_of(at) else { continue };
            let (first, last) = (source.tokens[at].line, source.tokens[source.closing(open)].line);
            let lines = last - first + 1;
            if lines >= FUNCTION_LINES_MAX && !source.comments_at(first).contains("tidy: long function: ") {
                let name = &source.tokens[at + 1].text;
                let what = format!("{name} has {lines} lines, under {FUNCTION_LINES_MAX} expected: split it");
                self.add(first, "long function", what);
            }
        }
    }

    fn names(&mut self) {
        let source = self.source;
        let empty = |name: &str| words(name).find(|word| EMPTY_NAMES.contains(&word.as_str()));
        if let Some(word) = source.path.split('/').find_map(|part| empty(part.trim_end_matches(".rs"))) {
            self.add(1, "name", format!("{word:?} in the path says nothing: name what it is"));
        }
        for pair in source.tokens.windows(2) {
            let declares =
                matches!(pair[0].text.as_str(), "struct" | "enum" | "trait" | "fn" | "mod" | "type");
            if let Some(word) = empty(&pair[1].text).filter(|_| declares) {
                self.add(
                    pair[1].line,
                    "name",
                    format!("{word:?} in {} says nothing: name what it is", pair[1].text),
                );
            }
        }
    }

    fn unfinished(&mut self) {
        for pair in self.source.tokens.windows(2) {
            if pair[1].text == "!" && UNFINISHED.contains(&pair[0].text.as_str()) {
                self.add(pair[0].line, "unfinished", format!("{}! must not be delivered", pair[0].text));
            }
        }
    }

    fn reasons(&mut self) {
        let source = self.source;
        for (at, token) in source.tokens.iter().enumerate() {
            let explained = || comment_words(&source.comments_at(token.line)) >= REASON_CHARS_MIN;
            let is_method = at > 0 && source.tokens[at - 1].text == ".";
            let in_attribute = at > 1 && source.tokens[at - 1].text == "[";
            match token.text.as_str() {
                "unsafe" if !in_attribute && !explained() => {
                    self.add(token.line, "reason", "say in a comment above why this is sound".into());
                }
                "allow" if in_attribute && !explained() && !self.attribute_has_reason(at) => {
                    self.add(
                        token.line,
                        "reason",
                        "say in a comment above why this lint is wrong here".into(),
                    );
                }
                "unwrap"
                    if is_method
                        && source.starts_with(at + 1, &["(", ")"])
                        && !source.in_tests(token.line) =>
                {
                    let what = "use expect(\"why this cannot fail\"), or return an error";
                    self.add(token.line, "reason", what.into());
                }
                "expect" if is_method && !source.in_tests(token.line) => {
                    let message = source.tokens.get(at + 2).and_then(|token| token.literal.as_ref());
                    if message.is_some_and(|text| text.len() < REASON_CHARS_MIN) && !explained() {
                        self.add(token.line, "reason", "let the message say why this cannot fail".into());
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether the attribute around the token at `at` has `reason = "..."`.
    fn attribute_has_reason(&self, at: usize) -> bool {
        let end = self.source.closing(at - 1);
        (at..end).any(|at| self.source.starts_with(at, &["reason", "="]))
    }

    fn arrows(&mut self) {
        let source = self.source;
        let Some(module) = top_module(&source.path) else { return };
        let Some(may) = arrows_of(&module) else { return };
        let inside = source.path.matches('/').count() - usize::from(source.path.ends_with("/mod.rs"));
        for path in source.paths() {
            let parts = path.as_strs();
            let supers = parts.iter().take_while(|part| **part == "super").count();
            let target = match parts[0] {
                "crate" | "statehouse" => &parts[1..],
                "super" if supers >= inside => &parts[supers..],
                _ => continue,
            };
            let Some(name) = target.first().filter(|name| arrows_of(name).is_some()) else { continue };
            let with_file = target.get(1).map(|file| format!("{name}::{file}"));
            let allowed = *name == module
                || may.contains(&"*")
                || may.contains(name)
                || with_file.is_some_and(|file| may.contains(&file.as_str()));
            if !allowed && !source.in_tests(path.line) {
                let what = format!(
                    "{module} must not know {}: it may know {may:?} (ARROWS in tests/tidy/rules.rs)",
                    target.join("::")
                );
                self.add(path.line, "arrow", what);
            }
        }
    }

    fn libraries(&mut self) {
        let source = self.source;
        let Some(module) = top_module(&source.path) else { return };
        for path in source.paths() {
            let parts = path.as_strs();
            let in_tests = source.in_tests(path.line);
            if PURE.contains(&module.as_str())
                && !in_tests
                && IMPURE.iter().any(|impure| parts.starts_with(impure))
            {
                let what = format!("{module} is pure: {} may not be used in it", parts.join("::"));
                self.add(path.line, "library", what);
                continue;
            }
            let may = |foreign: &&Foreign| {
                (in_tests && foreign.tests_may)
                    || foreign.only_in.iter().any(|place| source.path.starts_with(place))
            };
            let broken =
                FOREIGN.iter().filter(|foreign| names(foreign.path, &parts)).find(|foreign| !may(foreign));
            if let Some(foreign) = broken {
                let what = format!(
                    "{} may be named only in {:?}: {}",
                    parts.join("::"),
                    foreign.only_in,
                    foreign.instead
                );
                self.add(path.line, "library", what);
            }
        }
    }
}

/// Whether `parts` begin with `pattern`, or end with it after its `*`.
fn names(pattern: &[&str], parts: &[&str]) -> bool {
    match pattern {
        ["*", end @ ..] => parts.ends_with(end),
        start => parts.starts_with(start),
    }
}

/// How many characters of a comment are its own words.
fn comment_words(comment: &str) -> usize {
    comment.trim_matches(|c: char| c == '/' || c == '!' || c == '*' || c.is_whitespace()).len()
}

/// The words of a name, in lower case: of `snake_case` and of `CamelCase`.
fn words(name: &str) -> impl Iterator<Item = String> {
    let mut words = vec![String::new()];
    for c in name.chars() {
        if c == '_' || c == '.' || c.is_uppercase() {
            words.push(String::new());
        }
        if c.is_alphanumeric() {
            words.last_mut().expect("there is always one word").extend(c.to_lowercase());
        }
    }
    words.into_iter().filter(|word| !word.is_empty())
}
