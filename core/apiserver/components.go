package apiserver

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/probe"
	"k8s.io/kubernetes/pkg/registry/core/componentstatus"
)

// storeCheck bounds how long the store is waited for.
const storeCheck = 20 * time.Second // upstream's

// componentStatuses asks the parts of this process, where upstream asks ports of
// this machine.
func componentStatuses(r *registries) (map[string]rest.Storage, error) {
	servers := map[string]componentstatus.Server{"etcd-0": component(r.storeAnswers)}
	for name, check := range r.options.Components {
		servers[name] = component(check)
	}
	return map[string]rest.Storage{"": componentstatus.NewStorage(func() map[string]componentstatus.Server { return servers })}, nil
}

func (s *Server) storeAnswers() error {
	ctx, cancel := context.WithTimeout(s.aborted, storeCheck)
	defer cancel()
	_, err := s.Direct(nil).Get(ctx, corev1.SchemeGroupVersion.WithResource("namespaces"), "", metav1.NamespaceSystem)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// component is a check with upstream's words.
type component func() error

func (c component) DoServerCheck() (probe.Result, string, error) {
	if err := c(); err != nil {
		return probe.Failure, "", err
	}
	return probe.Success, "ok", nil
}
