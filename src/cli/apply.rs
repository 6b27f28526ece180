//! `statehouse apply`: one command.

use clap::Args;

use super::{Global, output, payload};

/// Send a command to a machine
#[derive(Debug, Args)]
#[command(
    after_help = "The guest's answer goes to standard output. Ends with 1 if the guest refuses or fails.\n\n\
        Examples:\n  \
        statehouse apply notes 'remember the milk'\n  \
        statehouse apply notes @command.bin\n  \
        echo 01ff | statehouse apply counter - --hex"
)]
pub struct Apply {
    /// The machine
    #[arg(value_name = "NAME")]
    machine: String,
    /// The command, as the guest will see it
    #[arg(value_name = "TEXT|@FILE|-", allow_negative_numbers = true)]
    command: String,
    /// The command is given, and the answer shown, as hexadecimal digits
    #[arg(long)]
    hex: bool,
}

impl Apply {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let command = payload::read(&self.command, self.hex)?;
        let applied = global.client()?.apply(&self.machine, command).await?;
        output::outcome(&applied.outcome, (applied.index, applied.revision), global.json, self.hex)
    }
}
