package apiserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	capi "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/keyutil"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// request asks for a certificate and waits for it.
func request(t *testing.T, ctx context.Context, client kubernetes.Interface, name, signer string, template *x509.CertificateRequest, usage capi.KeyUsage) (certPEM, keyPEM []byte, err error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	if keyPEM, err = keyutil.MarshalPrivateKeyToPEM(key); err != nil {
		t.Fatal(err)
	}
	_, err = client.CertificatesV1().CertificateSigningRequests().Create(ctx, &capi.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: capi.CertificateSigningRequestSpec{
			SignerName: signer,
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			Usages:     []capi.KeyUsage{capi.UsageDigitalSignature, usage},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, nil, err
	}
	eventually(t, "certificate of request "+name, func() error {
		got, err := client.CertificatesV1().CertificateSigningRequests().Get(ctx, name, metav1.GetOptions{})
		if err == nil && len(got.Status.Certificate) == 0 {
			err = errors.New("not signed yet")
		}
		if err == nil {
			certPEM = got.Status.Certificate
		}
		return err
	})
	return certPEM, keyPEM, nil
}

// TestJoin walks the way of an agent: from the join token to the logs that the
// server fetches from it over TLS.
func TestJoin(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
	ctx := t.Context()
	parts := strings.Split(c.JoinToken(), ".")
	block, _ := pem.Decode(c.CAPEM())
	sum := sha256.Sum256(block.Bytes)
	if len(parts) != 4 || parts[0] != "qm1" || parts[3] != hex.EncodeToString(sum[:]) {
		t.Fatalf("join token %q", c.JoinToken())
	}
	authority := rest.TLSClientConfig{CAData: c.CAPEM()}
	wrong := clientFor(t, &rest.Config{Host: c.URL(), BearerToken: parts[1] + ".0123456789abcdef", TLSClientConfig: authority})
	if _, _, err := request(t, ctx, wrong, "wrong", capi.KubeAPIServerClientKubeletSignerName, &x509.CertificateRequest{}, capi.UsageClientAuth); !apierrors.IsUnauthorized(err) {
		t.Errorf("with a wrong secret: %v", err)
	}
	var joining kubernetes.Interface
	eventually(t, "the token is known", func() error {
		joining = clientFor(t, &rest.Config{Host: c.URL(), BearerToken: parts[1] + "." + parts[2], TLSClientConfig: authority})
		_, err := joining.CertificatesV1().CertificateSigningRequests().List(ctx, metav1.ListOptions{})
		return err
	})
	if _, err := joining.CoreV1().Secrets("kube-system").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("whoever joins reads secrets: %v", err)
	}
	subject := pkix.Name{Organization: []string{"system:nodes"}, CommonName: "system:node:n1"}
	cert, key, err := request(t, ctx, joining, "n1", capi.KubeAPIServerClientKubeletSignerName, &x509.CertificateRequest{Subject: subject}, capi.UsageClientAuth)
	if err != nil {
		t.Fatal(err)
	}
	node := clientFor(t, &rest.Config{Host: c.URL(), TLSClientConfig: rest.TLSClientConfig{CAData: c.CAPEM(), CertData: cert, KeyData: key}})

	// The kubelet API of the node, with a serving certificate of the cluster.
	cert, key, err = request(t, ctx, node, "n1-serving", capi.KubeletServingSignerName,
		&x509.CertificateRequest{Subject: subject, DNSNames: []string{"n1"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, capi.UsageServerAuth)
	if err != nil {
		t.Fatal(err)
	}
	serving, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.CAPEM())
	kubelet := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(r.TLS.PeerCertificates[0].Subject.CommonName + " reads " + r.URL.Path))
	}))
	kubelet.TLS = &tls.Config{Certificates: []tls.Certificate{serving}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots}
	kubelet.StartTLS()
	defer kubelet.Close()

	registered, err := node.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	registered.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}
	registered.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(kubelet.Listener.Addr().(*net.TCPAddr).Port)
	if _, err := node.CoreV1().Nodes().UpdateStatus(ctx, registered, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.client.CoreV1().Pods("default").Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "main", Image: "x"}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	log, err := c.client.CoreV1().Pods("default").GetLogs("p", &corev1.PodLogOptions{}).DoRaw(ctx)
	if want := "kube-apiserver-kubelet-client reads /containerLogs/default/p/main"; err != nil || string(log) != want {
		t.Errorf("log %q, %v; want %q", log, err, want)
	}

	// Not its own: the first is refused, no one approves the second.
	for name, template := range map[string]*x509.CertificateRequest{
		"another-name":    {Subject: pkix.Name{Organization: []string{"system:nodes"}, CommonName: "system:node:n2"}, DNSNames: []string{"n2"}},
		"another-address": {Subject: subject, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 9)}},
	} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
		if err != nil {
			t.Fatal(err)
		}
		_, err = node.CertificatesV1().CertificateSigningRequests().Create(ctx, &capi.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: capi.CertificateSigningRequestSpec{SignerName: capi.KubeletServingSignerName, Usages: []capi.KeyUsage{capi.UsageDigitalSignature, capi.UsageServerAuth},
				Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})},
		}, metav1.CreateOptions{})
		if name == "another-name" && !apierrors.IsForbidden(err) || name == "another-address" && err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A request made after it and answered proves that it was looked at.
	if _, _, err := request(t, ctx, node, "n1-renewal", capi.KubeAPIServerClientKubeletSignerName, &x509.CertificateRequest{Subject: subject}, capi.UsageClientAuth); err != nil {
		t.Fatal(err)
	}
	got, err := c.client.CertificatesV1().CertificateSigningRequests().Get(ctx, "another-address", metav1.GetOptions{})
	if err != nil || len(got.Status.Conditions) != 0 {
		t.Errorf("another-address: %v, %v", got.Status.Conditions, err)
	}
}

// TestNodeOfThisProcess reads a log without a port.
func TestNodeOfThisProcess(t *testing.T) {
	kubelet := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("in memory: " + r.URL.String()))
	})
	c := start(t, func(o *apiserver.Options) {
		o.NodeTransport = func(node string) (http.RoundTripper, bool) {
			return apiserver.HandlerTransport(kubelet), node == "here"
		}
	})
	ctx := t.Context()
	for _, name := range []string{"here", "there"} {
		if _, err := c.client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.client.CoreV1().Pods("default").Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.PodSpec{NodeName: name, Containers: []corev1.Container{{Name: "main", Image: "x"}}},
		}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	log, err := c.client.CoreV1().Pods("default").GetLogs("here", &corev1.PodLogOptions{}).DoRaw(ctx)
	if want := "in memory: http://here:10250/containerLogs/default/here/main"; err != nil || string(log) != want {
		t.Errorf("log %q, %v; want %q", log, err, want)
	}
	if _, err := c.client.CoreV1().Pods("default").GetLogs("there", &corev1.PodLogOptions{}).DoRaw(ctx); err == nil {
		t.Error("a node without an address answered")
	}
}
