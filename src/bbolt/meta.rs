//! The two meta pages: where everything in a file begins.
//!
//! A transaction of bbolt ends by writing one of them, in turn, so that one is intact whenever the writing
//! was cut short. Which counts is decided here and nowhere else.

use super::page::{HEADER_BYTES, Kind, header};
use super::{Error, Source, u32_at, u64_at};

/// The first bytes of a meta page's content.
const MAGIC: u32 = 0xED0C_DAED;
/// The only version of the format there has been since.
const VERSION: u32 = 2;
/// A meta page's content, its checksum included.
const META_BYTES: usize = 64;
/// Where the checksum is, and what it is of.
const CHECKED_BYTES: usize = 56;
/// The smallest and the largest page that is believed.
const PAGE_BYTES_MIN: u64 = 1 << 10;
pub const PAGE_BYTES_MAX: u64 = 1 << 16;

/// What a meta page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The size of a page.
    pub page_bytes: u64,
    /// The page at the root of the tree of buckets.
    pub root: u64,
    /// The page with the list of free pages; all ones: there is no such list.
    pub freelist: u64,
    /// The first number that no page has yet.
    pub end: u64,
    /// The transaction that wrote this.
    pub transaction: u64,
}

impl Meta {
    /// The page, without what fills it up.
    pub fn encode(&self, number: u64) -> Vec<u8> {
        let mut page = header(number, Kind::Meta, 0, 0).to_vec();
        page.extend_from_slice(&MAGIC.to_le_bytes());
        page.extend_from_slice(&VERSION.to_le_bytes());
        // Files that are written here have pages of 4 KiB.
        page.extend_from_slice(&(self.page_bytes as u32).to_le_bytes());
        page.extend_from_slice(&0u32.to_le_bytes());
        // The root bucket's counter is not in use.
        for number in [self.root, 0, self.freelist, self.end, self.transaction] {
            page.extend_from_slice(&number.to_le_bytes());
        }
        let checksum = fnv1a(&page[HEADER_BYTES..]);
        page.extend_from_slice(&checksum.to_le_bytes());
        page
    }

    /// Takes the content of a meta page apart.
    fn decode(content: &[u8]) -> Result<Meta, &'static str> {
        if content.len() < META_BYTES {
            return Err("is cut off");
        }
        if u32_at(content, 0) != MAGIC {
            return Err("does not begin as one");
        }
        if u32_at(content, 4) != VERSION {
            return Err("is of another version of the format");
        }
        if fnv1a(&content[..CHECKED_BYTES]) != u64_at(content, CHECKED_BYTES) {
            return Err("has a wrong checksum");
        }
        let page_bytes = u64::from(u32_at(content, 8));
        if !page_bytes.is_power_of_two() || !(PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page_bytes) {
            return Err("names a size of pages that is none");
        }
        let at = |place: usize| u64_at(content, place);
        Ok(Meta { page_bytes, root: at(16), freelist: at(32), end: at(40), transaction: at(48) })
    }

    /// The later of the intact meta pages of a file.
    pub fn of<S: Source>(source: &S) -> Result<Meta, Error> {
        let first = Meta::read(source, 0);
        let size = first.as_ref().ok().map(|meta| meta.page_bytes);
        // Where the second is depends on the size of a page; if the first does not tell, each is tried.
        let sizes = (PAGE_BYTES_MIN.ilog2()..=PAGE_BYTES_MAX.ilog2()).map(|bits| 1 << bits);
        let second = sizes
            .filter(|bytes| size.is_none_or(|size| size == *bytes))
            .map(|bytes| Meta::read(source, bytes).ok().filter(|meta| meta.page_bytes == bytes))
            .find_map(|meta| meta);
        match (first, second) {
            (Ok(first), Some(second)) if second.transaction > first.transaction => Ok(second),
            (Ok(first), _) => Ok(first),
            (Err(_), Some(second)) => Ok(second),
            (Err(why), None) => {
                let text = format!("its first page {why}, and there is no intact second one");
                Err(Error::Foreign(text))
            }
        }
    }

    fn read<S: Source>(source: &S, offset: u64) -> Result<Meta, String> {
        let mut page = [0; HEADER_BYTES + META_BYTES];
        if source.size() < offset + page.len() as u64 {
            return Err("is cut off".into());
        }
        source.read_at(offset, &mut page).map_err(|e| format!("cannot be read: {e}"))?;
        Meta::decode(&page[HEADER_BYTES..]).map_err(str::to_owned)
    }
}

/// The 64-bit hash of Fowler, Noll and Vo, variant 1a.
fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_published_one() {
        // Examples of the authors' page.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_meta_page_comes_back_as_it_was_and_any_flipped_bit_shows() {
        let meta = Meta { page_bytes: 4_096, root: 7, freelist: u64::MAX, end: 9, transaction: 3 };
        let page = meta.encode(1);
        let content = &page[HEADER_BYTES..];
        assert_eq!(content.len(), META_BYTES);
        assert_eq!(Meta::decode(content), Ok(meta));
        for bit in 0..META_BYTES * 8 {
            let mut damaged = content.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Meta::decode(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_later_intact_page_counts() {
        let meta = |transaction| Meta { page_bytes: 1_024, root: 3, freelist: 2, end: 4, transaction };
        let file = |first: u64, second: u64| {
            let mut file = vec![0; 4 * 1_024];
            file[..HEADER_BYTES + META_BYTES].copy_from_slice(&meta(first).encode(0));
            file[1_024..1_024 + HEADER_BYTES + META_BYTES].copy_from_slice(&meta(second).encode(1));
            file
        };
        let counts = |file: Vec<u8>| Meta::of(&file).map(|meta| meta.transaction);
        assert_eq!(counts(file(4, 5)).unwrap(), 5);
        assert_eq!(counts(file(6, 5)).unwrap(), 6);
        let mut damaged = file(6, 5);
        damaged[HEADER_BYTES + 20] ^= 1;
        assert_eq!(counts(damaged.clone()).unwrap(), 5, "the second is found without the first");
        damaged[1_024 + HEADER_BYTES + 20] ^= 1;
        assert!(matches!(counts(damaged), Err(Error::Foreign(_))));
    }
}
