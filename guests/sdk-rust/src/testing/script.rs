//! Scripts of commands with what the machine is to say: the form that `statehouse module run` reads, so that
//! one file tells a machine's behaviour in its own tests, in memory and on a cluster.

use super::{EventKind, TestHost};
use crate::Answer;

impl TestHost {
    /// Plays a script: `apply TEXT`, `query TEXT` (either with `--hex`), `advance TIME`, `grant TIME`,
    /// `revoke ID`, `events [REVISION]`. `!` before a line says that it is to be refused, `!3` with which
    /// code, and `= TEXT` lines behind it what it is to say.
    ///
    /// # Panics
    /// At the first line that does not come out so, with its number.
    pub fn play(&mut self, script: &str) {
        let mut said: Option<Vec<String>> = None;
        for (number, line) in script.lines().map(str::trim).enumerate() {
            let place = format!("line {}, {line:?}", number + 1);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some(text) = line.strip_prefix('=') else {
                said = Some(self.line(line).unwrap_or_else(|why| panic!("{place}: {why}")));
                continue;
            };
            let lines = said.as_mut().unwrap_or_else(|| panic!("{place}: no line comes before it"));
            let is = if lines.is_empty() { "nothing more".to_owned() } else { lines.remove(0) };
            assert!(is == text.trim_start(), "{place}: it said {is:?}");
        }
    }

    /// What a line says.
    fn line(&mut self, line: &str) -> Result<Vec<String>, String> {
        let (refused, line) = match line.strip_prefix('!').map(str::trim_start) {
            None => (None, line),
            Some(rest) => match rest.split_once(' ').map(|(code, rest)| (code.parse(), rest)) {
                Some((Ok(code), rest)) => (Some(Some(code)), rest.trim_start()),
                _ => (Some(None), rest),
            },
        };
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim_start();
        let (bytes, hex) = bytes(rest)?;
        let answer = match word {
            "apply" => self.apply(&bytes),
            "query" => self.query(&bytes),
            _ => return self.deed(word, rest),
        };
        expected(answer, refused).map(|answer| match answer {
            Ok(answer) if hex => vec![answer.iter().map(|byte| format!("{byte:02x}")).collect()],
            Ok(answer) => vec![printable(&answer)],
            Err(told) => vec![told],
        })
    }

    fn deed(&mut self, word: &str, rest: &str) -> Result<Vec<String>, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text:?} is no number"));
        match word {
            "advance" => drop(self.advance(milliseconds(rest)?)),
            "grant" => return Ok(vec![self.grant(milliseconds(rest)?).to_string()]),
            "revoke" => {
                self.revoke(number(rest)?).ok_or("there is no such lease")?;
            }
            "events" => {
                let from = if rest.is_empty() { 1 } else { number(rest)? };
                let events = self.events().into_iter().filter(|event| event.revision >= from);
                return Ok(events.map(|event| shown(&event)).collect());
            }
            _ => return Err(format!("{word:?} is not understood by a host for tests")),
        }
        Ok(Vec::new())
    }
}

/// The answer, or what a refusal says, if that is what is to come.
fn expected(answer: Answer, refused: Option<Option<u32>>) -> Result<Result<Vec<u8>, String>, String> {
    match (answer, refused) {
        (Ok(answer), None) => Ok(Ok(answer)),
        (Ok(answer), Some(_)) => Err(format!("it was to be refused, and answers {:?}", printable(&answer))),
        (Err(refusal), Some(code)) if code.is_none_or(|code| code == refusal.code) => {
            let message = printable(refusal.message.as_bytes());
            Ok(Err(format!("refused with code {}: {message}", refusal.code)))
        }
        (Err(refusal), _) => Err(refusal.to_string()),
    }
}

/// Text, or the bytes of hexadecimal digits, and which of them it is.
fn bytes(rest: &str) -> Result<(Vec<u8>, bool), String> {
    let Some(digits) = rest.strip_prefix("--hex ") else { return Ok((rest.as_bytes().to_vec(), false)) };
    let digits: String = digits.split_whitespace().collect();
    let pairs = digits.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2);
        pair.and_then(|pair| u8::from_str_radix(pair, 16).ok())
    });
    let bytes: Option<Vec<u8>> = pairs.collect();
    Ok((bytes.ok_or("pairs of hexadecimal digits are expected")?, true))
}

fn milliseconds(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let unit = units.iter().find(|(name, _)| *name == &text[digits..]);
    let number = text[..digits].parse::<u64>().ok();
    let ms = unit.zip(number).and_then(|((_, ms), number)| number.checked_mul(*ms));
    ms.ok_or_else(|| format!("{text:?} is not a time: write it as 500ms, 10s, 5m, 2h or 30d"))
}

/// As `module run` says it: the columns are parted by a space.
fn shown(event: &super::Event) -> String {
    let kind = if event.kind == EventKind::Put { "put" } else { "delete" };
    let value = if event.kind == EventKind::Put { printable(&event.value) } else { String::new() };
    format!("{} {kind} {} {value}", event.revision, printable(&event.key)).trim_end().to_owned()
}

/// Bytes as one line of text: control characters and what is not text are escaped.
fn printable(bytes: &[u8]) -> String {
    let mut line = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => line.push_str("\\\\"),
                '\n' => line.push_str("\\n"),
                '\t' => line.push_str("\\t"),
                '\r' => line.push_str("\\r"),
                c if c.is_control() => line.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
                c => line.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| line.push_str(&format!("\\x{byte:02x}")));
    }
    line
}
