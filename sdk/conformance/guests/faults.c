/* faults does what the configuration {"fault": NAME} says; "" is a guest without
 * one. What fails a call does so for a pod or an object of the name "fault", so
 * that the guest loads. It offers both tiers, and refuses nodes with the label "a". */
#include "../../c/qm.h"

enum { REASON_A = 1 };

static char fault[32];
static uint32_t calls, cached, rows;

static int is(const char *name) { return qm_equal(fault, qm_strlen(fault), name); }

QM_EXPORT("qm_configure") int qm_configure(const char *json, uint32_t length) {
	qm_json_text(json, length, "fault", fault, sizeof fault);
	return is("config") ? qm_refuse("the configuration is refused") : 0;
}

static volatile uint32_t sink;
__attribute__((noinline)) static uint32_t deeper(uint32_t n) {
	volatile uint32_t room[64];
	room[n % 64] = n;
	return sink ? n : deeper(n + 1) + room[(n + 1) % 64];
}

/* Ends the call, or returns its status. */
static int fail(void) {
	if (is("trap")) __builtin_trap();
	if (is("loop"))
		for (;;) sink++;
	if (is("recursion")) return (int)deeper(1) & 1;
	if (is("memory"))
		for (;;)
			if (__builtin_wasm_memory_grow(0, 1) == (size_t)-1) __builtin_trap();
	if (is("pointer")) *(volatile uint32_t *)0xfffffff0 = 1;
	return is("status") ? qm_refuse("the call is refused") : 0;
}

static int named(const qm_pod *pod) { return qm_equal(QM_AT(const char, pod, pod->name.offset), pod->name.length, "fault"); }

QM_EXPORT("filter_batch") int filter_batch(const qm_pod *pod, const qm_snapshot *s, uint8_t *verdicts) {
	uint32_t key = qm_sym("a", 1);
	const qm_span *labels = qm_find(s, QM_LABELS);
	if (rows != s->rows) cached = key, rows = s->rows; /* not what tells that symbols changed */
	if (is("epoch")) key = cached;
	if (is("leak") && !qm_alloc(4096)) return 1;
	calls++;
	for (uint32_t row = 0; row < s->rows; row++) {
		const uint32_t *pair = qm_list(s, labels, row);
		for (uint32_t i = 0; i < labels[row].count; i += 2)
			if (pair[i] == key) verdicts[row] = REASON_A;
		if (is("counter") && calls % 3 == 2 && verdicts[row] == QM_PASS) verdicts[row] = REASON_A;
		if (is("rows") && row > 3 && verdicts[row] == QM_PASS) verdicts[row] = REASON_A;
	}
	if (!named(pod)) return 0;
	if (is("verdict") && s->rows) verdicts[0] = 251;
	return fail();
}

QM_EXPORT("score_batch") int score_batch(const qm_pod *pod, const qm_snapshot *s, const uint8_t *verdicts, int32_t *scores) {
	for (uint32_t row = 0; row < s->rows; row++) {
		if (verdicts[row] != QM_PASS) continue;
		scores[row] = 50;
		if (named(pod) && is("score")) scores[row] = 101;
		if (named(pod) && is("negative")) scores[row] = -1;
	}
	return 0;
}

QM_EXPORT("filter") int filter(const uint8_t *pod, uint32_t pod_length, const uint8_t *node, uint32_t length) {
	qm_message m;
	(void)pod, (void)pod_length;
	return qm_object_label(qm_bytes(node, length), is("tiers") ? "b" : "a", &m) ? REASON_A : QM_PASS;
}

QM_EXPORT("score") int64_t score(const uint8_t *pod, uint32_t pod_length, const uint8_t *node, uint32_t length) {
	(void)pod, (void)pod_length, (void)node, (void)length;
	return (int64_t)50 << 32;
}

QM_EXPORT("admit") uint64_t admit(const char *review, uint32_t length) {
	qm_json request = qm_review(review, length);
	if (is("patch") && qm_json_kind(qm_json_member(request, "object")) == '{') { /* one more each time */
		int some = qm_json_path(request, (const char *[]){"object", "metadata", "finalizers", 0}).at != 0;
		qm_patch("add", some ? "/metadata/finalizers/-" : "/metadata/finalizers");
		qm_patch_json(qm_string(some ? "\"example.com/again\"" : "[\"example.com/again\"]"));
	}
	if (is("nowhere")) {
		qm_patch("add", "/no/such/place");
		qm_patch_number(1);
	}
	if (qm_json_is(qm_json_member(request, "name"), "fault")) {
		if (is("outside")) return (uint64_t)0xfffffff0 << 32 | 100;
		if (is("long")) return (uint64_t)1024 << 32 | 5 << 20;
		if (is("text")) return (uint64_t)(uintptr_t)"no JSON" << 32 | 7;
		fail();
	}
	return qm_answer();
}
