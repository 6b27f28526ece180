//! What the catalog's commands do, on the rows and on the node's copy at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use prost::Message;

use super::record::ReplicaRecord;
use super::*;
use crate::error::Fault;
use crate::id::{GroupId, NodeId};
use crate::machine::apply;
use crate::machine::batch::{Batch, Head, Operation};
use crate::machine::outcome::Outcome;
use crate::machine::view::{Direction, MemoryView, Span, Table, View, Visitor};

/// The catalog's machine over a view in memory, with the node's copy beside it.
struct Bench {
    head: Head,
    rows: MemoryView,
    copy: Catalog,
}

impl Bench {
    fn new() -> Bench {
        let mut bench =
            Bench { head: Head::default(), rows: MemoryView::default(), copy: Catalog::default() };
        bench.operation(Operation::create(CATALOG_MODULE, Bytes::new()));
        bench
    }

    /// A cluster of the nodes 1 to `nodes`, with a module.
    fn of_nodes(nodes: u64) -> Bench {
        let mut bench = Bench::new();
        (1..=nodes).for_each(|node| drop(bench.add_node(node)));
        let digest = Digest::of(b"m").0.to_vec();
        bench.change(Change::RegisterModule(ModuleRecord { digest, ..Default::default() }));
        bench
    }

    fn operation(&mut self, operation: Operation) -> Outcome {
        let batch = Batch { time_ms: 5, operations: vec![operation], begins_term: false };
        let view = Arc::new(self.rows.clone());
        let index = self.head.index.next();
        let applied = apply::stored(&self.head, index, &batch, view, &mut CatalogGuest).unwrap();
        self.head = applied.head;
        self.copy.absorb(&applied.writes).unwrap();
        for write in applied.writes {
            self.rows.put(write.table, write.key, write.value);
        }
        assert_eq!(Catalog::load(&self.rows).unwrap(), self.copy);
        self.assert_indexed();
        applied.outcomes[0].outcome.clone()
    }

    /// What is counted and named is what a scan of all machines would find.
    fn assert_indexed(&self) {
        let (mut counts, mut names) = (BTreeMap::<u64, u64>::new(), BTreeMap::new());
        for record in self.copy.machines.values() {
            let staying = record.replicas.iter().filter(|replica| !replica.leaving);
            staying.for_each(|replica| *counts.entry(replica.node).or_default() += 1);
            names.insert(record.group, record.name.clone().into_bytes());
        }
        let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
        let rows = |prefix| self.rows.rows().filter(move |(_, key, _)| key[0] == prefix);
        let counted: BTreeMap<_, _> =
            rows(rows::REPLICA_COUNTS).map(|(_, key, value)| (number(&key[1..]), number(value))).collect();
        let named: BTreeMap<_, _> =
            rows(rows::NAMES).map(|(_, key, value)| (number(&key[1..]), value.to_vec())).collect();
        assert_eq!((counted, named), (counts, names));
    }

    fn change(&mut self, change: Change) -> Outcome {
        self.operation(Operation::command(change.command()))
    }

    fn create(&mut self, name: &str, replicas_wanted: u32) -> Outcome {
        let module = Digest::of(b"m").0.to_vec();
        let name = name.to_owned();
        self.change(Change::CreateMachine(MachineRecord {
            name,
            module,
            replicas_wanted,
            ..Default::default()
        }))
    }

    fn add_node(&mut self, node: u64) -> Outcome {
        let (name, peer_address) = (format!("n{node}"), format!("host-{node}:7071"));
        self.change(Change::AddNode(NodeRecord { node, name, peer_address, ..Default::default() }))
    }

    fn gone(&mut self, group: u64, replica: u64) {
        let gone = self.change(Change::ReplicaGone(ReplicaGone { group, replica }));
        assert_eq!(gone, Outcome::Ok(Bytes::new()));
    }

    /// (node, leaving) of a machine's replicas.
    fn places(&self, name: &str) -> Vec<(u64, bool)> {
        self.copy.machines[name].replicas.iter().map(|replica| (replica.node, replica.leaving)).collect()
    }

    fn node(&self, node: u64) -> &NodeRecord {
        &self.copy.nodes[&NodeId(node)]
    }
}

fn refusal(outcome: Outcome) -> RefusalCode {
    let Outcome::Refused(refusal) = outcome else { panic!("a refusal was expected, not {outcome:?}") };
    let all = [
        RefusalCode::Malformed,
        RefusalCode::BadName,
        RefusalCode::NameTaken,
        RefusalCode::UnknownModule,
        RefusalCode::UnknownNode,
        RefusalCode::NodeRemoved,
        RefusalCode::AddressTaken,
        RefusalCode::LastNode,
        RefusalCode::VotersFull,
    ];
    all.into_iter().find(|&code| code as u32 == refusal.code).expect("a known code")
}

#[test]
fn groups_are_never_used_twice() {
    let mut bench = Bench::of_nodes(1);
    bench.create("a", 1);
    assert_eq!(bench.copy.machines["a"].group, 1);
    bench.change(Change::RemoveMachine(1));
    assert!(bench.copy.machines.is_empty());
    bench.create("a", 1);
    assert_eq!(bench.copy.machines["a"].group, 2);
    assert_eq!(bench.copy.machine_of(GroupId(2)).unwrap().name, "a");
}

#[test]
fn a_catalog_of_an_earlier_version_is_indexed_once() {
    let mut bench = Bench::of_nodes(4);
    bench.create("a", 3);
    bench.create("b", 1);
    let index = |prefix: u8| [rows::REPLICA_COUNTS, rows::NAMES, rows::INDEXED[0]].contains(&prefix);
    let keys: Vec<_> = bench.rows.rows().map(|(table, key, _)| (table, key.to_vec())).collect();
    let keys: Vec<_> = keys.into_iter().filter(|(_, key)| index(key[0])).collect();
    assert_eq!(keys.len(), 4 + 2 + 1);
    keys.into_iter().for_each(|(table, key)| bench.rows.put(table, key, None));
    bench.create("c", 2);
    assert_eq!(bench.places("c"), [(1, false), (2, false)]);
}

/// Counts the rows that are looked at.
struct Counting {
    rows: MemoryView,
    seen: AtomicUsize,
}

impl View for Counting {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.seen.fetch_add(1, Ordering::Relaxed);
        self.rows.get(table, key)
    }

    fn scan(&self, table: Table, span: Span, direction: Direction, visit: &mut Visitor) -> Result<(), Fault> {
        self.rows.scan(table, span, direction, &mut |key, value| {
            self.seen.fetch_add(1, Ordering::Relaxed);
            visit(key, value)
        })
    }
}

#[test]
fn one_more_machine_costs_the_same_however_many_there_are() {
    let mut bench = Bench::of_nodes(3);
    let seen = |bench: &Bench| {
        let module = Digest::of(b"m").0.to_vec();
        let record = MachineRecord { name: "new".into(), module, replicas_wanted: 3, ..Default::default() };
        let changes = [
            Change::CreateMachine(record),
            Change::MachineReady(1),
            Change::ReplicaGone(ReplicaGone { group: 1, replica: 99 }),
            Change::RemoveMachine(1),
        ];
        let operations = changes.map(|change| Operation::command(change.command())).into();
        let view = Arc::new(Counting { rows: bench.rows.clone(), seen: AtomicUsize::new(0) });
        let batch = Batch { time_ms: 5, operations, begins_term: false };
        let applied =
            apply::stored(&bench.head, bench.head.index.next(), &batch, view.clone(), &mut CatalogGuest);
        assert!(applied.unwrap().outcomes.iter().all(|first| matches!(first.outcome, Outcome::Ok(_))));
        view.seen.load(Ordering::Relaxed)
    };
    bench.create("m0", 3);
    let few = seen(&bench);
    (1..200).for_each(|number| drop(bench.create(&format!("m{number}"), 3)));
    assert_eq!(seen(&bench), few);
}

#[test]
fn a_machine_becomes_ready() {
    let mut bench = Bench::of_nodes(1);
    bench.create("a", 1);
    assert!(!bench.copy.machines["a"].ready);
    bench.change(Change::MachineReady(1));
    assert!(bench.copy.machines["a"].ready);
}

#[test]
fn names_modules_and_numbers_of_replicas_are_checked() {
    let mut bench = Bench::new();
    assert_eq!(refusal(bench.create("a", 1)), RefusalCode::UnknownModule);
    let mut bench = Bench::of_nodes(1);
    assert_eq!(refusal(bench.create("Bad name", 1)), RefusalCode::BadName);
    assert_eq!(refusal(bench.create(&"x".repeat(64), 1)), RefusalCode::BadName);
    assert_eq!(refusal(bench.create("a", 0)), RefusalCode::Malformed);
    assert_eq!(refusal(bench.create("a", REPLICAS_MAX + 1)), RefusalCode::Malformed);
    bench.create("a", 1);
    assert_eq!(refusal(bench.create("a", 1)), RefusalCode::NameTaken);
    let garbage = bench.operation(Operation::command(Bytes::from_static(b"\xff")));
    assert_eq!(refusal(garbage), RefusalCode::Malformed);
}

#[test]
fn the_first_node_has_the_founding_replica() {
    let bench = Bench::of_nodes(2);
    assert_eq!(bench.node(1).replica(), FOUNDER);
    assert_eq!(bench.node(2).replica().0, 2);
}

#[test]
fn replicas_go_where_the_fewest_are() {
    let mut bench = Bench::of_nodes(4);
    bench.create("a", 3);
    assert_eq!(bench.places("a"), [(1, false), (2, false), (3, false)]);
    bench.create("b", 2);
    assert_eq!(bench.places("b"), [(4, false), (1, false)]);
    let founders = &bench.copy.machines["a"].founders;
    let replicas: Vec<u64> = bench.copy.machines["a"].replicas.iter().map(|r| r.replica).collect();
    assert_eq!(*founders, replicas);
}

#[test]
fn machines_grow_to_what_was_asked_for_as_nodes_join() {
    let mut bench = Bench::of_nodes(1);
    bench.create("a", 3);
    assert_eq!(bench.places("a"), [(1, false)]);
    bench.add_node(2);
    bench.add_node(3);
    bench.add_node(4);
    assert_eq!(bench.places("a"), [(1, false), (2, false), (3, false)]);
    assert_eq!(bench.copy.machines["a"].founders.len(), 1, "whom it began with stays");
}

#[test]
fn a_known_node_that_moved_keeps_its_replica() {
    let mut bench = Bench::of_nodes(2);
    let before = bench.node(2).clone();
    let moved = NodeRecord {
        node: 2,
        name: "n2".into(),
        peer_address: "elsewhere:1".into(),
        version: "9".into(),
        ..Default::default()
    };
    bench.change(Change::AddNode(moved));
    let after = bench.node(2);
    assert_eq!((after.replica, after.voter, &*after.peer_address), (before.replica, true, "elsewhere:1"));
    assert_eq!(after.version, "9");
}

#[test]
fn names_and_addresses_of_nodes_are_distinct() {
    let mut bench = Bench::of_nodes(2);
    let node = |name: &str, peer_address: &str| {
        let (name, peer_address) = (name.into(), peer_address.into());
        Change::AddNode(NodeRecord { node: 9, name, peer_address, ..Default::default() })
    };
    assert_eq!(refusal(bench.change(node("n1", "x:1"))), RefusalCode::NameTaken);
    assert_eq!(refusal(bench.change(node("n9", "host-1:7071"))), RefusalCode::AddressTaken);
    assert!(matches!(bench.change(node("n9", "x:1")), Outcome::Ok(_)));
}

#[test]
fn a_node_leaves_when_all_its_replicas_are_gone_and_never_comes_back() {
    let mut bench = Bench::of_nodes(4);
    bench.create("a", 3);
    bench.change(Change::RemoveNode(1));
    assert_eq!(bench.places("a"), [(1, true), (2, false), (3, false), (4, false)]);
    assert!(bench.node(1).leaving);
    let left = bench.copy.machines["a"].replicas[0].replica;
    bench.gone(1, left);
    assert_eq!(bench.places("a"), [(2, false), (3, false), (4, false)]);
    bench.gone(0, FOUNDER.0);
    assert!(!bench.copy.nodes.contains_key(&NodeId(1)) && bench.copy.removed.contains(&NodeId(1)));
    assert_eq!(refusal(bench.add_node(1)), RefusalCode::NodeRemoved);
    // Again: nothing.
    assert_eq!(bench.change(Change::RemoveNode(1)), Outcome::Ok(Bytes::new()));
    bench.gone(1, left);
}

#[test]
fn only_replicas_that_are_to_leave_can_be_gone() {
    let mut bench = Bench::of_nodes(3);
    bench.create("a", 3);
    let before = bench.places("a");
    let replica = bench.copy.machines["a"].replicas[0].replica;
    bench.gone(1, replica);
    bench.gone(0, FOUNDER.0);
    assert_eq!(bench.places("a"), before);
    assert!(bench.copy.nodes.contains_key(&NodeId(1)));
}

#[test]
fn a_replica_that_left_a_node_makes_room_for_a_new_one_under_a_new_id() {
    let mut bench = Bench::of_nodes(2);
    bench.create("a", 2);
    let first: Vec<ReplicaRecord> = bench.copy.machines["a"].replicas.clone();
    bench.change(Change::RemoveNode(2));
    bench.gone(1, first[1].replica);
    bench.add_node(3);
    let now = &bench.copy.machines["a"].replicas;
    assert_eq!((now.len(), now[1].node), (2, 3));
    assert!(first.iter().all(|old| old.replica != now[1].replica));
}

#[test]
fn the_last_node_cannot_go_and_unknown_ones_are_named() {
    let mut bench = Bench::of_nodes(2);
    assert_eq!(refusal(bench.change(Change::RemoveNode(7))), RefusalCode::UnknownNode);
    bench.change(Change::RemoveNode(1));
    assert_eq!(refusal(bench.change(Change::RemoveNode(2))), RefusalCode::LastNode);
}

#[test]
fn seven_nodes_vote_and_a_free_vote_goes_to_who_joined_first() {
    let mut bench = Bench::of_nodes(9);
    let voters = |bench: &Bench| -> Vec<u64> {
        bench.copy.nodes.values().filter(|node| node.voter && !node.leaving).map(|node| node.node).collect()
    };
    assert_eq!(voters(&bench), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(refusal(bench.change(Change::PromoteNode(9))), RefusalCode::VotersFull);
    bench.change(Change::RemoveNode(3));
    assert_eq!(voters(&bench), [1, 2, 4, 5, 6, 7, 8]);
    assert_eq!(bench.change(Change::PromoteNode(8)), Outcome::Ok(Bytes::new()));
    assert_eq!(refusal(bench.change(Change::PromoteNode(33))), RefusalCode::UnknownNode);
}

#[test]
fn a_created_machine_is_told_where_it_is() {
    let mut bench = Bench::of_nodes(3);
    let Outcome::Ok(answer) = bench.create("a", 3) else { panic!("it was refused") };
    let record = MachineRecord::decode(answer).unwrap();
    assert_eq!(record, *bench.copy.machines["a"]);
    let replica = record.replica_on(NodeId(2)).unwrap();
    assert_eq!(replica.0, record.replicas[1].replica);
    assert_eq!(record.replica_on(NodeId(9)), None);
}
