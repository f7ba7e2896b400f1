package apiserver

import (
	"context"
	"errors"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controlplane/controller/defaultservicecidr"
)

const (
	keepInterval = 10 * time.Second // how often upstream looks for what the cluster must have
	keepRetry    = time.Second
)

// keep makes anew what bootstrap has made and someone has deleted, as upstream's
// controllers do: the system's namespaces, the default ServiceCIDR, the service
// kubernetes and its endpoints. It runs until the context ends.
func (s *Server) keep(ctx context.Context) {
	lost := make(chan struct{}, 1)
	mine := func(object any) {
		if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
			object = gone.Obj
		}
		m, ok := object.(metav1.Object)
		if !ok || m.GetName() != defaultservicecidr.DefaultServiceCIDRName && !slices.Contains(systemNamespaces, m.GetName()) {
			return
		}
		select {
		case lost <- struct{}{}:
		default:
		}
	}
	watched := []cache.SharedIndexInformer{s.options.Informers.Core().V1().Namespaces().Informer(), s.options.Informers.Core().V1().Services().Informer()}
	if s.addresses != nil {
		watched = append(watched, s.options.Informers.Networking().V1().ServiceCIDRs().Informer())
	}
	for _, informer := range watched {
		registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: mine})
		if err != nil { // the informer has ended, as the server does
			return
		}
		defer func() { _ = informer.RemoveEventHandler(registration) }()
	}
	timer := time.NewTimer(keepInterval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-lost:
		}
		timer.Reset(keepInterval)
		d := s.bootstrapper()
		err := s.ensureNamespaces(ctx, d)
		if s.addresses != nil {
			err = errors.Join(err, s.ensureServiceCIDR(ctx, d))
		}
		err = errors.Join(err, s.ensureKubernetesService(ctx, d), s.ensureKubernetesEndpoints(ctx, d, object.ensureOnly))
		if err != nil && ctx.Err() == nil { // such as an address that is not free again yet
			s.log.Warn("what every cluster has is not all there yet", "error", err)
			timer.Reset(keepRetry)
		}
	}
}

func (s *Server) ensureNamespaces(ctx context.Context, d *Direct) error {
	for _, name := range systemNamespaces {
		namespace := object{corev1.SchemeGroupVersion.WithResource("namespaces"), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}}
		if err := namespace.ensure(ctx, d); err != nil {
			return err
		}
	}
	return nil
}
