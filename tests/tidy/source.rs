//! One file of Rust as the checks see it: its lines, its tokens, its paths, and which of its lines are tests.
//!
//! A small lexer, not a parser: it tells code from comments and literals, and that is all the checks need. It
//! must never fail on a file that compiles.

/// A file, taken apart.
pub struct Source {
    /// Its path from the project's root, with `/`.
    pub path: String,
    /// Its lines as they are.
    pub lines: Vec<String>,
    /// The text of the comments of each line.
    comments: Vec<String>,
    /// Whether each line has code.
    has_code: Vec<bool>,
    /// Everything else, in order.
    pub tokens: Vec<Token>,
    /// Whether the whole file is tests.
    pub is_test: bool,
    /// Lines of items under `#[cfg(test)]`, from 1, both ends included.
    test_spans: Vec<(usize, usize)>,
}

/// An identifier or number, `::`, a literal, or one character of punctuation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// From 1.
    pub line: usize,
    /// As written; for a string literal a single `"`.
    pub text: String,
    /// What a string literal holds, escapes as written.
    pub literal: Option<String>,
}

/// A path as written: `crate::id::Index` is `["crate", "id", "Index"]`. Use trees are expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// From 1.
    pub line: usize,
    /// At least two parts.
    pub parts: Vec<String>,
}

impl Path {
    /// The parts as text, for comparing.
    pub fn as_strs(&self) -> Vec<&str> {
        self.parts.iter().map(String::as_str).collect()
    }
}

impl Source {
    /// Takes `text` apart.
    pub fn read(path: &str, text: &str) -> Source {
        let line_count = text.lines().count();
        let mut lexer = Lexer {
            chars: text.chars().collect(),
            at: 0,
            line: 1,
            comments: vec![String::new(); line_count + 1],
            tokens: Vec::new(),
        };
        lexer.run();
        let mut has_code = vec![false; line_count + 1];
        for token in &lexer.tokens {
            has_code[token.line - 1] = true;
        }
        let mut source = Source {
            path: path.to_owned(),
            lines: text.lines().map(str::to_owned).collect(),
            comments: lexer.comments,
            has_code,
            is_test: is_test_path(path),
            tokens: lexer.tokens,
            test_spans: Vec::new(),
        };
        source.test_spans = source.find_test_spans();
        source
    }

    /// Whether the line belongs to tests.
    pub fn in_tests(&self, line: usize) -> bool {
        self.is_test || self.test_spans.iter().any(|&(from, to)| (from..=to).contains(&line))
    }

    /// How many lines the file has besides its tests.
    pub fn lines_without_tests(&self) -> usize {
        (1..=self.lines.len()).filter(|&line| !self.in_tests(line)).count()
    }

    /// The comments that go with the code at `line`: on it, within its statement, and right above that.
    pub fn comments_at(&self, line: usize) -> String {
        let mut first = line;
        while first > 1 && self.has_code[first - 2] && !self.ends_statement(first - 1) {
            first -= 1;
        }
        let mut text = String::new();
        for line in (1..first).rev() {
            let is_attribute = self.lines[line - 1].trim_start().starts_with("#[");
            if self.comments[line - 1].is_empty() && !is_attribute {
                break;
            }
            if self.has_code[line - 1] && !is_attribute {
                break;
            }
            text.insert_str(0, &self.comments[line - 1]);
        }
        for line in first..=line {
            text.push_str(&self.comments[line - 1]);
        }
        text
    }

    fn ends_statement(&self, line: usize) -> bool {
        let last = self.tokens.iter().rev().find(|token| token.line == line);
        last.is_none_or(|token| [";", "{", "}", "]", ","].contains(&token.text.as_str()))
    }

    /// The index of the token that closes the bracket at `open`.
    pub fn closing(&self, open: usize) -> usize {
        let mut depth = 0;
        for (at, token) in self.tokens.iter().enumerate().skip(open) {
            match token.text.as_str() {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return at;
            }
        }
        self.tokens.len() - 1
    }

    /// Whether the tokens from `at` on are `texts`.
    pub fn starts_with(&self, at: usize, texts: &[&str]) -> bool {
        texts.iter().enumerate().all(|(n, text)| self.tokens.get(at + n).is_some_and(|t| t.text == *text))
    }

    /// The index of the `{` that opens the body of the item whose keyword is at `at`, unless it has none.
    pub fn body_of(&self, at: usize) -> Option<usize> {
        let mut next = at;
        while let Some(token) = self.tokens.get(next) {
            match token.text.as_str() {
                "(" | "[" => next = self.closing(next),
                "{" => return Some(next),
                ";" => return None,
                _ => {}
            }
            next += 1;
        }
        None
    }

    fn find_test_spans(&self) -> Vec<(usize, usize)> {
        let mut spans = Vec::new();
        for at in 0..self.tokens.len() {
            if !self.starts_with(at, &["#", "[", "cfg", "(", "test", ")", "]"]) {
                continue;
            }
            let mut item = at + 7;
            while self.starts_with(item, &["#", "["]) {
                item = self.closing(item + 1) + 1;
            }
            let end = match self.body_of(item) {
                Some(open) => self.tokens[self.closing(open)].line,
                None => self.tokens.get(item).map_or(self.lines.len(), |token| token.line),
            };
            spans.push((self.tokens[at].line, end));
        }
        spans
    }

    /// The modules that this file declares under `#[cfg(test)]` and keeps in files of their own.
    pub fn test_modules(&self) -> Vec<String> {
        let declares = |at: usize| self.starts_with(at, &["mod"]) && self.starts_with(at + 2, &[";"]);
        (0..self.tokens.len())
            .filter(|&at| declares(at) && self.in_tests(self.tokens[at].line))
            .map(|at| self.tokens[at + 1].text.clone())
            .collect()
    }

    /// All paths of two parts or more, with those of `use` trees expanded.
    pub fn paths(&self) -> Vec<Path> {
        let mut paths = Vec::new();
        let mut at = 0;
        while at < self.tokens.len() {
            // `use<>` says what a type captures: no path.
            if self.tokens[at].text == "use" && !self.starts_with(at + 1, &["<"]) {
                at = self.use_tree(at + 1, &[], &mut paths);
            } else if is_name(&self.tokens[at].text) && !self.follows_separator(at) {
                let (end, parts) = self.chain(at);
                if parts.len() > 1 {
                    paths.push(Path { line: self.tokens[at].line, parts });
                }
                at = end;
            } else {
                at += 1;
            }
        }
        paths
    }

    /// Whether the name at `at` goes on from something that is not a name: `<T as Trait>::Name`.
    fn follows_separator(&self, at: usize) -> bool {
        at >= 2 && self.tokens[at - 1].text == "::" && self.tokens[at - 2].text == ">"
    }

    /// The names joined by `::` from `at` on, and the index after them.
    fn chain(&self, at: usize) -> (usize, Vec<String>) {
        let mut parts = vec![self.tokens[at].text.clone()];
        let mut at = at + 1;
        while self.starts_with(at, &["::"]) && self.tokens.get(at + 1).is_some_and(|t| is_name(&t.text)) {
            parts.push(self.tokens[at + 1].text.clone());
            at += 2;
        }
        (at, parts)
    }

    /// One branch of a use tree; the index after it.
    fn use_tree(&self, at: usize, prefix: &[String], paths: &mut Vec<Path>) -> usize {
        let mut at = if self.starts_with(at, &["::"]) { at + 1 } else { at };
        let Some(first) = self.tokens.get(at) else { return at };
        let line = first.line;
        let mut parts = prefix.to_vec();
        if is_name(&first.text) {
            let (end, own) = self.chain(at);
            parts.extend(own);
            at = if self.starts_with(end, &["::"]) { end + 1 } else { end };
        }
        match self.tokens.get(at).map(|token| token.text.as_str()) {
            Some("{") => {
                let close = self.closing(at);
                at += 1;
                while at < close {
                    at = self.use_tree(at, &parts, paths) + usize::from(self.starts_with(at, &[","]));
                    at += usize::from(self.starts_with(at, &[","]));
                }
                return close + 1;
            }
            Some("*") => at += 1,
            _ => {}
        }
        if self.starts_with(at, &["as"]) {
            at += 2;
        }
        paths.push(Path { line, parts });
        at
    }
}

/// Whether a file with this path is tests from its first line to its last.
fn is_test_path(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "benches"))
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_') && text != "use" && text != "as"
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    line: usize,
    comments: Vec<String>,
    tokens: Vec<Token>,
}

impl Lexer {
    fn run(&mut self) {
        while let Some(c) = self.peek(0) {
            match c {
                '/' if self.peek(1) == Some('/') => self.line_comment(),
                '/' if self.peek(1) == Some('*') => self.block_comment(),
                '"' => self.string(0, true),
                '\'' => self.quote(),
                ':' if self.peek(1) == Some(':') => {
                    self.token("::".to_owned(), None);
                    self.skip(2);
                }
                c if c.is_alphanumeric() || c == '_' => self.word(),
                c if c.is_whitespace() => self.skip(1),
                c => {
                    self.token(c.to_string(), None);
                    self.skip(1);
                }
            }
        }
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            if self.peek(0) == Some('\n') {
                self.line += 1;
            }
            self.at += 1;
        }
    }

    fn token(&mut self, text: String, literal: Option<String>) {
        self.tokens.push(Token { line: self.line, text, literal });
    }

    fn comment(&mut self) {
        let c = self.chars[self.at];
        self.comments[self.line - 1].push(c);
        self.skip(1);
    }

    fn line_comment(&mut self) {
        while self.peek(0).is_some_and(|c| c != '\n') {
            self.comment();
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        while self.peek(0).is_some() {
            let step = match (self.peek(0), self.peek(1)) {
                (Some('/'), Some('*')) => 1,
                (Some('*'), Some('/')) => -1,
                _ => 0,
            };
            depth += step;
            self.comment();
            if step != 0 {
                self.comment();
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// An identifier, a number, or the prefix of a literal.
    fn word(&mut self) {
        let mut end = 0;
        while self.peek(end).is_some_and(|c| c.is_alphanumeric() || c == '_') {
            end += 1;
        }
        let word: String = self.chars[self.at..self.at + end].iter().collect();
        let hashes = (0..).take_while(|n| self.peek(end + n) == Some('#')).count();
        let quoted = self.peek(end + hashes) == Some('"');
        match word.as_str() {
            "r" | "br" | "cr" if quoted => {
                self.skip(end + hashes);
                self.string(hashes, false);
            }
            "b" | "c" if quoted && hashes == 0 => {
                self.skip(end);
                self.string(0, true);
            }
            "b" if self.peek(end) == Some('\'') => {
                self.skip(end);
                self.quote();
            }
            _ => {
                self.token(word, None);
                self.skip(end);
            }
        }
    }

    /// A string from its opening quote on; a raw one ends at a quote with as many hashes as it began with.
    fn string(&mut self, hashes: usize, escapes: bool) {
        let line = self.line;
        self.skip(1);
        let mut text = String::new();
        while let Some(c) = self.peek(0) {
            if c == '\\' && escapes {
                text.extend(self.chars.get(self.at..self.at + 2).unwrap_or_default());
                self.skip(2);
            } else if c == '"' && (1..=hashes).all(|n| self.peek(n) == Some('#')) {
                self.skip(1 + hashes);
                break;
            } else {
                text.push(c);
                self.skip(1);
            }
        }
        self.tokens.push(Token { line, text: "\"".to_owned(), literal: Some(text) });
    }

    /// A character literal or a lifetime.
    fn quote(&mut self) {
        let is_char = self.peek(1) == Some('\\') || self.peek(2) == Some('\'');
        self.token("'".to_owned(), None);
        self.skip(1);
        if !is_char {
            return;
        }
        self.skip(if self.peek(0) == Some('\\') { 2 } else { 1 });
        while self.peek(0).is_some_and(|c| c != '\'') {
            self.skip(1);
        }
        self.skip(1);
    }
}
