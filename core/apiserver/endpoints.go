package apiserver

import (
	"context"
	"net"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// published is the address at which pods reach this server, nil if there is
// none: without a listener, and with one on the loopback.
func (s *Server) published() net.IP {
	if s.options.Listener == nil {
		return nil
	}
	address, ok := s.options.Listener.Addr().(*net.TCPAddr)
	if !ok || address.IP.IsLoopback() {
		return nil
	}
	if !address.IP.IsUnspecified() {
		return address.IP
	}
	// On all addresses: the one of the default route, as upstream has it.
	host, err := utilnet.ChooseHostInterface()
	if err != nil {
		return nil
	}
	return host
}

// ensureKubernetesEndpoints says where the service kubernetes leads: in
// Endpoints and in a slice, both of which no controller keeps. The way makes
// each anew where it is not right, or only where there is none.
func (s *Server) ensureKubernetesEndpoints(ctx context.Context, d *Direct, way func(object, context.Context, *Direct, func(present runtime.Object) bool) error) error {
	ip := s.published()
	if ip == nil {
		return nil
	}
	const name = "kubernetes"
	port, protocol, portName, ready := s.listenPort(), corev1.ProtocolTCP, "https", true
	family := discoveryv1.AddressTypeIPv4
	if ip.To4() == nil {
		family = discoveryv1.AddressTypeIPv6
	}
	endpoints := &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault, Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"}},
		Subsets: []corev1.EndpointSubset{{
			Addresses: []corev1.EndpointAddress{{IP: ip.String()}}, Ports: []corev1.EndpointPort{{Name: portName, Port: port, Protocol: protocol}},
		}},
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: family,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{ip.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &protocol}},
	}
	err := way(object{corev1.SchemeGroupVersion.WithResource("endpoints"), endpoints}, ctx, d, func(present runtime.Object) bool {
		old, ok := present.(*corev1.Endpoints)
		return ok && equality.Semantic.DeepEqual(old.Subsets, endpoints.Subsets)
	})
	if err != nil {
		return err
	}
	return way(object{discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), slice}, ctx, d, func(present runtime.Object) bool {
		old, ok := present.(*discoveryv1.EndpointSlice)
		return ok && old.AddressType == slice.AddressType && equality.Semantic.DeepEqual(old.Endpoints, slice.Endpoints) && equality.Semantic.DeepEqual(old.Ports, slice.Ports)
	})
}

// ensureOnly is replace for servers that are not alone: what another has written is left.
func (o object) ensureOnly(ctx context.Context, d *Direct, _ func(runtime.Object) bool) error {
	return o.ensure(ctx, d)
}

// replace makes the object anew unless the present one is right: one of an
// earlier run may tell of another address, which for a slice cannot be changed.
func (o object) replace(ctx context.Context, d *Direct, right func(present runtime.Object) bool) error {
	m := accessor(o.want)
	present, err := d.Get(ctx, o.gvr, m.GetNamespace(), m.GetName())
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return err
	case right(present):
		return nil
	default:
		if err := d.Delete(ctx, o.gvr, m.GetNamespace(), m.GetName(), metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return o.ensure(ctx, d)
}
