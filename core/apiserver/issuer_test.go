package apiserver_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"gopkg.in/go-jose/go-jose.v2"
	"gopkg.in/go-jose/go-jose.v2/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/cert"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// TestIssuer reads the published keys as a service account may, and checks a
// token with them as someone outside would.
func TestIssuer(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
	token, err := c.client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	account := clientFor(t, &rest.Config{Host: c.URL(), BearerToken: token.Status.Token, TLSClientConfig: rest.TLSClientConfig{CAData: c.CAPEM()}})
	read := func(path string, into any) {
		t.Helper()
		eventually(t, path, func() error {
			data, err := account.CoreV1().RESTClient().Get().AbsPath(path).DoRaw(t.Context())
			if err != nil {
				return err
			}
			return json.Unmarshal(data, into)
		})
	}
	var configuration struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	read("/.well-known/openid-configuration", &configuration)
	if configuration.Issuer != "https://kubernetes.default.svc.cluster.local" || configuration.Keys != c.URL()+"/openid/v1/jwks" {
		t.Errorf("configuration %+v", configuration)
	}
	var keys jose.JSONWebKeySet
	read("/openid/v1/jwks", &keys)
	parsed, err := jwt.ParseSigned(token.Status.Token)
	if err != nil {
		t.Fatal(err)
	}
	var claims jwt.Claims
	found := keys.Key(parsed.Headers[0].KeyID)
	if len(found) != 1 {
		t.Fatalf("key %q is not among %v", parsed.Headers[0].KeyID, keys.Keys)
	}
	if err := parsed.Claims(found[0].Key, &claims); err != nil || claims.Subject != "system:serviceaccount:default:default" || claims.Expiry == nil {
		t.Errorf("claims %+v, %v", claims, err)
	}
}

// idp is an OpenID Connect issuer.
type idp struct {
	*httptest.Server
	key *ecdsa.PrivateKey
}

func newIDP(t testing.TB) *idp {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &idp{key: key}
	i.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q,"authorization_endpoint":"https://x","response_types_supported":["id_token"],"subject_types_supported":["public"],"id_token_signing_alg_values_supported":["ES256"]}`, i.URL, i.URL+"/keys")
		case "/keys":
			_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(i.Close)
	return i
}

func (i *idp) token(t testing.TB, key *ecdsa.PrivateKey, issuer, audience string, end time.Time) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(signer).Claims(jwt.Claims{Issuer: issuer, Audience: jwt.Audience{audience}, Subject: "1", IssuedAt: jwt.NewNumericDate(time.Now()), Expiry: jwt.NewNumericDate(end)}).
		Claims(map[string]any{"email": "jane@example.com", "teams": []string{"blue"}}).CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestOpenIDConnect(t *testing.T) {
	provider := newIDP(t)
	ca, err := cert.EncodeCertificates(provider.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	authority, err := json.Marshal(string(ca))
	if err != nil {
		t.Fatal(err)
	}
	config := writeTemp(t, "authentication.yaml", fmt.Sprintf(`
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer: {url: %q, audiences: [quaymaster], certificateAuthority: %s}
  claimMappings:
    username: {expression: "'oidc:' + claims.email.split('@')[0]"}
    groups: {claim: teams, prefix: "oidc:"}
  claimValidationRules:
  - {expression: "claims.?email_verified.orValue(true) == true", message: "the address must be verified"}
`, provider.URL, authority))
	var logged logBuffer
	c := start(t, func(o *apiserver.Options) {
		o.Listener, o.AuthenticationConfig, o.Logger = listen(t), config, slog.New(slog.NewTextHandler(&logged, nil))
	})
	with := func(token string) kubernetes.Interface {
		return clientFor(t, &rest.Config{Host: c.URL(), BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: c.CAPEM()}})
	}
	later := time.Now().Add(time.Hour)
	good := with(provider.token(t, provider.key, provider.URL, "quaymaster", later))
	eventually(t, "the issuer's keys", func() error {
		who, err := good.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		if u := who.Status.UserInfo; u.Username != "oidc:jane" || strings.Join(u.Groups, ",") != "oidc:blue,system:authenticated" {
			t.Errorf("I am %+v", u)
		}
		return nil
	})
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{
		"expired":            provider.token(t, provider.key, provider.URL, "quaymaster", time.Now().Add(-time.Hour)),
		"for someone else":   provider.token(t, provider.key, provider.URL, "other", later),
		"of another issuer":  provider.token(t, provider.key, "https://example.com", "quaymaster", later),
		"by another key":     provider.token(t, other, provider.URL, "quaymaster", later),
		"as our own issuer":  provider.token(t, provider.key, "https://kubernetes.default.svc.cluster.local", "quaymaster", later),
		"three parts of air": "a.b.c",
	} {
		if _, err := with(token).AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{}); !apierrors.IsUnauthorized(err) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// The file is read again: another audience, then one that is broken, which changes nothing.
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(content []byte) {
		t.Helper()
		if err := os.WriteFile(config, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	is := func(token string) error {
		_, err := with(token).AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		return err
	}
	rewrite(bytes.Replace(text, []byte("[quaymaster]"), []byte("[harbour]"), 1))
	harbour := provider.token(t, provider.key, provider.URL, "harbour", later)
	eventually(t, "the new audience", func() error { return is(harbour) })
	if err := is(provider.token(t, provider.key, provider.URL, "quaymaster", later.Add(time.Second))); !apierrors.IsUnauthorized(err) {
		t.Errorf("the old audience: %v", err)
	}
	rewrite([]byte("nonsense"))
	eventually(t, "the complaint", func() error {
		if !strings.Contains(logged.String(), "the authentication configuration stays as it was") {
			return errors.New("nothing is logged")
		}
		return nil
	})
	if err := is(provider.token(t, provider.key, provider.URL, "harbour", later.Add(time.Second))); err != nil {
		t.Errorf("with a broken file: %v", err)
	}
}

// logBuffer is a log that a test may read while it is written.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func TestAuthenticationConfigIsChecked(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"unknown field": {"apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwts: []", `unknown field "jwts"`},
		"another kind":  {"apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: []", "not an AuthenticationConfiguration"},
		"no https":      {"apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt: [{issuer: {url: 'http://x', audiences: [a]}, claimMappings: {username: {claim: sub, prefix: ''}}}]", "URL scheme must be https"},
		"our issuer":    {"apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt: [{issuer: {url: 'https://kubernetes.default.svc.cluster.local', audiences: [a]}, claimMappings: {username: {claim: sub, prefix: ''}}}]", "URL must not overlap with disallowed issuers"},
		"anonymous":     {"apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {enabled: true}", "anonymous: Forbidden: only /healthz, /livez, /readyz are open to everyone"},
		"nothing":       {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := writeTemp(t, "authentication.yaml", test.text)
			_, err := newServer(t, func(o *apiserver.Options) { o.AuthenticationConfig = path })
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
