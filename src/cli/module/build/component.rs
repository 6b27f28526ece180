//! From a core module to a component: what `wasm-tools component embed` and `new` do, in process.
//!
//! Languages whose bindings do not carry the contract's metadata get it here, of the world that the project
//! is of. What Go's runtime and C's library ask of WASI's first preview is answered by a module of our own
//! (`preview1.wat`).

use anyhow::{Context, anyhow, bail};
use wasmparser::{BinaryReaderError, Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata, metadata};
use wit_parser::Resolve;

use super::origin::Import;
use crate::cli::module::project::{Language, Project};

/// The contract, as this build has it.
const CONTRACT: &str = include_str!("../../../../wit/machine.wit");

/// `preview1.wat`, assembled. A test compares them.
const PREVIEW1: &[u8] = include_bytes!("preview1.wasm");
/// What modules that were compiled for it import it by.
const PREVIEW1_NAME: &str = "wasi_snapshot_preview1";

/// The component of a core module. `origin` tells where the project asks for an import.
pub fn of(core: &[u8], project: &Project, origin: impl Fn(Import) -> String) -> anyhow::Result<Vec<u8>> {
    let mut core = core.to_vec();
    check_imports(&core, project, origin)?;
    if !has_metadata(&core)? {
        if project.language == Language::Rust {
            bail!(
                "a core module without component metadata came out: the crate must use `statehouse-guest` \
                 and have `statehouse_guest::stored!(Machine);` or `resident!`, or `wit_bindgen::generate!` \
                 and `export!`"
            );
        }
        embed(&mut core, project)?;
    }
    let mut encoder = ComponentEncoder::default().validate(true).module(&core).map_err(unfit)?;
    if is_answered(project) {
        encoder = encoder.adapter(PREVIEW1_NAME, PREVIEW1).map_err(unfit)?;
    }
    encoder.encode().map_err(unfit)
}

/// Whether what asks for WASI's first preview is answered. Others than these do not ask for it, or bring what
/// answers.
fn is_answered(project: &Project) -> bool {
    matches!(project.language, Language::Go | Language::C | Language::Zig)
}

/// Names the first import that cannot become one of the component's.
fn check_imports(core: &[u8], project: &Project, origin: impl Fn(Import) -> String) -> anyhow::Result<()> {
    let unreadable = |e: BinaryReaderError| anyhow!("the core module cannot be read: {e:#}");
    for payload in Parser::new(0).parse_all(core) {
        let Payload::ImportSection(section) = payload.map_err(unreadable)? else { continue };
        for import in section.into_imports() {
            let import = import.map_err(unreadable)?;
            let (module, function) = (import.module, import.name);
            if is_known(module) || (module == PREVIEW1_NAME && is_answered(project)) {
                continue;
            }
            bail!(
                "the core module imports `{function}` from `{module}`, and no machine is given that{}: do \
                 without it, or without the feature that brings it",
                origin(Import { module, function })
            );
        }
    }
    Ok(())
}

/// Whether imports from it have a meaning to components: interfaces, and what bindings ask of the encoder.
fn is_known(module: &str) -> bool {
    ["statehouse:machine/", "wasi:", "[export]", "cm32p2"].iter().any(|start| module.starts_with(start))
        || module == "$root"
}

fn unfit(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("the core module does not fit the contract: {error:#}")
}

/// Whether bindings left a description of the world in it.
fn has_metadata(core: &[u8]) -> anyhow::Result<bool> {
    let (described, _) =
        metadata::decode(core).map_err(|e| anyhow!("the core module cannot be read: {e:#}"))?;
    Ok(described.is_some())
}

fn embed(core: &mut Vec<u8>, project: &Project) -> anyhow::Result<()> {
    let mut resolve = Resolve::default();
    let world = resolve
        .push_source("machine.wit", CONTRACT)
        .and_then(|package| resolve.select_world(&[package], Some(project.world.name())));
    let world = world.map_err(|e| anyhow!("{e:#}")).context("this build's own contract is broken")?;
    embed_component_metadata(core, &resolve, world, StringEncoding::UTF8).map_err(unfit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::module::project::ProjectWorld;

    fn of(core: &[u8], project: &Project) -> anyhow::Result<Vec<u8>> {
        super::of(core, project, |import| format!("; {} is asked for here", import.function))
    }

    fn project(language: Language) -> Project {
        Project { name: "tally".into(), language, world: ProjectWorld::Stored }
    }

    #[test]
    fn the_committed_module_is_what_its_text_says() {
        let assembled = wat::parse_str(include_str!("preview1.wat")).unwrap();
        assert_eq!(assembled, PREVIEW1, "assemble preview1.wat and commit preview1.wasm");
    }

    #[test]
    fn a_core_module_without_metadata_is_told_with_what_to_do() {
        let core = wat::parse_str("(module)").unwrap();
        let told = of(&core, &project(Language::Rust)).unwrap_err().to_string();
        assert!(told.contains("metadata") && told.contains("statehouse_guest::stored!"), "{told}");
        let told = of(&core, &project(Language::C)).unwrap_err().to_string();
        assert!(told.contains("behavior"), "what is missing is named: {told}");
        let told = of(b"no module", &project(Language::C)).unwrap_err().to_string();
        assert!(told.contains("cannot be read"), "{told}");
    }

    #[test]
    fn an_import_that_no_machine_is_given_is_told_with_its_origin() {
        let core = wat::parse_str(r#"(module (import "env" "dial" (func)))"#).unwrap();
        for language in [Language::Rust, Language::C] {
            let told = of(&core, &project(language)).unwrap_err().to_string();
            for part in ["`dial` from `env`", "; dial is asked for here", "do without it"] {
                assert!(told.contains(part), "{told}");
            }
        }
        let preview1 =
            r#"(module (import "wasi_snapshot_preview1" "fd_sync" (func (param i32) (result i32))))"#;
        let core = wat::parse_str(preview1).unwrap();
        let told = of(&core, &project(Language::Rust)).unwrap_err().to_string();
        assert!(told.contains("`fd_sync` from `wasi_snapshot_preview1`"), "{told}");
        let told = of(&core, &project(Language::Go)).unwrap_err().to_string();
        assert!(told.contains("behavior"), "that is answered, and only the exports are missing: {told}");
    }
}
