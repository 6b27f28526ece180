//! Writes a file from entries that come in order.
//!
//! Pages are written as they fill up, so a file of any size takes little memory: at most a page and two
//! entries for each level of the tree. Only the two meta pages at the front need the end to be known, so what
//! is written to must be able to seek back.
//!
//! Promises: what [`Writer::finish`] answered for is a file that bbolt takes for one of its own, without free
//! pages. It must never write what the format cannot hold, or out of order: those are errors.

use std::collections::VecDeque;
use std::io::{BufWriter, Seek, SeekFrom, Write};

use super::Error;
use super::meta::Meta;
use super::page::{BUCKET, ELEMENT_BYTES, HEADER_BYTES, Kind, header};

/// The size of a page, as bbolt has it on most computers.
const PAGE_BYTES: usize = 4_096;
/// The longest key and the longest value of bbolt.
const KEY_BYTES_MAX: usize = 32 << 10;
const VALUE_BYTES_MAX: usize = (1 << 31) - 2;
/// Bytes that are gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;
/// What the meta pages are called: a transaction's lies in the page of its number modulo two.
const TRANSACTION: u64 = 2;
/// A branch with one child would be of no use, and a row of them would never end.
const CHILDREN_MIN: usize = 2;

/// Writes a file: buckets in the order of their names, and the entries of each in the order of their keys.
pub struct Writer<W: Write + Seek> {
    pages: Pages<W>,
    /// The tree of buckets.
    roots: Tree,
    /// The bucket that is being written.
    bucket: Option<(Vec<u8>, Tree)>,
}

impl<W: Write + Seek> Writer<W> {
    /// Begins a file at the beginning of `out`.
    ///
    /// # Errors
    /// `Io`.
    pub fn new(out: W) -> Result<Writer<W>, Error> {
        let mut pages = Pages { out: BufWriter::with_capacity(BUFFER_BYTES, out), next: 0 };
        // The meta pages' place.
        pages.append(2 * PAGE_BYTES, &[])?;
        Ok(Writer { pages, roots: Tree::default(), bucket: None })
    }

    /// Ends the bucket before and begins another, which may stay empty.
    ///
    /// # Errors
    /// `Unfit` if the name does not come behind the one before; `Io`.
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), Error> {
        self.end_bucket()?;
        if !self.roots.is_behind(name) {
            return Err(unfit("bucket", name, "does not come behind the one before it"));
        }
        self.bucket = Some((name.to_vec(), Tree::default()));
        Ok(())
    }

    /// Appends an entry to the bucket that was begun last.
    ///
    /// # Errors
    /// `Unfit` without a bucket, for a key that does not come behind the one before, and for what is longer
    /// than bbolt takes; `Io`.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let Some((_, tree)) = &mut self.bucket else {
            return Err(unfit("key", key, "comes before any bucket"));
        };
        if !tree.is_behind(key) {
            return Err(unfit("key", key, "does not come behind the one before it"));
        }
        if !(1..=KEY_BYTES_MAX).contains(&key.len()) || value.len() > VALUE_BYTES_MAX {
            let (key_bytes, bytes) = (key.len(), value.len());
            return Err(Error::Unfit(format!(
                "a key of {key_bytes} bytes with a value of {bytes} bytes: a key has 1 to {KEY_BYTES_MAX}, a \
                 value at most {VALUE_BYTES_MAX}"
            )));
        }
        let item = Item { key: key.to_vec(), content: Content::Value(value.to_vec()) };
        tree.push(&mut self.pages, item)
    }

    /// Puts a bucket's value at the root as it is.
    #[cfg(test)]
    pub(super) fn inline_bucket(&mut self, name: &[u8], value: &[u8]) -> Result<(), Error> {
        self.end_bucket()?;
        let item = Item { key: name.to_vec(), content: Content::Bucket(value.to_vec()) };
        self.roots.push(&mut self.pages, item)
    }

    fn end_bucket(&mut self) -> Result<(), Error> {
        let Some((name, tree)) = self.bucket.take() else { return Ok(()) };
        let root = tree.finish(&mut self.pages)?;
        // Its root, and its counter, which etcd does not use.
        let value = [root.to_le_bytes(), [0; 8]].concat();
        self.roots.push(&mut self.pages, Item { key: name, content: Content::Bucket(value) })
    }

    /// Writes what is left, and answers what was written to, flushed but not synced.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(mut self) -> Result<W, Error> {
        self.end_bucket()?;
        let root = self.roots.finish(&mut self.pages)?;
        let freelist = self.pages.next;
        self.pages.append(PAGE_BYTES, &header(freelist, Kind::Freelist, 0, 0))?;
        let end = self.pages.next;
        let io = |source| Error::Io { page: 0, source };
        let mut out = self.pages.out.into_inner().map_err(|e| io(e.into_error()))?;
        for number in [0, 1] {
            let transaction = TRANSACTION - number;
            let meta = Meta { page_bytes: PAGE_BYTES as u64, root, freelist, end, transaction };
            out.seek(SeekFrom::Start(number * PAGE_BYTES as u64)).map_err(io)?;
            out.write_all(&meta.encode(number)).map_err(io)?;
        }
        out.seek(SeekFrom::End(0)).map_err(io)?;
        out.flush().map_err(io)?;
        Ok(out)
    }
}

fn unfit(what: &str, name: &[u8], why: &str) -> Error {
    Error::Unfit(format!("the {what} \"{}\" {why}", name.escape_ascii()))
}

/// The pages that were written so far.
struct Pages<W: Write> {
    out: BufWriter<W>,
    /// The number of the next.
    next: u64,
}

impl<W: Write> Pages<W> {
    /// Appends as many whole pages as `bytes` of content take, which begins with `content`.
    fn append(&mut self, bytes: usize, content: &[u8]) -> Result<u64, Error> {
        let number = self.next;
        let io = |source| Error::Io { page: number, source };
        let count = bytes.div_ceil(PAGE_BYTES);
        self.out.write_all(content).map_err(io)?;
        let mut rest = count * PAGE_BYTES - content.len();
        while rest > 0 {
            let zeros = [0; PAGE_BYTES];
            let step = rest.min(PAGE_BYTES);
            self.out.write_all(&zeros[..step]).map_err(io)?;
            rest -= step;
        }
        self.next += count as u64;
        Ok(number)
    }
}

/// What is to become an element of a page.
struct Item {
    key: Vec<u8>,
    content: Content,
}

enum Content {
    Child(u64),
    Value(Vec<u8>),
    Bucket(Vec<u8>),
}

impl Item {
    fn value(&self) -> &[u8] {
        match &self.content {
            Content::Child(_) => &[],
            Content::Value(value) | Content::Bucket(value) => value,
        }
    }

    fn bytes(&self) -> usize {
        ELEMENT_BYTES + self.key.len() + self.value().len()
    }

    /// Its element, which stands so many bytes before its key.
    fn element(&self, before: usize) -> [u8; ELEMENT_BYTES] {
        // Keys and values have less than 4 GiB, and the page before them a few more entries of that kind.
        let (before, key, value) = (before as u32, self.key.len() as u32, self.value().len() as u32);
        let fields = match self.content {
            Content::Child(page) => [before, key, page as u32, (page >> 32) as u32],
            Content::Value(_) => [0, before, key, value],
            Content::Bucket(_) => [BUCKET, before, key, value],
        };
        let mut bytes = [0; ELEMENT_BYTES];
        for (place, field) in bytes.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

/// A tree that grows from its leaves: each level has the items that are not yet in a page.
#[derive(Default)]
struct Tree {
    /// From the leaves up.
    levels: Vec<Level>,
    /// The last key.
    last: Option<Vec<u8>>,
}

#[derive(Default)]
struct Level {
    items: VecDeque<Item>,
    /// How many of the first items go into one page, and the bytes that they take there.
    fitting: usize,
    bytes: usize,
}

impl Tree {
    fn is_behind(&self, key: &[u8]) -> bool {
        self.last.as_deref().is_none_or(|last| last < key)
    }

    fn push<W: Write>(&mut self, pages: &mut Pages<W>, item: Item) -> Result<(), Error> {
        self.last = Some(item.key.clone());
        self.push_at(pages, 0, item)
    }

    /// Puts an item behind the others of a level. A page is written when two items are left for the next, so
    /// that the last page of a level is never one with a single child.
    fn push_at<W: Write>(&mut self, pages: &mut Pages<W>, at: usize, item: Item) -> Result<(), Error> {
        if at == self.levels.len() {
            self.levels.push(Level::default());
        }
        let level = &mut self.levels[at];
        level.items.push_back(item);
        level.fit(at);
        if level.items.len() < level.fitting + 2 {
            return Ok(());
        }
        let above = level.write(pages, at, level.fitting)?;
        self.push_at(pages, at + 1, above)
    }

    /// Writes all that is left, and answers the page of the root.
    fn finish<W: Write>(mut self, pages: &mut Pages<W>) -> Result<u64, Error> {
        if self.levels.is_empty() {
            return pages.append(PAGE_BYTES, &header(pages.next, Kind::Leaf, 0, 0));
        }
        let mut at = 0;
        loop {
            let level = &mut self.levels[at];
            if let Some(count) = level.first_of_two_pages(at) {
                let above = level.write(pages, at, count)?;
                self.push_at(pages, at + 1, above)?;
            }
            let level = &mut self.levels[at];
            let above = level.write(pages, at, level.items.len())?;
            match (at + 1 == self.levels.len(), &above.content) {
                (true, Content::Child(root)) => return Ok(*root),
                _ => self.push_at(pages, at + 1, above)?,
            }
            at += 1;
        }
    }
}

impl Level {
    /// Counts how many of the first items go into one page.
    fn fit(&mut self, at: usize) {
        let least = if at == 0 { 1 } else { CHILDREN_MIN };
        while let Some(item) = self.items.get(self.fitting) {
            let bytes = self.bytes + item.bytes();
            if HEADER_BYTES + bytes > PAGE_BYTES && self.fitting >= least {
                return;
            }
            self.fitting += 1;
            self.bytes = bytes;
        }
    }

    /// How many items go into the last page but one, if what is left goes into two.
    fn first_of_two_pages(&self, at: usize) -> Option<usize> {
        let left = self.items.len();
        if left <= self.fitting {
            return None;
        }
        if at == 0 {
            return Some(self.fitting);
        }
        // Three children share a page that runs over, four and more make two pages of two and more.
        (left >= 2 * CHILDREN_MIN).then_some(left - CHILDREN_MIN)
    }

    /// Writes the first items as a page; answers the item that stands for it in the level above.
    fn write<W: Write>(&mut self, pages: &mut Pages<W>, at: usize, count: usize) -> Result<Item, Error> {
        let items: Vec<Item> = self.items.drain(..count).collect();
        let bytes = HEADER_BYTES + items.iter().map(Item::bytes).sum::<usize>();
        let overflow = bytes.div_ceil(PAGE_BYTES) - 1;
        let kind = if at == 0 { Kind::Leaf } else { Kind::Branch };
        let mut page = Vec::with_capacity(bytes);
        // A page of 4 KiB has at most 255 elements, one that runs over no more.
        page.extend_from_slice(&header(pages.next, kind, count as u16, overflow as u32));
        let mut behind = HEADER_BYTES + count * ELEMENT_BYTES;
        for item in &items {
            page.extend_from_slice(&item.element(behind - page.len()));
            behind += item.bytes() - ELEMENT_BYTES;
        }
        for item in &items {
            page.extend_from_slice(&item.key);
            page.extend_from_slice(item.value());
        }
        let number = pages.append(bytes, &page)?;
        (self.fitting, self.bytes) = (0, 0);
        self.fit(at);
        let first = items.into_iter().next().map(|item| item.key).unwrap_or_default();
        Ok(Item { key: first, content: Content::Child(number) })
    }
}
