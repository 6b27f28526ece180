//! Modules as files named by the digest of their bytes, and beside them what was compiled from them.
//!
//! Promises: a module is there whole or not at all; its digest is checked at every load, and bytes that do
//! not match are never handed out; a compiled artefact is a cache, checked at every use, and may be absent at
//! any time. Must never hold a module larger than the limit in memory or on the disk.
//!
//! # Layout
//! ```text
//! modules/<digest>.wasm
//! modules/compiled/<digest>-<fingerprint>.cwasm          native code: who writes it runs in the node
//! modules/compiled/<digest>-<fingerprint>.cwasm.blake3   its sum, in hexadecimal digits
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

use super::file::{NewFile, make_directory, remove_leftovers, sync_directory};
use crate::error::{Error, Fault};
use crate::id::Digest;

/// The module files of a node.
pub struct Modules {
    directory: PathBuf,
    bytes_max: u64,
    /// Tells apart the files being written.
    uploads: AtomicU64,
}

/// A module on its way in. Dropped before it is finished, it leaves nothing.
pub struct Upload<'a> {
    modules: &'a Modules,
    file: NewFile,
    sum: Sha256,
    bytes: u64,
}

/// What the cache has of a compiled module.
#[derive(Debug, PartialEq, Eq)]
pub enum Artefact {
    /// The file, as it was stored.
    Ready(PathBuf),
    /// Nothing.
    Absent,
    /// It was not as it was stored, for the reason given, and was removed. Compile it again.
    Removed(String),
}

impl Modules {
    /// The modules in `directory`, made if it is not there. What a crash left incomplete is removed. A module
    /// may have `bytes_max` bytes.
    pub fn open(directory: &Path, bytes_max: u64) -> Result<Modules, Fault> {
        let modules = Modules { directory: directory.to_owned(), bytes_max, uploads: AtomicU64::new(0) };
        let compiled = modules.compiled();
        let prepared = make_directory(directory)
            .and_then(|()| make_directory(&compiled))
            .and_then(|()| remove_leftovers(directory))
            .and_then(|()| remove_leftovers(&compiled));
        prepared.map_err(|e| fault("preparing", directory, &e))?;
        Ok(modules)
    }

    /// Begins to take a module in.
    pub fn upload(&self) -> Result<Upload<'_>, Fault> {
        let label = format!("upload-{}", self.uploads.fetch_add(1, Ordering::Relaxed));
        let file =
            NewFile::create(&self.directory, &label).map_err(|e| fault("writing to", &self.directory, &e))?;
        Ok(Upload { modules: self, file, sum: Sha256::new(), bytes: 0 })
    }

    /// The bytes of a module.
    ///
    /// # Errors
    /// `NotFound` without such a module; `Damaged` if the file is not what its name says.
    pub fn load(&self, digest: Digest) -> Result<Vec<u8>, Error> {
        let path = self.path(digest);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotFound(format!("this node has no module {digest}")));
            }
            Err(e) => return Err(fault("reading", &path, &e).into()),
        };
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(Error::Damaged(format!(
                "the module file {} is damaged: its bytes have the digest {found}, and its name says \
                 {digest}. Push the module again, or restore the file from a backup or from another node",
                path.display()
            )));
        }
        Ok(bytes)
    }

    /// Whether there is such a module. Its bytes are not looked at.
    pub fn contains(&self, digest: Digest) -> bool {
        self.path(digest).is_file()
    }

    /// The digests and sizes of all modules, in order of their digests.
    pub fn list(&self) -> Result<Vec<(Digest, u64)>, Fault> {
        let failed = |e| fault("listing", &self.directory, &e);
        let mut modules = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let digest = name.to_str().and_then(|name| name.strip_suffix(".wasm"));
            if let Some(digest) = digest.and_then(|digest| digest.parse().ok()) {
                modules.push((digest, entry.metadata().map_err(failed)?.len()));
            }
        }
        modules.sort();
        Ok(modules)
    }

    /// Removes a module and all that was compiled from it. Removing one that is not there is no error.
    pub fn remove(&self, digest: Digest) -> Result<(), Fault> {
        let compiled = self.compiled();
        let failed = |e| fault("removing a module from", &self.directory, &e);
        for entry in std::fs::read_dir(&compiled).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with(&format!("{digest}-")) {
                remove_if_there(&entry.path()).map_err(failed)?;
            }
        }
        remove_if_there(&self.path(digest)).map_err(failed)?;
        sync_directory(&self.directory).map_err(failed)
    }

    /// What was compiled from `digest` by the engine of `fingerprint`, after a look at every byte of it.
    pub fn artefact(&self, digest: Digest, fingerprint: &str) -> Result<Artefact, Fault> {
        let (path, sum_path) = self.artefact_paths(digest, fingerprint)?;
        let found = match sum_of(&path) {
            Ok(sum) => sum,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Artefact::Absent),
            Err(e) => return Err(fault("reading", &path, &e)),
        };
        let expected = match std::fs::read(&sum_path) {
            Ok(sum) => sum,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(fault("reading", &sum_path, &e)),
        };
        if expected == found.as_bytes() {
            return Ok(Artefact::Ready(path));
        }
        let expected = String::from_utf8_lossy(&expected).into_owned();
        remove_if_there(&path).map_err(|e| fault("removing", &path, &e))?;
        Ok(Artefact::Removed(format!(
            "the compiled module {} is damaged: it has the sum {found}, and {expected:?} was stored",
            path.display()
        )))
    }

    /// Keeps what was compiled from `digest` by the engine of `fingerprint`, and returns where.
    pub fn store_artefact(&self, digest: Digest, fingerprint: &str, bytes: &[u8]) -> Result<PathBuf, Fault> {
        let (path, sum_path) = self.artefact_paths(digest, fingerprint)?;
        let failed = |e| fault("writing", &path, &e);
        // The sum first: an artefact is never there without one, unless somebody removed it.
        self.write_file(&sum_path, blake3::hash(bytes).to_hex().as_bytes()).map_err(failed)?;
        self.write_file(&path, bytes).map_err(failed)?;
        Ok(path)
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let label = format!("artefact-{}", self.uploads.fetch_add(1, Ordering::Relaxed));
        let mut file = NewFile::create(&self.compiled(), &label)?;
        file.write_all(bytes)?;
        file.keep(path)
    }

    fn artefact_paths(&self, digest: Digest, fingerprint: &str) -> Result<(PathBuf, PathBuf), Fault> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_';
        if fingerprint.is_empty() || fingerprint.len() > 100 || !fingerprint.chars().all(plain) {
            return Err(Fault::new(format!(
                "{fingerprint:?} is no engine fingerprint: 1 to 100 letters, digits, dots and underscores \
                 are expected"
            )));
        }
        let name = format!("{digest}-{fingerprint}.cwasm");
        let compiled = self.compiled();
        Ok((compiled.join(&name), compiled.join(format!("{name}.blake3"))))
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.directory.join(format!("{digest}.wasm"))
    }

    fn compiled(&self) -> PathBuf {
        self.directory.join("compiled")
    }
}

impl Upload<'_> {
    /// Adds bytes.
    ///
    /// # Errors
    /// `TooLarge` as soon as the module is over the limit.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.modules.bytes_max {
            return Err(Error::TooLarge(format!(
                "the module has more than {} bytes, the limit for a module on this node: make it smaller \
                 (strip it, optimise it for size), or raise the limit",
                self.modules.bytes_max
            )));
        }
        self.sum.update(bytes);
        self.file.write_all(bytes).map_err(|e| self.failed(&e).into())
    }

    /// Makes the module durable under its digest. If the sender told the digest, `expected`, it must match.
    pub fn finish(self, expected: Option<Digest>) -> Result<Digest, Error> {
        let digest = Digest(self.sum.clone().finalize().into());
        if let Some(expected) = expected
            && expected != digest
        {
            return Err(Error::Invalid(format!(
                "the module arrived with the digest {digest}, but was announced as {expected}: it changed on \
                 the way; push it again"
            )));
        }
        let path = self.modules.path(digest);
        self.file.keep(&path).map_err(|e| fault("writing", &path, &e))?;
        Ok(digest)
    }

    fn failed(&self, error: &io::Error) -> Fault {
        fault("writing to", &self.modules.directory, error)
    }
}

fn fault(doing: &str, path: &Path, error: &io::Error) -> Fault {
    Fault::new(format!("{doing} {} failed: {error}", path.display()))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The blake3 of a file, in hexadecimal digits, read in portions: an artefact is large and is mapped
/// afterwards.
fn sum_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut sum = blake3::Hasher::new();
    let mut portion = vec![0; 256 << 10];
    loop {
        match file.read(&mut portion)? {
            0 => return Ok(sum.finalize().to_hex().to_string()),
            read => sum.update(&portion[..read]),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::damage::flips;

    fn modules() -> (tempfile::TempDir, Modules) {
        let place = tempfile::tempdir().unwrap();
        let modules = Modules::open(&place.path().join("modules"), 1_000).unwrap();
        (place, modules)
    }

    fn push(modules: &Modules, bytes: &[u8]) -> Digest {
        let mut upload = modules.upload().unwrap();
        for portion in bytes.chunks(7) {
            upload.write(portion).unwrap();
        }
        upload.finish(None).unwrap()
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_module_is_loaded_listed_and_removed_by_its_digest() {
        let (_place, modules) = modules();
        let digest = push(&modules, b"a component, in truth");
        assert_eq!(digest, Digest::of(b"a component, in truth"));
        assert!(modules.contains(digest));
        assert_eq!(modules.load(digest).unwrap(), b"a component, in truth");
        assert_eq!(modules.list().unwrap(), [(digest, 21)]);
        modules.remove(digest).unwrap();
        assert!(matches!(modules.load(digest), Err(Error::NotFound(_))));
        assert_eq!(modules.list().unwrap(), []);
        modules.remove(digest).unwrap();
    }

    #[test]
    fn a_module_over_the_limit_is_refused_while_it_streams_and_leaves_nothing() {
        let (_place, modules) = modules();
        let mut upload = modules.upload().unwrap();
        upload.write(&[0; 1_000]).unwrap();
        let error = upload.write(&[0]).unwrap_err();
        assert!(matches!(&error, Error::TooLarge(what) if what.contains("1000")), "{error}");
        drop(upload);
        assert_eq!(names(&modules.directory), ["compiled"]);
    }

    #[test]
    fn a_module_that_changed_on_the_way_is_refused_with_both_digests() {
        let (_place, modules) = modules();
        let mut upload = modules.upload().unwrap();
        upload.write(b"changed").unwrap();
        let announced = Digest::of(b"original");
        let error = upload.finish(Some(announced)).unwrap_err().to_string();
        assert!(
            error.contains(&announced.to_string()) && error.contains(&Digest::of(b"changed").to_string()),
            "{error}"
        );
        assert_eq!(modules.list().unwrap(), []);
    }

    #[test]
    fn every_flipped_bit_of_a_module_is_refused_naming_file_and_digests() {
        let (_place, modules) = modules();
        let digest = push(&modules, b"component");
        let path = modules.path(digest);
        for flipped in flips(b"component") {
            std::fs::write(&path, &flipped).unwrap();
            let error = modules.load(digest).unwrap_err();
            assert!(matches!(error, Error::Damaged(_)), "{error}");
            let text = error.to_string();
            assert!(text.contains(path.to_str().unwrap()), "{text}");
            assert!(
                text.contains(&digest.to_string()) && text.contains(&Digest::of(&flipped).to_string()),
                "{text}"
            );
        }
    }

    #[test]
    fn what_a_crash_left_is_removed_at_the_next_open() {
        let (place, modules) = modules();
        let digest = push(&modules, b"whole");
        std::fs::write(modules.directory.join("upload-0.tmp"), b"hal").unwrap();
        std::fs::write(modules.compiled().join("artefact-1.tmp"), b"hal").unwrap();
        let modules = Modules::open(&place.path().join("modules"), 1_000).unwrap();
        let mut left = names(&modules.directory);
        left.sort();
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!(names(&modules.compiled()), Vec::<String>::new());
        assert_eq!(modules.load(digest).unwrap(), b"whole");
    }

    #[test]
    fn an_artefact_is_kept_by_digest_and_fingerprint_and_goes_with_its_module() {
        let (_place, modules) = modules();
        let digest = push(&modules, b"component");
        assert_eq!(modules.artefact(digest, "48.0.8_ab").unwrap(), Artefact::Absent);
        let path = modules.store_artefact(digest, "48.0.8_ab", b"native code").unwrap();
        assert_eq!(modules.artefact(digest, "48.0.8_ab").unwrap(), Artefact::Ready(path.clone()));
        assert_eq!(std::fs::read(path).unwrap(), b"native code");
        assert_eq!(modules.artefact(digest, "48.0.9_ab").unwrap(), Artefact::Absent);
        modules.remove(digest).unwrap();
        assert_eq!(names(&modules.compiled()), Vec::<String>::new());
    }

    #[test]
    fn every_flipped_bit_of_an_artefact_or_its_sum_removes_it() {
        let (_place, modules) = modules();
        let digest = push(&modules, b"component");
        let path = modules.store_artefact(digest, "1", b"native").unwrap();
        let sum = path.with_extension("cwasm.blake3");
        for damaged in [&path, &sum] {
            let whole = std::fs::read(damaged).unwrap();
            for flipped in flips(&whole) {
                modules.store_artefact(digest, "1", b"native").unwrap();
                std::fs::write(damaged, flipped).unwrap();
                let found = modules.artefact(digest, "1").unwrap();
                assert!(matches!(found, Artefact::Removed(_)), "{found:?}");
                assert_eq!(modules.artefact(digest, "1").unwrap(), Artefact::Absent);
            }
        }
    }

    #[test]
    fn a_fingerprint_cannot_name_another_place() {
        let (_place, modules) = modules();
        for hostile in ["", "../x", "a/b", &"x".repeat(101)] {
            assert!(modules.artefact(Digest([0; 32]), hostile).is_err(), "{hostile}");
        }
    }
}
