/// Columns by id. Extended resources follow from `EXTENDED` in the order of the
/// manifest.
pub mod column {
    pub const FLAGS: u16 = 1;
    pub const NAME: u16 = 2;
    pub const ZONE: u16 = 3;
    pub const REGION: u16 = 4;
    pub const ALLOCATABLE_CPU: u16 = 16;
    pub const ALLOCATABLE_MEMORY: u16 = 17;
    pub const ALLOCATABLE_EPHEMERAL_STORAGE: u16 = 18;
    pub const ALLOCATABLE_PODS: u16 = 19;
    pub const REQUESTED_CPU: u16 = 32;
    pub const REQUESTED_MEMORY: u16 = 33;
    pub const REQUESTED_EPHEMERAL_STORAGE: u16 = 34;
    pub const REQUESTED_PODS: u16 = 35;
    pub const NONZERO_CPU: u16 = 48;
    pub const NONZERO_MEMORY: u16 = 49;
    /// Pairs of symbols: key, value.
    pub const LABELS: u16 = 64;
    /// Triples of symbols: key, value, effect.
    pub const TAINTS: u16 = 65;
    pub const IMAGES: u16 = 66;
    pub const EXTENDED: u16 = 256;

    /// Bits of `FLAGS`.
    pub const PRESENT: u32 = 1;
    pub const UNSCHEDULABLE: u32 = 2;
    pub const READY: u32 = 4;
}

/// The fleet in columns.
pub struct Snapshot(*const u8);

/// A span of a list column: offset and count.
type Span = [u32; 2];

impl Snapshot {
    /// # Safety
    /// `at` is the address of a snapshot, divisible by 8.
    pub unsafe fn at(at: *const u8) -> Self {
        Snapshot(at)
    }

    fn word(&self, offset: usize) -> u32 {
        unsafe { *(self.0.add(offset) as *const u32) }
    }

    /// The number of rows, vacant ones included.
    pub fn rows(&self) -> usize {
        self.word(8) as usize
    }

    /// Differs when anything in the fleet does.
    pub fn generation(&self) -> u64 {
        unsafe { *(self.0.add(16) as *const u64) }
    }

    /// Differs when the numbers of symbols do.
    pub fn epoch(&self) -> u32 {
        self.word(24)
    }

    fn column<T>(&self, id: u16, kind: u8) -> &[T] {
        let columns = (self.word(4) >> 16) as usize;
        for i in 0..columns {
            let d = 32 + 12 * i;
            let head = self.word(d);
            if head as u16 == id && (head >> 16) as u8 == kind && (head >> 24) as usize * (1 + kind as usize) == core::mem::size_of::<T>() {
                let (offset, rows) = (self.word(d + 4) as usize, self.word(d + 8) as usize);
                return unsafe { core::slice::from_raw_parts(self.0.add(offset) as *const T, rows) };
            }
        }
        &[]
    }

    /// A column of resources; empty when the manifest does not name it.
    pub fn i64s(&self, id: u16) -> &[i64] {
        self.column(id, 0)
    }

    /// A column of flags or symbols; empty when the manifest does not name it.
    pub fn u32s(&self, id: u16) -> &[u32] {
        self.column(id, 0)
    }

    /// A column of lists; of no rows when the manifest does not name it.
    pub fn lists(&self, id: u16) -> Lists<'_> {
        Lists { base: self.0, spans: self.column(id, 1) }
    }
}

/// One list of symbols a row.
#[derive(Clone, Copy)]
pub struct Lists<'a> {
    base: *const u8,
    spans: &'a [Span],
}

impl<'a> Lists<'a> {
    pub fn row(&self, row: usize) -> &'a [u32] {
        let [offset, count] = self.spans[row];
        unsafe { core::slice::from_raw_parts(self.base.add(offset as usize) as *const u32, count as usize) }
    }

    /// The symbol of the value that goes with a key, in a column of pairs; 0 when
    /// there is none.
    pub fn value(&self, row: usize, key: u32) -> u32 {
        self.row(row).chunks_exact(2).find(|pair| pair[0] == key).map_or(0, |pair| pair[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // two rows: ids 16 (i64), 2 (u32) and 64 (lists)
    fn sample() -> Vec<u64> {
        let mut words: Vec<u32> = vec![0x31534d51, 3 << 16, 2, 64, 7, 0, 3, 0];
        words.extend([16 | 8 << 24, 72, 2]);
        words.extend([2 | 4 << 24, 88, 2]);
        words.extend([64 | 1 << 16 | 4 << 24, 96, 2]);
        words.push(0); // 68: padding
        words.extend([5, 0, 6, 1, 11, 12, 112, 4, 112, 0, 0, 0]);
        words.splice(28..28, [1, 2, 3, 4]);
        words.chunks(2).map(|w| u64::from(w[0]) | u64::from(*w.get(1).unwrap_or(&0)) << 32).collect()
    }

    #[test]
    fn columns() {
        let data = sample();
        let s = unsafe { Snapshot::at(data.as_ptr() as *const u8) };
        assert_eq!((s.rows(), s.generation(), s.epoch()), (2, 7, 3));
        assert_eq!(s.i64s(16), [5, 6 | 1 << 32]);
        assert_eq!(s.u32s(2), [11, 12]);
        assert!(s.u32s(16).is_empty() && s.i64s(99).is_empty());
        assert_eq!(s.lists(64).row(0), [1, 2, 3, 4]);
        assert!(s.lists(64).row(1).is_empty());
        assert_eq!((s.lists(64).value(0, 3), s.lists(64).value(0, 2)), (4, 0));
    }
}
