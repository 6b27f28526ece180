//! A Rust compiler that can make WebAssembly: rustup's if it has the target, else Debian's.
//!
//! Debian's packages have the standard library as source only: cargo compiles it along, which needs the
//! switch for unstable features. Where `PATH` finds rustup's cargo first, the compiler must be named.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, anyhow, bail};
use serde_json::Value;

use super::toolchain::{find, missing};

/// What machines are compiled for.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// What Debian's cargo takes besides.
const BUILD_STD: &str = "-Zbuild-std=std,panic_abort";

/// A compiler and how to call it.
pub enum Toolchain {
    /// The one in `PATH`, with the target installed.
    Installed(PathBuf),
    /// Debian's, with a linker.
    Debian { linker: PathBuf },
}

impl Toolchain {
    /// The first that can.
    pub fn find() -> anyhow::Result<Toolchain> {
        let sysroot = sysroot(Path::new("rustc"));
        let has_target = |sysroot: &PathBuf| sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir();
        let installed = find("cargo", []).filter(|_| sysroot.as_ref().is_some_and(has_target));
        let linker = || sysroot_of_debian().and_then(|_| linker(sysroot.as_deref()));
        Toolchain::of(installed, linker)
    }

    /// `installed`: a cargo with the target; else the linker for Debian's, which is looked for only then.
    fn of(installed: Option<PathBuf>, linker: impl Fn() -> Option<PathBuf>) -> anyhow::Result<Toolchain> {
        let debian = || linker().map(|linker| Toolchain::Debian { linker });
        installed.map(Toolchain::Installed).or_else(debian).ok_or_else(|| {
            let ways = [
                "rustup target add wasm32-unknown-unknown",
                "apt-get install rustc-web cargo-web rust-web-src lld   (Debian, where rustup cannot fetch \
                 it)",
                "https://rustup.rs, and then the first of these",
            ];
            missing("a Rust compiler for WebAssembly", &ways)
        })
    }

    /// `cargo`, set up for the target; arguments are to follow.
    pub fn cargo(&self) -> Command {
        match self {
            Toolchain::Installed(cargo) => {
                let mut command = Command::new(cargo);
                command.env("CARGO_BUILD_TARGET", TARGET);
                command
            }
            Toolchain::Debian { linker } => {
                let mut command = Command::new("/usr/bin/cargo");
                command
                    .env("CARGO_BUILD_TARGET", TARGET)
                    .env("RUSTC", "/usr/bin/rustc")
                    .env("RUSTC_BOOTSTRAP", "1");
                command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker).arg(BUILD_STD);
                command
            }
        }
    }

    /// The manifest of the crate in a directory, and where its core module will be.
    pub fn built(&self, directory: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
        let manifest = directory.join("Cargo.toml");
        let mut command = self.cargo();
        command.args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"]).arg(&manifest);
        let output = command.current_dir(directory).output().context("cannot run cargo")?;
        if !output.status.success() {
            bail!("cargo does not read the project: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let metadata: Value =
            serde_json::from_slice(&output.stdout).context("cargo's metadata is not understood")?;
        let name = library_of(&metadata, &manifest).ok_or_else(|| {
            anyhow!(
                "{} has no library of the type cdylib: add `crate-type = [\"cdylib\"]`",
                manifest.display()
            )
        })?;
        let target = metadata["target_directory"].as_str().context("cargo names no target directory")?;
        let file = format!("{}.wasm", name.replace('-', "_"));
        Ok((manifest, Path::new(target).join(TARGET).join("release").join(file)))
    }
}

/// The name of a crate's library, if it becomes a module.
fn library_of(metadata: &Value, manifest: &Path) -> Option<String> {
    let packages = metadata["packages"].as_array()?;
    let package =
        packages.iter().find(|package| package["manifest_path"].as_str().map(Path::new) == Some(manifest))?;
    let is_module = |target: &&Value| {
        target["crate_types"].as_array().is_some_and(|types| types.iter().any(|kind| kind == "cdylib"))
    };
    let library = package["targets"].as_array()?.iter().find(is_module)?;
    library["name"].as_str().map(str::to_owned)
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Debian's, if the sources of the standard library are there.
fn sysroot_of_debian() -> Option<PathBuf> {
    let cargo = Path::new("/usr/bin/cargo").is_file();
    let sysroot = sysroot(Path::new("/usr/bin/rustc")).filter(|_| cargo)?;
    sysroot.join("lib/rustlib/src/rust/library").is_dir().then_some(sysroot)
}

/// A linker for WebAssembly: Debian's lld, or the one that rustup's compiler brings.
fn linker(sysroot: Option<&Path>) -> Option<PathBuf> {
    let debian = find("wasm-ld", []).or_else(|| find("rust-lld", []));
    let versions = (14..30).rev().filter_map(|version| find(&format!("wasm-ld-{version}"), []));
    let of_rustup = || {
        let hosts = std::fs::read_dir(sysroot?.join("lib/rustlib")).ok()?;
        hosts.flatten().map(|host| host.path().join("bin/rust-lld")).find(|file| file.is_file())
    };
    debian.or_else(|| versions.into_iter().next()).or_else(of_rustup)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustups_compiler_goes_before_debians_and_without_either_the_ways_to_one_are_told() {
        let at = |path: &str| Some(PathBuf::from(path));
        let first = Toolchain::of(at("/cargo"), || at("/lld")).unwrap();
        assert!(matches!(first, Toolchain::Installed(cargo) if cargo == Path::new("/cargo")));
        let second = Toolchain::of(None, || at("/lld")).unwrap();
        assert!(matches!(second, Toolchain::Debian { linker } if linker == Path::new("/lld")));
        let Err(none) = Toolchain::of(None, || None) else { panic!("a compiler came from nowhere") };
        let told = none.to_string();
        for way in ["Rust compiler for WebAssembly is missing", "rustup target add", "rust-web-src lld"] {
            assert!(told.contains(way), "{told}");
        }
    }

    #[test]
    fn the_library_that_becomes_a_module_is_found_in_a_workspace() {
        let metadata = serde_json::json!({ "packages": [
            { "manifest_path": "/w/a/Cargo.toml", "targets": [{ "name": "a", "crate_types": ["cdylib"] }] },
            { "manifest_path": "/w/b/Cargo.toml", "targets": [
                { "name": "build-script", "crate_types": ["bin"] },
                { "name": "b", "crate_types": ["rlib", "cdylib"] },
            ] },
            { "manifest_path": "/w/c/Cargo.toml", "targets": [{ "name": "c", "crate_types": ["lib"] }] },
        ] });
        let found = |crate_: &str| library_of(&metadata, Path::new(&format!("/w/{crate_}/Cargo.toml")));
        assert_eq!(found("a").as_deref(), Some("a"));
        assert_eq!(found("b").as_deref(), Some("b"));
        assert_eq!((found("c"), found("d")), (None, None));
    }
}
