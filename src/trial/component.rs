//! A component to be tried: its bytes inspected as at an upload, then compiled and loaded.
//!
//! Promises: what a node would refuse is refused here, in the same words. The file that the compiled form
//! needs is gone when it is loaded.

use std::io::Write;

use crate::error::{Error, Fault};
use crate::id::Digest;
use crate::machine::guest::World;
use crate::wasm::{
    self, Codegen, Compiler, Engine, EngineSettings, Limits, LoadError, Look, Module, Rejected,
};

/// Instances alive at the same time: a host has two at most, besides those kept for queries.
const INSTANCES_MAX: u32 = 64;

/// An engine for a few machines.
pub fn engine(codegen: Codegen) -> Result<Engine, Fault> {
    let query_instances_max = INSTANCES_MAX / 2;
    let settings =
        EngineSettings { instances_max: INSTANCES_MAX, query_instances_max, ..EngineSettings::default() };
    Engine::of(settings, codegen)
}

/// A component that a node would take in, if it can be instantiated.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// Its name: of the component, when the file was a core module.
    pub digest: Digest,
    /// Its bytes.
    pub component: Vec<u8>,
    /// Its world.
    pub world: World,
    /// What it imports, by name.
    pub imports: Vec<String>,
    /// What it exports, by name.
    pub exports: Vec<String>,
}

impl Inspected {
    /// Looks at a file's bytes with the limits that a node has unless it is told otherwise.
    ///
    /// # Errors
    /// `Invalid`, with everything that is wrong and what to do; `Fault` if it could not be inspected.
    pub fn of(bytes: &[u8], compiler: &Compiler) -> Result<Inspected, Error> {
        let (inspected, rejected) = Inspected::look(bytes, compiler)?;
        match Rejected::all(rejected) {
            None => Ok(inspected),
            Some(why) => Err(Error::Invalid(why.to_string())),
        }
    }

    /// The same, and everything for which a node would refuse it: then it must not be compiled.
    ///
    /// # Errors
    /// `Invalid` if the bytes are no component or over a limit, `Fault` if it could not be inspected.
    pub fn look(bytes: &[u8], compiler: &Compiler) -> Result<(Inspected, Vec<Rejected>), Error> {
        let look = wasm::look(bytes, &Limits::default(), compiler).map_err(|why| match why {
            Rejected::NotInspected(_) => Error::Fault(Fault::new(why.to_string())),
            why => Error::Invalid(why.to_string()),
        })?;
        let Look { inspected: wasm::Inspected { component, world, imports, exports, .. }, rejected } = look;
        let component = component.into_owned();
        Ok((Inspected { digest: Digest::of(&component), component, world, imports, exports }, rejected))
    }

    /// Compiles it for `engine`, loads it and makes one instance.
    ///
    /// # Errors
    /// `Invalid` if it cannot be compiled or instantiated.
    pub fn load(&self, engine: &Engine, compiler: &Compiler) -> Result<Module, Error> {
        self.load_compiled(engine, &self.compile(engine.codegen(), compiler)?)
    }

    /// Compiles it for engines of one kind.
    ///
    /// # Errors
    /// `Invalid` if it cannot be compiled.
    pub fn compile(&self, codegen: Codegen, compiler: &Compiler) -> Result<Vec<u8>, Error> {
        let compiled = compiler.compile_as(&self.component, codegen);
        compiled.map_err(|why| Error::Invalid(format!("the module cannot be compiled: {why}")))
    }

    /// Loads what [`compile`](Inspected::compile) made of it, and makes one instance.
    ///
    /// # Errors
    /// `Invalid` if it cannot be instantiated.
    pub fn load_compiled(&self, engine: &Engine, compiled: &[u8]) -> Result<Module, Error> {
        let failed = |e: std::io::Error| Fault::new(format!("cannot keep the compiled module: {e}"));
        let mut file = tempfile::NamedTempFile::new().map_err(failed)?;
        file.write_all(compiled).map_err(failed)?;
        let module = Module::load(engine, file.path(), self.world).map_err(unfit)?;
        module.try_instance().map_err(unfit)?;
        Ok(module)
    }
}

fn unfit(error: LoadError) -> Error {
    match error {
        LoadError::Rejected(why) => Error::Invalid(why),
        // It was made a moment ago.
        LoadError::Stale(why) => Error::Fault(Fault::new(why)),
        LoadError::Fault(fault) => Error::Fault(fault),
    }
}
