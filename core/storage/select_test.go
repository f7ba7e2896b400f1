package storage

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"k8s.io/apimachinery/pkg/api/apitesting"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
)

func nodeName(obj runtime.Object) string { return obj.(*example.Pod).Spec.NodeName }

// podStorage is what the API layer gets for upstream's example pods, with the
// node's name as a trigger.
func podStorage(t *testing.T, s *Store) storage.Interface {
	t.Helper()
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	utilruntime.Must(example.AddToScheme(scheme))
	utilruntime.Must(examplev1.AddToScheme(scheme))
	codec := apitesting.TestCodec(serializer.NewCodecFactory(scheme), examplev1.SchemeGroupVersion)
	key := func(obj runtime.Object) (string, error) { return podKey(obj.(*example.Pod).Name), nil }
	store, destroy, err := s.StorageDecorator(nil)(storagebackend.NewDefaultConfig("/registry", codec).ForResource(schema.GroupResource{Resource: "pods"}), "/pods/", key,
		func() runtime.Object { return &example.Pod{} }, func() runtime.Object { return &example.PodList{} },
		storage.DefaultNamespaceScopedAttr, storage.IndexerFuncs{"spec.nodeName": nodeName}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(destroy)
	return store
}

func podKey(name string) string { return "/pods/ns/" + name }

// onNode selects the pods of a node. Upstream's watch decides by it alone.
func onNode(node string) storage.SelectionPredicate {
	return storage.SelectionPredicate{
		Label: labels.Everything(), Field: fields.OneTermEqualSelector("spec.nodeName", node), IndexFields: []string{"spec.nodeName"},
		GetAttrs: func(obj runtime.Object) (labels.Set, fields.Set, error) {
			return nil, fields.Set{"spec.nodeName": nodeName(obj)}, nil
		},
	}
}

// next is the next event of a watch, but a bookmark.
func next(t *testing.T, w watch.Interface) watch.Event {
	t.Helper()
	for {
		select {
		case e, open := <-w.ResultChan():
			if !open {
				t.Fatal("the watch has ended")
			}
			if e.Type != watch.Bookmark {
				return e
			}
		case <-time.After(patience):
			t.Fatal("no event")
		}
	}
}

// A watch that the hub serves by its field says what one says that is shown
// every event: while pods come, move between nodes, change and go.
func TestSelectedWatches(t *testing.T) {
	const nodes, pods, steps = 5, 8, 600
	s := open(t, Options{})
	store := podStorage(t, s)
	bare := store.(selecting).Interface
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var selected, shown [nodes]watch.Interface
	for n := range nodes {
		for to, from := range map[*watch.Interface]storage.Interface{&selected[n]: store, &shown[n]: bare} {
			key := "/pods/"
			if n == 1 {
				key = "/pods/ns/" // as a client that may see one namespace
			}
			w, err := from.Watch(ctx, key, storage.ListOptions{ResourceVersion: "1", Recursive: true, Predicate: onNode(fmt.Sprint("n", n))})
			if err != nil {
				t.Fatal(err)
			}
			*to = w
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	there := map[string]bool{}
	for step := range steps {
		name := fmt.Sprint("p", random.IntN(pods))
		pod := &example.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
		pod.Spec.NodeName = fmt.Sprint("n", random.IntN(nodes))
		var err error
		switch {
		case !there[name]:
			there[name] = true
			err = store.Create(ctx, podKey(name), pod, nil, 0)
		case step%5 == 0:
			there[name] = false
			err = store.Delete(ctx, podKey(name), &example.Pod{}, nil, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{})
		default:
			err = store.GuaranteedUpdate(ctx, podKey(name), &example.Pod{}, false, nil, storage.SimpleUpdate(func(o runtime.Object) (runtime.Object, error) {
				old := o.(*example.Pod)
				old.Labels = map[string]string{"step": fmt.Sprint(step)}
				if step%2 == 0 {
					old.Spec.NodeName = pod.Spec.NodeName
				}
				return old, nil
			}), nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// A pod on each node ends every stream.
	for n := range nodes {
		pod := &example.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("last-", n)}}
		pod.Spec.NodeName = fmt.Sprint("n", n)
		if err := store.Create(ctx, podKey(pod.Name), pod, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	for n := range nodes {
		for count := 0; ; count++ {
			got, want := next(t, selected[n]), next(t, shown[n])
			a, b := got.Object.(*example.Pod), want.Object.(*example.Pod)
			if got.Type != want.Type || a.Name != b.Name || a.ResourceVersion != b.ResourceVersion || a.Spec.NodeName != b.Spec.NodeName {
				t.Fatalf("node %d: %v %s at %s instead of %v %s at %s", n, got.Type, a.Name, a.ResourceVersion, want.Type, b.Name, b.ResourceVersion)
			}
			if a.Name == fmt.Sprint("last-", n) {
				if count < steps/nodes/4 {
					t.Errorf("node %d has only %d events", n, count)
				}
				break
			}
		}
	}
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	f := store.(selecting).fields[0]
	if f.misses > 2*steps || len(f.known) > pods+nodes {
		t.Errorf("%d states were decoded for %d changes, %d are remembered", f.misses, steps, len(f.known))
	}
}

// Of a thousand watches of a node each, an event goes to the one it concerns,
// and to all when its field cannot be told.
func TestSelectedWatchesAreFound(t *testing.T) {
	s := open(t, Options{})
	f := &field{name: "spec.nodeName", known: map[string]fieldValue{}}
	set := &watchers{}
	for n := range 1000 {
		set.add(&watcher{s: s, selection: selection{f, fmt.Sprint("n", n)}})
	}
	set.add(&watcher{s: s})
	count := func(c *pending) (n int) {
		set.each(c, func(w map[*watcher]struct{}) { n += len(w) })
		return n
	}
	f.of = func(kv *mvccpb.KeyValue) (string, error) { return string(kv.Value), nil }
	for _, test := range []struct {
		name     string
		now, was string
		want     int
	}{
		{"created", "n1", "", 2},
		{"nobody's", "n5000", "", 1},
		{"changed", "n1", "n1", 2},
		{"moved", "n1", "n2", 3},
		{"bound", "n1", "-", 2},
		{"deleted", "", "n1", 2},
	} {
		c := &pending{key: "/k", rev: 2}
		if test.now != "" {
			c.kv = &mvccpb.KeyValue{Value: []byte(test.now), ModRevision: 2}
		}
		if test.was != "" {
			c.prev = &mvccpb.KeyValue{Value: []byte(test.was), ModRevision: 1}
		}
		clear(f.known)
		if got := count(c); got != test.want {
			t.Errorf("%s: %d watches, not %d", test.name, got, test.want)
		}
	}
	f.of = func(*mvccpb.KeyValue) (string, error) { return "", errRecord }
	if got := count(&pending{key: "/k", rev: 3, kv: &mvccpb.KeyValue{ModRevision: 3}}); got != 1001 {
		t.Errorf("what cannot be told goes to %d watches", got)
	}
	f.of = func(*mvccpb.KeyValue) (string, error) { return "n1", nil }
	for i := range 2 * maxKnown {
		count(&pending{key: fmt.Sprint(i), rev: int64(i), kv: &mvccpb.KeyValue{ModRevision: int64(i)}})
	}
	if len(f.known) > maxKnown {
		t.Errorf("%d values are remembered", len(f.known))
	}
	for n := range 1000 {
		for w := range set.selected[f][fmt.Sprint("n", n)] {
			set.remove(w)
		}
	}
	if len(set.selected) != 0 || len(f.known) != 0 {
		t.Errorf("%d fields and %d values are left", len(set.selected), len(f.known))
	}
}
