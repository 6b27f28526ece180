//! `statehouse dev`: a node to try things with, and nothing to configure.

use std::path::PathBuf;

use clap::Args;
use futures_util::future;

use super::running::{self, Service};
use super::{Global, Usage, address, output};
use crate::api::Server;
use crate::cli::ExitCode;
use crate::config::{CLIENT_ADDRESS, ConfigFile, ETCD_MACHINE, EtcdListen, Listen};

/// The machine that is there from the start.
const MACHINE: &str = ETCD_MACHINE;

/// Run a node to try things with, or several: a machine `kv` is there, and nothing needs to be configured
#[derive(Debug, Args)]
#[command(
    after_help = "With --nodes, each node has a directory of its own within the data directory, and ports \
        ten above those of the one before.\n\nExamples:\n  \
        statehouse dev\n  \
        statehouse dev --nodes 3\n  \
        statehouse dev --data-dir /tmp/trial --client 127.0.0.1:0"
)]
pub struct Dev {
    /// Where the nodes keep everything; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "statehouse-data")]
    data_dir: PathBuf,
    /// Run a cluster of so many nodes in this process
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Where to listen for clients
    #[arg(long, value_name = "HOST:PORT", default_value = CLIENT_ADDRESS, value_parser = address)]
    client: String,
    /// Where to serve /metrics, /healthz and /readyz
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7072", value_parser = address)]
    http: String,
    /// Where to serve etcd's v3 API, answered by the machine `kv`
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    etcd: Option<String>,
}

/// How far the ports of one node are from those of the next.
const PORTS_APART: u16 = 10;

impl Dev {
    pub async fn run(self, global: &Global) -> anyhow::Result<ExitCode> {
        let mut bound = Vec::new();
        for number in 0..self.nodes {
            let listen = self.listen(number)?;
            bound.push((Server::bind(&listen).await?, listen));
        }
        let first = bound[0].0.addresses().client.to_string();
        let starting =
            (0..self.nodes).zip(bound).map(|(number, bound)| self.start(number, bound, first.clone()));
        let services = future::try_join_all(starting).await?;
        running::create_kv(&services[0].node, MACHINE).await?;
        welcome(&services, global.json)?;
        let ended = future::try_join_all(services.into_iter().map(Service::until_end)).await?;
        Ok(ended.into_iter().next().unwrap_or(ExitCode::SUCCESS))
    }

    fn etcd_listen(&self, number: u16) -> Result<Option<EtcdListen>, Usage> {
        let Some(address) = &self.etcd else { return Ok(None) };
        let address = moved("--etcd", address, number * PORTS_APART)?;
        Ok(Some(EtcdListen { address, machine: MACHINE.to_owned() }))
    }

    fn listen(&self, number: u16) -> Result<Listen, Usage> {
        let at = |offset: u16| moved("--client", &self.client, number * PORTS_APART + offset);
        Ok(Listen {
            client: at(0)?,
            peer: if self.nodes == 1 { None } else { Some(at(1)?) },
            http: (number == 0).then(|| self.http.clone()),
            advertise: None,
            etcd: self.etcd_listen(number)?,
        })
    }

    /// Starts one node behind its sockets. The first begins the cluster, the others join it.
    async fn start(&self, number: u16, bound: (Server, Listen), first: String) -> anyhow::Result<Service> {
        let (server, listen) = bound;
        let begins = number == 0;
        let name = format!("node-{}", number + 1);
        let data_dir = if self.nodes == 1 { self.data_dir.clone() } else { self.data_dir.join(&name) };
        let join = if begins { Vec::new() } else { vec![first] };
        let file = ConfigFile { name: Some(name), bootstrap: Some(begins), join, ..ConfigFile::default() };
        let config = running::node_config(&file, data_dir, &listen)?;
        running::start(config, server, &listen, file.limits).await
    }
}

/// The address whose port is so much higher; 0 leaves the choice of each to the system.
fn moved(flag: &str, address: &str, by: u16) -> Result<String, Usage> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let (host, port) = parts.ok_or_else(|| Usage(format!("{flag} {address:?} is not an address")))?;
    let port = match port {
        0 => 0,
        port => port
            .checked_add(by)
            .ok_or_else(|| Usage(format!("{flag} {address}: there are no ports left above it")))?,
    };
    Ok(format!("{host}:{port}"))
}

fn welcome(services: &[Service], as_json: bool) -> anyhow::Result<()> {
    let service = &services[0];
    let client = service.addresses.client;
    let http = service.addresses.http.map(|http| http.to_string()).unwrap_or_default();
    let clients: Vec<String> = services.iter().map(|service| service.addresses.client.to_string()).collect();
    let etcd: Vec<String> =
        services.iter().filter_map(|service| service.addresses.etcd).map(|etcd| etcd.to_string()).collect();
    let data_dir = service.node.status().data_dir;
    if as_json {
        output::json(&serde_json::json!({
            "ready": {
                "name": service.node.status().name,
                "client": client.to_string(),
                "clients": clients,
                "http": http,
                "etcd": etcd,
                "data_dir": data_dir,
            }
        }))?;
    }
    let endpoints = match clients.join(",") {
        addresses if addresses == CLIENT_ADDRESS => String::new(),
        addresses => format!("  export STATEHOUSE_ENDPOINTS={addresses}\n"),
    };
    let served = match etcd.join(",") {
        none if none.is_empty() => none,
        addresses => format!(", etcd {addresses}"),
    };
    let what = match services.len() {
        1 => "node is ready".to_owned(),
        nodes => format!("{nodes} nodes are ready"),
    };
    output::tell(format_args!(
        "{what}: client {client}, http {http}{served}, data {}\n\
         There is a machine called `{MACHINE}`. In another terminal, try\n{endpoints}  \
         statehouse kv put colour green\n  \
         statehouse kv get colour\n  \
         statehouse status\n\
         Ctrl-C stops it; started again it has everything.",
        data_dir.display()
    ));
    Ok(())
}
