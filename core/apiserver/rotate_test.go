package apiserver_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gopkg.in/go-jose/go-jose.v2"
	"gopkg.in/go-jose/go-jose.v2/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	capi "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/cert"
	testclock "k8s.io/utils/clock/testing"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

func configOf(t *testing.T, c *cluster) *rest.Config {
	t.Helper()
	data, err := c.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(data)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	return config
}

func authorities(t *testing.T, data string) (names []string) {
	t.Helper()
	all, err := cert.ParseCertsPEM([]byte(data))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		names = append(names, c.Subject.SerialNumber)
	}
	return names
}

// clientAt is a client with connections of its own and the clock that the server has.
func clientAt(t *testing.T, config *rest.Config, clock interface{ Now() time.Time }) kubernetes.Interface {
	t.Helper()
	secure, err := rest.TLSConfigFor(config)
	if err != nil {
		t.Fatal(err)
	}
	secure.Time = clock.Now
	transport := &http.Transport{TLSClientConfig: secure}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: config.Host, Transport: transport, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func readNamespace(t *testing.T, client kubernetes.Interface) error {
	t.Helper()
	_, err := client.CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{})
	return err
}

// TestRotation rotates everything on a running server, with a client that reads
// its kubeconfig again and never sees a failed request, and one that does not and
// goes on until the old authority's time is over.
func TestRotation(t *testing.T) {
	clock := testclock.NewFakeClock(time.Now())
	dir := filepath.Join(t.TempDir(), "pki")
	c := start(t, func(o *apiserver.Options) { o.Listener, o.Clock, o.Dir = listen(t), clock, dir })
	ctx := t.Context()
	before := configOf(t, c)
	holder := clientAt(t, before, clock)
	firstCA := authorities(t, string(before.CAData))
	oldToken := c.JoinToken()
	newToken := func() string {
		t.Helper()
		token, err := c.client.CoreV1().ServiceAccounts("default").CreateToken(ctx, "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return token.Status.Token
	}
	review := func(token string) bool {
		t.Helper()
		got, err := c.client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return got.Status.Authenticated
	}
	keyID := func(token string) string {
		t.Helper()
		parsed, err := jwt.ParseSigned(token)
		if err != nil {
			t.Fatal(err)
		}
		return parsed.Headers[0].KeyID
	}
	published := func(want ...string) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d keys of tokens", len(want)), func() error {
			data, err := c.client.CoreV1().RESTClient().Get().AbsPath("/openid/v1/jwks").SetHeader("Accept", "*/*").DoRaw(ctx)
			if err != nil {
				return err
			}
			var keys jose.JSONWebKeySet
			if err := json.Unmarshal(data, &keys); err != nil {
				return err
			}
			var ids []string
			for _, k := range keys.Keys {
				ids = append(ids, k.KeyID)
			}
			for _, id := range want {
				if id != "" && !slices.Contains(ids, id) {
					return fmt.Errorf("%s is not among %v", id, ids)
				}
			}
			if len(ids) != len(want) {
				return fmt.Errorf("keys %v", ids)
			}
			return nil
		})
	}
	mounted, unused := newToken(), newToken()
	firstKey := keyID(mounted)

	// The client that follows: as long as the rotation goes on it asks and writes.
	var asked, failed atomic.Int64
	following, stop := context.WithCancel(ctx)
	var follower sync.WaitGroup
	defer follower.Wait()
	defer stop()
	follower.Go(func() {
		changed, client := c.CredentialsChanged(), clientAt(t, configOf(t, c), clock)
		for following.Err() == nil {
			select {
			case <-changed:
				changed = c.CredentialsChanged()
				client = clientAt(t, configOf(t, c), clock)
			default:
			}
			name := fmt.Sprintf("step-%d", asked.Add(1))
			_, err := client.CoreV1().ConfigMaps("default").Create(following, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
			if err == nil {
				err = client.CoreV1().ConfigMaps("default").Delete(following, name, metav1.DeleteOptions{})
			}
			if err != nil && following.Err() == nil {
				failed.Add(1)
				t.Errorf("request %s: %v", name, err)
			}
		}
	})
	goesOn := func() {
		t.Helper()
		from := asked.Load()
		eventually(t, "the follower goes on", func() error {
			if asked.Load() < from+3 {
				return errors.New("not yet")
			}
			return nil
		})
	}
	goesOn()

	if _, err := c.RotateCredentials(apiserver.Rotation{Authority: true, Overlap: time.Minute}); !errors.Is(err, apiserver.ErrOverlap) {
		t.Errorf("an overlap of a minute: %v", err)
	}
	done, err := c.RotateCredentials(apiserver.Rotation{Authority: true, FrontProxy: true, TokenKey: true, Overlap: 2 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if !done.TrustedUntil.Equal(clock.Now().Add(2*time.Hour)) || !done.SignsFrom.Equal(clock.Now().Add(time.Hour)) {
		t.Errorf("the rotation says %+v", done)
	}
	goesOn()
	after := configOf(t, c)
	both := authorities(t, string(after.CAData))
	if len(both) != 2 || both[1] != firstCA[0] || both[0] == firstCA[0] {
		t.Errorf("authorities %v, before %v", both, firstCA)
	}

	// In the overlap: old and new connections of the one that holds on, and an agent that has the old token.
	if err := readNamespace(t, holder); err != nil {
		t.Errorf("an old connection: %v", err)
	}
	if err := readNamespace(t, clientAt(t, before, clock)); err != nil {
		t.Errorf("an old certificate on a new connection: %v", err)
	}
	if err := readNamespace(t, clientAt(t, after, clock)); err != nil {
		t.Errorf("a new certificate: %v", err)
	}
	if c.JoinToken() == oldToken {
		t.Error("the join token has the old hash")
	}
	old := x509.NewCertPool()
	old.AppendCertsFromPEM(before.CAData)
	connection, err := tls.Dial("tcp", strings.TrimPrefix(c.URL(), "https://"), &tls.Config{RootCAs: old, Time: clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	chain := connection.ConnectionState().PeerCertificates
	_ = connection.Close()
	if !slices.ContainsFunc(chain, func(c *x509.Certificate) bool {
		return c.Issuer.String() == c.Subject.String() && c.Subject.SerialNumber == firstCA[0]
	}) {
		t.Error("an agent with the old token does not find its authority in the chain")
	}
	approved := func() []byte {
		t.Helper()
		signed, _, err := request(t, ctx, c.client, "n1", capi.KubeAPIServerClientKubeletSignerName,
			&x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:n1", Organization: []string{"system:nodes"}}}, capi.UsageClientAuth)
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	if leaf, err := cert.ParseCertsPEM(approved()); err != nil || leaf[0].Issuer.SerialNumber != both[0] {
		t.Errorf("a request is signed by another authority than the new one: %v", err)
	}
	trusted := func(namespace, name, key string, want int) {
		t.Helper()
		eventually(t, namespace+"/"+name+" "+key, func() error {
			got, err := c.client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if n := len(authorities(t, got.Data[key])); n != want {
				return fmt.Errorf("%d authorities, want %d", n, want)
			}
			return nil
		})
	}
	trusted("default", "kube-root-ca.crt", "ca.crt", 2)
	trusted("kube-system", "extension-apiserver-authentication", "client-ca-file", 2)
	trusted("kube-system", "extension-apiserver-authentication", "requestheader-client-ca-file", 2)

	// Tokens: the next key is published, and signs in an hour.
	published(firstKey, "")
	if got := keyID(newToken()); got != firstKey {
		t.Error("the next key signs before others can know it")
	}
	clock.Step(time.Hour)
	second := newToken()
	if keyID(second) == firstKey {
		t.Error("the old key signs after an hour")
	}
	published(firstKey, keyID(second))
	if !review(mounted) || !review(second) {
		t.Error("tokens of one of both keys are refused")
	}

	// The end of the overlap.
	clock.Step(time.Hour - time.Second)
	if err := readNamespace(t, holder); err != nil {
		t.Errorf("a second before the end: %v", err)
	}
	clock.Step(time.Minute)
	err = readNamespace(t, holder)
	if !apierrors.IsUnauthorized(err) || err.Error() != "Unauthorized" {
		t.Errorf("after the end: %v", err)
	}
	eventually(t, "the old authority is not served any more", func() error {
		var unknown x509.UnknownAuthorityError
		if err := readNamespace(t, clientAt(t, before, clock)); !errors.As(err, &unknown) {
			return fmt.Errorf("an old client on a new connection: %w", err)
		}
		return nil
	})
	trusted("default", "kube-root-ca.crt", "ca.crt", 1)
	trusted("kube-system", "extension-apiserver-authentication", "client-ca-file", 1)
	trusted("kube-system", "extension-apiserver-authentication", "requestheader-client-ca-file", 1)
	goesOn()
	stop()
	follower.Wait()
	if failed.Load() > 0 || asked.Load() < 9 {
		t.Errorf("the client that follows: %d requests, %d failed", asked.Load(), failed.Load())
	}
	clock.Step(8 * 24 * time.Hour) // by this clock the last token of the first key has ended
	published(keyID(second))
	if review(unused) {
		t.Error("a token of a key that is gone is accepted")
	}
}
