//! `statehouse status`: how a node is.

use clap::Args;
use serde_json::json;

use super::machine::Names;
use super::{Global, machine, member, output};
use crate::client::RemoteStatus;
use crate::node::request::{MachineInfo, MemberInfo};

/// Show how the node is, the cluster, and its machines
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        statehouse status\n  \
        statehouse status --endpoints 10.0.0.1:7070 --json | jq .not_ready")]
pub struct Status {}

impl Status {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let status = client.status().await?;
        let machines = client.machines().await?;
        let (_, members) = client.members().await?;
        match global.json {
            true => json(&status, &machines, &members),
            false => text(&status, &machines, &members),
        }
    }
}

fn json(status: &RemoteStatus, machines: &[MachineInfo], members: &[MemberInfo]) -> anyhow::Result<()> {
    output::json(&json!({
        "node": status.node.to_string(),
        "name": status.name,
        "version": status.version,
        "engine": status.engine,
        "uptime_ms": status.uptime.as_millis() as u64,
        "data_dir": status.data_dir,
        "modules": status.modules,
        "not_ready": status.not_ready,
        "members": members.iter().map(member::member_json).collect::<Vec<_>>(),
        "machines": machines.iter().map(machine::machine_json).collect::<Vec<_>>(),
    }))?;
    Ok(())
}

fn text(status: &RemoteStatus, machines: &[MachineInfo], members: &Vec<MemberInfo>) -> anyhow::Result<()> {
    let ready = status.not_ready.as_ref().map_or("yes".into(), |why| format!("no: {why}"));
    output::line(format_args!("node      {} ({})", status.name, status.node))?;
    output::line(format_args!("ready     {ready}"))?;
    output::line(format_args!("version   {}", status.version))?;
    output::line(format_args!("engine    {}", status.engine))?;
    output::line(format_args!("up        {}", duration(status.uptime.as_secs())))?;
    output::line(format_args!("data      {}", status.data_dir.display()))?;
    output::line(format_args!("modules   {}", status.modules))?;
    output::line(format_args!("machines  {}", status.machines))?;
    if members.len() > 1 {
        output::line("")?;
        member::table(members)?;
    }
    if !machines.is_empty() {
        output::line("")?;
        machine::table(machines, &Names::from(members))?;
    }
    Ok(())
}

/// So many seconds, in the two largest units.
fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [(7, "7 s"), (67, "1 min 7 s"), (7_384, "2 h 3 min"), (180_000, "2 d 2 h")] {
            assert_eq!(duration(seconds), text);
        }
    }
}
