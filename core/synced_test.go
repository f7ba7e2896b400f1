package core_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/core/storage"
)

// An engine over many objects answers as soon as it is ready, and no controller
// takes what it has not read yet for what is not there: the pods of a ReplicaSet
// stay the same ones.
func TestReadyThenSynced(t *testing.T) {
	const count = 5000
	dir := t.TempDir()
	s, err := storage.Open(storage.Options{Dir: filepath.Join(dir, "store")})
	if err != nil {
		t.Fatal(err)
	}
	replicas, yes := int32(count), true
	labels := map[string]string{"app": "web"}
	set := &appsv1.ReplicaSet{TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "ReplicaSet"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "set"},
		Spec: appsv1.ReplicaSetSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: barePod(0).Spec}}}
	node := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: "node", UID: "node"}}
	var writes []storage.Write
	store := func(key string, object runtime.Object) {
		var value strings.Builder
		if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(object, &value); err != nil {
			t.Fatal(err)
		}
		writes = append(writes, storage.Write{Key: key, Value: []byte(value.String())})
	}
	store("/registry/replicasets/default/web", set)
	store("/registry/minions/node", node)
	for i := range count {
		pod := runningPod(i)
		pod.Labels = labels
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web", UID: "set", Controller: &yes}}
		store("/registry/pods/default/"+pod.Name, pod)
	}
	for _, r := range s.Commit(t.Context(), writes) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	e, err := core.New(core.Options{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, e)
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	pods := func() map[string]bool {
		t.Helper()
		list, err := e.Client().CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		for _, pod := range list.Items {
			names[pod.Name] = pod.DeletionTimestamp == nil
		}
		return names
	}
	select {
	case <-e.Ready():
	case <-e.Synced():
		<-e.Ready()
	case <-e.Done():
		t.Fatal("the engine has ended")
	}
	if n := len(pods()); n != count {
		t.Fatalf("%d pods when ready, not %d", n, count)
	}
	if _, err := e.Client().CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "m"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	coretest.Eventually(t, "all to know what is stored", func(ctx context.Context) (bool, error) {
		select {
		case <-e.Synced():
			return true, nil
		default:
			return false, nil
		}
	})
	if body, err := e.Client().Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(t.Context()); err != nil || string(body) != "ok" {
		t.Errorf("/readyz: %q, %v", body, err)
	}
	coretest.Eventually(t, "the ReplicaSet to have counted its pods", func(ctx context.Context) (bool, error) {
		set, err := e.Client().AppsV1().ReplicaSets("default").Get(ctx, "web", metav1.GetOptions{})
		return err == nil && set.Status.Replicas == count, err
	})
	for name, stays := range pods() {
		if !stays || !strings.HasPrefix(name, "pod-") {
			t.Errorf("%s: stays: %t", name, stays)
		}
	}
	if n := len(pods()); n != count {
		t.Errorf("%d pods when synced, not %d", n, count)
	}
	if _, err := e.Client().CoreV1().Pods("default").Get(t.Context(), fmt.Sprintf("pod-%06d", count-1), metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}
