//! Modules: pushed, made known to the cluster, looked up.

use bytes::Bytes;

use super::Node;
use super::request::{ModuleInfo, Push, World};
use crate::catalog::{Change, ModuleRecord};
use crate::error::{Error, Fault};
use crate::id::{Digest, LogTime};

/// The component of `builtin:kv`.
const BUILTIN_KV: &[u8] = include_bytes!("../../guests/kv/kv.component.wasm");

/// Modules.
impl Node {
    /// Takes in a module: checked, made durable, compiled, and known to the catalog. The digest in the answer
    /// is that of the component, which differs from the one sent if that was of a core module.
    pub async fn push_module(&self, push: Push) -> Result<ModuleInfo, Error> {
        self.check_alive()?;
        let (inner, label) = (self.inner.clone(), push.label);
        let taken = tokio::task::spawn_blocking(move || inner.shelf.take(push.digest, push.bytes)).await;
        let taken = taken.map_err(|e| Fault::new(format!("taking in a module panicked: {e}")))??;
        self.spread_module(taken.digest).await?;
        self.wait_compiled(taken.digest).await;
        let record = ModuleRecord {
            digest: taken.digest.0.to_vec(),
            bytes: taken.bytes,
            resident: taken.world == World::Resident,
            label,
            pushed_ms: 0,
        };
        self.change_catalog(Change::RegisterModule(record)).await?;
        self.catch_up().await?;
        self.module(taken.digest)
    }

    /// The digest of a built-in module, which is taken in if this is its first use. There is `kv`.
    pub async fn builtin(&self, name: &str) -> Result<Digest, Error> {
        if name != "kv" {
            return Err(Error::NotFound(format!("no built-in module is called {name:?}; there is `kv`")));
        }
        let digest = Digest::of(BUILTIN_KV);
        if self.inner.catalog.load().modules.contains_key(&digest) {
            return Ok(digest);
        }
        let push = Push { digest, label: "builtin:kv".into(), bytes: Bytes::from_static(BUILTIN_KV) };
        Ok(self.push_module(push).await?.digest)
    }

    /// All modules, by digest.
    pub fn modules(&self) -> Vec<ModuleInfo> {
        self.inner
            .catalog
            .load()
            .modules
            .iter()
            .map(|(digest, record)| self.module_info(*digest, record))
            .collect()
    }

    /// One module. One that is not known here may have been pushed elsewhere a moment ago: then the catalog
    /// is brought up to date first.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` if the catalog has no leader that could tell.
    pub async fn find_module(&self, digest: Digest) -> Result<ModuleInfo, Error> {
        self.check_alive()?;
        match self.module(digest) {
            Err(Error::NotFound(_)) if self.inner.stage.net.is_some() => {
                self.confirm_catalog().await?;
                self.module(digest)
            }
            known => known,
        }
    }

    /// One module, as far as this node knows.
    pub fn module(&self, digest: Digest) -> Result<ModuleInfo, Error> {
        let catalog = self.inner.catalog.load();
        let record = catalog.modules.get(&digest).ok_or_else(|| {
            Error::NotFound(format!("no module {digest}; `statehouse module list` shows those there are"))
        })?;
        Ok(self.module_info(digest, record))
    }

    fn module_info(&self, digest: Digest, record: &ModuleRecord) -> ModuleInfo {
        ModuleInfo {
            digest,
            bytes: record.bytes,
            world: if record.resident { World::Resident } else { World::Stored },
            label: record.label.clone(),
            pushed: LogTime(record.pushed_ms),
            compiled: self.inner.shelf.is_compiled(digest),
        }
    }
}
