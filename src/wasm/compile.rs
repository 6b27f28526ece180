//! Compilation in a process of its own: at low priority, with limits on memory and time, because some small
//! modules take minutes and gigabytes to compile.
//!
//! The parent writes the component to the child's standard input and reads the compiled form from its
//! standard output.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit};

use super::engine::{Engine, EngineSettings};

/// The hidden subcommand under which a program compiles.
pub const SUBCOMMAND: &str = "compile-module";

/// How often the parent looks whether the child has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What compiling one module may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompileLimits {
    /// Memory of the process.
    pub memory_bytes_max: u64,
    /// Processor time, and with some slack for a busy machine, time on the wall.
    pub seconds_max: u64,
}

impl Default for CompileLimits {
    fn default() -> CompileLimits {
        CompileLimits { memory_bytes_max: 3 << 30, seconds_max: 60 }
    }
}

/// Compiles modules.
#[derive(Clone, Debug)]
pub enum Compiler {
    /// In a process of its own: `program compile-module ...`.
    Process {
        /// The `statehouse` program, or another that hands this subcommand to [`child`].
        program: PathBuf,
        /// What it may use.
        limits: CompileLimits,
    },
    /// In this process, without limits: for programs that embed a node and only run modules they trust.
    InProcess,
}

/// Why a module was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The compiler refused it.
    #[error("{0}")]
    Refused(String),
    /// It took too long.
    #[error(
        "compiling takes more than {seconds_max} s of processor time, the limit: make the module smaller or \
         raise `compile_seconds_max`"
    )]
    TooLong {
        /// The limit.
        seconds_max: u64,
    },
    /// It took too much memory.
    #[error(
        "compiling takes more than {memory_bytes_max} bytes of memory, the limit: make the module smaller or \
         raise `compile_memory_bytes_max`"
    )]
    TooMuchMemory {
        /// The limit.
        memory_bytes_max: u64,
    },
    /// The process could not be run.
    #[error("the compiler process {program} cannot be run: {error}")]
    Process {
        /// The program.
        program: String,
        /// What the operating system said.
        error: String,
    },
}

impl Compiler {
    /// Compiles a validated component. Blocks.
    pub fn compile(&self, engine: &Engine, component: &[u8]) -> Result<Vec<u8>, CompileError> {
        match self {
            Compiler::InProcess => precompile(engine, component),
            Compiler::Process { program, limits } => {
                Parent { program, limits: *limits }.run(engine.settings, component)
            }
        }
    }
}

fn precompile(engine: &Engine, component: &[u8]) -> Result<Vec<u8>, CompileError> {
    engine.engine.precompile_component(component).map_err(|e| CompileError::Refused(format!("{e:#}")))
}

struct Parent<'a> {
    program: &'a PathBuf,
    limits: CompileLimits,
}

impl Parent<'_> {
    fn run(&self, settings: EngineSettings, component: &[u8]) -> Result<Vec<u8>, CompileError> {
        let mut child = self.spawn(settings).map_err(|e| self.cannot(&e))?;
        let mut input = child.stdin.take().expect("stdin was asked for");
        let mut output = child.stdout.take().expect("stdout was asked for");
        let mut complaints = child.stderr.take().expect("stderr was asked for");
        thread::scope(|scope| {
            // A child that ends early closes its input; its exit status tells why.
            scope.spawn(move || drop(input.write_all(component)));
            let output = scope.spawn(move || read_all(&mut output));
            let complaints = scope.spawn(move || read_all(&mut complaints));
            let status = self.wait(&mut child)?;
            let read = |thread: thread::ScopedJoinHandle<io::Result<Vec<u8>>>| {
                thread.join().expect("reading a pipe does not panic").map_err(|e| self.cannot(&e))
            };
            let (output, complaints) = (read(output)?, read(complaints)?);
            self.judge(status, output, &complaints)
        })
    }

    fn spawn(&self, settings: EngineSettings) -> io::Result<Child> {
        Command::new(self.program)
            .arg(SUBCOMMAND)
            .arg(settings.memory_bytes_max.to_string())
            .arg(settings.instances_max.to_string())
            .arg(self.limits.memory_bytes_max.to_string())
            .arg(self.limits.seconds_max.to_string())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    }

    /// Waits for the child, but not for ever: it has low priority, so on a busy machine its time on the wall
    /// may be several times its processor time, which the kernel limits.
    fn wait(&self, child: &mut Child) -> Result<ExitStatus, CompileError> {
        const WALL_FACTOR: u64 = 5;
        let looks_max = self.limits.seconds_max * WALL_FACTOR * 1_000 / LOOK_INTERVAL.as_millis() as u64;
        for _ in 0..looks_max {
            if let Some(status) = child.try_wait().map_err(|e| self.cannot(&e))? {
                return Ok(status);
            }
            thread::sleep(LOOK_INTERVAL);
        }
        let ended = child.kill().and_then(|()| child.wait());
        ended.map_err(|e| self.cannot(&e))?;
        Err(CompileError::TooLong { seconds_max: self.limits.seconds_max })
    }

    fn judge(&self, status: ExitStatus, output: Vec<u8>, complaints: &[u8]) -> Result<Vec<u8>, CompileError> {
        use std::os::unix::process::ExitStatusExt;
        let said = String::from_utf8_lossy(complaints);
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(output),
            (_, Some(signal)) if signal == rustix::process::Signal::XCPU.as_raw() => {
                Err(CompileError::TooLong { seconds_max: self.limits.seconds_max })
            }
            (Some(1), _) => Err(CompileError::Refused(said.trim().to_owned())),
            // An allocation that fails aborts the process.
            (_, Some(signal)) if signal == rustix::process::Signal::ABORT.as_raw() => {
                Err(CompileError::TooMuchMemory { memory_bytes_max: self.limits.memory_bytes_max })
            }
            _ => Err(self.cannot(&format!("it ended with {status}: {}", said.trim()))),
        }
    }

    fn cannot(&self, error: &dyn std::fmt::Display) -> CompileError {
        CompileError::Process { program: self.program.display().to_string(), error: error.to_string() }
    }
}

fn read_all(pipe: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The child: limits itself, reads a component, writes its compiled form. Returns the exit code.
///
/// `arguments` are those after the subcommand: the engine's memory limit and instances, the limits on memory
/// and time.
pub fn child(arguments: &[String]) -> u8 {
    let numbers: Option<Vec<u64>> = arguments.iter().map(|argument| argument.parse().ok()).collect();
    let Some([engine_memory, instances, memory_bytes_max, seconds_max]) = numbers.as_deref() else {
        eprintln!("this subcommand is for the program's own use");
        return 2;
    };
    let settings =
        EngineSettings { memory_bytes_max: *engine_memory as usize, instances_max: *instances as u32 };
    match limit_self(*memory_bytes_max, *seconds_max).and_then(|()| compile_stdin(settings)) {
        Ok(()) => 0,
        Err(why) => {
            eprintln!("{why}");
            1
        }
    }
}

fn limit_self(memory_bytes_max: u64, seconds_max: u64) -> Result<(), String> {
    let limit = |resource, max| {
        rustix::process::setrlimit(resource, Rlimit { current: Some(max), maximum: Some(max) })
            .map_err(|e| format!("cannot limit this process: {e}"))
    };
    // What is reserved but never written does not count as data.
    limit(Resource::Data, memory_bytes_max)?;
    limit(Resource::Cpu, seconds_max)?;
    limit(Resource::Core, 0)?;
    rustix::process::nice(19).map(drop).map_err(|e| format!("cannot lower the priority of this process: {e}"))
}

fn compile_stdin(settings: EngineSettings) -> Result<(), String> {
    let component =
        read_all(&mut io::stdin().lock()).map_err(|e| format!("cannot read the component: {e}"))?;
    let engine = Engine::new(settings).map_err(|e| e.to_string())?;
    let compiled = precompile(&engine, &component).map_err(|e| e.to_string())?;
    io::stdout().lock().write_all(&compiled).map_err(|e| format!("cannot write the compiled module: {e}"))
}
