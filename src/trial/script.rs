//! The lines of a script for a machine: what is done to it, and what it is to say. One form, whether the
//! machine is in memory or on a cluster.
//!
//! | line | meaning |
//! | --- | --- |
//! | `WORD REST` | a command, as `apply 5` or `advance 10s`; which there are is its reader's |
//! | `! WORD REST` | one that is to fail |
//! | `!3 WORD REST` | one that the machine is to refuse with code 3 |
//! | `= TEXT` | what the command before it said; one such line for each line that it said, or none at all |
//! | empty, `# ...` | nothing |

/// A line, understood as far as all readers understand it alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// Empty, or a comment.
    Nothing,
    /// The next line of what the last command is to have said.
    Says(&'a str),
    /// A command.
    Command {
        /// How it is to end.
        ending: Ending,
        /// Which command it is.
        word: &'a str,
        /// The rest of the line.
        rest: &'a str,
    },
}

/// How a command is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is done.
    Done,
    /// It fails, for whatever reason.
    Fails,
    /// The machine refuses it with this code.
    Refused(u32),
}

impl Line<'_> {
    /// Reads a line.
    pub fn read(line: &str) -> Line<'_> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Line::Nothing;
        }
        if let Some(text) = line.strip_prefix('=') {
            return Line::Says(text.strip_prefix(' ').unwrap_or(text));
        }
        let (ending, command) = Ending::read(line);
        let (word, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        Line::Command { ending, word, rest: rest.trim_start() }
    }
}

impl Ending {
    fn read(line: &str) -> (Ending, &str) {
        let Some(failing) = line.strip_prefix('!').map(str::trim_start) else { return (Ending::Done, line) };
        let (first, rest) = failing.split_once(char::is_whitespace).unwrap_or((failing, ""));
        match first.parse() {
            Ok(code) => (Ending::Refused(code), rest.trim_start()),
            Err(_) => (Ending::Fails, failing),
        }
    }
}

/// What a command said, and how much of it was expected so far.
#[derive(Clone, Debug, Default)]
pub struct Said {
    lines: Vec<String>,
    expected: usize,
}

impl Said {
    /// The command says a line. Columns are parted by a space here, however they are shown, and spaces at the
    /// end do not count.
    pub fn say(&mut self, line: &str) {
        self.lines.push(line.replace('\t', " ").trim_end().to_owned());
    }

    /// Compares the next line that it said.
    ///
    /// # Errors
    /// A sentence with both sides.
    pub fn expect(&mut self, text: &str) -> Result<(), String> {
        let at = self.expected;
        self.expected += 1;
        match self.lines.get(at) {
            Some(line) if line == text => Ok(()),
            Some(line) => Err(format!("{text:?} is expected, and it said {line:?}")),
            None => Err(format!("{text:?} is expected, and it said nothing more")),
        }
    }

    /// The next command comes, or the end: all is forgotten.
    ///
    /// # Errors
    /// If some of what the last one said was expected, and not the rest.
    pub fn end(&mut self) -> Result<(), String> {
        let Said { lines, expected } = std::mem::take(self);
        match lines.get(expected) {
            Some(line) if expected > 0 => Err(format!("the command before it said more than that: {line:?}")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command<'a>(ending: Ending, word: &'a str, rest: &'a str) -> Line<'a> {
        Line::Command { ending, word, rest }
    }

    #[test]
    fn lines_are_commands_expectations_or_nothing() {
        for (line, expected) in [
            ("  ", Line::Nothing),
            ("# apply 5", Line::Nothing),
            (" apply  a = 1 ", command(Ending::Done, "apply", "a = 1")),
            ("leases", command(Ending::Done, "leases", "")),
            ("!apply 3 4", command(Ending::Fails, "apply", "3 4")),
            ("! apply", command(Ending::Fails, "apply", "")),
            ("!3 apply x", command(Ending::Refused(3), "apply", "x")),
            ("! 12  query", command(Ending::Refused(12), "query", "")),
            ("= a = 1", Line::Says("a = 1")),
            ("=  a", Line::Says(" a")),
            ("=", Line::Says("")),
        ] {
            assert_eq!(Line::read(line), expected, "{line:?}");
        }
    }

    #[test]
    fn what_is_said_is_compared_line_by_line() {
        let mut said = Said::default();
        said.say("2\tput\ta");
        said.say("");
        said.expect("2 put a").unwrap();
        said.expect("").unwrap();
        assert!(said.expect("more").unwrap_err().contains("nothing more"));
        said.end().unwrap();
        said.say("a");
        said.end().expect("nobody asked");
        said.say("a");
        said.say("b");
        let why = said.expect("b").unwrap_err();
        assert!(why.contains("\"b\"") && why.contains("\"a\""), "{why}");
        assert!(said.end().unwrap_err().contains("\"b\""));
        assert!(said.expect("a").is_err(), "it is forgotten");
    }
}
