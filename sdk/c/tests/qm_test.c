/* Tests of qm.h on the machine that builds: there is a host in this file. */
#include "../qm.h"

#include <stdio.h>
#include <string.h>

static char last_error[256];
static int failures;

void qm_error(const char *text, uint32_t length) { snprintf(last_error, sizeof last_error, "%.*s", (int)length, text); }
void qm_reason(uint32_t row, const char *text, uint32_t length) { (void)row, (void)text, (void)length; }
uint32_t qm_sym(const char *text, uint32_t length) { (void)text; return length; }
uint32_t qm_sym_text(uint32_t symbol, char *buffer, uint32_t capacity) { (void)symbol, (void)buffer, (void)capacity; return 0; }
void qm_log(int32_t level, const char *text, uint32_t length) { (void)level, (void)text, (void)length; }
int64_t qm_now(void) { return 0; }
int32_t qm_get_object(const char *resource, uint32_t rn, const char *space, uint32_t sn, const char *name, uint32_t nn, void *buffer, uint32_t capacity) {
	(void)space, (void)sn;
	if (rn != 10 || memcmp(resource, "configmaps", 10)) return -2;
	if (nn != 3 || memcmp(name, "big", 3)) return -1;
	for (uint32_t i = 0; i < 5000 && i < capacity; i++) ((char *)buffer)[i] = (char)('a' + i % 26);
	return 5000;
}

#define CHECK(condition) ((condition) ? 0 : (failures++, printf("%s:%d: %s\n", __FILE__, __LINE__, #condition)))

static int text_is(qm_message m, const char *want) { return qm_same(m, qm_string(want)); }

static void quantities(void) {
	static const struct { const char *text; int64_t value, milli; } all[] = {
		{"1", 1, 1000}, {"250m", 1, 250}, {"1.5Gi", 3ll << 29, 1610612736000}, {"0.1", 1, 100}, {"1e3", 1000, 1000000}, {"12e-2", 1, 120},
		{"100u", 1, 1}, {"-250m", -1, -250}, {"7E", 7000000000000000000, INT64_MAX}, {"16Ei", INT64_MAX, INT64_MAX}, {"3k", 3000, 3000000},
		{"0.123456789012Ti", 135742175047, 135742175046583}, {"99999999999999999999", INT64_MAX, INT64_MAX}, {"9223372036854775807", INT64_MAX, INT64_MAX},
		{"123Mi", 128974848, 128974848000}, {"x", 0, 0}, {"", 0, 0}, {"1Qi", 0, 0}, {"1ki", 0, 0}, {"1K", 0, 0}, {"1e", 0, 0}, {"1e999", 0, 0},
	};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		qm_message q = qm_string(all[i].text);
		if (qm_value(q) != all[i].value || qm_milli(q) != all[i].milli)
			failures++, printf("%s is %lld and %lld thousandths\n", all[i].text, (long long)qm_value(q), (long long)qm_milli(q));
	}
}

static void json(void) {
	static const char text[] = " {\"a\": {\"b\": [1, -2 , \"x\\\"y\", true, null]}, \"s\": \"h\\u00e9\\n\\ud83d\\ude00\", \"k\\u0065y\": false, \"e\": {}, \"l\": [] } ";
	qm_json v = qm_json_parse(text, sizeof text - 1), b = qm_json_path(v, (const char *[]){"a", "b", 0}), one, cursor = qm_json_items(b);
	char kinds[8] = "", copy[16];
	for (int i = 0; qm_json_element(&cursor, &one); i++) kinds[i] = (char)qm_json_kind(one);
	CHECK(!strcmp(kinds, "00\"tn"));
	cursor = qm_json_items(b);
	int64_t n = 0;
	CHECK(qm_json_element(&cursor, &one) && qm_json_element(&cursor, &one) && qm_json_number(one, &n) && n == -2);
	CHECK(qm_json_element(&cursor, &one) && qm_json_is(one, "x\"y") && !qm_json_is(one, "x") && !qm_json_number(one, &n));
	CHECK(qm_json_copy(qm_json_member(v, "s"), copy, sizeof copy) == 8 && !strcmp(copy, "h\xc3\xa9\n\xf0\x9f\x98\x80"));
	CHECK(qm_json_copy(qm_json_member(v, "s"), copy, 4) == -1 && !copy[0]);
	CHECK(qm_json_kind(qm_json_member(v, "key")) == 'f');
	CHECK(!qm_json_path(v, (const char *[]){"a", "none", "b", 0}).at && text_is(qm_json_member(v, "e"), "{}"));
	cursor = qm_json_items(qm_json_member(v, "l"));
	CHECK(!qm_json_element(&cursor, &one));
	CHECK(qm_json_text(text, sizeof text - 1, "s", copy, sizeof copy) == 1 && qm_json_text(text, sizeof text - 1, "a", copy, sizeof copy) == -1);
	CHECK(qm_json_text(text, sizeof text - 1, "z", copy, sizeof copy) == 0);
	for (uint32_t cut = 0; cut < sizeof text - 1; cut++) { /* run with the address sanitizer */
		char part[sizeof text];
		memcpy(part, text, cut);
		qm_json p = qm_json_parse(part, cut);
		qm_json_is(qm_json_member(p, "s"), "h");
		qm_json_path(p, (const char *[]){"a", "b", 0});
	}
}

static uint32_t put(uint8_t *at, uint8_t number, const void *bytes, uint32_t length) {
	at[0] = (uint8_t)(number << 3 | 2), at[1] = (uint8_t)length;
	memcpy(at + 2, bytes, length);
	return length + 2;
}

static uint32_t put_entry(uint8_t *at, uint8_t number, const char *key, const void *value, uint32_t length) {
	uint8_t e[64];
	uint32_t n = put(e, 1, key, qm_strlen(key));
	n += put(e + n, 2, value, length);
	return put(at, number, e, n);
}

static void objects(void) {
	uint8_t part[128], data[512], inner[64];
	uint32_t n = put(part, 1, "n1", 2), size;
	n += put_entry(part + n, 11, "zone", "a", 1);
	n += put_entry(part + n, 11, "disk", "ssd", 3);
	size = put(data, QM_METADATA, part, n);
	part[0] = 4 << 3, part[1] = 1;
	n = put(inner, 1, "k", 1);
	n += put(inner + n, 3, "NoSchedule", 10);
	n = 2 + put(part + 2, QM_NODE_TAINTS, inner, n);
	size += put(data + size, QM_SPEC, part, n);
	n = put_entry(part, 2, "cpu", inner, put(inner, 1, "3500m", 5));
	uint32_t k = put(inner, 1, "Ready", 5);
	k += put(inner + k, 2, "True", 4);
	n += put(part + n, 4, inner, k);
	size += put(data + size, QM_STATUS, part, n);
	qm_message node = qm_bytes(data, size), m, taint;
	CHECK(text_is(qm_object_name(node), "n1") && qm_object_label(node, "disk", &m) && text_is(m, "ssd") && !qm_object_label(node, "none", &m));
	CHECK(qm_node_unschedulable(node) && qm_node_condition(node, "Ready", &m) && text_is(m, "True") && !qm_node_condition(node, "Disk", &m));
	CHECK(qm_node_allocatable(node, "cpu", &m) && qm_milli(m) == 3500 && !qm_node_capacity(node, "cpu", &m));
	m = qm_within(node, QM_SPEC);
	CHECK(qm_each(&m, QM_NODE_TAINTS, &taint) && text_is(qm_within(taint, QM_TAINT_EFFECT), "NoSchedule") && !qm_each(&m, QM_NODE_TAINTS, &taint));
	for (uint32_t cut = 0; cut < size; cut++) {
		uint8_t copy[512];
		memcpy(copy, data, cut);
		qm_node_condition(qm_bytes(copy, cut), "Ready", &m);
	}
}

static void answers(void) {
	static const char review[] = "{\"request\": {\"kind\": {\"kind\": \"Pod\"}, \"object\": {\"a\": 1}}}";
	qm_json request = qm_review(review, sizeof review - 1);
	CHECK(text_is(qm_json_member(request, "object"), "{\"a\": 1}"));
	qm_warn(qm_string("a \"b\"\n"));
	qm_warn(qm_string("c"));
	qm_annotate(qm_string("k"), qm_string("v"));
	qm_patch("add", "/metadata/labels");
	qm_patch_key(qm_string("a/b~c"));
	qm_patch_text(qm_string("x\\"));
	qm_patch("remove", "/spec/x");
	qm_patch("replace", "/n");
	qm_patch_number(INT64_MIN);
	qm_answer();
	CHECK(text_is(qm_of(&qm_out), "{\"allowed\":true,\"warnings\":[\"a \\\"b\\\"\\u000a\",\"c\"],\"patch\":[{\"op\":\"add\",\"path\":\"/metadata/labels/a~1b~0c\",\"value\":\"x\\\\\"},"
		"{\"op\":\"remove\",\"path\":\"/spec/x\"},{\"op\":\"replace\",\"path\":\"/n\",\"value\":-9223372036854775808}],\"auditAnnotations\":{\"k\":\"v\"}}"));
	qm_review(review, sizeof review - 1);
	qm_deny(403, qm_string("no"));
	qm_answer();
	CHECK(text_is(qm_of(&qm_out), "{\"allowed\":false,\"code\":403,\"message\":\"no\"}"));
}

static void reads(void) {
	static qm_buffer room;
	qm_message m;
	CHECK(qm_read("secrets", qm_string("ns"), qm_string("big"), &room, &m) == -1);
	CHECK(qm_read("configmaps", qm_string("ns"), qm_string("none"), &room, &m) == 0);
	CHECK(qm_read("configmaps", qm_string("ns"), qm_string("big"), &room, &m) == 1 && qm_size(m) == 5000 && m.at[4999] == 'a' + 4999 % 26);
	CHECK(qm_refuse("why") == 1 && !strcmp(last_error, "why"));
}

int main(void) {
	quantities();
	json();
	objects();
	answers();
	reads();
	if (!failures) puts("ok");
	return failures != 0;
}
