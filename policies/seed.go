package policies

import corev1 "k8s.io/api/core/v1"

// decisionSeed makes the seed of one decision of its caller's and of what the
// decision is about, by FNV-1a: two decisions that are not about the same have
// random numbers of their own, and one that is asked again has the same.
func decisionSeed(seed uint64, about ...string) uint64 {
	h := uint64(0xcbf29ce484222325)
	add := func(b byte) { h = (h ^ uint64(b)) * 0x100000001b3 }
	for i := range 8 {
		add(byte(seed >> (8 * i)))
	}
	for _, text := range about {
		for i := range len(text) {
			add(text[i])
		}
		add(0xff) // in no UTF-8: "ab", "c" is not "a", "bc"
	}
	return h
}

// ofPod is the cycle of the decision on a pod.
func (c Cycle) ofPod(pod *corev1.Pod) Cycle {
	if pod != nil {
		c.Seed = decisionSeed(c.Seed, string(pod.UID), pod.Namespace, pod.Name)
	}
	return c
}
