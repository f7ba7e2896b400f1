/* default-toleration lets the pods of a namespace that is named for a dedicated
 * pool onto that pool: it adds a toleration and a node selector to pods of
 * namespaces that begin with the prefix, and refuses the toleration to others.
 *
 * Configuration: {"prefix": "ml-", "key": "dedicated", "value": "ml"}. */
#include "qm.h"

static char prefix[64], key[64], value[64];

QM_EXPORT("qm_configure") int qm_configure(const char *json, uint32_t length) {
	if (qm_json_text(json, length, "prefix", prefix, sizeof prefix) == 1 && qm_json_text(json, length, "key", key, sizeof key) == 1 &&
	    qm_json_text(json, length, "value", value, sizeof value) == 1 && prefix[0] && key[0])
		return 0;
	return qm_refuse("prefix, key and value are needed: strings of at most 63 bytes");
}

static int has_prefix(const char *text) {
	const char *p = prefix;
	while (*p && *p == *text) p++, text++;
	return !*p;
}

/* Says that one of the tolerations is for the pool; counts them. */
static int tolerates(qm_json list, uint32_t *count) {
	qm_json cursor = qm_json_items(list), one;
	int found = 0;
	for (*count = 0; qm_json_element(&cursor, &one); ++*count)
		found |= qm_json_is(qm_json_member(one, "key"), key) && qm_json_is(qm_json_member(one, "value"), value);
	return found;
}

static void allow(qm_json spec, uint32_t count) {
	static qm_buffer toleration;
	toleration.length = 0;
	qm_put_text(&toleration, count ? "{\"key\":" : "[{\"key\":");
	qm_put_quoted(&toleration, qm_string(key));
	qm_put_text(&toleration, ",\"operator\":\"Equal\",\"value\":");
	qm_put_quoted(&toleration, qm_string(value));
	qm_put_text(&toleration, count ? "}" : "}]");
	qm_patch("add", count ? "/spec/tolerations/-" : "/spec/tolerations");
	qm_patch_json(qm_of(&toleration));
	if (!qm_json_member(spec, "nodeSelector").at) {
		qm_patch("add", "/spec/nodeSelector");
		qm_patch_json(qm_string("{}"));
	}
	qm_patch("add", "/spec/nodeSelector");
	qm_patch_key(qm_string(key));
	qm_patch_text(qm_string(value));
}

QM_EXPORT("admit") uint64_t admit(const char *text, uint32_t length) {
	qm_json request = qm_review(text, length), spec = qm_json_path(request, (const char *[]){"object", "spec", 0});
	char space[64];
	uint32_t count;
	if (!qm_json_is(qm_json_path(request, (const char *[]){"kind", "kind", 0}), "Pod") || !spec.at) return qm_answer();
	qm_json_copy(qm_json_member(request, "namespace"), space, sizeof space);
	int tolerated = tolerates(qm_json_member(spec, "tolerations"), &count);
	if (has_prefix(space)) {
		if (!tolerated) allow(spec, count);
	} else if (tolerated) {
		static qm_buffer why;
		why.length = 0;
		qm_put_text(&why, "only namespaces that begin with ");
		qm_put_text(&why, prefix);
		qm_put_text(&why, " may tolerate ");
		qm_put_text(&why, key);
		qm_deny(403, qm_of(&why));
	}
	return qm_answer();
}
