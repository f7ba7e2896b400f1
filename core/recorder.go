package core

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/quaymaster/quaymaster/core/api"
)

// recorder writes events of one component while it is started.
type recorder struct {
	record.EventRecorder
	broadcaster record.EventBroadcaster
	client      kubernetes.Interface
}

func newRecorder(client kubernetes.Interface, component string) *recorder {
	broadcaster := record.NewBroadcaster()
	return &recorder{
		EventRecorder: broadcaster.NewRecorder(api.Scheme, corev1.EventSource{Component: component}),
		broadcaster:   broadcaster, client: client,
	}
}

func (r *recorder) start() {
	r.broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: r.client.CoreV1().Events("")})
}

func (r *recorder) stop() { r.broadcaster.Shutdown() }
