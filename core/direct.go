package core

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/quaymaster/quaymaster/core/apiserver"
	"github.com/quaymaster/quaymaster/core/controllers/pods"
	"github.com/quaymaster/quaymaster/runtime/agent"
)

var podResource = corev1.SchemeGroupVersion.WithResource("pods")

// directPods writes pods through the registry: no HTTP, no codec. Controllers
// create and delete through it, in-process agents write statuses.
type directPods struct{ registry *apiserver.Direct }

func (d directPods) Create(ctx context.Context, pod *corev1.Pod) error {
	return d.registry.CreateOwned(ctx, podResource, pod.Namespace, pod)
}

func (d directPods) UpdateStatus(ctx context.Context, pod *corev1.Pod) (*corev1.Pod, error) {
	return d.pod(d.registry.UpdateStatus(ctx, podResource, pod.Namespace, pod))
}

func (d directPods) Delete(ctx context.Context, namespace, name string, options metav1.DeleteOptions) error {
	return d.registry.Delete(ctx, podResource, namespace, name, options)
}

func (directPods) pod(object any, err error) (*corev1.Pod, error) {
	if err != nil {
		return nil, err
	}
	return object.(*corev1.Pod), nil
}

// podControl is how controllers write pods: past HTTP, unless there is an audit
// log, which has requests alone.
func (p *parts) podControl() pods.Control {
	if p.options.API.Audit != nil {
		return nil
	}
	return directPods{p.server.Direct(nil)}
}

// requestPods writes pods through the API, for the audit log.
type requestPods struct{ client kubernetes.Interface }

func (r requestPods) UpdateStatus(ctx context.Context, pod *corev1.Pod) (*corev1.Pod, error) {
	return r.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
}

func (r requestPods) Delete(ctx context.Context, namespace, name string, options metav1.DeleteOptions) error {
	return r.client.CoreV1().Pods(namespace).Delete(ctx, name, options)
}

// podWriter is how agents of this process write pods, by the same rule.
func (p *parts) podWriter() agent.PodWriter {
	if p.options.API.Audit != nil {
		return requestPods{p.client}
	}
	return directPods{p.server.Direct(nil)}
}
