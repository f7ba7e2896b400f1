package apiserver_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
)

// TestReadsAgreeWithUpstream sends each get and list as it is and with a parameter
// that nobody knows, by which it is upstream's handler that answers: status, headers
// and body are the same, byte by byte.
func TestReadsAgreeWithUpstream(t *testing.T) {
	c := start(t, nil)
	d := c.Direct(nil)
	for i := range 30 {
		if _, err := d.Create(t.Context(), pods, "default", samplePod(fmt.Sprint("p-", i))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.client.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"a": "b"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	list, err := c.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{Limit: 10})
	if err != nil || list.Continue == "" || len(list.Items) != 10 {
		t.Fatalf("%d pods, continue %q, %v", len(list.Items), list.Continue, err)
	}
	then := "limit=7&continue=" + url.QueryEscape(list.Continue)
	const protobuf = "application/vnd.kubernetes.protobuf"
	for _, path := range []string{
		"/api/v1/namespaces/default/pods/p-3", "/api/v1/namespaces/default/pods/p-3?resourceVersion=0", "/api/v1/namespaces/default/pods/p-3?resourceVersion=1",
		"/api/v1/namespaces/default/pods/p-3?resourceVersion=x", "/api/v1/namespaces/default/pods/p-3?resourceVersion=99999999",
		"/api/v1/namespaces/default/pods/none", "/api/v1/namespaces/nowhere/pods/p-3", "/api/v1/namespaces/default/pods/P_3", "/api/v1/namespaces/default/pods/p-3/status",
		"/api/v1/namespaces/default/pods", "/api/v1/pods", "/api/v1/namespaces/nowhere/pods", "/api/v1/namespaces/default/pods?limit=7", "/api/v1/namespaces/default/pods?" + then,
		"/api/v1/namespaces/default/pods?limit=7&resourceVersion=0", "/api/v1/namespaces/default/pods?limit=x", "/api/v1/namespaces/default/pods?limit=-1",
		"/api/v1/namespaces/default/pods?continue=nonsense", "/api/v1/namespaces/default/pods?" + then + "&resourceVersion=1",
		"/api/v1/namespaces/default/pods?resourceVersionMatch=Exact&resourceVersion=" + list.ResourceVersion, "/api/v1/namespaces/default/pods?resourceVersionMatch=Exact",
		"/api/v1/namespaces/default/pods?resourceVersion=99999999&resourceVersionMatch=NotOlderThan", "/api/v1/namespaces/default/pods?resourceVersion=1&resourceVersionMatch=Exact",
		"/api/v1/namespaces/default/pods?labelSelector=app%3Dhttpserver", "/api/v1/namespaces/default/pods?fieldSelector=spec.nodeName%3D", "/api/v1/namespaces/default/pods?fieldSelector=metadata.name%3Dp-3",
		"/api/v1/nodes", "/api/v1/nodes/n", "/api/v1/nodes?limit=1", "/api/v1/namespaces/default/secrets/s", "/api/v1/namespaces/default/services/kubernetes", "/api/v1/namespaces/default",
		"/api/v1/namespaces/default/serviceaccounts/default", "/apis/apps/v1/namespaces/default/deployments", "/apis/coordination.k8s.io/v1/leases",
	} {
		for _, accept := range []string{
			protobuf, protobuf + ",application/json", "application/json," + protobuf, "application/json", protobuf + ";as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
			protobuf + ";stream=watch", protobuf + ";as=PartialObjectMetadataList;g=meta.k8s.io;v=v1," + protobuf, "application/x", "",
		} {
			and := "?"
			if strings.Contains(path, "?") {
				and = "&"
			}
			var diff string
			for range 10 { // housekeeping may write in between, and a list has the newest revision
				response, data := exchange(t, c, http.MethodGet, path, "", accept, nil)
				got := seen(t, response, data)
				response, data = exchange(t, c, http.MethodGet, path+and+"nobody=knows", "", accept, nil)
				if diff = cmp.Diff(seen(t, response, data), got); diff == "" {
					break
				}
			}
			if diff != "" {
				t.Errorf("%s, %s: upstream's (-), ours (+):\n%s", path, accept, diff)
			}
		}
	}
}

// TestCreatesAnswerWhatIsStored compares what a client in protobuf hears of its
// create with what it reads afterwards.
func TestCreatesAnswerWhatIsStored(t *testing.T) {
	c := start(t, nil)
	const protobuf = "application/vnd.kubernetes.protobuf"
	for path, object := range map[string]runtime.Object{
		"pods":       samplePod("made"),
		"configmaps": &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "made"}, Data: map[string]string{"a": "b"}},
		"secrets":    &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "made"}, StringData: map[string]string{"a": "b"}},
	} {
		info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), protobuf)
		if !ok {
			t.Fatal("no protobuf")
		}
		body, err := runtime.Encode(scheme.Codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion), object)
		if err != nil {
			t.Fatal(err)
		}
		response, made := exchange(t, c, http.MethodPost, "/api/v1/namespaces/default/"+path, protobuf, protobuf, body)
		if response.StatusCode != http.StatusCreated || response.Header.Get("Content-Type") != protobuf {
			t.Fatalf("%s: %s, %s", path, response.Status, made)
		}
		_, read := exchange(t, c, http.MethodGet, "/api/v1/namespaces/default/"+path+"/made?nobody=knows", "", protobuf, nil)
		if diff := cmp.Diff(read, made); diff != "" {
			t.Errorf("%s: read (-), heard of the create (+): %s", path, diff)
		}
	}
}
