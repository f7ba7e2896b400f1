// Runs the module that qm.ts makes: node tests/run.mjs MODULE
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

const memory = () => Buffer.from(m.memory.buffer);
const big = Buffer.from(Array.from({ length: 5000 }, (_, i) => 97 + (i % 26)));
const read = (at, n) => memory().subarray(at, at + n).toString();
const { instance } = await WebAssembly.instantiate(readFileSync(process.argv[2]), {
  qm: {
    error: () => {},
    get(resource, rn, _space, _sn, name, nn, at, capacity) {
      if (read(resource, rn) !== "configmaps") return -2;
      if (read(name, nn) !== "big") return -1;
      big.copy(memory(), at, 0, Math.min(capacity, big.length));
      return big.length;
    },
  },
});
const m = instance.exports;
const put = (data) => {
  const bytes = Buffer.from(data);
  const at = m.qm_alloc(bytes.length + 1);
  assert.equal(at % 8, 0);
  bytes.copy(memory(), at);
  return (BigInt(at) << 32n) | BigInt(bytes.length);
};
const at = (t) => Number(BigInt.asUintN(64, t) >> 32n);
const size = (t) => Number(t & 0xffffffffn);
const text = (t) => (BigInt.asUintN(64, t) === 0n ? null : read(at(t), size(t)));

const max = 9223372036854775807n;
for (const [quantity, value, milli] of [
  ["1", 1n, 1000n], ["250m", 1n, 250n], ["1.5Gi", 3n << 29n, 1610612736000n], ["0.1", 1n, 100n], ["1e3", 1000n, 1000000n], ["12e-2", 1n, 120n],
  ["100u", 1n, 1n], ["-250m", -1n, -250n], ["7E", 7000000000000000000n, max], ["16Ei", max, max], ["3k", 3000n, 3000000n],
  ["0.123456789012Ti", 135742175047n, 135742175046583n], ["99999999999999999999", max, max], ["9223372036854775807", max, max],
  ["123Mi", 128974848n, 128974848000n], ["x", 0n, 0n], ["", 0n, 0n], ["1Qi", 0n, 0n], ["1ki", 0n, 0n], ["1K", 0n, 0n], ["1e", 0n, 0n], ["1e999", 0n, 0n],
]) assert.deepEqual([m.value(put(quantity)), m.milli(put(quantity))], [value, milli], quantity);

const source = ' {"a": {"b": [1, -2 , "x\\"y", true, null]}, "s": "h\\u00e9\\n\\ud83d\\ude00", "k\\u0065y": false, "e": {}, "l": [] } ';
const json = put(source);
const b = m.path(json);
assert.equal(text(b), '[1, -2 , "x\\"y", true, null]');
assert.equal(m.kinds(b), 33421);
assert.equal(m.second(b), -2n);
assert.equal(text(m.str(m.member(json, put("s")))), "hé\n😀");
assert.equal(text(m.member(json, put("key"))), "false");
assert.equal(m.member(json, put("none")), 0n);
assert.equal(m.str(b), 0n);
assert.equal(m.members(json), 0); // it begins with a blank: parse comes first
assert.equal(m.members(put(source.trim())), 5);
assert.equal(m.members(put("{}")), 0);
assert.ok(m.isHello(put("hé😀")) && !m.isHello(put("hé")) && !m.isHello(put("hé😀!")));
for (let cut = 0; cut < source.length; cut++) {
  const part = put(source.slice(0, cut));
  m.path(part);
  m.str(m.member(part, put("s")));
}

const field = (number, bytes) => Buffer.concat([Buffer.from([(number << 3) | 2, bytes.length]), Buffer.from(bytes)]);
const entry = (number, key, value) => field(number, Buffer.concat([field(1, Buffer.from(key)), field(2, Buffer.from(value))]));
const node = Buffer.concat([
  field(1, Buffer.concat([field(1, Buffer.from("n1")), entry(11, "zone", "a"), entry(11, "disk", "ssd")])),
  field(2, Buffer.concat([Buffer.from([4 << 3, 1]), field(5, Buffer.concat([field(1, Buffer.from("k")), field(3, Buffer.from("NoSchedule"))]))])),
  field(3, Buffer.concat([entry(2, "cpu", field(1, Buffer.from("3500m"))), field(4, Buffer.concat([field(1, Buffer.from("Ready")), field(2, Buffer.from("True"))]))])),
]);
const n = put(node);
assert.deepEqual([text(m.nodeName(n)), text(m.nodeDisk(n)), m.nodeCPU(n), m.nodeReady(n), text(m.nodeTaint(n))], ["n1", "ssd", 3500n, 1, "NoSchedule"]);
assert.equal(m.fields(n), 3);
for (let cut = 0; cut < node.length; cut++) {
  const part = put(node.subarray(0, cut));
  assert.ok(m.fields(part) <= 3);
  m.nodeDisk(part);
}
assert.equal(m.fields(put([0x0a, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255])), 0);
assert.equal(m.fields(put([0x0b])), 0);

const asked = put('{"request": {"kind": {"kind": "Pod"}, "object": {"a": 1}, "oldObject": null}}');
assert.equal(
  text(m.answers(at(asked), size(asked))),
  '{"allowed":true,"warnings":["a \\"b\\"\\u000a","c"],"patch":[{"op":"add","path":"/metadata/labels/a~1b~0c","value":"x\\\\"},' +
    '{"op":"remove","path":"/spec/x"},{"op":"replace","path":"/n","value":-9223372036854775808}],"auditAnnotations":{"k":"v"}}',
);
assert.equal(text(m.denies(at(asked), size(asked))), '{"allowed":false,"code":403,"message":"no -12"}');

assert.equal(m.get(m.literal(2), 0n, 0n), 0n);
assert.equal(m.getRefused.value, 1);
assert.equal(m.get(m.literal(0), 0n, put("none")), 0n);
assert.equal(m.getRefused.value, 0);
assert.equal(text(m.get(m.literal(0), m.literal(1), m.literal(2))), big.toString());

const before = m.top();
for (let i = 0; i < 100; i++) {
  m.answers(at(asked), size(asked));
  m.nodeCPU(n);
  m.path(json);
  m.get(m.literal(0), m.literal(1), m.literal(2));
}
assert.equal(m.top(), before, "a call allocates");

const words = [0x31534d51, 3 << 16, 2, 64, 7, 0, 3, 0, 16 | (8 << 24), 72, 2, 3 | (4 << 24), 88, 2, 64 | (1 << 16) | (4 << 24), 96, 2, 0, 5, 0, 6, 0, 11, 12, 112, 4, 128, 0, 1, 2, 3, 4];
const snapshot = put(Buffer.from(new Int32Array(words).buffer));
assert.equal(m.sum(at(snapshot)), 5n * 1000n + 110n + 4n + 6n * 1000n + 120n);
console.log("ok");
