//! Both sides read again and compared: every key, its value and its lease, all leases, and the order of
//! creation.
//!
//! The hash is blake3 over the keys in their order, each as the length of the key, the key, the length of the
//! value, the value, and the lease, numbers as 8 bytes with the least first. It is computed of each side by
//! itself, from what that side has.

use std::cmp::Ordering;

use anyhow::bail;
use blake3::{Hash, Hasher};
use indicatif::ProgressBar;
use statehouse_kv::messages::{KeyValue, RangeRequest, RangeResponse};

use super::bar;
use super::source::{Key, Source};
use super::target::Target;
use crate::cli::output;

/// Keys of the first page, and of any.
const PAGE_KEYS_FIRST: i64 = 64;
const PAGE_KEYS_MAX: i64 = 10_000;
/// What a page should weigh: a quarter of what the machine answers with at most.
const PAGE_BYTES: usize = 1 << 20;
/// What to do about a difference.
const ADVICE: &str = "somebody may have written to the machine meanwhile: make an empty one and import again";

/// What a comparison without a difference found.
pub struct Compared {
    /// Of both sides.
    pub hash: Hash,
    /// The machine's revision.
    pub revision: i64,
    /// Keys of the machine that were not brought.
    pub others: usize,
}

/// Compares a machine with what was to be brought to it.
///
/// # Errors
/// Names the first difference.
pub async fn compare(target: &Target, source: &Source, order: &[usize]) -> anyhow::Result<Compared> {
    compare_leases(target, source).await?;
    let progress = bar(source.keys.len(), "keys", "comparing")?;
    let mut sides = Sides::new(source, &progress);
    let mut request = RangeRequest { limit: PAGE_KEYS_FIRST, ..target.all_keys() };
    loop {
        let page = page(target, &mut request).await?;
        if request.revision == 0 {
            request.revision = page.header.map(|header| header.revision).unwrap_or_default();
        }
        page.kvs.iter().try_for_each(|there| sides.meet(there, target.merge))?;
        match page.kvs.last().filter(|_| page.more) {
            Some(last) => request.key = [&last.key[..], &[0]].concat(),
            None => break,
        }
    }
    progress.finish_and_clear();
    let (hash, others, created) = sides.finish()?;
    // Keys that were there before are older than what was brought.
    if !target.merge && order.windows(2).any(|pair| created[pair[0]] >= created[pair[1]]) {
        bail!(
            "the machine created keys in another order than etcd, maybe because its leader changed: {ADVICE}"
        );
    }
    Ok(Compared { hash, revision: request.revision, others })
}

/// Reads a page, a smaller one if the machine cannot answer with so much.
async fn page(target: &Target, request: &mut RangeRequest) -> anyhow::Result<RangeResponse> {
    loop {
        match target.range(request).await {
            Ok(page) => {
                let bytes: usize = page.kvs.iter().map(|pair| pair.key.len() + pair.value.len()).sum();
                let each = bytes / page.kvs.len().max(1) + 1;
                let next = i64::try_from(PAGE_BYTES / each).unwrap_or(PAGE_KEYS_MAX);
                // Values behind these may be heavier: it grows by steps.
                request.limit = next.clamp(1, (request.limit * 4).min(PAGE_KEYS_MAX));
                return Ok(page);
            }
            Err(_) if request.limit > 1 => request.limit = 1,
            Err(why) => return Err(why),
        }
    }
}

async fn compare_leases(target: &Target, source: &Source) -> anyhow::Result<()> {
    let there = target.leases().await?;
    for (id, ttl) in &source.leases {
        match there.binary_search_by_key(id, |(id, _)| *id) {
            Ok(found) if there[found].1 == *ttl => {}
            Ok(found) => bail!("the lease {id:x} has {:?} instead of {ttl:?}: {ADVICE}", there[found].1),
            Err(_) => bail!("the lease {id:x} is not in the machine, it has ended: {ADVICE}"),
        }
    }
    if !target.merge && there.len() != source.leases.len() {
        bail!("the machine has {} leases, and etcd {}: {ADVICE}", there.len(), source.leases.len());
    }
    Ok(())
}

/// Both sides, key by key.
struct Sides<'s> {
    keys: &'s [Key],
    reader: super::source::Reader<'s>,
    /// How many keys of etcd's were met.
    met: usize,
    of_etcd: Hasher,
    of_machine: Hasher,
    others: usize,
    /// The machine's revisions that created the keys.
    created: Vec<i64>,
    progress: &'s ProgressBar,
}

impl<'s> Sides<'s> {
    fn new(source: &'s Source, progress: &'s ProgressBar) -> Sides<'s> {
        Sides {
            keys: &source.keys,
            reader: source.reader(),
            met: 0,
            of_etcd: Hasher::new(),
            of_machine: Hasher::new(),
            others: 0,
            created: Vec::with_capacity(source.keys.len()),
            progress,
        }
    }

    /// Takes the machine's next key.
    fn meet(&mut self, there: &KeyValue, merge: bool) -> anyhow::Result<()> {
        let name = || output::printable(&there.key);
        let key = self.keys.get(self.met);
        match key.map_or(Ordering::Greater, |key| key.key.cmp(&there.key)) {
            Ordering::Less => {}
            Ordering::Greater if merge => {
                self.others += 1;
                return Ok(());
            }
            Ordering::Greater => bail!("the machine has the key \"{}\", and etcd has not: {ADVICE}", name()),
            Ordering::Equal => {
                let value = self.reader.value(&self.keys[self.met])?;
                let lease = self.keys[self.met].lease;
                if value != there.value || lease != there.lease as u64 {
                    bail!("the key \"{}\" has another value or lease in the machine: {ADVICE}", name());
                }
                add(&mut self.of_etcd, &self.keys[self.met].key, &value, lease);
                // An id is the same 64 bits on both sides.
                add(&mut self.of_machine, &there.key, &there.value, there.lease as u64);
                self.created.push(there.create_revision);
                self.met += 1;
                self.progress.inc(1);
                return Ok(());
            }
        }
        Err(self.missing())
    }

    fn missing(&self) -> anyhow::Error {
        let key = self.keys.get(self.met).map(|key| output::printable(&key.key)).unwrap_or_default();
        anyhow::anyhow!("the key \"{key}\" is not in the machine: {ADVICE}")
    }

    fn finish(self) -> anyhow::Result<(Hash, usize, Vec<i64>)> {
        if self.met < self.keys.len() {
            return Err(self.missing());
        }
        let (etcd, machine) = (self.of_etcd.finalize(), self.of_machine.finalize());
        if etcd != machine {
            bail!("blake3 of etcd's keys is {etcd}, of the machine's {machine}: {ADVICE}");
        }
        Ok((machine, self.others, self.created))
    }
}

fn add(hash: &mut Hasher, key: &[u8], value: &[u8], lease: u64) {
    for part in [key, value] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.update(&lease.to_le_bytes());
}
