package upstream

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"slices"
	"time"

	capi "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/util/certificate/csr"
	requests "k8s.io/kubernetes/pkg/apis/certificates"
	"k8s.io/kubernetes/pkg/controller/certificates"
	"k8s.io/kubernetes/pkg/controller/certificates/authority"
	"k8s.io/utils/clock"
)

// servingApprover approves the server certificates of nodes, which upstream
// leaves to others. A node gets one in its own name, and once its Node object
// exists only for the addresses that stand there.
type servingApprover struct {
	client kubernetes.Interface
	nodes  corelisters.NodeLister
}

func (a *servingApprover) handle(ctx context.Context, request *capi.CertificateSigningRequest) error {
	if request.Spec.SignerName != capi.KubeletServingSignerName {
		return nil
	}
	if approved, denied := certificates.GetCertApprovalCondition(&request.Status); approved || denied {
		return nil
	}
	asked, err := requests.ParseCSR(request.Spec.Request)
	if err != nil {
		return fmt.Errorf("request %s: %w", request.Name, err)
	}
	if reason := a.refuse(request, asked); reason != "" {
		return certificates.IgnorableError("request %s is left for someone to approve: %s", request.Name, reason)
	}
	request.Status.Conditions = append(request.Status.Conditions, capi.CertificateSigningRequestCondition{
		Type: capi.CertificateApproved, Status: corev1.ConditionTrue, Reason: "AutoApproved",
		Message: "Auto approving kubelet serving certificate of the node that asks for it.",
	})
	if _, err := a.client.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, request.Name, request, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("approve request %s: %w", request.Name, err)
	}
	return nil
}

// refuse says why the request is not approved; "" if it is.
func (a *servingApprover) refuse(request *capi.CertificateSigningRequest, asked *x509.CertificateRequest) string {
	if err := requests.ValidateKubeletServingCSR(asked, usageSet(request.Spec.Usages)); err != nil {
		return err.Error()
	}
	if request.Spec.Username != asked.Subject.CommonName || !slices.Contains(request.Spec.Groups, "system:nodes") {
		return fmt.Sprintf("%s asks for a certificate of %s", request.Spec.Username, asked.Subject.CommonName)
	}
	node, err := a.nodes.Get(asked.Subject.CommonName[len("system:node:"):])
	if apierrors.IsNotFound(err) {
		return "" // it registers after it can be reached
	}
	if err != nil {
		return err.Error()
	}
	known := func(name string, ip net.IP) bool {
		return name == node.Name || slices.ContainsFunc(node.Status.Addresses, func(address corev1.NodeAddress) bool {
			return address.Address == name || ip != nil && ip.Equal(net.ParseIP(address.Address))
		})
	}
	for _, name := range asked.DNSNames {
		if !known(name, nil) {
			return fmt.Sprintf("%s is not an address of node %s", name, node.Name)
		}
	}
	for _, ip := range asked.IPAddresses {
		if !known(ip.String(), ip) {
			return fmt.Sprintf("%s is not an address of node %s", ip, node.Name)
		}
	}
	return ""
}

// signer signs approved requests for upstream's signers of this authority.
// Upstream's own signer wants the key in a file.
type signer struct {
	client    kubernetes.Interface
	authority func() (certPEM, keyPEM []byte) // asked at each request
	clock     clock.PassiveClock
}

const (
	lifetime    = 365 * 24 * time.Hour
	minLifetime = 10 * time.Minute
	backdate    = 5 * time.Minute
	shortLived  = 8 * time.Hour // shorter ones are not backdated in their lifetime
)

// checks by signer name: what may be signed.
var checks = map[string]func(*x509.CertificateRequest, sets.String) error{
	capi.KubeAPIServerClientKubeletSignerName: requests.ValidateKubeletClientCSR,
	capi.KubeletServingSignerName:             requests.ValidateKubeletServingCSR,
	capi.KubeAPIServerClientSignerName:        validateClient,
}

// validateClient lets a certificate be of a client and nothing else.
func validateClient(_ *x509.CertificateRequest, usages sets.String) error {
	if !usages.Has(string(capi.UsageClientAuth)) {
		return fmt.Errorf("missing required usage for client certificate: %s", capi.UsageClientAuth)
	}
	for usage := range usages.Difference(sets.NewString(string(capi.UsageClientAuth), string(capi.UsageDigitalSignature), string(capi.UsageKeyEncipherment))) {
		return fmt.Errorf("invalid usage for client certificate: %s", usage)
	}
	return nil
}

func usageSet(usages []capi.KeyUsage) sets.String {
	set := sets.NewString()
	for _, usage := range usages {
		set.Insert(string(usage))
	}
	return set
}

func (s *signer) handle(ctx context.Context, request *capi.CertificateSigningRequest) error {
	check, ok := checks[request.Spec.SignerName]
	if !ok || !certificates.IsCertificateRequestApproved(request) || certificates.HasTrueCondition(request, capi.CertificateFailed) {
		return nil
	}
	asked, err := requests.ParseCSR(request.Spec.Request)
	if err != nil {
		return fmt.Errorf("request %s: %w", request.Name, err)
	}
	if err := check(asked, usageSet(request.Spec.Usages)); err != nil {
		request.Status.Conditions = append(request.Status.Conditions, capi.CertificateSigningRequestCondition{
			Type: capi.CertificateFailed, Status: corev1.ConditionTrue, Reason: "SignerValidationFailure",
			Message: err.Error(), LastUpdateTime: metav1.NewTime(s.clock.Now()),
		})
	} else {
		ca, err := parseAuthority(s.authority())
		if err != nil {
			return fmt.Errorf("sign request %s: %w", request.Name, err)
		}
		der, err := ca.Sign(asked.Raw, authority.PermissiveSigningPolicy{
			TTL: ttl(request.Spec.ExpirationSeconds), Usages: request.Spec.Usages, Backdate: backdate, Short: shortLived, Now: s.clock.Now,
		})
		if err != nil {
			return fmt.Errorf("sign request %s: %w", request.Name, err)
		}
		request.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	if _, err := s.client.CertificatesV1().CertificateSigningRequests().UpdateStatus(ctx, request, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("answer request %s: %w", request.Name, err)
	}
	return nil
}

// ttl is what was asked for, within upstream's bounds.
func ttl(seconds *int32) time.Duration {
	if seconds == nil {
		return lifetime
	}
	return min(max(csr.ExpirationSecondsToDuration(*seconds), minLifetime), lifetime)
}
