//! Views, heads and flushes, at restarts and against damage.

use std::path::Path;

use super::*;
use crate::id::Revision;
use crate::priority::{NICENESS, niceness_of};

fn open(path: &Path) -> (StateDb, Opened) {
    StateDb::open(path, StateSizes::default()).unwrap()
}

fn head(index: u64) -> Head {
    Head { index: Index(index), revision: Revision(index + 1), ..Head::default() }
}

type Row<'a> = (Table, &'a [u8], Option<&'a [u8]>);

const NONE: [Row; 0] = [];

fn rows(view: &dyn View, table: Table, span: Span, direction: Direction) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    view.scan(table, span, direction, &mut |key, value| {
        found.push((text(key), text(value)));
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

const ALL: Span = Span { start: b"", end: None };

fn keys(view: &dyn View, span: Span, direction: Direction) -> Vec<String> {
    rows(view, Table::Store, span, direction).into_iter().map(|(key, _)| key).collect()
}

#[test]
fn a_view_reads_and_scans_its_own_machine_and_table_only() {
    let place = tempfile::tempdir().unwrap();
    let (state, _) = open(place.path());
    for group in [1, 2, 3] {
        let value = group.to_string();
        let own: [Row; 4] = [
            (Table::Store, b"a", Some(value.as_bytes())),
            (Table::Store, b"b", Some(b"-")),
            (Table::Store, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (Table::Leases, b"a", Some(b"lease")),
        ];
        state.write(GroupId(group), own, &head(1)).unwrap();
    }
    for view in [state.view(GroupId(2)), state.snapshot_view(GroupId(2))] {
        assert_eq!(view.get(Table::Store, b"a").unwrap().as_deref(), Some(&b"2"[..]));
        assert_eq!(view.get(Table::Leases, b"a").unwrap().as_deref(), Some(&b"lease"[..]));
        assert_eq!(view.get(Table::Events, b"a").unwrap(), None);
        assert_eq!(
            view.get(Table::Store, &[b'k'; 4_096]).unwrap(),
            None,
            "a key longer than the short buffer"
        );
        assert_eq!(keys(&*view, ALL, Direction::Forward), ["a", "b"]);
        assert_eq!(keys(&*view, ALL, Direction::Backward), ["b", "a"]);
        assert_eq!(keys(&*view, Span { start: b"a\0", end: None }, Direction::Backward), ["b"]);
        assert_eq!(keys(&*view, Span { start: b"", end: Some(b"b") }, Direction::Forward), ["a"]);
        assert_eq!(keys(&*view, Span { start: b"b", end: Some(b"a") }, Direction::Forward), [""; 0]);
        let stored = view.get(Table::Head, Head::KEY).unwrap().unwrap();
        assert_eq!(Head::decode(&stored).unwrap(), head(1));
    }
}

#[test]
fn a_scan_ends_when_its_visitor_breaks() {
    let place = tempfile::tempdir().unwrap();
    let (state, _) = open(place.path());
    let three = [b"a", b"b", b"c"].map(|key| (Table::Store, key, Some(b"")));
    state.write(GroupId(1), three, &head(1)).unwrap();
    let mut seen = 0;
    let visit = &mut |_: &[u8], _: &[u8]| {
        seen += 1;
        if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    state.view(GroupId(1)).scan(Table::Store, ALL, Direction::Forward, visit).unwrap();
    assert_eq!(seen, 2);
}

#[test]
fn a_snapshot_view_stays_while_the_machine_goes_on_and_is_dropped() {
    let place = tempfile::tempdir().unwrap();
    let (state, _) = open(place.path());
    state.write(GroupId(1), [(Table::Store, b"k", Some(b"old"))], &head(1)).unwrap();
    let (then, now) = (state.snapshot_view(GroupId(1)), state.view(GroupId(1)));
    state
        .write(GroupId(1), [(Table::Store, b"k", Some(b"new")), (Table::Store, b"l", Some(b"new"))], &head(2))
        .unwrap();
    assert_eq!(keys(&*then, ALL, Direction::Forward), ["k"]);
    assert_eq!(keys(&*now, ALL, Direction::Forward), ["k", "l"]);
    state.drop_group(GroupId(1)).unwrap();
    state.flush().unwrap();
    assert_eq!(keys(&*now, ALL, Direction::Forward), [""; 0]);
    drop(state);
    // The view keeps the database open.
    assert_eq!(then.get(Table::Store, b"k").unwrap().as_deref(), Some(&b"old"[..]));
    assert_eq!(rows(&*then, Table::Store, ALL, Direction::Forward), [("k".to_owned(), "old".to_owned())]);
}

#[test]
fn a_flush_makes_durable_what_was_written_before_it_and_says_so() {
    let place = tempfile::tempdir().unwrap();
    let (state, opened) = open(place.path());
    assert!(opened.heads.is_empty());
    state.write(GroupId(1), NONE, &head(7)).unwrap();
    state.write(GroupId(2), NONE, &head(3)).unwrap();
    assert_eq!(state.durable(GroupId(1)), Index(0));
    assert_eq!(state.flush().unwrap(), BTreeMap::from([(GroupId(1), Index(7)), (GroupId(2), Index(3))]));
    assert_eq!(state.durable(GroupId(1)), Index(7));
    state.write(GroupId(1), NONE, &head(8)).unwrap();
    assert_eq!(state.durable(GroupId(1)), Index(7), "written, but not flushed");
    state.drop_group(GroupId(2)).unwrap();
    assert_eq!(state.flush().unwrap(), BTreeMap::from([(GroupId(1), Index(8))]));
    drop(state);
    let (state, opened) = open(place.path());
    assert_eq!(opened.heads, BTreeMap::from([(GroupId(1), head(8))]));
    assert_eq!(state.durable(GroupId(1)), Index(8), "what is read at a start is durable");
}

#[test]
fn a_replacement_is_whole_after_it_is_finished() {
    let place = tempfile::tempdir().unwrap();
    let (state, _) = open(place.path());
    state
        .write(
            GroupId(1),
            [(Table::Store, b"old", Some(b"1")), (Table::Events, b"old", Some(b"1"))],
            &head(5),
        )
        .unwrap();
    state.write(GroupId(2), [(Table::Store, b"old", Some(b"1"))], &head(5)).unwrap();
    let (before, latest) = (state.snapshot_view(GroupId(1)), state.view(GroupId(1)));
    let mut replacement = state.replace(GroupId(1), Index(90)).unwrap();
    for row in 0..6 {
        replacement.put(Table::Store, format!("new{row}").as_bytes(), b"2").unwrap();
    }
    replacement.put(Table::Leases, b"new", b"2").unwrap();
    replacement.finish(&head(90)).unwrap();
    assert_eq!(keys(&*before, ALL, Direction::Forward), ["old"]);
    let new = ["new0", "new1", "new2", "new3", "new4", "new5"];
    assert_eq!(keys(&*latest, ALL, Direction::Forward), new, "the view of who writes goes on");
    state.write(GroupId(1), [(Table::Store, b"new6", Some(b"3"))], &head(91)).unwrap();
    assert_eq!(latest.get(Table::Store, b"new6").unwrap().as_deref(), Some(&b"3"[..]));
    assert_eq!(keys(&*state.snapshot_view(GroupId(1)), ALL, Direction::Forward).len(), 7);
    drop((before, latest, state));
    let (state, opened) = open(place.path());
    assert_eq!(opened.heads, BTreeMap::from([(GroupId(1), head(91)), (GroupId(2), head(5))]));
    assert!(opened.interrupted.is_empty());
    let view = state.view(GroupId(1));
    assert_eq!(keys(&*view, ALL, Direction::Forward), [&new[..], &["new6"]].concat());
    assert_eq!(rows(&*view, Table::Events, ALL, Direction::Forward), []);
    assert_eq!(rows(&*view, Table::Leases, ALL, Direction::Forward), [("new".to_owned(), "2".to_owned())]);
    assert_eq!(keys(&*state.view(GroupId(2)), ALL, Direction::Forward), ["old"]);
}

#[test]
fn a_replacement_cut_short_is_told_at_every_open_until_it_is_done_again() {
    let place = tempfile::tempdir().unwrap();
    let (state, _) = open(place.path());
    state.write(GroupId(1), [(Table::Store, b"old", Some(b"1"))], &head(5)).unwrap();
    state.flush().unwrap();
    let mut replacement = state.replace(GroupId(1), Index(90)).unwrap();
    replacement.put(Table::Store, b"new", b"2").unwrap();
    replacement.put(Table::Events, b"new", b"2").unwrap();
    drop(replacement);
    assert_eq!(state.durable(GroupId(1)), Index(0));
    assert_eq!(
        keys(&*state.view(GroupId(1)), ALL, Direction::Forward),
        ["new"],
        "the crash comes in the middle"
    );
    drop(state);
    for _ in 0..2 {
        let (state, opened) = open(place.path());
        assert_eq!(opened.interrupted, BTreeMap::from([(GroupId(1), Index(90))]));
        assert!(opened.heads.is_empty());
        assert_eq!(keys(&*state.view(GroupId(1)), ALL, Direction::Forward), [""; 0], "no half of it is left");
        state.flush().unwrap();
    }
    open(place.path()).0.replace(GroupId(1), Index(91)).unwrap().finish(&head(91)).unwrap();
    let (state, opened) = open(place.path());
    drop_all_replaced(&state);
    assert_eq!((opened.heads, opened.interrupted.len()), (BTreeMap::from([(GroupId(1), head(91))]), 0));
    assert_eq!(all_rows(&state, Table::Store), 0, "nor anything of those that were begun");
}

#[test]
fn a_replacement_of_more_than_one_file_is_whole() {
    let place = tempfile::tempdir().unwrap();
    let (state, _) = open(place.path());
    const ROWS: u64 = FILE_BYTES / VALUE_BYTES as u64 + 2;
    const VALUE_BYTES: usize = 1 << 20;
    // Of bytes that do not compress.
    let value = |row: u64| {
        let mut value = vec![0; VALUE_BYTES];
        blake3::Hasher::new().update(&row.to_le_bytes()).finalize_xof().fill(&mut value);
        value
    };
    let mut replacement = state.replace(GroupId(1), Index(90)).unwrap();
    (0..ROWS).for_each(|row| replacement.put(Table::Store, &row.to_be_bytes(), &value(row)).unwrap());
    replacement.finish(&head(90)).unwrap();
    let generation = state.place(GroupId(1)).now();
    assert_eq!(state.db.files_between(generation.start(), &generation.end()).unwrap().len(), 2);
    let mut row = 0;
    let visit = &mut |key: &[u8], found: &[u8]| {
        assert_eq!(key, u64::to_be_bytes(row));
        assert!(found == value(row), "row {row}");
        row += 1;
        ControlFlow::Continue(())
    };
    state.view(GroupId(1)).scan(Table::Store, ALL, Direction::Forward, visit).unwrap();
    assert_eq!(row, ROWS);
}

#[test]
fn a_replacement_that_is_given_up_leaves_no_file() {
    let place = tempfile::tempdir().unwrap();
    let (state, _) = open(place.path());
    let mut replacement = state.replace(GroupId(1), Index(90)).unwrap();
    replacement.put(Table::Store, b"row", b"1").unwrap();
    let incoming = || std::fs::read_dir(place.path().join("incoming")).unwrap().count();
    assert_eq!(incoming(), 1);
    drop(replacement);
    assert_eq!(incoming(), 0);
}

#[test]
fn compaction_gives_way() {
    let place = tempfile::tempdir().unwrap();
    let _state = open(place.path());
    let niceness = niceness_of("rocksdb:low");
    assert!(!niceness.is_empty() && niceness.iter().all(|&niceness| niceness >= NICENESS), "{niceness:?}");
}

/// Rows of a table, of whatever machine and generation.
fn all_rows(state: &StateDb, table: Table) -> usize {
    let mut found = 0;
    let (start, end, direction) = (&[][..], &[0xff; 16][..], Direction::Forward);
    let scan = Scan { family: family(table), start, end, direction, cache: false };
    let count = &mut |_: &[u8], _: &[u8]| {
        found += 1;
        ControlFlow::Continue(())
    };
    state.db.scan(scan, count).unwrap();
    found
}

fn drop_all_replaced(state: &StateDb) {
    while state.drop_replaced().unwrap() {}
}

fn replace(state: &StateDb, group: GroupId, index: u64, value: &[u8]) {
    let mut replacement = state.replace(group, Index(index)).unwrap();
    for row in 0..100 {
        replacement.put(Table::Store, format!("row{row:03}").as_bytes(), value).unwrap();
    }
    replacement.finish(&head(index)).unwrap();
}

#[test]
fn rows_that_were_replaced_go_when_nobody_reads_them_and_no_others() {
    let place = tempfile::tempdir().unwrap();
    let (state, _) = open(place.path());
    let others = [GroupId(1), GroupId(3)];
    for group in others {
        // The first key past those of a generation is one without a row's own.
        state
            .write(group, [(Table::Store, "", Some("")), (Table::Store, "other", Some(""))], &head(5))
            .unwrap();
        replace(&state, group, 6, b"other");
        state.write(group, [(Table::Store, "", Some(""))], &head(7)).unwrap();
    }
    state.write(GroupId(2), [(Table::Store, "row000", Some("first"))], &head(5)).unwrap();
    let first = state.snapshot_view(GroupId(2));
    replace(&state, GroupId(2), 6, b"second");
    let second = state.snapshot_view(GroupId(2));
    replace(&state, GroupId(2), 7, b"third");
    let reads = |view: &dyn View| view.get(Table::Store, b"row000").unwrap().unwrap();
    drop_all_replaced(&state);
    assert_eq!([&first, &second].map(|view| reads(&**view)), [&b"first"[..], b"second"]);
    assert_eq!(all_rows(&state, Table::Store), 1 + 100 + 100 + 2 * 101);
    drop(second);
    drop_all_replaced(&state);
    assert_eq!(reads(&*first), b"first");
    assert_eq!(all_rows(&state, Table::Store), 1 + 100 + 2 * 101);
    // It is not in memory only that it is known what else is to go.
    drop((first, state));
    let (state, opened) = open(place.path());
    drop_all_replaced(&state);
    assert_eq!(opened.heads[&GroupId(2)], head(7));
    assert_eq!(reads(&*state.view(GroupId(2))), b"third");
    assert_eq!(all_rows(&state, Table::Store), 100 + 2 * 101);
    assert_eq!(others.map(|group| reads(&*state.view(group))), [b"other", b"other"]);
}

#[test]
fn a_group_that_was_dropped_and_comes_back_keeps_its_rows() {
    let place = tempfile::tempdir().unwrap();
    let (state, _) = open(place.path());
    state.write(GroupId(1), [(Table::Store, "first", Some(""))], &head(5)).unwrap();
    let (reader, writer) = (state.snapshot_view(GroupId(1)), state.view(GroupId(1)));
    replace(&state, GroupId(1), 6, b"second");
    state.drop_group(GroupId(1)).unwrap();
    assert_eq!(all_rows(&state, Table::Store), 0);
    assert_eq!(keys(&*reader, ALL, Direction::Forward), ["first"]);
    state.write(GroupId(1), [(Table::Store, "again", Some(""))], &head(1)).unwrap();
    assert_eq!(keys(&*writer, ALL, Direction::Forward), ["again"]);
    drop(reader);
    drop_all_replaced(&state);
    state.flush().unwrap();
    drop((writer, state));
    let (state, opened) = open(place.path());
    assert_eq!(opened.heads, BTreeMap::from([(GroupId(1), head(1))]));
    assert_eq!(keys(&*state.view(GroupId(1)), ALL, Direction::Forward), ["again"]);
}

#[test]
fn rows_that_replace_others_need_not_be_merged_with_anything() {
    let place = tempfile::tempdir().unwrap();
    let (state, _) = open(place.path());
    for group in 1..=5 {
        let rows = (0..100).map(|row| (Table::Store, format!("row{row:03}"), Some("made here")));
        state.write(GroupId(group), rows, &head(5)).unwrap();
    }
    state.flush().unwrap();
    let _reader = state.snapshot_view(GroupId(3));
    for (index, group) in [3, 1, 5, 3, 3, 2].into_iter().enumerate() {
        let group = GroupId(group);
        replace(&state, group, 6 + index as u64, b"replaced");
        let generation = state.place(group).now();
        let files = state.db.files_between(generation.start(), &generation.end()).unwrap();
        let levels: Vec<_> = files.iter().map(|file| (&*file.column_family_name, file.level)).collect();
        assert_eq!(levels, [("store", 6)], "one file of rows, at the bottom");
        drop_all_replaced(&state);
    }
    assert_eq!(std::fs::read_dir(place.path().join("incoming")).unwrap().count(), 0, "each was moved");
}

/// What a killed process leaves: the files as they are, without what is only in its memory.
fn as_after_a_kill(path: &Path) -> tempfile::TempDir {
    let copied = |copy: &Path| -> std::io::Result<()> {
        for file in std::fs::read_dir(path)? {
            let file = file?;
            if file.file_type()?.is_dir() {
                // Files that are not part of the database yet.
                continue;
            }
            std::fs::copy(file.path(), copy.join(file.file_name()))?;
        }
        Ok(())
    };
    for _ in 0..100 {
        let copy = tempfile::tempdir().unwrap();
        match copied(copy.path()) {
            Ok(()) => return copy,
            // The database has just removed a file that it needs no more: what was copied may still need it.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => panic!("{e}"),
        }
    }
    panic!("the files never stay as they are");
}

#[test]
fn that_a_state_is_not_to_be_relied_on_survives_a_kill_and_goes_with_the_rows_only() {
    let place = tempfile::tempdir().unwrap();
    let (state, opened) = open(place.path());
    assert!(opened.halted.is_empty());
    for group in [GroupId(1), GroupId(2)] {
        state.write(group, [(Table::Store, b"row", Some(b"1"))], &head(5)).unwrap();
        state.note_halted(group, b"first").unwrap();
    }
    state.note_halted(GroupId(1), b"it differs").unwrap();
    state.write(GroupId(1), NONE, &head(6)).unwrap();
    assert_eq!(state.halted_note(GroupId(1)).unwrap().as_deref(), Some(&b"it differs"[..]));
    let killed = as_after_a_kill(place.path());
    let (_, opened) = open(killed.path());
    assert_eq!(opened.halted[&GroupId(1)], b"it differs");
    assert_eq!(opened.heads[&GroupId(1)], head(5), "what was not flushed is lost, and the note is not");

    let mut carried = Vec::new();
    let mut visit = |table, key: &[u8], _: &[u8]| {
        carried.push((table, key.to_vec()));
        Ok(())
    };
    state.snapshot(GroupId(1)).rows(&mut visit).unwrap();
    assert_eq!(carried, [(Table::Store, b"row".to_vec())], "a snapshot says nothing of this replica");

    state.replace(GroupId(1), Index(9)).unwrap().finish(&head(9)).unwrap();
    state.drop_group(GroupId(2)).unwrap();
    assert_eq!(state.halted_note(GroupId(1)).unwrap(), None);
    state.flush().unwrap();
    let killed = as_after_a_kill(place.path());
    assert!(open(killed.path()).1.halted.is_empty());
}

/// Flips one byte at many places of each table file: whatever is read afterwards is right, or an error.
#[test]
fn a_flipped_byte_in_a_block_is_a_fault_and_never_a_wrong_answer() {
    let place = tempfile::tempdir().unwrap();
    let (state, _) = open(place.path());
    let name = |row: u32| format!("key{row:06}").into_bytes();
    let value = |row: u32| blake3::hash(&name(row)).to_hex().to_string().into_bytes();
    const ROWS: u32 = 2_000;
    state
        .write(GroupId(1), (0..ROWS).map(|row| (Table::Store, name(row), Some(value(row)))), &head(1))
        .unwrap();
    state.flush().unwrap();
    drop(state);
    let tables: Vec<_> =
        std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let tables: Vec<_> =
        tables.into_iter().filter(|path| path.extension().is_some_and(|e| e == "sst")).collect();
    assert_eq!(tables.len(), 2, "one of the heads, one of the store");
    let mut faults = 0;
    for table in tables {
        let whole = std::fs::read(&table).unwrap();
        for place_of_flip in (0..24).map(|part| whole.len() * part / 24) {
            let mut flipped = whole.clone();
            flipped[place_of_flip] ^= 0x20;
            std::fs::write(&table, flipped).unwrap();
            faults += u32::from(read_everything(place.path(), &name, &value, ROWS).is_err());
        }
        std::fs::write(&table, whole).unwrap();
    }
    assert!(faults >= 24, "only {faults} of 48 flips were noticed");
    read_everything(place.path(), &name, &value, ROWS).unwrap();
}

/// Reads by key and by scan. A wrong answer panics; damage that is told is an error.
fn read_everything(
    path: &Path,
    name: &dyn Fn(u32) -> Vec<u8>,
    value: &dyn Fn(u32) -> Vec<u8>,
    rows: u32,
) -> Result<(), Error> {
    let (state, opened) = StateDb::open(path, StateSizes::default())?;
    assert_eq!(opened.heads, BTreeMap::from([(GroupId(1), head(1))]));
    let view = state.view(GroupId(1));
    for row in (0..rows).step_by(50) {
        assert_eq!(view.get(Table::Store, &name(row))?, Some(value(row)));
    }
    let mut row = 0;
    view.scan(Table::Store, ALL, Direction::Forward, &mut |key, found| {
        assert_eq!((key, found), (&name(row)[..], &value(row)[..]));
        row += 1;
        ControlFlow::Continue(())
    })?;
    assert_eq!(row, rows);
    Ok(())
}

#[test]
fn after_a_fault_every_call_answers_it() {
    let place = tempfile::tempdir().unwrap();
    let (state, _) = open(place.path());
    state.write(GroupId(1), [(Table::Store, b"k", Some(b"v"))], &head(1)).unwrap();
    let (view, snapshot) = (state.view(GroupId(1)), state.snapshot_view(GroupId(1)));
    state.db.fail(Fault::new("the disk is gone"));
    let expected =
        |result: Result<(), Fault>| assert_eq!(result.unwrap_err().to_string(), "the disk is gone");
    expected(view.get(Table::Store, b"k").map(drop));
    expected(snapshot.get(Table::Store, b"k").map(drop));
    expected(view.scan(Table::Store, ALL, Direction::Forward, &mut |_, _| ControlFlow::Continue(())));
    expected(state.write(GroupId(1), NONE, &head(2)));
    expected(state.flush().map(drop));
    expected(state.drop_group(GroupId(1)));
    expected(state.replace(GroupId(1), Index(3)).map(drop));
    assert!(state.failure().is_some());
}

#[test]
fn rows_before_a_key_go_and_views_that_were_made_before_keep_them() {
    let place = tempfile::tempdir().unwrap();
    let (state, _) = open(place.path());
    for group in [1, 2, 3] {
        let own: [Row; 4] = [
            (Table::Events, b"a", Some(b"1")),
            (Table::Events, b"b", Some(b"2")),
            (Table::Events, b"c", Some(b"3")),
            (Table::Store, b"a", Some(b"4")),
        ];
        state.write(GroupId(group), own, &head(1)).unwrap();
    }
    let before = state.snapshot_view(GroupId(2));
    state.remove_before(GroupId(2), Table::Events, b"c").unwrap();
    let events = |view: &dyn View| rows(view, Table::Events, ALL, Direction::Forward).len();
    assert_eq!(events(&*before), 3);
    let left = rows(&*state.view(GroupId(2)), Table::Events, ALL, Direction::Forward);
    assert_eq!(left, [("c".to_owned(), "3".to_owned())]);
    assert_eq!(keys(&*state.view(GroupId(2)), ALL, Direction::Forward), ["a"]);
    assert_eq!([1, 3].map(|group| events(&*state.view(GroupId(group)))), [3, 3]);
}
