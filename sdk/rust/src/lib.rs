//! Guest SDK of ABI qm/1 for Rust, without the standard library and without
//! dependencies; docs/abi.md is the reference, docs/sdk/rust.md the guide.
//!
//! A guest is a `cdylib` for `wasm32-unknown-unknown` that names its functions:
//!
//! ```ignore
//! #![no_std]
//! qm::policy! { configure: configure, filter: filter, score: score }
//! ```
//!
//! What a function is handed is guest memory of the host's: it lives until the
//! function returns. Only verdicts, scores and the answer may be written.
#![cfg_attr(not(test), no_std)]

mod admission;
mod host;
mod json;
mod memory;
mod pod;
mod proto;
mod snapshot;
mod text;

pub use admission::{Answer, Patch, Review, Value};
pub use host::{error, get, log, now, reason, sym, sym_text, Level, Read};
pub use json::{Json, Kind};
pub use memory::{alloc, Buffer, Global};
pub use pod::{Amounts, Pairs, Pod, Texts, Toleration, Tolerations, Word};
pub use proto::{Container, Field, Message, NodeView, PodView, Quantity, Taint};
pub use snapshot::{column, Lists, Snapshot};
pub use text::Text;

/// The verdict of a node that passes.
pub const PASS: u8 = 0;
/// The verdict of a node that is refused and would be without its pods, too.
pub const UNRESOLVABLE: u8 = 250;
/// What the host writes into the verdicts of vacant rows.
pub const SKIP: u8 = 255;

/// What the row tier is handed, by its encoding.
pub trait Object<'a> {
    fn of(bytes: &'a [u8]) -> Self;
}

impl<'a> Object<'a> for PodView<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        PodView::parse(bytes)
    }
}

impl<'a> Object<'a> for NodeView<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        NodeView::parse(bytes)
    }
}

impl<'a> Object<'a> for Json<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        Json::parse(bytes)
    }
}

#[doc(hidden)]
pub mod export {
    use super::*;

    pub fn status<E: AsRef<str>>(result: Result<(), E>) -> i32 {
        match result {
            Ok(()) => 0,
            Err(text) => {
                error(text.as_ref());
                1
            }
        }
    }

    pub fn verdict<E: AsRef<str>>(result: Result<u8, E>) -> i32 {
        match result {
            Ok(verdict) => i32::from(verdict),
            Err(text) => {
                error(text.as_ref());
                -1
            }
        }
    }

    pub fn score<E: AsRef<str>>(result: Result<i32, E>) -> i64 {
        match result {
            Ok(score) => i64::from(score) << 32,
            Err(text) => {
                error(text.as_ref());
                1
            }
        }
    }

    pub fn answer<E: AsRef<str>>(result: Result<(), E>, answer: &mut Answer) -> i64 {
        match result {
            Ok(()) => answer.finish(),
            Err(text) => fail(text.as_ref()),
        }
    }

    /// Ends the call as failed.
    pub fn fail(text: &str) -> ! {
        error(text);
        trap()
    }

    #[cfg(target_arch = "wasm32")]
    fn trap() -> ! {
        core::arch::wasm32::unreachable()
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn trap() -> ! {
        panic!("trap")
    }

    /// # Safety
    /// The host gives the address and the length of memory that it owns.
    pub unsafe fn bytes<'a>(at: *const u8, length: usize) -> &'a [u8] {
        core::slice::from_raw_parts(at, length)
    }

    /// # Safety
    /// As of `bytes`; nothing else refers to that memory.
    pub unsafe fn slots<'a, T>(at: *mut T, length: usize) -> &'a mut [T] {
        core::slice::from_raw_parts_mut(at, length)
    }

    #[cfg(all(target_arch = "wasm32", not(test)))]
    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo) -> ! {
        let mut text = Text::<256>::new();
        text.push("panicked");
        if let Some(at) = info.location() {
            text.push(" at ").push(at.file()).push(":").push_number(i64::from(at.line()));
        }
        fail(text.as_str())
    }
}

/// Exports what the host calls. Each function is optional:
///
/// | name | type |
/// |---|---|
/// | `configure` | `fn(Json) -> Result<(), E>` |
/// | `filter` | `fn(&Pod, &Snapshot, &mut [u8]) -> Result<(), E>` |
/// | `score` | `fn(&Pod, &Snapshot, &[u8], &mut [i32]) -> Result<(), E>` |
/// | `normalize` | `fn(&[u8], &mut [i32]) -> Result<(), E>` |
/// | `prefilter` | `fn(PodView) -> Result<(), E>` |
/// | `filter_node` | `fn(PodView, NodeView) -> Result<u8, E>` |
/// | `score_node` | `fn(PodView, NodeView) -> Result<i32, E>` |
/// | `admit` | `fn(Review, &mut Answer) -> Result<(), E>` |
///
/// `E` is anything that is text: `&'static str`, `Text`. With `encoding: json` in
/// the manifest, the row tier takes `Json` in the place of the views.
#[macro_export]
macro_rules! policy {
    ($($point:ident: $function:path),+ $(,)?) => {
        #[export_name = "qm_abi_1"]
        pub extern "C" fn export_qm_abi_1() {}
        #[export_name = "qm_alloc"]
        pub extern "C" fn export_qm_alloc(size: u32) -> *mut u8 { $crate::alloc(size as usize) }
        $($crate::policy_export!($point $function);)+
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! policy_export {
    (configure $f:path) => {
        #[export_name = "qm_configure"]
        pub unsafe extern "C" fn export_qm_configure(at: *const u8, length: usize) -> i32 {
            $crate::export::status($f($crate::Json::parse($crate::export::bytes(at, length))))
        }
    };
    (filter $f:path) => {
        #[export_name = "filter_batch"]
        pub unsafe extern "C" fn export_filter_batch(pod: *const u8, nodes: *const u8, verdicts: *mut u8) -> i32 {
            let nodes = $crate::Snapshot::at(nodes);
            $crate::export::status($f(&$crate::Pod::at(pod), &nodes, $crate::export::slots(verdicts, nodes.rows())))
        }
    };
    (score $f:path) => {
        #[export_name = "score_batch"]
        pub unsafe extern "C" fn export_score_batch(pod: *const u8, nodes: *const u8, verdicts: *const u8, scores: *mut i32) -> i32 {
            let nodes = $crate::Snapshot::at(nodes);
            let n = nodes.rows();
            $crate::export::status($f(&$crate::Pod::at(pod), &nodes, $crate::export::bytes(verdicts, n), $crate::export::slots(scores, n)))
        }
    };
    (normalize $f:path) => {
        #[export_name = "normalize"]
        pub unsafe extern "C" fn export_normalize(verdicts: *const u8, scores: *mut i32, n: usize) -> i32 {
            $crate::export::status($f($crate::export::bytes(verdicts, n), $crate::export::slots(scores, n)))
        }
    };
    (prefilter $f:path) => {
        #[export_name = "prefilter"]
        pub unsafe extern "C" fn export_prefilter(pod: *const u8, length: usize) -> i32 {
            $crate::export::status($f($crate::Object::of($crate::export::bytes(pod, length))))
        }
    };
    (filter_node $f:path) => {
        #[export_name = "filter"]
        pub unsafe extern "C" fn export_filter(pod: *const u8, pod_length: usize, node: *const u8, length: usize) -> i32 {
            let pod = $crate::Object::of($crate::export::bytes(pod, pod_length));
            $crate::export::verdict($f(pod, $crate::Object::of($crate::export::bytes(node, length))))
        }
    };
    (score_node $f:path) => {
        #[export_name = "score"]
        pub unsafe extern "C" fn export_score(pod: *const u8, pod_length: usize, node: *const u8, length: usize) -> i64 {
            let pod = $crate::Object::of($crate::export::bytes(pod, pod_length));
            $crate::export::score($f(pod, $crate::Object::of($crate::export::bytes(node, length))))
        }
    };
    (admit $f:path) => {
        #[export_name = "admit"]
        pub unsafe extern "C" fn export_admit(at: *const u8, length: usize) -> i64 {
            let mut answer = $crate::Answer::new();
            let result = $f($crate::Review::parse($crate::export::bytes(at, length)), &mut answer);
            $crate::export::answer(result, &mut answer)
        }
    };
}
