//! What is done to a machine that is checked: commands, leases of clients, time that passes. One a line.
//!
//! A line is the text of a command. One that is a JSON object with one of these keys is what it says:
//! `{"text": "..."}`, `{"hex": "00ff"}`: a command; `{"advance_ms": 10000}`: time passes;
//! `{"grant_ms": 10000, "id": 7}`: a client is granted a lease; `{"revoke": 7}`: it ends it; `{"query":
//! "..."}`, `{"query_hex": "00ff"}`: a client asks. Empty lines, and lines that begin with `#`, are passed
//! over.

use bytes::Bytes;
use serde::Deserialize;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// A command.
    Command(Bytes),
    /// Time passes, in milliseconds.
    Advance(u64),
    /// A client is granted a lease.
    Grant {
        /// How long it lives.
        ttl_ms: u64,
        /// Its id; 0: any.
        id: u64,
    },
    /// A client ends a lease.
    Revoke(u64),
    /// A client asks.
    Query(Bytes),
}

/// The forms of a line that is an object. Exactly one of them; others are commands that happen to be JSON.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Text(Text),
    Hex(Hex),
    Advance(Advance),
    Grant(Grant),
    Revoke(Revoke),
    Query(Query),
    QueryHex(QueryHex),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    query: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueryHex {
    query_hex: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hex {
    hex: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    advance_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grant {
    grant_ms: u64,
    #[serde(default)]
    id: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoke {
    revoke: u64,
}

impl Deed {
    /// Reads the lines of a file.
    ///
    /// # Errors
    /// A sentence that names the line.
    pub fn read_all(text: &[u8]) -> Result<Vec<Deed>, String> {
        let mut deeds = Vec::new();
        for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            deeds.push(Deed::read(line).map_err(|why| format!("line {}: {why}", number + 1))?);
        }
        Ok(deeds)
    }

    fn read(line: &[u8]) -> Result<Deed, String> {
        let object = if line.starts_with(b"{") { serde_json::from_slice(line).ok() } else { None };
        Ok(match object {
            None => Deed::Command(Bytes::copy_from_slice(line)),
            Some(Line::Text(Text { text })) => Deed::Command(text.into()),
            Some(Line::Hex(Hex { hex })) => Deed::Command(digits(&hex)?),
            Some(Line::Query(Query { query })) => Deed::Query(query.into()),
            Some(Line::QueryHex(QueryHex { query_hex })) => Deed::Query(digits(&query_hex)?),
            Some(Line::Advance(Advance { advance_ms })) => Deed::Advance(advance_ms),
            Some(Line::Grant(Grant { grant_ms, id })) => Deed::Grant { ttl_ms: grant_ms, id },
            Some(Line::Revoke(Revoke { revoke })) => Deed::Revoke(revoke),
        })
    }
}

fn digits(hex: &str) -> Result<Bytes, String> {
    let bytes = hex::decode(hex).map_err(|e| format!("{hex:?} are no hexadecimal digits: {e}"))?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_command_unless_it_is_one_of_our_objects() {
        let text = b"a=1\n\n# not this\n{\"text\": \"#this\\n\"}\n{\"hex\": \"00fF\"}\r\n{\"add\": \
            1}\n{\"advance_ms\": 5}\n{\"grant_ms\": 7, \"id\": 3}\n{\"grant_ms\": 7}\n{\"revoke\": \
            3}\n{\"text\": 1}\n{\"query\": \"a\"}\n{\"query_hex\": \"00\"}";
        let command = |bytes: &'static [u8]| Deed::Command(Bytes::from_static(bytes));
        assert_eq!(
            Deed::read_all(text).unwrap(),
            [
                command(b"a=1"),
                command(b"#this\n"),
                command(b"\x00\xff"),
                command(b"{\"add\": 1}"),
                Deed::Advance(5),
                Deed::Grant { ttl_ms: 7, id: 3 },
                Deed::Grant { ttl_ms: 7, id: 0 },
                Deed::Revoke(3),
                command(b"{\"text\": 1}"),
                Deed::Query("a".into()),
                Deed::Query("\0".into()),
            ]
        );
        assert!(Deed::read_all(b"a\n{\"hex\": \"0\"}").unwrap_err().contains("line 2"));
        assert!(Deed::read_all(b"{\"query_hex\": \"x\"}").unwrap_err().contains("line 1"));
    }
}
