//! What the host offers.

use crate::memory::Buffer;

#[cfg(target_arch = "wasm32")]
mod import {
    #[link(wasm_import_module = "qm")]
    extern "C" {
        pub fn error(at: *const u8, length: usize);
        pub fn reason(row: u32, at: *const u8, length: usize);
        pub fn sym(at: *const u8, length: usize) -> u32;
        pub fn sym_text(symbol: u32, at: *mut u8, capacity: usize) -> usize;
        pub fn log(level: i32, at: *const u8, length: usize);
        pub fn now() -> i64;
        pub fn get(
            resource: *const u8, resource_length: usize, namespace: *const u8, namespace_length: usize,
            name: *const u8, name_length: usize, at: *mut u8, capacity: usize,
        ) -> i32;
    }
}

/// Outside of a guest, in tests, there is no host: nothing is known or heard.
#[cfg(not(target_arch = "wasm32"))]
mod import {
    pub unsafe fn error(_: *const u8, _: usize) {}
    pub unsafe fn reason(_: u32, _: *const u8, _: usize) {}
    pub unsafe fn sym(_: *const u8, _: usize) -> u32 {
        0
    }
    pub unsafe fn sym_text(_: u32, _: *mut u8, _: usize) -> usize {
        0
    }
    pub unsafe fn log(_: i32, _: *const u8, _: usize) {}
    pub unsafe fn now() -> i64 {
        0
    }
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn get(_: *const u8, _: usize, _: *const u8, _: usize, _: *const u8, _: usize, _: *mut u8, _: usize) -> i32 {
        -1
    }
}

/// Of a line in the host's log.
#[derive(Clone, Copy)]
pub enum Level {
    Debug = -1,
    Info = 0,
    Warning = 1,
    Error = 2,
}

/// Writes a line to the host's log; needs the grant `log`.
pub fn log(level: Level, text: &str) {
    unsafe { import::log(level as i32, text.as_ptr(), text.len()) }
}

/// Says why the call that is about to fail does; an `Err` does the same.
pub fn error(text: &str) {
    unsafe { import::error(text.as_ptr(), text.len()) }
}

/// Explains the verdict of one row in words of its own. In `filter_node` the row
/// is the node's, whatever is given.
pub fn reason(row: usize, text: &str) {
    unsafe { import::reason(row as u32, text.as_ptr(), text.len()) }
}

/// The number of a string in the snapshot's epoch; 0 for "", and outside of
/// scheduling calls.
pub fn sym(text: &str) -> u32 {
    unsafe { import::sym(text.as_ptr(), text.len()) }
}

/// Copies a symbol's string, as much of it as fits; returns its whole length.
pub fn sym_text(symbol: u32, buffer: &mut [u8]) -> usize {
    unsafe { import::sym_text(symbol, buffer.as_mut_ptr(), buffer.len()) }
}

/// The time of the decision in nanoseconds since 1970; needs the grant `clock`.
pub fn now() -> i64 {
    unsafe { import::now() }
}

/// What a read of the store found.
pub enum Read<'a> {
    /// The object's protobuf message, or its JSON with `encoding: json`.
    Found(&'a [u8]),
    Missing,
    /// The resource is not among the manifest's `reads`.
    Refused,
}

/// Reads one object as it was at the revision of the decision; `namespace` is ""
/// for what has none. It lies in `room` until that is used again. Needs the
/// grant `read`.
pub fn get<'a>(resource: &str, namespace: &str, name: &str, room: &'a mut Buffer) -> Read<'a> {
    let ask = |at: *mut u8, capacity: usize| unsafe {
        import::get(
            resource.as_ptr(), resource.len(), namespace.as_ptr(), namespace.len(), name.as_ptr(), name.len(), at, capacity,
        )
    };
    room.clear();
    let (at, capacity) = room.reserve(0);
    match ask(at, capacity) {
        -1 => return Read::Missing,
        n if n < 0 => return Read::Refused,
        n if n as usize > capacity => {
            let (at, capacity) = room.reserve(n as usize);
            ask(at, capacity);
            room.filled(n as usize);
        }
        n => room.filled(n as usize),
    }
    Read::Found(room.bytes())
}
