//! `statehouse member`: the nodes of the cluster.

use clap::Subcommand;
use serde_json::json;

use super::{Global, output};
use crate::node::request::MemberInfo;

/// See the nodes of the cluster, and change who is in it
#[derive(Debug, Subcommand)]
#[command(after_help = "A node is added by starting it: statehouse serve --join ADDRESS\n\nExamples:\n  \
        statehouse member list\n  \
        statehouse member remove node-3")]
pub enum Member {
    /// List all nodes
    #[command(after_help = "Examples:\n  \
            statehouse member list\n  \
            statehouse member list --json | jq -r '.members[].name'")]
    List,
    /// Tell how a node is added
    #[command(after_help = "Examples:\n  statehouse member add node-4")]
    Add {
        /// What the new node is to be called
        name: String,
    },
    /// Have a node vote on the catalog; the first seven nodes do anyhow
    #[command(after_help = "Examples:\n  statehouse member promote node-8")]
    Promote {
        /// Its name or id
        name: String,
    },
    /// Have a node leave: its replicas move to others, then it is let go and stops
    #[command(after_help = "A node that was removed does not come back under its id: to add its computer \
            again, empty its data directory and start it with --join.\n\nExamples:\n  \
            statehouse member remove node-3")]
    Remove {
        /// Its name or id
        name: String,
    },
    /// Have a node lead a machine's group, or the catalog's
    #[command(after_help = "Examples:\n  \
            statehouse member transfer-leader --machine kv --to node-2\n  \
            statehouse member transfer-leader --to node-2")]
    TransferLeader {
        /// The machine [default: the catalog]
        #[arg(long, value_name = "NAME")]
        machine: Option<String>,
        /// The name or id of the node that is to lead
        #[arg(long, value_name = "NODE")]
        to: String,
    },
}

impl Member {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        match self {
            Member::List => {
                let (cluster, members) = client.members().await?;
                return list(global, cluster, &members);
            }
            Member::Add { name } => return tell_how_to_add(global, &name, &client.members().await?.1),
            Member::Promote { name } => client.promote_member(&name).await?,
            Member::Remove { name } => client.remove_member(&name).await?,
            Member::TransferLeader { machine, to } => {
                client.transfer_leader(machine.as_deref(), &to).await?;
            }
        }
        if global.json {
            output::json(&json!({ "done": true }))?;
        }
        Ok(())
    }
}

fn list(global: &Global, cluster: u64, members: &[MemberInfo]) -> anyhow::Result<()> {
    if global.json {
        let members: Vec<_> = members.iter().map(member_json).collect();
        output::json(&json!({ "cluster": format!("{cluster:016x}"), "members": members }))?;
        return Ok(());
    }
    table(members)
}

/// The nodes as a table.
fn table(members: &[MemberInfo]) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = members
        .iter()
        .map(|member| {
            vec![
                member.name.clone(),
                role(member).into(),
                if member.reachable { "yes" } else { "no" }.into(),
                member.client_address.clone(),
                member.peer_address.clone(),
                member.version.clone(),
                member.node.to_string(),
            ]
        })
        .collect();
    output::table(&["NAME", "ROLE", "REACHED", "CLIENTS", "PEERS", "VERSION", "ID"], &rows)?;
    Ok(())
}

/// What a node is in the catalog's group.
pub fn role(member: &MemberInfo) -> &'static str {
    match member {
        MemberInfo { leaving: true, .. } => "leaving",
        MemberInfo { leader: true, .. } => "leader",
        MemberInfo { voter: true, .. } => "voter",
        _ => "learner",
    }
}

/// A node, for programs.
pub fn member_json(member: &MemberInfo) -> serde_json::Value {
    json!({
        "node": member.node.to_string(),
        "name": member.name,
        "role": role(member),
        "reachable": member.reachable,
        "client_address": member.client_address,
        "peer_address": member.peer_address,
        "version": member.version,
        "joined": output::time(member.joined),
    })
}

/// A node adds itself when it is started; this says how.
fn tell_how_to_add(global: &Global, name: &str, members: &[MemberInfo]) -> anyhow::Result<()> {
    if members.iter().any(|member| member.name == name) {
        anyhow::bail!(
            "there is a node called {name:?} already: choose another name, or remove that one first"
        );
    }
    let reached: Vec<&str> = members
        .iter()
        .filter(|member| member.reachable && !member.client_address.is_empty())
        .map(|member| member.client_address.as_str())
        .collect();
    let command = format!(
        "statehouse serve --data-dir DIR --name {name} --client HOST:PORT --peer HOST:PORT --join {}",
        reached.join(",")
    );
    if global.json {
        output::json(&json!({ "run": command }))?;
    } else {
        output::line(format_args!(
            "Start it on its computer, with addresses that the others reach:\n  {command}"
        ))?;
    }
    Ok(())
}
