import { Text, text, start, size, same, utf8 } from "./text";

/** Protocol buffers, as the row tier gets pods and nodes: read where they lie.
 *
 *   let m = message;
 *   while (take(m)) {
 *     m = rest;
 *     … fieldNumber, fieldBytes …
 *   }
 *
 * `take` sets what follows; a loop inside of another sets it, too, so read it first. */
export let fieldNumber: u32 = 0;
/** 0 number, 1 and 5 fixed, 2 bytes. */
export let fieldWire: u32 = 0;
export let fieldValue: u64 = 0;
export let fieldBytes: Text = 0;
/** What follows the field. */
export let rest: Text = 0;

let at: usize = 0;
let end: usize = 0;
let failed = false;

function varint(): u64 {
  if (at < end) {
    const b = load<u8>(at++);
    return b < 0x80 ? b : longVarint(b & 0x7f);
  }
  failed = true;
  return 0;
}

function longVarint(first: u64): u64 {
  for (let shift: u64 = 7; shift < 64 && at < end; shift += 7) {
    const b = load<u8>(at++);
    first |= <u64>(b & 0x7f) << shift;
    if (b < 0x80) return first;
  }
  failed = true;
  return 0;
}

/** Takes the first field of a message; false at its end, or where it is malformed. */
export function take(m: Text): bool {
  at = start(m);
  end = at + size(m);
  if (at == end) return false;
  failed = false;
  const key = varint();
  fieldNumber = <u32>(key >> 3);
  fieldWire = <u32>key & 7;
  fieldBytes = 0;
  let length: u64 = 0;
  switch (fieldWire) {
    case 0: fieldValue = varint(); break;
    case 1: length = 8; break;
    case 2: length = varint(); break;
    case 5: length = 4; break;
    default: return false;
  }
  if (failed || length > <u64>(end - at)) return false;
  if (fieldWire) fieldBytes = text(at, <u32>length);
  at += <usize>length;
  rest = text(at, <u32>(end - at));
  return true;
}

/** Takes the next field of that number that holds bytes. */
export function takeBytes(m: Text, number: u32): bool {
  while (take(m)) {
    if (fieldNumber == number && fieldWire == 2) return true;
    m = rest;
  }
  return false;
}

/** The last field of that number that holds bytes, a message or a string; 0 when
 * there is none. */
export function bytes(m: Text, number: u32): Text {
  let found: Text = 0;
  while (takeBytes(m, number)) {
    m = rest;
    found = fieldBytes;
  }
  return found;
}

/** The last number of a field, 0 when there is none. */
export function number(m: Text, number: u32): u64 {
  let found: u64 = 0;
  while (take(m)) {
    m = rest;
    if (fieldNumber == number && fieldWire == 0) found = fieldValue;
  }
  return found;
}

/** The i-th message or string of a repeated field, from 0; 0 behind the last. */
export function nth(m: Text, number: u32, i: u32): Text {
  while (takeBytes(m, number)) {
    if (!i--) return fieldBytes;
    m = rest;
  }
  return 0;
}

/** Of the messages of a repeated field, the first whose string `by` is that;
 * 0 when there is none. */
export function having(m: Text, number: u32, by: u32, want: string): Text {
  const key = utf8(want);
  while (takeBytes(m, number)) {
    m = rest;
    const each = fieldBytes;
    if (same(bytes(each, by), key)) return each;
  }
  return 0;
}

/** The value under a key of a field that is a map with keys of text; 0 when there
 * is none. */
export function entry(m: Text, number: u32, key: string): Text {
  const found = having(m, number, 1, key);
  if (!found) return 0;
  const value = bytes(found, 2);
  return value ? value : text(start(found), 0);
}
