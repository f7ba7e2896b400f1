import { Level, Pass, Pod, Snapshot, Verdicts, columns, entry, get, getRefused, is, log, message, now, reason, refuse, symText, utf8 } from "./qm";

export { qm_abi_1, qm_alloc } from "./qm";

export function filter_batch(pod: Pod, nodes: Snapshot, verdicts: Verdicts): i32 {
  log(Level.Info, utf8("asked"));
  const map = get(utf8("configmaps"), pod.text(pod.namespace), utf8("gate"));
  if (getRefused) return refuse("the read is refused");
  if (!map || is(entry(map, 2, "open"), "true")) return 0;
  const names = nodes.u32s(columns.Name);
  for (let row: u32 = 0; row < nodes.rows; row++) {
    if (verdicts[row] != Pass) continue;
    verdicts[row] = 1;
    message.begin("");
    message.add(symText(names[row]));
    message.say(" closed at ");
    message.number(now());
    reason(row, message.done());
  }
  return 0;
}
