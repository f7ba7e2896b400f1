use core::marker::PhantomData;

/// The record of the pod that is decided on.
pub struct Pod(*const u8);

/// A string of the pod with its symbol, 0 when no node has the string.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word<'a> {
    pub symbol: u32,
    pub text: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Toleration<'a> {
    pub key: Word<'a>,
    pub value: Word<'a>,
    pub effect: Word<'a>,
    /// 0 `Equal`, 1 `Exists`, 2 another.
    pub operator: u32,
}

impl Pod {
    /// # Safety
    /// `at` is the address of a record, divisible by 8.
    pub unsafe fn at(at: *const u8) -> Self {
        Pod(at)
    }

    fn i32(&self, at: usize) -> i32 {
        unsafe { *(self.0.add(at) as *const i32) }
    }

    fn u32(&self, at: usize) -> u32 {
        self.i32(at) as u32
    }

    fn i64(&self, at: usize) -> i64 {
        unsafe { *(self.0.add(at) as *const i64) }
    }

    fn word(&self, at: usize) -> Word<'_> {
        let (offset, length) = (self.u32(at + 4) as usize, self.u32(at + 8) as usize);
        let bytes = unsafe { core::slice::from_raw_parts(self.0.add(offset), length) };
        Word { symbol: self.u32(at), text: crate::text::utf8(bytes) }
    }

    fn list<T>(&self, at: usize) -> Records<'_, T> {
        Records { pod: self, at: self.u32(at) as usize, left: self.u32(at + 4), of: PhantomData }
    }

    pub fn priority(&self) -> i32 {
        self.i32(8)
    }
    /// Requested, in thousandths of a CPU.
    pub fn cpu(&self) -> i64 {
        self.i64(16)
    }
    /// Requested, in bytes.
    pub fn memory(&self) -> i64 {
        self.i64(24)
    }
    /// Requested, in bytes.
    pub fn ephemeral_storage(&self) -> i64 {
        self.i64(32)
    }
    /// CPU with 100 thousandths for each container that requests none.
    pub fn nonzero_cpu(&self) -> i64 {
        self.i64(40)
    }
    /// Memory with 200 MiB for each container that requests none.
    pub fn nonzero_memory(&self) -> i64 {
        self.i64(48)
    }
    pub fn name(&self) -> Word<'_> {
        self.word(56)
    }
    pub fn namespace(&self) -> Word<'_> {
        self.word(68)
    }
    /// Key and value, by key.
    pub fn labels(&self) -> Pairs<'_> {
        self.list(80)
    }
    pub fn annotations(&self) -> Pairs<'_> {
        self.list(88)
    }
    pub fn node_selector(&self) -> Pairs<'_> {
        self.list(96)
    }
    pub fn label(&self, key: &str) -> Option<Word<'_>> {
        self.labels().find(|(k, _)| k.text == key).map(|(_, value)| value)
    }
    pub fn tolerations(&self) -> Tolerations<'_> {
        self.list(104)
    }
    /// Extended resources and their amounts, by name.
    pub fn extended(&self) -> Amounts<'_> {
        self.list(112)
    }
    /// Images of the containers.
    pub fn images(&self) -> Texts<'_> {
        self.list(120)
    }
    /// The pod's protobuf; empty unless the manifest has `rawPod`.
    pub fn raw(&self) -> &[u8] {
        unsafe { core::slice::from_raw_parts(self.0.add(self.u32(128) as usize), self.u32(132) as usize) }
    }
}

/// A list of the pod.
pub struct Records<'a, T> {
    pod: &'a Pod,
    at: usize,
    left: u32,
    of: PhantomData<T>,
}

pub type Pairs<'a> = Records<'a, (Word<'a>, Word<'a>)>;
pub type Tolerations<'a> = Records<'a, Toleration<'a>>;
pub type Amounts<'a> = Records<'a, (Word<'a>, i64)>;
pub type Texts<'a> = Records<'a, Word<'a>>;

pub trait Record<'a> {
    const SIZE: usize;
    fn read(pod: &'a Pod, at: usize) -> Self;
}

impl<'a> Record<'a> for (Word<'a>, Word<'a>) {
    const SIZE: usize = 24;
    fn read(pod: &'a Pod, at: usize) -> Self {
        (pod.word(at), pod.word(at + 12))
    }
}

impl<'a> Record<'a> for Toleration<'a> {
    const SIZE: usize = 40;
    fn read(pod: &'a Pod, at: usize) -> Self {
        Toleration { key: pod.word(at), value: pod.word(at + 12), effect: pod.word(at + 24), operator: pod.u32(at + 36) }
    }
}

impl<'a> Record<'a> for (Word<'a>, i64) {
    const SIZE: usize = 24;
    fn read(pod: &'a Pod, at: usize) -> Self {
        (pod.word(at), pod.i64(at + 16))
    }
}

impl<'a> Record<'a> for Word<'a> {
    const SIZE: usize = 12;
    fn read(pod: &'a Pod, at: usize) -> Self {
        pod.word(at)
    }
}

impl<'a, T: Record<'a>> Iterator for Records<'a, T> {
    type Item = T;
    fn next(&mut self) -> Option<T> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let at = self.at;
        self.at += T::SIZE;
        Some(T::read(self.pod, at))
    }
}
