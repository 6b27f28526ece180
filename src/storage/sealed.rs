//! Small files that say something about the whole data directory: one line, and its checksum.
//!
//! Promises: what is written is durable and takes the place of what was there as a whole; what does not read
//! as it was written is refused.

use std::io::{self, Write};
use std::path::Path;

use super::directory::{DirectoryError, io_error};
use super::file::NewFile;

const SUM_PREFIX: &str = "blake3 ";

/// The line in a file of the directory; none without the file. `doing` is what an error says that was tried.
///
/// # Errors
/// `Damaged` if it does not read as it was written.
pub(super) fn read(
    root: &Path,
    file: &'static str,
    doing: &'static str,
) -> Result<Option<String>, DirectoryError> {
    let bytes = match std::fs::read(root.join(file)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(root, doing)(error)),
    };
    let text = String::from_utf8(bytes).map_err(|_| damaged(root, file, "it is not text"))?;
    let (line, sum) = text.split_once('\n').ok_or_else(|| damaged(root, file, "it is cut short"))?;
    if sum != checksum(line) {
        return Err(damaged(root, file, "its checksum does not match"));
    }
    Ok(Some(line.to_owned()))
}

/// Writes a line to a file of the directory.
pub(super) fn write(root: &Path, file: &str, line: &str) -> io::Result<()> {
    let mut new = NewFile::create(root, file)?;
    write!(new, "{line}\n{}", checksum(line))?;
    new.keep(&root.join(file))
}

/// Says of a file what is wrong with it.
pub(super) fn damaged(root: &Path, file: &'static str, what: &str) -> DirectoryError {
    DirectoryError::Damaged { file, path: root.display().to_string(), what: what.to_owned() }
}

fn checksum(line: &str) -> String {
    format!("{SUM_PREFIX}{}\n", blake3::hash(line.as_bytes()).to_hex())
}
