//! `statehouse serve`: runs a node.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::running::{self, Service};
use super::telemetry::Collector;
use super::{Global, Usage, address, output, telemetry};
use crate::api::Server;
use crate::cli::ExitCode;
use crate::config::{self, ConfigFile, EtcdListen, Listen};

/// Run a node
#[derive(Debug, Args)]
#[command(
    after_help = "When the node is ready, one line on standard error says where it listens; with --json, one \
        object on standard output does too. Port 0 leaves the choice of a port to the system.\nSIGTERM and \
        SIGINT stop the node cleanly; a second one ends it at once. Ends with 1 and the reason if the node \
        cannot start, or stops because its disk failed.\n\nExamples:\n  statehouse serve --data-dir \
        /var/lib/statehouse --name a --bootstrap\n  statehouse serve --data-dir /var/lib/statehouse --name b \
        --join 10.0.0.1:7070\n  statehouse serve --config /etc/statehouse.toml --http 127.0.0.1:7072\n  \
        statehouse serve --print-config > statehouse.toml"
)]
pub struct Serve {
    /// Where the node keeps everything; made if it is not there
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// What people call the node [default: node-1]
    #[arg(long, value_name = "NAME", value_parser = node_name)]
    name: Option<String>,
    /// Where to listen for clients [default: 127.0.0.1:7070]
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    client: Option<String>,
    /// Where to listen for other nodes [default: 127.0.0.1:7071]
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    peer: Option<String>,
    /// Where to serve /metrics, /healthz and /readyz [default: nowhere]
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    http: Option<String>,
    /// Where to serve etcd's v3 API, for programs written for etcd [default: nowhere]
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    etcd: Option<String>,
    /// The machine that answers them; created when the cluster begins [default: kv]
    #[arg(long, value_name = "NAME", requires = "etcd")]
    machine: Option<String>,
    /// Send the spans of traced requests to this collector (OTLP over gRPC), instead of to the log
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    otlp: Option<String>,
    /// What others call this computer; needed if it listens on all its addresses, such as 0.0.0.0:7070
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Begin a new cluster if the data directory is empty
    #[arg(long, conflicts_with = "join")]
    bootstrap: bool,
    /// Join the cluster of the node at this client address if the data directory is empty; several with
    /// commas between them are asked in turn
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = address)]
    join: Vec<String>,
    /// A file of settings; flags go before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print such a file with every setting, its default and range, and end
    #[arg(long)]
    print_config: bool,
}

fn node_name(text: &str) -> Result<String, String> {
    config::check_node_name(text).map(|()| text.to_string())
}

impl Serve {
    pub async fn run(self, global: &Global) -> anyhow::Result<ExitCode> {
        if self.print_config {
            output::line(config::example().trim_end())?;
            return Ok(ExitCode::SUCCESS);
        }
        let file = self.merged()?;
        let name = file.name.as_deref().unwrap_or(running::NODE_NAME);
        let collector = file.otlp.as_deref().map(|address| Collector { address, node: name });
        let _export = telemetry::start(global, "info", collector)?;
        let data_dir = file.data_dir.clone().ok_or_else(|| {
            Usage("no data directory: give --data-dir, or `data_dir` in the file of --config".into())
        })?;
        let listen = listen(&file);
        let node = running::node_config(&file, data_dir, &listen)?;
        let server = Server::bind(&listen).await?;
        let service = running::start(node, server, &listen, file.limits).await?;
        announce(&service, global.json)?;
        service.until_end().await
    }

    /// The file's settings, with the flags before them.
    fn merged(&self) -> anyhow::Result<ConfigFile> {
        let file = match &self.config {
            Some(path) => read(path)?,
            None => ConfigFile::default(),
        };
        Ok(ConfigFile {
            data_dir: self.data_dir.clone().or(file.data_dir),
            name: self.name.clone().or(file.name),
            bootstrap: if self.bootstrap { Some(true) } else { file.bootstrap },
            join: if self.join.is_empty() { file.join } else { self.join.clone() },
            advertise: self.advertise.clone().or(file.advertise),
            client: self.client.clone().or(file.client),
            peer: self.peer.clone().or(file.peer),
            http: self.http.clone().or(file.http),
            etcd: self.etcd.clone().or(file.etcd),
            etcd_machine: self.machine.clone().or(file.etcd_machine),
            otlp: self.otlp.clone().or(file.otlp),
            ..file
        })
    }
}

fn read(path: &PathBuf) -> anyhow::Result<ConfigFile> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    ConfigFile::parse(&text)
        .map_err(|errors| Usage(format!("{} has mistakes:\n{errors}", path.display())).into())
}

fn listen(file: &ConfigFile) -> Listen {
    let default = Listen::default();
    Listen {
        client: file.client.clone().unwrap_or(default.client),
        peer: file.peer.clone().or(default.peer),
        advertise: file.advertise.clone(),
        http: file.http.clone(),
        etcd: file.etcd.clone().map(|address| EtcdListen {
            address,
            machine: file.etcd_machine.clone().unwrap_or_else(|| config::ETCD_MACHINE.to_owned()),
        }),
    }
}

/// One line that says that the node serves, and where: people read it, and programs wait for it.
fn announce(service: &Service, as_json: bool) -> anyhow::Result<()> {
    let status = service.node.status();
    let addresses = &service.addresses;
    let http = addresses.http.map(|http| http.to_string());
    let etcd = addresses.etcd.map(|etcd| etcd.to_string());
    if as_json {
        output::json(&json!({
            "ready": {
                "name": status.name,
                "client": addresses.client.to_string(),
                "peer": addresses.peer,
                "http": http,
                "etcd": etcd,
                "data_dir": status.data_dir,
            }
        }))?;
    }
    let http = http.map(|http| format!(", http {http}")).unwrap_or_default();
    let peer = addresses.peer.as_ref().map(|peer| format!(", peer {peer}")).unwrap_or_default();
    let (name, data) = (status.name, status.data_dir.display());
    let client = addresses.client;
    let etcd = etcd.map(|etcd| format!(", etcd {etcd}")).unwrap_or_default();
    output::tell(format_args!("node {name} is ready: client {client}{peer}{http}{etcd}, data {data}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve() -> Serve {
        Serve {
            data_dir: None,
            name: None,
            client: None,
            peer: None,
            http: None,
            etcd: None,
            machine: None,
            otlp: None,
            advertise: None,
            bootstrap: false,
            join: Vec::new(),
            config: None,
            print_config: false,
        }
    }

    #[test]
    fn flags_go_before_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.toml");
        let text =
            "data_dir = 'f'\nname = 'file'\nbootstrap = true\n[listen]\nclient = 'f:1'\nhttp = 'f:2'\n";
        std::fs::write(&path, text).unwrap();
        let flags =
            Serve { config: Some(path), name: Some("flag".into()), http: Some("g:3".into()), ..serve() };
        let merged = flags.merged().unwrap();
        assert_eq!(merged.data_dir, Some("f".into()));
        assert_eq!(merged.name.as_deref(), Some("flag"));
        assert_eq!(merged.bootstrap, Some(true));
        let listen = listen(&merged);
        assert_eq!((listen.client.as_str(), listen.http.as_deref()), ("f:1", Some("g:3")));
        assert_eq!(listen.peer.as_deref(), Some(config::PEER_ADDRESS));
    }

    #[test]
    fn mistakes_in_the_file_are_a_usage_error_with_all_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.toml");
        std::fs::write(&path, "nam = 'x'\n[limits]\ncommand_bytes_max = 0\n").unwrap();
        let error = Serve { config: Some(path), ..serve() }.merged().unwrap_err();
        let text = error.downcast_ref::<Usage>().expect("a usage error").to_string();
        assert!(text.contains("line 1: ") && text.contains("line 3: "), "{text}");
    }
}
