import { Text, text, utf8, size, start, grown } from "./text";

// @ts-ignore: decorator
@external("qm", "error")
declare function qm_error(at: usize, length: u32): void;
// @ts-ignore: decorator
@external("qm", "reason")
declare function qm_reason(row: u32, at: usize, length: u32): void;
// @ts-ignore: decorator
@external("qm", "sym")
declare function qm_sym(at: usize, length: u32): u32;
// @ts-ignore: decorator
@external("qm", "sym_text")
declare function qm_sym_text(symbol: u32, at: usize, capacity: u32): u32;
// @ts-ignore: decorator
@external("qm", "log")
declare function qm_log(level: i32, at: usize, length: u32): void;
// @ts-ignore: decorator
@external("qm", "now")
declare function qm_now(): i64;
// @ts-ignore: decorator
@external("qm", "get")
declare function qm_get(resource: usize, resourceLength: u32, namespace: usize, namespaceLength: u32, name: usize, nameLength: u32, at: usize, capacity: u32): i32;

/** Marks the ABI; is never called. */
export function qm_abi_1(): void {}

/** Gives the host memory, aligned to 8, that is the host's from then on. */
export function qm_alloc(length: u32): usize {
  return (heap.alloc(length + 8) + 7) & ~7;
}

/** What the language calls when an assertion does not hold. */
export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  if (message) error(utf8(message));
  unreachable();
}

/** Of a line in the host's log. */
export enum Level { Debug = -1, Info = 0, Warning = 1, Error = 2 }

/** Writes a line to the host's log; needs the grant `log`. */
export function log(level: Level, t: Text): void {
  qm_log(level, start(t), size(t));
}

/** Says why the call that is about to fail does. */
export function error(t: Text): void {
  qm_error(start(t), size(t));
}

/** Refuses: the result of an entry point that fails, with why. */
export function refuse(why: string): i32 {
  error(utf8(why));
  return 1;
}

/** Ends the call as failed. */
export function fail(why: string): void {
  error(utf8(why));
  unreachable();
}

/** Explains the verdict of one row in words of its own. In `filter`, the row is
 * the node's, whatever is given. */
export function reason(row: u32, t: Text): void {
  qm_reason(row, start(t), size(t));
}

/** The number of a string in the snapshot's epoch; 0 for "", and outside of
 * scheduling calls. */
export function sym(t: Text): u32 {
  return qm_sym(start(t), size(t));
}

const symbolText = memory.data(512);

/** A symbol's string, cut at 512 bytes; until the next call of this function. */
export function symText(symbol: u32): Text {
  return text(symbolText, min(qm_sym_text(symbol, symbolText, 512), 512));
}

/** The time of the decision in nanoseconds since 1970; needs the grant `clock`. */
export function now(): i64 {
  return qm_now();
}

let room: usize = 0;
let capacity: u32 = 0;

/** Why `get` found nothing. */
export let getRefused = false;

/** Reads one object as it was at the revision of the decision; the namespace is
 * empty for what has none. It is the object's protobuf message, or its JSON
 * with `encoding: json`, until the next call of this function; 0 when there is
 * none, or `getRefused`: the resource is not among the manifest's `reads`. Needs
 * the grant `read`. */
export function get(resource: Text, namespace: Text, name: Text): Text {
  let n = ask(resource, namespace, name);
  if (n > 0 && u32(n) > capacity) {
    room = grown(n);
    capacity = n;
    n = ask(resource, namespace, name);
  }
  getRefused = n < -1;
  return n < 0 ? 0 : text(room, n);
}

function ask(resource: Text, namespace: Text, name: Text): i32 {
  return qm_get(start(resource), size(resource), start(namespace), size(namespace), start(name), size(name), room, capacity);
}
