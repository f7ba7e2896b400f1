package owner

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

var kind = corev1.SchemeGroupVersion.WithKind("ReplicationController")

func controller(deleting bool) *corev1.ReplicationController {
	c := &corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Name: "rc", Namespace: "ns", UID: "rc"}}
	if deleting {
		c.DeletionTimestamp = &metav1.Time{}
	}
	return c
}

func pod(name, label string, owner types.UID) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: types.UID(name), Labels: map[string]string{"app": label}}}
	if owner != "" {
		yes := true
		p.OwnerReferences = []metav1.OwnerReference{{UID: owner, Controller: &yes}}
	}
	return p
}

func names(pods []*corev1.Pod) (out []string) {
	for _, p := range pods {
		out = append(out, p.Name)
	}
	return out
}

func candidates() []*corev1.Pod {
	going, elsewhere := pod("going", "web", ""), pod("elsewhere", "web", "")
	going.DeletionTimestamp = &metav1.Time{}
	elsewhere.Namespace = "other"
	return []*corev1.Pod{
		pod("mine", "web", "rc"), pod("strayed", "db", "rc"), pod("orphan", "web", ""), pod("foreign", "web", "x"),
		pod("other", "db", ""), going, elsewhere,
	}
}

func TestPlan(t *testing.T) {
	web := labels.SelectorFromSet(labels.Set{"app": "web"})
	for deleting, want := range map[bool][3][]string{
		false: {{"mine"}, {"orphan"}, {"strayed"}},
		true:  {{"mine"}, nil, nil},
	} {
		c := Plan(controller(deleting), web, candidates())
		if d := cmp.Diff(want, [3][]string{names(c.Held), names(c.Adopt), names(c.Release)}); d != "" {
			t.Errorf("deleting %v (-want +got):\n%s", deleting, d)
		}
	}
}

func TestSettle(t *testing.T) {
	web := labels.SelectorFromSet(labels.Set{"app": "web"})
	failure := errors.New("no")
	missing := apierrors.NewNotFound(corev1.Resource("pods"), "x")
	replaced := controller(false)
	replaced.UID = "another"
	tests := []struct {
		name   string
		fresh  *corev1.ReplicationController
		patch  error
		held   []string
		writes []string
		fails  bool
	}{
		{"well", controller(false), nil, []string{"mine", "orphan"}, []string{"strayed", "orphan"}, false},
		{"just deleted", controller(true), nil, []string{"mine"}, []string{"strayed"}, true},
		{"just replaced", replaced, nil, []string{"mine"}, []string{"strayed"}, true},
		{"the pods are gone", controller(false), missing, []string{"mine"}, []string{"strayed", "orphan"}, false},
		{"refused", controller(false), failure, []string{"mine"}, []string{"strayed", "orphan"}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var writes []string
			s := Settler[*corev1.Pod]{
				Controller: controller(false), Kind: kind,
				Fresh: func(context.Context) (metav1.Object, error) { return tt.fresh, nil },
				Patch: func(_ context.Context, p *corev1.Pod, _ []byte) error {
					writes = append(writes, p.Name)
					return tt.patch
				},
			}
			held, err := s.Settle(t.Context(), Plan(controller(false), web, candidates()))
			if (err != nil) != tt.fails || !slices.Equal(names(held), tt.held) || !slices.Equal(writes, tt.writes) {
				t.Errorf("held %v, written %v, error %v", names(held), writes, err)
			}
		})
	}
}

func TestIndex(t *testing.T) {
	informer := cache.NewSharedIndexInformer(&cache.ListWatch{}, &corev1.Pod{}, 0, cache.Indexers{})
	for range 2 {
		if err := AddIndex(informer); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range candidates() {
		if err := informer.GetStore().Add(p); err != nil {
			t.Fatal(err)
		}
	}
	mine, orphans := names(Controlled[*corev1.Pod](informer, "rc")), names(Orphans[*corev1.Pod](informer, "ns"))
	slices.Sort(mine)
	slices.Sort(orphans)
	if !slices.Equal(mine, []string{"mine", "strayed"}) || !slices.Equal(orphans, []string{"going", "orphan", "other"}) {
		t.Errorf("mine %v, orphans %v", mine, orphans)
	}
}
