package agent

import (
	"sync"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// PodHandler receives the pods of one node, one call at a time. It must return
// fast and must not change the objects.
type PodHandler interface {
	PodSet(pod *v1.Pod)
	PodGone(pod *v1.Pod)
}

// PodSource tells agents which pods their nodes have.
type PodSource interface {
	// Subscribe hands over the node's pods as they are now, then each change,
	// until the returned function is called.
	Subscribe(node string, h PodHandler) (unsubscribe func())
	// HasSynced tells whether all pods are known that there were at the start.
	HasSynced() bool
}

// Dispatcher is a PodSource for any number of nodes over one informer of pods:
// one event handler, one map lookup an event.
type Dispatcher struct {
	synced func() bool
	stop   func()

	mu    sync.Mutex
	nodes map[string]*nodePods
}

type nodePods struct {
	handler PodHandler
	pods    map[types.UID]*v1.Pod
}

// NewDispatcher adds its handler to the informer, which the caller runs.
func NewDispatcher(pods cache.SharedIndexInformer) (*Dispatcher, error) {
	d := &Dispatcher{nodes: map[string]*nodePods{}}
	reg, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { d.set(o.(*v1.Pod)) },
		UpdateFunc: func(old, o any) {
			before, now := old.(*v1.Pod), o.(*v1.Pod)
			if before.UID != now.UID || before.Spec.NodeName != now.Spec.NodeName {
				d.gone(before)
			}
			d.set(now)
		},
		DeleteFunc: func(o any) {
			if t, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = t.Obj
			}
			if pod, ok := o.(*v1.Pod); ok {
				d.gone(pod)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	d.synced, d.stop = reg.HasSynced, func() { _ = pods.RemoveEventHandler(reg) }
	return d, nil
}

// Close takes the handler off the informer.
func (d *Dispatcher) Close() { d.stop() }

// HasSynced tells whether the informer's first list has been handed on.
func (d *Dispatcher) HasSynced() bool { return d.synced() }

func (d *Dispatcher) set(pod *v1.Pod) {
	if pod.Spec.NodeName == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.node(pod.Spec.NodeName)
	n.pods[pod.UID] = pod
	if n.handler != nil {
		n.handler.PodSet(pod)
	}
}

func (d *Dispatcher) gone(pod *v1.Pod) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.nodes[pod.Spec.NodeName]
	if n == nil {
		return
	}
	delete(n.pods, pod.UID)
	if n.handler != nil {
		n.handler.PodGone(pod)
	} else if len(n.pods) == 0 {
		delete(d.nodes, pod.Spec.NodeName)
	}
}

func (d *Dispatcher) node(name string) *nodePods {
	n := d.nodes[name]
	if n == nil {
		n = &nodePods{pods: map[types.UID]*v1.Pod{}}
		d.nodes[name] = n
	}
	return n
}

// Subscribe makes h the node's handler, in the place of an earlier one.
func (d *Dispatcher) Subscribe(node string, h PodHandler) func() {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.node(node)
	n.handler = h
	for _, pod := range n.pods {
		h.PodSet(pod)
	}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if n.handler == h {
			n.handler = nil
		}
	}
}

// NodePods returns an informer of one node's pods only, for an agent that is a
// process of its own. The caller runs it.
func NodePods(client kubernetes.Interface, node string) cache.SharedIndexInformer {
	return coreinformers.NewFilteredPodInformer(client, metav1.NamespaceAll, 0, cache.Indexers{}, func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", node).String()
	})
}
