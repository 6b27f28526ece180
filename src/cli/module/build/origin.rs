//! Where a project asks for an import that no machine is given: the file and the line, and for Rust the crate
//! and what brings it. Looked for in the sources, because what is shipped has no names any more.
//!
//! Never: a guess. If the import's name is in no source, nothing is said.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::rust::Toolchain;
use crate::cli::module::project::{Language, Project};

/// Files that are looked through, and bytes of one, at most.
const FILES_MAX: usize = 20_000;
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Folders that hold no sources of the project.
const NOT_SOURCES: &[&str] = &["target", "build", "node_modules", "wit"];

/// An import: of a core module, or of a component, which names no function.
#[derive(Clone, Copy)]
pub struct Import<'a> {
    pub module: &'a str,
    pub function: &'a str,
}

impl Import<'_> {
    /// What a source has that asks for it. Functions that nobody defined are imported from `env`.
    fn traces(&self) -> Vec<String> {
        let Import { module, function } = self;
        match *module {
            "env" => [" ", "*"].map(|before| format!("{before}{function}(")).to_vec(),
            _ => vec![format!("\"{module}\""), format!("go:wasmimport {module} ")],
        }
    }
}

/// A sentence on where the project asks for it, or nothing.
pub fn tell(import: Import, directory: &Path, project: &Project) -> String {
    let place = match project.language {
        Language::Rust => in_crates(import, directory),
        Language::Go => in_packages(import, directory),
        _ => find(import, directory).map(|place| place.shown(directory)),
    };
    place.map(|place| format!("; it is asked for in {place}")).unwrap_or_default()
}

/// A line of a file.
struct Place {
    file: PathBuf,
    line: usize,
}

impl Place {
    /// Relative to the project if it is within.
    fn shown(&self, directory: &Path) -> String {
        format!("{}:{}", self.file.strip_prefix(directory).unwrap_or(&self.file).display(), self.line)
    }
}

/// The first place in a folder, in the order of paths.
fn find(import: Import, folder: &Path) -> Option<Place> {
    let traces = import.traces();
    let mut files = Vec::new();
    collect(folder, &mut files);
    files.sort();
    files.into_iter().find_map(|file| {
        let text = std::fs::read_to_string(&file).ok()?;
        let at = text.lines().position(|line| traces.iter().any(|trace| line.contains(trace)))?;
        Some(Place { file, line: at + 1 })
    })
}

/// Sources, in no order.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        let Ok(metadata) = entry.metadata() else { continue };
        let is_source = ["rs", "go", "c", "h", "zig", "js", "ts", "py"]
            .iter()
            .any(|end| path.extension().is_some_and(|found| found == *end));
        if metadata.is_dir() && !name.starts_with('.') && !NOT_SOURCES.contains(&name.as_str()) {
            collect(&path, files);
        } else if is_source && metadata.len() <= FILE_BYTES_MAX && files.len() < FILES_MAX {
            files.push(path);
        }
    }
}

/// In the crates that are compiled for the machine, the project's own first.
fn in_crates(import: Import, directory: &Path) -> Option<String> {
    let mut command = Toolchain::find().ok()?.cargo();
    command.args(["metadata", "--offline", "--format-version", "1", "--filter-platform"]);
    let output = command.arg(super::rust::TARGET).current_dir(directory).output().ok()?;
    let graph: Value = serde_json::from_slice(&output.stdout).ok()?;
    let packages = graph["packages"].as_array()?;
    let ways = ways(&graph, &directory.join("Cargo.toml"))?;
    let mut reached: Vec<&Vec<&str>> = ways.values().collect();
    reached.sort_by_key(|way| way.len());
    reached.into_iter().find_map(|way| {
        let package = packages.iter().find(|package| package["id"].as_str() == way.last().copied())?;
        let folder = Path::new(package["manifest_path"].as_str()?).parent()?;
        let place = find(import, &folder.join("src"))?.shown(directory);
        if way.len() == 1 {
            return Some(place);
        }
        let named = |id: &&str| packages.iter().find(|package| package["id"].as_str() == Some(*id));
        let names: Vec<&str> = way.iter().filter_map(named).filter_map(|p| p["name"].as_str()).collect();
        let (name, version) = (package["name"].as_str()?, package["version"].as_str()?);
        Some(format!("{place}, of the crate {name} {version}, which comes by {}", names.join(" -> ")))
    })
}

/// The packages that the one with this manifest depends on, itself included, each with the shortest way to
/// it.
fn ways<'a>(graph: &'a Value, manifest: &Path) -> Option<HashMap<&'a str, Vec<&'a str>>> {
    let of_manifest = |package: &&Value| package["manifest_path"].as_str().map(Path::new) == Some(manifest);
    let root = graph["packages"].as_array()?.iter().find(of_manifest)?["id"].as_str()?;
    let nodes = graph["resolve"]["nodes"].as_array()?;
    let mut ways = HashMap::from([(root, vec![root])]);
    let mut next = VecDeque::from([root]);
    while let Some(id) = next.pop_front() {
        let way = ways[id].clone();
        let node = nodes.iter().find(|node| node["id"].as_str() == Some(id));
        let needed = node.and_then(|node| node["deps"].as_array()).into_iter().flatten();
        // What only builds or tests need is not in the machine.
        let is_linked = |dependency: &&Value| {
            dependency["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|k| k["kind"].is_null()))
        };
        for id in needed.filter(is_linked).filter_map(|dependency| dependency["pkg"].as_str()) {
            if !ways.contains_key(id) {
                ways.insert(id, way.iter().copied().chain([id]).collect());
                next.push_back(id);
            }
        }
    }
    Some(ways)
}

/// In the packages that Go compiles, the project's own first.
fn in_packages(import: Import, directory: &Path) -> Option<String> {
    if let Some(place) = find(import, directory) {
        return Some(place.shown(directory));
    }
    let mut command = Command::new(super::toolchain::find("go", [])?);
    command.args(["list", "-deps", "-f", "{{if not .Standard}}{{.Dir}} {{.ImportPath}}{{end}}", "."]);
    let output = command.env("GOOS", "wasip1").env("GOARCH", "wasm").current_dir(directory).output().ok()?;
    String::from_utf8_lossy(&output.stdout).lines().find_map(|line| {
        let (folder, package) = line.rsplit_once(' ')?;
        let place = find(import, Path::new(folder))?;
        Some(format!("{}, of the package {package}", place.shown(directory)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_asks_for_it_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = directory.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        write("machine.c", "int f;\n\n__attribute__((import_module(\"other:thing/api\")))\nvoid g(void);\n");
        write("build/copy.c", "\"elsewhere\"\n");
        write("net/dial.zig", "extern fn dial(i32) i32;\n");
        let tell = |module, function, language| {
            let project = Project {
                name: "x".into(),
                language,
                world: crate::cli::module::project::ProjectWorld::Stored,
            };
            tell(Import { module, function }, directory.path(), &project)
        };
        assert_eq!(tell("other:thing/api", "g", Language::C), "; it is asked for in machine.c:3");
        assert_eq!(tell("env", "dial", Language::Zig), "; it is asked for in net/dial.zig:1");
        assert_eq!(tell("elsewhere", "", Language::C), "", "what tools have written is no source");
    }

    #[test]
    fn the_way_to_a_crate_is_the_shortest_and_not_through_what_only_tests_need() {
        let graph = serde_json::json!({
            "packages": [{ "id": "me", "manifest_path": "/me/Cargo.toml" }],
            "resolve": { "nodes": [
                { "id": "me", "deps": [
                    { "pkg": "a", "dep_kinds": [{ "kind": null }] },
                    { "pkg": "t", "dep_kinds": [{ "kind": "dev" }] },
                ] },
                { "id": "a", "deps": [{ "pkg": "b", "dep_kinds": [{ "kind": "build" }, { "kind": null }] }] },
                { "id": "b", "deps": [{ "pkg": "a", "dep_kinds": [{ "kind": null }] }] },
                { "id": "t", "deps": [{ "pkg": "b", "dep_kinds": [{ "kind": null }] }] },
            ] },
        });
        let ways = ways(&graph, Path::new("/me/Cargo.toml")).unwrap();
        assert_eq!(ways["b"], ["me", "a", "b"]);
        assert!(!ways.contains_key("t"));
    }
}
