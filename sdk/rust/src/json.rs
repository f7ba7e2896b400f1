//! JSON, read where it lies.

use crate::text::Text;

/// A value. Where there is none, it is of kind `None` and all its parts are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Json<'a>(&'a [u8]);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    None,
    Null,
    Bool,
    Number,
    String,
    Array,
    Object,
}

fn blank(data: &[u8], mut at: usize) -> usize {
    while at < data.len() && matches!(data[at], b' ' | b'\n' | b'\t' | b'\r') {
        at += 1;
    }
    at
}

/// The end of the string that begins at `at`.
#[inline(never)]
fn string_end(data: &[u8], at: usize) -> usize {
    let mut i = at + 1;
    while i < data.len() && data[i] != b'"' {
        i += 1 + usize::from(data[i] == b'\\');
    }
    (i + 1).min(data.len())
}

/// The end of the value that begins at `at`.
fn value_end(data: &[u8], at: usize) -> usize {
    match data.get(at) {
        Some(b'"') => string_end(data, at),
        Some(b'{' | b'[') => nested_end(data, at),
        _ => {
            let mut i = at;
            while i < data.len() && !matches!(data[i], b',' | b'}' | b']' | b' ' | b'\n' | b'\t' | b'\r') {
                i += 1;
            }
            i
        }
    }
}

#[inline(never)]
fn nested_end(data: &[u8], at: usize) -> usize {
    let (mut depth, mut i) = (0, at);
    while i < data.len() {
        match data[i] {
            b'"' => {
                i = string_end(data, i);
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        i += 1;
        if depth == 0 {
            break;
        }
    }
    i
}

impl<'a> Json<'a> {
    /// The value that the text holds; the host hands over valid JSON, of other
    /// text some part is found or none.
    pub fn parse(text: &'a [u8]) -> Self {
        let at = blank(text, 0);
        Json(&text[at..value_end(text, at)])
    }

    pub fn kind(self) -> Kind {
        match self.0.first() {
            None => Kind::None,
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::String,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'n') => Kind::Null,
            Some(_) => Kind::Number,
        }
    }

    /// As it is written.
    pub fn raw(self) -> &'a [u8] {
        self.0
    }

    /// Keys and values of an object; of an array, values with keys of kind `None`.
    pub fn items(self) -> Items<'a> {
        match self.kind() {
            Kind::Object => Items { rest: &self.0[1..], keys: true },
            Kind::Array => Items { rest: &self.0[1..], keys: false },
            _ => Items { rest: &[], keys: false },
        }
    }

    pub fn elements(self) -> impl Iterator<Item = Json<'a>> {
        self.items().map(|(_, value)| value)
    }

    pub fn member(self, name: &str) -> Json<'a> {
        if self.kind() != Kind::Object {
            return Json(&[]);
        }
        self.items().find(|(key, _)| key.is(name)).map_or(Json(&[]), |(_, value)| value)
    }

    /// The value below members of those names.
    pub fn at(self, path: &[&str]) -> Json<'a> {
        path.iter().fold(self, |value, name| value.member(name))
    }

    /// Says that the value is that string.
    pub fn is(self, text: &str) -> bool {
        match self.plain() {
            Some(s) => s == text,
            None if self.kind() == Kind::String => {
                let mut bytes = text.bytes();
                let mut chars = Chars(self.0, 1);
                loop {
                    let c = match chars.next() {
                        None => return bytes.next().is_none(),
                        Some(c) => c,
                    };
                    if !c.encode_utf8(&mut [0; 4]).bytes().all(|b| bytes.next() == Some(b)) {
                        return false;
                    }
                }
            }
            None => false,
        }
    }

    /// A string without escapes, as most are.
    pub fn plain(self) -> Option<&'a str> {
        if self.0.len() < 2 || self.0[0] != b'"' || self.0.contains(&b'\\') {
            return None;
        }
        core::str::from_utf8(&self.0[1..self.0.len() - 1]).ok()
    }

    /// A string, unescaped; `None` when it is none or longer than N.
    pub fn text<const N: usize>(self) -> Option<Text<N>> {
        if self.kind() != Kind::String {
            return None;
        }
        let mut out = Text::new();
        let mut length = 0;
        for c in Chars(self.0, 1) {
            length += c.len_utf8();
            if length > N {
                return None;
            }
            out.push(c.encode_utf8(&mut [0; 4]));
        }
        Some(out)
    }

    /// A whole number.
    pub fn i64(self) -> Option<i64> {
        core::str::from_utf8(self.0).ok()?.parse().ok()
    }

    pub fn bool(self) -> Option<bool> {
        match self.0 {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        }
    }
}

pub struct Items<'a> {
    rest: &'a [u8],
    keys: bool,
}

impl<'a> Items<'a> {
    fn take(&mut self) -> Json<'a> {
        let at = blank(self.rest, 0);
        let end = value_end(self.rest, at);
        let value = Json(&self.rest[at..end]);
        let next = blank(self.rest, end);
        // a comma or a colon; what closes the list ends it
        self.rest = match self.rest.get(next) {
            Some(b',' | b':') => &self.rest[next + 1..],
            _ => &[],
        };
        value
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = (Json<'a>, Json<'a>);
    fn next(&mut self) -> Option<Self::Item> {
        let key = if self.keys { self.take() } else { Json(&[]) };
        let value = self.take();
        if value.0.is_empty() {
            return None;
        }
        Some((key, value))
    }
}

/// The characters of a string from after its quotation mark to the other.
struct Chars<'a>(&'a [u8], usize);

impl Chars<'_> {
    fn hex(&mut self) -> u32 {
        let digits = self.0.get(self.1..self.1 + 4).unwrap_or(&[]);
        self.1 += 4;
        digits.iter().fold(0, |n, &b| n << 4 | (b as char).to_digit(16).unwrap_or(0))
    }
}

impl Iterator for Chars<'_> {
    type Item = char;
    fn next(&mut self) -> Option<char> {
        let b = *self.0.get(self.1)?;
        if b == b'"' {
            return None;
        }
        if b != b'\\' {
            let length = match b {
                0..=0x7f => 1,
                0x80..=0xdf => 2,
                0xe0..=0xef => 3,
                _ => 4,
            };
            let bytes = self.0.get(self.1..self.1 + length)?;
            self.1 += length;
            return Some(core::str::from_utf8(bytes).ok().and_then(|s| s.chars().next()).unwrap_or('\u{fffd}'));
        }
        let escape = *self.0.get(self.1 + 1)?;
        self.1 += 2;
        Some(match escape {
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'u' => {
                let mut n = self.hex();
                if (0xd800..0xdc00).contains(&n) && self.0.get(self.1..self.1 + 2) == Some(b"\\u") {
                    self.1 += 2;
                    n = 0x10000 + ((n - 0xd800) << 10 | (self.hex() & 0x3ff));
                }
                char::from_u32(n).unwrap_or('\u{fffd}')
            }
            other => other as char,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &str = r#" {"a": {"b": [1, -2 , "x\"y", true, null]}, "s": "h\u00e9\n\ud83d\ude00", "k\u0065y": false, "e": {}, "l": [] } "#;

    #[test]
    fn values() {
        let v = Json::parse(DATA.as_bytes());
        assert_eq!(v.kind(), Kind::Object);
        let b = v.at(&["a", "b"]);
        let kinds: Vec<_> = b.elements().map(Json::kind).collect();
        assert_eq!(kinds, [Kind::Number, Kind::Number, Kind::String, Kind::Bool, Kind::Null]);
        assert_eq!(b.elements().nth(1).and_then(Json::i64), Some(-2));
        assert!(b.elements().nth(2).unwrap().is("x\"y") && !b.elements().nth(2).unwrap().is("x"));
        assert_eq!(v.member("s").text::<16>().unwrap().as_str(), "hé\n😀");
        assert!(v.member("s").text::<4>().is_none());
        assert!(v.member("s").is("hé\n😀") && !v.member("s").is("hé\n😀!") && !v.member("s").is("hé"));
        assert_eq!(v.member("key").bool(), Some(false));
        assert_eq!(v.at(&["a", "none", "b"]).kind(), Kind::None);
        assert_eq!((v.member("e").items().count(), v.member("l").items().count(), v.items().count()), (0, 0, 5));
        assert_eq!(v.member("e").raw(), b"{}");
    }

    #[test]
    fn cut() {
        for end in 0..DATA.len() {
            if !DATA.is_char_boundary(end) {
                continue;
            }
            let v = Json::parse(&DATA.as_bytes()[..end]);
            v.at(&["a", "b"]).elements().for_each(|e| assert!(e.text::<9>().is_none() || e.kind() == Kind::String));
            v.member("s").text::<16>();
            v.member("key").bool();
        }
    }
}
