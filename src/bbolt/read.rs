//! Reads a file: its buckets, and what is in them, in order.
//!
//! Holds one page of each level of a tree at a time. A page is checked when it is read, and must lie within
//! the file; a walk that meets more pages than the file has, or keys that do not ascend, ends with an error.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::meta::Meta;
use super::page::{Entry, HEADER_BYTES, Page, overflow};
use super::{Error, u64_at};

/// The levels of a tree that are believed: with two children a page there would be 2^48 leaves.
const DEPTH_MAX: usize = 48;
/// The largest page with what it runs over. etcd takes requests of 1.5 MiB, and of some hundreds at most.
const EXTENT_BYTES_MAX: u64 = 1 << 30;
/// A bucket's value, before its inline page.
const BUCKET_BYTES: usize = 16;

/// Where the bytes of a file are.
pub trait Source {
    /// How many there are.
    fn size(&self) -> u64;

    /// Fills `bytes` with those from `offset` on.
    ///
    /// # Errors
    /// They could not be read, or are not all there.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
}

impl Source for File {
    fn size(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }
}

impl Source for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let place = start.checked_add(bytes.len()).and_then(|end| self.get(start..end));
        bytes.copy_from_slice(place.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// An open file.
#[derive(Debug)]
pub struct Database<S> {
    source: S,
    meta: Meta,
    /// Bytes of the file when it was opened.
    size: u64,
}

/// Where a bucket's entries are.
#[derive(Clone, Debug)]
pub struct Bucket {
    root: Root,
}

#[derive(Clone, Debug)]
enum Root {
    Page(u64),
    /// A page that lies in a value of the page with this number.
    Inline(u64, Vec<u8>),
}

impl<S: Source> Database<S> {
    /// Opens a file. What is behind its last whole page is not looked at: `etcdctl snapshot save` puts a
    /// checksum there.
    ///
    /// # Errors
    /// `Foreign` if it is not of this format.
    pub fn open(source: S) -> Result<Database<S>, Error> {
        let meta = Meta::of(&source)?;
        let size = source.size();
        Ok(Database { source, meta, size })
    }

    /// The number of the last transaction.
    pub fn transaction(&self) -> u64 {
        self.meta.transaction
    }

    /// How many bytes the pages take that are in use or free.
    pub fn used_bytes(&self) -> u64 {
        self.meta.end.saturating_mul(self.meta.page_bytes)
    }

    /// The bucket of this name at the root of the file.
    ///
    /// # Errors
    /// The file is damaged, or the value of that name is no bucket.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket>, Error> {
        let mut cursor = self.walk(&Bucket { root: Root::Page(self.meta.root) });
        cursor.seek(name)?;
        let page = cursor.frames.last().map_or(self.meta.root, |frame| frame.page.number());
        let Some(entry) = cursor.next_entry()?.filter(|entry| entry.key == name) else { return Ok(None) };
        if !entry.is_bucket || entry.value.len() < BUCKET_BYTES {
            let name = name.escape_ascii();
            return Err(Error::damaged(page, format!("its value of the name {name} is no bucket")));
        }
        let root = match u64_at(entry.value, 0) {
            0 => Root::Inline(page, entry.value[BUCKET_BYTES..].to_vec()),
            root => Root::Page(root),
        };
        Ok(Some(Bucket { root }))
    }

    /// A cursor before the first entry of a bucket.
    pub fn walk(&self, bucket: &Bucket) -> Cursor<'_, S> {
        Cursor {
            database: self,
            root: bucket.root.clone(),
            frames: Vec::new(),
            at_start: true,
            pages_read: 0,
        }
    }

    /// The value of a key in a bucket.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn get(&self, bucket: &Bucket, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let mut cursor = self.walk(bucket);
        cursor.seek(key)?;
        let entry = cursor.next_entry()?.filter(|entry| entry.key == key && !entry.is_bucket);
        Ok(entry.map(|entry| entry.value.to_vec()))
    }

    /// Reads a page, with all that it runs over.
    fn page(&self, number: u64) -> Result<Page, Error> {
        let Meta { page_bytes, end, .. } = self.meta;
        if number < 2 || number >= end {
            let what = format!("it is asked for, but the pages of trees are 2 to {}", end.saturating_sub(1));
            return Err(Error::damaged(number, what));
        }
        let io = |source| Error::Io { page: number, source };
        let fits = |offset: &u64| offset.checked_add(page_bytes).is_some_and(|end| end <= self.size);
        let Some(offset) = number.checked_mul(page_bytes).filter(fits) else {
            let what = format!("the file ends before it, after {} bytes", self.size);
            return Err(Error::damaged(number, what));
        };
        // Both fit: a page has 64 KiB at most, an extent a GiB.
        let mut bytes = vec![0; page_bytes as usize];
        self.source.read_at(offset, &mut bytes).map_err(io)?;
        let more = u64::from(overflow(&bytes[..HEADER_BYTES]));
        let length = (more + 1) * page_bytes;
        if number + more >= end || offset + length > self.size || length > EXTENT_BYTES_MAX {
            let what = format!("it says that it runs over {more} more pages, which is too far");
            return Err(Error::damaged(number, what));
        }
        if more > 0 {
            bytes.resize(length as usize, 0);
            let rest = page_bytes as usize;
            self.source.read_at(offset + page_bytes, &mut bytes[rest..]).map_err(io)?;
        }
        Page::parse(number, bytes, false)
    }
}

/// Walks through the entries of a bucket in order.
pub struct Cursor<'d, S> {
    database: &'d Database<S>,
    root: Root,
    /// From the root down, with the element that is next in the leaf, and the one that was taken in branches.
    frames: Vec<Frame>,
    /// Whether nothing was read yet.
    at_start: bool,
    /// Since the last seek.
    pages_read: u64,
}

struct Frame {
    page: Page,
    at: usize,
}

impl<S: Source> Cursor<'_, S> {
    /// Goes to before the first entry whose key is not below `key`. Pages that it is in already are not read
    /// again: seeks in ascending order are cheap.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn seek(&mut self, key: &[u8]) -> Result<(), Error> {
        self.at_start = false;
        self.pages_read = 0;
        self.descend(0, None, |page| page.place_of(key))
    }

    /// The next entry; `None` behind the last.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn next_entry(&mut self) -> Result<Option<Entry<'_>>, Error> {
        if std::mem::take(&mut self.at_start) {
            self.descend(0, None, |_| 0)?;
        }
        while self.frames.last().is_some_and(|leaf| leaf.at >= leaf.page.count()) {
            self.next_leaf()?;
        }
        let Some(leaf) = self.frames.last_mut() else { return Ok(None) };
        leaf.at += 1;
        Ok(leaf.page.entry(leaf.at - 1))
    }

    /// Goes to the first element of the leaf behind this one; leaves no frame behind the last.
    fn next_leaf(&mut self) -> Result<(), Error> {
        let Some(left) = self.frames.pop() else { return Ok(()) };
        while let Some(branch) = self.frames.last_mut() {
            branch.at += 1;
            if let Some(child) = branch.page.child(branch.at) {
                let level = self.frames.len();
                self.descend(level, Some(child), |_| 0)?;
                return self.check_behind(&left.page);
            }
            self.frames.pop();
        }
        Ok(())
    }

    fn check_behind(&self, left: &Page) -> Result<(), Error> {
        let Some(leaf) = self.frames.last() else { return Ok(()) };
        let first_and_last = (leaf.page.count() > 0 && left.count() > 0)
            .then(|| (leaf.page.key(0), left.key(left.count() - 1)));
        match first_and_last {
            Some((first, last)) if first <= last => {
                let what = format!("its keys do not come behind those of page {}", left.number());
                Err(Error::damaged(leaf.page.number(), what))
            }
            _ => Ok(()),
        }
    }

    /// Fills the frames from `level` on, beginning with the page `child` (none: the root), down to a leaf.
    fn descend(
        &mut self,
        mut level: usize,
        mut child: Option<u64>,
        place: impl Fn(&Page) -> usize,
    ) -> Result<(), Error> {
        loop {
            self.enter(level, child)?;
            let frame = &mut self.frames[level];
            frame.at = place(&frame.page);
            if frame.page.is_leaf() {
                self.frames.truncate(level + 1);
                return Ok(());
            }
            child = frame.page.child(frame.at);
            level += 1;
        }
    }

    /// Has the page `child` (none: the root) at a level, reading it unless it is there already.
    fn enter(&mut self, level: usize, child: Option<u64>) -> Result<(), Error> {
        let number = match (&self.root, child) {
            (_, Some(child)) => child,
            (Root::Page(root), None) => *root,
            (Root::Inline(page, _), None) => *page,
        };
        if self.frames.get(level).is_some_and(|frame| frame.page.number() == number) {
            return Ok(());
        }
        self.frames.truncate(level);
        self.pages_read += 1;
        if level >= DEPTH_MAX || self.pages_read > self.database.meta.end {
            let what = "the way to it runs in circles: there are not that many pages";
            return Err(Error::damaged(number, what));
        }
        let page = match (&self.root, child) {
            (Root::Inline(page, bytes), None) => Page::parse(*page, bytes.clone(), true)?,
            _ => self.database.page(number)?,
        };
        self.frames.push(Frame { page, at: 0 });
        Ok(())
    }
}
