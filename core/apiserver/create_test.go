package apiserver_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// changing are the values that differ between any two creates.
var changing = regexp.MustCompile(`"?(uid|resourceVersion|creationTimestamp|time|clusterIP)"?: ?(?:"[^"]*"|[0-9a-f-]{36})|"clusterIPs":\[[^]]*\]|"nodePort":\d+|(made-|kube-api-access-)[a-z0-9]{5}`)

// TestCreatesAgreeWithUpstream sends each request as it is, and with a parameter
// that nobody knows, by which it is upstream's handler that answers: status,
// headers, warnings and body are the same.
func TestCreatesAgreeWithUpstream(t *testing.T) {
	c := start(t, nil)
	const (
		json_    = "application/json"
		yaml_    = "application/yaml"
		protobuf = "application/vnd.kubernetes.protobuf"
		pods     = "/api/v1/namespaces/default/pods"
		spec     = `"spec":{"containers":[{"name":"c","image":"i"}]}`
	)
	of := func(kind, version, rest string) string {
		return `{"apiVersion":"` + version + `","kind":"` + kind + `","metadata":{"name":"made"` + rest
	}
	pod := samplePod("made")
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	var encoded bytes.Buffer
	info, _ := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), protobuf)
	if err := scheme.Codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion).Encode(pod, &encoded); err != nil {
		t.Fatal(err)
	}
	asYAML, err := yaml.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, path, contentType, accept, body string }{
		{"json", pods, json_, json_, of("Pod", "v1", `},`+spec+`}`)},
		{"protobuf", pods, protobuf, json_, encoded.String()},
		{"yaml", pods, yaml_, yaml_, string(asYAML)},
		{"no content type", pods, "", "", of("Pod", "v1", `},`+spec+`}`)},
		{"as kubectl", pods + "?fieldManager=kubectl-create&fieldValidation=Strict", json_, json_, of("Pod", "v1", `},`+spec+`}`)},
		{"ignored fields", pods + "?fieldValidation=Ignore", json_, json_, of("Pod", "v1", `},"nonsense":1,`+spec+`}`)},
		{"unknown fields", pods, json_, json_, of("Pod", "v1", `},"nonsense":1,`+spec+`}`)},
		{"unknown fields, strictly", pods + "?fieldValidation=Strict", json_, json_, of("Pod", "v1", `},"nonsense":1,`+spec+`}`)},
		{"bad validation", pods + "?fieldValidation=Perhaps", json_, json_, of("Pod", "v1", `},`+spec+`}`)},
		{"bad manager", pods + "?fieldManager=%00", json_, json_, of("Pod", "v1", `},`+spec+`}`)},
		{"generated name", pods, json_, json_, `{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"made-"},` + spec + `}`},
		{"invalid", pods, json_, json_, of("Pod", "v1", `},"spec":{"containers":[]}}`)},
		{"no name", pods, json_, json_, `{"apiVersion":"v1","kind":"Pod","metadata":{},` + spec + `}`},
		{"no kind", pods, json_, json_, `{"metadata":{"name":"made"},` + spec + `}`},
		{"another kind", pods, json_, json_, of("ConfigMap", "v1", `}}`)},
		{"another version", pods, json_, json_, of("Pod", "v2", `},`+spec+`}`)},
		{"another namespace", pods, json_, json_, of("Pod", "v1", `,"namespace":"kube-system"},`+spec+`}`)},
		{"no namespace", "/api/v1/pods", json_, json_, of("Pod", "v1", `},`+spec+`}`)},
		{"a namespace that is not there", "/api/v1/namespaces/nowhere/pods", json_, json_, of("Pod", "v1", `},`+spec+`}`)},
		{"a path with more", pods + "/", json_, json_, of("Pod", "v1", `},`+spec+`}`)},
		{"system's fields", pods, json_, json_, of("Pod", "v1", `,"uid":"u","resourceVersion":"","creationTimestamp":"2020-01-01T00:00:00Z","generation":7,"selfLink":"s"},`+spec+`}`)},
		{"a resource version", pods, json_, json_, of("Pod", "v1", `,"resourceVersion":"7"},`+spec+`}`)},
		{"a status", pods, json_, json_, of("Pod", "v1", `},`+spec+`,"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`)},
		{"an owner twice", pods, json_, json_, of("Pod", "v1", `,"ownerReferences":[{"apiVersion":"v1","kind":"A","name":"a","uid":"u"},{"apiVersion":"v1","kind":"A","name":"a","uid":"u"}]},`+spec+`}`)},
		{"managed fields", pods, json_, json_, of("Pod", "v1", `,"managedFields":[{"manager":"x","operation":"Apply","apiVersion":"v1","time":"2020-01-01T00:00:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{}}}]},`+spec+`}`)},
		{"managed fields, none wanted", pods, json_, json_, of("Pod", "v1", `,"managedFields":[{}]},`+spec+`}`)},
		{"no object", pods, json_, json_, `7`},
		{"cut short", pods, json_, json_, `{"apiVersion":"v1"`},
		{"nothing", pods, json_, json_, ``},
		{"too much", pods, json_, json_, of("Pod", "v1", `,"annotations":{"a":"`+strings.Repeat("x", 4<<20)+`"}},`+spec+`}`)},
		{"not JSON", pods, json_, json_, "\x00"},
		{"not protobuf", pods, protobuf, json_, "k8s\x00nonsense"},
		{"an unknown type", pods, "text/html", json_, of("Pod", "v1", `},`+spec+`}`)},
		{"an answer of an unknown type", pods, json_, "text/html", of("Pod", "v1", `},`+spec+`}`)},
		{"a table", pods, json_, "application/json;as=Table;v=v1;g=meta.k8s.io,application/json", of("Pod", "v1", `},`+spec+`}`)},
		{"metadata alone", pods, json_, "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", of("Pod", "v1", `},`+spec+`}`)},
		{"pretty", pods + "?pretty=true", json_, json_, of("Pod", "v1", `},`+spec+`}`)},
		{"dry run", pods + "?dryRun=All", json_, json_, of("Pod", "v1", `},`+spec+`}`)},
		{"there already", "/api/v1/namespaces/default/serviceaccounts", json_, json_, `{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"default"}}`},
		{"what no policy allows", pods, json_, json_, of("Pod", "v1", `},"spec":{"serviceAccountName":"none","containers":[{"name":"c","image":"i"}]}}`)},
		{"a warning", pods, json_, json_, of("Pod", "v1", `,"annotations":{"container.apparmor.security.beta.kubernetes.io/c":"unconfined"}},`+spec+`}`)},
		{"config map", "/api/v1/namespaces/default/configmaps", json_, json_, of("ConfigMap", "v1", `},"data":{"a":""},"binaryData":{"b":""}}`)},
		{"secret", "/api/v1/namespaces/default/secrets", json_, json_, of("Secret", "v1", `},"data":{"a":"","b":"eA=="}}`)},
		{"service", "/api/v1/namespaces/default/services", json_, json_, of("Service", "v1", `},"spec":{"type":"NodePort","ports":[{"name":"a","port":1},{"name":"b","port":1,"protocol":"UDP"}]}}`)},
		{"endpoints, which are deprecated", "/api/v1/namespaces/default/endpoints", json_, json_, of("Endpoints", "v1", `}}`)},
		{"deployment", "/apis/apps/v1/namespaces/default/deployments", json_, json_, of("Deployment", "apps/v1", `},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},`+spec+`}}}`)},
		{"autoscaler of another version", "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers", json_, json_, of("HorizontalPodAutoscaler", "autoscaling/v1", `,"annotations":{"autoscaling.alpha.kubernetes.io/metrics":"[{\"type\":\"Resource\",\"resource\":{\"name\":\"memory\",\"targetAverageUtilization\":80}}]"}},"spec":{"maxReplicas":3,"scaleTargetRef":{"kind":"Deployment","name":"d"}}}`)},
		{"event", "/apis/events.k8s.io/v1/namespaces/default/events", json_, json_, of("Event", "events.k8s.io/v1", `},"eventTime":"2020-01-01T00:00:00.000000Z","reportingController":"c.io/c","reportingInstance":"i","action":"a","reason":"r","type":"Normal"}`)},
	} {
		t.Run(test.name, func(t *testing.T) {
			var answers [2]string
			for i, parameter := range []string{"", "nobody=knows"} {
				path := test.path
				if parameter != "" {
					path += map[bool]string{true: "&", false: "?"}[strings.Contains(path, "?")] + parameter
				}
				for range 2 { // the second time the shape is known
					answers[i] = answer(t, c, path, test.contentType, test.accept, []byte(test.body))
				}
			}
			if diff := cmp.Diff(answers[1], answers[0]); diff != "" {
				t.Errorf("upstream's (-), ours (+): %s", diff)
			}
		})
	}
}

// answer is all that a client sees of a create, less what always differs. What
// was made is removed.
func answer(t *testing.T, c *cluster, path, contentType, accept string, body []byte) string {
	t.Helper()
	response, data := exchange(t, c, http.MethodPost, path, contentType, accept, body)
	name := "made"
	var made metav1.PartialObjectMetadata
	if json.Unmarshal(data, &made) == nil && made.Name != "" {
		name = made.Name
	}
	if response.StatusCode == http.StatusCreated {
		plain, _, _ := strings.Cut(path, "?")
		remove(t, c, strings.TrimSuffix(plain, "/")+"/"+name, strings.Contains(path, "dryRun"))
	}
	return seen(t, response, data)
}

// exchange sends a request as the client that is named in managed fields.
func exchange(t *testing.T, c *cluster, method, path, contentType, accept string, body []byte) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://quaymaster.internal"+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("User-Agent", "test/1 (of writes)")
	for name, value := range map[string]string{"Content-Type": contentType, "Accept": accept} {
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	response, err := c.RESTConfig(nil).Transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, data
}

// remove deletes at once what is at a path; it may be missing if maybe says so.
func remove(t *testing.T, c *cluster, path string, maybe bool) {
	t.Helper()
	if response, data := exchange(t, c, http.MethodDelete, path+"?gracePeriodSeconds=0", "", "", nil); response.StatusCode >= 300 && !maybe {
		t.Errorf("delete %s: %s %s", path, response.Status, data)
	}
}

// seen is all of an answer that must not differ.
func seen(t *testing.T, response *http.Response, data []byte) string {
	t.Helper()
	response.Header.Del("Audit-Id")
	response.Header.Del("Content-Length")
	var header bytes.Buffer
	if err := response.Header.Write(&header); err != nil {
		t.Fatal(err)
	}
	return response.Status + "\n" + header.String() + changing.ReplaceAllString(string(data), "$1$2")
}
