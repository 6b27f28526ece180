//! The apply workers: a few threads that take lanes in turn, and a foreman who sees to it that lanes do not
//! wait for slow ones.
//!
//! A worker that is still at the same lane when the foreman looks again, while other lanes wait, is relieved:
//! another takes its place, and it ends with the lane it has. So guests that loop until their fuel is used up
//! cost the others a few looks, not their speed, and there are no more threads than lanes that are slow.
//!
//! Promises: as many workers as configured are free for lanes that are not slow, as long as fewer than
//! [`RELIEVED_MAX`] lanes are. Which thread applies a batch, and when, never shows in what it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::lane::Lane;
use super::stage::Stage;
use crate::error::Fault;
use crate::inbox::{self, Receiver, Sender};

/// How often the foreman looks: a lane can wait for slow ones about twice as long.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// How often it looks while the workers have nothing to do: the first lanes after that may wait so much
/// longer.
const IDLE_INTERVAL: Duration = Duration::from_millis(100);

/// Workers that were relieved and have not ended, at most. Each has a stack and one guest's memory.
const RELIEVED_MAX: usize = 64;

/// The threads that apply.
pub struct Workers {
    stop: Sender<()>,
    foreman: JoinHandle<Foreman>,
}

impl Workers {
    /// Starts `count` workers and their foreman.
    pub fn start(
        count: usize,
        ready: Receiver<Option<Arc<Lane>>>,
        stage: Arc<Stage>,
    ) -> Result<Workers, Fault> {
        let mut foreman =
            Foreman { ready, stage, posts: Vec::new(), relieved: Vec::new(), hired: 0, short: false };
        for _ in 0..count {
            let post =
                foreman.hire().map_err(|e| Fault::new(format!("an apply worker cannot be started: {e}")))?;
            foreman.posts.push(post);
        }
        let (stop, stopped) = inbox::new();
        let spawned =
            std::thread::Builder::new().name("foreman".to_owned()).spawn(move || foreman.run(&stopped));
        let foreman = spawned.map_err(|e| Fault::new(format!("the foreman cannot be started: {e}")))?;
        Ok(Workers { stop, foreman })
    }

    /// Ends the threads when all lanes that are ready were taken. Waits for those who are at work.
    pub fn stop(self) {
        // The foreman is gone only if it panicked, which the join tells.
        let _ = self.stop.send(());
        match self.foreman.join() {
            Ok(foreman) => foreman.dismiss(),
            Err(_) => tracing::error!("the foreman panicked: workers are left behind"),
        }
    }
}

/// Looks after the workers.
struct Foreman {
    ready: Receiver<Option<Arc<Lane>>>,
    stage: Arc<Stage>,
    posts: Vec<Post>,
    /// Workers that end with the lane they have.
    relieved: Vec<JoinHandle<()>>,
    /// How many workers there ever were: names the next.
    hired: u64,
    /// Whether this computer gave no thread when one was last asked for.
    short: bool,
}

/// A worker as its foreman sees it.
struct Post {
    shift: Arc<Shift>,
    thread: JoinHandle<()>,
    /// Its passes at the last look.
    seen: u64,
}

/// What a worker and its foreman share.
#[derive(Default)]
struct Shift {
    /// How often it took a lane or ended with one: odd while it has one.
    passes: AtomicU64,
    /// Whether it is to end with the lane it has.
    relieved: AtomicBool,
}

impl Foreman {
    fn run(mut self, stopped: &Receiver<()>) -> Foreman {
        let mut words = Vec::new();
        let mut interval = LOOK_INTERVAL;
        loop {
            stopped.take(&mut words, 1, interval);
            interval = if self.look() { LOOK_INTERVAL } else { IDLE_INTERVAL };
            if !words.is_empty() && self.ready.is_empty() {
                return self;
            }
        }
    }

    /// Sees to the workers. False: nothing was done since the last look, and nothing waits.
    fn look(&mut self) -> bool {
        for ended in self.relieved.extract_if(.., |thread| thread.is_finished()) {
            join(ended);
        }
        let mut waiting = self.ready.len();
        let mut busy = waiting > 0 || !self.relieved.is_empty();
        for at in 0..self.posts.len() {
            let post = &mut self.posts[at];
            let passes = post.shift.passes.load(Ordering::Relaxed);
            let slow = passes % 2 == 1 && passes == post.seen;
            busy |= passes % 2 == 1 || passes != post.seen;
            post.seen = passes;
            if slow && waiting > 0 && self.relieved.len() < RELIEVED_MAX {
                waiting -= 1;
                self.relieve(at);
            }
        }
        self.stage.metrics.apply_threads.set((self.posts.len() + self.relieved.len()) as i64);
        busy
    }

    /// Puts another worker in the place of one that is slow.
    fn relieve(&mut self, at: usize) {
        match self.hire() {
            Ok(post) => {
                let former = std::mem::replace(&mut self.posts[at], post);
                former.shift.relieved.store(true, Ordering::Relaxed);
                self.relieved.push(former.thread);
                self.short = false;
            }
            Err(why) if !self.short => {
                tracing::warn!(%why, "no thread for machines that wait for slow ones: they wait on");
                self.short = true;
            }
            Err(_) => {}
        }
    }

    fn hire(&mut self) -> std::io::Result<Post> {
        let shift = Arc::new(Shift::default());
        let (ready, stage, own) = (self.ready.clone(), self.stage.clone(), shift.clone());
        let name = format!("apply-{}", self.hired);
        let thread = std::thread::Builder::new().name(name).spawn(move || work(&ready, &stage, &own))?;
        self.hired += 1;
        Ok(Post { shift, thread, seen: 0 })
    }

    /// Has all workers end.
    fn dismiss(self) {
        let threads = self.posts.into_iter().map(|post| post.thread).chain(self.relieved).collect::<Vec<_>>();
        for _ in &threads {
            // Also for those who were relieved: one may have looked just before it was. Words that nobody
            // needs are dropped with the queue.
            let _ = self.stage.ready.send(None);
        }
        threads.into_iter().for_each(join);
    }
}

fn work(ready: &Receiver<Option<Arc<Lane>>>, stage: &Stage, shift: &Shift) {
    while let Some(lane) = ready.next() {
        shift.passes.fetch_add(1, Ordering::Relaxed);
        let again = lane.work(stage);
        shift.passes.fetch_add(1, Ordering::Relaxed);
        if again {
            stage.give(lane);
        }
        if shift.relieved.load(Ordering::Relaxed) {
            return;
        }
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("an apply worker panicked");
    }
}
