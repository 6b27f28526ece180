//! `statehouse import-etcd`: brings the keys and leases of an etcd into a kv machine.
//!
//! Promises: nothing is written before everything was read and found to fit; what was written is read back
//! and compared before it says that it is done; and running it again does no harm. It must never pass over a
//! key in silence: what it leaves out it counts.
//!
//! # Layout
//! - `source`: what is to be brought, whatever it comes from; `endpoint`: from a running etcd
//! - `target`: the machine it goes to; `verify`: both sides compared

mod endpoint;
mod source;
mod target;
mod verify;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use self::source::Source;
use self::target::Target;
use super::{Global, Usage, output};
use crate::config::check_address;

/// Bring the keys and leases of an etcd into a kv machine
#[derive(Debug, Args)]
#[command(after_help = "What comes along: every key that there is, with its value and its lease, and every \
        lease with its id and the time that it was granted, which begins anew. Keys are created in the order \
        in which etcd created them, so locks, elections and queues go on as they stand.\n\nWhat does not: \
        older versions of keys, and with them the numbers of revisions and versions; members, users, roles \
        and alarms. Watches begin anew.\n\nLet nobody write to the etcd or to the machine meanwhile. At the \
        end both sides are read and compared. If it was interrupted, run it again with \
        --merge.\n\nExamples:\n  etcdctl snapshot save etcd.db && statehouse import-etcd etcd.db\n  \
        statehouse import-etcd 10.0.0.1:2379 --machine settings\n  statehouse import-etcd \
        /var/lib/etcd/member/snap/db    # of an etcd that does not run")]
pub struct ImportEtcd {
    /// A snapshot or a database file of etcd, or where an etcd listens for its clients: HOST:PORT or
    /// http://HOST:PORT
    source: String,
    /// The machine to bring them to, of the module builtin:kv
    #[arg(long, value_name = "NAME", default_value = "kv")]
    machine: String,
    /// Let the machine have keys and leases already: keys of the same name are overwritten
    #[arg(long)]
    merge: bool,
}

impl ImportEtcd {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let target = Target::open(global.client()?, &self.machine, self.merge).await?;
        let source = self.read(global).await?;
        target.check(&source)?;
        let order = source.in_order_of_creation();
        let compared = {
            let bring = async {
                target.grant(&source).await?;
                target.put(&source, &order).await?;
                verify::compare(&target, &source, &order).await
            };
            tokio::select! {
                compared = bring => compared?,
                // The shortest lease must not end before its keys are there.
                ended = target.keep_alive(&source) => return Err(ended),
            }
        };
        self.tell(global, &source, &compared)
    }

    async fn read(&self, global: &Global) -> anyhow::Result<Source> {
        let timeout = Duration::from_secs(global.timeout);
        if let Some(address) = self.source.strip_prefix("http://") {
            let address = address.trim_end_matches('/');
            check_address(address).map_err(Usage)?;
            return endpoint::read(address, timeout).await;
        }
        if self.source.starts_with("https://") {
            let text =
                "an etcd behind TLS cannot be read from: import a file that `etcdctl snapshot save` made";
            return Err(Usage(text.into()).into());
        }
        let path = Path::new(&self.source);
        if path.exists() {
            return Source::of_file(path).with_context(|| format!("cannot import {}", path.display()));
        }
        match check_address(&self.source) {
            Ok(()) => endpoint::read(&self.source, timeout).await,
            Err(_) => {
                let source = output::printable(self.source.as_bytes());
                let text =
                    format!("there is no file {source}, and it is not the HOST:PORT of an etcd either");
                Err(anyhow::anyhow!(text))
            }
        }
    }

    fn tell(&self, global: &Global, source: &Source, compared: &verify::Compared) -> anyhow::Result<()> {
        let (keys, leases, hash) = (source.keys.len(), source.leases.len(), compared.hash.to_hex());
        if global.json {
            output::json(&json!({
                "machine": self.machine,
                "keys": keys,
                "leases": leases,
                "blake3": hash.as_str(),
                "machine_revision": compared.revision,
                "etcd_revision": source.revision,
                "keys_of_ended_leases": source.ended,
                "keys_without_their_lease": source.unleased,
                "other_keys_of_machine": compared.others,
            }))?;
            return Ok(());
        }
        output::line(format_args!(
            "{keys} keys and {leases} leases of revision {} are in machine {:?}, and the same on both sides:",
            source.revision, self.machine
        ))?;
        output::line(format_args!("blake3 {hash}"))?;
        let notes = [
            (source.ended, "keys were left out: their leases ended while etcd was read"),
            (source.unleased, "keys came without their lease, which etcd no longer had"),
            (compared.others, "other keys were in the machine already, and are as they were"),
        ];
        for (count, text) in notes.into_iter().filter(|(count, _)| *count > 0) {
            output::tell(format_args!("{count} {text}"));
        }
        Ok(())
    }
}

/// A bar on a terminal, and nothing elsewhere.
fn bar(total: usize, unit: &str, doing: &str) -> anyhow::Result<ProgressBar> {
    let template = match unit {
        "bytes" => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {wide_msg}".to_owned(),
        // Nobody knows how many there are before they were counted.
        unit if total == 0 => format!("{{spinner}} {{human_pos}} {unit} {{per_sec}} {{wide_msg}}"),
        unit => format!("{{bar:30}} {{human_pos}}/{{human_len}} {unit} {{per_sec}} {{wide_msg}}"),
    };
    let style = ProgressStyle::with_template(&template)?;
    Ok(ProgressBar::new(total as u64).with_style(style).with_message(doing.to_owned()))
}
