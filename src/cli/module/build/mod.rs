//! `statehouse module build`: from a project's sources to a component, by its language's own tools.
//!
//! What turns a core module into a component is part of this program. What comes out has passed the checks
//! that a node makes at upload, so that what is wrong is told here, by name. Never: a download by this
//! program itself; it says what is missing and how to get it.
//!
//! # Layout
//! - `toolchain`: which tools there are, and what to do about those there are not; one function a language;
//!   `rust`: which compiler
//! - `component`: from a core module to a component; `origin`: where the project asks for an import

mod component;
mod origin;
mod rust;
mod toolchain;

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use serde_json::json;

use self::origin::Import;
use super::project::{Project, ProjectWorld};
use crate::cli::{Global, output};
use crate::id::Digest;
use crate::wasm::compile::Compiler;
use crate::wasm::validate::{Limits, Rejected, inspect};

/// What a language's tools gave.
pub enum Built {
    /// A core module, which says or does not say of which world it is.
    Core(PathBuf),
    /// A component.
    Component(PathBuf),
}

/// Build a project's component with its language's tools; prints its digest and size
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        statehouse module build\n  \
        statehouse module build rate-limiter\n  \
        statehouse machine create limits --module rate-limiter/rate-limiter.component.wasm")]
pub struct Build {
    /// The project's folder
    #[arg(default_value = ".")]
    directory: PathBuf,
    /// The world that it is of, where its files do not say
    #[arg(long)]
    world: Option<ProjectWorld>,
}

impl Build {
    pub fn run(self, global: &Global) -> anyhow::Result<()> {
        let mut project = Project::of(&self.directory)?;
        project.world = self.world.unwrap_or(project.world);
        let bytes = build(&self.directory, &project)?;
        let file = self.directory.join(format!("{}.component.wasm", project.name));
        write(&file, &bytes)?;
        let digest = Digest::of(&bytes);
        if global.json {
            let told = json!({
                "file": file.display().to_string(),
                "digest": digest.to_string(),
                "bytes": bytes.len(),
                "language": project.language.name(),
                "world": project.world.name(),
            });
            return Ok(output::json(&told)?);
        }
        output::line(format_args!("file    {}", file.display()))?;
        output::line(format_args!("digest  {digest}"))?;
        output::line(format_args!("bytes   {}", bytes.len()))?;
        output::line(format_args!("world   {}", project.world.name()))?;
        Ok(())
    }
}

/// The component of a project, as a node takes it.
fn build(directory: &Path, project: &Project) -> anyhow::Result<Vec<u8>> {
    // Tools run in the project's folder: a path relative to ours would not be found there.
    let directory =
        directory.canonicalize().with_context(|| format!("cannot enter {}", directory.display()))?;
    let bytes = match toolchain::run(&directory, project)? {
        Built::Component(file) => read(&file)?,
        Built::Core(file) => {
            component::of(&read(&file)?, project, |import| origin::tell(import, &directory, project))?
        }
    };
    check(&bytes, project, |import| origin::tell(import, &directory, project))?;
    Ok(bytes)
}

/// What a node would say at upload, and whether it is of the world that the project is of.
fn check(bytes: &[u8], project: &Project, origin: impl Fn(Import) -> String) -> anyhow::Result<()> {
    let inspected = inspect(bytes, &Limits::default(), &Compiler::InProcess).map_err(|why| {
        let told = |why: &Rejected| match why {
            Rejected::Import { name, .. } => {
                format!("{why}{}", origin(Import { module: name, function: "" }))
            }
            _ => why.to_string(),
        };
        match why.each() {
            [why] => anyhow!("it was built, but no node would take it: {}", told(why)),
            all => anyhow!(
                "it was built, but no node would take it, for {} reasons:\n  {}",
                all.len(),
                all.iter().map(told).collect::<Vec<_>>().join("\n  ")
            ),
        }
    })?;
    if inspected.world.name() != project.world.name() {
        bail!(
            "the component is of the world `{}`, the project is said to be of `{}`: change `world` in {} or \
             what it exports",
            inspected.world.name(),
            project.world.name(),
            super::project::FILE
        );
    }
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file)
        .with_context(|| format!("the tools ended well, but {} cannot be read", file.display()))
}

/// Replaces the file as a whole, so that nobody pushes half of it.
fn write(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let unfinished = file.with_extension("wasm.unfinished");
    std::fs::write(&unfinished, bytes).with_context(|| format!("cannot write {}", unfinished.display()))?;
    std::fs::rename(&unfinished, file).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::module::project::Language;

    const NOTES: &[u8] = include_bytes!("../../../../guests/notes/notes.component.wasm");

    fn told(bytes: &[u8], world: ProjectWorld) -> String {
        let project = Project { name: "tally".into(), language: Language::Rust, world };
        let origin = |import: Import| format!("; {} is asked for here", import.module);
        check(bytes, &project, origin).unwrap_err().to_string()
    }

    #[test]
    fn another_world_than_the_project_is_of_is_told() {
        let told = told(NOTES, ProjectWorld::Resident);
        for part in ["of the world `stored`", "to be of `resident`", "change `world` in statehouse.toml"] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn what_no_node_would_take_is_told_with_the_origin_of_the_import() {
        let component = wat::parse_str("(component (import \"wasi:http/types@0.2.3\" (instance)))").unwrap();
        let told = told(&component, ProjectWorld::Stored);
        for part in ["no node would take it", "the import wasi:http/types@0.2.3", "is asked for here"] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn a_component_that_is_too_large_is_told_with_the_limit() {
        let mut large = NOTES.to_vec();
        large.resize((64 << 20) + 1, 0);
        let told = told(&large, ProjectWorld::Stored);
        assert!(told.contains("67108865 bytes") && told.contains("67108864"), "{told}");
    }
}
