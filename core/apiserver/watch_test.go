package apiserver_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// frames reads the events of a watch, each as its bytes, until one has the text.
func frames(t *testing.T, c *cluster, path, end string) (list [][]byte) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://quaymaster.internal"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", "application/vnd.kubernetes.protobuf")
	response, err := c.RESTConfig(nil).Transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", path, response.Status)
	}
	for {
		var size [4]byte
		if _, err := io.ReadFull(response.Body, size[:]); err != nil {
			t.Fatalf("%s, after %d events: %v", path, len(list), err)
		}
		frame := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(response.Body, frame); err != nil {
			t.Fatal(err)
		}
		if list = append(list, frame); bytes.Contains(frame, []byte(end)) {
			return list
		}
	}
}

// TestWatchesAgreeWithUpstream lets pods come, change and go, and compares what
// watches hear of what is stored with what those hear who ask for a field more,
// which is true of all pods: theirs are decoded by upstream.
func TestWatchesAgreeWithUpstream(t *testing.T) {
	c := start(t, nil)
	ctx := t.Context()
	d := c.Direct(nil)
	api := c.client.CoreV1().Pods("default")
	list, err := api.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	create := func(name, node string) {
		t.Helper()
		p := samplePod(name)
		p.Spec.NodeName = node
		if _, err := d.Create(ctx, pods, "default", p); err != nil {
			t.Fatal(err)
		}
	}
	now := int64(0)
	for i := range 6 {
		name := fmt.Sprint("p-", i)
		create(name, "")
		if err := api.Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: name}, Target: corev1.ObjectReference{Kind: "Node", Name: []string{"n", "m"}[i%2]}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, patch := range []string{`{"metadata":{"labels":{"app":"other"}}}`, `{"metadata":{"labels":{"app":"httpserver","é":null}}}`} {
			if _, err := api.Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := api.Patch(ctx, name, types.MergePatchType, []byte(`{"status":{"phase":"Succeeded"}}`), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			if err := api.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
				t.Fatal(err)
			}
		}
	}
	create("the-last", "n")
	for query, path := range map[string]string{
		"": "/api/v1/namespaces/default/pods", "labelSelector=app%3Dhttpserver": "/api/v1/pods", "labelSelector=app": "/api/v1/watch/namespaces/default/pods",
		"fieldSelector=spec.nodeName%3Dn": "/api/v1/pods", "fieldSelector=spec.nodeName!%3D": "/api/v1/namespaces/default/pods", "fieldSelector=metadata.name%3Dthe-last": "/api/v1/namespaces/default/pods",
		"fieldSelector=status.phase!%3DSucceeded,spec.schedulerName%3Ddefault-scheduler": "/api/v1/pods", "fieldSelector=metadata.namespace%3Ddefault&labelSelector=app!%3Dother": "/api/v1/pods",
	} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		values.Set("watch", "1")
		if path == "/api/v1/watch/namespaces/default/pods" {
			values.Del("watch")
		}
		for _, initial := range []bool{false, true} {
			end := "the-last"
			if initial {
				if values.Get("watch") == "" {
					continue // the old path of watches has none
				}
				values.Set("sendInitialEvents", "true")
				values.Set("allowWatchBookmarks", "true")
				values.Set("resourceVersionMatch", "NotOlderThan")
				values.Del("resourceVersion")
				end = "BOOKMARK"
			} else {
				values.Set("resourceVersion", list.ResourceVersion)
			}
			asked, also := values.Get("fieldSelector"), "spec.restartPolicy!=Sometimes"
			got := frames(t, c, path+"?"+values.Encode(), end)
			if asked != "" {
				also = asked + "," + also
			}
			values.Set("fieldSelector", also)
			want := frames(t, c, path+"?"+values.Encode(), end)
			values.Set("fieldSelector", asked)
			if initial { // the bookmark's resource version is that of whatever was written last
				got, want = got[:len(got)-1], want[:len(want)-1]
			}
			if len(got) != len(want) || len(got) == 0 {
				t.Fatalf("%s?%s: %d events, upstream's are %d", path, query, len(got), len(want))
			}
			for i := range got {
				if !bytes.Equal(got[i], want[i]) {
					t.Errorf("%s?%s: event %d is\n%q\nupstream's is\n%q", path, query, i, got[i], want[i])
				}
			}
		}
	}
}
