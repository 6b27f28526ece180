//! The command line: one file a command.
//!
//! Data goes to standard output, everything else to standard error. A command ends with 0 if it was done, 1
//! if it failed and 2 if it was not understood. With `--json` both streams are JSON: one object or array of
//! data, one object of an error.
//!
//! # Layout
//! - `serve`, `dev`: run a node; `soak`: run a cluster under churn; `running`: what nodes have in common
//! - `module`, `machine`, `member`, `apply`, `query`, `kv`, `lease`, `session`, `watch`, `status`: talk to
//!   one
//! - `import_etcd`: brings an etcd's keys to one
//! - `completions`, `compile_module`: for shells, and for a node's own use
//! - `payload`, `duration`: arguments that stand for bytes and times; `output`: how data is shown;
//!   `telemetry`: the log and traces
//! - `explain`: why a replica halted, for people; `settings`: of machines

mod apply;
mod compile_module;
mod completions;
mod dev;
mod duration;
mod exit;
mod explain;
mod import_etcd;
mod kv;
mod lease;
mod machine;
mod member;
mod module;
mod output;
mod payload;
mod query;
mod running;
mod serve;
mod session;
mod settings;
mod soak;
mod status;
mod telemetry;
mod watch;

use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

pub use self::exit::ExitCode;
use crate::client::Client;
use crate::config::{CLIENT_ADDRESS, check_address};
use crate::proto::status as wire_status;
use crate::time;
use crate::trace::TraceContext;

/// Statehouse runs your state machine, compiled to WebAssembly, on a replicated log.
#[derive(Debug, Parser)]
#[command(
    name = "statehouse",
    version,
    after_help = "Examples:\n  \
        statehouse dev                          # a node to try things with\n  \
        statehouse kv put colour green\n  \
        statehouse kv get colour\n  \
        statehouse machine create notes --module notes.component.wasm\n  \
        statehouse apply notes 'remember the milk'"
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
struct Global {
    /// Nodes to talk to, with commas between them; the first that answers is used
    #[arg(
        long,
        global = true,
        env = "STATEHOUSE_ENDPOINTS",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = CLIENT_ADDRESS,
        value_parser = address,
        help_heading = "Global options"
    )]
    endpoints: Vec<String>,

    /// Print data, and errors, as JSON
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,

    /// How long a request may take
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..=86_400),
        help_heading = "Global options"
    )]
    timeout: u64,

    /// What to log to standard error: error, warn, info, debug, trace, or a filter such as
    /// `statehouse::raft=debug,info` [default: info for a node, warn for the others]
    #[arg(
        long,
        global = true,
        env = "STATEHOUSE_LOG",
        value_name = "FILTER",
        help_heading = "Global options"
    )]
    log: Option<String>,

    /// Have the nodes follow the requests, and print the name of their trace on standard error
    #[arg(long, global = true, help_heading = "Global options")]
    trace: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Serve>),
    Dev(dev::Dev),
    #[command(subcommand)]
    Module(module::Module),
    #[command(subcommand)]
    Machine(machine::Machine),
    #[command(subcommand)]
    Member(member::Member),
    Apply(apply::Apply),
    Query(query::Query),
    Kv(kv::Kv),
    #[command(subcommand)]
    Session(session::Session),
    Watch(watch::Watch),
    Lease(lease::Lease),
    Status(status::Status),
    ImportEtcd(import_etcd::ImportEtcd),
    Soak(soak::Soak),
    Completions(completions::Completions),
    #[command(hide = true)]
    CompileModule(compile_module::CompileModule),
}

/// An argument that parses but makes no sense: the command ends with 2.
#[derive(Debug)]
struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The command was done, but the answer is a no that was already shown as data: the command ends with 1.
#[derive(Debug)]
struct Shown;

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("refused")
    }
}

impl std::error::Error for Shown {}

fn address(text: &str) -> Result<String, String> {
    check_address(text).map(|()| text.to_string())
}

/// Runs one command line and says how the process is to end.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && arguments.iter().any(|argument| argument == "--json") => {
            let text = error.to_string();
            tell_as_json("USAGE", text.strip_prefix("error: ").unwrap_or(&text).trim_end());
            return ExitCode::from(2);
        }
        Err(error) => {
            // Nothing is left to tell if the terminal is gone.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let Cli { global, command } = cli;
    match command.run(&global) {
        Ok(code) => code,
        Err(error) => fail(&global, &error),
    }
}

impl Command {
    fn run(self, global: &Global) -> anyhow::Result<ExitCode> {
        let serves = matches!(self, Command::Serve(_) | Command::Dev(_) | Command::Soak(_));
        match self {
            Command::CompileModule(command) => return Ok(command.run()),
            Command::Completions(command) => return command.run(),
            _ => {}
        }
        let mut runtime = match serves {
            true => tokio::runtime::Builder::new_multi_thread(),
            false => tokio::runtime::Builder::new_current_thread(),
        };
        let runtime = runtime.enable_all().build()?;
        let ended = runtime.block_on(self.run_async(global));
        // A module that is being compiled, or whatever else blocks a thread, must not hold up the end.
        runtime.shutdown_background();
        ended
    }

    async fn run_async(self, global: &Global) -> anyhow::Result<ExitCode> {
        if let Command::Serve(command) = self {
            return command.run(global).await;
        }
        let default = match self {
            Command::Dev(_) => "info",
            // Its nodes go down and come back all the time: what they warn of is what is done to them.
            Command::Soak(_) => "error",
            _ => "warn",
        };
        let _export = telemetry::start(global, default, None)?;
        match self {
            Command::Dev(command) => return command.run(global).await,
            Command::Module(command) => command.run(global).await?,
            Command::Machine(command) => command.run(global).await?,
            Command::Member(command) => command.run(global).await?,
            Command::Apply(command) => command.run(global).await?,
            Command::Query(command) => command.run(global).await?,
            Command::Kv(command) => return command.run(global).await,
            Command::Lease(command) => command.run(global).await?,
            Command::Session(command) => command.run(global).await?,
            Command::Watch(command) => command.run(global).await?,
            Command::Status(command) => command.run(global).await?,
            Command::ImportEtcd(command) => command.run(global).await?,
            Command::Soak(command) => return command.run(global).await,
            Command::Serve(_) | Command::Completions(_) | Command::CompileModule(_) => {
                unreachable!("they have returned")
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Global {
    /// A client of the endpoints.
    fn client(&self) -> anyhow::Result<Client> {
        let client = Client::new(&self.endpoints)?.with_timeout(Duration::from_secs(self.timeout));
        if !self.trace {
            return Ok(client);
        }
        let trace = TraceContext::new(std::array::from_fn(|_| time::seed()));
        output::tell(format_args!("trace {}", trace.trace_id()));
        Ok(client.with_trace(trace))
    }
}

/// Tells an error on standard error, and the exit code for it.
fn fail(global: &Global, error: &anyhow::Error) -> ExitCode {
    let root = error.root_cause();
    let broken_pipe = |e: &std::io::Error| e.kind() == ErrorKind::BrokenPipe;
    if root.downcast_ref::<std::io::Error>().is_some_and(broken_pipe) {
        // Whoever read our output has seen enough, as `head` does.
        return ExitCode::SUCCESS;
    }
    let usage = error.downcast_ref::<Usage>().is_some();
    if error.downcast_ref::<Shown>().is_none() {
        if global.json {
            let reason = match error.downcast_ref::<crate::error::Error>() {
                Some(error) => wire_status::reason(error),
                None if usage => "USAGE",
                None => "FAILED",
            };
            tell_as_json(reason, &format!("{error:#}"));
        } else {
            output::tell(format_args!("error: {error:#}"));
        }
    }
    ExitCode::from(if usage { 2 } else { 1 })
}

fn tell_as_json(reason: &str, message: &str) {
    output::tell(serde_json::json!({ "error": { "reason": reason, "message": message } }));
}

/// The whole command line, for completions and for tests.
fn definition() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_examples() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            if command.is_hide_set() || command.get_name() == "help" {
                return;
            }
            assert!(command.get_about().is_some(), "{path} does not say what it does");
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(examples.contains("statehouse "), "{path} has no examples");
            command.get_subcommands().for_each(|command| check(command, &path));
        }
        check(&definition(), "");
    }

    /// What the manual has people type.
    const MANUAL: &[&str] = &[
        "statehouse serve --data-dir D --name N --client 0.0.0.0:0 --peer h:1 --http [::1]:2 --bootstrap",
        "statehouse serve --config FILE",
        "statehouse serve --data-dir D --name N --join a:1,b:2 --advertise host",
        "statehouse dev",
        "statehouse dev --data-dir D",
        "statehouse module new tally --lang typescript --world resident",
        "statehouse module build tally --world stored",
        "statehouse module push FILE",
        "statehouse module list --json",
        "statehouse module run FILE --init -5",
        "statehouse module check FILE",
        "statehouse module check FILE --commands FILE --seed 7 --count 100 --argument TEXT",
        "statehouse machine create NAME --module builtin:kv --init TEXT",
        "statehouse machine create NAME --module x.wasm --init @FILE",
        "statehouse machine create NAME --module builtin:kv --replicas 5",
        "statehouse machine create NAME --module builtin:kv --set leases_max=5 --set history_age=1h",
        "statehouse machine set NAME leases_max=5 history_age=1h session_window=default",
        "statehouse import-etcd FILE",
        "statehouse import-etcd HOST:2379 --machine NAME --merge",
        "statehouse machine upgrade NAME --module FILE --argument @FILE",
        "statehouse machine list",
        "statehouse machine show NAME",
        "statehouse machine verify NAME",
        "statehouse machine reseed NAME --node N",
        "statehouse machine explain NAME --node N",
        "statehouse machine delete NAME",
        "statehouse member list",
        "statehouse member promote NAME",
        "statehouse member remove NAME",
        "statehouse member transfer-leader --to NAME",
        "statehouse member transfer-leader --machine kv --to NAME",
        "statehouse dev --nodes 3",
        "statehouse apply NAME TEXT",
        "statehouse apply NAME @FILE --hex",
        "statehouse apply NAME -",
        "statehouse apply NAME TEXT --session 7 --number 2 --acknowledged 1",
        "statehouse session open",
        "statehouse session open --ttl 5m --machine notes",
        "statehouse session close 7 --machine notes",
        "statehouse query NAME TEXT --consistency local --min-index 5",
        "statehouse query NAME - --hex --consistency lease",
        "statehouse kv put K V",
        "statehouse kv --machine other put K -1",
        "statehouse kv put K V --ttl 30s",
        "statehouse kv put K V --lease 7",
        "statehouse kv get K --prefix --rev 4 --limit 10",
        "statehouse kv del K --prefix",
        "statehouse kv txn @FILE",
        "statehouse kv compact 7",
        "statehouse kv lock NAME -- COMMAND",
        "statehouse kv lock NAME --ttl 30s --wait 5m -- COMMAND --with -4 arguments",
        "statehouse lease grant",
        "statehouse lease grant --ttl 10s --id 7 --machine kv",
        "statehouse lease renew 7 8",
        "statehouse lease keep-alive 7",
        "statehouse lease revoke 7",
        "statehouse lease show 7",
        "statehouse lease list",
        "statehouse status --endpoints a:1,b:2 --timeout 5 --log debug",
        "statehouse completions bash",
        "statehouse compile-module 1 2 3 4",
    ];

    #[test]
    fn every_line_of_the_manual_is_understood() {
        let digest = "0".repeat(64);
        let with_digest = [
            format!("statehouse module show {digest}"),
            format!("statehouse machine create NAME --module {digest}"),
        ];
        for line in MANUAL.iter().copied().chain(with_digest.iter().map(String::as_str)) {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn what_is_not_understood_ends_with_2() {
        for line in [
            "statehouse",
            "statehouse servee",
            "statehouse apply NAME",
            "statehouse apply NAME TEXT --session 7",
            "statehouse apply NAME TEXT --number 7",
            "statehouse apply NAME TEXT --acknowledged 7",
            "statehouse session open --ttl 0s",
            "statehouse session close",
            "statehouse module new tally",
            "statehouse module new tally --lang cobol",
            "statehouse module build tally --world both",
            "statehouse query NAME TEXT --consistency soon",
            "statehouse query NAME TEXT --min-index -1",
            "statehouse status --endpoints nowhere",
            "statehouse status --timeout 0",
            "statehouse kv compact many",
            "statehouse kv put K V --ttl 30",
            "statehouse kv put K V --ttl 0s",
            "statehouse kv put K V --ttl 3651d",
            "statehouse kv put K V --ttl 30s --lease 7",
            "statehouse kv put K V --lease 0",
            "statehouse kv lock NAME",
            "statehouse kv lock NAME COMMAND",
            "statehouse kv lock NAME --ttl 499ms -- COMMAND",
            "statehouse kv lock NAME --ttl 2d -- COMMAND",
            "statehouse lease grant --ttl 0s",
            "statehouse lease grant --ttl 36501d",
            "statehouse lease grant --id 0",
            "statehouse lease renew",
            "statehouse machine create NAME",
            "statehouse machine create NAME --module builtin:kv --set leases_max=0",
            "statehouse machine set NAME",
            "statehouse machine set NAME leases=5",
            "statehouse machine create NAME --module builtin:kv --replicas 8",
            "statehouse serve --bootstrap --join a:1",
            "statehouse member remove",
        ] {
            let error = parse(line).err().unwrap_or_else(|| panic!("{line} is understood"));
            assert!(error.use_stderr(), "{line}");
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
