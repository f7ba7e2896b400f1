#include "qm.h"

QM_EXPORT("filter_batch") int filter_batch(const qm_pod *pod, const qm_snapshot *s, uint8_t *verdicts) {
	static qm_buffer room, why;
	static char name[64];
	qm_message map, open;
	qm_log(0, "asked", 5);
	if (qm_read("configmaps", qm_bytes(QM_AT(const char, pod, pod->namespace.offset), pod->namespace.length), qm_string("gate"), &room, &map) != 1) return 0;
	if (qm_entry(map, 2, "open", &open) && qm_is(open, "true")) return 0;
	const uint32_t *names = qm_find(s, QM_NAME);
	for (uint32_t row = 0; row < s->rows; row++) {
		if (verdicts[row] != QM_PASS) continue;
		verdicts[row] = 1;
		why.length = 0;
		qm_put(&why, qm_bytes(name, qm_sym_text(names[row], name, sizeof name)));
		qm_put_text(&why, " closed at ");
		qm_put_number(&why, qm_now());
		qm_reason(row, (const char *)why.at, why.length);
	}
	return 0;
}
