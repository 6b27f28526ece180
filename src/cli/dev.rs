//! `statehouse dev`: a node to try things with, and nothing to configure.

use std::path::PathBuf;
use std::process::ExitCode;

use bytes::Bytes;
use clap::Args;

use super::running::{self, Service};
use super::{Global, address, output};
use crate::config::{CLIENT_ADDRESS, ConfigFile, Listen};
use crate::error::Error;

/// The machine that is there from the start.
const MACHINE: &str = "kv";

/// Run a node to try things with: a machine `kv` is there, and nothing needs to be configured
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        statehouse dev\n  \
        statehouse dev --data-dir /tmp/trial --client 127.0.0.1:0")]
pub struct Dev {
    /// Where the node keeps everything; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "statehouse-data")]
    data_dir: PathBuf,
    /// Where to listen for clients
    #[arg(long, value_name = "HOST:PORT", default_value = CLIENT_ADDRESS, value_parser = address)]
    client: String,
    /// Where to serve /metrics, /healthz and /readyz
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7072", value_parser = address)]
    http: String,
}

impl Dev {
    pub async fn run(self, global: &Global) -> anyhow::Result<ExitCode> {
        let file = ConfigFile { bootstrap: Some(true), ..ConfigFile::default() };
        let listen = Listen { client: self.client, http: Some(self.http), ..Listen::default() };
        let node = running::node_config(&file, self.data_dir)?;
        let service = running::start(node, &listen, file.limits).await?;
        create_machine(&service).await?;
        welcome(&service, global.json)?;
        service.until_end().await
    }
}

async fn create_machine(service: &Service) -> Result<(), Error> {
    if let Err(Error::NotFound(_)) = service.node.machine(MACHINE) {
        let module = service.node.builtin("kv").await?;
        service.node.create_machine(MACHINE, module, Bytes::new()).await?;
    }
    Ok(())
}

fn welcome(service: &Service, as_json: bool) -> anyhow::Result<()> {
    let client = service.addresses.client;
    let http = service.addresses.http.map(|http| http.to_string()).unwrap_or_default();
    let data_dir = service.node.status().data_dir;
    if as_json {
        output::json(&serde_json::json!({
            "ready": {
                "name": service.node.status().name,
                "client": client.to_string(),
                "http": http,
                "data_dir": data_dir,
            }
        }))?;
    }
    let endpoints = match client.to_string() {
        address if address == CLIENT_ADDRESS => String::new(),
        address => format!("  export STATEHOUSE_ENDPOINTS={address}\n"),
    };
    output::tell(format_args!(
        "node is ready: client {client}, http {http}, data {}\n\
         There is a machine called `{MACHINE}`. In another terminal, try\n{endpoints}  \
         statehouse kv put colour green\n  \
         statehouse kv get colour\n  \
         statehouse status\n\
         Ctrl-C stops the node; started again it has everything.",
        data_dir.display()
    ));
    Ok(())
}
