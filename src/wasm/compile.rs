//! Compilation, and all else that hostile bytes could break, in a process of its own: at low priority, with
//! limits on memory and time, because some small modules take minutes and gigabytes to compile.
//!
//! The parent writes the component to the child's standard input and reads the compiled form from its
//! standard output. The component was inspected (`validate`) before; should the compiler fail all the same,
//! it fails in the child, and it is the upload that is refused.
//!
//! Never: a compiled form that the child did not finish, or an error that hides which limit ended it.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit};
use wit_component::ComponentEncoder;

use super::engine::{self, Codegen};

/// The hidden subcommand under which a program compiles.
pub const SUBCOMMAND: &str = "compile-module";

/// The tasks of the process: its first argument.
const COMPILE: &str = "compile";
const COMPILE_PLAIN: &str = "compile-plain";
const COMPONENTIZE: &str = "componentize";

/// The exit code of a program that panicked.
const EXIT_PANICKED: i32 = 101;

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
    pub fn compile(&self, component: &[u8]) -> Result<Vec<u8>, CompileError> {
        self.compile_as(component, Codegen::Optimised)
    }

    /// The same for an engine of either kind.
    pub fn compile_as(&self, component: &[u8], codegen: Codegen) -> Result<Vec<u8>, CompileError> {
        match self {
            Compiler::InProcess => precompile(component, codegen),
            Compiler::Process { program, limits } => {
                let task = match codegen {
                    Codegen::Optimised => COMPILE,
                    Codegen::Plain => COMPILE_PLAIN,
                };
                Parent { program, limits: *limits, task }.run(component)
            }
        }
    }

    /// Makes a component of a validated core module that carries component metadata. Blocks.
    pub fn componentize(&self, module: &[u8]) -> Result<Vec<u8>, CompileError> {
        match self {
            Compiler::InProcess => encode(module),
            Compiler::Process { program, limits } => {
                Parent { program, limits: *limits, task: COMPONENTIZE }.run(module)
            }
        }
    }
}

/// Machine code for every engine of this version: what an operator may set is not compiled in.
fn precompile(component: &[u8], codegen: Codegen) -> Result<Vec<u8>, CompileError> {
    let refused = |e: String| CompileError::Refused(e);
    let engine = engine::compiler(codegen).map_err(|e| refused(e.to_string()))?;
    engine.precompile_component(component).map_err(|e| refused(format!("{e:#}")))
}

/// Makes a component of a core module by the metadata that wit-bindgen left in it.
fn encode(module: &[u8]) -> Result<Vec<u8>, CompileError> {
    let encoded = ComponentEncoder::default().validate(false).module(module).and_then(|mut e| e.encode());
    encoded.map_err(|e| CompileError::Refused(format!("{e:#}")))
}

struct Parent<'a> {
    program: &'a PathBuf,
    limits: CompileLimits,
    task: &'static str,
}

impl Parent<'_> {
    fn run(&self, component: &[u8]) -> Result<Vec<u8>, CompileError> {
        let mut child = self.spawn().map_err(|e| self.cannot(&e))?;
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

    fn spawn(&self) -> io::Result<Child> {
        Command::new(self.program)
            .arg(SUBCOMMAND)
            .arg(self.task)
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
            _ if said.contains("memory allocation of") => {
                Err(CompileError::TooMuchMemory { memory_bytes_max: self.limits.memory_bytes_max })
            }
            // A panic or a crash: the module brought it about.
            (Some(EXIT_PANICKED), _) | (_, Some(_)) => {
                Err(CompileError::Refused(format!("the compiler failed on it ({status}): {}", said.trim())))
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
/// `arguments` are those after the subcommand: the task, and the limits on memory and time.
pub fn child(arguments: &[String]) -> u8 {
    let Some((task, limits)) = understand(arguments) else {
        eprintln!("this subcommand is for the program's own use");
        return 2;
    };
    match limit_self(limits).and_then(|()| convert_stdin(task)) {
        Ok(()) => 0,
        Err(why) => {
            eprintln!("{why}");
            1
        }
    }
}

type Task = fn(&[u8]) -> Result<Vec<u8>, CompileError>;

fn understand(arguments: &[String]) -> Option<(Task, CompileLimits)> {
    let [task, memory, seconds] = arguments else { return None };
    let task: Task = match task.as_str() {
        COMPILE => |component| precompile(component, Codegen::Optimised),
        COMPILE_PLAIN => |component| precompile(component, Codegen::Plain),
        COMPONENTIZE => encode,
        _ => return None,
    };
    let limits = CompileLimits { memory_bytes_max: memory.parse().ok()?, seconds_max: seconds.parse().ok()? };
    Some((task, limits))
}

fn limit_self(limits: CompileLimits) -> Result<(), String> {
    let CompileLimits { memory_bytes_max, seconds_max } = limits;
    let limit = |resource, max, kill| {
        rustix::process::setrlimit(resource, Rlimit { current: Some(max), maximum: Some(kill) })
            .map_err(|e| format!("cannot limit this process: {e}"))
    };
    // What is reserved but never written does not count as data.
    limit(Resource::Data, memory_bytes_max, memory_bytes_max)?;
    // The first limit ends it with a signal that tells why; the second is beyond argument.
    limit(Resource::Cpu, seconds_max, seconds_max + 5)?;
    limit(Resource::Core, 0, 0)?;
    // A node that is killed takes its compilers with it.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|e| format!("cannot tie this process to the node: {e}"))?;
    rustix::process::nice(19).map(drop).map_err(|e| format!("cannot lower the priority of this process: {e}"))
}

fn convert_stdin(task: Task) -> Result<(), String> {
    let module = read_all(&mut io::stdin().lock()).map_err(|e| format!("cannot read the module: {e}"))?;
    let converted = task(&module).map_err(|e| e.to_string())?;
    io::stdout().lock().write_all(&converted).map_err(|e| format!("cannot write the compiled module: {e}"))
}

#[cfg(test)]
mod tests;
