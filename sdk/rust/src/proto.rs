//! Protocol buffers, as the row tier gets pods and nodes: read where they lie.

/// A message; malformed data ends it.
#[derive(Clone, Copy)]
pub struct Message<'a>(pub &'a [u8]);

/// One field of a message: a number, or bytes.
#[derive(Clone, Copy)]
pub struct Field<'a> {
    pub number: u32,
    /// 0 number, 1 and 5 fixed, 2 bytes.
    pub wire: u8,
    pub value: u64,
    pub bytes: &'a [u8],
}

fn varint(data: &mut &[u8]) -> Option<u64> {
    let (&first, rest) = data.split_first()?;
    *data = rest;
    if first < 0x80 {
        return Some(u64::from(first));
    }
    long_varint(u64::from(first & 0x7f), data)
}

#[inline(never)] // fuel is charged by the size of loops and branches: keep what is rare out of them
fn long_varint(mut value: u64, data: &mut &[u8]) -> Option<u64> {
    let mut shift = 7;
    while shift < 64 {
        let (&b, rest) = data.split_first()?;
        *data = rest;
        value |= u64::from(b & 0x7f) << shift;
        if b < 0x80 {
            return Some(value);
        }
        shift += 7;
    }
    None
}

impl<'a> Message<'a> {
    /// Takes the next field; nothing at the end, or where the data is malformed.
    #[inline(never)]
    pub fn take(&mut self) -> Option<Field<'a>> {
        let data = &mut self.0;
        let key = varint(data)?;
        let mut f = Field { number: (key >> 3) as u32, wire: key as u8 & 7, value: 0, bytes: &[] };
        let size = match f.wire {
            0 => {
                f.value = varint(data)?;
                return Some(f);
            }
            1 => 8,
            2 => varint(data)?,
            5 => 4,
            _ => return None,
        };
        if size > data.len() as u64 {
            return None;
        }
        let (bytes, rest) = data.split_at(size as usize);
        f.bytes = bytes;
        *data = rest;
        Some(f)
    }

    /// The last field of that number that holds bytes: a message or a string.
    #[inline(never)]
    pub fn get(mut self, number: u32) -> Option<Message<'a>> {
        let mut found = None;
        while let Some(f) = self.take() {
            if f.number == number && f.wire == 2 {
                found = Some(Message(f.bytes));
            }
        }
        found
    }

    /// The last number of a field, 0 when there is none.
    #[inline(never)]
    pub fn number(mut self, number: u32) -> u64 {
        let mut found = 0;
        while let Some(f) = self.take() {
            if f.number == number && f.wire == 0 {
                found = f.value;
            }
        }
        found
    }

    /// A string; "" when there is none or it is not UTF-8.
    pub fn text(self, number: u32) -> &'a str {
        self.get(number).map_or("", |m| m.as_str())
    }

    pub fn as_str(self) -> &'a str {
        crate::text::utf8(self.0)
    }

    /// Every field of that number that holds bytes.
    pub fn all(self, number: u32) -> All<'a> {
        All(self, number)
    }

    /// The value under a key of a field that is a map with keys of text.
    pub fn entry(self, number: u32, key: &str) -> Option<Message<'a>> {
        self.having(number, 1, key).map(|e| e.get(2).unwrap_or(Message(&[])))
    }

    /// Of the messages of a repeated field, the first whose string `by` is `want`.
    #[inline(never)]
    pub fn having(self, number: u32, by: u32, want: &str) -> Option<Message<'a>> {
        for each in self.all(number) {
            if each.get(by).map_or(false, |k| k.0 == want.as_bytes()) {
                return Some(each);
            }
        }
        None
    }
}

/// The fields of one number.
pub struct All<'a>(Message<'a>, u32);

impl<'a> Iterator for All<'a> {
    type Item = Message<'a>;
    #[inline(never)]
    fn next(&mut self) -> Option<Message<'a>> {
        while let Some(f) = self.0.take() {
            if f.number == self.1 && f.wire == 2 {
                return Some(Message(f.bytes));
            }
        }
        None
    }
}

// Field numbers of core/v1 and meta/v1.
const METADATA: u32 = 1;
const SPEC: u32 = 2;
const STATUS: u32 = 3;
const NAME: u32 = 1;
const NAMESPACE: u32 = 3;
const LABELS: u32 = 11;
const ANNOTATIONS: u32 = 12;

fn within(m: Message<'_>, number: u32) -> Message<'_> {
    m.get(number).unwrap_or(Message(&[]))
}

macro_rules! metadata {
    () => {
        pub fn parse(bytes: &'a [u8]) -> Self {
            Self(Message(bytes))
        }
        /// The whole object, for what has no reader here.
        pub fn message(self) -> Message<'a> {
            self.0
        }
        pub fn name(self) -> &'a str {
            within(self.0, METADATA).text(NAME)
        }
        pub fn label(self, key: &str) -> Option<&'a str> {
            within(self.0, METADATA).entry(LABELS, key).map(Message::as_str)
        }
        pub fn annotation(self, key: &str) -> Option<&'a str> {
            within(self.0, METADATA).entry(ANNOTATIONS, key).map(Message::as_str)
        }
    };
}

/// A `v1` Node.
#[derive(Clone, Copy)]
pub struct NodeView<'a>(Message<'a>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taint<'a> {
    pub key: &'a str,
    pub value: &'a str,
    pub effect: &'a str,
}

impl<'a> NodeView<'a> {
    metadata!();

    pub fn unschedulable(self) -> bool {
        within(self.0, SPEC).number(4) != 0
    }
    pub fn taints(self) -> impl Iterator<Item = Taint<'a>> {
        within(self.0, SPEC).all(5).map(|t| Taint { key: t.text(1), value: t.text(2), effect: t.text(3) })
    }
    /// The status of a condition: `True`, `False`, `Unknown`.
    pub fn condition(self, kind: &str) -> Option<&'a str> {
        within(self.0, STATUS).having(4, 1, kind).map(|c| c.text(2))
    }
    pub fn capacity(self, resource: &str) -> Option<Quantity<'a>> {
        within(self.0, STATUS).entry(1, resource).map(Quantity::of)
    }
    pub fn allocatable(self, resource: &str) -> Option<Quantity<'a>> {
        within(self.0, STATUS).entry(2, resource).map(Quantity::of)
    }
    /// The names of the images that are there.
    pub fn images(self) -> impl Iterator<Item = &'a str> {
        within(self.0, STATUS).all(8).flat_map(|i| i.all(1)).map(Message::as_str)
    }
}

/// A `v1` Pod.
#[derive(Clone, Copy)]
pub struct PodView<'a>(Message<'a>);

#[derive(Clone, Copy)]
pub struct Container<'a>(pub Message<'a>);

impl<'a> PodView<'a> {
    metadata!();

    pub fn namespace(self) -> &'a str {
        within(self.0, METADATA).text(NAMESPACE)
    }
    pub fn priority(self) -> i32 {
        within(self.0, SPEC).number(25) as i32
    }
    pub fn scheduler_name(self) -> &'a str {
        within(self.0, SPEC).text(19)
    }
    pub fn service_account(self) -> &'a str {
        within(self.0, SPEC).text(8)
    }
    pub fn node_selector(self, key: &str) -> Option<&'a str> {
        within(self.0, SPEC).entry(7, key).map(Message::as_str)
    }
    pub fn containers(self) -> impl Iterator<Item = Container<'a>> {
        within(self.0, SPEC).all(2).map(Container)
    }
    pub fn init_containers(self) -> impl Iterator<Item = Container<'a>> {
        within(self.0, SPEC).all(20).map(Container)
    }
    /// Key, operator, value, effect.
    pub fn tolerations(self) -> impl Iterator<Item = (&'a str, &'a str, &'a str, &'a str)> {
        within(self.0, SPEC).all(22).map(|t| (t.text(1), t.text(2), t.text(3), t.text(4)))
    }
}

impl<'a> Container<'a> {
    pub fn name(self) -> &'a str {
        self.0.text(1)
    }
    pub fn image(self) -> &'a str {
        self.0.text(2)
    }
    pub fn limit(self, resource: &str) -> Option<Quantity<'a>> {
        within(self.0, 8).entry(1, resource).map(Quantity::of)
    }
    pub fn request(self, resource: &str) -> Option<Quantity<'a>> {
        within(self.0, 8).entry(2, resource).map(Quantity::of)
    }
}

/// An amount of a resource as it is written: `250m`, `1.5Gi`.
#[derive(Clone, Copy)]
pub struct Quantity<'a>(pub &'a str);

impl<'a> Quantity<'a> {
    fn of(m: Message<'a>) -> Self {
        Quantity(m.text(1))
    }

    /// Rounded away from 0; saturates, and is 0 when it is no quantity.
    pub fn value(self) -> i64 {
        self.times(1)
    }

    /// In thousandths, rounded away from 0; saturates, and is 0 when it is no quantity.
    pub fn milli(self) -> i64 {
        self.times(1000)
    }

    fn times(self, factor: u64) -> i64 {
        let (negative, text) = match self.0.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, self.0.strip_prefix('+').unwrap_or(self.0)),
        };
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (mut digits, mut decimals, mut fraction) = (0u64, 0i32, false);
        for b in number.bytes() {
            if b == b'.' {
                fraction = true;
            } else if digits <= i64::MAX as u64 / 10 {
                digits = digits * 10 + u64::from(b - b'0');
                decimals += i32::from(fraction);
            } else {
                decimals -= i32::from(!fraction);
            }
        }
        let (binary, mut exponent) = match suffix {
            "" => (0, 0),
            "n" => (0, -9),
            "u" => (0, -6),
            "m" => (0, -3),
            "k" => (0, 3),
            "M" => (0, 6),
            "G" => (0, 9),
            "T" => (0, 12),
            "P" => (0, 15),
            "E" => (0, 18),
            "Ki" => (10, 0),
            "Mi" => (20, 0),
            "Gi" => (30, 0),
            "Ti" => (40, 0),
            "Pi" => (50, 0),
            "Ei" => (60, 0),
            _ => match suffix.strip_prefix(|c| c == 'e' || c == 'E').and_then(|e| e.parse::<i32>().ok()) {
                Some(e) if (-40..=40).contains(&e) => (0, e),
                _ => return 0,
            },
        };
        exponent -= decimals;
        let mut n = u128::from(digits) * u128::from(factor) << binary;
        while exponent > 0 && n <= u128::from(u64::MAX) {
            n *= 10;
            exponent -= 1;
        }
        let mut rest = false;
        while exponent < 0 && n > 0 {
            rest |= n % 10 != 0;
            n /= 10;
            exponent += 1;
        }
        n += u128::from(rest);
        let n = i64::try_from(n).unwrap_or(i64::MAX);
        if negative { -n } else { n }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
    }

    fn entry(number: u8, key: &str, value: &[u8]) -> Vec<u8> {
        field(number, &[field(1, key.as_bytes()), field(2, value)].concat())
    }

    #[test]
    fn node() {
        let metadata = [field(1, b"n1"), entry(11, "zone", b"a"), entry(11, "disk", b"ssd")].concat();
        let spec = [vec![4 << 3, 1], field(5, &[field(1, b"k"), field(3, b"NoSchedule")].concat())].concat();
        let status = [
            entry(2, "cpu", &field(1, b"3500m")),
            field(4, &[field(1, b"Ready"), field(2, b"True")].concat()),
            field(8, &[field(1, b"a:1"), field(1, b"a:2")].concat()),
        ]
        .concat();
        let data = [field(1, &metadata), field(2, &spec), field(3, &status)].concat();
        let n = NodeView::parse(&data);
        assert_eq!((n.name(), n.label("disk"), n.label("none")), ("n1", Some("ssd"), None));
        assert!(n.unschedulable());
        assert!(n.taints().eq([Taint { key: "k", value: "", effect: "NoSchedule" }]));
        assert_eq!((n.condition("Ready"), n.condition("Disk")), (Some("True"), None));
        assert_eq!(n.allocatable("cpu").map(Quantity::milli), Some(3500));
        assert!(n.capacity("cpu").is_none() && n.annotation("zone").is_none());
        assert!(n.images().eq(["a:1", "a:2"]));
        for cut in 0..data.len() {
            let n = NodeView::parse(&data[..cut]);
            assert!(n.images().count() <= 2 && n.name().len() <= 2);
        }
    }

    #[test]
    fn malformed() {
        for data in [&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff][..], &[0x0b], &[0x0a, 5, 1], &[0x80]] {
            assert!(Message(data).take().is_none(), "{:?}", data);
        }
    }

    #[test]
    fn quantities() {
        for (text, value, milli) in [
            ("1", 1, 1000), ("250m", 1, 250), ("1.5Gi", 3 << 29, 1610612736000), ("0.1", 1, 100), ("1e3", 1000, 1000000), ("100u", 1, 1),
            ("-250m", -1, -250), ("9223372036854775807", i64::MAX, i64::MAX), ("7E", 7_000_000_000_000_000_000, i64::MAX), ("16Ei", i64::MAX, i64::MAX), ("x", 0, 0), ("", 0, 0), ("1Qi", 0, 0),
            ("0.123456789012Ti", 135742175047, 135742175046583), ("99999999999999999999", i64::MAX, i64::MAX),
        ] {
            assert_eq!((Quantity(text).value(), Quantity(text).milli()), (value, milli), "{}", text);
        }
    }
}
