//! `statehouse soak`: a cluster in this process under load and churn, and what came of it.
//!
//! In each cycle some replicas stop, clients write, the leadership moves, and the replicas come back and
//! catch up: by the log, or, where they are too far behind what is kept of it, by a snapshot. At the end all
//! replicas must have the same state, and everything acknowledged must be there.
//!
//! # Layout
//! - `cluster`: the nodes; `writers`: who writes, and what must be there; `report`: what came of it

mod cluster;
mod report;
mod writers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use self::cluster::Cluster;
use self::report::Report;
use self::writers::Writers;
use super::{Global, Usage, output};
use crate::cli::ExitCode;
use crate::time::Clock;

/// Run a cluster in this process under load and churn, and check that nothing is lost and no replica differs
#[derive(Debug, Args)]
#[command(
    after_help = "Ends with 1 if a replica differs from the others, or something acknowledged is missing.\n\n\
        Examples:\n  \
        statehouse soak\n  \
        statehouse soak --replicas 5 --down 2 --cycles 100 --writes 5000\n  \
        statehouse soak --cycles 20 --snapshot-every 1 --keep-entries 100 --json"
)]
pub struct Soak {
    /// Replicas, each on a node of its own
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=7))]
    replicas: u16,
    /// Cycles of churn
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..))]
    cycles: u64,
    /// Writes in a cycle
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    writes: u64,
    /// Clients that write at the same time
    #[arg(long, value_name = "N", default_value_t = 8)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000))]
    writers: u64,
    /// Keys of each of them, written again and again
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Replicas that are down in a cycle, in turn; a majority must stay up
    #[arg(long, value_name = "N")]
    down: Option<u16>,
    /// How often the leadership is handed to another node in a cycle
    #[arg(long, value_name = "N", default_value_t = 2)]
    leader_changes: u64,
    /// In every so many cycles, those that were down find the log cut and need a snapshot; 0: never
    #[arg(long, value_name = "CYCLES", default_value_t = 2)]
    snapshot_every: u64,
    /// Entries of the log that are kept for those who are behind; fewer than the writes of a cycle, or no
    /// replica falls behind the log
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    keep_entries: u64,
    /// Where the nodes keep their data, each in a directory of its own; it must be empty. Without it, a
    /// temporary directory, removed at the end
    #[arg(long, value_name = "DIR")]
    data_dir: Option<std::path::PathBuf>,
}

impl Soak {
    pub async fn run(self, global: &Global) -> anyhow::Result<ExitCode> {
        let down = self.down()?;
        let clock = Clock::start();
        let interrupted = watch_for_interrupt();
        let bar = self.bar()?;
        bar.set_message("the nodes start");
        let mut cluster = Cluster::start(self.replicas, self.keep_entries, self.data_dir.as_deref()).await?;
        let soaked = self.soak(&mut cluster, down, &bar, &interrupted).await;
        bar.finish_and_clear();
        // Nodes that are not told to stop would miss the directory that goes.
        cluster.stop().await;
        let report = Report { elapsed: Duration::from_nanos(clock.elapsed_ns()), ..soaked? };
        match global.json {
            true => output::json(&report.json())?,
            false => output::line(report.line())?,
        }
        Ok(if report.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn soak(
        &self,
        cluster: &mut Cluster,
        down: u16,
        bar: &ProgressBar,
        interrupted: &AtomicBool,
    ) -> anyhow::Result<Report> {
        cluster.make_machine().await?;
        let writers = Writers::new(self.writers, self.keys);
        let mut report = Report::default();
        for cycle in 0..self.cycles {
            if interrupted.load(Ordering::Relaxed) {
                break;
            }
            bar.set_message(format!("cycle {} of {}", cycle + 1, self.cycles));
            self.cycle(cycle, down, cluster, &writers, &mut report, bar).await?;
            report.cycles += 1;
        }
        bar.set_message("all is compared");
        report.divergences += cluster.compare().await?;
        report.missing = writers.missing(cluster).await?;
        (report.writes, report.unknown) = (writers.acknowledged(), writers.unknown());
        Ok(report)
    }

    /// How many replicas are down in a cycle.
    fn down(&self) -> Result<u16, Usage> {
        let most = (self.replicas - 1) / 2;
        match self.down {
            None => Ok(most.min(1)),
            Some(down) if down <= most => Ok(down),
            Some(down) => Err(Usage(format!(
                "--down {down}: of {} replicas {most} can be down at the same time, or there is no majority; \
                 ask for fewer, or for --replicas {}",
                self.replicas,
                2 * down + 1
            ))),
        }
    }

    fn bar(&self) -> anyhow::Result<ProgressBar> {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} writes {per_sec} {wide_msg}")?;
        // Hidden where standard error is no terminal.
        let bar = ProgressBar::new(self.cycles * self.writes).with_style(style);
        bar.enable_steady_tick(Duration::from_millis(200));
        Ok(bar)
    }

    async fn cycle(
        &self,
        cycle: u64,
        down: u16,
        cluster: &mut Cluster,
        writers: &Writers,
        report: &mut Report,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        let falls_behind = self.snapshot_every > 0 && cycle % self.snapshot_every == self.snapshot_every - 1;
        let first = cycle as usize % usize::from(self.replicas);
        let victims: Vec<usize> =
            (0..usize::from(down)).map(|place| (first + place) % usize::from(self.replicas)).collect();
        let mut left = Vec::new();
        for &victim in &victims {
            left.push((victim, cluster.take_down(victim).await?));
        }
        // The leadership moves between portions of the writes.
        let portions = self.leader_changes + 1;
        for portion in 0..portions {
            if portion > 0 {
                cluster.change_leader(writers, report).await?;
            }
            let share = self.writes * (portion + 1) / portions - self.writes * portion / portions;
            writers.write(cluster, share, bar).await?;
        }
        if falls_behind && !victims.is_empty() {
            cluster.cut_log().await?;
        }
        for (victim, applied) in left {
            cluster.bring_back(victim, applied, report).await?;
        }
        report.divergences += cluster.compare().await?;
        Ok(())
    }
}

/// True from the moment somebody asks it to end: what is under way is brought to its end.
fn watch_for_interrupt() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            flag.store(true, Ordering::Relaxed);
            output::tell("this cycle is brought to its end; Ctrl-C again does not wait for it");
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(130);
            }
        }
    });
    interrupted
}
