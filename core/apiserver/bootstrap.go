package apiserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apiserver/pkg/authentication/user"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	schedulingapi "k8s.io/kubernetes/pkg/apis/scheduling/v1"
)

// systemNamespaces exist in every cluster.
var systemNamespaces = []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease}

// bootstrap makes what every cluster has: namespaces, priority classes, the
// default roles, the service "kubernetes" and a token for agents to join with.
// What is there already is kept.
func (s *Server) bootstrap(ctx context.Context) error {
	if err := s.restoreServices(ctx); err != nil {
		return err
	}
	d := s.bootstrapper()
	if err := s.ensureNamespaces(ctx, d); err != nil {
		return fmt.Errorf("make the system's own namespaces: %w", err)
	}
	for _, class := range schedulingapi.SystemPriorityClasses() {
		if err := (object{schedulingv1.SchemeGroupVersion.WithResource("priorityclasses"), class}).ensure(ctx, d); err != nil {
			return fmt.Errorf("make the system's own priority classes: %w", err)
		}
	}
	if err := s.ensureRoles(ctx, d); err != nil {
		return fmt.Errorf("make the default roles: %w", err)
	}
	if err := s.ensureFlowControl(ctx, d); err != nil {
		return fmt.Errorf("make the flow schemas and priority levels: %w", err)
	}
	if err := s.ensureJoinToken(ctx, d); err != nil {
		return fmt.Errorf("make the join token: %w", err)
	}
	if s.addresses != nil {
		if err := s.ensureServiceCIDR(ctx, d); err != nil {
			return fmt.Errorf("make the default ServiceCIDR: %w", err)
		}
	}
	if err := s.ensureKubernetesService(ctx, d); err != nil {
		return fmt.Errorf("make the service kubernetes: %w", err)
	}
	if err := s.ensureKubernetesEndpoints(ctx, d, object.replace); err != nil {
		return fmt.Errorf("make the endpoints of the service kubernetes: %w", err)
	}
	if s.aggregator != nil {
		if err := s.aggregator.ensure(ctx, d); err != nil {
			return fmt.Errorf("make the API services: %w", err)
		}
	}
	return nil
}

// bootstrapper makes what every cluster has. Admission is left out: its plugins
// wait for informers, which nothing here needs.
func (s *Server) bootstrapper() *Direct {
	return &Direct{server: s, user: &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup}}, unchecked: true}
}

// object is something that has to exist.
type object struct {
	gvr  schema.GroupVersionResource
	want runtime.Object
}

func (o object) ensure(ctx context.Context, d *Direct) error {
	m := accessor(o.want)
	if _, err := d.Get(ctx, o.gvr, m.GetNamespace(), m.GetName()); !apierrors.IsNotFound(err) {
		return err
	}
	if _, err := d.Create(ctx, o.gvr, m.GetNamespace(), o.want); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("%s %s: %w", o.gvr.Resource, m.GetName(), err)
	}
	return nil
}

var servicesResource = corev1.SchemeGroupVersion.WithResource("services")

// serviceAddress is the cluster address of the service kubernetes: the first of the range.
func serviceAddress() net.IP {
	ip := append(net.IP(nil), serviceCIDR.IP...)
	ip[len(ip)-1]++
	return ip
}

// ensureKubernetesService makes the service under which pods find the API.
func (s *Server) ensureKubernetesService(ctx context.Context, d *Direct) error {
	const name = "kubernetes"
	labels := map[string]string{"provider": "kubernetes", "component": "apiserver"}
	family := corev1.IPFamilyPolicySingleStack
	service := object{servicesResource, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault, Labels: labels},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: serviceAddress().String(), IPFamilyPolicy: &family,
			Ports:           []corev1.ServicePort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt32(s.listenPort())}},
			SessionAffinity: corev1.ServiceAffinityNone,
		},
	}}
	return service.ensure(ctx, d)
}

// listenPort of the API; 443 without a listener, where nothing can connect.
func (s *Server) listenPort() int32 {
	if s.options.Listener != nil {
		if _, port, err := net.SplitHostPort(s.options.Listener.Addr().String()); err == nil {
			if n, err := strconv.ParseInt(port, 10, 32); err == nil {
				return int32(n)
			}
		}
	}
	return 443
}

// joinLabel marks the token that JoinToken returns.
const joinLabel = "quaymaster.dev/join-token"

const tokenAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"

func randomText(length int) (string, error) {
	out := make([]byte, 0, length)
	buffer := make([]byte, length)
	for len(out) < length {
		if _, err := rand.Read(buffer); err != nil {
			return "", err
		}
		for _, b := range buffer {
			// Bytes beyond the last whole multiple would favour the first letters.
			if int(b) < 256-256%len(tokenAlphabet) && len(out) < length {
				out = append(out, tokenAlphabet[int(b)%len(tokenAlphabet)])
			}
		}
	}
	return string(out), nil
}

// ensureJoinToken finds or makes the bootstrap token that agents join with.
func (s *Server) ensureJoinToken(ctx context.Context, d *Direct) error {
	secrets := corev1.SchemeGroupVersion.WithResource("secrets")
	list, err := d.list(ctx, secrets, metav1.NamespaceSystem)
	if err != nil {
		if e := s.options.Encryption; e != nil && !apierrors.IsTimeout(err) && ctx.Err() == nil {
			return fmt.Errorf("read the stored secrets: %w; if %s is not the file of this store, put that in its place", err, e.path)
		}
		return err
	}
	var id, secret string
	for _, item := range list {
		found := item.(*corev1.Secret)
		if found.Labels[joinLabel] == "true" && found.Type == corev1.SecretTypeBootstrapToken {
			id, secret = string(found.Data[bootstrapapi.BootstrapTokenIDKey]), string(found.Data[bootstrapapi.BootstrapTokenSecretKey])
		}
	}
	if id == "" {
		var err1, err2 error
		id, err1 = randomText(6)
		secret, err2 = randomText(16)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if _, err := d.Create(ctx, secrets, metav1.NamespaceSystem, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{
				Name:   bootstrapapi.BootstrapTokenSecretPrefix + id,
				Labels: map[string]string{joinLabel: "true"},
			},
			Type: corev1.SecretTypeBootstrapToken,
			StringData: map[string]string{
				bootstrapapi.BootstrapTokenIDKey:               id,
				bootstrapapi.BootstrapTokenSecretKey:           secret,
				bootstrapapi.BootstrapTokenUsageAuthentication: "true",
				bootstrapapi.BootstrapTokenUsageSigningKey:     "true",
				bootstrapapi.BootstrapTokenDescriptionKey:      "Agents join the cluster with this token. Delete it to stop that; a new one is made at the next start.",
			},
		}); err != nil {
			return err
		}
	}
	s.joinToken = strings.Join([]string{"qm1", id, secret}, ".")
	return nil
}

// JoinToken is what an agent needs to join: "qm1.ID.SECRET.HASH", where
// ID.SECRET is a bootstrap token and HASH the SHA-256 of the authority's
// certificate (DER) in hexadecimal. It is empty until Ready. One with the HASH of
// an authority of before works as long as that is trusted.
func (s *Server) JoinToken() string {
	select {
	case <-s.ready:
		return s.joinToken + "." + s.pki.caHash()
	default:
		return ""
	}
}
