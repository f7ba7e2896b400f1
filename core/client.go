package core

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// client is the administrator's client whose ordinary creates of pods, the one
// thing that is done by the thousand, spare the in-memory request: no codec and no
// filters, but the same defaults, admission, record and answer.
type client struct {
	kubernetes.Interface
	parts *parts
}

type coreClient struct {
	typedcorev1.CoreV1Interface
	direct *apiserver.Direct
}

type podClient struct {
	typedcorev1.PodInterface
	direct    *apiserver.Direct
	namespace string
}

// CoreV1 implements kubernetes.Interface.
func (c client) CoreV1() typedcorev1.CoreV1Interface {
	requests := c.Interface.CoreV1()
	if c.parts.options.API.Audit != nil || c.parts.server == nil { // an audit log has requests alone
		return requests
	}
	return coreClient{requests, c.parts.server.Direct(nil)}
}

func (c coreClient) Pods(namespace string) typedcorev1.PodInterface {
	return podClient{c.CoreV1Interface.Pods(namespace), c.direct, namespace}
}

func (c podClient) Create(ctx context.Context, pod *corev1.Pod, options metav1.CreateOptions) (*corev1.Pod, error) {
	if pod == nil || c.namespace == "" || !apiserver.Ordinary(pod, &options) {
		return c.PodInterface.Create(ctx, pod, options)
	}
	created, err := c.direct.CreateAs(ctx, podResource, c.namespace, pod, options, rest.DefaultKubernetesUserAgent())
	if err != nil {
		return nil, err
	}
	out := created.(*corev1.Pod)
	out.TypeMeta = metav1.TypeMeta{} // as typed clients answer
	return out, nil
}
