/* A guest of the column tier, made from docs/abi.md alone: no header, no library.
 * It refuses nodes whose label "pool" is not the pod's label "pool", and nodes with
 * a taint that the pod does not tolerate by key; it rates free CPU, from 0 to 100. */
__asm__(".section .custom_section.qm.manifest,\"\",@\n"
	".ascii \"{\\\"abi\\\":\\\"qm/1\\\",\\\"name\\\":\\\"by-hand-columns\\\",\\\"version\\\":\\\"1\\\",\\\"extensionPoints\\\":[\\\"Filter\\\",\\\"Score\\\"],\"\n"
	".ascii \"\\\"columns\\\":[\\\"labels\\\",\\\"taints\\\",\\\"allocatable.cpu\\\",\\\"requested.cpu\\\",\\\"flags\\\"],\\\"reasons\\\":[\\\"another pool\\\",\\\"a taint\\\"]}\"\n");

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

#define EXPORT(name) __attribute__((export_name(name)))
__attribute__((import_module("qm"), import_name("sym"))) u32 sym(const char *text, u32 length);

extern u8 __heap_base;
static u32 top;

EXPORT("qm_abi_1") void marker(void) {}

EXPORT("qm_alloc") u32 alloc(u32 size) {
	if (!top) top = ((u32)&__heap_base + 7) & ~7u;
	u32 at = top;
	top = (top + size + 7) & ~7u;
	u32 have = (u32)__builtin_wasm_memory_size(0) << 16;
	if (top > have && __builtin_wasm_memory_grow(0, (top - have + 0xffff) >> 16) == (unsigned long)-1) return 0;
	return at;
}

static u32 word(const u8 *p) { return *(const u32 *)p; }

/* The data of a column; its rows are at the same offset from there. */
static const u8 *column(const u8 *snapshot, u16 id) {
	u32 n = *(const u16 *)(snapshot + 6);
	for (const u8 *d = snapshot + 32; n--; d += 12)
		if (*(const u16 *)d == id) return snapshot + word(d + 4);
	return 0;
}

/* The symbol of the value of the pod's label whose key is the symbol given; labels are a list
 * {offset, count} at 80 of pairs of strings {symbol, offset, length}. */
static u32 label(const u8 *pod, u32 key) {
	const u8 *pair = pod + word(pod + 80);
	for (u32 n = word(pod + 84); n--; pair += 24)
		if (word(pair) == key && key) return word(pair + 12);
	return 0;
}

static int tolerates(const u8 *pod, u32 key) {
	const u8 *t = pod + word(pod + 104);
	for (u32 n = word(pod + 108); n--; t += 40) {
		u32 length = word(t + 8), operator = word(t + 36);
		if (word(t) == key || (length == 0 && operator == 1)) return 1; /* an empty key that exists: all */
	}
	return 0;
}

EXPORT("filter_batch") int filter(const u8 *pod, const u8 *snapshot, u8 *verdicts) {
	u32 rows = word(snapshot + 8), key = sym("pool", 4), want = label(pod, key);
	const u8 *labels = column(snapshot, 64), *taints = column(snapshot, 65);
	for (u32 row = 0; row < rows; row++) {
		if (verdicts[row]) continue; /* vacant */
		u32 has = 0;
		const u32 *pair = (const u32 *)(snapshot + word(labels + 8 * row));
		for (u32 n = word(labels + 8 * row + 4) / 2; n--; pair += 2)
			if (pair[0] == key) has = pair[1];
		if (has != want) verdicts[row] = 1;
		const u32 *taint = (const u32 *)(snapshot + word(taints + 8 * row));
		for (u32 n = word(taints + 8 * row + 4) / 3; n-- && !verdicts[row]; taint += 3)
			if (!tolerates(pod, taint[0])) verdicts[row] = 2;
	}
	return 0;
}

EXPORT("score_batch") int score(const u8 *pod, const u8 *snapshot, const u8 *verdicts, int *scores) {
	u32 rows = word(snapshot + 8);
	const i64 *all = (const i64 *)column(snapshot, 16), *used = (const i64 *)column(snapshot, 32);
	for (u32 row = 0; row < rows; row++) {
		if (verdicts[row]) continue;
		i64 left = all[row] - used[row] - *(const i64 *)(pod + 16);
		scores[row] = left > 0 && all[row] > 0 ? (int)(100 * left / all[row]) : 0;
	}
	return 0;
}
