/** UTF-8 that lies somewhere in memory: address << 32 | length. 0 is none, which
 * is not the empty text. */
export type Text = u64;

// @ts-ignore: decorator
@inline
export function text(at: usize, length: u32): Text {
  return (<u64>at << 32) | length;
}

// @ts-ignore: decorator
@inline
export function start(t: Text): usize {
  return <usize>(t >> 32);
}

/** The length in bytes. */
// @ts-ignore: decorator
@inline
export function size(t: Text): u32 {
  return <u32>t;
}

const scratch = memory.data(4096);
let used: u32 = 0;

/** A string of the language as Text, cut at 1,024 bytes; until four more were made. */
export function utf8(s: string): Text {
  const at = scratch + used;
  used = (used + 1024) & 4095;
  const units = min(s.length, 341); // of at most 3 bytes
  return text(at, <u32>String.UTF8.encodeUnsafe(changetype<usize>(s), units, at));
}

/** Says that two texts are equal. */
export function same(a: Text, b: Text): bool {
  return size(a) == size(b) && memory.compare(start(a), start(b), size(a)) == 0;
}

/** Says that a text is that string. */
export function is(t: Text, s: string): bool {
  if (!t) return false;
  const n = size(t), at = start(t);
  for (let i: u32 = 0; i < n; i++) {
    if (i >= <u32>s.length) return false;
    const c = s.charCodeAt(i);
    if (c > 127) return same(t, utf8(s));
    if (c != load<u8>(at + i)) return false;
  }
  return n == s.length;
}

export function endsWith(t: Text, end: Text): bool {
  const n = size(end);
  return n <= size(t) && memory.compare(start(t) + size(t) - n, start(end), n) == 0;
}

export function startsWith(t: Text, begin: Text): bool {
  const n = size(begin);
  return n <= size(t) && memory.compare(start(t), start(begin), n) == 0;
}

/** A copy that stays; for configuration: it is never given back. */
export function keep(t: Text): Text {
  const at = heap.alloc(size(t) + 1);
  memory.copy(at, start(t), size(t));
  return text(at, size(t));
}

/** Memory in the place of what was too small; that is not given back. */
export function grown(length: u32): usize {
  return heap.alloc(length);
}

/** One text that is put together: `message.begin("no ").add(...)`. It is cut at
 * 1,024 bytes. */
export namespace message {
  const buffer = memory.data(1024);
  let length: u32 = 0;

  export function begin(s: string): void {
    length = 0;
    add(utf8(s));
  }
  export function add(t: Text): void {
    const n = min(size(t), 1024 - length);
    memory.copy(buffer + length, start(t), n);
    length += n;
  }
  export function say(s: string): void {
    add(utf8(s));
  }
  export function number(n: i64): void {
    add(decimal(n));
  }
  export function done(): Text {
    return text(buffer, length);
  }
}

const digits = memory.data(24);

/** A number in decimal; until the next call of this function. */
export function decimal(n: i64): Text {
  let rest: u64 = n < 0 ? 0 - <u64>n : <u64>n;
  let at = digits + 24;
  do {
    store<u8>(--at, <u8>(48 + (rest % 10)));
    rest /= 10;
  } while (rest);
  if (n < 0) store<u8>(--at, 45);
  return text(at, <u32>(digits + 24 - at));
}
