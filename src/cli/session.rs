//! `statehouse session`: sessions by hand, for scripts and for looking at what a client library does.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::{Global, duration, output};

/// Open and close sessions, whose commands are applied exactly once
#[derive(Debug, Subcommand)]
#[command(
    after_help = "A command with --session and --number is applied once, however often it is sent: again it \
        is answered with its first outcome, until that is acknowledged.\n\nExamples:\n  statehouse session \
        open --ttl 5m\n  statehouse apply notes 'milk=two pints' --session 7 --number 1\n  statehouse apply \
        notes 'eggs=six' --session 7 --number 2 --acknowledged 1\n  statehouse session close 7"
)]
pub enum Session {
    /// Open a session and print its id
    #[command(
        after_help = "It is a lease: it ends when it is not renewed for its time to live (`statehouse lease \
            renew`).\n\nExamples:\n  statehouse session open\n  statehouse session open --ttl 1h --machine \
            notes"
    )]
    Open {
        /// How long it lives without being kept alive
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::lease_ttl_ms)]
        ttl: u64,
        /// The machine
        #[arg(long, value_name = "NAME", default_value = "kv")]
        machine: String,
    },
    /// Close a session: none of its commands is applied from then on
    #[command(after_help = "Examples:\n  statehouse session close 7 --machine notes")]
    Close {
        /// Its id
        #[arg(value_name = "ID")]
        session: u64,
        /// The machine
        #[arg(long, value_name = "NAME", default_value = "kv")]
        machine: String,
    },
}

impl Session {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        match self {
            Session::Open { ttl, machine } => {
                let opened = client.open_session(&machine, Duration::from_millis(ttl)).await?;
                let ttl_ms = opened.ttl.as_millis() as u64;
                match global.json {
                    true => output::json(&json!({
                        "session": opened.session,
                        "ttl_ms": ttl_ms,
                        "window": opened.window,
                    }))?,
                    false => output::line(opened.session)?,
                }
            }
            Session::Close { session, machine } => {
                client.close_session(&machine, session).await?;
                if global.json {
                    output::json(&json!({ "closed": session }))?;
                }
            }
        }
        Ok(())
    }
}
