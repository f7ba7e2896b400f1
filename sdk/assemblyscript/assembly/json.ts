import { Text, text, start, size, is as isText, same as sameText, utf8 } from "./text";

export enum Kind { None, Null, Bool, Number, String, Array, Object }

/** JSON, read where it lies. A value is the text that it is written in, 0 where
 * there is none. */
export namespace json {
  /** What `nextMember` or `nextElement` found. What is asked of a value sets them,
   * too: read them first. */
  export let key: Text = 0;
  export let value: Text = 0;
  /** What follows. */
  export let rest: Text = 0;

  let end: usize = 0;

  // @ts-ignore: decorator
  @inline
  function blank(c: u8): bool {
    return c == 32 || c == 10 || c == 9 || c == 13;
  }

  function skip(at: usize): usize {
    while (at < end && blank(load<u8>(at))) at++;
    return at;
  }

  // Behind the string that begins at `at`.
  function stringEnd(at: usize): usize {
    at++;
    while (at < end && load<u8>(at) != 34) at += load<u8>(at) == 92 ? 2 : 1;
    return min(at + 1, end);
  }

  function nestedEnd(at: usize): usize {
    let depth = 0;
    while (at < end) {
      const c = load<u8>(at);
      if (c == 34) {
        at = stringEnd(at);
        continue;
      }
      at++;
      if (c == 123 || c == 91) depth++;
      else if ((c == 125 || c == 93) && --depth == 0) break;
    }
    return at;
  }

  function valueEnd(at: usize): usize {
    if (at >= end) return at;
    const c = load<u8>(at);
    if (c == 34) return stringEnd(at);
    if (c == 123 || c == 91) return nestedEnd(at);
    while (at < end) {
      const d = load<u8>(at);
      if (d == 44 || d == 125 || d == 93 || blank(d)) break;
      at++;
    }
    return at;
  }

  /** The value that lies there; the host hands over valid JSON, of other text some
   * part is found or none. */
  export function parse(at: usize, length: u32): Text {
    end = at + length;
    at = skip(at);
    const to = valueEnd(at);
    return to > at ? text(at, <u32>(to - at)) : 0;
  }

  export function kind(v: Text): Kind {
    if (!size(v)) return Kind.None;
    switch (load<u8>(start(v))) {
      case 123: return Kind.Object;
      case 91: return Kind.Array;
      case 34: return Kind.String;
      case 116: case 102: return Kind.Bool;
      case 110: return Kind.Null;
      default: return Kind.Number;
    }
  }

  /** The members of an object, for `nextMember`:
   *
   *   let c = json.items(v);
   *   while (json.nextMember(c)) {
   *     c = json.rest;
   *     … json.key, json.value …
   *   }
   *
   * or the elements of an array, for `nextElement`. */
  export function items(v: Text): Text {
    const k = kind(v);
    return k == Kind.Object || k == Kind.Array ? text(start(v) + 1, size(v) - 1) : 0;
  }

  export function nextMember(cursor: Text): bool {
    end = start(cursor) + size(cursor);
    const at = skip(start(cursor));
    const to = valueEnd(at);
    const colon = skip(to);
    if (to == at || colon >= end || load<u8>(colon) != 58) return false;
    key = text(at, <u32>(to - at));
    return nextAt(colon + 1);
  }

  export function nextElement(cursor: Text): bool {
    end = start(cursor) + size(cursor);
    key = 0;
    return nextAt(start(cursor));
  }

  function nextAt(at: usize): bool {
    at = skip(at);
    let to = valueEnd(at);
    if (to == at) return false;
    value = text(at, <u32>(to - at));
    to = skip(to);
    rest = to < end && load<u8>(to) == 44 ? text(to + 1, <u32>(end - to) - 1) : 0;
    return true;
  }

  /** The i-th element of an array, from 0; 0 behind the last. */
  export function element(v: Text, i: u32): Text {
    if (kind(v) != Kind.Array) return 0;
    let c = items(v);
    while (nextElement(c)) {
      c = rest;
      if (!i--) return value;
    }
    return 0;
  }

  /** The value of the member of an object with that name; 0 when there is none. */
  export function member(v: Text, name: string): Text {
    return memberOf(v, utf8(name));
  }

  /** The same with a name that is text. */
  export function memberOf(v: Text, name: Text): Text {
    if (kind(v) != Kind.Object) return 0;
    let c = items(v);
    while (nextMember(c)) {
      c = rest;
      if (sameText(str(key), name)) return value;
    }
    return 0;
  }

  /** The value below members whose names have no dot: "metadata.labels". */
  export function path(v: Text, names: string): Text {
    const all = utf8(names);
    let from = start(all);
    const to = from + size(all);
    for (let at = from; at <= to; at++) {
      if (at == to || load<u8>(at) == 46) {
        v = memberOf(v, text(from, <u32>(at - from)));
        from = at + 1;
      }
    }
    return v;
  }

  const scratch = memory.data(4096);
  let used: u32 = 0;

  /** A string, unescaped; 0 when it is none, or has escapes and more than 1,024
   * bytes. One with escapes stays until four more were read. */
  export function str(v: Text): Text {
    if (kind(v) != Kind.String || size(v) < 2) return 0;
    const from = start(v) + 1, length = size(v) - 2;
    for (let i: u32 = 0; i < length; i++) {
      if (load<u8>(from + i) == 92) return length <= 1024 ? unescaped(from, from + length) : 0;
    }
    return text(from, length);
  }

  function unescaped(at: usize, to: usize): Text {
    const out = scratch + used;
    used = (used + 1024) & 4095;
    let n: usize = out; // an escape is never shorter than what it stands for
    while (at < to) {
      let c: u32 = load<u8>(at++);
      if (c != 92) {
        store<u8>(n++, <u8>c);
        continue;
      }
      if (at == to) break;
      c = load<u8>(at++);
      switch (c) {
        case 110: c = 10; break;
        case 116: c = 9; break;
        case 114: c = 13; break;
        case 98: c = 8; break;
        case 102: c = 12; break;
        case 117: {
          c = hex(at, to);
          at += 4;
          if (c >= 0xd800 && c < 0xdc00 && at + 6 <= to && load<u16>(at) == 0x755c) {
            c = 0x10000 + ((c - 0xd800) << 10 | (hex(at + 2, to) & 0x3ff));
            at += 6;
          }
          break;
        }
      }
      n = encode(n, c);
    }
    return text(out, <u32>(n - out));
  }

  function hex(at: usize, to: usize): u32 {
    let n: u32 = 0;
    for (let i: usize = 0; i < 4 && at + i < to; i++) {
      const c = load<u8>(at + i);
      n = n << 4 | (c <= 57 ? c - 48 : (c | 32) - 87) & 15;
    }
    return n;
  }

  function encode(n: usize, c: u32): usize {
    if (c < 0x80) {
      store<u8>(n++, <u8>c);
      return n;
    }
    if (c < 0x800) {
      store<u8>(n++, <u8>(0xc0 | c >> 6));
    } else {
      if (c < 0x10000) {
        store<u8>(n++, <u8>(0xe0 | c >> 12));
      } else {
        store<u8>(n++, <u8>(0xf0 | c >> 18));
        store<u8>(n++, <u8>(0x80 | c >> 12 & 63));
      }
      store<u8>(n++, <u8>(0x80 | c >> 6 & 63));
    }
    store<u8>(n++, <u8>(0x80 | c & 63));
    return n;
  }

  /** Says that a value is that string. */
  export function is(v: Text, s: string): bool {
    const t = str(v);
    return t != 0 && isText(t, s);
  }

  /** A whole number; 0 when it is none, which `isNumber` tells. */
  export function number(v: Text): i64 {
    let n: i64 = 0;
    const negative = size(v) && load<u8>(start(v)) == 45;
    for (let i: u32 = negative ? 1 : 0; i < size(v); i++) n = n * 10 + (load<u8>(start(v) + i) - 48);
    return isNumber(v) ? (negative ? -n : n) : 0;
  }

  /** Says that a value is a whole number of at most 18 digits. */
  export function isNumber(v: Text): bool {
    if (kind(v) != Kind.Number) return false;
    const from: u32 = load<u8>(start(v)) == 45 ? 1 : 0;
    if (size(v) == from || size(v) - from > 18) return false;
    for (let i = from; i < size(v); i++) {
      const c = load<u8>(start(v) + i);
      if (c < 48 || c > 57) return false;
    }
    return true;
  }

  export function isTrue(v: Text): bool {
    return isText(v, "true");
  }
}
