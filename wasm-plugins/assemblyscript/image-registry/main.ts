/** image-registry lets pods in whose images come from the registries of the
 * configuration only, and gives images without a registry the first of them:
 * {"registries": ["registry.example/"]}. */
import {
  Kind, Text, answer, decimal, is, json, keep, message, refuse, review, size, start, startsWith, utf8,
} from "../../../sdk/assemblyscript/assembly";

export { qm_abi_1, qm_alloc } from "../../../sdk/assemblyscript/assembly";

let registries: Text = 0; // a JSON array

export function qm_configure(at: usize, length: u32): i32 {
  registries = keep(json.member(json.parse(at, length), "registries"));
  let n = 0, c = json.items(registries);
  while (json.nextElement(c)) {
    c = json.rest;
    const one = json.str(json.value);
    if (!size(one) || load<u8>(start(one) + size(one) - 1) != 47) return refuse("a registry must be text that ends with /");
    n++;
  }
  return n && json.kind(registries) == Kind.Array ? 0 : refuse('registries is needed, as in {"registries": ["registry.example/"]}');
}

export function admit(at: usize, length: u32): u64 {
  review.parse(at, length);
  if (is(review.kind(), "Pod") && review.object()) {
    const spec = json.member(review.object(), "spec");
    check(spec, "initContainers", "/spec/initContainers");
    check(spec, "containers", "/spec/containers");
  }
  return answer.finish();
}

function check(spec: Text, list: string, path: string): void {
  let i = 0, c = json.items(json.member(spec, list));
  while (json.nextElement(c)) {
    c = json.rest;
    const image = json.str(json.member(json.value, "image"));
    if (image && !allowed(image)) {
      if (hasRegistry(image)) {
        message.begin("the image ");
        message.add(image);
        message.say(" is of a registry that is not allowed");
        answer.deny(403, message.done());
        return;
      }
      patch(path, i, image);
    }
    i++;
  }
}

function allowed(image: Text): bool {
  let c = json.items(registries);
  while (json.nextElement(c)) {
    c = json.rest;
    if (startsWith(image, json.str(json.value))) return true;
  }
  return false;
}

// A registry is what comes before the first / and has a dot or a port.
function hasRegistry(image: Text): bool {
  let dotted = false;
  for (let i: u32 = 0; i < size(image); i++) {
    const c = load<u8>(start(image) + i);
    if (c == 47) return dotted;
    dotted = dotted || c == 46 || c == 58;
  }
  return false;
}

function patch(path: string, i: i32, image: Text): void {
  message.begin("");
  message.add(json.str(json.element(registries, 0)));
  message.add(image);
  answer.operation("replace", path);
  answer.key(decimal(i));
  answer.key(utf8("image"));
  answer.str(message.done());
}
