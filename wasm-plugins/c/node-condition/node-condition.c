/* node-condition: a guest of the row tier, which sees whole nodes.
 *
 * Configuration: {"condition": "GPUHealthy"}, a type of status.conditions.
 * A node that reports it as anything but True is refused, unless the pod has the
 * label any-condition. Nodes that report it True are preferred to those that
 * do not report it. */
#include "qm.h"

enum { REASON_CONDITION = 1 };

/* Field numbers of core/v1. */
enum { METADATA = 1, STATUS = 3, LABELS = 11, KEY = 1, CONDITIONS = 4, CONDITION_TYPE = 1, CONDITION_STATUS = 2 };

static char condition[64];
static int any; /* of the pod: from prefilter to score */

QM_EXPORT("qm_configure") int qm_configure(const char *json, uint32_t length) {
	static const char text[] = "condition is needed: a type of at most 63 bytes";
	if (qm_json_text(json, length, "condition", condition, sizeof condition) == 1 && condition[0]) return 0;
	qm_error(text, sizeof text - 1);
	return 1;
}

QM_EXPORT("prefilter") int prefilter(const uint8_t *pod, uint32_t length) {
	qm_message m = {pod, pod + length}, metadata, key;
	qm_field f;
	any = 0;
	if (!qm_get(m, METADATA, &metadata)) return 0;
	while (qm_next(&metadata, &f))
		if (f.number == LABELS && f.wire == 2 && qm_get(f.bytes, KEY, &key) && qm_is(key, "any-condition")) any = 1;
	return 0;
}

enum state { ABSENT, TRUE, OTHER };

static enum state state(const uint8_t *node, uint32_t length) {
	qm_message m = {node, node + length}, status, text;
	qm_field f;
	if (!qm_get(m, STATUS, &status)) return ABSENT;
	while (qm_next(&status, &f))
		if (f.number == CONDITIONS && f.wire == 2 && qm_get(f.bytes, CONDITION_TYPE, &text) && qm_is(text, condition))
			return qm_get(f.bytes, CONDITION_STATUS, &text) && qm_is(text, "True") ? TRUE : OTHER;
	return ABSENT;
}

QM_EXPORT("filter") int filter(const uint8_t *pod, uint32_t pod_length, const uint8_t *node, uint32_t length) {
	(void)pod, (void)pod_length;
	return !any && state(node, length) == OTHER ? REASON_CONDITION : QM_PASS;
}

QM_EXPORT("score") int64_t score(const uint8_t *pod, uint32_t pod_length, const uint8_t *node, uint32_t length) {
	(void)pod, (void)pod_length;
	return (int64_t)(state(node, length) == TRUE ? 100 : 0) << 32;
}
