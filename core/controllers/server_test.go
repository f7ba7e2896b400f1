package controllers_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/core/apiserver"
	"github.com/quaymaster/quaymaster/core/controllers"
	"github.com/quaymaster/quaymaster/core/controllers/kinds"
	"github.com/quaymaster/quaymaster/core/informer"
	"github.com/quaymaster/quaymaster/core/storage"
)

var podResource = corev1.SchemeGroupVersion.WithResource("pods")

// cluster is a real API server in memory with the controllers, and an agent
// that runs every pod of the node "n1" by saying so.
type cluster struct {
	kubernetes.Interface
	metadata  metadata.Interface
	direct    *apiserver.Direct
	informers *informer.Factory
	t         testing.TB
}

type late struct{ to http.RoundTripper }

func (l *late) RoundTrip(r *http.Request) (*http.Response, error) {
	if l.to == nil {
		return nil, errors.New("the server is not made yet")
	}
	return l.to.RoundTrip(r)
}

// directPods is how the engine plugs the registry into the controllers.
type directPods struct{ *apiserver.Direct }

func (d directPods) Create(ctx context.Context, pod *corev1.Pod) error {
	return d.CreateOwned(ctx, podResource, pod.Namespace, pod)
}

func (d directPods) Delete(ctx context.Context, namespace, name string, options metav1.DeleteOptions) error {
	return d.Direct.Delete(ctx, podResource, namespace, name, options)
}

// start runs a cluster until the test ends. The controllers alone follow the clock.
func start(t testing.TB, c clock.WithTicker, without ...string) *cluster {
	t.Helper()
	logger := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	store, err := storage.Open(storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	transport := &late{}
	content := rest.ContentConfig{ContentType: runtime.ContentTypeProtobuf, AcceptContentTypes: runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON}
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "http://test", Transport: transport, QPS: -1, ContentConfig: content})
	if err != nil {
		t.Fatal(err)
	}
	factory, err := informer.New(store.Etcd(), client, apiserver.Resources())
	if err != nil {
		t.Fatal(err)
	}
	server, err := apiserver.New(apiserver.Options{Storage: store.StorageDecorator(nil), Informers: factory, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	transport.to = server.RESTConfig(nil).Transport
	config := server.RESTConfig(nil)
	config.Host = "http://test"
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	k := &cluster{Interface: client, metadata: meta, direct: server.Direct(nil), informers: factory, t: t}
	var served kinds.Static
	for _, r := range apiserver.Resources() {
		generic, err := factory.ForResource(r.GroupVersionResource)
		if err != nil {
			t.Fatal(err)
		}
		served = append(served, kinds.Kind{GroupVersionResource: r.GroupVersionResource, Kind: r.Kind, Namespaced: r.Namespaced, Informer: generic.Informer()})
	}
	loops, err := controllers.New(controllers.Options{
		Client: client, Informers: factory, Kinds: served, Metadata: meta, Pods: directPods{k.direct},
		Without: without, Clock: c, Logger: logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	k.runAgent()
	below, endBelow := context.WithCancel(context.Background())
	above, endAbove := context.WithCancel(below)
	var serving, working sync.WaitGroup
	serving.Go(func() {
		if err := server.Run(below); err != nil {
			t.Errorf("server: %v", err)
		}
	})
	t.Cleanup(func() {
		endAbove()
		working.Wait()
		endBelow()
		serving.Wait()
		factory.Shutdown()
	})
	factory.StartWithContext(below)
	select {
	case <-server.Ready():
	case <-time.After(time.Minute):
		t.Fatal("the server is not ready after 30 s")
	}
	working.Go(func() {
		if err := loops.Run(above); err != nil {
			t.Errorf("controllers: %v", err)
		}
	})
	return k
}

// runAgent says that pods run as soon as they are bound, and lets them go as
// soon as they are to. It binds what nobody else does.
func (k *cluster) runAgent() {
	act := func(obj any) {
		pod, ok := obj.(*corev1.Pod)
		if !ok {
			return
		}
		ctx := k.t.Context()
		switch {
		case pod.Annotations["test"] == "idle" || pod.Spec.NodeName != "" && pod.Spec.NodeName != "n1":
		case pod.DeletionTimestamp != nil:
			_ = k.direct.Delete(ctx, podResource, pod.Namespace, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64), Preconditions: &metav1.Preconditions{UID: &pod.UID}})
		case pod.Spec.NodeName == "":
			_ = k.direct.Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}})
		case pod.Status.Phase == corev1.PodRunning && (pod.Annotations["test"] == "ends" || pod.Annotations["test"] == "fails"):
			next := pod.DeepCopy()
			next.Status.Phase = corev1.PodSucceeded
			if pod.Annotations["test"] == "fails" {
				next.Status.Phase = corev1.PodFailed
			}
			next.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Now()}}
			_, _ = k.direct.UpdateStatus(ctx, podResource, pod.Namespace, next)
		case pod.Status.Phase == corev1.PodPending:
			next := pod.DeepCopy()
			next.Status.Phase = corev1.PodRunning
			next.Status.Conditions = append(next.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
			_, _ = k.direct.UpdateStatus(ctx, podResource, pod.Namespace, next)
		}
	}
	_, err := k.informers.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: act, UpdateFunc: func(_, obj any) { act(obj) }})
	if err != nil {
		k.t.Fatal(err)
	}
}

// eventually waits until what is no longer an error, at most a minute after the error
// last changed: thousands of pods take longer on a busy machine.
func eventually(t testing.TB, what func() error) {
	t.Helper()
	last, end := "", time.Time{}
	for err := what(); err != nil; err = what() {
		if now := time.Now(); err.Error() != last {
			last, end = err.Error(), now.Add(time.Minute)
		} else if now.After(end) {
			t.Fatalf("a minute without a change: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func gone(err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err == nil:
		return errors.New("it is still there")
	}
	return err
}

func (k *cluster) namespace(name string) {
	k.t.Helper()
	if _, err := k.CoreV1().Namespaces().Create(k.t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		k.t.Fatal(err)
	}
	if _, err := k.CoreV1().ServiceAccounts(name).Create(k.t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		k.t.Fatal(err)
	}
}

func deployment(name string, replicas int32, image string) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "test"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{
				MaxSurge: ptr.To(intstr.FromString("25%")), MaxUnavailable: ptr.To(intstr.FromString("25%")),
			}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}},
			},
		},
	}
}
