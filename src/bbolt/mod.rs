//! The file format in which etcd keeps its keys, bbolt's: read and written.
//!
//! For `import-etcd`, which reads snapshots of etcd, and for snapshots that etcd's own tools are to open. It
//! is no database: a file is written once, in order, and read without being changed.
//!
//! Promises: neither reading nor writing holds more than a few pages at a time, whatever the size of the
//! file. A damaged file gives an [`Error`] that names the page, never a panic, an endless walk or a huge
//! allocation. It must never guess: what does not fit together is an error.
//!
//! No crate does this: the one for bbolt's format, `bbolt-rs`, is a port of the whole database, with its
//! transactions, its memory maps, which end a process whose file is cut off, and 25 dependencies.
//!
//! # The format
//! A file is a row of pages of one size; a page's number is its place. All numbers are little-endian, as
//! bbolt writes them on the processors that etcd runs on. A page begins with 16 bytes: its number (8), its
//! kind (2), the count of its elements (2), and how many further pages it runs over (4).
//!
//! - Pages 0 and 1 are meta pages: the size of a page, the root of the tree of buckets, the first number that
//!   no page has yet, a transaction's number and a checksum. Of those that are intact, the later one counts.
//! - A branch page has elements of 16 bytes: where its key is, counted from the element (4), the key's length
//!   (4), and the page of the child (8) whose first key it is.
//! - A leaf page has elements of 16 bytes: flags (4), where key and value are (4), and their lengths (4
//!   each).
//! - A bucket is a value with flag 1 in a leaf: the page of its own root (8) and a counter (8). A small one
//!   has 0 for its root, and its only leaf lies right behind, inline.
//!
//! # Layout
//! - `page`: one page taken apart; `meta`: the two that everything begins with
//! - `read`: buckets and cursors; `write`: files in order; `etcd`: what etcd keeps in them; `snapshot`: a
//!   file for etcd

pub mod etcd;
mod meta;
mod page;
mod read;
pub mod snapshot;
mod write;

#[cfg(test)]
mod tests;

use std::io;

pub use self::read::{Bucket, Cursor, Database, Source};
pub use self::write::Writer;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not of this format at all, or neither of its meta pages is intact.
    #[error("this is no database of etcd: {0}")]
    Foreign(String),
    /// The file began well, and is damaged.
    #[error("page {page} is damaged: {what}")]
    Damaged {
        /// The page's number.
        page: u64,
        /// What is wrong with it.
        what: String,
    },
    /// What is stored is not what etcd stores.
    #[error("{0}")]
    Content(String),
    /// What is to be written does not fit into the format, or comes out of order.
    #[error("{0}")]
    Unfit(String),
    /// The file could not be read or written.
    #[error("page {page}: {source}")]
    Io {
        /// The page's number.
        page: u64,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    fn damaged(page: u64, what: impl Into<String>) -> Error {
        Error::Damaged { page, what: what.into() }
    }
}

/// The 4 bytes at `at`, as a number; 0 if they are not all there.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let taken = bytes.get(at..).and_then(|rest| rest.first_chunk());
    taken.map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

/// The 8 bytes at `at`, as a number; 0 if they are not all there.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let taken = bytes.get(at..).and_then(|rest| rest.first_chunk());
    taken.map_or(0, |chunk| u64::from_le_bytes(*chunk))
}
