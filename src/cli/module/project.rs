//! A project of a machine: its language, its world, its name.
//!
//! `statehouse.toml` says them; where it is missing, they are told from the files that such projects have.
//! Never: a guess between two languages.

use std::path::Path;

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The file that says what a project is.
pub const FILE: &str = "statehouse.toml";

/// A language that machines are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    Rust,
    Go,
    #[value(alias = "javascript")]
    Js,
    #[value(alias = "typescript")]
    Ts,
    Python,
    C,
    Zig,
}

/// The world that a machine is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProjectWorld {
    /// The state is in the host's ordered map: the usual choice
    Stored,
    /// The state is in the component's own memory, which saves and restores it
    Resident,
}

impl Language {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Language::Rust => "rust",
            Language::Go => "go",
            Language::Js => "js",
            Language::Ts => "ts",
            Language::Python => "python",
            Language::C => "c",
            Language::Zig => "zig",
        }
    }

    /// As people write it.
    pub fn title(self) -> &'static str {
        match self {
            Language::Rust => "Rust",
            Language::Go => "Go",
            Language::Js => "JavaScript",
            Language::Ts => "TypeScript",
            Language::Python => "Python",
            Language::C => "C",
            Language::Zig => "Zig",
        }
    }

    /// The file that only projects of this language have.
    fn mark(self) -> &'static str {
        match self {
            Language::Rust => "Cargo.toml",
            Language::Go => "go.mod",
            Language::Ts => "machine.ts",
            Language::Js => "machine.js",
            Language::Python => "machine.py",
            Language::C => "machine.c",
            Language::Zig => "machine.zig",
        }
    }
}

impl ProjectWorld {
    /// As the contract names it.
    pub fn name(self) -> &'static str {
        match self {
            ProjectWorld::Stored => "stored",
            ProjectWorld::Resident => "resident",
        }
    }
}

/// What a project is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Project {
    /// What its component's file is called.
    pub name: String,
    pub language: Language,
    pub world: ProjectWorld,
}

impl Project {
    /// Finds out what is in a directory.
    pub fn of(directory: &Path) -> anyhow::Result<Project> {
        let file = directory.join(FILE);
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                let project: Project =
                    toml::from_str(&text).with_context(|| format!("{} is not understood", file.display()))?;
                check_name(&project.name).with_context(|| file.display().to_string())?;
                Ok(project)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Project::guess(directory),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    fn guess(directory: &Path) -> anyhow::Result<Project> {
        let shown = directory.display();
        if !directory.is_dir() {
            bail!("{shown} is not a directory: name the one with the project, or go there");
        }
        let found: Vec<Language> = Language::value_variants()
            .iter()
            .copied()
            .filter(|language| directory.join(language.mark()).is_file())
            .collect();
        let language = match found.as_slice() {
            [language] => *language,
            [] => bail!(
                "{shown} is no project of a machine: it has no {FILE}, nor one of {}; `statehouse module \
                 new` writes one",
                Language::value_variants()
                    .iter()
                    .map(|language| language.mark())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            several => bail!(
                "{shown} could be a project in {}: say which in {FILE}, as `language = \"{}\"`, with a name \
                 and a world",
                several.iter().map(|language| language.title()).collect::<Vec<_>>().join(" or in "),
                several[0].name()
            ),
        };
        let full = directory.canonicalize()?;
        let name = full.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let resident = directory.join("gen/resident.h").is_file()
            || directory.join("gen/statehouse_machine_snapshot_stream").is_dir();
        let world = if resident { ProjectWorld::Resident } else { ProjectWorld::Stored };
        Ok(Project { name, language, world })
    }
}

/// The most characters of a name.
const NAME_CHARS_MAX: usize = 60;

/// A name that all languages' tools take.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    let fits = (1..=NAME_CHARS_MAX).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && !name.contains("--")
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if fits {
        return Ok(());
    }
    bail!(
        "{name:?} is not a name for a project: 1 to {NAME_CHARS_MAX} characters of a-z, 0-9 and single \
         hyphens, beginning with a letter, are one, like rate-limiter"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_all_tools_take() {
        for name in ["a", "rate-limiter", "v2"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "2v", "Counter", "a_b", "a b", "-a", "a-", "a--b", "../a", "ä", &"a".repeat(61)] {
            assert!(check_name(name).unwrap_err().to_string().contains("rate-limiter"), "{name}");
        }
    }

    #[test]
    fn a_project_is_told_from_its_files_and_never_guessed_between_two() {
        let directory = tempfile::tempdir().unwrap();
        let told = || Project::of(directory.path()).unwrap_err().to_string();
        assert!(told().contains("Cargo.toml"), "{}", told());
        std::fs::write(directory.path().join("machine.c"), "").unwrap();
        std::fs::create_dir(directory.path().join("gen")).unwrap();
        std::fs::write(directory.path().join("gen/resident.h"), "").unwrap();
        let project = Project::of(directory.path()).unwrap();
        assert_eq!((project.language, project.world), (Language::C, ProjectWorld::Resident));
        std::fs::write(directory.path().join("machine.py"), "").unwrap();
        assert!(told().contains("Python or in C"), "{}", told());
        std::fs::write(
            directory.path().join(FILE),
            "name = \"x\"\nlanguage = \"python\"\nworld = \"stored\"\n",
        )
        .unwrap();
        let project = Project::of(directory.path()).unwrap();
        assert_eq!((project.name.as_str(), project.language), ("x", Language::Python));
        std::fs::write(
            directory.path().join(FILE),
            "name = \"x\"\nlanguage = \"cobol\"\nworld = \"stored\"\n",
        )
        .unwrap();
        let told = format!("{:#}", Project::of(directory.path()).unwrap_err());
        assert!(told.contains("statehouse.toml") && told.contains("cobol"), "{told}");
    }
}
