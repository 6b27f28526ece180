//! `statehouse apply`: one command.

use clap::Args;

use super::{Global, output, payload};
use crate::machine::batch::Numbered;

/// Send a command to a machine
#[derive(Debug, Args)]
#[command(
    after_help = "The guest's answer goes to standard output. Ends with 1 if the guest refuses or fails.\n\n\
        Examples:\n  \
        statehouse apply notes 'remember the milk'\n  \
        statehouse apply notes @command.bin\n  \
        echo 01ff | statehouse apply counter - --hex\n  \
        statehouse apply counter 5 --session 7 --number 1"
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
    /// The session that the command is of, by its id: it may be sent again, and is applied once
    #[arg(long, value_name = "ID", requires = "number")]
    session: Option<u64>,
    /// Which of the session's commands it is, from 1
    #[arg(long, value_name = "N", requires = "session")]
    number: Option<u64>,
    /// Outcomes of the session's commands up to this number are not asked for again
    #[arg(long, value_name = "N", requires = "session", default_value_t = 0)]
    acknowledged: u64,
}

impl Apply {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let command = payload::read(&self.command, self.hex)?;
        let client = global.client()?;
        let applied = match self.session.zip(self.number) {
            None => client.apply(&self.machine, command).await?,
            Some((session, number)) => {
                let numbered = Numbered { session, number, acknowledged: self.acknowledged };
                client.apply_numbered(&self.machine, command, numbered).await?
            }
        };
        output::outcome(&applied.outcome, (applied.index, applied.revision), global.json, self.hex)
    }
}
