package apiserver_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/quaymaster/quaymaster/core/apiserver"
	"github.com/quaymaster/quaymaster/core/controllers/kinds"
	"github.com/quaymaster/quaymaster/core/controllers/upstream"
	"github.com/quaymaster/quaymaster/core/informer"
	"github.com/quaymaster/quaymaster/core/storage"
)

// lateTransport lets the informers be made before the server whose API they watch.
type lateTransport struct{ to http.RoundTripper }

func (l *lateTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if l.to == nil {
		return nil, errors.New("the server is not made yet")
	}
	return l.to.RoundTrip(r)
}

// watchCache says which resources of the next server get upstream's watch cache; nil is none.
var watchCache func(schema.GroupResource) bool

type cluster struct {
	*apiserver.Server
	client kubernetes.Interface // administrator, in memory
	stop   func()               // ends the server and waits
}

// parts are a server and what belongs to it, not yet running.
type parts struct {
	server    *apiserver.Server
	client    kubernetes.Interface
	informers informers.SharedInformerFactory
	close     func() error // the store, when the server has ended
}

func newServer(t testing.TB, change func(*apiserver.Options)) (*parts, error) {
	t.Helper()
	late := &lateTransport{}
	config := &rest.Config{Host: "http://quaymaster.internal", Transport: late, QPS: -1,
		ContentConfig: rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf", AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json"}}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	var options apiserver.Options
	if change != nil {
		change(&options)
	}
	var onDisk storage.Options
	if options.Dir != "" { // beside the keys
		onDisk.Dir = filepath.Join(filepath.Dir(options.Dir), "store")
	}
	store, err := storage.Open(onDisk)
	if err != nil {
		return nil, err
	}
	factory, err := informer.New(store.Etcd(), client, apiserver.Resources())
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	for _, name := range options.Without {
		factory.LeaveOut(schema.ParseGroupResource(name))
	}
	options.Storage, options.Informers = store.StorageDecorator(watchCache), factory
	server, err := apiserver.New(options)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	late.to = server.RESTConfig(nil).Transport
	return &parts{server, client, factory, store.Close}, nil
}

// start runs a server on an empty store with informers over its own API.
func start(t testing.TB, change func(*apiserver.Options)) *cluster {
	t.Helper()
	p, err := newServer(t, change)
	if err != nil {
		t.Fatal(err)
	}
	server, client, factory := p.server, p.client, p.informers
	served, err := servedKinds(factory)
	if err != nil {
		t.Fatal(err)
	}
	housekeeping, err := upstream.New(upstream.Options{Client: client, Informers: factory, Kinds: served, Authority: server.Authority, Trust: server.CAPEM, Changed: server.CredentialsChanged})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	var controllers sync.WaitGroup
	go func() { ended <- server.Run(ctx) }()
	factory.Start(ctx.Done())
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		controllers.Wait()
		factory.Shutdown()
		if err := p.close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	}
	t.Cleanup(stop)
	select {
	case <-server.Ready():
	case err := <-ended:
		ended <- nil // for stop
		t.Fatalf("Run ended before it was ready: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("the server is not ready after a minute")
	}
	controllers.Go(func() { _ = housekeeping.Run(ctx) })
	factory.WaitForCacheSync(ctx.Done())
	c := &cluster{Server: server, client: client, stop: stop}
	eventually(t, "the service account default", func() error {
		_, err := client.CoreV1().ServiceAccounts("default").Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	return c
}

func servedKinds(factory informers.SharedInformerFactory) (kinds.Static, error) {
	var out kinds.Static
	for _, r := range apiserver.Resources() {
		kind := kinds.Kind{GroupVersionResource: r.GroupVersionResource, Kind: r.Kind, Namespaced: r.Namespaced}
		if r.Resource != "events" {
			informer, err := factory.ForResource(r.GroupVersionResource)
			if err != nil {
				return nil, err
			}
			kind.Informer = informer.Informer()
		}
		out = append(out, kind)
	}
	return out, nil
}

// apply makes the objects of the YAML, as an administrator.
func apply(t testing.TB, c *cluster, text string) {
	t.Helper()
	if _, err := tryApply(t, c, text, false); err != nil {
		t.Fatal(err)
	}
}

// tryApply returns the last object as it was made, or would be.
func tryApply(t testing.TB, c *cluster, text string, dryRun bool) (made *unstructured.Unstructured, err error) {
	t.Helper()
	config := c.RESTConfig(nil)
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	mapper := mapperFor(t, config)
	options := metav1.CreateOptions{FieldValidation: "Strict"}
	if dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	for _, object := range decodeYAML(t, strings.NewReader(text)) {
		gvk := object.GroupVersionKind()
		mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil {
			t.Fatal(err)
		}
		var resource dynamic.ResourceInterface = client.Resource(mapping.Resource)
		if object.GetNamespace() != "" {
			resource = client.Resource(mapping.Resource).Namespace(object.GetNamespace())
		}
		if made, err = resource.Create(t.Context(), object, options); err != nil {
			return nil, err
		}
	}
	return made, nil
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// eventually waits for the condition, at most a minute.
func eventually(t testing.TB, what string, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestMain(m *testing.M) {
	// Upstream's libraries log through one process-wide logger.
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	m.Run()
}

// https configures a client of the listener by the kubeconfig.
func (c *cluster) https(t testing.TB) *rest.Config {
	t.Helper()
	data, err := c.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(data)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	return config
}

func clientFor(t testing.TB, config *rest.Config) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestBootstrap(t *testing.T) {
	c := start(t, nil)
	ctx := t.Context()
	for _, namespace := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		if _, err := c.client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
		eventually(t, "root certificate in "+namespace, func() error {
			m, err := c.client.CoreV1().ConfigMaps(namespace).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
			if err == nil && m.Data["ca.crt"] != string(c.CAPEM()) {
				t.Error("another certificate was published")
			}
			return err
		})
	}
	for _, class := range []string{"system-cluster-critical", "system-node-critical"} {
		if _, err := c.client.SchedulingV1().PriorityClasses().Get(ctx, class, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	}
	service, err := c.client.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil || service.Spec.ClusterIP != "10.96.0.1" {
		t.Errorf("service kubernetes: %v at %s", err, service.Spec.ClusterIP)
	}
	eventually(t, "aggregation of the role admin", func() error {
		role, err := c.client.RbacV1().ClusterRoles().Get(ctx, "admin", metav1.GetOptions{})
		if err == nil && len(role.Rules) == 0 {
			err = errors.New("it has no rules")
		}
		return err
	})
}
