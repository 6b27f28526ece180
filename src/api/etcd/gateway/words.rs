//! What is wrong with the JSON of a request, in the words of etcd's gateway.
//!
//! Looked for only when a request could not be read, so it owes nothing to speed. Reads the text once more,
//! first as JSON and then as a message, to the first thing that etcd would stumble over. It promises etcd's
//! text for the usual mistakes, and nothing at all where it finds none: then the caller has its own words.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

/// How deep values may lie in each other before nothing more is said of them.
const DEPTH_MAX: usize = 200;
const CUT_OFF: &str = "unexpected EOF";

/// Why the text does not begin with JSON.
pub fn syntax(text: &[u8]) -> Option<String> {
    Scan { text, at: 0 }.value(0).err()
}

/// Why the JSON value that the text begins with is not such a message.
pub fn misfit(text: &[u8], message: &MessageDescriptor) -> Option<String> {
    let start = text.iter().position(|byte| !byte.is_ascii_whitespace())?;
    let scan = Scan { text: &text[start..], at: 0 };
    Fit { scan }.message(message, 0).err().flatten().map(|why| format!("proto: {why}"))
}

/// Reads JSON, in the order in which Go's library does.
#[derive(Clone, Copy)]
struct Scan<'t> {
    text: &'t [u8],
    at: usize,
}

impl<'t> Scan<'t> {
    /// The next byte that is no space; it is not taken.
    fn peek(&mut self) -> Result<u8, String> {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.text.get(self.at) {
            self.at += 1;
        }
        self.text.get(self.at).copied().ok_or_else(|| CUT_OFF.to_owned())
    }

    /// Takes the next byte, if it is one of these.
    fn take(&mut self, fits: impl Fn(u8) -> bool, context: &str) -> Result<u8, String> {
        match self.text.get(self.at).copied() {
            None => Err(CUT_OFF.to_owned()),
            Some(byte) if fits(byte) => {
                self.at += 1;
                Ok(byte)
            }
            Some(byte) => Err(format!("invalid character {} {context}", quoted(byte))),
        }
    }

    /// Takes a value; answers its text.
    fn value(&mut self, depth: usize) -> Result<&'t [u8], String> {
        let first = self.peek()?;
        let start = self.at;
        match first {
            _ if depth > DEPTH_MAX => return Err("exceeded max depth".to_owned()),
            b'{' => self.object(depth)?,
            b'[' => self.array(depth)?,
            b'"' => self.string()?,
            b'-' | b'0'..=b'9' => self.number()?,
            b't' => self.literal("true")?,
            b'f' => self.literal("false")?,
            b'n' => self.literal("null")?,
            _ => {
                self.take(|_| false, "looking for beginning of value")?;
            }
        }
        Ok(&self.text[start..self.at])
    }

    fn object(&mut self, depth: usize) -> Result<(), String> {
        self.at += 1;
        if self.peek()? == b'}' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.name()?;
            self.value(depth + 1)?;
            self.peek()?;
            if self.take(|byte| b",}".contains(&byte), "after object key:value pair")? == b'}' {
                return Ok(());
            }
        }
    }

    /// Takes a name and the colon behind it; answers the name with its quotes.
    fn name(&mut self) -> Result<&'t [u8], String> {
        if self.peek()? != b'"' {
            self.take(|_| false, "looking for beginning of object key string")?;
        }
        let start = self.at;
        self.string()?;
        let name = &self.text[start..self.at];
        self.peek()?;
        self.take(|byte| byte == b':', "after object key")?;
        Ok(name)
    }

    fn array(&mut self, depth: usize) -> Result<(), String> {
        self.at += 1;
        if self.peek()? == b']' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth + 1)?;
            self.peek()?;
            if self.take(|byte| b",]".contains(&byte), "after array element")? == b']' {
                return Ok(());
            }
        }
    }

    fn string(&mut self) -> Result<(), String> {
        self.at += 1;
        loop {
            match self.take(|byte| byte >= b' ', "in string literal")? {
                b'"' => return Ok(()),
                b'\\' => self.escape()?,
                _ => {}
            }
        }
    }

    /// Takes what is behind a backslash.
    fn escape(&mut self) -> Result<(), String> {
        if self.take(|byte| b"bfnrt\\/\"u".contains(&byte), "in string escape code")? != b'u' {
            return Ok(());
        }
        for _ in 0..4 {
            self.take(|byte| byte.is_ascii_hexdigit(), "in \\u hexadecimal character escape")?;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), String> {
        let digit = |byte: u8| byte.is_ascii_digit();
        if self.text[self.at] == b'-' {
            self.at += 1;
        }
        if self.take(digit, "in numeric literal")? != b'0' {
            self.digits();
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.take(digit, "after decimal point in numeric literal")?;
            self.digits();
        }
        if let Some(b'e' | b'E') = self.text.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.text.get(self.at) {
                self.at += 1;
            }
            self.take(digit, "in exponent of numeric literal")?;
            self.digits();
        }
        Ok(())
    }

    fn digits(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
    }

    fn literal(&mut self, word: &str) -> Result<(), String> {
        for expected in word.bytes() {
            let context = format!("in literal {word} (expecting {})", quoted(expected));
            self.take(|byte| byte == expected, &context)?;
        }
        Ok(())
    }

    /// Where the next token is, for people: lines and characters, from 1.
    fn place(&self) -> String {
        let before = &self.text[..self.at];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
        format!("(line {line}:{column})")
    }
}

/// A byte as Go shows it.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        0..=0x1f | 0x7f => format!(r"'\x{byte:02x}'"),
        0x80..=0xa0 | 0xad => format!(r"'\u{byte:04x}'"),
        byte => format!("'{}'", char::from(byte)),
    }
}

/// Reads a message in JSON that is well formed. An error without words is one of the JSON itself.
struct Fit<'t> {
    scan: Scan<'t>,
}

type Fits = Result<(), Option<String>>;

impl<'t> Fit<'t> {
    fn message(&mut self, message: &MessageDescriptor, depth: usize) -> Fits {
        if self.scan.peek().map_err(|_| None)? != b'{' {
            return self.unexpected();
        }
        self.scan.at += 1;
        let (mut fields, mut choices) = (Vec::new(), Vec::new());
        while self.scan.peek().map_err(|_| None)? == b'"' {
            let place = self.scan.place();
            let raw = self.scan.name().map_err(|_| None)?;
            let name = serde_json::from_slice::<String>(raw).map_err(|_| None)?;
            let field = message.get_field_by_json_name(&name).or_else(|| message.get_field_by_name(&name));
            match field {
                None => self.skip(depth)?,
                Some(field) => {
                    let raw = String::from_utf8_lossy(raw);
                    if fields.contains(&field.number()) {
                        return Err(Some(format!("{place}: duplicate field {raw}")));
                    }
                    fields.push(field.number());
                    let is_null = self.scan.peek().map_err(|_| None)? == b'n';
                    if let Some(choice) = field.containing_oneof().filter(|_| !is_null) {
                        let choice = choice.full_name().to_owned();
                        if choices.contains(&choice) {
                            let what = format!("error parsing {raw}, oneof {choice} is already set");
                            return Err(Some(format!("{place}: {what}")));
                        }
                        choices.push(choice);
                    }
                    self.field(&field, depth + 1)?;
                }
            }
            if self.scan.peek().map_err(|_| None)? == b',' {
                self.scan.at += 1;
            }
        }
        self.scan.at += 1;
        Ok(())
    }

    fn field(&mut self, field: &FieldDescriptor, depth: usize) -> Fits {
        let first = self.scan.peek().map_err(|_| None)?;
        if first == b'n' {
            return self.skip(depth);
        }
        if !field.is_list() {
            return self.single(field, depth);
        }
        if first != b'[' {
            return self.unexpected();
        }
        self.scan.at += 1;
        while self.scan.peek().map_err(|_| None)? != b']' {
            self.single(field, depth)?;
            if self.scan.peek().map_err(|_| None)? == b',' {
                self.scan.at += 1;
            }
        }
        self.scan.at += 1;
        Ok(())
    }

    fn single(&mut self, field: &FieldDescriptor, depth: usize) -> Fits {
        if depth > DEPTH_MAX {
            return Err(None);
        }
        if let Kind::Message(message) = field.kind() {
            return self.message(&message, depth);
        }
        self.scan.peek().map_err(|_| None)?;
        let place = self.scan.place();
        let token = self.token()?;
        let Some((kind, fits)) = fits(&field.kind(), token) else { return Err(None) };
        if fits {
            return Ok(());
        }
        let (name, token) = (field.json_name().to_owned(), String::from_utf8_lossy(token));
        Err(Some(format!("{place}: invalid value for {kind} field {name}: {token}")))
    }

    fn skip(&mut self, depth: usize) -> Fits {
        self.scan.value(depth).map(drop).map_err(|_| None)
    }

    /// Takes a token: of an object or an array only the bracket.
    fn token(&mut self) -> Result<&'t [u8], Option<String>> {
        let start = self.scan.at;
        match self.scan.text.get(start) {
            Some(b'{' | b'[' | b'}' | b']') => self.scan.at += 1,
            _ => self.skip(0)?,
        }
        Ok(&self.scan.text[start..self.scan.at])
    }

    fn unexpected(&mut self) -> Fits {
        let place = self.scan.place();
        let token = self.token()?;
        Err(Some(format!("syntax error {place}: unexpected token {}", String::from_utf8_lossy(token))))
    }
}

/// What etcd calls a kind of field, and whether a token is a value of it. `None`: etcd has no such fields.
fn fits(kind: &Kind, token: &[u8]) -> Option<(&'static str, bool)> {
    let text = || serde_json::from_slice::<String>(token).ok();
    let number = || {
        let digits = text().map(String::into_bytes).unwrap_or_else(|| token.to_vec());
        let parsed = serde_json::from_slice::<serde_json::Number>(&digits).ok()?;
        // A float is a whole number here, or none.
        let whole = |float: f64| (float.fract() == 0.0 && float.abs() < 1e18).then_some(float as i128);
        parsed.as_i128().or_else(|| parsed.as_f64().and_then(whole))
    };
    let within = |least: i128, most: i128| number().is_some_and(|n| (least..=most).contains(&n));
    Some(match kind {
        Kind::Bool => ("bool", token == b"true" || token == b"false"),
        Kind::String => ("string", text().is_some()),
        Kind::Bytes => ("bytes", text().is_some_and(|text| is_base64(&text))),
        Kind::Int32 => ("int32", within(i32::MIN.into(), i32::MAX.into())),
        Kind::Uint32 => ("uint32", within(0, u32::MAX.into())),
        Kind::Int64 => ("int64", within(i64::MIN.into(), i64::MAX.into())),
        Kind::Uint64 => ("uint64", within(0, u64::MAX.into())),
        // Names that are not known are left out.
        Kind::Enum(_) => ("enum", text().is_some() || within(i32::MIN.into(), i32::MAX.into())),
        _ => return None,
    })
}

/// Base64 of either alphabet; padding only where it completes a group of four.
fn is_base64(text: &str) -> bool {
    let digits = if text.len().is_multiple_of(4) { text.trim_end_matches('=') } else { text };
    let url = text.contains(['-', '_']);
    let fits = |byte: u8| {
        byte.is_ascii_alphanumeric() || if url { b"-_".contains(&byte) } else { b"+/".contains(&byte) }
    };
    text.len() - digits.len() <= 2 && digits.len() % 4 != 1 && digits.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;

    use super::*;
    use crate::proto::etcd::DESCRIPTORS;

    #[test]
    fn what_is_no_json_is_told_in_the_words_of_etcd() {
        for (text, words) in [
            ("", "unexpected EOF"),
            ("{", "unexpected EOF"),
            (r#"{"a":"#, "unexpected EOF"),
            ("]", "invalid character ']' looking for beginning of value"),
            ("no JSON", "invalid character 'o' in literal null (expecting 'u')"),
            ("nul\u{e9}", "invalid character 'Ã' in literal null (expecting 'l')"),
            ("{'a':1}", r"invalid character '\'' looking for beginning of object key string"),
            (r#"{"a" 1}"#, "invalid character '1' after object key"),
            (r#"{"a":1 "b":2}"#, "invalid character '\"' after object key:value pair"),
            (r#"{"a":1,}"#, "invalid character '}' looking for beginning of object key string"),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("\"a\nb\"", r"invalid character '\n' in string literal"),
            (r#""\x""#, "invalid character 'x' in string escape code"),
            (r#""\u00g0""#, r"invalid character 'g' in \u hexadecimal character escape"),
            ("-a", "invalid character 'a' in numeric literal"),
            ("1.a", "invalid character 'a' after decimal point in numeric literal"),
            ("1e+a", "invalid character 'a' in exponent of numeric literal"),
        ] {
            assert_eq!(syntax(text.as_bytes()).as_deref(), Some(words), "{text}");
        }
        for text in ["{}", "[]", r#" {"a": [1, -0.5e-7, "\u00e9\n", true, false, null, {}]} x"#, "0"] {
            assert_eq!(syntax(text.as_bytes()), None, "{text}");
        }
        assert!(syntax("[".repeat(100_000).as_bytes()).is_some(), "no overflow of the stack");
    }

    #[test]
    fn what_is_no_such_message_is_told_in_the_words_of_etcd() {
        let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
        let said = |name: &str, text: &str| {
            misfit(text.as_bytes(), &pool.get_message_by_name(&format!("etcdserverpb.{name}")).unwrap())
        };
        for (text, words) in [
            ("null", "syntax error (line 1:1): unexpected token null"),
            ("  7", "syntax error (line 1:1): unexpected token 7"),
            (r#"{"key":1}"#, "(line 1:8): invalid value for bytes field key: 1"),
            (r#"{"key":"%%"}"#, r#"(line 1:8): invalid value for bytes field key: "%%""#),
            (r#"{"key": "not base64!"}"#, r#"(line 1:9): invalid value for bytes field key: "not base64!""#),
            (r#"{"key":"aw==","limit":"x"}"#, r#"(line 1:23): invalid value for int64 field limit: "x""#),
            (r#"{"key":"aw==","limit":1.5}"#, "(line 1:23): invalid value for int64 field limit: 1.5"),
            ("{\"range_end\":\n {}}", "(line 2:2): invalid value for bytes field rangeEnd: {"),
            (r#"{"keys_only":1}"#, "(line 1:14): invalid value for bool field keysOnly: 1"),
            (r#"{"key":"","key":""}"#, r#"(line 1:11): duplicate field "key""#),
        ] {
            assert_eq!(said("RangeRequest", text), Some(format!("proto: {words}")), "{text}");
        }
        for (text, words) in [
            (r#"{"success":{}}"#, "syntax error (line 1:12): unexpected token {"),
            (r#"{"success":[null]}"#, "syntax error (line 1:13): unexpected token null"),
            (
                r#"{"success":[{"request_put":{}, "request_range":{}}]}"#,
                "(line 1:32): error parsing \"request_range\", oneof etcdserverpb.RequestOp.request is \
                 already set",
            ),
        ] {
            assert_eq!(said("TxnRequest", text), Some(format!("proto: {words}")), "{text}");
        }
        for text in [
            r#"{"key":"-_8","limit":1e3,"revision":"-2","sort_order":"NOPE","sortTarget":3,"x":[{}]}"#,
            r#"{"key":null,"range_end":"absent","limit":"9223372036854775807"}"#,
            "{}",
        ] {
            assert_eq!(said("RangeRequest", text), None, "{text}");
        }
    }
}
