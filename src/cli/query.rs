//! `statehouse query`: one question.

use clap::{Args, ValueEnum};

use super::{Global, Usage, output, payload};
use crate::id::Index;
use crate::node::request::Consistency;

/// Ask a machine a question
#[derive(Debug, Args)]
#[command(
    after_help = "The guest's answer goes to standard output. Ends with 1 if the guest refuses or fails.\n\n\
        Examples:\n  \
        statehouse query notes all\n  \
        statehouse query notes all --consistency local --min-index 17\n  \
        statehouse query counter 00 --hex"
)]
pub struct Query {
    /// The machine
    #[arg(value_name = "NAME")]
    machine: String,
    /// The question, as the guest will see it
    #[arg(value_name = "TEXT|@FILE|-", allow_negative_numbers = true)]
    request: String,
    /// The question is given, and the answer shown, as hexadecimal digits
    #[arg(long)]
    hex: bool,
    #[command(flatten)]
    freshness: Freshness,
}

/// How fresh an answer must be.
#[derive(Debug, Args)]
pub struct Freshness {
    /// How fresh the answer must be
    #[arg(long, value_enum, default_value_t = Mode::Linearizable)]
    consistency: Mode,
    /// With `--consistency local`: wait until this index is applied
    #[arg(long, value_name = "INDEX")]
    min_index: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Sees everything acknowledged before it was asked
    Linearizable,
    /// The same, as long as the nodes' clocks run at nearly the same rate
    Lease,
    /// Whatever the node has applied
    Local,
}

impl Freshness {
    /// The consistency asked for.
    ///
    /// # Errors
    /// A usage error if the two options contradict each other.
    pub fn consistency(&self) -> anyhow::Result<Consistency> {
        match (self.consistency, self.min_index) {
            (Mode::Local, min_index) => {
                Ok(Consistency::Local { min_index: Index(min_index.unwrap_or_default()) })
            }
            (_, Some(_)) => Err(Usage("--min-index goes with --consistency local only".into()).into()),
            (Mode::Linearizable, None) => Ok(Consistency::Linearizable),
            (Mode::Lease, None) => Ok(Consistency::Lease),
        }
    }
}

impl Query {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let consistency = self.freshness.consistency()?;
        let request = payload::read(&self.request, self.hex)?;
        let answered = global.client()?.query(&self.machine, request, consistency).await?;
        output::outcome(&answered.outcome.into(), (answered.index, answered.revision), global.json, self.hex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minimum_index_is_for_local_reads_only() {
        let asked = |consistency, min_index| Freshness { consistency, min_index }.consistency();
        assert_eq!(asked(Mode::Local, Some(4)).unwrap(), Consistency::Local { min_index: Index(4) });
        assert_eq!(asked(Mode::Local, None).unwrap(), Consistency::Local { min_index: Index(0) });
        assert_eq!(asked(Mode::Lease, None).unwrap(), Consistency::Lease);
        assert!(asked(Mode::Lease, Some(1)).unwrap_err().downcast_ref::<Usage>().is_some());
    }
}
