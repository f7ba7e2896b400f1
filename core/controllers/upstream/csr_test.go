package upstream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	capi "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/keyutil"
	testclock "k8s.io/utils/clock/testing"
)

var nodeGroup = []string{"system:nodes"}

func requestOf(t *testing.T, template *x509.CertificateRequest, signer, username string, usages ...capi.KeyUsage) *capi.CertificateSigningRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return &capi.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "r"},
		Spec: capi.CertificateSigningRequestSpec{SignerName: signer, Username: username, Groups: append([]string{"system:authenticated"}, nodeGroup...), Usages: usages,
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})},
	}
}

func TestServingApprover(t *testing.T) {
	nodes := cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil)
	if err := nodes.Add(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeHostName, Address: "n1.example"}}}}); err != nil {
		t.Fatal(err)
	}
	serving := []capi.KeyUsage{capi.UsageDigitalSignature, capi.UsageServerAuth}
	of := func(name string, dns []string, ips ...net.IP) *x509.CertificateRequest {
		return &x509.CertificateRequest{Subject: pkix.Name{CommonName: name, Organization: nodeGroup}, DNSNames: dns, IPAddresses: ips}
	}
	for name, test := range map[string]struct {
		request *capi.CertificateSigningRequest
		refused string // part of the reason; "" approves
		ignored bool
	}{
		"its name and addresses": {request: requestOf(t, of("system:node:n1", []string{"n1", "n1.example"}, net.IPv4(10, 0, 0, 1)), capi.KubeletServingSignerName, "system:node:n1", serving...)},
		"not registered yet":     {request: requestOf(t, of("system:node:new", []string{"new"}, net.IPv4(10, 0, 0, 7)), capi.KubeletServingSignerName, "system:node:new", serving...)},
		"another signer":         {request: requestOf(t, of("system:node:n1", nil, net.IPv4(10, 0, 0, 1)), capi.KubeAPIServerClientSignerName, "system:node:n1", serving...), ignored: true},
		"another node's name":    {request: requestOf(t, of("system:node:n2", []string{"n2"}), capi.KubeletServingSignerName, "system:node:n1", serving...), refused: "system:node:n1 asks for a certificate of system:node:n2"},
		"another address":        {request: requestOf(t, of("system:node:n1", nil, net.IPv4(10, 0, 0, 2)), capi.KubeletServingSignerName, "system:node:n1", serving...), refused: "10.0.0.2 is not an address of node n1"},
		"another DNS name":       {request: requestOf(t, of("system:node:n1", []string{"kubernetes.default.svc"}), capi.KubeletServingSignerName, "system:node:n1", serving...), refused: "kubernetes.default.svc is not an address of node n1"},
		"usage of a client":      {request: requestOf(t, of("system:node:n1", []string{"n1"}), capi.KubeletServingSignerName, "system:node:n1", capi.UsageDigitalSignature, capi.UsageClientAuth), refused: "usages"},
		"no address":             {request: requestOf(t, of("system:node:n1", nil), capi.KubeletServingSignerName, "system:node:n1", serving...), refused: "subjectAltName is required"},
		"not a node's name":      {request: requestOf(t, of("admin", []string{"n1"}), capi.KubeletServingSignerName, "admin", serving...), refused: "system:node:"},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset(test.request)
			approver := &servingApprover{client: client, nodes: corelisters.NewNodeLister(nodes)}
			err := approver.handle(context.Background(), test.request.DeepCopy())
			if (err != nil) != (test.refused != "") || err != nil && !strings.Contains(err.Error(), test.refused) {
				t.Fatalf("got %v, want %q", err, test.refused)
			}
			stored, err := client.CertificatesV1().CertificateSigningRequests().Get(context.Background(), "r", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if approved := len(stored.Status.Conditions) == 1; approved != (test.refused == "" && !test.ignored) {
				t.Errorf("conditions %v", stored.Status.Conditions)
			}
		})
	}
}

// testAuthority makes one for tests.
func testAuthority(t *testing.T, now time.Time) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(10 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if keyPEM, err = keyutil.MarshalPrivateKeyToPEM(key); err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM
}

func TestSigner(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	certPEM, keyPEM := testAuthority(t, now)
	ca, err := parseAuthority(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	_, otherKey := testAuthority(t, now)
	if _, err := parseAuthority(certPEM, otherKey); err == nil || !strings.Contains(err.Error(), "do not belong together") {
		t.Errorf("with another key: %v", err)
	}
	node := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:n1", Organization: nodeGroup}}
	client := []capi.KeyUsage{capi.UsageDigitalSignature, capi.UsageClientAuth}
	approved := func(request *capi.CertificateSigningRequest, seconds int32) *capi.CertificateSigningRequest {
		request.Status.Conditions = []capi.CertificateSigningRequestCondition{{Type: capi.CertificateApproved, Status: corev1.ConditionTrue}}
		if seconds != 0 {
			request.Spec.ExpirationSeconds = &seconds
		}
		return request
	}
	for name, test := range map[string]struct {
		request *capi.CertificateSigningRequest
		end     time.Time // of the certificate; zero: not signed
		failed  bool
	}{
		"a node's client":    {request: approved(requestOf(t, node, capi.KubeAPIServerClientKubeletSignerName, "x", client...), 0), end: now.Add(lifetime - backdate)},
		"for an hour":        {request: approved(requestOf(t, node, capi.KubeAPIServerClientKubeletSignerName, "x", client...), 3600), end: now.Add(time.Hour)},
		"too short":          {request: approved(requestOf(t, node, capi.KubeAPIServerClientKubeletSignerName, "x", client...), 1), end: now.Add(minLifetime)},
		"too long":           {request: approved(requestOf(t, node, capi.KubeAPIServerClientKubeletSignerName, "x", client...), 2_000_000_000), end: now.Add(lifetime - backdate)},
		"a user":             {request: approved(requestOf(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "jane"}}, capi.KubeAPIServerClientSignerName, "x", client...), 0), end: now.Add(lifetime - backdate)},
		"not approved":       {request: requestOf(t, node, capi.KubeAPIServerClientKubeletSignerName, "x", client...)},
		"someone's signer":   {request: approved(requestOf(t, node, "example.com/signer", "x", client...), 0)},
		"not a node":         {request: approved(requestOf(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "jane"}}, capi.KubeAPIServerClientKubeletSignerName, "x", client...), 0), failed: true},
		"a user's signature": {request: approved(requestOf(t, node, capi.KubeAPIServerClientSignerName, "x", capi.UsageClientAuth, capi.UsageCertSign), 0), failed: true},
		"a user's server":    {request: approved(requestOf(t, node, capi.KubeAPIServerClientSignerName, "x", capi.UsageServerAuth), 0), failed: true},
	} {
		t.Run(name, func(t *testing.T) {
			api := fake.NewClientset(test.request)
			s := &signer{client: api, authority: func() ([]byte, []byte) { return ca.RawCert, ca.RawKey }, clock: testclock.NewFakePassiveClock(now)}
			if err := s.handle(context.Background(), test.request.DeepCopy()); err != nil {
				t.Fatal(err)
			}
			stored, err := api.CertificatesV1().CertificateSigningRequests().Get(context.Background(), "r", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			failed := false
			for _, c := range stored.Status.Conditions {
				failed = failed || c.Type == capi.CertificateFailed && c.Message != ""
			}
			if failed != test.failed || (len(stored.Status.Certificate) > 0) != !test.end.IsZero() {
				t.Fatalf("failed %t, certificate %q", failed, stored.Status.Certificate)
			}
			if test.end.IsZero() {
				return
			}
			block, _ := pem.Decode(stored.Status.Certificate)
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if err := cert.CheckSignatureFrom(ca.Certificate); err != nil || !cert.NotAfter.Equal(test.end) || cert.IsCA {
				t.Errorf("ends %v, want %v; authority %t; %v", cert.NotAfter, test.end, cert.IsCA, err)
			}
		})
	}
}
