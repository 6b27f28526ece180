//! What not to do: keep a generator of random numbers. `module check` catches it.
//!
//! A command is a number of sides, and its answer a throw of such a die. That there is randomness at all does
//! no harm: a component that asks WASI for it gets bytes that are made from the machine and the input's place
//! in the log, the same on every replica. But `rand::rng()` asks once for each instance and goes on from
//! there, so a throw depends on how many came before it in its batch.
//!
//! Right: a generator made anew for each command, as from `rand::rngs::SysRng`.

use rand::RngExt;
use statehouse_guest::{Answer, Change, Refusal, Store, Stored, View};

struct Dice;

impl Stored for Dice {
    fn command(_: &Change, store: &mut Store, sides: &[u8]) -> Answer {
        let sides = std::str::from_utf8(sides).ok().and_then(|sides| sides.parse().ok());
        let sides: u32 = sides
            .filter(|sides| *sides > 0)
            .ok_or_else(|| Refusal::new(1, "a number of sides from 1 to 4294967295 is expected"))?;
        let thrown = rand::rng().random_range(1..=sides).to_string().into_bytes();
        store.set(b"last", &thrown);
        Ok(thrown)
    }

    fn query(_: &View, store: &Store, _: &[u8]) -> Answer {
        store.get(b"last").ok_or_else(|| Refusal::new(2, "nothing was thrown"))
    }
}

statehouse_guest::stored!(Dice);
