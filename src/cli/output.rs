//! How data is shown: tables and lines for people, JSON for programs.
//!
//! Whatever a guest or another client wrote is shown so that it cannot move the cursor of a terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use bytes::Bytes;
use serde_json::{Value, json};

use super::Shown;
use crate::id::{Index, LogTime, Revision};
use crate::machine::outcome::{HostCode, Outcome};

/// Writes one line to standard output.
pub fn line(text: impl std::fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").map_err(unwritten)
}

/// Tells a person something, on standard error. If nobody reads there any more, nothing is lost by it: a node
/// must not end because its terminal did.
pub fn tell(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Says what could not be written; of the same kind, because a closed pipe is no failure.
fn unwritten(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))
}

/// Writes one JSON value to standard output, on one line.
pub fn json(value: &Value) -> io::Result<()> {
    line(value)
}

/// Writes rows in columns, under a heading.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(columns(heading, rows).as_bytes()).map_err(unwritten)
}

fn columns(heading: &[&str], rows: &[Vec<String>]) -> String {
    let heading: Vec<String> = heading.iter().map(ToString::to_string).collect();
    let lines = || std::iter::once(&heading).chain(rows);
    let width = |column: usize| lines().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let mut text = String::new();
    for row in lines() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let cells: Vec<String> = cells.collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Bytes as JSON: a string if they are text, else an object with their hexadecimal digits.
pub fn bytes_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": hex::encode(bytes) }),
    }
}

/// Bytes as one line of text: control characters and what is not text are escaped.
pub fn printable(bytes: &[u8]) -> String {
    let mut line = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => line.push_str("\\\\"),
                '\n' => line.push_str("\\n"),
                '\t' => line.push_str("\\t"),
                '\r' => line.push_str("\\r"),
                c if c.is_control() => write!(line, "\\u{{{:x}}}", u32::from(c)).unwrap_or_default(),
                c => line.push(c),
            }
        }
        for byte in chunk.invalid() {
            write!(line, "\\x{byte:02x}").unwrap_or_default();
        }
    }
    line
}

/// Bytes as they are, for files and pipes. On a terminal: text as text, all else escaped.
pub fn raw(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let text = std::str::from_utf8(bytes);
    let harmless = text.is_ok_and(|text| text.chars().all(|c| !c.is_control() || "\n\t".contains(c)));
    let written = if out.is_terminal() && !harmless {
        writeln!(out, "{}", printable(bytes))
    } else {
        let end = text.is_ok_and(|text| !text.ends_with('\n') && !text.is_empty());
        out.write_all(bytes).and_then(|()| out.write_all(if end { b"\n" } else { b"" }))
    };
    written.and_then(|()| out.flush()).map_err(unwritten)
}

/// Shows what became of a command or a query.
///
/// # Errors
/// A refusal, and a failure of the guest, are failures of the command.
pub fn outcome(
    outcome: &Outcome,
    (index, revision): (Index, Revision),
    as_json: bool,
    as_hex: bool,
) -> anyhow::Result<()> {
    if as_json {
        json(&outcome_json(outcome, index, revision, as_hex))?;
        return if matches!(outcome, Outcome::Ok(_)) { Ok(()) } else { Err(Shown.into()) };
    }
    let answer = answer(outcome)?;
    if as_hex {
        line(hex::encode(answer))?
    } else {
        raw(answer)?
    }
    Ok(())
}

/// The guest's answer.
///
/// # Errors
/// A sentence about the refusal or failure.
pub fn answer(outcome: &Outcome) -> anyhow::Result<&Bytes> {
    match outcome {
        Outcome::Ok(answer) => Ok(answer),
        Outcome::Refused(refusal) => {
            let message = printable(refusal.message.as_bytes());
            Err(anyhow::anyhow!("refused with code {}: {message}", refusal.code))
        }
        Outcome::Host(code) => Err(anyhow::anyhow!("{}; nothing was changed", host_code(*code).1)),
    }
}

fn outcome_json(outcome: &Outcome, index: Index, revision: Revision, as_hex: bool) -> Value {
    let mut value = json!({ "index": index.0, "revision": revision.0 });
    match outcome {
        Outcome::Ok(answer) if as_hex => value["ok"] = json!({ "hex": hex::encode(answer) }),
        Outcome::Ok(answer) => value["ok"] = bytes_json(answer),
        Outcome::Refused(refusal) => {
            value["refused"] = json!({ "code": refusal.code, "message": refusal.message });
        }
        Outcome::Host(code) => value["failed"] = json!(host_code(*code).0),
    }
    value
}

/// A host code's name, and what it means.
fn host_code(code: HostCode) -> (&'static str, &'static str) {
    match code {
        HostCode::Trapped => ("trapped", "the guest trapped (the node's log says where)"),
        HostCode::Exhausted => ("exhausted", "the guest used up its budget"),
        HostCode::NotCreated => ("not-created", "the machine was not created"),
        HostCode::UnknownLease => ("unknown-lease", "there is no such lease"),
        HostCode::Invalid => ("invalid", "the machine's state does not allow this"),
        HostCode::LeaseInUse => ("lease-in-use", "the lease id is in use, or was given before"),
        HostCode::TooManyLeases => ("too-many-leases", "the machine has as many leases as it may"),
        HostCode::UnknownSession => {
            ("unknown-session", "the session has ended; the command was not applied now")
        }
        HostCode::TooManySessions => ("too-many-sessions", "the machine has as many sessions as it may"),
        HostCode::NumberPassed => {
            ("number-passed", "the outcome of this number was acknowledged and is forgotten")
        }
        HostCode::NumberAhead => ("number-ahead", "the number is further ahead than the session's window"),
    }
}

/// A point in time, to the second: `2026-11-21T04:40:00Z`.
pub fn time(at: LogTime) -> String {
    let seconds = at.0 / 1_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The Gregorian date that is so many days after 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // Whole periods of 400 years first: they have the same number of days each.
    let (mut year, mut rest) = (1970 + days / 146_097 * 400, days % 146_097);
    loop {
        let in_year = if leap(year) { 366 } else { 365 };
        if rest < in_year {
            break;
        }
        rest -= in_year;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for in_month in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < in_month {
            break;
        }
        rest -= in_month;
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::outcome::Refusal;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["käse".into(), "22".into()]];
        assert_eq!(columns(&["NAME", "N"], &rows), "NAME  N\na     1\nkäse  22\n");
    }

    #[test]
    fn nothing_printable_moves_the_cursor() {
        assert_eq!(printable(b"a\x1b[2Jb\n\\\xff"), "a\\u{1b}[2Jb\\n\\\\\\xff");
        assert_eq!(printable("käse".as_bytes()), "käse");
    }

    #[test]
    fn outcomes_as_json() {
        let at = |outcome: Outcome, hex| outcome_json(&outcome, Index(3), Revision(2), hex);
        let ok = Outcome::Ok(Bytes::from_static(b"x"));
        assert_eq!(at(ok.clone(), false), json!({"index": 3, "revision": 2, "ok": "x"}));
        assert_eq!(at(ok, true), json!({"index": 3, "revision": 2, "ok": {"hex": "78"}}));
        let odd = Outcome::Ok(Bytes::from_static(b"\xff"));
        assert_eq!(at(odd, false)["ok"], json!({"hex": "ff"}));
        let refused = Outcome::Refused(Refusal { code: 4, message: "no".into() });
        assert_eq!(at(refused, false)["refused"], json!({"code": 4, "message": "no"}));
        assert_eq!(at(Outcome::Host(HostCode::Trapped), false)["failed"], json!("trapped"));
    }

    #[test]
    fn times_are_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_795_236_000, "2026-11-21T04:40:00Z"),
        ] {
            assert_eq!(time(LogTime(seconds * 1_000 + 999)), text);
        }
    }
}
