package upstream

import (
	"context"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/quaymaster/quaymaster/core/informer"
)

// TestLateLeftOut: a controller does not wait for the first object of a kind that is
// left out, but for one of another.
func TestLateLeftOut(t *testing.T) {
	jobs := informer.Resource{GroupVersionResource: schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}, Kind: "Job", Namespaced: true, Prefix: "/registry/jobs/"}
	factory, err := informer.New(nil, fake.NewClientset(), []informer.Resource{jobs})
	if err != nil {
		t.Fatal(err)
	}
	factory.LeaveOut(jobs.GroupResource())
	none := func(context.Context, Options) (func(context.Context), error) { return nil, nil }
	left, kept := factory.Batch().V1().Jobs().Informer(), factory.Core().V1().Pods().Informer()
	if run, err := (Options{}).late("jobs", none, left); err != nil || run != nil {
		t.Errorf("a controller of what is left out: %v", err)
	}
	if run, err := (Options{}).late("both", none, left, kept); err != nil || run == nil {
		t.Errorf("a controller of one that is not: %v", err)
	}
}
