//! One page, taken apart and checked.
//!
//! Whatever a [`Page`] gives out lies within it, and its keys ascend: everything is checked when it is made.
//! A key of a page is never empty in etcd's buckets, but the format allows it, and so does this.

use std::ops::Range;

use super::{Error, u32_at, u64_at};

/// What every page begins with.
pub const HEADER_BYTES: usize = 16;
/// What an element takes, besides its key and value.
pub const ELEMENT_BYTES: usize = 16;
/// The flag of an element whose value is a bucket.
pub const BUCKET: u32 = 1;

/// What a page is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Keys and the pages of children.
    Branch,
    /// Keys and values.
    Leaf,
    /// One of the first two.
    Meta,
    /// The numbers of free pages.
    Freelist,
}

impl Kind {
    fn flag(self) -> u16 {
        match self {
            Kind::Branch => 1,
            Kind::Leaf => 2,
            Kind::Meta => 4,
            Kind::Freelist => 16,
        }
    }
}

/// The first bytes of a page.
pub fn header(number: u64, kind: Kind, count: u16, overflow: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..10].copy_from_slice(&kind.flag().to_le_bytes());
    bytes[10..12].copy_from_slice(&count.to_le_bytes());
    bytes[12..].copy_from_slice(&overflow.to_le_bytes());
    bytes
}

/// How many further pages the page with these first bytes runs over.
pub fn overflow(header: &[u8]) -> u32 {
    u32_at(header, 12)
}

/// A branch or a leaf in memory.
#[derive(Debug)]
pub struct Page {
    number: u64,
    bytes: Vec<u8>,
    elements: Vec<Element>,
    leaf: bool,
}

#[derive(Debug)]
struct Element {
    key: Range<usize>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Child(u64),
    Value { place: Range<usize>, is_bucket: bool },
}

/// An element of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'p> {
    /// Its key.
    pub key: &'p [u8],
    /// Its value.
    pub value: &'p [u8],
    /// Whether the value is a bucket.
    pub is_bucket: bool,
}

impl Page {
    /// Takes a page apart, with all that it runs over. `number` is where it was found; inline pages have none
    /// of their own and name 0.
    pub fn parse(number: u64, bytes: Vec<u8>, inline: bool) -> Result<Page, Error> {
        let damaged = |what: String| Error::damaged(number, what);
        if bytes.len() < HEADER_BYTES {
            return Err(damaged(format!("it has {} bytes, fewer than its head", bytes.len())));
        }
        let named = u64_at(&bytes, 0);
        if !inline && named != number {
            return Err(damaged(format!("it says of itself that it is page {named}")));
        }
        let flags = u32_at(&bytes, 8) as u16;
        let leaf = match flags {
            flags if flags == Kind::Leaf.flag() => true,
            flags if flags == Kind::Branch.flag() && !inline => false,
            flags => return Err(damaged(format!("its kind is {flags:#x}, neither a branch nor a leaf"))),
        };
        let count = (u32_at(&bytes, 8) >> 16) as usize;
        if !leaf && count == 0 {
            return Err(damaged("a branch without children".into()));
        }
        let elements: Result<Vec<Element>, String> =
            (0..count).map(|index| Element::parse(&bytes, index, count, leaf)).collect();
        let page = Page { number, elements: elements.map_err(damaged)?, bytes, leaf };
        page.check_order()?;
        Ok(page)
    }

    fn check_order(&self) -> Result<(), Error> {
        match (1..self.elements.len()).find(|index| self.key(index - 1) >= self.key(*index)) {
            None => Ok(()),
            Some(index) => {
                let what = format!("the key of element {index} does not come behind the one before it");
                Err(Error::damaged(self.number, what))
            }
        }
    }

    /// Where it was found.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether it has values.
    pub fn is_leaf(&self) -> bool {
        self.leaf
    }

    /// How many elements it has.
    pub fn count(&self) -> usize {
        self.elements.len()
    }

    /// The key of an element that there is.
    pub fn key(&self, index: usize) -> &[u8] {
        &self.bytes[self.elements[index].key.clone()]
    }

    /// The child of a branch; `None` of a leaf, and where there is none.
    pub fn child(&self, index: usize) -> Option<u64> {
        match self.elements.get(index)?.content {
            Content::Child(page) => Some(page),
            Content::Value { .. } => None,
        }
    }

    /// The entry of a leaf; `None` of a branch, and where there is none.
    pub fn entry(&self, index: usize) -> Option<Entry<'_>> {
        match &self.elements.get(index)?.content {
            Content::Child(_) => None,
            Content::Value { place, is_bucket } => {
                let value = &self.bytes[place.clone()];
                Some(Entry { key: self.key(index), value, is_bucket: *is_bucket })
            }
        }
    }

    /// The element where `key` is or would be: of a branch, the child that it would be in; of a leaf, the
    /// first entry that is not before it.
    pub fn place_of(&self, key: &[u8]) -> usize {
        let bytes = &self.bytes;
        if self.leaf {
            return self.elements.partition_point(|element| &bytes[element.key.clone()] < key);
        }
        let behind = self.elements.partition_point(|element| &bytes[element.key.clone()] <= key);
        behind.saturating_sub(1)
    }
}

impl Element {
    fn parse(bytes: &[u8], index: usize, count: usize, leaf: bool) -> Result<Element, String> {
        let start = HEADER_BYTES + index * ELEMENT_BYTES;
        let elements_end = HEADER_BYTES + count * ELEMENT_BYTES;
        if elements_end > bytes.len() {
            return Err(format!("its {count} elements do not fit into {} bytes", bytes.len()));
        }
        let number = |at: usize| u32_at(bytes, start + at);
        // Sums of 32-bit numbers: they do not overflow 64.
        let within = |from: u64, length: u32| {
            let end = from + u64::from(length);
            let fits = from >= elements_end as u64 && end <= bytes.len() as u64;
            // Both are at most the length of a slice.
            fits.then_some(from as usize..end as usize)
        };
        let outside = || format!("element {index} lies outside of the page");
        if leaf {
            let (flags, from) = (number(0), start as u64 + u64::from(number(4)));
            let key = within(from, number(8)).ok_or_else(outside)?;
            let place = within(from + u64::from(number(8)), number(12)).ok_or_else(outside)?;
            if flags & !BUCKET != 0 {
                return Err(format!("element {index} has the flags {flags:#x}"));
            }
            return Ok(Element { key, content: Content::Value { place, is_bucket: flags == BUCKET } });
        }
        let key = within(start as u64 + u64::from(number(0)), number(4)).ok_or_else(outside)?;
        Ok(Element { key, content: Content::Child(u64_at(bytes, start + 8)) })
    }
}
