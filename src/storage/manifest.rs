//! A look at RocksDB's list of files before RocksDB looks at it.
//!
//! RocksDB 11.8 reads the list (`MANIFEST`) with a reader that never ends when one flipped bit makes a
//! record's type that of a recycled log (`Reader::ReadPhysicalRecord` answers "bad record" without moving
//! on): the node would hang at its start and say nothing. Promises: such a list is told instead, and so is
//! one that is missing. All else about it is left to RocksDB, which has checksums. Must never refuse a list
//! that RocksDB would read.
//!
//! # Form of the list
//! Blocks of 32 KiB. In a block, records one after another, none across its end: checksum (4 bytes), length
//! (2 bytes, little-endian), type (1 byte), as many bytes as the length says. Lists have the types 0 to 4.

use std::io;
use std::path::Path;

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;
/// Types of records in logs that are written over old ones, which a list never is.
const RECYCLED_TYPES: [u8; 6] = [5, 6, 7, 8, 11, 131];

/// Whether the list of the database in `directory` can be given to RocksDB: `Some` tells why not. A database
/// without a list is not there yet.
pub fn damage(directory: &Path) -> io::Result<Option<String>> {
    let Some(current) = read_if_there(&directory.join("CURRENT"))? else { return Ok(None) };
    let name = String::from_utf8_lossy(&current);
    let Some(list) = read_if_there(&directory.join(name.trim_end()))? else {
        return Ok(Some(format!("its list of files, {}, is missing", name.trim_end())));
    };
    let damaged = list.chunks(BLOCK_BYTES).enumerate().find_map(|(block, bytes)| {
        let at = recycled_record(bytes)?;
        Some(format!(
            "its list of files, {}, is damaged at byte {}",
            name.trim_end(),
            block * BLOCK_BYTES + at
        ))
    });
    Ok(damaged)
}

/// Where in a block a record of a recycled type begins.
fn recycled_record(block: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(header) = block.get(at..at + HEADER_BYTES) {
        if RECYCLED_TYPES.contains(&header[6]) {
            return Some(at);
        }
        at += HEADER_BYTES + usize::from(u16::from_le_bytes([header[4], header[5]]));
    }
    None
}

fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, length: u16) -> Vec<u8> {
        let mut record = vec![9, 9, 9, 9];
        record.extend_from_slice(&length.to_le_bytes());
        record.push(kind);
        record.resize(HEADER_BYTES + length as usize, 5);
        record
    }

    fn damage_of(list: &[u8]) -> Option<String> {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("CURRENT"), "MANIFEST-000005\n").unwrap();
        std::fs::write(place.path().join("MANIFEST-000005"), list).unwrap();
        damage(place.path()).unwrap()
    }

    #[test]
    fn a_record_of_a_recycled_type_is_told_with_its_place_in_any_block() {
        let first = [record(1, 100), record(2, (BLOCK_BYTES - 107 - 7) as u16)].concat();
        assert_eq!(first.len(), BLOCK_BYTES);
        assert_eq!(damage_of(&[&first[..], &record(4, 10), &record(1, 3)].concat()), None);
        let what = damage_of(&[&first[..], &record(4, 10), &record(5, 3)].concat()).unwrap();
        assert!(what.contains("MANIFEST-000005") && what.contains("byte 32785"), "{what}");
    }

    #[test]
    fn a_missing_list_is_told() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("CURRENT"), "MANIFEST-000005\n").unwrap();
        assert!(damage(place.path()).unwrap().unwrap().contains("MANIFEST-000005, is missing"));
    }

    #[test]
    fn a_torn_end_and_a_database_that_is_not_there_are_left_to_rocksdb() {
        assert_eq!(damage_of(&record(1, 100)[..50]), None);
        assert_eq!(damage_of(&[record(1, 100), vec![0; 4_096]].concat()), None);
        assert_eq!(damage_of(&[]), None);
        assert_eq!(damage(tempfile::tempdir().unwrap().path()).unwrap(), None);
    }
}
