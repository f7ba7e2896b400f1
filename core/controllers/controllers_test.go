package controllers_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	metadatafake "k8s.io/client-go/metadata/fake"
	testclock "k8s.io/utils/clock/testing"

	"github.com/quaymaster/quaymaster/core/controllers"
	"github.com/quaymaster/quaymaster/core/controllers/kinds"
)

func TestOptions(t *testing.T) {
	client := fake.NewClientset()
	complete := func() controllers.Options {
		return controllers.Options{
			Client: client, Informers: informers.NewSharedInformerFactory(client, 0),
			Kinds: kinds.Static{}, Metadata: metadatafake.NewSimpleMetadataClient(scheme.Scheme),
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*controllers.Options)
		want   string
	}{
		{"complete", func(*controllers.Options) {}, ""},
		{"no client", func(o *controllers.Options) { o.Client = nil }, "no client"},
		{"no informers", func(o *controllers.Options) { o.Informers = nil }, "no informers"},
		{"no kinds", func(o *controllers.Options) { o.Kinds = nil }, "garbagecollector needs the served kinds"},
		{"no kinds needed", func(o *controllers.Options) {
			o.Kinds, o.Metadata, o.Without = nil, nil, []string{"garbagecollector", "namespace"}
		}, ""},
		{"unknown", func(o *controllers.Options) { o.Without = []string{"magic"} }, `no controller "magic"; there are [deployment `},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := complete()
			tt.change(&o)
			_, err := controllers.New(o)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// TestOf finds the controllers of what an API leaves out.
func TestOf(t *testing.T) {
	got := controllers.Of("cronjobs.batch", "jobs.batch", "replicationcontrollers", "ingresses.networking.k8s.io")
	if want := []string{"job", "cronjob", "replicationcontroller"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := controllers.Of(); len(got) > 0 {
		t.Errorf("without anything, %v", got)
	}
}

// TestEnd runs all controllers and ends them: nothing is left behind. New alone
// leaves nothing either.
func TestEnd(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	client := fake.NewSimpleClientset(deployment("web", 3, "v1"), &corev1.Node{})
	factory := informers.NewSharedInformerFactory(client, 0)
	var served kinds.Static
	for _, gvr := range []string{"pods", "configmaps"} {
		generic, err := factory.ForResource(corev1.SchemeGroupVersion.WithResource(gvr))
		if err != nil {
			t.Fatal(err)
		}
		served = append(served, kinds.Kind{GroupVersionResource: corev1.SchemeGroupVersion.WithResource(gvr), Kind: "Pod", Namespaced: true, Informer: generic.Informer()})
	}
	options := controllers.Options{
		Client: client, Informers: factory, Kinds: served, Metadata: metadatafake.NewSimpleMetadataClient(scheme.Scheme),
		Clock: testclock.NewFakeClock(time.Now()),
	}
	if _, err := controllers.New(options); err != nil {
		t.Fatal(err)
	}
	all, err := controllers.New(options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- all.Run(ctx) }()
	informing, stop := context.WithCancel(t.Context()) // client-go's may wait for ever for a handler that is removed while they end
	defer stop()
	factory.Start(informing.Done())
	eventually(t, func() error {
		sets, err := client.AppsV1().ReplicaSets("test").List(ctx, metav1.ListOptions{})
		if err == nil && len(sets.Items) != 1 {
			err = errors.New("no replica set yet")
		}
		return err
	})
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Run goes on a minute after its context has ended")
	}
	stop()
	factory.Shutdown()
}
