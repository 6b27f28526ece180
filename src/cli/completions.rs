//! `statehouse completions`: scripts that let a shell complete our commands.

use clap::Args;
use clap_complete::Shell;

use super::ExitCode;

/// Print a script that lets a shell complete commands
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        source <(statehouse completions bash)\n  \
        statehouse completions zsh > ~/.zfunc/_statehouse\n  \
        statehouse completions fish > ~/.config/fish/completions/statehouse.fish")]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::definition(), "statehouse", &mut script);
        std::io::Write::write_all(&mut std::io::stdout().lock(), &script)?;
        Ok(ExitCode::SUCCESS)
    }
}
