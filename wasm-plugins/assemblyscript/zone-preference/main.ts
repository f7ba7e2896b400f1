/** zone-preference prefers the zone that a pod names in the annotation
 * quaymaster.dev/zone, then the zones of the configuration in their order, and
 * keeps pods out of the zone that is closed. It is of the column tier.
 *
 * Configuration: {"zones": ["a", "b"], "closed": "c"}; both may be left out. */
import {
  Column, Kind, Pass, Pod, Scores, Snapshot, Text, Verdicts, columns, json, keep, refuse, size, sym,
} from "../../../sdk/assemblyscript/assembly";

export { qm_abi_1, qm_alloc } from "../../../sdk/assemblyscript/assembly";

const ReasonClosed: u8 = 1; // the first of the manifest's reasons
const MaxZones = 16;

const zones = new StaticArray<Text>(MaxZones);
const symbols = new StaticArray<u32>(MaxZones);
let count = 0;
let closed: Text = 0;

export function qm_configure(at: usize, length: u32): i32 {
  const config = json.parse(at, length);
  const list = json.member(config, "zones");
  if (list && json.kind(list) != Kind.Array) return refuse("zones must be a list of names");
  let c = json.items(list);
  while (json.nextElement(c)) {
    c = json.rest;
    const zone = json.str(json.value);
    if (!size(zone)) return refuse("zones must be a list of names");
    if (count == MaxZones) return refuse("there may be 16 zones");
    zones[count++] = keep(zone);
  }
  const one = json.member(config, "closed");
  if (one) {
    const zone = json.str(one);
    if (!size(zone)) return refuse("closed must be the name of a zone");
    closed = keep(zone);
  }
  return 0;
}

export function filter_batch(pod: Pod, nodes: Snapshot, verdicts: Verdicts): i32 {
  if (!closed) return 0;
  const zone = nodes.u32s(columns.Zone), refused = sym(closed);
  for (let row: u32 = 0; row < nodes.rows; row++) {
    if (verdicts[row] == Pass && zone[row] == refused) verdicts[row] = ReasonClosed;
  }
  return 0;
}

export function score_batch(pod: Pod, nodes: Snapshot, verdicts: Verdicts, scores: Scores): i32 {
  const wanted = pod.annotation("quaymaster.dev/zone");
  const first = wanted ? wanted.symbol : 0;
  for (let i = 0; i < count; i++) symbols[i] = sym(zones[i]);
  const zone = nodes.u32s(columns.Zone);
  for (let row: u32 = 0; row < nodes.rows; row++) {
    if (verdicts[row] == Pass) scores[row] = first != 0 && zone[row] == first ? 100 : rank(zone[row]);
  }
  return 0;
}

function rank(zone: u32): i32 {
  for (let i = 0; i < count; i++) {
    if (zone == symbols[i]) return 90 * (count - i) / count;
  }
  return 0;
}
