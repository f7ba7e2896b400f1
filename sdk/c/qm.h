/* Guest SDK of ABI qm/1 for C, in one header; docs/abi.md is the reference.
 *
 *   clang-19 --target=wasm32 -O2 -mbulk-memory -nostdlib -Wl,--no-entry \
 *            -Wl,--strip-all -I sdk/c -o policy.wasm policy.c
 *
 * A guest defines, with QM_EXPORT, some of qm_configure, filter_batch,
 * score_batch, normalize, admit and, to see one node at a time, prefilter, filter
 * and score; its manifest goes into the custom section "qm.manifest".
 * docs/sdk/c.md is the guide. */
#ifndef QM_H
#define QM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __wasm__
#define QM_EXPORT(name) __attribute__((export_name(name), used))
#define QM_IMPORT(name) __attribute__((import_module("qm"), import_name(name)))
#else /* tests on another machine, which define the imports */
#define QM_EXPORT(name) __attribute__((used))
#define QM_IMPORT(name)
#endif

/* Imports that every guest has. */
QM_IMPORT("error") void qm_error(const char *text, uint32_t length);
QM_IMPORT("reason") void qm_reason(uint32_t row, const char *text, uint32_t length);
QM_IMPORT("sym") uint32_t qm_sym(const char *text, uint32_t length);
QM_IMPORT("sym_text") uint32_t qm_sym_text(uint32_t symbol, char *buffer, uint32_t capacity);
/* Imports that need a grant: "log" (level -1 debug, 0 info, 1 warning, 2 error),
 * "clock" (nanoseconds since 1970), "read" (qm_read is easier to use). */
QM_IMPORT("log") void qm_log(int32_t level, const char *text, uint32_t length);
QM_IMPORT("now") int64_t qm_now(void);
QM_IMPORT("get") int32_t qm_get_object(const char *resource, uint32_t resource_length, const char *space, uint32_t space_length,
	const char *name, uint32_t name_length, void *buffer, uint32_t capacity);

#define QM_CALLED __attribute__((noinline, unused)) /* fuel is charged by the size of loops and branches: keep what is rare out of them */

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
#ifdef __wasm__
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
#else
static inline void *qm_alloc(uint32_t size) {
	static uint64_t arena[1 << 16], used;
	void *at = arena + used;
	used += size / 8 + 1;
	return used <= sizeof arena / sizeof *arena ? at : 0;
}
#endif

QM_EXPORT("qm_abi_1") void qm_abi_1(void) {}

/* Bytes that lie somewhere: text, a protobuf message, a JSON value. Where there is
 * none, at is 0. */
typedef struct { const uint8_t *at, *end; } qm_message;
typedef qm_message qm_json;

static inline qm_message qm_bytes(const void *at, uint32_t length) {
	qm_message m = {(const uint8_t *)at, (const uint8_t *)at + length};
	return m;
}

static inline uint32_t qm_size(qm_message m) { return (uint32_t)(m.end - m.at); }
static inline qm_message qm_string(const char *text) { return qm_bytes(text, qm_strlen(text)); }

static inline int qm_same(qm_message a, qm_message b) {
	uint32_t n = qm_size(a);
	if (!a.at || !b.at || n != qm_size(b)) return 0;
	for (uint32_t i = 0; i < n; i++)
		if (a.at[i] != b.at[i]) return 0;
	return 1;
}

/* Ends the call as failed, with why. */
static inline _Noreturn void qm_fail(const char *text) {
	qm_error(text, qm_strlen(text));
	__builtin_trap();
}

/* Refuses: the result of an entry point that fails, with why. */
static inline int qm_refuse(const char *text) {
	qm_error(text, qm_strlen(text));
	return 1;
}

/* Bytes that grow; zeroed it is empty. What it took stays for its next use: make it
 * static and set length to 0. */
typedef struct {
	uint8_t *at;
	uint32_t length, capacity;
} qm_buffer;

static inline void *qm_reserve(qm_buffer *b, uint32_t more) {
	uint32_t need = b->length + more;
	if (need > b->capacity) {
		uint32_t capacity = need < 512 ? 1024 : 2 * need;
		uint8_t *at = qm_alloc(capacity);
		if (!at || need < more) qm_fail("out of memory");
		if (b->length) __builtin_memcpy(at, b->at, b->length);
		b->at = at, b->capacity = capacity;
	}
	return b->at + b->length;
}

static inline void qm_put(qm_buffer *b, qm_message m) {
	void *at = qm_reserve(b, qm_size(m));
	if (m.at) __builtin_memcpy(at, m.at, qm_size(m));
	b->length += qm_size(m);
}

static inline void qm_put_text(qm_buffer *b, const char *text) { qm_put(b, qm_string(text)); }
static inline qm_message qm_of(const qm_buffer *b) { return qm_bytes(b->at, b->length); }

QM_CALLED static void qm_put_number(qm_buffer *b, int64_t number) {
	uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
	char digits[20], *at = digits + sizeof digits;
	do *--at = (char)('0' + rest % 10);
	while (rest /= 10);
	if (number < 0) *--at = '-';
	qm_put(b, qm_bytes(at, (uint32_t)(digits + sizeof digits - at)));
}

/* Reads one object as it was at the revision of the decision; space is "" for what
 * has none. Returns 1 and the object's protobuf message, or its JSON with
 * "encoding": "json", which lies in the buffer; 0 when there is none; -1 when the
 * resource is not among the manifest's reads. Needs the grant "read". */
static inline int qm_read(const char *resource, qm_message space, qm_message name, qm_buffer *room, qm_message *out) {
	int32_t n;
	room->length = 0;
	for (;;) {
		n = qm_get_object(resource, qm_strlen(resource), (const char *)space.at, qm_size(space), (const char *)name.at, qm_size(name), room->at, room->capacity);
		if (n < 0) return n == -1 ? 0 : -1;
		if ((uint32_t)n <= room->capacity) break;
		qm_reserve(room, (uint32_t)n);
	}
	*out = qm_bytes(room->at, (uint32_t)n);
	return 1;
}

/* Protocol buffers, as the row tier gets pods and nodes: read where they lie. */

typedef struct {
	uint32_t number, wire; /* 0 number, 1 and 5 fixed, 2 bytes */
	uint64_t value;
	qm_message bytes;
} qm_field;

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

/* The last number of a field, 0 when there is none. */
QM_CALLED static uint64_t qm_number(qm_message m, uint32_t number) {
	qm_field f;
	uint64_t found = 0;
	while (qm_next(&m, &f))
		if (f.number == number && f.wire == 0) found = f.value;
	return found;
}

/* Takes the next field of that number that holds bytes. */
QM_CALLED static int qm_each(qm_message *m, uint32_t number, qm_message *out) {
	qm_field f;
	while (qm_next(m, &f))
		if (f.number == number && f.wire == 2) return *out = f.bytes, 1;
	return 0;
}

/* The last field of that number that holds bytes; none has no bytes. */
static inline qm_message qm_within(qm_message m, uint32_t number) {
	qm_message out = {0, 0};
	qm_get(m, number, &out);
	return out;
}

/* Of the messages of a repeated field, the first whose string `by` is that. */
QM_CALLED static int qm_having(qm_message m, uint32_t number, uint32_t by, const char *want, qm_message *out) {
	qm_message each, key;
	while (qm_each(&m, number, &each))
		if (qm_get(each, by, &key) && qm_is(key, want)) return *out = each, 1;
	return 0;
}

/* The value under a key of a field that is a map with keys of text. */
static inline int qm_entry(qm_message m, uint32_t number, const char *key, qm_message *out) {
	qm_message found;
	if (!qm_having(m, number, 1, key, &found)) return 0;
	if (!qm_get(found, 2, out)) *out = qm_bytes(found.at, 0);
	return 1;
}

/* Fields of v1 Nodes and Pods. What has no reader here: qm_get, qm_each, qm_number. */
enum { QM_METADATA = 1, QM_SPEC = 2, QM_STATUS = 3 };

static inline qm_message qm_object_name(qm_message o) { return qm_within(qm_within(o, QM_METADATA), 1); }
static inline qm_message qm_object_namespace(qm_message o) { return qm_within(qm_within(o, QM_METADATA), 3); }
static inline int qm_object_label(qm_message o, const char *key, qm_message *out) { return qm_entry(qm_within(o, QM_METADATA), 11, key, out); }
static inline int qm_object_annotation(qm_message o, const char *key, qm_message *out) { return qm_entry(qm_within(o, QM_METADATA), 12, key, out); }

static inline int qm_node_unschedulable(qm_message node) { return qm_number(qm_within(node, QM_SPEC), 4) != 0; }
/* Taints: m = qm_within(node, QM_SPEC), then qm_each(&m, QM_NODE_TAINTS, &taint). */
enum { QM_NODE_TAINTS = 5, QM_TAINT_KEY = 1, QM_TAINT_VALUE = 2, QM_TAINT_EFFECT = 3 };
/* Images: m = qm_within(node, QM_STATUS), qm_each(&m, QM_NODE_IMAGES, &image), qm_each(&image, QM_IMAGE_NAMES, &name). */
enum { QM_NODE_IMAGES = 8, QM_IMAGE_NAMES = 1 };
/* The status of a condition: True, False, Unknown. */
static inline int qm_node_condition(qm_message node, const char *type, qm_message *out) {
	qm_message c;
	return qm_having(qm_within(node, QM_STATUS), 4, 1, type, &c) && qm_get(c, 2, out);
}
/* Amounts are quantities, for qm_value and qm_milli. */
static inline int qm_node_capacity(qm_message node, const char *resource, qm_message *out) {
	return qm_entry(qm_within(node, QM_STATUS), 1, resource, out) && qm_get(*out, 1, out);
}
static inline int qm_node_allocatable(qm_message node, const char *resource, qm_message *out) {
	return qm_entry(qm_within(node, QM_STATUS), 2, resource, out) && qm_get(*out, 1, out);
}

static inline int32_t qm_pod_priority(qm_message pod) { return (int32_t)qm_number(qm_within(pod, QM_SPEC), 25); }
static inline qm_message qm_pod_scheduler(qm_message pod) { return qm_within(qm_within(pod, QM_SPEC), 19); }
static inline qm_message qm_pod_service_account(qm_message pod) { return qm_within(qm_within(pod, QM_SPEC), 8); }
static inline int qm_pod_selector(qm_message pod, const char *key, qm_message *out) { return qm_entry(qm_within(pod, QM_SPEC), 7, key, out); }
/* Containers: m = qm_within(pod, QM_SPEC), then qm_each(&m, QM_POD_CONTAINERS, &container). */
enum { QM_POD_CONTAINERS = 2, QM_POD_INIT_CONTAINERS = 20, QM_POD_TOLERATIONS = 22 };
enum { QM_TOLERATION_KEY = 1, QM_TOLERATION_OPERATOR = 2, QM_TOLERATION_VALUE = 3, QM_TOLERATION_EFFECT = 4 };
static inline qm_message qm_container_name(qm_message c) { return qm_within(c, 1); }
static inline qm_message qm_container_image(qm_message c) { return qm_within(c, 2); }
static inline int qm_container_limit(qm_message c, const char *resource, qm_message *out) {
	return qm_entry(qm_within(c, 8), 1, resource, out) && qm_get(*out, 1, out);
}
static inline int qm_container_request(qm_message c, const char *resource, qm_message *out) {
	return qm_entry(qm_within(c, 8), 2, resource, out) && qm_get(*out, 1, out);
}

/* value * factor * 2^binary * 10^exponent, rounded away from 0; saturates. */
QM_CALLED static int64_t qm_scaled(uint64_t value, uint32_t factor, int binary, int exponent) {
	uint64_t h = (value >> 32) * factor, l = (value & 0xffffffff) * factor;
	uint64_t low = (h << 32) + l, high = (h >> 32) + (low < l);
	int left = 0;
	for (; binary > 0; binary--) {
		if (high >> 63) return INT64_MAX;
		high = high << 1 | low >> 63, low <<= 1;
	}
	for (; exponent > 0 && (high | low); exponent--) {
		if (high || low > INT64_MAX / 10) return INT64_MAX;
		low *= 10;
	}
	for (; exponent < 0 && (high | low); exponent++) {
		uint64_t r = high % 10, a = r << 32 | low >> 32, b = (a % 10) << 32 | (low & 0xffffffff);
		high /= 10, low = (a / 10) << 32 | b / 10;
		left |= b % 10 != 0;
	}
	low += (uint64_t)left;
	return high || low > INT64_MAX ? INT64_MAX : (int64_t)low;
}

QM_CALLED static int64_t qm_quantity(qm_message q, uint32_t factor) {
	static const char powers[] = "kMGTPE";
	const uint8_t *at = q.at, *end = q.end;
	int negative = at < end && *at == '-', exponent = 0, fraction = 0, binary = 0;
	uint64_t digits = 0;
	if (at < end && (*at == '-' || *at == '+')) at++;
	for (; at < end && (*at == '.' || (*at >= '0' && *at <= '9')); at++) {
		if (*at == '.') fraction = 1;
		else if (digits <= INT64_MAX / 10) digits = digits * 10 + *at - '0', exponent -= fraction;
		else exponent += !fraction;
	}
	if (at < end) {
		uint8_t c = *at++;
		int step = 0, last = at == end;
		for (int i = 0; powers[i]; i++)
			if (powers[i] == c) step = 3 * (i + 1);
		if (at + 1 == end && *at == 'i' && (step > 3 || c == 'K')) binary = c == 'K' ? 10 : 10 * step / 3;
		else if (last && (c == 'n' || c == 'u' || c == 'm')) exponent -= c == 'n' ? 9 : c == 'u' ? 6 : 3;
		else if (last && step) exponent += step;
		else if ((c == 'e' || c == 'E') && !last) {
			int down = *at == '-', e = 0;
			if (*at == '-' || *at == '+') at++;
			if (at == end || end - at > 2) return 0;
			for (; at < end; at++) {
				if (*at < '0' || *at > '9') return 0;
				e = 10 * e + *at - '0';
			}
			exponent += down ? -e : e;
		} else return 0;
	}
	int64_t n = qm_scaled(digits, factor, binary, exponent);
	return negative ? -n : n;
}

/* An amount as it is written (250m, 1.5Gi), rounded away from 0. Saturates; 0 when
 * it is none. */
static inline int64_t qm_value(qm_message q) { return qm_quantity(q, 1); }
/* The same in thousandths. */
static inline int64_t qm_milli(qm_message q) { return qm_quantity(q, 1000); }

/* JSON, read where it lies. */
static inline const uint8_t *qm_json_skip(const uint8_t *at, const uint8_t *end) {
	while (at < end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r')) at++;
	return at;
}

QM_CALLED static const uint8_t *qm_json_string_end(const uint8_t *at, const uint8_t *end) {
	at++;
	while (at < end && *at != '"') at += *at == '\\' ? 2 : 1;
	return at < end ? at + 1 : end;
}

QM_CALLED static const uint8_t *qm_json_end(const uint8_t *at, const uint8_t *end) {
	int depth = 0;
	if (at < end && *at == '"') return qm_json_string_end(at, end);
	if (at < end && *at != '{' && *at != '[') {
		while (at < end && *at != ',' && *at != '}' && *at != ']' && qm_json_skip(at, end) == at) at++;
		return at;
	}
	while (at < end) {
		if (*at == '"') {
			at = qm_json_string_end(at, end);
			continue;
		}
		depth += (*at == '{' || *at == '[') - (*at == '}' || *at == ']');
		at++;
		if (!depth) break;
	}
	return at;
}

/* The value that the text holds. */
static inline qm_json qm_json_parse(const void *text, uint32_t length) {
	const uint8_t *end = (const uint8_t *)text + length, *at = qm_json_skip(text, end);
	qm_json v = {at, qm_json_end(at, end)}, none = {0, 0};
	return v.at < v.end ? v : none;
}

/* { object, [ array, " string, t or f, n null, 0 number, 0 as a number when none. */
static inline int qm_json_kind(qm_json v) {
	if (v.at >= v.end) return 0;
	return *v.at == '-' || (*v.at >= '0' && *v.at <= '9') ? '0' : *v.at;
}

/* Members of an object, or elements of an array: cursor = qm_json_items(v), then
 * qm_json_member_of(&cursor, &key, &value) or qm_json_element(&cursor, &value). */
static inline qm_json qm_json_items(qm_json v) {
	int kind = qm_json_kind(v);
	if (kind == '{' || kind == '[') v.at++;
	else v.end = v.at;
	return v;
}

QM_CALLED static int qm_json_element(qm_json *cursor, qm_json *value) {
	const uint8_t *at = qm_json_skip(cursor->at, cursor->end), *end = qm_json_end(at, cursor->end);
	if (at == end) return 0;
	value->at = at, value->end = end;
	end = qm_json_skip(end, cursor->end);
	cursor->at = end < cursor->end && *end == ',' ? end + 1 : cursor->end;
	return 1;
}

static inline int qm_json_member_of(qm_json *cursor, qm_json *key, qm_json *value) {
	const uint8_t *at = qm_json_skip(cursor->at, cursor->end), *end = qm_json_end(at, cursor->end);
	key->at = at, key->end = end;
	end = qm_json_skip(end, cursor->end);
	if (at == key->end || end >= cursor->end || *end != ':') return 0;
	cursor->at = end + 1;
	return qm_json_element(cursor, value);
}

/* One byte of a string as UTF-8: a cursor from behind its quotation mark. */
typedef struct {
	const uint8_t *at, *end;
	uint32_t pending, left;
} qm_json_bytes;

static inline uint32_t qm_json_hex(qm_json_bytes *b) {
	uint32_t n = 0;
	for (int i = 0; i < 4 && b->at < b->end; i++, b->at++) n = n << 4 | ((*b->at <= '9' ? *b->at - '0' : (*b->at | 32) - 'a' + 10) & 15);
	return n;
}

/* The next byte, -1 at the end. */
QM_CALLED static int qm_json_byte(qm_json_bytes *b) {
	if (b->left) return (int)(0x80 | ((b->pending >> 6 * --b->left) & 63));
	if (b->at >= b->end || *b->at == '"') return -1;
	if (*b->at != '\\') return *b->at++;
	if (++b->at >= b->end) return -1;
	uint32_t c = *b->at++;
	switch (c) {
	case 'n': return '\n';
	case 't': return '\t';
	case 'r': return '\r';
	case 'b': return '\b';
	case 'f': return '\f';
	case 'u': break;
	default: return (int)c;
	}
	c = qm_json_hex(b);
	if (c >= 0xd800 && c < 0xdc00 && b->end - b->at > 5 && b->at[0] == '\\' && b->at[1] == 'u') {
		b->at += 2;
		c = 0x10000 + ((c - 0xd800) << 10 | (qm_json_hex(b) & 0x3ff));
	}
	b->pending = c;
	b->left = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
	return (int)(!b->left ? c : b->left == 1 ? 0xc0 | c >> 6 : b->left == 2 ? 0xe0 | c >> 12 : 0xf0 | c >> 18);
}

static inline qm_json_bytes qm_json_string(qm_json v) {
	qm_json_bytes b = {v.at + 1, v.end, 0, 0};
	if (qm_json_kind(v) != '"') b.at = v.end;
	return b;
}

/* Says that a value is that string. */
QM_CALLED static int qm_json_is(qm_json v, const char *text) {
	qm_json_bytes b = qm_json_string(v);
	int c;
	if (qm_json_kind(v) != '"') return 0;
	while ((c = qm_json_byte(&b)) >= 0)
		if (!*text || c != (uint8_t)*text++) return 0;
	return !*text;
}

/* Copies a string, with its final 0. Returns its length, or -1 when it is none or
 * too long; out is then "". */
QM_CALLED static int qm_json_copy(qm_json v, char *out, uint32_t capacity) {
	qm_json_bytes b = qm_json_string(v);
	uint32_t n = 0;
	int c;
	out[0] = 0;
	if (qm_json_kind(v) != '"') return -1;
	while ((c = qm_json_byte(&b)) >= 0) {
		if (n + 1 >= capacity) return out[0] = 0, -1;
		out[n++] = (char)c;
	}
	out[n] = 0;
	return (int)n;
}

/* A whole number of at most 18 digits; returns 0 when it is none. */
static inline int qm_json_number(qm_json v, int64_t *out) {
	int negative = v.at < v.end && *v.at == '-';
	int64_t n = 0;
	v.at += negative;
	if (v.at >= v.end || v.end - v.at > 18) return 0;
	for (; v.at < v.end; v.at++) {
		if (*v.at < '0' || *v.at > '9') return 0;
		n = 10 * n + *v.at - '0';
	}
	*out = negative ? -n : n;
	return 1;
}

/* The value of the member with that name; none has no bytes. */
QM_CALLED static qm_json qm_json_member(qm_json v, const char *name) {
	qm_json key, value, none = {0, 0}, cursor = qm_json_items(v);
	if (qm_json_kind(v) == '{')
		while (qm_json_member_of(&cursor, &key, &value))
			if (qm_json_is(key, name)) return value;
	return none;
}

/* The value below members of those names, the last of which is 0:
 * qm_json_path(v, (const char *[]){"metadata", "labels", 0}). */
static inline qm_json qm_json_path(qm_json v, const char *const *names) {
	for (; *names; names++) v = qm_json_member(v, *names);
	return v;
}

/* Reads the string member "name" of an object with its final 0. Returns 1, 0 when
 * there is none (*out is then ""), or -1 when it is no string or too long. */
static inline int qm_json_text(const char *json, uint32_t length, const char *name, char *out, uint32_t capacity) {
	qm_json v = qm_json_member(qm_json_parse(json, length), name);
	out[0] = 0;
	if (!v.at) return 0;
	return qm_json_copy(v, out, capacity) < 0 ? -1 : 1;
}

/* Admission. admit begins with qm_review and returns qm_answer(); until something
 * else is said, the answer allows. */
static qm_buffer qm_warnings, qm_patches, qm_notes, qm_denied, qm_out;
static int qm_path_open;

/* The request of an AdmissionReview: its members are kind, operation, namespace,
 * object, oldObject and more. An object that is not there is null: '{' is the kind
 * of one that is. */
static inline qm_json qm_review(const char *text, uint32_t length) {
	qm_warnings.length = qm_patches.length = qm_notes.length = qm_denied.length = qm_out.length = 0;
	qm_path_open = 0;
	return qm_json_member(qm_json_parse(text, length), "request");
}

/* The inside of a JSON string; with ~ and / escaped as a pointer's. */
QM_CALLED static void qm_put_escaped(qm_buffer *b, qm_message text, int pointer) {
	for (const uint8_t *at = text.at; at < text.end; at++) {
		char *to = qm_reserve(b, 6);
		uint32_t n = 1;
		to[0] = (char)*at;
		if (*at == '"' || *at == '\\') to[0] = '\\', to[1] = (char)*at, n = 2;
		else if (pointer && (*at == '~' || *at == '/')) to[0] = '~', to[1] = *at == '~' ? '0' : '1', n = 2;
		else if (*at < 32) {
			to[0] = '\\', to[1] = 'u', to[2] = to[3] = '0', to[4] = (char)('0' + (*at >> 4)), to[5] = "0123456789abcdef"[*at & 15];
			n = 6;
		}
		b->length += n;
	}
}

static inline void qm_put_quoted(qm_buffer *b, qm_message text) {
	qm_put_text(b, "\"");
	qm_put_escaped(b, text, 0);
	qm_put_text(b, "\"");
}

/* Refuses; code is of HTTP, 403 as a rule. */
static inline void qm_deny(int code, qm_message why) {
	qm_denied.length = 0;
	qm_put_number(&qm_denied, code);
	qm_put_text(&qm_denied, ",\"message\":");
	qm_put_quoted(&qm_denied, why);
}

/* A text that the client is shown. */
static inline void qm_warn(qm_message text) {
	if (qm_warnings.length) qm_put_text(&qm_warnings, ",");
	qm_put_quoted(&qm_warnings, text);
}

/* A note in the audit log. */
static inline void qm_annotate(qm_message key, qm_message value) {
	if (qm_notes.length) qm_put_text(&qm_notes, ",");
	qm_put_quoted(&qm_notes, key);
	qm_put_text(&qm_notes, ":");
	qm_put_quoted(&qm_notes, value);
}

/* Begins an operation of RFC 6902 (add, replace, remove, test) over the object of the
 * request, at a JSON pointer; qm_patch_key may follow, then a value unless it removes.
 * Patches count at Mutate only. */
static inline void qm_patch(const char *operation, const char *pointer) {
	if (qm_path_open) qm_put_text(&qm_patches, "\"}");
	if (qm_patches.length) qm_put_text(&qm_patches, ",");
	qm_put_text(&qm_patches, "{\"op\":\"");
	qm_put_text(&qm_patches, operation);
	qm_put_text(&qm_patches, "\",\"path\":\"");
	qm_put_text(&qm_patches, pointer);
	qm_path_open = 1;
}
/* Adds a key to the pointer, escaped as it must be. */
static inline void qm_patch_key(qm_message key) {
	qm_put_text(&qm_patches, "/");
	qm_put_escaped(&qm_patches, key, 1);
}
static inline void qm_patch_json(qm_json value) {
	qm_put_text(&qm_patches, "\",\"value\":");
	qm_put(&qm_patches, value);
	qm_put_text(&qm_patches, "}");
	qm_path_open = 0;
}
static inline void qm_patch_text(qm_message value) {
	qm_put_text(&qm_patches, "\",\"value\":");
	qm_put_quoted(&qm_patches, value);
	qm_put_text(&qm_patches, "}");
	qm_path_open = 0;
}
static inline void qm_patch_number(int64_t value) {
	qm_put_text(&qm_patches, "\",\"value\":");
	qm_put_number(&qm_patches, value);
	qm_put_text(&qm_patches, "}");
	qm_path_open = 0;
}

static inline void qm_put_part(const char *name, const qm_buffer *part, const char *end) {
	if (!part->length) return;
	qm_put_text(&qm_out, name);
	qm_put(&qm_out, qm_of(part));
	qm_put_text(&qm_out, end);
}

/* The result of admit. */
static inline uint64_t qm_answer(void) {
	if (qm_path_open) qm_put_text(&qm_patches, "\"}");
	qm_path_open = 0;
	if (qm_denied.length) qm_put_part("{\"allowed\":false,\"code\":", &qm_denied, "");
	else qm_put_text(&qm_out, "{\"allowed\":true");
	qm_put_part(",\"warnings\":[", &qm_warnings, "]");
	qm_put_part(",\"patch\":[", &qm_patches, "]");
	qm_put_part(",\"auditAnnotations\":{", &qm_notes, "}");
	qm_put_text(&qm_out, "}");
	return (uint64_t)(uintptr_t)qm_out.at << 32 | qm_out.length;
}

#endif
