//! `statehouse module new`: a small project that builds with one command.
//!
//! The projects are the counters of `guests/templates`, which are built and tested as they are. Nothing is
//! downloaded, and nothing that is there is overwritten.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::project::{FILE, Language, Project, ProjectWorld, check_name};
use super::templates;
use crate::cli::{Global, output};

/// What stands for the project's name in a template, and for its world.
const NAME: &str = "machine-name";
const WORLD: &str = "machine-world";

/// Write a project for a machine: a counter with its test, ready to be built
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        statehouse module new rate-limiter --lang rust\n  \
        statehouse module new tally --lang python --world resident\n  \
        statehouse module build rate-limiter")]
pub struct New {
    /// What it is called; the folder is created here
    name: String,
    /// The language to write it in
    #[arg(long)]
    lang: Language,
    /// Where its state is
    #[arg(long, default_value = "stored")]
    world: ProjectWorld,
}

impl New {
    pub fn run(self, global: &Global) -> anyhow::Result<()> {
        check_name(&self.name)?;
        let project = Project { name: self.name, language: self.lang, world: self.world };
        let directory = PathBuf::from(&project.name);
        let files = write(&directory, &project)?;
        if global.json {
            return Ok(output::json(&json!({ "directory": project.name, "files": files }))?);
        }
        for file in files {
            output::line(format_args!("{}/{file}", project.name))?;
        }
        output::tell(format_args!("next: statehouse module build {0}, and see {0}/README.md", project.name));
        Ok(())
    }
}

/// Writes a project into a new directory, and answers its files.
fn write(directory: &Path, project: &Project) -> anyhow::Result<Vec<String>> {
    if let Err(error) = std::fs::create_dir(directory) {
        if error.kind() == std::io::ErrorKind::AlreadyExists {
            bail!("{} is there already: choose another name, or remove it", directory.display());
        }
        return Err(error).with_context(|| format!("cannot create {}", directory.display()));
    }
    let mut files = Vec::new();
    for (path, text) in files_of(project) {
        let file = directory.join(&path);
        let parent = file.parent().unwrap_or(directory);
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        files.push(path);
    }
    Ok(files)
}

/// The project's files by their paths.
fn files_of(project: &Project) -> Vec<(String, String)> {
    let filled = |text: &str| text.replace(NAME, &project.name).replace(WORLD, project.world.name());
    let templates = templates::of(project.language, project.world);
    let mut files: Vec<_> = templates.iter().map(|(path, text)| (path.to_string(), filled(text))).collect();
    let Project { name, language, world } = project;
    let what = format!(
        "# What this is, for `statehouse module build`.\nname = \"{name}\"\nlanguage = \"{}\"\nworld = \
         \"{}\"\n",
        language.name(),
        world.name()
    );
    files.push((FILE.to_string(), what));
    files.push(("README.md".to_string(), filled(&templates::readme(project.language))));
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    fn all() -> impl Iterator<Item = Project> {
        Language::value_variants().iter().flat_map(|language| {
            ProjectWorld::value_variants().iter().map(|world| Project {
                name: "tally".into(),
                language: *language,
                world: *world,
            })
        })
    }

    #[test]
    fn every_project_is_complete_and_of_its_world() {
        for project in all() {
            let files = files_of(&project);
            let has = |end: &str| files.iter().any(|(path, _)| path.ends_with(end));
            for end in ["README.md", ".gitignore", "scenario.txt", "wit/machine.wit", FILE] {
                assert!(has(end), "{project:?} has no {end}");
            }
            let all: String = files.iter().map(|(_, text)| text.as_str()).collect();
            // Zig's tests are in the file that they test.
            let tested = files.iter().any(|(path, _)| path.contains("test")) || all.contains("test \"what");
            assert!(tested, "{project:?} has no test");
            assert!(
                !all.contains(NAME) && !all.contains(WORLD),
                "{project:?} has a blank that was not filled"
            );
            let mut paths: Vec<_> = files.iter().map(|(path, _)| path).collect();
            paths.dedup();
            assert_eq!(paths.len(), files.len(), "{project:?} has a file twice");
        }
    }

    #[test]
    fn what_is_written_is_recognised_and_nothing_is_overwritten() {
        let parent = tempfile::tempdir().unwrap();
        for project in all() {
            let directory =
                parent.path().join(format!("{}-{}", project.language.name(), project.world.name()));
            write(&directory, &project).unwrap();
            assert_eq!(Project::of(&directory).unwrap(), project);
            // The files alone say the language too.
            std::fs::remove_file(directory.join(FILE)).unwrap();
            assert_eq!(Project::of(&directory).unwrap().language, project.language);
            let told = write(&directory, &project).unwrap_err().to_string();
            assert!(told.contains("is there already"), "{told}");
        }
    }
}
