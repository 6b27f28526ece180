//! Giving way: work that nobody waits for with a command in hand steps back behind the threads that serve.
//!
//! On Linux priorities are of threads, and new threads have that of the thread that made them. Without this
//! the work is done all the same.

use rustix::process::{Pid, getpriority_process, nice, setpriority_process};

/// How far such a thread steps back: it gets about a tenth of a core that others want whole.
pub const NICENESS: i32 = 10;

/// The calling thread gives way from now on.
pub fn give_way() {
    if let Err(why) = nice(NICENESS) {
        tracing::debug!(%why, "a thread keeps its priority");
    }
}

/// The threads of this process that are called `name` give way from now on.
pub fn threads_give_way(name: &str) {
    for thread in threads_called(name) {
        let given = getpriority_process(Some(thread)).map(|now| now.max(NICENESS));
        if let Err(why) = given.and_then(|niceness| setpriority_process(Some(thread), niceness)) {
            tracing::debug!(%why, name, "a thread keeps its priority");
        }
    }
}

fn threads_called(name: &str) -> Vec<Pid> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let named = threads.flatten().filter(|thread| {
        std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|called| called.trim_end() == name)
    });
    named.filter_map(|thread| Pid::from_raw(thread.file_name().to_str()?.parse().ok()?)).collect()
}

/// How far each thread of this process that is called `name` has stepped back.
#[cfg(test)]
pub fn niceness_of(name: &str) -> Vec<i32> {
    threads_called(name).into_iter().filter_map(|thread| getpriority_process(Some(thread)).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_way_by_itself_or_by_its_name_and_others_do_not() {
        let niceness = || getpriority_process(None).unwrap();
        let own = niceness();
        let by_itself = std::thread::spawn(move || {
            give_way();
            niceness()
        });
        assert_eq!(by_itself.join().unwrap(), (own + NICENESS).min(19));
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let by_name = std::thread::Builder::new().name("gives way".into());
        let by_name = by_name.spawn(move || (wait.recv().unwrap(), niceness()).1).unwrap();
        while threads_called("gives way").is_empty() {
            std::thread::yield_now();
        }
        threads_give_way("gives way");
        threads_give_way("gives way");
        go.send(()).unwrap();
        assert_eq!(by_name.join().unwrap(), own.max(NICENESS));
        assert_eq!(niceness(), own);
    }
}
