//! Who writes in a soak: each writer has keys of its own and counts up what it writes to them, so that what
//! is there at the end tells whether anything acknowledged is missing.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use bytes::Bytes;
use futures_util::future;
use indicatif::ProgressBar;
use parking_lot::Mutex;
use statehouse_kv::Call;
use statehouse_kv::messages::{PutRequest, RangeRequest};

use super::cluster::{Cluster, MACHINE};
use crate::error::Error;
use crate::machine::outcome::Outcome;
use crate::node::request::Consistency;

/// All writers.
pub struct Writers {
    writers: Vec<Mutex<Writer>>,
    acknowledged: AtomicU64,
    unknown: AtomicU64,
}

/// One of them.
struct Writer {
    number: u64,
    /// What it wrote last, whether or not that was acknowledged.
    last: u64,
    /// By key: the last value that was acknowledged; 0: none.
    acknowledged: Vec<u64>,
}

impl Writers {
    /// So many writers, each with so many keys.
    pub fn new(writers: u64, keys: u64) -> Writers {
        let writer = |number| Writer { number, last: 0, acknowledged: vec![0; keys as usize] };
        Writers {
            writers: (0..writers).map(|number| Mutex::new(writer(number))).collect(),
            acknowledged: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        }
    }

    /// Writes that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Writes whose fate is unknown.
    pub fn unknown(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }

    /// All writers together write so often, each at one node after the other.
    pub async fn write(&self, cluster: &Cluster, writes: u64, bar: &ProgressBar) -> anyhow::Result<()> {
        let left = AtomicU64::new(writes);
        let take =
            || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        let writing = (0..self.writers.len()).map(|number| {
            let take = &take;
            async move {
                while take() {
                    let (place, value, command) = self.next(number);
                    let told = cluster.any(value).apply(MACHINE, command).await;
                    self.note(number, place, value, told.map(|applied| applied.outcome))?;
                    bar.inc(1);
                }
                anyhow::Ok(())
            }
        });
        future::try_join_all(writing).await.map(drop)
    }

    /// The first writer's next write, for who sends it itself.
    pub fn single(&self) -> (usize, u64, Bytes) {
        self.next(0)
    }

    /// What became of the write that [`single`](Writers::single) gave.
    pub fn note_single(&self, place: usize, value: u64, told: Result<Outcome, Error>) -> anyhow::Result<()> {
        self.note(0, place, value, told)
    }

    /// What a writer writes next: which of its keys, the value, and the command.
    fn next(&self, number: usize) -> (usize, u64, Bytes) {
        let mut writer = self.writers[number].lock();
        writer.last += 1;
        let (value, place) = (writer.last, writer.last as usize % writer.acknowledged.len());
        let put = PutRequest { key: key(writer.number, place), value: text(value), ..PutRequest::default() };
        (place, value, put.to_envelope().into())
    }

    fn note(
        &self,
        number: usize,
        place: usize,
        value: u64,
        told: Result<Outcome, Error>,
    ) -> anyhow::Result<()> {
        match told {
            Ok(Outcome::Ok(_)) => {
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
                let known = &mut self.writers[number].lock().acknowledged[place];
                *known = value.max(*known);
                Ok(())
            }
            // A leader that goes away takes what it was told to its grave.
            Err(
                Error::Unknown(_) | Error::Unavailable(_) | Error::NotLeader { .. } | Error::Overloaded(_),
            ) => {
                self.unknown.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Ok(other) => anyhow::bail!("a write of the soak ended as {other:?}"),
            Err(why) => Err(why).context("a write of the soak failed"),
        }
    }

    /// How many keys lack what was acknowledged. What was written later may be there in its place.
    pub async fn missing(&self, cluster: &Cluster) -> anyhow::Result<u64> {
        let mut missing = 0;
        for writer in &self.writers {
            let (number, known) = {
                let writer = writer.lock();
                (writer.number, writer.acknowledged.clone())
            };
            for (place, value) in known.into_iter().enumerate() {
                let request = RangeRequest { key: key(number, place), ..RangeRequest::default() };
                let node = cluster.any(number + place as u64);
                let answered =
                    node.query(MACHINE, request.to_envelope().into(), Consistency::Linearizable).await?;
                let answer =
                    answered.outcome.map_err(|no| anyhow::anyhow!("a read is refused: {}", no.message))?;
                let found = RangeRequest::answer(&answer)?.kvs.pop();
                let found = found.and_then(|pair| String::from_utf8(pair.value).ok()?.parse::<u64>().ok());
                missing += u64::from(found.unwrap_or(0) < value);
            }
        }
        Ok(missing)
    }
}

fn key(writer: u64, place: usize) -> Vec<u8> {
    format!("{writer:04}/{place:06}").into_bytes()
}

fn text(value: u64) -> Vec<u8> {
    value.to_string().into_bytes()
}
