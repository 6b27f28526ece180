//! Writing a snapshot: bytes of one section after another, cut into blocks.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{BLOCK_BYTES, COMPRESSION_LEVEL, Header, MAGIC, ROW_PART_BYTES_MAX, Section};
use crate::error::Fault;
use crate::machine::view::Table;
use crate::storage::file::NewFile;

/// A snapshot being written. Dropped before it is finished, it leaves nothing.
pub struct SnapshotWriter {
    name: PathBuf,
    blocks: Arc<Mutex<Option<Blocks>>>,
}

/// Takes what a resident guest writes of its state. Must not be used after the snapshot is finished.
pub struct GuestSink {
    blocks: Arc<Mutex<Option<Blocks>>>,
}

struct Blocks {
    file: NewFile,
    /// Of all bytes of the file so far.
    sum: blake3::Hasher,
    section: Section,
    gathered: Vec<u8>,
}

impl SnapshotWriter {
    pub(super) fn create(directory: &Path, name: PathBuf, header: &Header) -> Result<SnapshotWriter, Fault> {
        let label = format!("snapshot-{}-{}", header.group, header.head.index);
        let begun = NewFile::create(directory, &label).and_then(|file| Blocks::begin(file, header));
        let blocks = begun.map_err(|e| write_fault(&name, &e))?;
        Ok(SnapshotWriter { name, blocks: Arc::new(Mutex::new(Some(blocks))) })
    }

    /// Adds a row. Rows come in the order of the tables, and of each table's keys, and before the guest's
    /// bytes.
    pub fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        if key.len().max(value.len()) > ROW_PART_BYTES_MAX {
            return Err(Fault::new(format!(
                "a row of {table:?} has a key of {} and a value of {} bytes; {ROW_PART_BYTES_MAX} is the \
                 most a snapshot takes",
                key.len(),
                value.len()
            )));
        }
        let mut blocks = self.blocks.lock();
        let blocks = blocks.as_mut().ok_or_else(|| write_fault(&self.name, &failed_before()))?;
        let mut front = [0; 9];
        front[0] = table as u8;
        front[1..5].copy_from_slice(&(key.len() as u32).to_le_bytes());
        front[5..].copy_from_slice(&(value.len() as u32).to_le_bytes());
        let added = [&front, key, value].into_iter().try_for_each(|part| blocks.add(Section::Rows, part));
        added.map_err(|e| write_fault(&self.name, &e))
    }

    /// Where a resident guest writes.
    pub fn guest(&self) -> GuestSink {
        GuestSink { blocks: self.blocks.clone() }
    }

    /// Makes the snapshot durable under its name.
    pub fn finish(self) -> Result<(), Fault> {
        let blocks = self.blocks.lock().take();
        let kept = blocks.ok_or_else(failed_before).and_then(|blocks| blocks.end()?.keep(&self.name));
        kept.map_err(|e| write_fault(&self.name, &e))
    }
}

impl Write for GuestSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut blocks = self.blocks.lock();
        let written = blocks.as_mut().ok_or_else(failed_before)?.add(Section::Guest, bytes);
        if written.is_err() {
            // What follows a failed write would be a snapshot with a hole.
            *blocks = None;
        }
        written.map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // What is not synced yet is when the snapshot is finished.
        Ok(())
    }
}

impl Blocks {
    fn begin(file: NewFile, header: &Header) -> io::Result<Blocks> {
        let mut blocks =
            Blocks { file, sum: blake3::Hasher::new(), section: Section::Header, gathered: Vec::new() };
        blocks.append(&MAGIC)?;
        blocks.append_block(Section::Header, &header.encode())?;
        Ok(blocks)
    }

    fn add(&mut self, section: Section, mut bytes: &[u8]) -> io::Result<()> {
        if section < self.section {
            return Err(io::Error::other("rows come before the guest's bytes"));
        }
        if section > self.section {
            self.close_block()?;
            self.section = section;
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.gathered.len()));
            self.gathered.extend_from_slice(now);
            if self.gathered.len() == BLOCK_BYTES {
                self.close_block()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn close_block(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let payload = zstd::bulk::compress(&self.gathered, COMPRESSION_LEVEL)?;
        self.gathered.clear();
        self.append_block(self.section, &payload)
    }

    fn end(mut self) -> io::Result<NewFile> {
        self.close_block()?;
        let sum = self.sum.finalize();
        self.append_block(Section::End, sum.as_bytes())?;
        Ok(self.file)
    }

    fn append_block(&mut self, section: Section, payload: &[u8]) -> io::Result<()> {
        let mut sum = crc32fast::Hasher::new();
        sum.update(&[section as u8]);
        sum.update(payload);
        let mut front = [0; 9];
        front[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        front[4..8].copy_from_slice(&sum.finalize().to_le_bytes());
        front[8] = section as u8;
        self.append(&front)?;
        self.append(payload)?;
        match self.file.due_for_sync()? {
            Some(file) => file.sync_data(),
            None => Ok(()),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.file.write_all(bytes)
    }
}

fn failed_before() -> io::Error {
    io::Error::other("it failed before, or is finished")
}

fn write_fault(name: &Path, error: &io::Error) -> Fault {
    Fault::new(format!("writing the snapshot {} failed: {error}", name.display()))
}
