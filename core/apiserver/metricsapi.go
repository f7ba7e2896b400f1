package apiserver

import (
	"cmp"
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	corelisters "k8s.io/client-go/listers/core/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/metrics/pkg/apis/metrics"
)

// The metrics API as metrics-server serves it, from what the nodes say: for
// kubectl top and for autoscalers. An APIService of a metrics-server takes its place.

// usageWindow is told with each reading: a node's rate is over the time since it
// was asked before, at least this where autoscalers ask.
var usageWindow = metav1.Duration{Duration: usageAge}

func nodeMetrics(r *registries) (map[string]rest.Storage, error) {
	return map[string]rest.Storage{"": &nodeMetricsREST{nodes: r.options.Informers.Core().V1().Nodes().Lister(), usage: r.usage}}, nil
}

func podMetrics(r *registries) (map[string]rest.Storage, error) {
	return map[string]rest.Storage{"": &podMetricsREST{pods: r.options.Informers.Core().V1().Pods().Lister(), usage: r.usage}}, nil
}

type metricsStorage interface {
	rest.Storage
	rest.Getter
	rest.Lister
	rest.Scoper
	rest.KindProvider
	rest.SingularNameProvider
}

var _, _ metricsStorage = (*nodeMetricsREST)(nil), (*podMetricsREST)(nil)

type nodeMetricsREST struct {
	nodes corelisters.NodeLister
	usage *usage
}

func (*nodeMetricsREST) New() runtime.Object     { return &metrics.NodeMetrics{} }
func (*nodeMetricsREST) NewList() runtime.Object { return &metrics.NodeMetricsList{} }
func (*nodeMetricsREST) Destroy()                {}
func (*nodeMetricsREST) NamespaceScoped() bool   { return false }
func (*nodeMetricsREST) Kind() string            { return "NodeMetrics" }
func (*nodeMetricsREST) GetSingularName() string { return "node" }

// List returns the nodes that were measured, by name.
func (m *nodeMetricsREST) List(ctx context.Context, options *metainternalversion.ListOptions) (runtime.Object, error) {
	label, field := selectors(options)
	nodes, err := m.nodes.List(label)
	if err != nil {
		return nil, err
	}
	nodes = slices.DeleteFunc(slices.Clone(nodes), func(n *corev1.Node) bool { return !field.Matches(fields.Set{"metadata.name": n.Name}) })
	list := &metrics.NodeMetricsList{Items: m.of(ctx, nodes)}
	return list, nil
}

func (m *nodeMetricsREST) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	node, err := m.nodes.Get(name)
	if err != nil {
		return nil, err
	}
	found := m.of(ctx, []*corev1.Node{node})
	if len(found) == 0 {
		return nil, apierrors.NewNotFound(metrics.Resource("nodes"), name)
	}
	return &found[0], nil
}

func (m *nodeMetricsREST) of(ctx context.Context, nodes []*corev1.Node) []metrics.NodeMetrics {
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.Name
	}
	summaries := m.usage.of(ctx, names)
	out := make([]metrics.NodeMetrics, 0, len(nodes))
	for _, n := range nodes {
		summary := summaries[n.Name]
		if summary == nil {
			continue
		}
		if used, at, ok := measured(summary.Node.CPU, summary.Node.Memory); ok {
			out = append(out, metrics.NodeMetrics{
				ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: n.Labels, CreationTimestamp: at}, Timestamp: at, Window: usageWindow, Usage: used,
			})
		}
	}
	slices.SortFunc(out, func(a, b metrics.NodeMetrics) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// ConvertToTable prints what a node uses.
func (*nodeMetricsREST) ConvertToTable(_ context.Context, object runtime.Object, _ runtime.Object) (*metav1.Table, error) {
	return usageTable(object, func(object runtime.Object) (corev1.ResourceList, metav1.Duration) {
		n := object.(*metrics.NodeMetrics)
		return n.Usage, n.Window
	})
}

type podMetricsREST struct {
	pods  corelisters.PodLister
	usage *usage
}

func (*podMetricsREST) New() runtime.Object     { return &metrics.PodMetrics{} }
func (*podMetricsREST) NewList() runtime.Object { return &metrics.PodMetricsList{} }
func (*podMetricsREST) Destroy()                {}
func (*podMetricsREST) NamespaceScoped() bool   { return true }
func (*podMetricsREST) Kind() string            { return "PodMetrics" }
func (*podMetricsREST) GetSingularName() string { return "pod" }

// List returns the pods that were measured, by namespace and name.
func (m *podMetricsREST) List(ctx context.Context, options *metainternalversion.ListOptions) (runtime.Object, error) {
	label, field := selectors(options)
	pods, err := m.pods.Pods(apirequest.NamespaceValue(ctx)).List(label)
	if err != nil {
		return nil, err
	}
	pods = slices.DeleteFunc(slices.Clone(pods), func(p *corev1.Pod) bool {
		return !field.Matches(fields.Set{"metadata.name": p.Name, "metadata.namespace": p.Namespace})
	})
	return &metrics.PodMetricsList{Items: m.of(ctx, pods)}, nil
}

func (m *podMetricsREST) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	pod, err := m.pods.Pods(apirequest.NamespaceValue(ctx)).Get(name)
	if err != nil {
		return nil, err
	}
	found := m.of(ctx, []*corev1.Pod{pod})
	if len(found) == 0 {
		return nil, apierrors.NewNotFound(metrics.Resource("pods"), name)
	}
	return &found[0], nil
}

func (m *podMetricsREST) of(ctx context.Context, pods []*corev1.Pod) []metrics.PodMetrics {
	byUID := map[string]*corev1.Pod{}
	var nodes []string
	for _, p := range pods {
		if p.Spec.NodeName == "" || p.Status.Phase != corev1.PodRunning {
			continue
		}
		byUID[string(p.UID)] = p
		nodes = append(nodes, p.Spec.NodeName)
	}
	slices.Sort(nodes)
	out := []metrics.PodMetrics{}
	for node, summary := range m.usage.of(ctx, slices.Compact(nodes)) {
		for _, of := range summary.Pods {
			if pod := byUID[of.PodRef.UID]; pod != nil && pod.Spec.NodeName == node {
				if one, ok := podReading(pod, of.Containers); ok {
					out = append(out, one)
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b metrics.PodMetrics) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// podReading is not ok when one of its containers was not measured: the sum would be too small.
func podReading(pod *corev1.Pod, containers []statsapi.ContainerStats) (metrics.PodMetrics, bool) {
	out := metrics.PodMetrics{ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Namespace: pod.Namespace, Labels: pod.Labels}, Window: usageWindow}
	for _, c := range containers {
		used, at, ok := measured(c.CPU, c.Memory)
		if !ok {
			return out, false
		}
		if out.Timestamp.IsZero() || at.Before(&out.Timestamp) {
			out.Timestamp, out.CreationTimestamp = at, at
		}
		out.Containers = append(out.Containers, metrics.ContainerMetrics{Name: c.Name, Usage: used})
	}
	return out, len(out.Containers) > 0
}

// ConvertToTable prints what a pod's containers use together.
func (*podMetricsREST) ConvertToTable(_ context.Context, object runtime.Object, _ runtime.Object) (*metav1.Table, error) {
	return usageTable(object, func(object runtime.Object) (corev1.ResourceList, metav1.Duration) {
		p := object.(*metrics.PodMetrics)
		sum := corev1.ResourceList{}
		for _, c := range p.Containers {
			for name, quantity := range c.Usage {
				total := sum[name]
				total.Add(quantity)
				sum[name] = total
			}
		}
		return sum, p.Window
	})
}

func usageTable(object runtime.Object, of func(runtime.Object) (corev1.ResourceList, metav1.Duration)) (*metav1.Table, error) {
	table := &metav1.Table{ColumnDefinitions: []metav1.TableColumnDefinition{
		nameColumn, {Name: "CPU", Type: "string", Description: "CPU in use."}, {Name: "Memory", Type: "string", Description: "Memory in use."},
		{Name: "Window", Type: "string", Description: "Time over which it was measured."},
	}}
	row := func(object runtime.Object) error {
		used, window := of(object)
		table.Rows = append(table.Rows, metav1.TableRow{
			Cells:  []any{accessor(object).GetName(), used.Cpu().String(), used.Memory().String(), window.Duration.String()},
			Object: runtime.RawExtension{Object: object},
		})
		return nil
	}
	if meta.IsListType(object) {
		return table, meta.EachListItem(object, row)
	}
	return table, row(object)
}

// selectors of a request; everything without one.
func selectors(options *metainternalversion.ListOptions) (labels.Selector, fields.Selector) {
	label, field := labels.Everything(), fields.Everything()
	if options != nil && options.LabelSelector != nil {
		label = options.LabelSelector
	}
	if options != nil && options.FieldSelector != nil {
		field = options.FieldSelector
	}
	return label, field
}
