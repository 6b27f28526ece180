//! Arguments that stand for bytes: `TEXT`, `@FILE`, or `-` for standard input.

use std::io::Read;

use anyhow::Context;
use bytes::Bytes;

use super::Usage;

/// The bytes that `argument` stands for; with `hex`, what is read are hexadecimal digits.
pub fn read(argument: &str, hex: bool) -> anyhow::Result<Bytes> {
    let bytes = match (argument, argument.strip_prefix('@')) {
        ("-", _) => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
            bytes
        }
        (_, Some("")) => return Err(Usage("@ stands for a file: write its name behind it".into()).into()),
        (_, Some(path)) => std::fs::read(path).with_context(|| format!("cannot read {path}"))?,
        (text, None) => text.as_bytes().to_vec(),
    };
    if !hex {
        return Ok(bytes.into());
    }
    let digits: Vec<u8> = bytes.into_iter().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let decoded = hex::decode(&digits)
        .map_err(|e| Usage(format!("--hex: {e}; pairs of hexadecimal digits are expected")))?;
    Ok(decoded.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stands_for_itself() {
        assert_eq!(read("käse", false).unwrap(), "käse");
        assert_eq!(read("", false).unwrap(), "");
    }

    #[test]
    fn hexadecimal_digits_may_have_spaces() {
        assert_eq!(read("00 fF\n1a", true).unwrap(), [0, 255, 26][..]);
        for bad in ["0", "0g"] {
            assert!(read(bad, true).unwrap_err().downcast_ref::<Usage>().is_some(), "{bad}");
        }
    }

    #[test]
    fn a_file_is_read_and_a_missing_one_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [1, 2]).unwrap();
        let argument = format!("@{}", file.path().display());
        assert_eq!(read(&argument, false).unwrap(), [1, 2][..]);
        let error = read("@/nowhere/at/all", false).unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/at/all"));
    }
}
