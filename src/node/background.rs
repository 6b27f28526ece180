//! Work that takes long and that nobody waits for with a command in hand: on a thread of its own, which gives
//! way to those that serve.

use tokio::sync::oneshot;

use crate::error::Fault;
use crate::priority::give_way;

/// Runs `work` on a thread called `name`.
///
/// # Errors
/// A fault if the thread cannot be started, or panics.
pub async fn run<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    let (done, told) = oneshot::channel();
    let run = move || {
        give_way();
        // Whoever asked may have gone away.
        let _ = done.send(work());
    };
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.map_err(|e| Fault::new(format!("the thread for a {name} cannot be started: {e}")))?;
    told.await.map_err(|_| Fault::new(format!("a {name} panicked")))
}

/// The same for a thread that must wait for it.
///
/// # Errors
/// As of [`run`].
pub fn run_and_wait<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T, Fault> {
    std::thread::scope(|scope| {
        let run = || {
            give_way();
            work()
        };
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, run);
        let thread =
            spawned.map_err(|e| Fault::new(format!("the thread for a {name} cannot be started: {e}")))?;
        thread.join().map_err(|_| Fault::new(format!("a {name} panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::priority::NICENESS;

    #[tokio::test]
    async fn a_thread_of_its_own_gives_way_and_a_panic_is_told() {
        let niceness = || rustix::process::getpriority_process(None);
        let (own, other) = (niceness().unwrap(), run("test", niceness).await.unwrap().unwrap());
        assert_eq!(other, (own + NICENESS).min(19));
        assert_eq!(niceness().unwrap(), own, "nobody else gives way");
        let failed = run("test", || panic!("on purpose")).await;
        assert!(failed.unwrap_err().to_string().contains("panicked"));
    }

    #[test]
    fn who_waits_keeps_its_own_priority() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let own = niceness();
        assert_eq!(run_and_wait("test", niceness).unwrap(), (own + NICENESS).min(19));
        assert_eq!(niceness(), own);
        let failed = run_and_wait("test", || panic!("on purpose"));
        assert!(failed.unwrap_err().to_string().contains("panicked"));
    }
}
