use core::cell::Cell;

#[cfg(target_arch = "wasm32")]
extern "C" {
    static __heap_base: u8;
}

#[cfg(target_arch = "wasm32")]
static HEAP: Global<usize> = Global::new(0);

/// Memory that is never given back, aligned to 8: what the host asks for, and
/// what `Buffer` grows into. Null when there is none.
#[cfg(target_arch = "wasm32")]
pub fn alloc(size: usize) -> *mut u8 {
    use core::arch::wasm32::{memory_grow, memory_size};
    let heap = match HEAP.get() {
        0 => unsafe { &__heap_base as *const u8 as usize },
        heap => heap,
    };
    let at = (heap + 7) & !7;
    let end = match at.checked_add(size) {
        Some(end) => end,
        None => return core::ptr::null_mut(),
    };
    let have = memory_size(0) * 65536;
    if end > have && memory_grow(0, (end - have + 65535) / 65536) == usize::MAX {
        return core::ptr::null_mut();
    }
    HEAP.set(end);
    at as *mut u8
}

/// Outside of a guest: memory of the process, for tests.
#[cfg(all(test, not(target_arch = "wasm32")))]
pub fn alloc(size: usize) -> *mut u8 {
    Box::leak(vec![0u64; size / 8 + 1].into_boxed_slice()).as_mut_ptr() as *mut u8
}

#[cfg(all(not(test), not(target_arch = "wasm32")))]
pub fn alloc(_: usize) -> *mut u8 {
    core::ptr::null_mut()
}

/// State of a guest in a `static`: a guest has one thread.
pub struct Global<T>(Cell<T>);

unsafe impl<T> Sync for Global<T> {}

impl<T: Copy> Global<T> {
    pub const fn new(value: T) -> Self {
        Global(Cell::new(value))
    }
    pub fn get(&self) -> T {
        self.0.get()
    }
    pub fn set(&self, value: T) {
        self.0.set(value)
    }
}

/// Bytes that grow. What it holds is kept for the next use, never given back:
/// put it into a `Global`.
#[derive(Clone, Copy)]
pub struct Buffer {
    at: *mut u8,
    length: usize,
    capacity: usize,
}

impl Buffer {
    pub const fn new() -> Self {
        Buffer { at: core::ptr::null_mut(), length: 0, capacity: 0 }
    }
    pub fn clear(&mut self) {
        self.length = 0
    }
    pub fn bytes(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        unsafe { core::slice::from_raw_parts(self.at, self.length) }
    }
    /// Fails the call when there is no memory.
    pub fn push(&mut self, bytes: &[u8]) {
        let (at, _) = self.reserve(bytes.len());
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        self.length += bytes.len();
    }
    /// Room behind what is there, for `more` bytes at least, and its size.
    pub(crate) fn reserve(&mut self, more: usize) -> (*mut u8, usize) {
        let need = self.length + more;
        if need > self.capacity {
            let capacity = (2 * need).max(1024);
            let at = alloc(capacity);
            if at.is_null() {
                crate::export::fail("out of memory");
            }
            if self.length > 0 {
                unsafe { core::ptr::copy_nonoverlapping(self.at, at, self.length) };
            }
            self.at = at;
            self.capacity = capacity;
        }
        (self.at.wrapping_add(self.length), self.capacity - self.length)
    }
    pub(crate) fn filled(&mut self, more: usize) {
        self.length += more;
    }
}
