package apiserver_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
)

const (
	asJSON    = "application/json"
	merge     = "application/merge-patch+json"
	strategic = "application/strategic-merge-patch+json"
	jsonPatch = "application/json-patch+json"
)

// quoted are values that differ between any two objects, in a text in a message.
var quoted = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\\+"(resourceVersion|time|creationTimestamp)\\+":\\+"[^\\]*`)

// TestUpdatesAgreeWithUpstream sends each update and patch to an object that has
// just been made, as it is and with a parameter that nobody knows, by which it is
// upstream's handler that answers: status, headers, warnings and body are the same.
func TestUpdatesAgreeWithUpstream(t *testing.T) {
	c := start(t, nil)
	const (
		pod = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"made","labels":{"a":"b"},"finalizers":["x.io/y"],
			"ownerReferences":[{"apiVersion":"v1","kind":"A","name":"a","uid":"u"}]},"spec":{"containers":[{"name":"c","image":"i","env":[{"name":"e","value":"v"}]},{"name":"d","image":"j"}]}}`
		config = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"made","labels":{"a":"b"}},"data":{"a":"1","b":"2"}}`
		lease  = `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"made"},"spec":{"holderIdentity":"h","leaseDurationSeconds":40}}`
		node   = `{"apiVersion":"v1","kind":"Node","metadata":{"name":"made"}}`
		deploy = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"made"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`
		scaler = `{"apiVersion":"autoscaling/v1","kind":"HorizontalPodAutoscaler","metadata":{"name":"made"},"spec":{"maxReplicas":3,"targetCPUUtilizationPercentage":80,"scaleTargetRef":{"apiVersion":"apps/v1","kind":"Deployment","name":"d"}}}`

		inDefault = "/api/v1/namespaces/default/"
		ready     = `{"metadata":{"uid":"$uid"},"status":{"conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2020-01-01T00:00:00Z"}],"containerStatuses":[{"name":"c","image":"i","imageID":"","ready":true,"restartCount":0}],"podIPs":[{"ip":"10.0.0.7"}],"podIP":"10.0.0.7"}}`
	)
	at := map[string]string{
		pod: inDefault + "pods", config: inDefault + "configmaps", lease: "/apis/coordination.k8s.io/v1/namespaces/default/leases", node: "/api/v1/nodes",
		deploy: "/apis/apps/v1/namespaces/default/deployments", scaler: "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers",
	}
	// $made is what was made, $uid its UID; FROM=>TO after the body of a PUT changes what was made.
	for _, test := range []struct{ name, object, method, path, contentType, accept, body string }{
		{"put as it is", pod, http.MethodPut, "", asJSON, asJSON, `$made`},
		{"put another label", pod, http.MethodPut, "", asJSON, asJSON, `$made"a":"b"=>"a":"c"`},
		{"put a label more", pod, http.MethodPut, "", asJSON, asJSON, `$made"a":"b"=>"a":"b","c":"d"`},
		{"put without a label", pod, http.MethodPut, "", asJSON, asJSON, `$made"a":"b"=>`},
		{"put another image", pod, http.MethodPut, "?fieldManager=m", asJSON, asJSON, `$made"image":"j"=>"image":"k"`},
		{"put what may not change", pod, http.MethodPut, "", asJSON, asJSON, `$made"name":"e","value":"v"=>"name":"e","value":"w"`},
		{"put an unknown field", pod, http.MethodPut, "", asJSON, asJSON, `$made"spec":{=>"spec":{"nonsense":1,`},
		{"put an unknown field, strictly", pod, http.MethodPut, "?fieldValidation=Strict", asJSON, asJSON, `$made"spec":{=>"spec":{"nonsense":1,`},
		{"put an unknown field, ignored", pod, http.MethodPut, "?fieldValidation=Ignore", asJSON, asJSON, `$made"spec":{=>"spec":{"nonsense":1,`},
		{"put another name", pod, http.MethodPut, "", asJSON, asJSON, `$made"name":"made"=>"name":"other"`},
		{"put another namespace", pod, http.MethodPut, "", asJSON, asJSON, `$made"namespace":"default"=>"namespace":"kube-system"`},
		{"put no namespace", pod, http.MethodPut, "", asJSON, asJSON, `$made"namespace":"default",=>`},
		{"put another UID", pod, http.MethodPut, "", asJSON, asJSON, `$made"uid":"=>"uid":"x`},
		{"put an old version", pod, http.MethodPut, "", asJSON, asJSON, `$made"resourceVersion":"=>"resourceVersion":"1`},
		{"put no version", pod, http.MethodPut, "", asJSON, asJSON, `$made"resourceVersion":=>"selfLink":`},
		{"put no managed fields", pod, http.MethodPut, "", asJSON, asJSON, `$made"managedFields":[{=>"managedFields":[{},{`},
		{"put broken managed fields", pod, http.MethodPut, "", asJSON, asJSON, `$made"fieldsType":"FieldsV1"=>"fieldsType":"FieldsV2"`},
		{"put the managed fields of another", pod, http.MethodPut, "", asJSON, asJSON, `$made"manager":"test"=>"manager":"other"`},
		{"put an owner twice", pod, http.MethodPut, "", asJSON, asJSON, `$made"ownerReferences":[=>"ownerReferences":[{"apiVersion":"v1","kind":"A","name":"a","uid":"u"},`},
		{"put a status beside", pod, http.MethodPut, "", asJSON, asJSON, `$made"phase":"Pending"=>"phase":"Running"`},
		{"put a status", pod, http.MethodPut, "/status", asJSON, asJSON, `$made"phase":"Pending"=>"phase":"Running"`},
		{"put a label beside a status", pod, http.MethodPut, "/status", asJSON, asJSON, `$made"a":"b"=>"a":"c"`},
		{"put without finalizers", pod, http.MethodPut, "", asJSON, asJSON, `$made"finalizers":["x.io/y"],=>`},
		{"put protobuf", config, http.MethodPut, "", "application/vnd.kubernetes.protobuf", asJSON, `$made"1"=>"3"`},
		{"put YAML", config, http.MethodPut, "", "application/yaml", "application/yaml", `$made"1"=>"3"`},
		{"put nonsense", config, http.MethodPut, "", asJSON, asJSON, `7`},
		{"put an unknown type", config, http.MethodPut, "", "text/html", asJSON, `$made`},
		{"put into a table", config, http.MethodPut, "", asJSON, "application/json;as=Table;v=v1;g=meta.k8s.io", `$made`},
		{"put for nothing", config, http.MethodPut, "?dryRun=All", asJSON, asJSON, `$made"1"=>"3"`},
		{"put another kind", config, http.MethodPut, "", asJSON, asJSON, `$made"ConfigMap"=>"Secret"`},
		{"put where nothing is", config, http.MethodPut, "x", asJSON, asJSON, `$made"name":"made"=>"name":"madex"`},
		{"put a lease", lease, http.MethodPut, "", asJSON, asJSON, `$made"h"=>"i"`},
		{"put a node's status", node, http.MethodPut, "/status", asJSON, asJSON, `$made"status":{=>"status":{"capacity":{"cpu":"2","memory":"1Gi"},"conditions":[{"type":"Ready","status":"True"}],`},
		{"put a deployment", deploy, http.MethodPut, "", asJSON, asJSON, `$made"replicas":1=>"replicas":2`},
		{"put another version", scaler, http.MethodPut, "", asJSON, asJSON, `$made"maxReplicas":3=>"maxReplicas":4`},

		{"merge a label", pod, http.MethodPatch, "", merge, asJSON, `{"metadata":{"labels":{"a":"c","n":"1"}}}`},
		{"merge a label away", pod, http.MethodPatch, "", merge, asJSON, `{"metadata":{"labels":{"a":null}}}`},
		{"merge nothing", pod, http.MethodPatch, "", merge, asJSON, `{}`},
		{"merge a list", pod, http.MethodPatch, "", merge, asJSON, `{"spec":{"containers":[{"name":"c","image":"k","env":[{"name":"e","value":"v"}]},{"name":"d","image":"j"}]}}`},
		{"merge another name", pod, http.MethodPatch, "", merge, asJSON, `{"metadata":{"name":"x"}}`},
		{"merge another kind", pod, http.MethodPatch, "", merge, asJSON, `{"kind":"Secret"}`},
		{"merge an unknown field", pod, http.MethodPatch, "", merge, asJSON, `{"spec":{"nonsense":1}}`},
		{"merge an unknown field, strictly", pod, http.MethodPatch, "?fieldValidation=Strict", merge, asJSON, `{"spec":{"nonsense":1}}`},
		{"merge a field twice", pod, http.MethodPatch, "", merge, asJSON, `{"metadata":{"labels":{"a":"c","a":"d"}}}`},
		{"merge a field twice, ignored", pod, http.MethodPatch, "?fieldValidation=Ignore", merge, asJSON, `{"metadata":{"labels":{"a":"c","a":"d"}}}`},
		{"merge a wrong type", pod, http.MethodPatch, "", merge, asJSON, `{"spec":{"containers":7}}`},
		{"merge nonsense", pod, http.MethodPatch, "", merge, asJSON, `7`},
		{"merge half", pod, http.MethodPatch, "", merge, asJSON, `{"metadata":`},
		{"merge what is invalid", pod, http.MethodPatch, "", merge, asJSON, `{"metadata":{"labels":{"a":"!"}}}`},
		{"merge an old version", pod, http.MethodPatch, "", merge, asJSON, `{"metadata":{"resourceVersion":"1","labels":{"a":"c"}}}`},
		{"merge an owner twice", pod, http.MethodPatch, "", merge, asJSON, `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"A","name":"a","uid":"u"},{"apiVersion":"v1","kind":"A","name":"a","uid":"u"}]}}`},
		{"merge managed fields away", pod, http.MethodPatch, "", merge, asJSON, `{"metadata":{"managedFields":[]}}`},
		{"merge a config map", config, http.MethodPatch, "?fieldManager=m", merge, asJSON, `{"data":{"a":"2","c":"3"},"binaryData":{"d":"eA=="}}`},
		{"merge where nothing is", config, http.MethodPatch, "x", merge, asJSON, `{"data":{"a":"2"}}`},
		{"merge a lease", lease, http.MethodPatch, "", merge, asJSON, `{"spec":{"renewTime":"2020-01-01T00:00:00.000000Z"}}`},
		{"merge a deployment", deploy, http.MethodPatch, "", merge, asJSON, `{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"k"},{"name":"e","image":"l"}]}}}}`},
		{"merge another version", scaler, http.MethodPatch, "", merge, asJSON, `{"spec":{"maxReplicas":5}}`},
		{"merge with a charset", config, http.MethodPatch, "", merge + "; charset=utf-8", asJSON, `{"data":{"a":"2"}}`},
		{"merge by YAML", config, http.MethodPatch, "", merge, "application/yaml", `{"data":{"a":"2"}}`},
		{"merge of an unknown type", config, http.MethodPatch, "", "application/x", asJSON, `{"data":{"a":"2"}}`},
		{"merge for nothing", config, http.MethodPatch, "?dryRun=All", merge, asJSON, `{"data":{"a":"2"}}`},
		{"merge by force", config, http.MethodPatch, "?force=true", merge, asJSON, `{"data":{"a":"2"}}`},

		{"strategic label", pod, http.MethodPatch, "", strategic, asJSON, `{"metadata":{"labels":{"a":"c","n":"1"}}}`},
		{"strategic image", pod, http.MethodPatch, "?fieldManager=m", strategic, asJSON, `{"spec":{"containers":[{"name":"d","image":"k"}]}}`},
		{"strategic finalizers", pod, http.MethodPatch, "", strategic, asJSON, `{"metadata":{"finalizers":["x.io/z"],"$setElementOrder/finalizers":["x.io/z","x.io/y"]}}`},
		{"strategic deletion", pod, http.MethodPatch, "", strategic, asJSON, `{"metadata":{"$deleteFromPrimitiveList/finalizers":["x.io/y"],"ownerReferences":[{"$patch":"delete","uid":"u"}]}}`},
		{"strategic nonsense", pod, http.MethodPatch, "", strategic, asJSON, `{"metadata":{"finalizers":7}}`},
		{"strategic directive that there is not", pod, http.MethodPatch, "", strategic, asJSON, `{"spec":{"containers":[{"$patch":"perhaps","name":"d"}]}}`},
		{"strategic without a key", pod, http.MethodPatch, "", strategic, asJSON, `{"spec":{"containers":[{"image":"k"}]}}`},
		{"strategic unknown field", pod, http.MethodPatch, "", strategic, asJSON, `{"spec":{"nonsense":1}}`},
		{"strategic unknown field, ignored", pod, http.MethodPatch, "?fieldValidation=Ignore", strategic, asJSON, `{"spec":{"nonsense":1}}`},
		{"strategic status", pod, http.MethodPatch, "/status", strategic, asJSON, ready},
		{"strategic status of another", pod, http.MethodPatch, "/status", strategic, asJSON, `{"metadata":{"uid":"other"},"status":{"phase":"Running"}}`},
		{"strategic node's status", node, http.MethodPatch, "/status", strategic, asJSON, `{"status":{"capacity":{"cpu":"2000m"},"conditions":[{"type":"Ready","status":"True","lastHeartbeatTime":"2020-01-01T00:00:00Z"}],"addresses":[{"type":"InternalIP","address":"10.0.0.1"},{"type":"Hostname","address":"made"}]}}`},

		{"operations", pod, http.MethodPatch, "", jsonPatch, asJSON, `[{"op":"test","path":"/metadata/labels/a","value":"b"},{"op":"replace","path":"/metadata/labels/a","value":"c"},{"op":"add","path":"/metadata/labels/n","value":"1"}]`},
		{"operation that fails", pod, http.MethodPatch, "", jsonPatch, asJSON, `[{"op":"test","path":"/metadata/labels/a","value":"c"}]`},
		{"operation that there is not", pod, http.MethodPatch, "", jsonPatch, asJSON, `[{"op":"perhaps","path":"/a"}]`},
		{"operation with more", pod, http.MethodPatch, "", jsonPatch, asJSON, `[{"op":"remove","path":"/metadata/labels/a","nonsense":1}]`},
		{"operations that are none", pod, http.MethodPatch, "", jsonPatch, asJSON, `{}`},
		{"too many operations", pod, http.MethodPatch, "", jsonPatch, asJSON, "[" + strings.Repeat(`{"op":"test","path":"/kind","value":"Pod"},`, 10000) + `{"op":"test","path":"/kind","value":"Pod"}]`},
		{"apply", config, http.MethodPatch, "?fieldManager=m&force=true", "application/apply-patch+yaml", asJSON, `{"apiVersion":"v1","kind":"ConfigMap","data":{"a":"2"}}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			collection := at[test.object]
			var answers [2]string
			for i, parameter := range []string{"", "nobody=knows"} {
				suffix := test.path
				if parameter != "" {
					suffix += map[bool]string{true: "&", false: "?"}[strings.Contains(suffix, "?")] + parameter
				}
				change := func() string {
					response, made := exchange(t, c, http.MethodPost, collection, asJSON, asJSON, []byte(test.object))
					if response.StatusCode != http.StatusCreated {
						t.Fatalf("create: %s", made)
					}
					body := filled(t, test.body, test.contentType, made)
					response, data := exchange(t, c, test.method, collection+"/made"+suffix, test.contentType, test.accept, body)
					answer := quoted.ReplaceAllString(seen(t, response, data), "")
					// Stored is what was answered, finalizers or not.
					_, stored := exchange(t, c, http.MethodGet, collection+"/made", "", asJSON, nil)
					answer += "\n" + changing.ReplaceAllString(string(stored), "$1$2")
					if bytes.Contains(stored, []byte(`"finalizers"`)) {
						exchange(t, c, http.MethodPatch, collection+"/made", merge, asJSON, []byte(`{"metadata":{"finalizers":null}}`))
					}
					remove(t, c, collection+"/made", false)
					return answer
				}
				change() // the second time such a change is known
				answers[i] = inOneSecond(change)
			}
			if diff := cmp.Diff(answers[1], answers[0]); diff != "" {
				t.Errorf("upstream's (-), ours (+): %s", diff)
			}
		})
	}
}

// inOneSecond calls until a call began and ended within one second of the clock: managed
// fields are in the order of their times, which are whole seconds.
func inOneSecond(call func() string) string {
	for {
		began := time.Now().Unix()
		if answer := call(); time.Now().Unix() == began {
			return answer
		}
	}
}

// filled fills in what was made.
func filled(t *testing.T, body, contentType string, made []byte) []byte {
	t.Helper()
	var of struct{ Metadata struct{ UID string } }
	if err := json.Unmarshal(made, &of); err != nil {
		t.Fatal(err)
	}
	body = strings.ReplaceAll(body, "$uid", of.Metadata.UID)
	change, ok := strings.CutPrefix(body, "$made")
	if !ok {
		return []byte(body)
	}
	text := strings.TrimSpace(string(made))
	if from, to, ok := strings.Cut(change, "=>"); ok {
		if !strings.Contains(text, from) {
			t.Fatalf("there is no %s in %s", from, text)
		}
		text = strings.Replace(text, from, to, 1)
	}
	if contentType != "application/vnd.kubernetes.protobuf" {
		return []byte(text)
	}
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode([]byte(text), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	info, _ := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), contentType)
	var encoded bytes.Buffer
	if err := scheme.Codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion).Encode(object, &encoded); err != nil {
		t.Fatal(fmt.Errorf("encode: %w", err))
	}
	return encoded.Bytes()
}
