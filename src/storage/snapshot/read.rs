//! Reading a snapshot: every block is checked before its bytes are used, and the whole at its end.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::{BLOCK_BYTES, Header, MAGIC, PAYLOAD_BYTES_MAX, ROW_PART_BYTES_MAX, Section};
use crate::error::{Error, Fault, REPAIR};
use crate::machine::view::Table;
use crate::storage::large;
use crate::storage::state::RowVisitor;

/// A snapshot being read.
pub struct SnapshotReader {
    header: Header,
    blocks: Blocks,
}

/// What a resident guest wrote of its state.
pub struct GuestSource {
    blocks: Blocks,
}

/// The blocks of a file, checked one after another.
struct Blocks {
    path: PathBuf,
    file: BufReader<File>,
    /// Of all bytes of the file so far.
    sum: blake3::Hasher,
    /// Where the bytes in `block` belong.
    section: Section,
    block: Vec<u8>,
    /// How much of `block` was read.
    read: usize,
}

impl SnapshotReader {
    pub(super) fn open(path: &Path) -> Result<SnapshotReader, Error> {
        let file = match large::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotFound(format!("there is no snapshot {}", path.display())));
            }
            Err(e) => return Err(Fault::new(format!("reading {} failed: {e}", path.display())).into()),
        };
        let mut blocks = Blocks {
            path: path.to_owned(),
            file: BufReader::with_capacity(256 << 10, file),
            sum: blake3::Hasher::new(),
            section: Section::Header,
            block: Vec::new(),
            read: 0,
        };
        let header = blocks.begin()?;
        Ok(SnapshotReader { header, blocks })
    }

    /// What the snapshot is of.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.blocks.path
    }

    /// Visits the rows: in the order of the tables, and of each table's keys.
    pub fn rows(&mut self, visit: &mut RowVisitor) -> Result<(), Error> {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        let (mut last_table, mut last_key) = (None, Vec::new());
        let mut front = [0; 9];
        while self.blocks.more_of(Section::Rows)? {
            self.blocks.fill(Section::Rows, &mut front)?;
            let [table, k0, k1, k2, k3, v0, v1, v2, v3] = front;
            let table = Table::ALL.into_iter().find(|&known| known as u8 == table);
            let table = table.ok_or_else(|| self.blocks.damaged("a row is of an unknown table"))?;
            let (key_bytes, value_bytes) =
                (u32::from_le_bytes([k0, k1, k2, k3]), u32::from_le_bytes([v0, v1, v2, v3]));
            if key_bytes.max(value_bytes) as usize > ROW_PART_BYTES_MAX {
                return Err(self.blocks.damaged("a row is longer than rows can be"));
            }
            key.resize(key_bytes as usize, 0);
            value.resize(value_bytes as usize, 0);
            self.blocks.fill(Section::Rows, &mut key)?;
            self.blocks.fill(Section::Rows, &mut value)?;
            if (last_table, &last_key) >= (Some(table), &key) {
                return Err(self.blocks.damaged("a row is out of order"));
            }
            visit(table, &key, &value)?;
            last_table = Some(table);
            std::mem::swap(&mut last_key, &mut key);
        }
        Ok(())
    }

    /// What the guest wrote, passing over rows that were not read. The last read answers an error if the file
    /// does not end as it should.
    pub fn guest(self) -> GuestSource {
        GuestSource { blocks: self.blocks }
    }

    /// Looks at every byte that was not read yet.
    pub fn verify(mut self) -> Result<(), Error> {
        self.rows(&mut |_, _, _| Ok(()))?;
        while self.blocks.more_of(Section::Guest)? {
            self.blocks.read = self.blocks.block.len();
        }
        Ok(())
    }
}

impl Read for GuestSource {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let more = self.blocks.pass_over_rows().and_then(|()| self.blocks.more_of(Section::Guest));
        if !more.map_err(io::Error::other)? {
            return Ok(0);
        }
        Ok(self.blocks.take(into))
    }
}

impl Blocks {
    fn begin(&mut self) -> Result<Header, Error> {
        let mut magic = [0; MAGIC.len()];
        self.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(self.damaged("it does not begin as a snapshot does"));
        }
        self.next_block()?;
        if self.section != Section::Header {
            return Err(self.damaged("its header is missing"));
        }
        self.read = self.block.len();
        Header::decode(&self.block).map_err(|what| self.damaged(&what))
    }

    /// Whether there are bytes of `section` to read; goes on to the next block when one is used up.
    fn more_of(&mut self, section: Section) -> Result<bool, Error> {
        while self.read == self.block.len() && self.section <= section && self.section != Section::End {
            self.next_block()?;
        }
        Ok(self.section == section && self.read < self.block.len())
    }

    fn pass_over_rows(&mut self) -> Result<(), Error> {
        while self.more_of(Section::Rows)? {
            self.read = self.block.len();
        }
        Ok(())
    }

    /// Fills `into` from `section`, over as many blocks as it takes.
    fn fill(&mut self, section: Section, mut into: &mut [u8]) -> Result<(), Error> {
        while !into.is_empty() {
            if !self.more_of(section)? {
                return Err(self.damaged("it ends in the middle of a row"));
            }
            let taken = self.take(into);
            into = &mut into[taken..];
        }
        Ok(())
    }

    /// Takes what the block still has, as far as `into` holds it.
    fn take(&mut self, into: &mut [u8]) -> usize {
        let left = &self.block[self.read..];
        let taken = left.len().min(into.len());
        into[..taken].copy_from_slice(&left[..taken]);
        self.read += taken;
        taken
    }

    /// Reads the next block into `block`, checked.
    fn next_block(&mut self) -> Result<(), Error> {
        let before = self.sum.finalize();
        let mut front = [0; 9];
        self.read_exact(&mut front)?;
        let [l0, l1, l2, l3, s0, s1, s2, s3, section] = front;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > PAYLOAD_BYTES_MAX {
            return Err(self.damaged("a block is longer than blocks can be"));
        }
        let mut payload = vec![0; length];
        self.read_exact(&mut payload)?;
        let mut sum = crc32fast::Hasher::new();
        sum.update(&[section]);
        sum.update(&payload);
        if sum.finalize() != u32::from_le_bytes([s0, s1, s2, s3]) {
            return Err(self.damaged("the checksum of a block does not match"));
        }
        let section = Section::read(section).filter(|&section| section >= self.section);
        self.section = section.ok_or_else(|| self.damaged("a block is out of place"))?;
        self.read = 0;
        self.block = match self.section {
            Section::Header => payload,
            Section::Rows | Section::Guest => {
                let bytes = zstd::bulk::decompress(&payload, BLOCK_BYTES);
                bytes.map_err(|e| self.damaged(&format!("a block does not unpack: {e}")))?
            }
            Section::End => {
                self.check_end(before, &payload)?;
                Vec::new()
            }
        };
        Ok(())
    }

    fn check_end(&mut self, before: blake3::Hash, payload: &[u8]) -> Result<(), Error> {
        if payload != before.as_bytes() {
            return Err(self.damaged("the checksum of the whole does not match"));
        }
        match self.file.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.damaged("something follows its end")),
            Err(e) => Err(self.failed(&e)),
        }
    }

    fn read_exact(&mut self, into: &mut [u8]) -> Result<(), Error> {
        match self.file.read_exact(into) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(self.damaged("it is cut short")),
            Err(e) => return Err(self.failed(&e)),
        }
        self.sum.update(into);
        Ok(())
    }

    fn failed(&self, error: &io::Error) -> Error {
        Fault::new(format!("reading {} failed: {error}", self.path.display())).into()
    }

    fn damaged(&self, what: &str) -> Error {
        Error::Damaged(format!("the snapshot file {} is damaged: {what}. {REPAIR}", self.path.display()))
    }
}
