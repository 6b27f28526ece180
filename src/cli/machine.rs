//! `statehouse machine`: machines on a node.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Subcommand;
use serde_json::{Value, json};

use super::settings::{self, Assignment};
use super::{Global, Shown, Usage, explain, module, output, payload};
use crate::catalog::{REPLICAS_DEFAULT, REPLICAS_MAX};
use crate::client::Client;
use crate::error::Error;
use crate::id::{Digest, NodeId};
use crate::node::request::{MachineInfo, MemberInfo, ReplicaReport, Verified, VerifiedReplica};

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
            statehouse machine create kv --module builtin:kv --set leases_max=5000 --set history_age=1h\n  \
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
        /// A setting in place of its default; may be given several times
        #[arg(long, value_name = "NAME=VALUE", value_parser = settings::assignment)]
        set: Vec<Assignment>,
    },
    /// Change settings of a machine: limits of leases and sessions, how much history is kept
    #[command(after_help = "leases_max, sessions_max: how many there may be at the same time\n\
            session_window: commands of a session that may be ahead of what is acknowledged\n\
            history_revisions, history_age, history_bytes: how many events are kept for watchers\n\n\
            Examples:\n  \
            statehouse machine set kv leases_max=5000 history_age=1h\n  \
            statehouse machine set kv history_bytes=64MiB session_window=default")]
    Set {
        /// Its name
        name: String,
        /// The settings; `default` takes one back
        #[arg(value_name = "NAME=VALUE", required = true, value_parser = settings::assignment)]
        set: Vec<Assignment>,
    },
    /// Have a machine run another module, with its state, leases, sessions and history
    #[command(
        after_help = "Every replica changes over at one place of the log. The new component is told, with \
            the argument; if it refuses or fails, the machine goes on with the present one, and nothing has \
            changed. Prints what the new component answers.\n\nExamples:\n  statehouse machine upgrade notes \
            --module notes2.component.wasm\n  statehouse machine upgrade orders --module \
            orders2.component.wasm --argument 'currency=EUR'"
    )]
    Upgrade {
        /// Its name
        name: String,
        /// What it is to run: a module's digest, a file to push first, or `builtin:kv`
        #[arg(long, value_name = "DIGEST|FILE|builtin:kv")]
        module: String,
        /// What the new component is told with it, for a migration
        #[arg(long, value_name = "TEXT|@FILE", allow_negative_numbers = true)]
        argument: Option<String>,
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
    /// Compare a machine's replicas with each other
    #[command(
        after_help = "The leader puts its hash into the log, and each replica compares its own when it comes \
            to it. One that differs halts and serves no reads. Ends with 1 unless all are in lockstep.\n\n\
            Examples:\n  statehouse machine verify notes"
    )]
    Verify {
        /// Its name
        name: String,
    },
    /// Give a replica the leader's state in place of its own
    #[command(
        after_help = "For a replica that has halted because it differs from the others, or any that does not \
            lead. It keeps its log and its vote, and answers nothing until it has the new state.\n\n\
            Examples:\n  statehouse machine reseed notes --node node-3"
    )]
    Reseed {
        /// Its name
        name: String,
        /// The name or id of the replica's node
        #[arg(long, value_name = "NODE")]
        node: String,
    },
    /// Tell why a replica has halted, and where it left the way of the others
    #[command(
        after_help = "Names the first index whose effects differ from the leader's, and what differs: an \
            outcome, a key that was written, an event, the clock. Values are told by their lengths and \
            digests.\n\nExamples:\n  statehouse machine explain notes --node node-3"
    )]
    Explain {
        /// Its name
        name: String,
        /// The name or id of the replica's node
        #[arg(long, value_name = "NODE")]
        node: String,
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
            Machine::Create { name, module, init, replicas, set } => {
                let configuration = payload::read(init.as_deref().unwrap_or_default(), false)?;
                let module = resolve(&client, &module).await?;
                let settings = (!set.is_empty()).then(|| settings::settings(&set));
                let created =
                    client.create_settled(&name, &module, configuration, replicas, settings).await?;
                show(global, &created, &Names::of(&client).await?)
            }
            Machine::Set { name, set } => {
                let changed = client.configure_machine(&name, settings::settings(&set)).await?;
                show(global, &changed, &Names::of(&client).await?)
            }
            Machine::Upgrade { name, module, argument } => {
                let argument = payload::read(argument.as_deref().unwrap_or_default(), false)?;
                let module = resolve(&client, &module).await?;
                let (machine, answer) = client.upgrade_machine(&name, &module, argument).await?;
                show_upgraded(global, &machine, &answer)
            }
            Machine::List => list(global, &client.machines().await?, &Names::of(&client).await?),
            Machine::Show { name } => {
                let machine = client.machine(&name).await?;
                let replicas = client.replicas(&name).await?;
                show_whole(global, &machine, &replicas, &Names::of(&client).await?)
            }
            Machine::Verify { name } => {
                verify(global, &client.verify_machine(&name).await?, &Names::of(&client).await?)
            }
            Machine::Reseed { name, node } => {
                let index = client.reseed_machine(&name, &node).await?;
                if global.json {
                    output::json(&json!({ "reseeded": name, "node": node, "applied_index": index.0 }))?;
                } else {
                    output::line(format_args!("the replica on {node} serves again, from index {index} on"))?;
                }
                Ok(())
            }
            Machine::Explain { name, node } => explain::show(
                global,
                &client.explain_machine(&name, &node).await?,
                &Names::of(&client).await?,
            ),
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

fn show_upgraded(global: &Global, machine: &MachineInfo, answer: &[u8]) -> anyhow::Result<()> {
    if global.json {
        output::json(&json!({ "machine": machine_json(machine), "answer": output::bytes_json(answer) }))?;
        return Ok(());
    }
    output::line(format_args!("{} runs {}", machine.name, machine.module))?;
    if !answer.is_empty() {
        output::line(output::printable(answer))?;
    }
    Ok(())
}

fn verify(global: &Global, verified: &Verified, names: &Names) -> anyhow::Result<()> {
    if global.json {
        let replica = |replica: &VerifiedReplica| {
            let (index, hash) = replica.standing.clone().ok().unzip();
            json!({
                "node": replica.node.to_string(),
                "name": names.name(replica.node),
                "applied_index": index.map(|index| index.0),
                "state_hash": hash.map(|hash| hash.to_string()),
                "failure": replica.standing.as_ref().err(),
            })
        };
        let replicas: Vec<Value> = verified.replicas.iter().map(replica).collect();
        output::json(&json!({ "index": verified.index.0, "replicas": replicas }))?;
    } else {
        let row = |replica: &VerifiedReplica| match &replica.standing {
            Ok((index, hash)) => {
                let hash = hash.to_string()[..16].to_owned();
                vec![names.name(replica.node), "in lockstep".into(), index.to_string(), hash]
            }
            Err(why) => {
                let why = output::printable(why.as_bytes());
                vec![names.name(replica.node), why, String::new(), String::new()]
            }
        };
        let rows: Vec<Vec<String>> = verified.replicas.iter().map(row).collect();
        output::table(&["NODE", "STATE", "INDEX", "HASH"], &rows)?;
    }
    let all = verified.replicas.iter().all(|replica| replica.standing.is_ok());
    if all { Ok(()) } else { Err(Shown.into()) }
}

/// What the nodes are called.
pub struct Names(BTreeMap<NodeId, String>);

impl Names {
    pub async fn of(client: &Client) -> Result<Names, Error> {
        Ok(Names::from(&client.members().await?.1))
    }

    /// A node's name, or its id if it is gone.
    pub fn name(&self, node: NodeId) -> String {
        self.0.get(&node).cloned().unwrap_or_else(|| node.to_string())
    }
}

impl From<&Vec<MemberInfo>> for Names {
    fn from(members: &Vec<MemberInfo>) -> Names {
        Names(members.iter().map(|member| (member.node, member.name.clone())).collect())
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
        "world": machine.world.name(),
        "created": output::time(machine.created),
        "group": machine.group.0,
        "input_fuel": machine.input_fuel,
        "engine": machine.engine,
        "replicas": machine.replicas.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "replicas_wanted": machine.replicas_wanted,
        "settings": machine.settings.as_ref().map(settings::as_json),
        "replica": replica,
    })
}

fn list(global: &Global, machines: &[MachineInfo], names: &Names) -> anyhow::Result<()> {
    if global.json {
        output::json(&machines.iter().map(machine_json).collect())?;
        return Ok(());
    }
    table(machines, names)
}

/// Machines in columns; digests are shortened.
pub fn table(machines: &[MachineInfo], names: &Names) -> anyhow::Result<()> {
    let row = |machine: &MachineInfo| {
        let replica = machine.replica.as_ref();
        vec![
            machine.name.clone(),
            machine.world.name().to_string(),
            machine.module.to_string()[..12].to_string(),
            replica.and_then(|replica| replica.leader).map(|node| names.name(node)).unwrap_or_default(),
            replica.map(|replica| replica.applied.to_string()).unwrap_or_default(),
            replica.map(|replica| replica.revision.to_string()).unwrap_or_default(),
            state(machine),
        ]
    };
    let rows: Vec<_> = machines.iter().map(row).collect();
    output::table(&["NAME", "WORLD", "MODULE", "LEADER", "INDEX", "REVISION", "STATE"], &rows)?;
    Ok(())
}

/// A machine, and where each of its replicas stands.
fn show_whole(
    global: &Global,
    machine: &MachineInfo,
    replicas: &[ReplicaReport],
    names: &Names,
) -> anyhow::Result<()> {
    if global.json {
        let mut whole = machine_json(machine);
        whole["replica_logs"] = replicas.iter().map(|replica| replica_json(replica, names)).collect();
        output::json(&whole)?;
        return Ok(());
    }
    show(global, machine, names)?;
    output::line("")?;
    let last = replicas.iter().filter_map(|replica| Some(replica.log.as_ref().ok()?.last)).max();
    let row = |replica: &ReplicaReport| {
        let name = names.name(replica.node);
        match &replica.log {
            Err(why) => {
                let why = output::printable(why.as_bytes());
                vec![name, String::new(), String::new(), String::new(), String::new(), why]
            }
            Ok(log) => {
                let state = match &log.halted {
                    Some(why) => format!("halted: {}", output::printable(why.as_bytes())),
                    None if log.asleep => "asleep".into(),
                    None => "awake".into(),
                };
                let lag = last.unwrap_or_default().saturating_sub(log.applied);
                let numbers = [log.applied, lag, log.last - log.start].map(|number| number.to_string());
                [name, log.role.clone()].into_iter().chain(numbers).chain([state]).collect()
            }
        }
    };
    let rows: Vec<Vec<String>> = replicas.iter().map(row).collect();
    output::table(&["NODE", "ROLE", "INDEX", "LAG", "LOG", "STATE"], &rows)?;
    Ok(())
}

fn replica_json(replica: &ReplicaReport, names: &Names) -> Value {
    let mut told = json!({
        "node": replica.node.to_string(),
        "name": names.name(replica.node),
        "failure": replica.log.as_ref().err(),
    });
    if let Ok(log) = &replica.log {
        told["term"] = json!(log.term);
        told["role"] = json!(log.role);
        told["log_start"] = json!(log.start);
        told["log_last"] = json!(log.last);
        told["committed_index"] = json!(log.committed);
        told["applied_index"] = json!(log.applied);
        told["asleep"] = json!(log.asleep);
        told["halted"] = json!(log.halted);
    }
    told
}

fn show(global: &Global, machine: &MachineInfo, names: &Names) -> anyhow::Result<()> {
    if global.json {
        output::json(&machine_json(machine))?;
        return Ok(());
    }
    output::line(format_args!("name      {}", machine.name))?;
    output::line(format_args!("module    {}", machine.module))?;
    output::line(format_args!("world     {}", machine.world.name()))?;
    output::line(format_args!("created   {}", output::time(machine.created)))?;
    output::line(format_args!("group     {}", machine.group))?;
    output::line(format_args!("fuel      {} for each input", machine.input_fuel))?;
    output::line(format_args!("engine    {}", machine.engine))?;
    let nodes: Vec<String> = machine.replicas.iter().map(|node| names.name(*node)).collect();
    let (there, wanted) = (nodes.len(), machine.replicas_wanted);
    let more = if (there as u32) < wanted { format!(" ({wanted} wanted)") } else { String::new() };
    output::line(format_args!("replicas  {}{more}", nodes.join(", ")))?;
    output::line(format_args!("state     {}", state(machine)))?;
    if let Some(replica) = &machine.replica {
        let leader = replica.leader.map_or("none".into(), |node| names.name(node));
        output::line(format_args!("leader    {leader}"))?;
        output::line(format_args!("term      {}", replica.term))?;
        output::line(format_args!("index     {}", replica.applied))?;
        output::line(format_args!("revision  {}", replica.revision))?;
        output::line(format_args!("hash      {}", replica.hash))?;
    }
    if let Some(settings) = &machine.settings {
        output::line("")?;
        settings::show(settings)?;
    }
    Ok(())
}
