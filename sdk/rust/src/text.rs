/// Text of at most N bytes; what does not fit is cut at a character.
#[derive(Clone, Copy)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Text<N> {
    pub const fn new() -> Self {
        Text { bytes: [0; N], length: 0 }
    }
    pub fn as_str(&self) -> &str {
        // only whole characters are pushed
        unsafe { core::str::from_utf8_unchecked(&self.bytes[..self.length]) }
    }
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
    pub fn push(&mut self, text: &str) -> &mut Self {
        let mut n = text.len().min(N - self.length);
        while !text.is_char_boundary(n) {
            n -= 1;
        }
        self.bytes[self.length..self.length + n].copy_from_slice(&text.as_bytes()[..n]);
        self.length += n;
        self
    }
    pub fn push_number(&mut self, number: i64) -> &mut Self {
        let mut digits = [0; 20];
        self.push(decimal(number, &mut digits))
    }
}

impl<const N: usize> AsRef<str> for Text<N> {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

/// Text of bytes, "" when they are not UTF-8. Most is ASCII, for which this loop
/// takes a fraction of the fuel.
#[inline(never)]
pub(crate) fn utf8(bytes: &[u8]) -> &str {
    let mut all = 0;
    for &b in bytes {
        all |= b;
    }
    if all < 0x80 {
        return unsafe { core::str::from_utf8_unchecked(bytes) };
    }
    beyond_ascii(bytes)
}

#[cold]
#[inline(never)]
fn beyond_ascii(bytes: &[u8]) -> &str {
    core::str::from_utf8(bytes).unwrap_or("")
}

pub(crate) fn decimal(number: i64, digits: &mut [u8; 20]) -> &str {
    let mut rest = number.unsigned_abs();
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    unsafe { core::str::from_utf8_unchecked(&digits[at..]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text() {
        let mut t = Text::<8>::new();
        t.push("n=").push_number(-12).push("äöü");
        assert_eq!(t.as_str(), "n=-12ä");
        let mut digits = [0; 20];
        assert_eq!(decimal(i64::MIN, &mut digits), "-9223372036854775808");
    }
}
