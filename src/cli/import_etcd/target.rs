//! The machine that keys and leases are brought to.
//!
//! Puts go on one stream, many under way, and begin in the order in which they are sent. A stream that breaks
//! is taken up again from the first put without an answer: a put that is done twice leaves the same value.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use statehouse_kv::messages::{PutRequest, RangeRequest, RangeResponse};
use statehouse_kv::{Call, VALUE_BYTES_MAX};
use tokio::sync::Semaphore;

use super::bar;
use super::source::{Key, Reader, Source};
use crate::cli::output;
use crate::client::{ApplyAnswers, ApplySender, Client};
use crate::error::Error;
use crate::machine::lease::TTL_MS_MAX;
use crate::node::request::Consistency;

/// Bytes of puts that are under way, at most; one larger than that goes alone.
const UNDER_WAY_BYTES_MAX: usize = 32 << 20;
/// What a put takes besides its key and value.
const PUT_BYTES: usize = 64;
/// Room that a row of a key takes for its numbers.
const ROW_BYTES: usize = 64;
/// The longest key: the contract's, less what a row takes for itself. A zero byte counts twice.
const KEY_BYTES_MAX: usize = (64 << 10) - 11;
/// How much is shown of a key that is too long.
const KEY_BYTES_SHOWN: usize = 40;
/// Grants that are under way at the same time.
const GRANTS_AT_ONCE: usize = 64;
/// Leases that one request renews.
const RENEWED_AT_ONCE: usize = 10_000;
/// A lease is renewed this many times within its time, but not more often than this.
const RENEWALS: u32 = 3;
const RENEWAL_PAUSE_MIN: Duration = Duration::from_millis(300);
/// How often a stream without any progress is taken up again, and how long to wait before.
const ATTEMPTS: u32 = 20;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(500);

/// A kv machine.
pub struct Target {
    client: Client,
    machine: String,
    /// Whether it may have keys and leases already.
    pub merge: bool,
}

impl Target {
    /// The machine of this name.
    ///
    /// # Errors
    /// There is none, it is of another module, or it has keys or leases and is not to be merged with.
    pub async fn open(client: Client, machine: &str, merge: bool) -> anyhow::Result<Target> {
        let target = Target { client, machine: machine.to_owned(), merge };
        let everything = RangeRequest { count_only: true, ..target.all_keys() };
        let keys = target.range(&everything).await?.count;
        let leases = target.client.leases(machine).await?.len();
        if !merge && (keys > 0 || leases > 0) {
            bail!(
                "the machine {machine:?} has {keys} keys and {leases} leases already: make an empty one \
                 (statehouse machine create NAME --module builtin:kv) and say --machine NAME, or say --merge \
                 to have keys of the same name overwritten"
            );
        }
        Ok(target)
    }

    /// Looks whether everything fits, before anything is written.
    pub fn check(&self, source: &Source) -> anyhow::Result<()> {
        if let Some((id, ttl)) = source.leases.iter().find(|(_, ttl)| ttl.as_millis() > TTL_MS_MAX.into()) {
            bail!(
                "the lease {id:x} was granted for {} seconds, the limit is {}; nothing was written",
                ttl.as_secs(),
                TTL_MS_MAX / 1_000
            );
        }
        let long = |key: &Key| key.key.len() + key.key.iter().filter(|byte| **byte == 0).count();
        let odd = |key: &&Key| long(key) > KEY_BYTES_MAX || key.bytes + ROW_BYTES > VALUE_BYTES_MAX;
        let Some(first) = source.keys.iter().find(odd) else { return Ok(()) };
        bail!(
            "{} keys do not fit, the first is \"{}\", of {} bytes, {} with its value: a key may have \
             {KEY_BYTES_MAX} (zero bytes count twice), {VALUE_BYTES_MAX} with its value; nothing was written",
            source.keys.iter().filter(odd).count(),
            output::printable(&first.key[..first.key.len().min(KEY_BYTES_SHOWN)]),
            first.key.len(),
            first.bytes,
        )
    }

    /// All keys, from the first on.
    pub fn all_keys(&self) -> RangeRequest {
        RangeRequest { key: vec![0], range_end: vec![0], ..RangeRequest::default() }
    }

    /// Reads what is acknowledged.
    pub async fn range(&self, request: &RangeRequest) -> anyhow::Result<RangeResponse> {
        let asked = self.client.query(&self.machine, request.to_envelope(), Consistency::Linearizable);
        let outcome = asked.await?.outcome.into();
        let odd = || format!("the machine {:?} does not answer as one of builtin:kv", self.machine);
        let answer = output::answer(&outcome).with_context(odd)?;
        RangeRequest::answer(answer).with_context(odd)
    }

    /// Grants all leases under their ids.
    pub async fn grant(&self, source: &Source) -> anyhow::Result<()> {
        let progress = bar(source.leases.len(), "leases", "granting leases")?;
        let grants = stream::iter(&source.leases).map(|(&id, &ttl)| {
            let progress = &progress;
            async move {
                match self.client.grant_lease(&self.machine, ttl, Some(id)).await {
                    Ok(_) => {}
                    Err(Error::AlreadyExists(_)) if self.merge => self.check_lease(id, ttl).await?,
                    Err(why) => return Err(anyhow!(why).context(format!("cannot grant the lease {id:x}"))),
                }
                progress.inc(1);
                Ok(())
            }
        });
        let done: anyhow::Result<()> = grants.buffer_unordered(GRANTS_AT_ONCE).try_collect().await;
        progress.finish_and_clear();
        done
    }

    /// Whether a lease that is there already is the one that was to be granted.
    async fn check_lease(&self, id: u64, ttl: Duration) -> anyhow::Result<()> {
        let there = self.client.lease(&self.machine, id).await;
        let there = there.with_context(|| format!("the lease {id:x} is just ending: try again"))?;
        if u128::from(there.ttl_ms) == ttl.as_millis() && !there.of_machine && !there.is_session {
            return Ok(());
        }
        bail!("the machine has another lease of the id {id:x}: import into another machine")
    }

    /// Renews the leases again and again. Answers only with what makes that impossible.
    pub async fn keep_alive(&self, source: &Source) -> anyhow::Error {
        let ids: Vec<u64> = source.leases.keys().copied().collect();
        let Some(shortest) = source.leases.values().min() else { return std::future::pending().await };
        let pause = (*shortest / RENEWALS).max(RENEWAL_PAUSE_MIN);
        loop {
            tokio::time::sleep(pause).await;
            for some in ids.chunks(RENEWED_AT_ONCE) {
                // One that is not there is not granted yet; one that has ended shows when both sides are
                // compared. What fails for a while is tried again.
                match self.client.renew_leases(&self.machine, some).await {
                    Err(why @ (Error::NotFound(_) | Error::Invalid(_))) => return why.into(),
                    Err(why) => tracing::warn!(%why, "leases could not be renewed: again"),
                    Ok(_) => {}
                }
            }
        }
    }

    /// The leases of the machine: their ids, and the time that each was granted.
    pub async fn leases(&self) -> anyhow::Result<Vec<(u64, Duration)>> {
        let leases = self.client.leases(&self.machine).await?;
        Ok(leases.into_iter().map(|lease| (lease.id, Duration::from_millis(lease.ttl_ms))).collect())
    }

    /// Writes the keys at the places of `order`, one after the other.
    pub async fn put(&self, source: &Source, order: &[usize]) -> anyhow::Result<()> {
        let progress = bar(order.len(), "keys", "writing")?;
        let (mut done, mut attempts) = (0, 0);
        while done < order.len() {
            let run = Run::new(source, &order[done..], &progress);
            let ended = run.to_its_end(self).await;
            let acknowledged = run.acknowledged();
            done += acknowledged;
            progress.set_position(done as u64);
            let Err(why) = ended else { continue };
            attempts = if acknowledged > 0 { 1 } else { attempts + 1 };
            if attempts > ATTEMPTS || !passes(&why) {
                return Err(why.context(format!("{done} of {} keys are written", order.len())));
            }
            tracing::warn!(why = format!("{why:#}"), done, "the stream of keys broke: again");
            tokio::time::sleep(ATTEMPT_PAUSE).await;
        }
        progress.finish_and_clear();
        Ok(())
    }
}

/// Whether a failure may be over when it is tried again.
fn passes(why: &anyhow::Error) -> bool {
    matches!(
        why.downcast_ref::<Error>(),
        Some(
            Error::Unavailable(_)
                | Error::NotLeader { .. }
                | Error::Unknown(_)
                | Error::DeadlineExceeded(_)
                | Error::Overloaded(_)
        )
    )
}

/// Puts on one stream.
struct Run<'s> {
    source: &'s Source,
    order: &'s [usize],
    progress: &'s ProgressBar,
    /// Room for the bytes of puts.
    room: Semaphore,
    under_way: RefCell<UnderWay>,
}

/// Puts without an answer, and those behind them.
#[derive(Default)]
struct UnderWay {
    /// The place in the order of the first.
    first: usize,
    /// Of each from the first on: whether it is answered.
    answered: VecDeque<bool>,
}

impl<'s> Run<'s> {
    fn new(source: &'s Source, order: &'s [usize], progress: &'s ProgressBar) -> Run<'s> {
        let room = Semaphore::new(UNDER_WAY_BYTES_MAX);
        Run { source, order, progress, room, under_way: RefCell::default() }
    }

    /// How many puts of the order, from the first on, are answered.
    fn acknowledged(&self) -> usize {
        self.under_way.borrow().first
    }

    async fn to_its_end(&self, target: &Target) -> anyhow::Result<()> {
        let (sender, answers) = target.client.apply_stream().await?;
        let send = async {
            match self.send(sender, &target.machine).await {
                // The stream has ended, and its answers say why.
                Err(why) if why.downcast_ref::<Error>().is_some() => Ok(()),
                sent => sent,
            }
        };
        tokio::select! {
            // Whatever is not sent by then never will be.
            received = self.receive(answers) => received?,
            Err(why) = send => return Err(why),
        }
        match self.acknowledged() == self.order.len() {
            true => Ok(()),
            false => Err(Error::Unavailable("the stream of keys ended early".into()).into()),
        }
    }

    async fn send(&self, sender: ApplySender, machine: &str) -> anyhow::Result<()> {
        let mut reader = self.source.reader();
        for (id, &place) in self.order.iter().enumerate() {
            let key = &self.source.keys[place];
            let put = put(key, &mut reader)?;
            self.room.acquire_many(weight(key)).await?.forget();
            self.under_way.borrow_mut().answered.push_back(false);
            sender.send(id as u64, machine, put).await?;
        }
        Ok(())
    }

    async fn receive(&self, mut answers: ApplyAnswers) -> anyhow::Result<()> {
        while let Some((id, result)) = answers.next().await? {
            let key = usize::try_from(id).ok().and_then(|id| self.order.get(id));
            let Some(key) = key.map(|&place| &self.source.keys[place]) else {
                bail!("an answer to a put that was never sent: the node may be newer");
            };
            output::answer(&result?.outcome)
                .with_context(|| format!("the key \"{}\" cannot be put", output::printable(&key.key)))?;
            self.room.add_permits(weight(key) as usize);
            self.under_way.borrow_mut().answer(id);
            self.progress.inc(1);
        }
        Ok(())
    }
}

impl UnderWay {
    fn answer(&mut self, id: u64) {
        let behind = usize::try_from(id).ok().and_then(|id| id.checked_sub(self.first));
        if let Some(answered) = behind.and_then(|behind| self.answered.get_mut(behind)) {
            *answered = true;
        }
        while self.answered.front() == Some(&true) {
            self.answered.pop_front();
            self.first += 1;
        }
    }
}

fn put(key: &Key, reader: &mut Reader<'_>) -> anyhow::Result<Vec<u8>> {
    let value = reader.value(key)?;
    // An id is the same 64 bits on both sides.
    let put = PutRequest { key: key.key.clone(), value, lease: key.lease as i64, ..PutRequest::default() };
    Ok(put.to_envelope())
}

/// The room that a put takes.
fn weight(key: &Key) -> u32 {
    // It fits: the bound is 32 MiB.
    (key.bytes + PUT_BYTES).min(UNDER_WAY_BYTES_MAX) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_is_acknowledged_is_what_is_answered_from_the_first_on() {
        let mut under_way = UnderWay { first: 0, answered: VecDeque::from([false; 5]) };
        for (answered, first) in [(1, 0), (4, 0), (0, 2), (0, 2), (9, 2), (2, 3), (3, 5)] {
            under_way.answer(answered);
            assert_eq!(under_way.first, first, "after the answer to {answered}");
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_is_found_before_anything_is_written() {
        let client = Client::new(["127.0.0.1:1"]).unwrap();
        let target = Target { client, machine: "kv".into(), merge: false };
        let source = |key: Vec<u8>, bytes: usize, ttl: u64| {
            let key = Key::spooled(key, (1, 0), (0, bytes));
            let leases = BTreeMap::from([(7, Duration::from_secs(ttl))]);
            Source::of_spool(1, vec![key], leases, tempfile::tempfile().unwrap())
        };
        let check = |source: &Source| target.check(source).map_err(|why| why.to_string());
        check(&source(vec![b'k'; KEY_BYTES_MAX], VALUE_BYTES_MAX - ROW_BYTES, TTL_MS_MAX / 1_000)).unwrap();
        for (odd, words) in [
            (source(vec![b'k'; KEY_BYTES_MAX + 1], 9, 9), "65526 bytes"),
            (source(vec![0; KEY_BYTES_MAX / 2 + 1], 9, 9), "count twice"),
            (source(b"k".to_vec(), VALUE_BYTES_MAX, 9), "4194304 with its value"),
            (source(b"k".to_vec(), 9, TTL_MS_MAX / 1_000 + 1), "the lease 7"),
        ] {
            let why = check(&odd).unwrap_err();
            assert!(why.contains(words) && why.contains("nothing was written"), "{why}");
        }
    }
}
