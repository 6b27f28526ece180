//! `statehouse module run`: a prompt on one machine in memory.
//!
//! On a terminal a line that fails is told, and the next one is read. From a pipe or a file the first line
//! that fails ends the command with 1, so that scripts can be tests; a line that begins with `!` is to fail,
//! and one that begins with `=` is what the line before it is to have said.
//!
//! # Layout
//! - here: where lines come from, and what becomes of one that fails
//! - `command`: the lines, one function each

mod command;

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;

use super::super::{Global, Usage, output, payload};
use crate::trial::script::{Ending, Line, Said};
use crate::trial::{Host, Inspected, START_MS, Snapshot, engine};
use crate::wasm::{Codegen, Compiler};

/// Try a component at a prompt, on one machine in memory: no node, no files
#[derive(Debug, Args)]
#[command(after_help = "Lines of the prompt, or of standard input:\n  apply [--hex] TEXT|@FILE     a \
        command; the rest of the line is its text\n  query [--hex] TEXT|@FILE     a question\n  advance TIME \
                        lets time pass: 500ms, 10s, 5m, 2h, 30d; leases end\n  grant TIME [ID]              \
        a client's lease; also renew ID, revoke ID, leases\n  events [REVISION]            the events kept, \
        from a revision on\n  watch [PREFIX], unwatch      show events as they happen\n  state [PREFIX]      \
                 the rows of a stored machine\n  snapshot [NAME]              remembers the state; restore \
        [NAME] goes back to it\n  hash                         where the machine stands, and the hash over \
        all it did\n  help, quit\n\nEmpty lines and lines that begin with # are passed over. From a pipe, \
        the first line that fails ends the command with 1.\nIn scripts that are tests,\n  ! LINE             \
                  this line is to fail; !3 LINE: the machine refuses it with code 3\n  = TEXT                \
               the line before said this: its answer, its refusal, or its next event\n\nThe clock begins at \
        2026-01-01 and only `advance` moves it, so a script gives the same answers every \
        time.\n\nExamples:\n  statehouse module run notes.component.wasm\n  statehouse module run \
        counter.component.wasm --argument 40 < session.txt\n  printf 'apply a=1\\nquery a\\n' | statehouse \
        module run notes.component.wasm --json")]
pub struct Run {
    /// The component, or a core module that carries component metadata
    file: PathBuf,
    /// The configuration that the machine is created with
    #[arg(long, visible_alias = "init", value_name = "TEXT|@FILE", allow_negative_numbers = true)]
    argument: Option<String>,
}

/// Reads a module's file.
pub fn read_file(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The compiler that a node has: this program, in a process with limits.
pub fn compiler() -> anyhow::Result<Compiler> {
    let program = std::env::current_exe().context("cannot find this program, which compiles modules")?;
    Ok(Compiler::Process { program, limits: Default::default() })
}

impl Run {
    pub fn run(self, global: &Global) -> anyhow::Result<()> {
        let configuration = payload::read(self.argument.as_deref().unwrap_or_default(), false)?;
        let compiler = compiler()?;
        let inspected = Inspected::of(&read_file(&self.file)?, &compiler)?;
        let waiting = super::waiting("compiling")?;
        let module = inspected.load(&engine(Codegen::Optimised)?, &compiler);
        waiting.finish_and_clear();
        let module = module?;
        let mut session = Session::begin(Host::of_module(&module, inspected.digest, START_MS), global.json);
        session.create(configuration)?;
        if std::io::stdin().is_terminal() {
            let name = self.file.display();
            output::tell(format_args!("{name}: a {} machine in memory. Try `help`.", inspected.world.name()));
            session.prompt()
        } else {
            session.script(std::io::stdin().lock())
        }
    }
}

/// A machine with who sits before it.
struct Session {
    host: Host,
    json: bool,
    /// Events of keys that begin with this are shown as they happen.
    watched: Option<Vec<u8>>,
    snapshots: BTreeMap<String, Snapshot>,
    /// What the last command said.
    said: Said,
    /// Why the machine did not do it, if that was shown already.
    failure: Option<String>,
    /// The code with which the machine refused it, if it did.
    refused: Option<u32>,
}

/// Whether there is to be another line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Line,
    End,
}

impl Session {
    fn begin(host: Host, json: bool) -> Session {
        let (snapshots, said) = (BTreeMap::new(), Said::default());
        Session { host, json, watched: None, snapshots, said, failure: None, refused: None }
    }

    fn create(&mut self, configuration: Bytes) -> anyhow::Result<()> {
        let done = self.host.create(configuration)?;
        command::tell_notes(&done.notes);
        output::answer(&done.last().outcome).context("the machine was not created").map(drop)
    }

    /// Lines of a terminal: a failure is told, and the next line is read.
    fn prompt(mut self) -> anyhow::Result<()> {
        let mut lines = std::io::stdin().lock().lines();
        loop {
            let mut out = std::io::stderr().lock();
            // Without a terminal to write to, nobody reads the prompt either.
            let _ = out.write_all(b"> ").and_then(|()| out.flush());
            drop(out);
            let Some(line) = lines.next() else {
                // The prompt stands on the line where the shell goes on.
                output::tell("");
                return Ok(());
            };
            match self.line(&line.context("cannot read standard input")?) {
                Ok(Next::Line) => {}
                Ok(Next::End) => return Ok(()),
                Err(error) => output::tell(format_args!("error: {error:#}")),
            }
        }
    }

    /// Lines of a script: the first that fails is the end.
    fn script(mut self, lines: impl BufRead) -> anyhow::Result<()> {
        for (number, line) in lines.lines().enumerate() {
            let line = line.context("cannot read standard input")?;
            let place = || format!("line {}, {:?}", number + 1, line.trim());
            match self.line(&line).with_context(place)? {
                Next::Line => {}
                Next::End => break,
            }
        }
        self.said.end().map_err(anyhow::Error::msg).context("at the end")
    }

    fn line(&mut self, line: &str) -> anyhow::Result<Next> {
        let (ending, word, rest) = match Line::read(line) {
            Line::Nothing => return Ok(Next::Line),
            Line::Says(text) => {
                self.said.expect(text).map_err(anyhow::Error::msg)?;
                return Ok(Next::Line);
            }
            Line::Command { ending, word, rest } => (ending, word, rest),
        };
        self.said.end().map_err(anyhow::Error::msg)?;
        (self.failure, self.refused) = (None, None);
        let result = self.command(word, rest);
        let error = match (result, ending) {
            (result, Ending::Done) => return result,
            (Ok(_), _) => bail!("it was to fail, and was done"),
            (Err(error), _) if error.downcast_ref::<Usage>().is_some() => return Err(error),
            (Err(error), _) => error,
        };
        let told = self.failure.take().unwrap_or_else(|| format!("{error:#}"));
        if let Ending::Refused(code) = ending
            && self.refused != Some(code)
        {
            bail!("it was to be refused with code {code}: {told}");
        }
        self.said.say(&told);
        output::tell(format_args!("as it was to: {told}"));
        Ok(Next::Line)
    }
}
