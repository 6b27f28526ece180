//! Both sides read again and compared: every key, its value and its lease, all leases, and the order of
//! creation.
//!
//! The hash is blake3 over the keys in their order, each as the length of the key, the key, the length of the
//! value, the value, and the lease, numbers as 8 bytes with the least first. It is computed of each side by
//! itself, from what that side has.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

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
    compare_leases(&target.leases().await?, &source.leases, target.merge)?;
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
    if !target.merge {
        check_order(order, &created)?;
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

/// Keys whose places are in the order in which etcd created them, and the revisions at which the machine did.
fn check_order(order: &[usize], created: &[i64]) -> anyhow::Result<()> {
    if order.windows(2).any(|pair| created[pair[0]] >= created[pair[1]]) {
        bail!(
            "the machine created keys in another order than etcd, maybe because its leader changed: {ADVICE}"
        );
    }
    Ok(())
}

/// Leases of the machine, by id, and those that were to be brought.
fn compare_leases(
    there: &[(u64, Duration)],
    brought: &BTreeMap<u64, Duration>,
    merge: bool,
) -> anyhow::Result<()> {
    for (id, ttl) in brought {
        match there.binary_search_by_key(id, |(id, _)| *id) {
            Ok(found) if there[found].1 == *ttl => {}
            Ok(found) => bail!("the lease {id:x} has {:?} instead of {ttl:?}: {ADVICE}", there[found].1),
            Err(_) => bail!("the lease {id:x} is not in the machine, it has ended: {ADVICE}"),
        }
    }
    if !merge && there.len() != brought.len() {
        bail!("the machine has {} leases, and etcd {}: {ADVICE}", there.len(), brought.len());
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use prost::Message;

    use super::*;

    fn pair(key: &str, value: &str, lease: i64) -> KeyValue {
        KeyValue { key: key.into(), value: value.into(), lease, ..KeyValue::default() }
    }

    /// What is to be brought: keys in order.
    fn source(pairs: &[KeyValue]) -> Source {
        let mut spool = tempfile::tempfile().expect("a file");
        let (mut keys, mut offset) = (Vec::new(), 0);
        for pair in pairs {
            let bytes = pair.encode_to_vec();
            spool.write_all(&bytes).expect("written");
            keys.push(Key::spooled(pair.key.clone(), (1, pair.lease as u64), (offset, bytes.len())));
            offset += bytes.len() as u64;
        }
        Source::of_spool(1, keys, BTreeMap::from([(7, Duration::from_secs(10))]), spool)
    }

    /// Compares all keys: how many others there are, or what is wrong.
    fn compared(there: &[KeyValue], merge: bool) -> Result<usize, String> {
        let source = source(&[pair("a", "1", 0), pair("b", "2", 7), pair("d", "", 0)]);
        let progress = ProgressBar::hidden();
        let mut sides = Sides::new(&source, &progress);
        let met = there.iter().try_for_each(|there| sides.meet(there, merge));
        met.and_then(|()| sides.finish()).map(|(_, others, _)| others).map_err(|why| why.to_string())
    }

    #[test]
    fn the_same_keys_are_the_same_and_others_count_where_they_may_be() {
        let same = [pair("a", "1", 0), pair("b", "2", 7), pair("d", "", 0)];
        assert_eq!(compared(&same, false), Ok(0));
        let [a, b, d] = same;
        let more = [pair("A", "x", 0), a, b, pair("c", "x", 9), d, pair("e", "", 0)];
        assert_eq!(compared(&more, true), Ok(3));
    }

    #[test]
    fn every_difference_is_found_and_named() {
        let all = || [pair("a", "1", 0), pair("b", "2", 7), pair("d", "", 0)];
        let with = |place: usize, other: KeyValue| {
            let mut pairs = all();
            pairs[place] = other;
            pairs.to_vec()
        };
        let without = |place: usize| {
            let mut pairs = all().to_vec();
            pairs.remove(place);
            pairs
        };
        let extra = |key: &str| {
            let mut pairs = [&all()[..], &[pair(key, "x", 0)]].concat();
            pairs.sort_by(|a, b| a.key.cmp(&b.key));
            pairs
        };
        for (there, words) in [
            (without(0), "the key \"a\" is not in the machine"),
            (without(1), "the key \"b\" is not in the machine"),
            (without(2), "the key \"d\" is not in the machine"),
            (Vec::new(), "the key \"a\" is not in the machine"),
            (with(0, pair("a", "2", 0)), "the key \"a\" has another value or lease"),
            (with(1, pair("b", "2", 0)), "the key \"b\" has another value or lease"),
            (with(1, pair("b", "2", 8)), "the key \"b\" has another value or lease"),
            (with(2, pair("d", "x", 0)), "the key \"d\" has another value or lease"),
        ] {
            for merge in [false, true] {
                let why = compared(&there, merge).expect_err(words);
                assert!(why.contains(words) && why.contains(ADVICE), "{why}");
            }
        }
        for key in ["A", "c", "e"] {
            let why = compared(&extra(key), false).expect_err("one more");
            assert!(why.contains(&format!("the machine has the key \"{key}\", and etcd has not")), "{why}");
        }
    }

    #[test]
    fn the_hash_tells_apart_where_keys_values_and_leases_end() {
        let hash = |key: &[u8], value: &[u8], lease| {
            let mut hasher = Hasher::new();
            add(&mut hasher, key, value, lease);
            hasher.finalize()
        };
        let all = [hash(b"ab", b"c", 0), hash(b"a", b"bc", 0), hash(b"ab", b"c", 1), hash(b"abc", b"", 0)];
        for (place, one) in all.iter().enumerate() {
            assert!(all[..place].iter().all(|other| other != one), "{place}");
        }
    }

    #[test]
    fn leases_are_compared_with_their_times() {
        let time = Duration::from_secs;
        let brought = BTreeMap::from([(1, time(10)), (3, time(30))]);
        let compare = |there: &[(u64, Duration)], merge| {
            compare_leases(there, &brought, merge).map_err(|why| why.to_string())
        };
        let all = [(1, time(10)), (3, time(30))];
        assert_eq!(compare(&all, false), Ok(()));
        let more = [(1, time(10)), (2, time(20)), (3, time(30))];
        assert_eq!(compare(&more, true), Ok(()));
        let why = compare(&more, false).expect_err("one more");
        assert!(why.contains("the machine has 3 leases, and etcd 2"), "{why}");
        for merge in [false, true] {
            let why = compare(&all[..1], merge).expect_err("one is missing");
            assert!(why.contains("the lease 3 is not in the machine"), "{why}");
            let why = compare(&[(1, time(10)), (3, time(31))], merge).expect_err("another time");
            assert!(why.contains("the lease 3 has 31s instead of 30s"), "{why}");
        }
    }

    #[test]
    fn keys_were_created_in_etcds_order_or_it_is_said() {
        // In the order of etcd the third key was created first.
        let order = [2, 0, 1];
        check_order(&order, &[5, 9, 2]).expect("in order");
        for created in [[2, 9, 5], [5, 4, 2], [5, 5, 2]] {
            let why = check_order(&order, &created).expect_err("out of order").to_string();
            assert!(why.contains("in another order"), "{why}");
        }
    }
}
