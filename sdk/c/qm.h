/* Guest SDK of ABI qm/1 for C, in one header; docs/abi.md is the reference.
 *
 *   clang-19 --target=wasm32 -O2 -mbulk-memory -nostdlib -Wl,--no-entry \
 *            -Wl,--strip-all -I sdk/c -o policy.wasm policy.c
 *
 * A guest defines some of qm_configure, filter_batch, score_batch, normalize,
 * admit and, to see one node at a time, prefilter, filter and score with QM_EXPORT, and its manifest goes into the custom section
 * "qm.manifest". */
#ifndef QM_H
#define QM_H

#include <stddef.h>
#include <stdint.h>

#define QM_EXPORT(name) __attribute__((export_name(name), used))
#define QM_IMPORT(name) __attribute__((import_module("qm"), import_name(name)))

/* Imports that every guest has. */
QM_IMPORT("error") void qm_error(const char *text, uint32_t length);
QM_IMPORT("reason") void qm_reason(uint32_t row, const char *text, uint32_t length);
QM_IMPORT("sym") uint32_t qm_sym(const char *text, uint32_t length);
QM_IMPORT("sym_text") uint32_t qm_sym_text(uint32_t symbol, char *buffer, uint32_t capacity);
/* Imports that need a grant of the same name, "clock" for qm_now. */
QM_IMPORT("log") void qm_log(int32_t level, const char *text, uint32_t length);
QM_IMPORT("now") int64_t qm_now(void);

/* Columns. */
enum {
	QM_FLAGS = 1, QM_NAME = 2, QM_ZONE = 3, QM_REGION = 4,
	QM_ALLOCATABLE_CPU = 16, QM_ALLOCATABLE_MEMORY, QM_ALLOCATABLE_EPHEMERAL_STORAGE, QM_ALLOCATABLE_PODS,
	QM_REQUESTED_CPU = 32, QM_REQUESTED_MEMORY, QM_REQUESTED_EPHEMERAL_STORAGE, QM_REQUESTED_PODS,
	QM_NONZERO_CPU = 48, QM_NONZERO_MEMORY,
	QM_LABELS = 64, QM_TAINTS = 65, QM_IMAGES = 66,
	QM_EXTENDED = 256, /* extended resources, in the manifest's order */
};

/* Verdicts with a meaning of their own; 1 to 249 index the manifest's reasons. */
enum { QM_PASS = 0, QM_UNRESOLVABLE = 250, QM_SKIP = 255 };

typedef struct {
	uint16_t id;
	uint8_t kind, element;
	uint32_t offset, rows;
} qm_column;

typedef struct {
	uint32_t magic;
	uint16_t minor, columns;
	uint32_t rows, capacity;
	uint64_t generation;
	uint32_t epoch, reserved;
	qm_column column[];
} qm_snapshot;

typedef struct { uint32_t offset, count; } qm_span;        /* a list */
typedef struct { uint32_t symbol, offset, length; } qm_text;
typedef struct { qm_text key, value; } qm_pair;
typedef struct { qm_text key, value, effect; uint32_t op; } qm_toleration;
typedef struct { qm_text name; uint32_t pad; int64_t amount; } qm_amount;

typedef struct {
	uint32_t magic, size;
	int32_t priority;
	uint32_t flags;
	int64_t cpu, memory, ephemeral_storage, nonzero_cpu, nonzero_memory;
	qm_text name, namespace;
	qm_span labels, annotations, node_selector; /* qm_pair */
	qm_span tolerations;                         /* qm_toleration */
	qm_span extended;                            /* qm_amount */
	qm_span images;                              /* qm_text */
	qm_span raw;                                 /* bytes of protobuf */
} qm_pod;

_Static_assert(sizeof(qm_pod) == 136 && offsetof(qm_pod, raw) == 128, "pod record");
_Static_assert(offsetof(qm_snapshot, column) == 32 && sizeof(qm_column) == 12, "snapshot");

#define QM_AT(type, base, at) ((type *)((uint8_t *)(base) + (at)))

/* The data of a column, or 0 when the manifest does not name it. */
static inline const void *qm_find(const qm_snapshot *s, uint16_t id) {
	for (uint32_t i = 0; i < s->columns; i++)
		if (s->column[i].id == id) return QM_AT(const void, s, s->column[i].offset);
	return 0;
}

/* The list of one row of a list column. */
static inline const uint32_t *qm_list(const qm_snapshot *s, const qm_span *spans, uint32_t row) {
	return QM_AT(const uint32_t, s, spans[row].offset);
}

static inline uint32_t qm_strlen(const char *s) {
	uint32_t n = 0;
	while (s[n]) n++;
	return n;
}

static inline int qm_equal(const char *a, uint32_t n, const char *b) {
	uint32_t i = 0;
	for (; i < n; i++)
		if (a[i] != b[i] || !b[i]) return 0;
	return !b[n];
}

/* A symbol that is asked for once for each table of symbols. */
typedef struct {
	uint32_t epoch, symbol;
} qm_symbol;

static inline uint32_t qm_resolve(qm_symbol *c, const qm_snapshot *s, const char *text) {
	if (c->epoch != s->epoch) {
		c->symbol = qm_sym(text, qm_strlen(text));
		c->epoch = s->epoch;
	}
	return c->symbol;
}

/* Memory that is never given back: what the host asks for. */
extern unsigned char __heap_base;
static uint32_t qm_heap;

QM_EXPORT("qm_alloc") void *qm_alloc(uint32_t size) {
	if (!qm_heap) qm_heap = (uint32_t)&__heap_base;
	uint32_t at = (qm_heap + 7) & ~7u;
	uint32_t end = at + size;
	if (end < at) return 0;
	uint32_t have = (uint32_t)__builtin_wasm_memory_size(0) * 65536u;
	if (end > have && __builtin_wasm_memory_grow(0, (end - have + 65535u) / 65536u) == (size_t)-1) return 0;
	qm_heap = end;
	return (void *)at;
}

QM_EXPORT("qm_abi_1") void qm_abi_1(void) {}

/* Reads the string member "name" of a flat JSON object without escapes: copies
 * it with its final 0. Returns 1, 0 when there is none (*out is then ""), or -1
 * when it is no such string or too long. */
static inline int qm_json_text(const char *json, uint32_t length, const char *name, char *out, uint32_t capacity) {
	uint32_t n = qm_strlen(name), i = 0;
	out[0] = 0;
	while (i < length) {
		if (json[i] != '"') { i++; continue; }
		uint32_t from = ++i;
		while (i < length && json[i] != '"') i++;
		int match = i - from == n && qm_equal(json + from, n, name);
		i++;
		while (i < length && (json[i] == ' ' || json[i] == '\n' || json[i] == '\t' || json[i] == '\r')) i++;
		if (i >= length || json[i] != ':') continue; /* a value */
		i++;
		while (i < length && (json[i] == ' ' || json[i] == '\n' || json[i] == '\t' || json[i] == '\r')) i++;
		if (!match) {
			if (i < length && json[i] == '"') { /* skip the value */
				i++;
				while (i < length && json[i] != '"') i++;
				i++;
			}
			continue;
		}
		if (i >= length || json[i] != '"') return -1;
		i++;
		uint32_t k = 0;
		for (; i < length && json[i] != '"'; i++) {
			if (json[i] == '\\' || k + 1 >= capacity) return -1;
			out[k++] = json[i];
		}
		out[k] = 0;
		return i < length ? 1 : -1;
	}
	return 0;
}

/* Protocol buffers, as the row tier gets pods and nodes: read where they lie. */
typedef struct { const uint8_t *at, *end; } qm_message;

typedef struct {
	uint32_t number, wire; /* 0 number, 1 and 5 fixed, 2 bytes */
	uint64_t value;
	qm_message bytes;
} qm_field;

#define QM_CALLED __attribute__((noinline, unused)) /* fuel is charged by the size of loops: keep them small */

QM_CALLED static int qm_long_varint(qm_message *m, uint64_t *out) {
	*out = 0;
	for (uint32_t shift = 0; shift < 64 && m->at < m->end; shift += 7) {
		uint8_t b = *m->at++;
		*out |= (uint64_t)(b & 0x7f) << shift;
		if (!(b & 0x80)) return 1;
	}
	return 0;
}

static inline int qm_varint(qm_message *m, uint64_t *out) {
	if (m->at < m->end && *m->at < 0x80) {
		*out = *m->at++;
		return 1;
	}
	return qm_long_varint(m, out);
}

/* Takes the next field of a message. Returns 0 at its end, or where it is malformed. */
QM_CALLED static int qm_next(qm_message *m, qm_field *f) {
	uint64_t key, size;
	if (m->at >= m->end || !qm_varint(m, &key)) return 0;
	f->number = (uint32_t)(key >> 3);
	f->wire = (uint32_t)key & 7;
	switch (f->wire) {
	case 0: return qm_varint(m, &f->value);
	case 1: size = 8; break;
	case 2: if (!qm_varint(m, &size)) return 0; break;
	case 5: size = 4; break;
	default: return 0;
	}
	if (size > (uint64_t)(m->end - m->at)) return 0;
	f->bytes.at = m->at;
	m->at = f->bytes.end = m->at + size;
	return 1;
}

/* The last field of that number that holds bytes: a message or a string. */
QM_CALLED static int qm_get(qm_message m, uint32_t number, qm_message *out) {
	qm_field f;
	int found = 0;
	while (qm_next(&m, &f))
		if (f.number == number && f.wire == 2) *out = f.bytes, found = 1;
	return found;
}

QM_CALLED static int qm_is(qm_message text, const char *want) {
	return qm_equal((const char *)text.at, (uint32_t)(text.end - text.at), want);
}

#endif
