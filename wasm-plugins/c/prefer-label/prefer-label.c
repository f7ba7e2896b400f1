/* prefer-label: where pods should go by one label of the nodes.
 *
 * Configuration: {"key": "disktype", "value": "ssd", "never": "tape"}.
 * A node whose label key is "never" is refused; "never" may be left out.
 *
 * Version 1 prefers the nodes that carry key=value.
 * Version 2 keeps those nodes free for the pods that select them by
 * nodeSelector and prefers the others for everything else. */
#include "qm.h"

#ifndef VERSION
#define VERSION 1
#endif

enum { REASON_NEVER = 1 };

static char key[64], value[64], never[64];
static qm_symbol key_symbol, value_symbol, never_symbol;

static int refuse(const char *text) {
	qm_error(text, qm_strlen(text));
	return 1;
}

QM_EXPORT("qm_configure") int qm_configure(const char *json, uint32_t length) {
	if (qm_json_text(json, length, "key", key, sizeof key) < 0) return refuse("key must be a string of at most 63 bytes");
	if (qm_json_text(json, length, "value", value, sizeof value) < 0) return refuse("value must be a string of at most 63 bytes");
	if (qm_json_text(json, length, "never", never, sizeof never) < 0) return refuse("never must be a string of at most 63 bytes");
	if (!key[0] || !value[0]) return refuse("key and value are needed, as in {\"key\":\"disktype\",\"value\":\"ssd\"}");
	return 0;
}

/* The value of the label on one node, 0 when it has none. */
static inline uint32_t label(const qm_snapshot *s, const qm_span *labels, uint32_t row, uint32_t want) {
	const uint32_t *pair = qm_list(s, labels, row), *end = pair + labels[row].count;
	for (; pair < end; pair += 2)
		if (pair[0] == want) return pair[1];
	return 0;
}

QM_EXPORT("filter_batch") int filter_batch(const qm_pod *pod, const qm_snapshot *s, uint8_t *verdicts) {
	(void)pod;
	if (!never[0]) return 0;
	uint32_t k = qm_resolve(&key_symbol, s, key), refused = qm_resolve(&never_symbol, s, never);
	const qm_span *labels = qm_find(s, QM_LABELS);
	for (uint32_t i = 0; i < s->rows; i++)
		if (label(s, labels, i, k) == refused) verdicts[i] = REASON_NEVER;
	return 0;
}

#if VERSION > 1
static int selects(const qm_pod *pod) {
	const qm_pair *p = QM_AT(const qm_pair, pod, pod->node_selector.offset);
	for (uint32_t i = 0; i < pod->node_selector.count; i++)
		if (qm_equal(QM_AT(const char, pod, p[i].key.offset), p[i].key.length, key) &&
		    qm_equal(QM_AT(const char, pod, p[i].value.offset), p[i].value.length, value))
			return 1;
	return 0;
}
#endif

QM_EXPORT("score_batch") int score_batch(const qm_pod *pod, const qm_snapshot *s, const uint8_t *verdicts, int32_t *scores) {
	uint32_t k = qm_resolve(&key_symbol, s, key), v = qm_resolve(&value_symbol, s, value);
	const qm_span *labels = qm_find(s, QM_LABELS);
#if VERSION > 1
	int32_t with = selects(pod) ? 100 : 0;
#else
	(void)pod;
	int32_t with = 100;
#endif
	for (uint32_t i = 0; i < s->rows; i++)
		if (verdicts[i] == QM_PASS) scores[i] = label(s, labels, i, k) == v ? with : 100 - with;
	return 0;
}
