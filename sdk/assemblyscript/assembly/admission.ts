import { Text, text, start, size, utf8, decimal } from "./text";
import { Kind, json } from "./json";

/** What is asked: an `AdmissionReview` of `admission.k8s.io/v1`. Begin `admit` with
 * `review.parse`. */
export namespace review {
  let all: Text = 0;

  export function parse(at: usize, length: u32): void {
    all = json.member(json.parse(at, length), "request");
    answer.begin();
  }
  /** The whole request, as JSON. */
  export function request(): Text {
    return all;
  }
  /** `CREATE`, `UPDATE`, `DELETE`, `CONNECT`. */
  export function operation(): Text {
    return json.str(json.member(all, "operation"));
  }
  export function namespace_(): Text {
    return json.str(json.member(all, "namespace"));
  }
  export function kind(): Text {
    return json.str(json.path(all, "kind.kind"));
  }
  /** 0 at a deletion. */
  export function object(): Text {
    return objectAt("object");
  }
  export function oldObject(): Text {
    return objectAt("oldObject");
  }
  // What the host writes as null is none.
  function objectAt(name: string): Text {
    const v = json.member(all, name);
    return json.kind(v) == Kind.Object ? v : 0;
  }
}

/** Bytes that grow; what they took is kept for the next call. */
class Buffer {
  private at: usize = 0;
  private capacity: u32 = 0;
  length: u32 = 0;

  bytes(from: usize, n: u32): void {
    const need = this.length + n;
    if (need > this.capacity) {
      const capacity = max(2 * need, 1024);
      const at = heap.alloc(capacity);
      memory.copy(at, this.at, this.length);
      this.at = at;
      this.capacity = capacity;
    }
    memory.copy(this.at + this.length, from, n);
    this.length = need;
  }
  byte(c: u8): void {
    store<u8>(one, c);
    this.bytes(one, 1);
  }
  text(t: Text): void {
    this.bytes(start(t), size(t));
  }
  string(s: string): void {
    this.text(utf8(s));
  }
  // A text inside of a JSON string; with ~ and / escaped as a pointer's.
  escaped(t: Text, pointer: bool): void {
    let from = start(t);
    const end = from + size(t);
    for (let at = from; at < end; at++) {
      const c = load<u8>(at);
      const quoted = c == 34 || c == 92;
      const part = pointer && (c == 126 || c == 47);
      if (!quoted && !part && c > 31) continue;
      this.bytes(from, <u32>(at - from));
      from = at + 1;
      if (part) {
        this.string(c == 126 ? "~0" : "~1");
      } else {
        this.string(quoted ? "\\" : c < 16 ? "\\u000" : "\\u001");
        this.byte(quoted ? c : (c & 15) < 10 ? 48 + (c & 15) : 87 + (c & 15));
      }
    }
    this.bytes(from, <u32>(end - from));
  }
  quoted(t: Text): void {
    this.byte(34);
    this.escaped(t, false);
    this.byte(34);
  }
  done(): Text {
    return text(this.at, this.length);
  }
}

const one = memory.data(1);

/** What is answered; it begins as allowed. */
export namespace answer {
  const warnings = new Buffer(), patch = new Buffer(), audit = new Buffer(), denied = new Buffer(), out = new Buffer();
  let code: u32 = 0;
  let path = false; // an operation's path is open

  export function begin(): void {
    code = 0;
    path = false;
    warnings.length = patch.length = audit.length = denied.length = out.length = 0;
  }

  /** Refuses; `code` is of HTTP, 403 as a rule. */
  export function deny(status: u32, message: Text): void {
    code = status;
    denied.length = 0;
    denied.quoted(message);
  }

  /** A text that the client is shown. */
  export function warn(t: Text): void {
    if (warnings.length) warnings.byte(44);
    warnings.quoted(t);
  }

  /** A note in the audit log. */
  export function annotate(key: Text, value: Text): void {
    if (audit.length) audit.byte(44);
    audit.quoted(key);
    audit.byte(58);
    audit.quoted(value);
  }

  /** Begins an operation of RFC 6902 (add, replace, remove, test) over the object of
   * the request, at a JSON pointer; `key` may follow, then a value unless it removes.
   * Patches count at `Mutate` only. */
  export function operation(name: string, pointer: string): void {
    close();
    if (patch.length) patch.byte(44);
    patch.string('{"op":"');
    patch.string(name);
    patch.string('","path":"');
    patch.string(pointer);
    path = true;
  }
  /** Adds a key to the pointer, escaped as it must be. */
  export function key(t: Text): void {
    patch.byte(47);
    patch.escaped(t, true);
  }
  function with_(): void {
    patch.string('","value":');
    path = false;
  }
  export function str(t: Text): void {
    with_();
    patch.quoted(t);
    patch.byte(125);
  }
  export function number(n: i64): void {
    with_();
    patch.text(decimal(n));
    patch.byte(125);
  }
  /** A value that is JSON. */
  export function value(t: Text): void {
    with_();
    patch.text(t);
    patch.byte(125);
  }
  function close(): void {
    if (path) patch.string('"}');
    path = false;
  }

  function part(name: string, list: Buffer, end: u8): void {
    if (!list.length) return;
    out.string(name);
    out.text(list.done());
    out.byte(end);
  }

  /** The result of `admit`. */
  export function finish(): u64 {
    close();
    if (code) {
      out.string('{"allowed":false,"code":');
      out.text(decimal(code));
      out.string(',"message":');
      out.text(denied.done());
    } else {
      out.string('{"allowed":true');
    }
    part(',"warnings":[', warnings, 93);
    part(',"patch":[', patch, 93);
    part(',"auditAnnotations":{', audit, 125);
    out.byte(125);
    return out.done();
  }
}
