//! Queries of stored machines: in warm instances that are used again, because a fresh one costs as much as
//! the rest of a read, and queries owe no determinism.
//!
//! Each query has a budget of fuel, time and memory of its own. An instance is replaced after a trap, an
//! overrun or some thousands of uses. Nothing here waits: as many queries run at a time as threads ask.
//!
//! A pool serves one machine: what a guest keeps in its globals never meets another machine's data.

use parking_lot::Mutex;

use super::instance::{Budget, Live};
use super::limits::Place;
use super::module::Module;
use crate::error::Fault;
use crate::machine::frame::Frame;
use crate::machine::guest::{Ending, QueryView};

/// An instance is replaced after this many queries: bounds what a leaking guest gathers.
pub const USES_MAX: u32 = 4_096;

/// Idle instances kept for one machine. The engine bounds them for all machines together.
const IDLE_MAX: usize = 16;

/// The warm instances of one machine.
pub struct QueryPool {
    module: Module,
    seed: [u8; 32],
    idle: Mutex<Vec<Warm>>,
}

struct Warm {
    live: Live,
    uses: u32,
    /// Counts it among the node's warm instances; without one it is not kept.
    place: Option<Place>,
}

impl QueryPool {
    pub(super) fn new(module: Module, seed: [u8; 32]) -> QueryPool {
        QueryPool { module, seed, idle: Mutex::default() }
    }

    /// Runs one query. `Exhausted`: its budget was too small; running it again with a larger one is safe.
    pub fn query(&self, frame: Frame, view: QueryView, request: &[u8], budget: Budget) -> (Frame, Ending) {
        let idle = self.idle.lock().pop();
        let mut warm = match idle.map_or_else(|| self.make(), Ok) {
            Ok(warm) => warm,
            Err(fault) => return (frame, Ending::Fault(fault)),
        };
        let (frame, ending) = warm.live.query(frame, view, request, budget);
        warm.uses += 1;
        let ending = match ending {
            Ending::Trapped(why) if warm.live.was_denied_memory() => {
                let max = self.memory_bytes_max();
                Ending::Trapped(format!("it asked for more memory than the {max} bytes it may have: {why}"))
            }
            ending => ending,
        };
        self.keep(warm);
        (frame, ending)
    }

    /// Drops the idle instances: the machine is not asked much any more.
    pub fn cool(&self) {
        self.idle.lock().clear();
    }

    fn keep(&self, warm: Warm) {
        if warm.live.is_alive() && warm.uses < USES_MAX && warm.place.is_some() {
            let mut idle = self.idle.lock();
            if idle.len() < IDLE_MAX {
                idle.push(warm);
            }
        }
    }

    fn make(&self) -> Result<Warm, Fault> {
        let live = Live::make(&self.module, self.seed, self.memory_bytes_max())?;
        Ok(Warm { live, uses: 0, place: self.module.engine().warm().take() })
    }

    fn memory_bytes_max(&self) -> usize {
        self.module.engine().settings().memory_bytes_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::testing::*;
    use std::time::Duration;

    const BUDGET: Budget = Budget { fuel: 10_000_000, epoch_ticks: 1_000 };

    fn pool(query: &str) -> QueryPool {
        load(&stored(&guest_text("(global $count (mut i32) (i32.const 0))", "(call $ok)", query)))
            .queries([0; 32])
    }

    /// Answers by how often this instance was asked.
    const COUNT: &str = "(global.set $count (i32.add (global.get $count) (i32.const 1)))
        (i32.store (i32.const 128) (global.get $count))
        (call $answer (i32.const 128) (i32.const 4))";

    fn ask(pool: &QueryPool, budget: Budget) -> Ending {
        pool.query(query_frame(), VIEW, b"", budget).1
    }

    fn count(pool: &QueryPool) -> u32 {
        u32::from_le_bytes(answer(ask(pool, BUDGET)).try_into().unwrap())
    }

    #[test]
    fn an_instance_is_used_again_up_to_its_limit() {
        let pool = pool(COUNT);
        for use_number in 1..=USES_MAX {
            assert_eq!(count(&pool), use_number);
        }
        assert_eq!(count(&pool), 1);
        pool.cool();
        assert_eq!(count(&pool), 1);
    }

    #[test]
    fn an_instance_is_replaced_after_a_trap_or_an_overrun() {
        // The third query traps, the fourth of another instance loops.
        let pool =
            pool(&format!("(if (i32.eq (global.get $count) (i32.const 2)) (then unreachable)) {COUNT}"));
        assert_eq!((count(&pool), count(&pool)), (1, 2));
        assert!(matches!(ask(&pool, BUDGET), Ending::Trapped(_)));
        assert_eq!(count(&pool), 1);
        assert!(matches!(ask(&pool, Budget { fuel: 5, ..BUDGET }), Ending::Exhausted(_)));
        assert_eq!(count(&pool), 1);
    }

    #[test]
    fn a_query_that_loops_is_stopped_by_fuel_or_time() {
        let pool = pool("(loop (br 0)) unreachable");
        let Ending::Exhausted(why) = ask(&pool, BUDGET) else { panic!("it did not run out of fuel") };
        assert!(why.contains("fuel"), "{why}");
        let Ending::Exhausted(why) = ask(&pool, Budget::of_time(Duration::from_millis(20))) else {
            panic!("it did not run out of time")
        };
        assert!(why.contains("time"), "{why}");
    }

    #[test]
    fn a_query_out_of_memory_says_so() {
        let pool = pool(
            "(if (i32.eq (i32.const -1) (memory.grow (i32.const 60000))) (then unreachable)) (call $ok)",
        );
        let Ending::Trapped(why) = ask(&pool, BUDGET) else { panic!("it had the memory") };
        assert!(why.contains("more memory than the 268435456 bytes"), "{why}");
    }

    #[test]
    fn many_threads_ask_at_the_same_time() {
        let pool = pool(COUNT);
        let answers = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..200).map(|_| count(&pool)).collect::<Vec<_>>())).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(answers.len(), 800);
        assert!(pool.idle.lock().len() <= 4);
    }
}
