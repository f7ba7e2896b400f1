import { Text, start, size } from "./text";
import { bytes, number, nth, having, entry } from "./proto";

const Metadata: u32 = 1, Spec: u32 = 2, Status: u32 = 3;

/** A `v1` Node, or what it has of it: 0 is none. */
export namespace node {
  export function name(n: Text): Text {
    return bytes(bytes(n, Metadata), 1);
  }
  export function label(n: Text, key: string): Text {
    return entry(bytes(n, Metadata), 11, key);
  }
  export function annotation(n: Text, key: string): Text {
    return entry(bytes(n, Metadata), 12, key);
  }
  export function unschedulable(n: Text): bool {
    return number(bytes(n, Spec), 4) != 0;
  }
  /** The i-th taint: see `taint`. */
  export function taint(n: Text, i: u32): Text {
    return nth(bytes(n, Spec), 5, i);
  }
  /** The status of a condition: `True`, `False`, `Unknown`. */
  export function condition(n: Text, kind: string): Text {
    const c = having(bytes(n, Status), 4, 1, kind);
    return c ? bytes(c, 2) : 0;
  }
  /** Amounts are quantities: see `milli` and `value`. */
  export function capacity(n: Text, resource: string): Text {
    return bytes(entry(bytes(n, Status), 1, resource), 1);
  }
  export function allocatable(n: Text, resource: string): Text {
    return bytes(entry(bytes(n, Status), 2, resource), 1);
  }
  /** The status, for `takeBytes(status, 8)`: images, whose names are `takeBytes(image, 1)`. */
  export function status(n: Text): Text {
    return bytes(n, Status);
  }
}

export namespace taint {
  export function key(t: Text): Text {
    return bytes(t, 1);
  }
  export function value(t: Text): Text {
    return bytes(t, 2);
  }
  export function effect(t: Text): Text {
    return bytes(t, 3);
  }
}

/** A `v1` Pod as protobuf. */
export namespace pod {
  export function name(p: Text): Text {
    return bytes(bytes(p, Metadata), 1);
  }
  export function namespace_(p: Text): Text {
    return bytes(bytes(p, Metadata), 3);
  }
  export function label(p: Text, key: string): Text {
    return entry(bytes(p, Metadata), 11, key);
  }
  export function annotation(p: Text, key: string): Text {
    return entry(bytes(p, Metadata), 12, key);
  }
  export function nodeSelector(p: Text, key: string): Text {
    return entry(bytes(p, Spec), 7, key);
  }
  export function serviceAccount(p: Text): Text {
    return bytes(bytes(p, Spec), 8);
  }
  export function schedulerName(p: Text): Text {
    return bytes(bytes(p, Spec), 19);
  }
  export function priority(p: Text): i32 {
    return <i32>number(bytes(p, Spec), 25);
  }
  /** The i-th container: see `container`. */
  export function container(p: Text, i: u32): Text {
    return nth(bytes(p, Spec), 2, i);
  }
  export function initContainer(p: Text, i: u32): Text {
    return nth(bytes(p, Spec), 20, i);
  }
  /** The i-th toleration: see `toleration`. */
  export function toleration(p: Text, i: u32): Text {
    return nth(bytes(p, Spec), 22, i);
  }
}

export namespace toleration {
  export function key(t: Text): Text {
    return bytes(t, 1);
  }
  export function operator(t: Text): Text {
    return bytes(t, 2);
  }
  export function value(t: Text): Text {
    return bytes(t, 3);
  }
  export function effect(t: Text): Text {
    return bytes(t, 4);
  }
}

export namespace container {
  export function name(c: Text): Text {
    return bytes(c, 1);
  }
  export function image(c: Text): Text {
    return bytes(c, 2);
  }
  export function limit(c: Text, resource: string): Text {
    return bytes(entry(bytes(c, 8), 1, resource), 1);
  }
  export function request(c: Text, resource: string): Text {
    return bytes(entry(bytes(c, 8), 2, resource), 1);
  }
}

/** An amount of a resource as it is written (`250m`, `1.5Gi`), rounded away from
 * 0. It saturates, and is 0 when it is none. */
export function value(quantity: Text): i64 {
  return scaled(quantity, 1);
}

/** The same in thousandths. */
export function milli(quantity: Text): i64 {
  return scaled(quantity, 1000);
}

function scaled(quantity: Text, factor: u64): i64 {
  let at = start(quantity);
  const end = at + size(quantity);
  if (at == end) return 0;
  const first = load<u8>(at);
  if (first == 45 || first == 43) at++; // - +
  let digits: u64 = 0, exponent = 0;
  let fraction = false;
  for (; at < end; at++) {
    const c = load<u8>(at);
    if (c == 46) {
      fraction = true;
    } else if (c < 48 || c > 57) {
      break;
    } else if (digits <= 922337203685477580) {
      digits = digits * 10 + (c - 48);
      if (fraction) exponent--;
    } else if (!fraction) {
      exponent++;
    }
  }
  let binary: u32 = 0;
  if (at < end) {
    const c = load<u8>(at++);
    const i = at < end && load<u8>(at) == 105;
    const step = power(c);
    if (i && at + 1 == end && step > 0 && c != 107) {
      binary = 10 * step;
    } else if (at == end && c == 110) {
      exponent -= 9;
    } else if (at == end && c == 117) {
      exponent -= 6;
    } else if (at == end && c == 109) {
      exponent -= 3;
    } else if (at == end && (step > 1 || c == 107)) {
      exponent += 3 * step;
    } else if ((c == 101 || c == 69) && at < end) {
      const e = plain(at, end);
      if (e < -40 || e > 40) return 0;
      exponent += e;
    } else {
      return 0;
    }
  }
  const n = rounded(digits, factor, binary, exponent);
  return first == 45 ? -n : n;
}

// 1 for k, K, 2 for M and so on.
function power(c: u8): i32 {
  switch (c) {
    case 107: case 75: return 1;
    case 77: return 2;
    case 71: return 3;
    case 84: return 4;
    case 80: return 5;
    case 69: return 6;
    default: return 0;
  }
}

function plain(at: usize, end: usize): i32 {
  const negative = load<u8>(at) == 45;
  if (negative || load<u8>(at) == 43) at++;
  let n = 0;
  if (at == end || end - at > 3) return 99;
  for (; at < end; at++) {
    const c = load<u8>(at);
    if (c < 48 || c > 57) return 99;
    n = n * 10 + (c - 48);
  }
  return negative ? -n : n;
}

// digits * factor * 2^binary * 10^exponent in 128 bits: high and low.
function rounded(digits: u64, factor: u64, binary: u32, exponent: i32): i64 {
  let high: u64 = 0, low = digits;
  if (factor > 1) {
    const h = (low >> 32) * factor;
    const l = (low & 0xffffffff) * factor;
    low = (h << 32) + l;
    high = (h >> 32) + (low < l ? 1 : 0);
  }
  for (; binary > 0; binary--) {
    if (high >> 63) return i64.MAX_VALUE;
    high = (high << 1) | (low >> 63);
    low <<= 1;
  }
  for (; exponent > 0; exponent--) {
    if (high || low > 922337203685477580) return digits ? i64.MAX_VALUE : 0;
    low *= 10;
  }
  let left = false;
  for (; exponent < 0 && (high | low) != 0; exponent++) {
    const h1 = high / 10;
    let r = high % 10;
    const a = (r << 32) | (low >> 32);
    const q1 = a / 10;
    r = a % 10;
    const b = (r << 32) | (low & 0xffffffff);
    const q0 = b / 10;
    left = left || b % 10 != 0;
    high = h1;
    low = (q1 << 32) | q0;
  }
  if (left) low++;
  return high || low > <u64>i64.MAX_VALUE ? i64.MAX_VALUE : <i64>low;
}
