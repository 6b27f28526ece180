//! `statehouse status`: how a node is.

use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::machine::Names;
use super::{Global, machine, member, output};
use crate::client::RemoteStatus;
use crate::node::request::{DiskUse, MachineInfo, MemberInfo, NodeReport, Surveyed};

/// Show how the node is, all nodes of the cluster, and the machines
#[derive(Debug, Args)]
#[command(after_help = "LAG: the largest number of log entries that a replica on the node lacks.\n\n\
        Examples:\n  \
        statehouse status\n  \
        statehouse status --endpoints 10.0.0.1:7070 --json | jq .not_ready")]
pub struct Status {}

impl Status {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let status = client.status().await?;
        let machines = client.machines().await?;
        let nodes = client.survey().await?;
        match global.json {
            true => json(&status, &machines, &nodes),
            false => text(&status, &machines, &nodes),
        }
    }
}

fn json(status: &RemoteStatus, machines: &[MachineInfo], nodes: &[Surveyed]) -> anyhow::Result<()> {
    let members = nodes.iter().map(|node| {
        let mut member = member::member_json(&node.member);
        member["lag"] = json!(lag(node, nodes));
        member["report"] = node.report.as_ref().map_or(json!(null), report_json);
        member["failure"] = json!(node.report.as_ref().err());
        member
    });
    output::json(&json!({
        "node": status.node.to_string(),
        "name": status.name,
        "version": status.version,
        "engine": status.engine,
        "uptime_ms": status.uptime.as_millis() as u64,
        "data_dir": status.data_dir,
        "modules": status.modules,
        "not_ready": status.not_ready,
        "members": members.collect::<Vec<_>>(),
        "machines": machines.iter().map(machine::machine_json).collect::<Vec<_>>(),
    }))?;
    Ok(())
}

fn report_json(report: &NodeReport) -> Value {
    let disk = report.disk.unwrap_or_default();
    json!({
        "uptime_ms": report.uptime_ms,
        "groups": report.groups,
        "leading": report.leading,
        "asleep": report.asleep,
        "halted": report.halted,
        "unapplied": report.unapplied,
        "disk": {
            "log_bytes": disk.log_bytes,
            "state_bytes": disk.state_bytes,
            "snapshots_bytes": disk.snapshots_bytes,
            "modules_bytes": disk.modules_bytes,
            "free_bytes": disk.free_bytes,
        },
    })
}

fn text(status: &RemoteStatus, machines: &[MachineInfo], nodes: &[Surveyed]) -> anyhow::Result<()> {
    let ready = status.not_ready.as_ref().map_or("yes".into(), |why| format!("no: {why}"));
    output::line(format_args!("node      {} ({})", status.name, status.node))?;
    output::line(format_args!("ready     {ready}"))?;
    output::line(format_args!("version   {}", status.version))?;
    output::line(format_args!("engine    {}", status.engine))?;
    output::line(format_args!("up        {}", duration(status.uptime.as_secs())))?;
    output::line(format_args!("data      {}", status.data_dir.display()))?;
    if let Some(disk) = own_disk(status, nodes) {
        output::line(format_args!("disk      {}", disk_text(&disk)))?;
    }
    output::line(format_args!("modules   {}", status.modules))?;
    output::line(format_args!("machines  {}", status.machines))?;
    output::line("")?;
    table(nodes)?;
    if !machines.is_empty() {
        output::line("")?;
        let members: Vec<MemberInfo> = nodes.iter().map(|node| node.member.clone()).collect();
        machine::table(machines, &Names::from(&members))?;
    }
    Ok(())
}

fn own_disk(status: &RemoteStatus, nodes: &[Surveyed]) -> Option<DiskUse> {
    let own = nodes.iter().find(|node| node.member.node == status.node)?;
    own.report.as_ref().ok()?.disk
}

fn disk_text(disk: &DiskUse) -> String {
    let free = disk.free_bytes.map(|free| format!("; {} free", HumanBytes(free))).unwrap_or_default();
    format!(
        "log {}, state {}, snapshots {}, modules {}{free}",
        HumanBytes(disk.log_bytes),
        HumanBytes(disk.state_bytes),
        HumanBytes(disk.snapshots_bytes),
        HumanBytes(disk.modules_bytes),
    )
}

/// The nodes as a table, those that do not answer with the reason.
fn table(nodes: &[Surveyed]) -> anyhow::Result<()> {
    let row = |node: &Surveyed| {
        let member = &node.member;
        let mut row = vec![member.name.clone(), member::role(member).into()];
        match &node.report {
            Err(why) => {
                row.push(format!("silent: {}", output::printable(why.as_bytes())));
                row.extend(std::iter::repeat_n(String::new(), 5));
            }
            Ok(report) => {
                row.push(format!("up {}", duration(report.uptime_ms / 1_000)));
                for number in [report.groups, report.leading, report.asleep, report.halted] {
                    row.push(number.to_string());
                }
                let disk = report.disk.unwrap_or_default();
                let used = disk.log_bytes + disk.state_bytes + disk.snapshots_bytes + disk.modules_bytes;
                row.push(HumanBytes(used).to_string());
            }
        }
        row.push(lag(node, nodes).map(|entries| entries.to_string()).unwrap_or_default());
        row.extend([member.client_address.clone(), member.version.clone(), member.node.to_string()]);
        row
    };
    let rows: Vec<_> = nodes.iter().map(row).collect();
    let heading = [
        "NAME", "ROLE", "STATE", "GROUPS", "LEADS", "ASLEEP", "HALTED", "DISK", "LAG", "CLIENTS", "VERSION",
        "ID",
    ];
    output::table(&heading, &rows)?;
    Ok(())
}

/// The largest number of entries that a replica on this node lacks: as the leaders know, or itself, of what
/// it has yet to apply. None if nobody knows.
fn lag(node: &Surveyed, nodes: &[Surveyed]) -> Option<u64> {
    let reports = nodes.iter().filter_map(|other| other.report.as_ref().ok());
    let known = reports.flat_map(|report| &report.behind).filter(|behind| behind.node == node.member.node.0);
    let unapplied = node.report.as_ref().ok().map(|report| report.unapplied);
    known.map(|behind| behind.entries).chain(unapplied).max()
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
