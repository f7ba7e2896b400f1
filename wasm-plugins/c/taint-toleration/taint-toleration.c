/* taint-toleration: the scheduler's TaintToleration as a guest. It refuses nodes
 * with a NoSchedule or NoExecute taint that the pod does not tolerate, and
 * rates nodes by how few PreferNoSchedule taints it does not tolerate. */
#include "qm.h"

enum { REASON_TAINT = 1 };

static qm_symbol no_schedule, no_execute, prefer_no_schedule;

typedef struct { uint32_t key, value, effect; } taint; /* symbols, as the column has them */

/* A text of the pod equals a symbol: a symbol of 0 is "" on the node's side, and
 * "" or unknown to all nodes on the pod's. */
static inline int same(const qm_text *text, uint32_t symbol) { return text->symbol == symbol && (symbol || !text->length); }

static int tolerates(const qm_toleration *t, const taint *n) {
	if (t->effect.length && !same(&t->effect, n->effect)) return 0;
	if (t->key.length && !same(&t->key, n->key)) return 0;
	return t->op == 1 || (t->op == 0 && same(&t->value, n->value)); /* Exists, Equal */
}

/* Taints of the effects that nothing tolerates; preferences count only tolerations
 * that name that effect or none, which tolerates() sees to. */
static uint32_t untolerated(const qm_pod *pod, const taint *at, uint32_t count, uint32_t effect, uint32_t other) {
	const qm_toleration *all = QM_AT(const qm_toleration, pod, pod->tolerations.offset);
	uint32_t left = 0;
	for (const taint *end = at + count; at < end; at++) {
		if (at->effect != effect && at->effect != other) continue;
		uint32_t i = 0;
		while (i < pod->tolerations.count && !tolerates(all + i, at)) i++;
		left += i == pod->tolerations.count;
	}
	return left;
}

QM_EXPORT("filter_batch") int filter_batch(const qm_pod *pod, const qm_snapshot *s, uint8_t *verdicts) {
	uint32_t schedule = qm_resolve(&no_schedule, s, "NoSchedule"), execute = qm_resolve(&no_execute, s, "NoExecute");
	const qm_span *taints = qm_find(s, QM_TAINTS);
	for (uint32_t row = 0; row < s->rows; row++)
		if (taints[row].count && verdicts[row] == QM_PASS &&
		    untolerated(pod, (const taint *)qm_list(s, taints, row), taints[row].count / 3, schedule, execute))
			verdicts[row] = REASON_TAINT;
	return 0;
}

QM_EXPORT("score_batch") int score_batch(const qm_pod *pod, const qm_snapshot *s, const uint8_t *verdicts, int32_t *scores) {
	uint32_t prefer = qm_resolve(&prefer_no_schedule, s, "PreferNoSchedule");
	const qm_span *taints = qm_find(s, QM_TAINTS);
	for (uint32_t row = 0; row < s->rows; row++)
		if (taints[row].count && verdicts[row] == QM_PASS)
			scores[row] = (int32_t)untolerated(pod, (const taint *)qm_list(s, taints, row), taints[row].count / 3, prefer, prefer);
	return 0;
}

/* The more taints, the fewer points: the node with most has none. */
QM_EXPORT("normalize") int normalize(const uint8_t *verdicts, int32_t *scores, uint32_t rows) {
	int32_t most = 0;
	for (uint32_t row = 0; row < rows; row++)
		if (verdicts[row] == QM_PASS && scores[row] > most) most = scores[row];
	for (uint32_t row = 0; row < rows; row++)
		if (verdicts[row] == QM_PASS) scores[row] = most ? 100 - 100 * scores[row] / most : 100;
	return 0;
}
