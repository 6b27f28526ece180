//! Where the catalog's rows are: one prefix for each kind. Part of the stored format.

/// The digest follows.
pub(super) const MODULES: u8 = b'm';
/// The name follows.
pub(super) const MACHINES: u8 = b'n';
/// The node's id follows, big-endian.
pub(super) const NODES: u8 = b'o';
/// The id of a node that is not let in any more follows, big-endian; the value is its name.
pub(super) const REMOVED_NODES: u8 = b'x';
/// A node's id follows, big-endian; the value is how many replicas it has that are to stay, big-endian. No
/// row: none.
pub(super) const REPLICA_COUNTS: u8 = b'c';
/// A group's id follows, big-endian; the value is the name of its machine.
pub(super) const NAMES: u8 = b'd';
/// There once the two before are kept.
pub(super) const INDEXED: &[u8] = b"i";
/// The last group id given out.
pub(super) const LAST_GROUP: &[u8] = b"g";
/// The last replica id given out.
pub(super) const LAST_REPLICA: &[u8] = b"r";

/// The key of a row.
pub(super) fn key(prefix: u8, name: &[u8]) -> Vec<u8> {
    [&[prefix], name].concat()
}
