//! `statehouse module`: components, from a new project to a node.
//!
//! # Layout
//! - `new`: writes a project, from `templates`; `build`: makes its component; `project`: what a project is
//! - `run`: a component in memory, to try; `check`: whether it is deterministic
//! - here: components on a node

mod build;
mod check;
mod new;
mod project;
mod run;
mod templates;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{Global, output};
use crate::client::Client;
use crate::id::Digest;
use crate::node::request::ModuleInfo;

/// How often what is shown of a waiting time moves.
const TICK_INTERVAL: Duration = Duration::from_millis(200);

/// Write components, try them, upload them, and see which there are
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
        statehouse module new notes --lang rust\n  \
        statehouse module build notes\n  \
        statehouse module check notes/notes.component.wasm\n  \
        statehouse module push notes.component.wasm\n  \
        statehouse module list")]
pub enum Module {
    New(new::New),
    Build(build::Build),
    Run(run::Run),
    Check(check::Check),
    /// Upload a component, or a core module that carries component metadata; prints its digest
    #[command(after_help = "Examples:\n  \
            statehouse module push notes.component.wasm\n  \
            digest=$(statehouse module push notes.component.wasm)")]
    Push {
        /// The file
        file: PathBuf,
    },
    /// List all modules
    #[command(after_help = "Examples:\n  \
            statehouse module list\n  \
            statehouse module list --json | jq -r '.[].digest'")]
    List,
    /// Show one module
    #[command(after_help = "Examples:\n  \
            statehouse module show 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae")]
    Show {
        /// Its digest: 64 hexadecimal digits
        digest: Digest,
    },
}

impl Module {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        match self {
            Module::New(command) => command.run(global)?,
            Module::Build(command) => command.run(global)?,
            Module::Push { file } => {
                let module = push(&global.client()?, &file).await?;
                if global.json {
                    output::json(&module_json(&module))?;
                } else {
                    output::line(module.digest)?;
                }
            }
            Module::List => list(global, &global.client()?.modules().await?)?,
            Module::Show { digest } => show(global, &global.client()?.module(digest).await?)?,
            Module::Run(command) => command.run(global)?,
            Module::Check(command) => command.run(global)?,
        }
        Ok(())
    }
}

/// Uploads a file, with a progress bar on a terminal.
pub async fn push(client: &Client, file: &Path) -> anyhow::Result<ModuleInfo> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let bytes = Bytes::from(bytes);
    let label = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // Hidden where standard error is no terminal.
    let bar = ProgressBar::new(bytes.len() as u64).with_style(style()?).with_message(label.clone());
    let (progress, waiting) = (bar.clone(), waiting_style()?);
    let progress = move |sent| {
        progress.set_position(sent);
        if progress.length() == Some(sent) {
            progress.set_style(waiting.clone());
            progress.set_message("the node checks and compiles it");
            progress.enable_steady_tick(TICK_INTERVAL);
        }
    };
    let pushed = client.push_module(&label, bytes, progress).await;
    bar.finish_and_clear();
    Ok(pushed?)
}

/// Shows on a terminal what is waited for, and for how long by now: runtimes of scripts take half a minute to
/// compile.
fn waiting(what: &'static str) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new_spinner().with_style(waiting_style()?).with_message(what);
    bar.enable_steady_tick(TICK_INTERVAL);
    Ok(bar)
}

fn waiting_style() -> anyhow::Result<ProgressStyle> {
    Ok(ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}")?)
}

fn style() -> anyhow::Result<ProgressStyle> {
    Ok(ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {wide_msg}")?)
}

fn module_json(module: &ModuleInfo) -> Value {
    json!({
        "digest": module.digest.to_string(),
        "bytes": module.bytes,
        "world": module.world.name(),
        "label": module.label,
        "pushed": output::time(module.pushed),
        "compiled": module.compiled,
    })
}

fn list(global: &Global, modules: &[ModuleInfo]) -> anyhow::Result<()> {
    if global.json {
        output::json(&modules.iter().map(module_json).collect())?;
        return Ok(());
    }
    let row = |module: &ModuleInfo| {
        vec![
            module.digest.to_string(),
            module.bytes.to_string(),
            module.world.name().to_string(),
            output::time(module.pushed),
            output::printable(module.label.as_bytes()),
        ]
    };
    let rows: Vec<_> = modules.iter().map(row).collect();
    output::table(&["DIGEST", "BYTES", "WORLD", "PUSHED", "LABEL"], &rows)?;
    Ok(())
}

fn show(global: &Global, module: &ModuleInfo) -> anyhow::Result<()> {
    if global.json {
        output::json(&module_json(module))?;
        return Ok(());
    }
    output::line(format_args!("digest    {}", module.digest))?;
    output::line(format_args!("label     {}", output::printable(module.label.as_bytes())))?;
    output::line(format_args!("bytes     {}", module.bytes))?;
    output::line(format_args!("world     {}", module.world.name()))?;
    output::line(format_args!("pushed    {}", output::time(module.pushed)))?;
    output::line(format_args!("compiled  {}", if module.compiled { "yes" } else { "not yet" }))?;
    Ok(())
}
