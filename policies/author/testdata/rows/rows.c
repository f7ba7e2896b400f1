#include "qm.h"

static int team(qm_message object, qm_message *value) { return qm_object_label(object, "team", value); }

static int kept(const uint8_t *pod, uint32_t plen, const uint8_t *node, uint32_t nlen, int *equal) {
	qm_message p = {pod, pod + plen}, n = {node, node + nlen}, want, has;
	int wants = team(p, &want), is = team(n, &has);
	*equal = wants && is ? qm_same(want, has) : wants == is;
	return is && !*equal;
}

QM_EXPORT("filter") int filter(const uint8_t *pod, uint32_t plen, const uint8_t *node, uint32_t nlen) {
	int equal;
	return kept(pod, plen, node, nlen, &equal);
}

QM_EXPORT("score") int64_t score(const uint8_t *pod, uint32_t plen, const uint8_t *node, uint32_t nlen) {
	int equal;
	kept(pod, plen, node, nlen, &equal);
	return (int64_t)(equal ? 100 : 0) << 32;
}
