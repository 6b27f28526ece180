//! Modules on this node: taken in, checked, compiled in a process of their own, loaded once.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::request::World;
use crate::error::Error;
use crate::id::Digest;
use crate::storage::modules::{Artefact, Modules};
use crate::wasm::{self, Compiler, Engine, LoadError, Module};

/// The modules of a node, ready to run.
pub struct Shelf {
    files: Modules,
    engine: Engine,
    compiler: Compiler,
    bytes_max: u64,
    /// Modules in memory. One entry for each module that a machine runs, so it needs no bound of its own.
    loaded: Mutex<HashMap<Digest, Arc<Module>>>,
    /// One compilation at a time: each may take all the memory it is allowed.
    compiling: Mutex<()>,
    /// Modules that could not be compiled since the start, and why. Whoever pushes one again has it tried
    /// again.
    failed: Mutex<HashMap<Digest, Error>>,
}

/// A module that was taken in.
pub struct Taken {
    /// Its digest: of the component, when a core module was sent.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
    /// Its world.
    pub world: World,
}

impl Shelf {
    /// A shelf over the module files of a data directory.
    pub fn new(files: Modules, engine: Engine, compiler: Compiler, bytes_max: u64) -> Shelf {
        Shelf {
            files,
            engine,
            compiler,
            bytes_max,
            loaded: Mutex::default(),
            compiling: Mutex::default(),
            failed: Mutex::default(),
        }
    }

    /// The engine's fingerprint.
    pub fn fingerprint(&self) -> &str {
        self.engine.fingerprint()
    }

    /// Ends all calls into guests, also those that follow. For a node that stops.
    pub fn interrupt(&self) {
        self.engine.interrupt();
    }

    /// Whether this node has the module compiled.
    pub fn is_compiled(&self, digest: Digest) -> bool {
        self.loaded.lock().contains_key(&digest)
            || matches!(self.files.artefact(digest, self.fingerprint()), Ok(Artefact::Ready(_)))
    }

    /// Whether it is known what becomes of the module here: it is compiled, or cannot be.
    pub fn is_settled(&self, digest: Digest) -> bool {
        self.failed.lock().contains_key(&digest) || self.is_compiled(digest)
    }

    /// Forgets that a module could not be compiled: it is pushed again.
    pub fn try_again(&self, digest: Digest) {
        self.failed.lock().remove(&digest);
    }

    /// Whether the module's bytes are here.
    pub fn has(&self, digest: Digest) -> bool {
        self.files.contains(digest)
    }

    /// The module's bytes, as they were stored.
    pub fn bytes(&self, digest: Digest) -> Result<Bytes, Error> {
        self.files.load(digest).map(Bytes::from)
    }

    /// Makes the bytes of a module durable that another node has checked. Compiled when they are needed.
    pub fn put(&self, digest: Digest, bytes: &[u8]) -> Result<(), Error> {
        let mut upload = self.files.upload()?;
        upload.write(bytes)?;
        upload.finish(Some(digest)).map(drop)
    }

    /// Takes in a module: its digest, its shape and its world are checked, it is made durable, and compiled.
    /// Blocks.
    pub fn take(&self, expected: Digest, bytes: Bytes) -> Result<Taken, Error> {
        let actual = Digest::of(&bytes);
        if actual != expected {
            return Err(Error::Invalid(format!(
                "the module's bytes have the digest {actual}, but {expected} was announced: they were \
                 damaged on the way; push it again"
            )));
        }
        let memory_bytes_max = self.engine.settings().memory_bytes_max;
        let limits = wasm::Limits { bytes_max: self.bytes_max, memory_bytes_max, ..wasm::Limits::default() };
        let inspected =
            wasm::inspect(&bytes, &limits, &self.compiler).map_err(|why| Error::Invalid(why.to_string()))?;
        let (digest, world) = (Digest::of(&inspected.component), inspected.world);
        let is_new = !self.files.contains(digest);
        let mut upload = self.files.upload()?;
        upload.write(&inspected.component)?;
        upload.finish(Some(digest))?;
        self.try_again(digest);
        // A module that cannot even be instantiated could never run an input.
        let tried = self.load(digest, world).and_then(|module| module.try_instance().map_err(unfit));
        if let Err(why) = tried {
            self.loaded.lock().remove(&digest);
            if is_new {
                self.files.remove(digest)?;
            }
            return Err(why);
        }
        Ok(Taken { digest, bytes: inspected.component.len() as u64, world })
    }

    /// A module ready to run; compiled first if this node has not done so. Blocks, but not for the
    /// compilation of another module if this one is compiled.
    pub fn load(&self, digest: Digest, world: World) -> Result<Arc<Module>, Error> {
        if let Some(module) = self.load_compiled(digest, world)? {
            return Ok(module);
        }
        let _one_at_a_time = self.compiling.lock();
        if let Some(module) = self.load_compiled(digest, world)? {
            return Ok(module);
        }
        let artefact = self.compile(digest)?;
        let module = Module::load(&self.engine, &artefact, world).map_err(unfit)?;
        Ok(self.keep(digest, module))
    }

    /// A module that is in memory, or compiled and sound.
    fn load_compiled(&self, digest: Digest, world: World) -> Result<Option<Arc<Module>>, Error> {
        if let Some(module) = self.loaded.lock().get(&digest) {
            return Ok(Some(module.clone()));
        }
        let artefact = match self.files.artefact(digest, self.fingerprint())? {
            Artefact::Ready(path) => path,
            Artefact::Absent => return Ok(None),
            Artefact::Removed(why) => {
                tracing::warn!(%digest, why, "a compiled module was damaged: it is compiled again");
                return Ok(None);
            }
        };
        // The file's digest is verified at every load, also when the compiled form is at hand.
        self.files.load(digest)?;
        match Module::load(&self.engine, &artefact, world) {
            Ok(module) => Ok(Some(self.keep(digest, module))),
            Err(LoadError::Stale(why)) => {
                tracing::warn!(%digest, why, "a compiled module cannot be used: it is compiled again");
                Ok(None)
            }
            Err(why) => Err(unfit(why)),
        }
    }

    fn keep(&self, digest: Digest, module: Module) -> Arc<Module> {
        self.loaded.lock().entry(digest).or_insert_with(|| Arc::new(module)).clone()
    }

    /// Compiles a module whose bytes are here, if that was not done. Blocks.
    pub fn compile_ahead(&self, digest: Digest) -> Result<(), Error> {
        let _one_at_a_time = self.compiling.lock();
        if self.is_compiled(digest) {
            return Ok(());
        }
        self.compile(digest).map(drop)
    }

    fn compile(&self, digest: Digest) -> Result<std::path::PathBuf, Error> {
        if let Some(why) = self.failed.lock().get(&digest) {
            return Err(why.clone());
        }
        self.try_compile(digest).inspect_err(|why| {
            // One that is not here yet has not failed.
            if !matches!(why, Error::NotFound(_)) {
                self.failed.lock().insert(digest, why.clone());
            }
        })
    }

    fn try_compile(&self, digest: Digest) -> Result<std::path::PathBuf, Error> {
        let compiled = self
            .compiler
            .compile(&self.files.load(digest)?)
            .map_err(|why| Error::Invalid(format!("the module {digest} cannot be compiled: {why}")))?;
        Ok(self.files.store_artefact(digest, self.fingerprint(), &compiled)?)
    }
}

/// Why a module was not loaded: the module's fault, or this computer's.
fn unfit(error: LoadError) -> Error {
    match error {
        LoadError::Rejected(why) => Error::Invalid(why),
        LoadError::Stale(why) => Error::Damaged(why),
        LoadError::Fault(fault) => Error::Fault(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::EngineSettings;

    fn shelf(directory: &std::path::Path) -> Shelf {
        let files = Modules::open(directory, 1 << 20).unwrap();
        let settings = EngineSettings { instances_max: 16, query_instances_max: 8, ..Default::default() };
        Shelf::new(files, Engine::new(settings).unwrap(), Compiler::InProcess, 1 << 20)
    }

    #[test]
    fn a_module_that_is_not_here_yet_has_not_failed_and_why_one_has_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = shelf(directory.path());
        let sound = include_bytes!("../../guests/counter/counter.component.wasm");
        let digest = Digest::of(sound);
        assert!(matches!(shelf.compile_ahead(digest), Err(Error::NotFound(_))));
        assert!(!shelf.is_settled(digest));
        shelf.put(digest, sound).unwrap();
        shelf.compile_ahead(digest).unwrap();
        assert!(shelf.is_settled(digest));

        let broken = Digest::of(b"no component");
        shelf.put(broken, b"no component").unwrap();
        let first = shelf.compile_ahead(broken).unwrap_err().to_string();
        assert!(shelf.is_settled(broken) && !shelf.is_compiled(broken));
        assert_eq!(shelf.load(broken, World::Stored).err().unwrap().to_string(), first);
        shelf.try_again(broken);
        assert!(!shelf.is_settled(broken));
    }
}
