//! Ends the engine's epochs while calls into guests are under way, which bounds those calls in time.
//!
//! Promises: a call that is under way sees epochs end at the interval. When no call has been under way for a
//! while the thread sleeps until the next one, so that an idle node costs nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::engine::EPOCH_MS;
use crate::error::Fault;

/// Epochs without a call after which the ticker rests: calls that follow each other do not wake it each time.
const REST_AFTER_EPOCHS: u32 = 50;

/// The thread that ends epochs. Ends when this is dropped.
pub struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Calls under way.
    calls: AtomicUsize,
    /// Whether the ticker sleeps until it is woken.
    rests: AtomicBool,
    stop: AtomicBool,
}

/// A call that is under way.
pub struct UnderWay<'t> {
    calls: &'t AtomicUsize,
}

impl Ticker {
    /// Starts the ticker of an engine.
    pub fn start(engine: wasmtime::EngineWeak) -> Result<Ticker, Fault> {
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        let thread = std::thread::Builder::new()
            .name("epoch".into())
            .spawn(move || tick(&own, &engine))
            .map_err(|e| Fault::new(format!("cannot start the thread that bounds queries in time: {e}")))?;
        Ok(Ticker { shared, thread: Some(thread) })
    }

    /// A call begins, and is under way until what this returns is dropped.
    pub fn call_begins(&self) -> UnderWay<'_> {
        // In one order with the ticker's store and load: either it sees the call, or the call sees it rest.
        self.shared.calls.fetch_add(1, Ordering::SeqCst);
        if self.shared.rests.load(Ordering::SeqCst)
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
        UnderWay { calls: &self.shared.calls }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It only counts and parks, so it ends at once; a panic in it would have nothing to tell.
            let _ = thread.join();
        }
    }
}

fn tick(shared: &Shared, engine: &wasmtime::EngineWeak) {
    let mut idle_epochs = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        if idle_epochs < REST_AFTER_EPOCHS {
            std::thread::park_timeout(Duration::from_millis(EPOCH_MS));
        } else {
            shared.rests.store(true, Ordering::SeqCst);
            if shared.calls.load(Ordering::SeqCst) == 0 && !shared.stop.load(Ordering::Relaxed) {
                std::thread::park();
            }
            shared.rests.store(false, Ordering::SeqCst);
            idle_epochs = 0;
            continue;
        }
        let Some(engine) = engine.upgrade() else { return };
        engine.increment_epoch();
        idle_epochs = if shared.calls.load(Ordering::Relaxed) == 0 { idle_epochs + 1 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < Duration::from_secs(60), "in vain: {what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn epochs_end_during_a_call_and_the_ticker_rests_without_one() {
        let engine = wasmtime::Engine::default();
        let ticker = Ticker::start(engine.weak()).unwrap();
        for _ in 0..3 {
            wait_until("it rests", || ticker.shared.rests.load(Ordering::SeqCst));
            let call = ticker.call_begins();
            wait_until("it ticks", || !ticker.shared.rests.load(Ordering::SeqCst));
            // Much longer than it would take to rest: it does not, as long as the call is under way.
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(EPOCH_MS) * (REST_AFTER_EPOCHS + 20) {
                assert!(!ticker.shared.rests.load(Ordering::SeqCst), "it rests while a call is under way");
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(call);
        }
    }

    /// Calls that begin in the very moment in which the ticker goes to rest must wake it.
    #[test]
    fn no_call_is_missed() {
        let engine = wasmtime::Engine::default();
        let ticker = Ticker::start(engine.weak()).unwrap();
        for _ in 0..8 {
            // Without a pause: the ticker is then between its word that it rests and its sleep.
            while !ticker.shared.rests.load(Ordering::SeqCst) {
                std::hint::spin_loop();
            }
            let _call = ticker.call_begins();
            wait_until("it ticks", || !ticker.shared.rests.load(Ordering::SeqCst));
        }
    }
}
