//! `statehouse machine`: machines on a node.

use std::path::Path;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Global, Usage, module, output, payload};
use crate::catalog::{REPLICAS_DEFAULT, REPLICAS_MAX};
use crate::client::Client;
use crate::id::Digest;
use crate::node::request::MachineInfo;

/// Create machines, see which there are, delete them
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
        statehouse machine create notes --module notes.component.wasm\n  \
        statehouse machine list")]
pub enum Machine {
    /// Create a machine that runs a module
    #[command(after_help = "Examples:\n  \
            statehouse machine create kv --module builtin:kv\n  \
            statehouse machine create notes --module notes.component.wasm --init @notes.conf\n  \
            statehouse machine create orders \\\n    \
            --module 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae")]
    Create {
        /// Its name
        name: String,
        /// What it runs: a module's digest, a file to push first, or `builtin:kv`
        #[arg(long, value_name = "DIGEST|FILE|builtin:kv")]
        module: String,
        /// The configuration that the guest is created with
        #[arg(long, value_name = "TEXT|@FILE", allow_negative_numbers = true)]
        init: Option<String>,
        /// On how many nodes it is to be, as soon as there are so many
        #[arg(
            long,
            value_name = "N",
            default_value_t = REPLICAS_DEFAULT,
            value_parser = clap::value_parser!(u32).range(1..=i64::from(REPLICAS_MAX))
        )]
        replicas: u32,
    },
    /// List all machines
    #[command(after_help = "Examples:\n  \
            statehouse machine list\n  \
            statehouse machine list --json | jq -r '.[].name'")]
    List,
    /// Show one machine
    #[command(after_help = "Examples:\n  statehouse machine show notes")]
    Show {
        /// Its name
        name: String,
    },
    /// Delete a machine with its state and history; its module stays
    #[command(after_help = "Examples:\n  statehouse machine delete notes")]
    Delete {
        /// Its name
        name: String,
    },
}

impl Machine {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        match self {
            Machine::Create { name, module, init, replicas } => {
                let configuration = payload::read(init.as_deref().unwrap_or_default(), false)?;
                let module = resolve(&client, &module).await?;
                show(global, &client.create_replicated(&name, &module, configuration, replicas).await?)
            }
            Machine::List => list(global, &client.machines().await?),
            Machine::Show { name } => show(global, &client.machine(&name).await?),
            Machine::Delete { name } => {
                client.delete_machine(&name).await?;
                if global.json {
                    output::json(&json!({ "deleted": name }))?;
                }
                Ok(())
            }
        }
    }
}

/// What `--module` stands for: a file is pushed first.
async fn resolve(client: &Client, module: &str) -> anyhow::Result<String> {
    if module.starts_with("builtin:") || module.parse::<Digest>().is_ok() {
        return Ok(module.to_string());
    }
    let file = Path::new(module);
    if !file.exists() {
        let text = format!(
            "--module {module:?} is neither a file, nor a digest (64 hexadecimal digits), nor `builtin:kv`"
        );
        return Err(Usage(text).into());
    }
    Ok(module::push(client, file).await?.digest.to_string())
}

/// Whether and how a machine serves, in a word or a sentence.
fn state(machine: &MachineInfo) -> String {
    match &machine.replica {
        None => "elsewhere".into(),
        Some(replica) => match &replica.halted {
            None => "serving".into(),
            Some(why) => format!("halted: {}", output::printable(why.as_bytes())),
        },
    }
}

pub fn machine_json(machine: &MachineInfo) -> Value {
    let replica = machine.replica.as_ref().map(|replica| {
        json!({
            "term": replica.term.0,
            "leader": replica.leader.map(|node| node.to_string()),
            "applied_index": replica.applied.0,
            "revision": replica.revision.0,
            "state_hash": replica.hash.to_string(),
            "halted": replica.halted,
        })
    });
    json!({
        "name": machine.name,
        "module": machine.module.to_string(),
        "world": module::world(machine.world),
        "created": output::time(machine.created),
        "group": machine.group.0,
        "input_fuel": machine.input_fuel,
        "engine": machine.engine,
        "replica": replica,
    })
}

fn list(global: &Global, machines: &[MachineInfo]) -> anyhow::Result<()> {
    if global.json {
        output::json(&machines.iter().map(machine_json).collect())?;
        return Ok(());
    }
    table(machines)
}

/// Machines in columns; digests are shortened.
pub fn table(machines: &[MachineInfo]) -> anyhow::Result<()> {
    let row = |machine: &MachineInfo| {
        let replica = machine.replica.as_ref();
        vec![
            machine.name.clone(),
            module::world(machine.world).to_string(),
            machine.module.to_string()[..12].to_string(),
            replica.map(|replica| replica.applied.to_string()).unwrap_or_default(),
            replica.map(|replica| replica.revision.to_string()).unwrap_or_default(),
            state(machine),
        ]
    };
    let rows: Vec<_> = machines.iter().map(row).collect();
    output::table(&["NAME", "WORLD", "MODULE", "INDEX", "REVISION", "STATE"], &rows)?;
    Ok(())
}

fn show(global: &Global, machine: &MachineInfo) -> anyhow::Result<()> {
    if global.json {
        output::json(&machine_json(machine))?;
        return Ok(());
    }
    output::line(format_args!("name      {}", machine.name))?;
    output::line(format_args!("module    {}", machine.module))?;
    output::line(format_args!("world     {}", module::world(machine.world)))?;
    output::line(format_args!("created   {}", output::time(machine.created)))?;
    output::line(format_args!("group     {}", machine.group))?;
    output::line(format_args!("fuel      {} for each input", machine.input_fuel))?;
    output::line(format_args!("engine    {}", machine.engine))?;
    output::line(format_args!("state     {}", state(machine)))?;
    if let Some(replica) = &machine.replica {
        let leader = replica.leader.map_or("none".into(), |node| node.to_string());
        output::line(format_args!("leader    {leader}"))?;
        output::line(format_args!("term      {}", replica.term))?;
        output::line(format_args!("index     {}", replica.applied))?;
        output::line(format_args!("revision  {}", replica.revision))?;
        output::line(format_args!("hash      {}", replica.hash))?;
    }
    Ok(())
}
