/* An admission guest, made from docs/abi.md alone: no header, no library. It refuses what
 * its configuration names, and gives what it lets through an annotation. */
__asm__(".section .custom_section.qm.manifest,\"\",@\n"
	".ascii \"{\\\"abi\\\":\\\"qm/1\\\",\\\"name\\\":\\\"by-hand-admission\\\",\\\"version\\\":\\\"1\\\",\\\"extensionPoints\\\":[\\\"Mutate\\\",\\\"Validate\\\"]}\"\n");

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define EXPORT(name) __attribute__((export_name(name)))
__attribute__((import_module("qm"), import_name("error"))) void error(const char *text, u32 length);

extern u8 __heap_base;
static u32 top;
static const u8 *word; /* what is refused, as JSON: a string with its quotes */
static u32 size;

EXPORT("qm_abi_1") void marker(void) {}

EXPORT("qm_alloc") u32 alloc(u32 n) {
	if (!top) top = ((u32)&__heap_base + 7) & ~7u;
	u32 at = top;
	top = (top + n + 7) & ~7u;
	u32 have = (u32)__builtin_wasm_memory_size(0) << 16;
	if (top > have && __builtin_wasm_memory_grow(0, (top - have + 0xffff) >> 16) == (unsigned long)-1) return 0;
	return at;
}

/* The configuration is {"refuse":"…"}; it stays where it is for the life of the instance. */
EXPORT("qm_configure") int configure(const u8 *config, u32 length) {
	u32 i = 0;
	while (i < length && config[i] != ':') i++;
	if (length - i < 4 || config[length - 1] != '}') {
		error("config: refuse is missing", 25);
		return 1;
	}
	word = config + i + 1, size = length - i - 2;
	return 0;
}

static int contains(const u8 *text, u32 length) {
	for (u32 i = 0; i + size <= length; i++) {
		u32 n = 0;
		while (n < size && text[i + n] == word[n]) n++;
		if (n == size) return 1;
	}
	return 0;
}

static u64 answer(const char *text, u32 length) { return (u64)(u32)text << 32 | length; }
#define ANSWER(text) answer(text, sizeof(text) - 1)

EXPORT("admit") u64 admit(const u8 *review, u32 length) {
	if (contains(review, length)) return ANSWER("{\"allowed\":false,\"code\":422,\"message\":\"not by hand\"}");
	return ANSWER("{\"allowed\":true,\"warnings\":[\"by hand\"],\"patch\":[{\"op\":\"add\",\"path\":\"/metadata/annotations\",\"value\":{\"by\":\"hand\"}}]}");
}
