/* node-resources-fit: the scheduler's NodeResourcesFit as a guest, with its default
 * score, least allocated. Of extended resources it knows those of its manifest; a
 * pod that requests another is refused everywhere. */
#include "qm.h"

enum { REASON_PODS = 1, REASON_CPU, REASON_MEMORY, REASON_STORAGE, REASON_GPU, REASON_UNKNOWN };
enum { ALLOCATABLE_GPU = QM_EXTENDED, REQUESTED_GPU }; /* the manifest's order */
static const char gpu[] = "nvidia.com/gpu";

/* What the pod requests of the resource, and whether it requests others. */
static int64_t requested(const qm_pod *pod, int *unknown) {
	const qm_amount *x = QM_AT(const qm_amount, pod, pod->extended.offset), *end = x + pod->extended.count;
	int64_t amount = 0;
	for (; x < end; x++) {
		if (qm_equal(QM_AT(const char, pod, x->name.offset), x->name.length, gpu)) amount = x->amount;
		else *unknown = 1;
	}
	return amount;
}

/* Refuses the rows whose free amount is smaller, where nothing did before. */
static void lacks(const qm_snapshot *s, uint8_t *verdicts, uint16_t allocatable, uint16_t used, int64_t amount, uint8_t reason) {
	const int64_t *all = qm_find(s, allocatable), *taken = qm_find(s, used);
	for (uint32_t row = 0; row < s->rows; row++)
		if (amount > all[row] - taken[row] && verdicts[row] == QM_PASS) verdicts[row] = reason;
}

QM_EXPORT("filter_batch") int filter_batch(const qm_pod *pod, const qm_snapshot *s, uint8_t *verdicts) {
	int unknown = 0;
	int64_t gpus = requested(pod, &unknown);
	if (unknown) {
		for (uint32_t row = 0; row < s->rows; row++)
			if (verdicts[row] == QM_PASS) verdicts[row] = REASON_UNKNOWN;
		return 0;
	}
	lacks(s, verdicts, QM_ALLOCATABLE_PODS, QM_REQUESTED_PODS, 1, REASON_PODS);
	if (pod->cpu > 0) lacks(s, verdicts, QM_ALLOCATABLE_CPU, QM_REQUESTED_CPU, pod->cpu, REASON_CPU);
	if (pod->memory > 0) lacks(s, verdicts, QM_ALLOCATABLE_MEMORY, QM_REQUESTED_MEMORY, pod->memory, REASON_MEMORY);
	if (pod->ephemeral_storage > 0)
		lacks(s, verdicts, QM_ALLOCATABLE_EPHEMERAL_STORAGE, QM_REQUESTED_EPHEMERAL_STORAGE, pod->ephemeral_storage, REASON_STORAGE);
	if (gpus > 0) lacks(s, verdicts, ALLOCATABLE_GPU, REQUESTED_GPU, gpus, REASON_GPU);
	return 0;
}

static inline int32_t least(int64_t all, int64_t used) { return used <= all ? (int32_t)((all - used) * 100 / all) : 0; }

QM_EXPORT("score_batch") int score_batch(const qm_pod *pod, const qm_snapshot *s, const uint8_t *verdicts, int32_t *scores) {
	const int64_t *cpu = qm_find(s, QM_ALLOCATABLE_CPU), *memory = qm_find(s, QM_ALLOCATABLE_MEMORY);
	const int64_t *used_cpu = qm_find(s, QM_NONZERO_CPU), *used_memory = qm_find(s, QM_NONZERO_MEMORY);
	for (uint32_t row = 0; row < s->rows; row++) {
		if (verdicts[row] != QM_PASS) continue;
		int32_t sum = 0, n = 0;
		if (cpu[row]) sum += least(cpu[row], used_cpu[row] + pod->nonzero_cpu), n++;
		if (memory[row]) sum += least(memory[row], used_memory[row] + pod->nonzero_memory), n++;
		scores[row] = n == 2 ? sum / 2 : sum;
	}
	return 0;
}
