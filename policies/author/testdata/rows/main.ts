import { Pass, Text, node, pod, same, text } from "./qm";

export { qm_abi_1, qm_alloc } from "./qm";

function equal(a: Text, b: Text): bool {
  return a && b ? same(a, b) : a == b;
}

export function filter(podAt: usize, podLength: u32, nodeAt: usize, nodeLength: u32): i32 {
  const team = node.label(text(nodeAt, nodeLength), "team");
  return team && !equal(pod.label(text(podAt, podLength), "team"), team) ? 1 : Pass;
}

export function score(podAt: usize, podLength: u32, nodeAt: usize, nodeLength: u32): i64 {
  return <i64>(equal(node.label(text(nodeAt, nodeLength), "team"), pod.label(text(podAt, podLength), "team")) ? 100 : 0) << 32;
}
