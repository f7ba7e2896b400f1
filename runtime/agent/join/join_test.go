package join_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"

	"github.com/quaymaster/quaymaster/runtime/agent/join"
	"github.com/quaymaster/quaymaster/runtime/agent/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	quiet = log.New(io.Discard, "", 0)
	codec = scheme.Codecs.UniversalDeserializer()
)

// closeIdle ends a client's kept connections.
func closeIdle(t *testing.T, c kubernetes.Interface) {
	t.Helper()
	utilnet.CloseIdleConnectionsFor(c.CoreV1().RESTClient().(*rest.RESTClient).Client.Transport)
}

const secret = "abcdef.0123456789abcdef"

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) sign(public any, subject pkix.Name, names []string, ips []net.IP, life time.Duration) ([]byte, error) {
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: subject, DNSNames: names, IPAddresses: ips,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, public, a.key)
}

// pair makes a key and its certificate, with the CA in the chain.
func (a *authority) pair(t *testing.T, subject pkix.Name) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := a.sign(key.Public(), subject, []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}
}

func (a *authority) token() string {
	return fmt.Sprintf("qm1.%s.%x", secret, sha256.Sum256(a.cert.Raw))
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// clusterAPI is as much of an API server as joining needs: it signs what
// whoever has the token or a certificate asks for.
type clusterAPI struct {
	*authority
	life    time.Duration
	retired *authority // trusted still; nil: none

	mu       sync.Mutex
	requests map[string]*certificatesv1.CertificateSigningRequest
	users    []string
}

func (c *clusterAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user := ""
	if len(r.TLS.VerifiedChains) > 0 {
		user = r.TLS.VerifiedChains[0][0].Subject.CommonName
	} else if r.Header.Get("Authorization") == "Bearer "+secret {
		user = "system:bootstrap:abcdef"
	}
	w.Header().Set("Content-Type", "application/json")
	if user == "" {
		w.WriteHeader(http.StatusUnauthorized)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonUnauthorized, Code: 401, Message: "Unauthorized"})
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	list := &certificatesv1.CertificateSigningRequestList{TypeMeta: metav1.TypeMeta{Kind: "CertificateSigningRequestList", APIVersion: "certificates.k8s.io/v1"}}
	list.ResourceVersion = "1"
	switch {
	case r.URL.Path == "/certificates/authorities":
		_ = pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
		if c.retired != nil {
			_ = pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: c.retired.cert.Raw})
		}
	case r.Method == http.MethodPost:
		c.users = append(c.users, user)
		req := &certificatesv1.CertificateSigningRequest{}
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = runtime.DecodeInto(codec, body, req)
		}
		if err == nil {
			err = c.answer(req)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		req.Name = fmt.Sprintf("csr-%d", len(c.requests))
		req.UID, req.ResourceVersion = "uid", "1"
		req.TypeMeta = metav1.TypeMeta{Kind: "CertificateSigningRequest", APIVersion: "certificates.k8s.io/v1"}
		c.requests[req.Name] = req
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(req)
	case r.URL.Query().Get("watch") != "":
		w.WriteHeader(http.StatusOK)
	default:
		for _, req := range c.requests {
			if r.URL.Query().Get("fieldSelector") == "metadata.name="+req.Name {
				list.Items = append(list.Items, *req)
			}
		}
		_ = json.NewEncoder(w).Encode(list)
	}
}

func (c *clusterAPI) answer(req *certificatesv1.CertificateSigningRequest) error {
	block, _ := pem.Decode(req.Spec.Request)
	if block == nil {
		return errors.New("no request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return err
	}
	der, err := c.sign(csr.PublicKey, csr.Subject, csr.DNSNames, csr.IPAddresses, c.life)
	if err != nil {
		return err
	}
	req.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	req.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: v1.ConditionTrue}}
	return nil
}

func newCluster(t *testing.T, life time.Duration) (*clusterAPI, string) {
	t.Helper()
	c := &clusterAPI{authority: newAuthority(t), life: life, requests: map[string]*certificatesv1.CertificateSigningRequest{}}
	srv := httptest.NewUnstartedServer(c)
	srv.Config.ErrorLog = quiet
	srv.TLS = &tls.Config{
		Certificates: []tls.Certificate{c.pair(t, pkix.Name{CommonName: "apiserver"})}, ClientCAs: c.pool(), ClientAuth: tls.VerifyClientCertIfGiven,
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return c, srv.URL
}

func TestJoin(t *testing.T) {
	c, url := newCluster(t, time.Hour)
	dir := filepath.Join(t.TempDir(), "agent")
	opts := join.Options{Server: url, Token: c.token(), NodeName: "n1", Dir: dir}
	creds, err := join.Join(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(creds.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer closeIdle(t, client)
	for range 2 { // the second time it is stored
		cert, err := creds.Serving(t.Context(), client, []string{"n1"}, []net.IP{net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		if err := cert.Leaf.VerifyHostname("n1"); err != nil {
			t.Error(err)
		}
	}
	if _, err := creds.Serving(t.Context(), client, []string{"n1"}, []net.IP{net.IPv4(127, 0, 0, 2)}); err != nil { // another address
		t.Fatal(err)
	}
	opts.Token = "" // not needed again
	if _, err := join.Join(t.Context(), opts); err != nil {
		t.Error(err)
	}
	c.mu.Lock()
	if got := fmt.Sprint(c.users); got != "[system:bootstrap:abcdef system:node:n1 system:node:n1]" {
		t.Errorf("requests came from %s", got)
	}
	c.mu.Unlock()
	for _, name := range []string{"client.key", "client.crt", "serving.key", "ca.crt", "kubeconfig"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	opts.NodeName = "n2"
	if _, err := join.Join(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "system:node:n1, not of system:node:n2") {
		t.Errorf("another node in the same folder: %v", err)
	}
}

func TestExpiredCertificateNeedsAToken(t *testing.T) {
	c, url := newCluster(t, -time.Minute)
	opts := join.Options{Server: url, Token: c.token(), NodeName: "n1", Dir: t.TempDir()}
	if _, err := join.Join(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "is valid from") {
		t.Errorf("an expired certificate: %v", err)
	}
}

func TestWrongTokens(t *testing.T) {
	c, url := newCluster(t, time.Hour)
	other := newAuthority(t)
	for name, test := range map[string]struct {
		server, token string
		want          error
	}{
		"empty form":    {url, "qm1", join.ErrToken},
		"upstream form": {url, secret, join.ErrToken},
		"short hash":    {url, c.token()[:60], join.ErrToken},
		"other CA":      {url, other.token(), join.ErrCA},
		"other secret":  {url, strings.Replace(c.token(), "0123456789abcdef", "fedcba9876543210", 1), join.ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := join.Join(t.Context(), join.Options{Server: test.server, Token: test.token, NodeName: "n1", Dir: t.TempDir()})
			if !errors.Is(err, test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("have %v, want %v", err, test.want)
			}
		})
	}
	for server, want := range map[string]string{"http://x": "want a URL like", "://": "want a URL like", "https://127.0.0.1:1": "reach the server"} {
		if _, err := join.Join(t.Context(), join.Options{Server: server, Token: c.token(), NodeName: "n1", Dir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("server %s: %v", server, err)
		}
	}
	if _, err := join.Join(t.Context(), join.Options{Server: url, NodeName: "n1", Dir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "a join token is needed") {
		t.Errorf("no token: %v", err)
	}
}

func TestServe(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	client := fake.NewClientset()
	client.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		r := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview).DeepCopy()
		r.Status.Allowed = r.Spec.User == "monitor" && r.Spec.ResourceAttributes.Subresource == "pods" && r.Spec.ResourceAttributes.Name == "n1"
		return true, r, nil
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serving := ca.pair(t, pkix.Name{CommonName: "system:node:n1"})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- server.Serve(ctx, server.ServeOptions{
			NodeName: "n1", Listener: l, Certificate: func() (*tls.Certificate, error) { return &serving, nil }, ClientCA: ca.pool, Client: client,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }),
		})
	}()
	ask := func(path string, certs ...tls.Certificate) (int, error) {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool(), Certificates: certs}}}
		defer c.CloseIdleConnections()
		r, err := c.Get("https://" + l.Addr().String() + path)
		if err != nil {
			return 0, err
		}
		defer r.Body.Close()
		return r.StatusCode, nil
	}
	apiserver := ca.pair(t, pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}})
	monitor := ca.pair(t, pkix.Name{CommonName: "monitor"})
	for _, test := range []struct {
		path  string
		certs []tls.Certificate
		want  int
	}{
		{"/containerLogs/ns/p/c", []tls.Certificate{apiserver}, 200},
		{"/pods", nil, 401},
		{"/pods", []tls.Certificate{monitor}, 200},
		{"/containerLogs/ns/p/c", []tls.Certificate{monitor}, 403},
		{"/healthz", []tls.Certificate{monitor}, 403},
	} {
		if code, err := ask(test.path, test.certs...); err != nil || code != test.want {
			t.Errorf("%s: %d, %v, want %d", test.path, code, err, test.want)
		}
	}
	if code, err := ask("/pods", other.pair(t, pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}})); err == nil {
		t.Errorf("a certificate of another CA: %d", code)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
