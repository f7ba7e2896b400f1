use crate::json::{Json, Kind};
use crate::memory::{Buffer, Global};
use crate::text::decimal;

/// What is asked: an `AdmissionReview` of `admission.k8s.io/v1`.
#[derive(Clone, Copy)]
pub struct Review<'a>(Json<'a>);

impl<'a> Review<'a> {
    pub fn parse(text: &'a [u8]) -> Self {
        Review(Json::parse(text).member("request"))
    }
    /// The whole request.
    pub fn request(self) -> Json<'a> {
        self.0
    }
    /// `CREATE`, `UPDATE`, `DELETE`, `CONNECT`.
    pub fn operation(self) -> &'a str {
        self.0.member("operation").plain().unwrap_or("")
    }
    pub fn namespace(self) -> &'a str {
        self.0.member("namespace").plain().unwrap_or("")
    }
    pub fn kind(self) -> &'a str {
        self.0.at(&["kind", "kind"]).plain().unwrap_or("")
    }
    /// Of kind `None` at a deletion.
    pub fn object(self) -> Json<'a> {
        self.object_at("object")
    }
    pub fn old_object(self) -> Json<'a> {
        self.object_at("oldObject")
    }
    fn object_at(self, name: &str) -> Json<'a> {
        match self.0.member(name) {
            object if object.kind() == Kind::Object => object,
            _ => Json::parse(b""), // null
        }
    }
}

const EMPTY: Global<Buffer> = Global::new(Buffer::new());
/// Warnings, operations of the patch, audit annotations, and all together.
static PARTS: [Global<Buffer>; 4] = [EMPTY; 4];

/// What is answered; it begins as allowed.
pub struct Answer {
    allowed: bool,
    code: u16,
    message: crate::Text<1024>,
    parts: [Buffer; 4],
}

/// The operations of RFC 6902 over the object of the request. A path is given by
/// its parts: `&["metadata", "labels", "example.com/team"]`; `"-"` is the end of an array.
pub struct Patch<'a>(&'a mut Buffer);

/// A value of a patch.
pub trait Value {
    fn write(&self, out: &mut Buffer);
}

impl Value for str {
    fn write(&self, out: &mut Buffer) {
        quote(out, self, false)
    }
}

impl Value for i64 {
    fn write(&self, out: &mut Buffer) {
        out.push(decimal(*self, &mut [0; 20]).as_bytes())
    }
}

impl Value for bool {
    fn write(&self, out: &mut Buffer) {
        out.push(if *self { b"true" } else { b"false" })
    }
}

impl Value for Json<'_> {
    fn write(&self, out: &mut Buffer) {
        out.push(self.raw())
    }
}

/// `text` as a JSON string; its inside only, with ~ and / escaped as a pointer's, when `pointer`.
fn quote(out: &mut Buffer, text: &str, pointer: bool) {
    if !pointer {
        out.push(b"\"");
    }
    let bytes = text.as_bytes();
    let mut from = 0;
    for (i, &b) in bytes.iter().enumerate() {
        let hex;
        let escape: &[u8] = match b {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'~' if pointer => b"~0",
            b'/' if pointer => b"~1",
            0..=0x1f => {
                hex = [b'\\', b'u', b'0', b'0', b'0' + (b >> 4), b"0123456789abcdef"[usize::from(b & 15)]];
                &hex
            }
            _ => continue,
        };
        out.push(&bytes[from..i]);
        out.push(escape);
        from = i + 1;
    }
    out.push(&bytes[from..]);
    if !pointer {
        out.push(b"\"");
    }
}

impl Patch<'_> {
    fn operation(&mut self, name: &[u8], path: &[&str]) {
        self.0.push(if self.0.bytes().is_empty() { b"{\"op\":\"" } else { b",{\"op\":\"" });
        self.0.push(name);
        self.0.push(b"\",\"path\":\"");
        for part in path {
            self.0.push(b"/");
            quote(self.0, part, true);
        }
        self.0.push(b"\"");
    }

    fn with<V: Value + ?Sized>(&mut self, name: &[u8], path: &[&str], value: &V) -> &mut Self {
        self.operation(name, path);
        self.0.push(b",\"value\":");
        value.write(self.0);
        self.0.push(b"}");
        self
    }

    pub fn add<V: Value + ?Sized>(&mut self, path: &[&str], value: &V) -> &mut Self {
        self.with(b"add", path, value)
    }
    pub fn replace<V: Value + ?Sized>(&mut self, path: &[&str], value: &V) -> &mut Self {
        self.with(b"replace", path, value)
    }
    pub fn test<V: Value + ?Sized>(&mut self, path: &[&str], value: &V) -> &mut Self {
        self.with(b"test", path, value)
    }
    pub fn remove(&mut self, path: &[&str]) -> &mut Self {
        self.operation(b"remove", path);
        self.0.push(b"}");
        self
    }
}

impl Answer {
    #[doc(hidden)]
    pub fn new() -> Self {
        let mut parts = [PARTS[0].get(), PARTS[1].get(), PARTS[2].get(), PARTS[3].get()];
        parts.iter_mut().for_each(Buffer::clear);
        Answer { allowed: true, code: 0, message: crate::Text::new(), parts }
    }

    /// Refuses; `code` is of HTTP, 403 as a rule.
    pub fn deny(&mut self, code: u16, message: &str) {
        self.allowed = false;
        self.code = code;
        self.message = crate::Text::new();
        self.message.push(message);
    }

    /// A text that the client is shown.
    pub fn warn(&mut self, text: &str) {
        let out = &mut self.parts[0];
        if !out.bytes().is_empty() {
            out.push(b",");
        }
        quote(out, text, false);
    }

    /// Counts at `Mutate` only.
    pub fn patch(&mut self) -> Patch<'_> {
        Patch(&mut self.parts[1])
    }

    /// A note in the audit log.
    pub fn annotate(&mut self, key: &str, value: &str) {
        let out = &mut self.parts[2];
        if !out.bytes().is_empty() {
            out.push(b",");
        }
        quote(out, key, false);
        out.push(b":");
        quote(out, value, false);
    }

    #[doc(hidden)]
    pub fn finish(&mut self) -> i64 {
        let [warnings, patch, audit, mut out] = self.parts;
        out.push(if self.allowed { b"{\"allowed\":true" } else { b"{\"allowed\":false,\"code\":" });
        if !self.allowed {
            i64::from(self.code).write(&mut out);
            out.push(b",\"message\":");
            quote(&mut out, self.message.as_str(), false);
        }
        for (name, part, end) in [(",\"warnings\":[", warnings, "]"), (",\"patch\":[", patch, "]"), (",\"auditAnnotations\":{", audit, "}")] {
            if !part.bytes().is_empty() {
                out.push(name.as_bytes());
                out.push(part.bytes());
                out.push(end.as_bytes());
            }
        }
        out.push(b"}");
        self.parts[3] = out;
        for (kept, part) in PARTS.iter().zip(self.parts) {
            kept.set(part);
        }
        (out.bytes().as_ptr() as i64) << 32 | out.bytes().len() as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let mut a = Answer::new();
        a.warn("a \"b\"\n");
        a.warn("c");
        a.annotate("k", "v");
        a.patch().add(&["metadata", "labels", "a/b~c"], "x\\").remove(&["spec", "x"]).replace(&["n"], &-5i64).test(&[], &Json::parse(b"{}"));
        a.finish();
        assert_eq!(
            std::str::from_utf8(a.parts[3].bytes()).unwrap(),
            r#"{"allowed":true,"warnings":["a \"b\"\u000a","c"],"patch":[{"op":"add","path":"/metadata/labels/a~1b~0c","value":"x\\"},{"op":"remove","path":"/spec/x"},{"op":"replace","path":"/n","value":-5},{"op":"test","path":"","value":{}}],"auditAnnotations":{"k":"v"}}"#
        );
        let mut a = Answer::new();
        a.deny(403, "no");
        a.finish();
        assert_eq!(a.parts[3].bytes(), br#"{"allowed":false,"code":403,"message":"no"}"#);
    }

    #[test]
    fn review() {
        let r = Review::parse(br#"{"request": {"kind": {"kind": "Pod"}, "operation": "CREATE", "namespace": "ns", "object": {"a": 1}, "oldObject": null}}"#);
        assert_eq!((r.kind(), r.operation(), r.namespace(), r.object().raw(), r.old_object().raw()), ("Pod", "CREATE", "ns", &b"{\"a\": 1}"[..], &b""[..]));
    }
}
