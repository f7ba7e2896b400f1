/** What tests/run.mjs calls: the SDK over text and messages that it puts into
 * memory. */
import {
  Snapshot, Text, answer, bytes, columns, get, getRefused, is, json, message, milli, node, qm_alloc, review, same, size, start,
  take, rest, text, utf8, value,
} from "../assembly";

export { qm_alloc, text as pack, value, milli, is };
export { get, getRefused };

export function literal(i: i32): Text {
  return utf8(i == 0 ? "configmaps" : i == 1 ? "" : "big");
}

export function isHello(t: Text): bool {
  return is(t, "hé😀");
}

export function member(t: Text, path: Text): Text {
  // names come as text here: the guest would write a string
  return json.memberOf(json.parse(start(t), size(t)), path);
}

export function path(t: Text): Text {
  return json.path(json.parse(start(t), size(t)), "a.b");
}

export function str(v: Text): Text {
  return json.str(v);
}

export function kinds(v: Text): i32 {
  let out = 0, c = json.items(v);
  while (json.nextElement(c)) {
    c = json.rest;
    out = out * 10 + json.kind(json.value);
  }
  return out;
}

export function second(v: Text): i64 {
  return json.number(json.element(v, 1));
}

export function members(v: Text): i32 {
  let n = 0, c = json.items(v);
  while (json.nextMember(c)) {
    c = json.rest;
    n++;
  }
  return n;
}

export function fields(m: Text): i32 {
  let n = 0;
  while (take(m)) {
    m = rest;
    n++;
  }
  return n;
}

export function nodeName(n: Text): Text {
  return node.name(n);
}

export function nodeDisk(n: Text): Text {
  return node.label(n, "disk");
}

export function nodeCPU(n: Text): i64 {
  return milli(node.allocatable(n, "cpu"));
}

export function nodeReady(n: Text): bool {
  return is(node.condition(n, "Ready"), "True") && node.condition(n, "Disk") == 0 && node.unschedulable(n);
}

export function nodeTaint(n: Text): Text {
  return bytes(node.taint(n, 0), 3);
}

export function answers(at: usize, length: u32): u64 {
  review.parse(at, length);
  if (!is(review.kind(), "Pod") || !same(review.object(), utf8('{"a": 1}')) || review.oldObject()) return 0;
  answer.warn(utf8('a "b"\n'));
  answer.warn(utf8("c"));
  answer.annotate(utf8("k"), utf8("v"));
  answer.operation("add", "/metadata/labels");
  answer.key(utf8("a/b~c"));
  answer.str(utf8("x\\"));
  answer.operation("remove", "/spec/x");
  answer.operation("replace", "/n");
  answer.number(i64.MIN_VALUE);
  return answer.finish();
}

export function denies(at: usize, length: u32): u64 {
  review.parse(at, length);
  message.begin("no ");
  message.number(-12);
  answer.deny(403, message.done());
  return answer.finish();
}

/** The memory that is in use: nothing is allocated for a call. */
export function top(): usize {
  const at = heap.alloc(1);
  heap.free(at);
  return at;
}

export function sum(s: Snapshot): i64 {
  const cpu = s.i64s(columns.AllocatableCPU), zone = s.u32s(columns.Zone), labels = s.lists(columns.Labels);
  let total: i64 = 0;
  for (let row: u32 = 0; row < s.rows; row++) total += cpu[row] * 1000 + zone[row] * 10 + s.value(labels, row, 3);
  return total + (s.find(columns.Images) ? 1 : 0);
}
