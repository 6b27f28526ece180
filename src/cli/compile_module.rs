//! `statehouse compile-module`: what a node runs to compile a module in a process of its own. Not for people.

use clap::Args;

use super::ExitCode;

/// Compile a module, for a node's own use
#[derive(Debug, Args)]
pub struct CompileModule {
    /// What the node says
    arguments: Vec<String>,
}

impl CompileModule {
    pub fn run(self) -> ExitCode {
        ExitCode::from(crate::wasm::compile::child(&self.arguments))
    }
}
