//! Snapshots written, read, installed, cut and flipped.

use std::io::{Read, Write};

use super::*;
use crate::id::{Digest, LogTime, Revision, StateHash};
use crate::machine::lease::Tally;
use crate::machine::settings::Settings;
use crate::machine::view::Table;
use crate::storage::damage::{cuts, flips};
use crate::storage::state::{Opened, StateSizes};

fn head(index: u64) -> Head {
    Head {
        index: Index(index),
        time: LogTime(1_700_000_000_000),
        revision: Revision(9),
        hash: StateHash([3; 32]),
        module: Some(Digest([4; 32])),
        leases: Tally { last: 2, live: 1, sessions: 1 },
        term_began: LogTime(3),
        history_first: Revision(2),
        event_bytes: 9,
        settings: Settings { leases_max: Some(4), ..Settings::default() },
    }
}

fn header(kind: Kind, index: u64) -> Header {
    let membership = Membership { voters: vec![1, 2, 3], learners: vec![4], ..Membership::default() };
    Header {
        group: GroupId(7),
        kind,
        head: head(index),
        term: Term(5),
        membership,
        engine: "an engine".into(),
    }
}

/// Rows that no compression makes small, over several blocks, in order.
fn many_rows() -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let value = |row: u64| {
        let mut bytes = vec![0; 300_000];
        blake3::Hasher::new().update(&row.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    };
    let row = |row| (Table::ALL[1 + row as usize / 4], format!("key {row:02}").into_bytes(), value(row));
    (0..12).map(row).collect()
}

fn write(snapshots: &Snapshots, header: &Header, rows: &[(Table, Vec<u8>, Vec<u8>)], guest: &[u8]) {
    let mut writer = snapshots.create(header).unwrap();
    for (table, key, value) in rows {
        writer.put(*table, key, value).unwrap();
    }
    writer.guest().write_all(guest).unwrap();
    writer.finish().unwrap();
}

type Everything = (Header, Vec<(Table, Vec<u8>, Vec<u8>)>, Vec<u8>);

fn read(snapshots: &Snapshots, index: u64) -> Result<Everything, Error> {
    let mut reader = snapshots.read(GroupId(7), Index(index))?;
    let header = reader.header().clone();
    let mut rows = Vec::new();
    reader.rows(&mut |table, key, value| {
        rows.push((table, key.to_vec(), value.to_vec()));
        Ok(())
    })?;
    let mut guest = Vec::new();
    let read = reader.guest().read_to_end(&mut guest);
    read.map_err(|e| Error::Damaged(e.to_string()))?;
    Ok((header, rows, guest))
}

#[test]
fn a_snapshot_reads_back_rows_and_guest_bytes_over_many_blocks() {
    let place = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(place.path()).unwrap();
    let guest: Vec<u8> = (0..5_000_000u32).map(|at| (at % 251) as u8).collect();
    let header = header(Kind::Resident, 40);
    write(&snapshots, &header, &many_rows(), &guest);
    let (found, rows, bytes) = read(&snapshots, 40).unwrap();
    assert_eq!(found, header);
    assert!(rows == many_rows());
    assert!(bytes == guest);
    let mut alone = Vec::new();
    snapshots.read(GroupId(7), Index(40)).unwrap().guest().read_to_end(&mut alone).unwrap();
    assert!(alone == guest, "the guest's bytes without a look at the rows");
}

#[test]
fn rows_out_of_order_are_told_and_not_installed() {
    let place = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(place.path()).unwrap();
    let row = |table, key: &str| (table, key.as_bytes().to_vec(), Vec::new());
    for (first, second) in [
        (row(Table::Store, "b"), row(Table::Store, "a")),
        (row(Table::Store, "a"), row(Table::Store, "a")),
        (row(Table::Leases, "a"), row(Table::Store, "b")),
    ] {
        write(&snapshots, &header(Kind::Stored, 40), &[first, second], b"");
        let error = read(&snapshots, 40).unwrap_err();
        assert!(matches!(&error, Error::Damaged(what) if what.contains("out of order")), "{error}");
    }
    let (state, _) = open_state(&place.path().join("state"));
    state.write(GroupId(7), [(Table::Store, b"good", Some(b"-"))], &head(3)).unwrap();
    install(&state, snapshots.read(GroupId(7), Index(40)).unwrap()).unwrap_err();
    assert!(state.view(GroupId(7)).get(Table::Store, b"good").unwrap().is_some());
}

#[test]
fn an_empty_snapshot_reads_back_empty() {
    let place = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(place.path()).unwrap();
    write(&snapshots, &header(Kind::Stored, 1), &[], b"");
    assert_eq!(read(&snapshots, 1).unwrap(), (header(Kind::Stored, 1), Vec::new(), Vec::new()));
}

#[test]
fn every_flipped_bit_and_every_cut_is_told_with_the_files_name() {
    let place = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(place.path()).unwrap();
    let rows =
        [(Table::Store, b"key".to_vec(), b"value".to_vec()), (Table::Leases, b"l".to_vec(), Vec::new())];
    write(&snapshots, &header(Kind::Resident, 40), &rows, b"the guest's own");
    let path = place.path().join("7-40.snap");
    let whole = std::fs::read(&path).unwrap();
    let longer = std::iter::once([&whole[..], b"x"].concat());
    for (number, changed) in flips(&whole).chain(cuts(&whole)).chain(longer).enumerate() {
        std::fs::write(&path, changed).unwrap();
        let error = read(&snapshots, 40).expect_err("damage was put in");
        assert!(matches!(&error, Error::Damaged(what) if what.contains("7-40.snap")), "{number}: {error}");
        let verified = snapshots.read(GroupId(7), Index(40)).and_then(SnapshotReader::verify);
        assert!(matches!(verified, Err(Error::Damaged(_))), "{number}");
    }
    std::fs::write(&path, whole).unwrap();
    snapshots.read(GroupId(7), Index(40)).unwrap().verify().unwrap();
}

#[test]
fn a_cut_between_blocks_of_a_long_snapshot_is_told() {
    let place = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(place.path()).unwrap();
    write(&snapshots, &header(Kind::Stored, 40), &many_rows(), b"");
    let path = place.path().join("7-40.snap");
    let whole = std::fs::read(&path).unwrap();
    // Every end of a block: the length in its first four bytes leads to the next.
    let mut at = MAGIC.len();
    let mut cuts = 0;
    while at < whole.len() {
        std::fs::write(&path, &whole[..at]).unwrap();
        let error = read(&snapshots, 40).unwrap_err();
        assert!(matches!(&error, Error::Damaged(what) if what.contains("cut short")), "{error}");
        at += 9 + u32::from_le_bytes(*whole[at..].first_chunk().unwrap()) as usize;
        cuts += 1;
    }
    assert!(cuts > 4, "{cuts} blocks are not many");
}

#[test]
fn an_unfinished_snapshot_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(place.path()).unwrap();
    let mut writer = snapshots.create(&header(Kind::Stored, 1)).unwrap();
    writer.put(Table::Store, b"k", b"v").unwrap();
    drop(writer);
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    // And one that a crash left.
    std::fs::write(place.path().join("snapshot-7-1.tmp"), "half").unwrap();
    let snapshots = Snapshots::open(place.path()).unwrap();
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    assert!(matches!(snapshots.read(GroupId(7), Index(1)), Err(Error::NotFound(_))));
}

#[test]
fn rows_after_guest_bytes_and_bytes_after_the_end_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(place.path()).unwrap();
    let mut writer = snapshots.create(&header(Kind::Resident, 1)).unwrap();
    let mut guest = writer.guest();
    guest.write_all(b"state").unwrap();
    assert!(writer.put(Table::Store, b"k", b"v").is_err());
    writer.finish().unwrap();
    assert!(guest.write_all(b"late").is_err());
}

#[test]
fn the_latest_is_found_and_older_ones_are_removed() {
    let place = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(place.path()).unwrap();
    assert_eq!(snapshots.latest(GroupId(7)).unwrap(), None);
    for index in [9, 100, 30] {
        write(&snapshots, &header(Kind::Stored, index), &[], b"");
    }
    let other = Header { group: GroupId(70), ..header(Kind::Stored, 200) };
    write(&snapshots, &other, &[], b"");
    assert_eq!(snapshots.latest(GroupId(7)).unwrap(), Some(Index(100)));
    snapshots.remove_before(GroupId(7), Index(30)).unwrap();
    assert_eq!(snapshots.list(GroupId(7)).unwrap(), [Index(30), Index(100)]);
    snapshots.remove_all(GroupId(7)).unwrap();
    assert_eq!(snapshots.list_all().unwrap(), [(GroupId(70), Index(200))]);
}

#[test]
fn all_that_is_staged_of_a_group_goes_with_it_and_nothing_of_others() {
    let place = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(place.path()).unwrap();
    for (group, index) in [(7, 40), (7, 41), (8, 40)] {
        let staged = snapshots.path_of(GroupId(group), Index(index), "staged");
        std::fs::write(staged, b"rows").unwrap();
    }
    snapshots.drop_all_staged(GroupId(7)).unwrap();
    assert_eq!(snapshots.staged().unwrap(), [(GroupId(8), Index(40))]);
    snapshots.drop_all_staged(GroupId(7)).unwrap();
}

#[test]
fn a_renamed_snapshot_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(place.path()).unwrap();
    write(&snapshots, &header(Kind::Stored, 9), &[], b"");
    std::fs::rename(place.path().join("7-9.snap"), place.path().join("8-9.snap")).unwrap();
    let error = snapshots.read(GroupId(8), Index(9)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("8-9.snap") && error.contains("group 7"), "{error}");
}

fn open_state(path: &Path) -> (StateDb, Opened) {
    StateDb::open(path, StateSizes::default()).unwrap()
}

fn state_rows(state: &StateDb) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    let add = &mut |table, key: &[u8], value: &[u8]| {
        rows.push((table, key.to_vec(), value.to_vec()));
        Ok(())
    };
    state.snapshot(GroupId(7)).rows(add).unwrap();
    rows
}

#[test]
fn a_stored_machine_moves_by_its_snapshot_as_it_was_when_it_was_taken() {
    let place = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(&place.path().join("snapshots")).unwrap();
    let (from, _) = open_state(&place.path().join("from"));
    let rows = many_rows();
    let written = rows.iter().map(|(table, key, value)| (*table, key, Some(value)));
    from.write(GroupId(7), written, &head(40)).unwrap();
    from.write(GroupId(8), [(Table::Store, b"neighbour", Some(b"-"))], &head(1)).unwrap();
    let (taken, before) = (from.snapshot(GroupId(7)), state_rows(&from));
    from.write(GroupId(7), [(Table::Store, b"later", Some(b"-"))], &head(41)).unwrap();
    let mut writer = snapshots.create(&header(Kind::Stored, 40)).unwrap();
    write_rows(&mut writer, &taken).unwrap();
    writer.finish().unwrap();

    let (to, _) = open_state(&place.path().join("to"));
    to.write(GroupId(7), [(Table::Store, b"stale", Some(b"-"))], &head(3)).unwrap();
    let installed = install(&to, snapshots.read(GroupId(7), Index(40)).unwrap()).unwrap();
    assert_eq!(installed, header(Kind::Stored, 40));
    drop(to);
    let (to, opened) = open_state(&place.path().join("to"));
    assert_eq!(opened.heads.into_iter().collect::<Vec<_>>(), [(GroupId(7), head(40))]);
    assert!(state_rows(&to) == before);
}

#[test]
fn a_damaged_snapshot_is_not_installed_over_good_rows() {
    let place = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(&place.path().join("snapshots")).unwrap();
    write(&snapshots, &header(Kind::Stored, 40), &many_rows(), b"");
    let path = place.path().join("snapshots/7-40.snap");
    let mut bytes = std::fs::read(&path).unwrap();
    // In the last block of rows: the ones before it are good.
    let at = bytes.len() - 1_000;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (state, _) = open_state(&place.path().join("state"));
    state.write(GroupId(7), [(Table::Store, b"good", Some(b"-"))], &head(3)).unwrap();
    let error = install(&state, snapshots.read(GroupId(7), Index(40)).unwrap()).unwrap_err();
    assert!(matches!(error, Error::Damaged(_)), "{error}");
    let view = state.view(GroupId(7));
    assert_eq!(view.get(Table::Store, b"good").unwrap().as_deref(), Some(&b"-"[..]));
    assert_eq!(Head::decode(&view.get(Table::Head, Head::KEY).unwrap().unwrap()).unwrap(), head(3));
}

#[test]
fn only_the_engine_that_made_a_snapshot_goes_on_from_it() {
    let made = header(Kind::Resident, 9);
    made.check_engine("an engine").unwrap();
    Header { engine: String::new(), ..made.clone() }.check_engine("any engine").unwrap();
    let why = made.check_engine("another engine").unwrap_err();
    assert!(matches!(why, Error::FailedPrecondition(_)), "{why:?}");
    for part in ["made by the engine an engine,", "this node has another engine", "run the version"] {
        assert!(why.to_string().contains(part), "{part:?} is not in {why}");
    }
}
