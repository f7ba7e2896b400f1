/** dedicated-nodes gives the nodes that are annotated with the namespaces that they
 * are for, as in quaymaster.dev/namespaces: "team-a,team-b", to pods of those
 * only. No column holds annotations: it is of the row tier. */
import { Pass, Text, is, message, node, pod, reason, same, size, start, text } from "../../../sdk/assemblyscript/assembly";

export { qm_abi_1, qm_alloc } from "../../../sdk/assemblyscript/assembly";

const ReasonDedicated = 1; // the first of the manifest's reasons

let system = false; // of the pod: from prefilter to filter

export function prefilter(at: usize, length: u32): i32 {
  system = is(pod.namespace_(text(at, length)), "kube-system");
  return 0;
}

export function filter(podAt: usize, podLength: u32, nodeAt: usize, nodeLength: u32): i32 {
  const list = node.annotation(text(nodeAt, nodeLength), "quaymaster.dev/namespaces");
  if (!list || system) return Pass;
  const own = pod.namespace_(text(podAt, podLength));
  let from = start(list);
  const end = from + size(list);
  for (let at = from; at <= end; at++) {
    if (at < end && load<u8>(at) != 44) continue;
    if (same(text(from, <u32>(at - from)), own)) return Pass;
    from = at + 1;
  }
  message.begin("node(s) were for the namespaces ");
  message.add(list);
  reason(0, message.done());
  return ReasonDedicated;
}
