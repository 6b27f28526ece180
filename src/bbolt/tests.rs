//! Files are written and read back, and damaged in every way that comes to mind.

use std::collections::BTreeMap;
use std::io::Cursor as Memory;

use prost::Message;
use statehouse_kv::messages::KeyValue;

use super::etcd::{BUCKETS, Checksum, EtcdFile, KEYS, LEASES, Lease, Living, Revision, checksum};
use super::snapshot::{About, Snapshot};
use super::*;

type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}

fn write(buckets: &BTreeMap<Vec<u8>, Entries>) -> Vec<u8> {
    let mut writer = Writer::new(Memory::new(Vec::new())).unwrap();
    for (name, entries) in buckets {
        writer.bucket(name).unwrap();
        entries.iter().for_each(|(key, value)| writer.put(key, value).unwrap());
    }
    writer.finish().unwrap().into_inner()
}

fn read(database: &Database<Vec<u8>>, name: &[u8]) -> Result<Option<Entries>, Error> {
    let Some(bucket) = database.bucket(name)? else { return Ok(None) };
    let (mut cursor, mut entries) = (database.walk(&bucket), Entries::new());
    while let Some(entry) = cursor.next_entry()? {
        entries.insert(entry.key.to_vec(), entry.value.to_vec());
    }
    Ok(Some(entries))
}

/// Buckets of many shapes: none, one and many entries, short and long keys, values that run over pages.
fn shapes(numbers: &mut Numbers) -> BTreeMap<Vec<u8>, Entries> {
    let shape = |count: u64, key_max: u64, value_max: u64, numbers: &mut Numbers| -> Entries {
        let pair = |_| {
            let key = 1 + numbers.below(key_max);
            let value = numbers.below(value_max);
            (numbers.bytes(key), numbers.bytes(value))
        };
        (0..count).map(pair).collect()
    };
    BTreeMap::from([
        (b"a none".to_vec(), Entries::new()),
        (b"b one".to_vec(), shape(1, 10, 10, numbers)),
        (b"c many".to_vec(), shape(20_000, 12, 30, numbers)),
        (b"d long keys".to_vec(), shape(60, 9_000, 10, numbers)),
        (b"e long values".to_vec(), shape(30, 10, 50_000, numbers)),
        (b"f mixed".to_vec(), shape(600, 1_500, 3_000, numbers)),
    ])
}

#[test]
fn what_was_written_is_read_in_order_and_found_by_key() {
    let buckets = shapes(&mut Numbers(1));
    let database = Database::open(write(&buckets)).unwrap();
    for (name, entries) in &buckets {
        assert_eq!(read(&database, name).unwrap().as_ref(), Some(entries), "{}", name.escape_ascii());
        let bucket = database.bucket(name).unwrap().unwrap();
        let mut cursor = database.walk(&bucket);
        for (key, value) in entries.iter().step_by(7) {
            assert_eq!(database.get(&bucket, key).unwrap().as_ref(), Some(value));
            cursor.seek(key).unwrap();
            assert_eq!(cursor.next_entry().unwrap().unwrap().value, value, "one cursor, many seeks");
            let behind = [&key[..], &[0]].concat();
            cursor.seek(&behind).unwrap();
            let next = entries.range(behind..).next().map(|(key, _)| key.clone());
            assert_eq!(cursor.next_entry().unwrap().map(|entry| entry.key.to_vec()), next);
        }
        cursor.seek(&[0xff; 40_000]).unwrap();
        assert_eq!(cursor.next_entry().unwrap(), None);
        assert_eq!(cursor.next_entry().unwrap(), None);
        assert_eq!(database.get(&bucket, b"no such key in any").unwrap(), None);
    }
    assert!(database.bucket(b"none of them").unwrap().is_none());
}

#[test]
fn every_count_of_entries_makes_a_tree_that_reads_back() {
    // Around the edges of pages: where levels begin, and where a last page would have a single child.
    for (count, key_bytes, value_bytes) in (0..140)
        .map(|count| (count, 1_400, 0))
        .chain((0..60).map(|count| (count, 12_000, 5)).chain((0..300).map(|count| (count, 40, 30))))
    {
        let key = |index: u32| [&index.to_be_bytes()[..], &vec![7; key_bytes]].concat();
        let entries: Entries = (0..count).map(|index| (key(index), vec![1; value_bytes])).collect();
        let database = Database::open(write(&BTreeMap::from([(b"b".to_vec(), entries.clone())]))).unwrap();
        assert_eq!(read(&database, b"b").unwrap(), Some(entries), "{count} keys of {key_bytes} bytes");
    }
}

#[test]
fn what_does_not_fit_or_comes_out_of_order_is_not_written() {
    let mut writer = Writer::new(Memory::new(Vec::new())).unwrap();
    let unfit = |result: Result<(), Error>| matches!(result, Err(Error::Unfit(_)));
    assert!(unfit(writer.put(b"k", b"")), "without a bucket");
    writer.bucket(b"b").unwrap();
    writer.put(b"k", b"").unwrap();
    assert!(unfit(writer.put(b"k", b"")));
    assert!(unfit(writer.put(b"j", b"")));
    assert!(unfit(writer.put(&[b'z'; 32_769], b"")));
    assert!(unfit(writer.bucket(b"b")));
    assert!(unfit(writer.bucket(b"a")));
    let database = Database::open(writer.finish().unwrap().into_inner()).unwrap();
    assert_eq!(read(&database, b"b").unwrap().unwrap().len(), 1);
}

#[test]
fn a_small_bucket_may_lie_within_its_value() {
    // A leaf with one entry: number 0, kind 2, one element, whose key is right behind it.
    let mut value = vec![0; 16];
    value.extend([0u64.to_le_bytes(), [2, 0, 1, 0, 0, 0, 0, 0]].concat());
    value.extend([0u32, 16, 1, 2].map(u32::to_le_bytes).concat());
    value.extend(b"kvv");
    let open = |value: &[u8]| {
        let mut writer = Writer::new(Memory::new(Vec::new())).unwrap();
        writer.inline_bucket(b"inline", value).unwrap();
        Database::open(writer.finish().unwrap().into_inner()).unwrap()
    };
    let entries = Entries::from([(b"k".to_vec(), b"vv".to_vec())]);
    assert_eq!(read(&open(&value), b"inline").unwrap(), Some(entries));
    for length in 0..value.len() {
        let error = read(&open(&value[..length]), b"inline").unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{length} bytes: {error}");
    }
}

#[test]
fn damage_gives_errors_and_never_a_panic_or_an_endless_walk() {
    let mut numbers = Numbers(2);
    let buckets = shapes(&mut numbers);
    let whole = write(&buckets);
    let (mut refused, mut unharmed) = (0, 0);
    for round in 0..200 {
        let mut file = whole.clone();
        match round % 4 {
            // A bit, near the head of a page, where it hurts.
            0 => {
                let page = numbers.below(file.len() as u64 / 4_096) as usize;
                file[page * 4_096 + numbers.below(200) as usize] ^= 1 << numbers.below(8);
            }
            // A page in the place of another.
            1 => {
                let pages = file.len() as u64 / 4_096;
                let (from, to) = (numbers.below(pages) as usize, numbers.below(pages) as usize);
                file.copy_within(from * 4_096..(from + 1) * 4_096, to * 4_096);
            }
            // The end is missing.
            2 => file.truncate(numbers.below(whole.len() as u64) as usize),
            // A branch leads anywhere: elements of pages that name numbers of others.
            _ => {
                let page = 2 + numbers.below(file.len() as u64 / 4_096 - 2) as usize;
                let other = numbers.below(file.len() as u64 / 4_096);
                let place = page * 4_096 + 24 + 16 * numbers.below(3) as usize;
                file[place..place + 8].copy_from_slice(&other.to_le_bytes());
            }
        }
        let outcome = Database::open(file).and_then(|database| {
            buckets.keys().try_fold(true, |same, name| {
                let entries = read(&database, name)?;
                Ok(same && entries.as_ref() == buckets.get(name))
            })
        });
        match outcome {
            Err(_) => refused += 1,
            Ok(true) => unharmed += 1,
            // A flipped bit of a value, or of the root, shows only in what was read.
            Ok(false) => {}
        }
    }
    assert!(refused > 50 && unharmed > 5, "{refused} refused, {unharmed} unharmed: this tests nothing");
}

#[test]
fn a_tree_that_leads_back_into_itself_ends() {
    let keys = |index: u32| index.to_be_bytes().to_vec();
    let entries: Entries = (0..2_000).map(|index| (keys(index), vec![0; 20])).collect();
    let whole = write(&BTreeMap::from([(b"b".to_vec(), entries)]));
    // The one branch of the file: its first child becomes itself, or its second child the first one again.
    let is_branch = |page: &usize| whole[page * 4_096 + 8] == 1;
    let branch = (2..whole.len() / 4_096).find(is_branch).unwrap();
    let child = |index: usize| branch * 4_096 + 16 + 16 * index + 8;
    for (place, target) in [(child(0), branch as u64), (child(1), u64::from(whole[child(0)]))] {
        let mut file = whole.clone();
        file[place..place + 8].copy_from_slice(&target.to_le_bytes());
        let error = read(&Database::open(file).unwrap(), b"b").unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
}

#[test]
fn what_is_no_database_is_called_so() {
    for file in [Vec::new(), b"PK\x03\x04".to_vec(), vec![0; 10_000], vec![0xff; 10_000]] {
        assert!(matches!(Database::open(file), Err(Error::Foreign(_))));
    }
    let other = write(&BTreeMap::from([(b"widgets".to_vec(), Entries::new())]));
    assert!(matches!(EtcdFile::open(other), Err(Error::Foreign(_))));
}

/// A history of three keys as etcd would have written it.
fn history() -> Vec<u8> {
    let mut writer = Writer::new(Memory::new(Vec::new())).unwrap();
    for name in BUCKETS {
        writer.bucket(name).unwrap();
        if name == LEASES {
            let lease = Lease { id: 7, ttl_s: 60, remaining_s: 20 };
            writer.put(&7i64.to_be_bytes(), &lease.encode_to_vec()).unwrap();
        }
        if name != KEYS {
            continue;
        }
        let mut version = |(main, sub), key: &str, created, value: &str, ends| {
            let pair = KeyValue {
                key: key.into(),
                create_revision: created,
                mod_revision: main,
                value: value.into(),
                ..KeyValue::default()
            };
            writer.put(&Revision { main, sub }.spelled(ends), &pair.encode_to_vec()).unwrap();
        };
        version((2, 0), "a", 2, "1", false);
        version((3, 0), "b", 3, "1", false);
        version((4, 0), "a", 2, "2", false);
        version((4, 1), "c", 4, "1", false);
        version((5, 0), "b", 0, "", true);
        version((6, 0), "b", 6, "2", false);
        version((7, 0), "c", 0, "", true);
        // What a restore leaves that was told to raise the revision.
        writer.put(&Revision { main: 1_000, sub: 0 }.spelled(false), b"").unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn the_living_version_of_each_key_is_found() {
    let file = EtcdFile::open(history()).unwrap();
    let mut told = 0;
    let index = file.index(|versions| told = versions).unwrap();
    assert_eq!((told, index.versions, index.revision), (8, 8, 1_000));
    let living = |created, main| {
        let written = Revision { main, sub: 0 };
        Living { created, written, lease: 0, bytes: 10 }
    };
    let expected = [(b"a".to_vec(), living(2, 4)), (b"b".to_vec(), living(6, 6))];
    assert_eq!(index.keys, BTreeMap::from(expected));
    let mut versions = file.versions();
    let values: Vec<Vec<u8>> =
        index.keys.values().map(|living| versions.read(living.written).unwrap().value).collect();
    assert_eq!(values, [b"2", b"2"]);
    assert!(matches!(versions.read(Revision { main: 9, sub: 0 }), Err(Error::Content(_))));
    assert_eq!(file.leases().unwrap(), [Lease { id: 7, ttl_s: 60, remaining_s: 20 }]);
}

#[test]
fn a_saved_snapshot_is_known_by_its_checksum() {
    use sha2::Digest as _;
    let mut file = history();
    assert_eq!(checksum(&file, |_| ()).unwrap(), Checksum::None);
    let sum = sha2::Sha256::digest(&file);
    file.extend_from_slice(&sum);
    let mut told = 0;
    assert_eq!(checksum(&file, |bytes| told = bytes).unwrap(), Checksum::Right);
    assert_eq!(told, file.len() as u64 - 32);
    EtcdFile::open(file.clone()).unwrap().index(|_| ()).unwrap();
    file[9_000] ^= 1;
    assert_eq!(checksum(&file, |_| ()).unwrap(), Checksum::Wrong);
}

#[test]
fn a_snapshot_that_etcd_made_is_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/etcd/fixtures/snapshot-3.7.3.db");
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(checksum(&bytes, |_| ()).unwrap(), Checksum::Right);
    let file = EtcdFile::open(std::fs::File::open(path).unwrap()).unwrap();
    let index = file.index(|_| ()).unwrap();
    assert_eq!((index.keys.len(), index.revision), (128, 16));
    let again = index.keys[&b"again"[..]];
    assert_eq!((again.created, again.written), (8, Revision { main: 8, sub: 0 }));
    assert_eq!(file.versions().read(again.written).unwrap().value, b"2");
    let mut ttls: Vec<i64> = file.leases().unwrap().iter().map(|lease| lease.ttl_s).collect();
    ttls.sort();
    assert_eq!(ttls, [3_600, 7_200]);
}

#[test]
fn a_snapshot_for_etcd_has_what_was_added_in_the_order_of_revisions() {
    let leases = [Lease { id: 3, ttl_s: 9, remaining_s: 0 }, Lease { id: 8, ttl_s: 10, remaining_s: 0 }];
    let about = About { revision: 40, index: 7, term: 2, version: "3.7.0", leases: &leases };
    let mut snapshot = Snapshot::new(tempfile::tempfile().unwrap());
    let pairs = [("a", 30), ("b", 20), ("c", 30), ("d", 10)].map(|(key, revision)| KeyValue {
        key: key.into(),
        value: vec![b'v'; 5_000],
        create_revision: revision - 1,
        mod_revision: revision,
        ..KeyValue::default()
    });
    pairs.iter().for_each(|pair| snapshot.add(pair.mod_revision, &pair.encode_to_vec()).unwrap());
    let file = snapshot.write(Memory::new(Vec::new()), &about).unwrap().into_inner();
    let file = EtcdFile::open(file).unwrap();
    let index = file.index(|_| ()).unwrap();
    let written: Vec<(i64, i64)> =
        index.keys.values().map(|living| (living.written.main, living.written.sub)).collect();
    assert_eq!(written, [(30, 0), (20, 0), (30, 1), (10, 0)]);
    let mut versions = file.versions();
    for (pair, living) in pairs.iter().zip(index.keys.values()) {
        assert_eq!(&versions.read(living.written).unwrap(), pair);
    }
    assert_eq!(file.leases().unwrap(), leases);
}
