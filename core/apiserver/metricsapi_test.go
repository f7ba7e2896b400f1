package apiserver_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	metricsclient "k8s.io/metrics/pkg/client/clientset/versioned"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

func ptr[T any](v T) *T { return &v }

// reading of a container, a pod or a node, as an agent tells it.
func reading(nanoCores, bytes uint64) (*statsapi.CPUStats, *statsapi.MemoryStats) {
	at := metav1.NewTime(time.Unix(1_700_000_000, 0))
	return &statsapi.CPUStats{Time: at, UsageNanoCores: ptr(nanoCores)}, &statsapi.MemoryStats{Time: at, WorkingSetBytes: ptr(bytes)}
}

// TestMetricsAPI reads what nodes measure, and of those that do not, nothing.
func TestMetricsAPI(t *testing.T) {
	summary := &statsapi.Summary{}
	measures := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/stats/summary" {
			http.NotFound(w, r)
			return
		}
		if err := json.NewEncoder(w).Encode(summary); err != nil {
			t.Error(err)
		}
	})
	silent := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotImplemented)
		_, _ = io.WriteString(w, "not measured")
	})
	c := start(t, func(o *apiserver.Options) {
		o.NodeTransport = func(node string) (http.RoundTripper, bool) {
			if node == "measured" {
				return apiserver.HandlerTransport(measures), true
			}
			return apiserver.HandlerTransport(silent), true
		}
	})
	client, err := metricsclient.NewForConfig(c.RESTConfig(nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"measured", "silent"} {
		if _, err := c.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"is": name}}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		pod := samplePod("on-" + name)
		pod.Spec.NodeName = name
		made, err := c.client.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		made.Status.Phase = corev1.PodRunning
		if _, err := c.client.CoreV1().Pods("default").UpdateStatus(t.Context(), made, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		one := statsapi.PodStats{PodRef: statsapi.PodReference{Name: made.Name, Namespace: "default", UID: string(made.UID)}}
		for _, container := range []string{"a", "b"} {
			s := statsapi.ContainerStats{Name: container}
			s.CPU, s.Memory = reading(250_000_000, 10<<20)
			one.Containers = append(one.Containers, s)
		}
		summary.Pods = append(summary.Pods, one) // the one of another node is not running here, as far as anyone knows
	}
	summary.Node.CPU, summary.Node.Memory = reading(1_500_000_000, 1<<30)

	eventually(t, "the node that measures", func() error {
		_, err := client.MetricsV1beta1().NodeMetricses().Get(t.Context(), "measured", metav1.GetOptions{})
		return err
	})
	nodes, err := client.MetricsV1beta1().NodeMetricses().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(nodes.Items) != 1 || nodes.Items[0].Usage.Cpu().MilliValue() != 1500 || nodes.Items[0].Usage.Memory().Value() != 1<<30 {
		t.Errorf("nodes: %+v, %v", nodes, err)
	}
	if none, err := client.MetricsV1beta1().NodeMetricses().List(t.Context(), metav1.ListOptions{LabelSelector: "is=silent"}); err != nil || len(none.Items) != 0 {
		t.Errorf("by label: %+v, %v", none, err)
	}
	if _, err := client.MetricsV1beta1().NodeMetricses().Get(t.Context(), "silent", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the node that does not measure: %v", err)
	}
	var pods int
	eventually(t, "the pod that is measured", func() error {
		list, err := client.MetricsV1beta1().PodMetricses("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		pods = len(list.Items)
		_, err = client.MetricsV1beta1().PodMetricses("default").Get(t.Context(), "on-measured", metav1.GetOptions{})
		return err
	})
	one, err := client.MetricsV1beta1().PodMetricses("default").Get(t.Context(), "on-measured", metav1.GetOptions{})
	if err != nil || len(one.Containers) != 2 || one.Containers[0].Usage.Cpu().MilliValue() != 250 || one.Containers[1].Usage.Memory().Value() != 10<<20 {
		t.Errorf("a pod: %+v, %v", one, err)
	}
	if pods > 1 {
		t.Errorf("%d pods are measured, one node measures", pods)
	}
	if _, err := client.MetricsV1beta1().PodMetricses("default").Get(t.Context(), "on-silent", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a pod of the node that does not measure: %v", err)
	}
	table := string(get(t, c.RESTConfig(nil), "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/on-measured", "application/json;as=Table;v=v1;g=meta.k8s.io"))
	if !strings.Contains(table, `"500m"`) || !strings.Contains(table, `"20Mi"`) {
		t.Errorf("its table: %s", table)
	}
}

// TestMetricsServerTakesOver keeps the APIService of a metrics-server that is
// installed, over restarts.
func TestMetricsServerTakesOver(t *testing.T) {
	dir := t.TempDir()
	with := func(o *apiserver.Options) { o.Dir = dir + "/keys" }
	first := start(t, with)
	services := apiServices(t, first)
	const name = "v1beta1.metrics.k8s.io"
	ours, err := services.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil || ours.Spec.Service != nil {
		t.Fatalf("%+v, %v", ours, err)
	}
	if _, err := services.Patch(t.Context(), name, "application/merge-patch+json",
		[]byte(`{"spec":{"insecureSkipTLSVerify":true,"service":{"namespace":"kube-system","name":"metrics-server","port":443}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	available(t, services, name, "False", "ServiceNotFound")
	first.stop()
	second := start(t, with)
	theirs, err := apiServices(t, second).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil || theirs.Spec.Service == nil || theirs.Spec.Service.Name != "metrics-server" {
		t.Errorf("after a restart: %+v, %v", theirs, err)
	}
}
