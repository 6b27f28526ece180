//! `statehouse lease`: time-bounded grants.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Global, Shown, duration, output};
use crate::client::Client;
use crate::error::Error;
use crate::node::request::LeaseInfo;

/// Grant, keep alive, end and show leases of a machine
#[derive(Debug, Args)]
#[command(
    after_help = "A lease ends when its time is over, unless it is renewed before. The kv machine then \
    deletes the keys that are attached to it.\n\n\
    Examples:\n  \
    statehouse lease grant --ttl 30s\n  \
    statehouse kv put worker/1 up --lease 7\n  \
    statehouse lease keep-alive 7\n  \
    statehouse lease show 7"
)]
pub struct Lease {
    /// The machine
    #[arg(long, value_name = "NAME", default_value = "kv", global = true)]
    machine: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Grant a lease; prints its id
    #[command(after_help = "Examples:\n  \
        statehouse lease grant\n  \
        statehouse lease grant --ttl 30s --id 7 --machine kv")]
    Grant {
        /// How long it lives without being renewed: 500ms, 10s, 5m, 2h, 30d
        #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::lease_ttl_ms)]
        ttl: u64,
        /// The id that it is to have [default: any]
        #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
        id: Option<u64>,
    },
    /// Give leases their whole time again, once; prints how long each lives
    #[command(after_help = "Ends with 1 if one of them has ended.\n\n\
        Examples:\n  statehouse lease renew 7 8")]
    Renew(Leases),
    /// Keep leases alive until it is interrupted; ends with 1 if one of them ends
    #[command(after_help = "Examples:\n  statehouse lease keep-alive 7")]
    KeepAlive(Leases),
    /// End a lease now
    #[command(after_help = "Examples:\n  statehouse lease revoke 7")]
    Revoke {
        /// The lease
        id: u64,
    },
    /// Show a lease: how long it still lives, and its keys
    #[command(after_help = "Examples:\n  statehouse lease show 7 --json")]
    Show {
        /// The lease
        id: u64,
    },
    /// List all leases
    #[command(after_help = "Examples:\n  statehouse lease list --machine kv")]
    List,
}

#[derive(Debug, Args)]
struct Leases {
    /// The leases
    #[arg(value_name = "ID", required = true)]
    ids: Vec<u64>,
}

impl Lease {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let (client, machine) = (global.client()?, &self.machine);
        match self.action {
            Action::Grant { ttl, id } => {
                let id = client.grant_lease(machine, Duration::from_millis(ttl), id).await?;
                show_or(global, json!({ "id": id, "ttl_ms": ttl }), || output::line(id).map_err(Into::into))
            }
            Action::Renew(Leases { ids }) => {
                let lives = client.renew_leases(machine, &ids).await?;
                show_renewed(global, &ids, &lives)
            }
            Action::KeepAlive(Leases { ids }) => keep_alive(&client, machine, &ids).await,
            Action::Revoke { id } => {
                client.revoke_lease(machine, id).await?;
                show_or(global, json!({ "revoked": id }), || Ok(()))
            }
            Action::Show { id } => {
                let lease = client.lease(machine, id).await?;
                show_or(global, lease_json(&lease, true), || show(&lease))
            }
            Action::List => {
                let leases = client.leases(machine).await?;
                let all = leases.iter().map(|lease| lease_json(lease, false)).collect();
                show_or(global, Value::Array(all), || show_all(&leases))
            }
        }
    }
}

fn show_or(global: &Global, value: Value, text: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    if global.json { Ok(output::json(&value)?) } else { text() }
}

fn show_renewed(global: &Global, ids: &[u64], lives: &[Option<Duration>]) -> anyhow::Result<()> {
    let ended: Vec<u64> = ids.iter().zip(lives).filter(|(_, ttl)| ttl.is_none()).map(|(&id, _)| id).collect();
    if global.json {
        let ttls_ms = lives.iter().map(|ttl| ttl.map(|ttl| ttl.as_millis() as u64));
        let rows = ids.iter().zip(ttls_ms).map(|(id, ttl_ms)| json!({ "id": id, "ttl_ms": ttl_ms }));
        output::json(&Value::Array(rows.collect()))?;
        return if ended.is_empty() { Ok(()) } else { Err(Shown.into()) };
    }
    for (id, ttl) in ids.iter().zip(lives) {
        if let Some(ttl) = ttl {
            output::line(format_args!("{id}\t{ttl:?}"))?;
        }
    }
    if ended.is_empty() { Ok(()) } else { Err(have_ended(&ended)) }
}

/// Renews at a third of the shortest time, for ever. What fails for a while is tried again until the leases
/// have ended.
async fn keep_alive(client: &Client, machine: &str, ids: &[u64]) -> anyhow::Result<()> {
    loop {
        let pause = match client.renew_leases(machine, ids).await {
            Ok(lives) => {
                let ended = ids.iter().zip(&lives).filter(|(_, ttl)| ttl.is_none());
                let ended: Vec<u64> = ended.map(|(&id, _)| id).collect();
                if !ended.is_empty() {
                    return Err(have_ended(&ended));
                }
                lives.into_iter().flatten().min().unwrap_or_default() / RENEWALS
            }
            Err(why @ (Error::NotFound(_) | Error::Invalid(_) | Error::TooLarge(_))) => {
                return Err(why.into());
            }
            Err(why) => {
                tracing::warn!(%why, "leases could not be renewed: again");
                PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// How often a lease is renewed within its time.
const RENEWALS: u32 = 3;

/// How long to wait before what failed is tried again.
const PAUSE: Duration = Duration::from_millis(200);

fn have_ended(ids: &[u64]) -> anyhow::Error {
    let list: Vec<String> = ids.iter().map(ToString::to_string).collect();
    anyhow::anyhow!("no client's lease any more, or never one: {}", list.join(", "))
}

fn show(lease: &LeaseInfo) -> anyhow::Result<()> {
    output::line(format_args!("id         {}", lease.id))?;
    output::line(format_args!("ttl        {}", seconds(lease.ttl_ms)))?;
    output::line(format_args!("remaining  {}", seconds(lease.remaining_ms)))?;
    output::line(format_args!("kind       {}", kind(lease)))?;
    for key in &lease.keys {
        output::line(format_args!("key        {}", output::printable(key)))?;
    }
    if lease.more_keys {
        output::tell(format_args!("there are more keys than these {}", lease.keys.len()));
    }
    Ok(())
}

fn show_all(leases: &[LeaseInfo]) -> anyhow::Result<()> {
    let row = |lease: &LeaseInfo| {
        let (ttl, left) = (seconds(lease.ttl_ms), seconds(lease.remaining_ms));
        vec![lease.id.to_string(), ttl, left, kind(lease).to_owned()]
    };
    let rows: Vec<Vec<String>> = leases.iter().map(row).collect();
    output::table(&["ID", "TTL", "REMAINING", "KIND"], &rows)?;
    Ok(())
}

fn kind(lease: &LeaseInfo) -> &'static str {
    match (lease.of_machine, lease.is_session) {
        (true, _) => "machine",
        (false, true) => "session",
        (false, false) => "client",
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}s", ms / 1_000, ms % 1_000)
}

fn lease_json(lease: &LeaseInfo, with_keys: bool) -> Value {
    let mut value = json!({
        "id": lease.id,
        "ttl_ms": lease.ttl_ms,
        "remaining_ms": lease.remaining_ms,
        "kind": kind(lease),
    });
    if with_keys {
        value["keys"] = lease.keys.iter().map(|key| output::bytes_json(key)).collect();
        value["more_keys"] = json!(lease.more_keys);
    }
    value
}
