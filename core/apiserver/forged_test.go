package apiserver_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gopkg.in/go-jose/go-jose.v2"
	"gopkg.in/go-jose/go-jose.v2/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// readKey reads one of the server's own keys: who forges has none, but what is
// signed well and says something else must not pass either.
func readKey(t *testing.T, dir, name string) *ecdsa.PrivateKey {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	key, err := keyutil.ParsePrivateKeyPEM(data)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*ecdsa.PrivateKey)
}

// who is the user of a request with the headers, or the status that it gets.
func who(t *testing.T, client *http.Client, c *cluster, headers map[string]string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.URL()+"/apis/authentication.k8s.io/v1/selfsubjectreviews",
		strings.NewReader(`{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var review authenticationv1.SelfSubjectReview
	if response.StatusCode == http.StatusCreated && json.Unmarshal(body, &review) == nil {
		return response.StatusCode, review.Status.UserInfo.Username
	}
	return response.StatusCode, string(body)
}

func TestForgedTokens(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	c := start(t, func(o *apiserver.Options) { o.Dir, o.Listener = dir, listen(t) })
	ctx := t.Context()
	client := plain(t, c)
	apply(t, c, `
{apiVersion: v1, kind: ServiceAccount, metadata: {name: bot, namespace: default}}
---
{apiVersion: v1, kind: Pod, metadata: {name: bound, namespace: default}, spec: {serviceAccountName: bot, containers: [{name: c, image: i}]}}
---
{apiVersion: v1, kind: Secret, metadata: {name: bound, namespace: default}}`)
	request := func(account string, change func(*authenticationv1.TokenRequestSpec)) string {
		t.Helper()
		r := &authenticationv1.TokenRequest{}
		if change != nil {
			change(&r.Spec)
		}
		made, err := c.client.CoreV1().ServiceAccounts("default").CreateToken(ctx, account, r, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return made.Status.Token
	}
	status := func(token string) int {
		t.Helper()
		s, _ := who(t, client, c, map[string]string{"Authorization": "Bearer " + token})
		return s
	}
	good := request("bot", nil)
	if s := status(good); s != http.StatusCreated {
		t.Fatalf("a good token: %d", s)
	}
	parsed, err := jwt.ParseSigned(good)
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{}
	if err := parsed.UnsafeClaimsWithoutVerification(&claims); err != nil {
		t.Fatal(err)
	}
	key, kid := readKey(t, dir, "serviceaccount.key"), parsed.Headers[0].KeyID
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(key *ecdsa.PrivateKey, change func(map[string]any)) string {
		t.Helper()
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		changed := maps.Clone(claims)
		change(changed)
		text, err := jwt.Signed(signer).Claims(changed).CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	same := func(map[string]any) {}
	if s := status(sign(key, same)); s != http.StatusCreated {
		t.Fatalf("the same claims, signed again: %d", s)
	}
	encode := base64.RawURLEncoding.EncodeToString
	parts := strings.Split(good, ".")
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	confused := encode([]byte(`{"alg":"HS256","kid":"`+kid+`"}`)) + "." + parts[1]
	mac := hmac.New(sha256.New, public)
	mac.Write([]byte(confused))
	within := func(name string, change func(map[string]any)) func(map[string]any) {
		return func(all map[string]any) {
			inner := maps.Clone(all["kubernetes.io"].(map[string]any))
			part, _ := inner[name].(map[string]any)
			if part = maps.Clone(part); part == nil {
				part = map[string]any{}
			}
			change(part)
			inner[name] = part
			all["kubernetes.io"] = inner
		}
	}
	for name, token := range map[string]string{
		"without a signature":           parts[0] + "." + parts[1] + ".",
		"with another's signature":      parts[0] + "." + parts[1] + "." + encode(make([]byte, 64)),
		"of two parts":                  parts[0] + "." + parts[1],
		"of air":                        "...",
		"of 100,000 dots":               strings.Repeat(".", 100_000),
		"with other claims":             parts[0] + "." + encode([]byte(`{"iss":"https://kubernetes.default.svc.cluster.local"}`)) + "." + parts[2],
		"alg none":                      encode([]byte(`{"alg":"none","kid":"`+kid+`"}`)) + "." + parts[1] + ".",
		"alg None, with a signature":    encode([]byte(`{"alg":"None"}`)) + "." + parts[1] + "." + parts[2],
		"HMAC with the public key":      confused + "." + encode(mac.Sum(nil)),
		"by another key of the same id": sign(other, same),
		"of another issuer":             sign(key, func(m map[string]any) { m["iss"] = "https://example.com" }),
		"of no issuer":                  sign(key, func(m map[string]any) { delete(m, "iss") }),
		"for another audience":          sign(key, func(m map[string]any) { m["aud"] = []string{"other"} }),
		"asked for another audience":    request("bot", func(s *authenticationv1.TokenRequestSpec) { s.Audiences = []string{"other"} }),
		"expired":                       sign(key, func(m map[string]any) { m["exp"] = time.Now().Add(-time.Hour).Unix() }),
		"not yet valid":                 sign(key, func(m map[string]any) { m["nbf"] = time.Now().Add(time.Hour).Unix() }),
		"of another account's uid":      sign(key, within("serviceaccount", func(m map[string]any) { m["uid"] = "1" })),
		"of an account that is not": sign(key, func(m map[string]any) {
			within("serviceaccount", func(m map[string]any) { m["name"] = "nobody" })(m)
			m["sub"] = "system:serviceaccount:default:nobody"
		}),
		"bound to a pod that is not": sign(key, within("pod", func(m map[string]any) { m["name"], m["uid"] = "none", "1" })),
	} {
		if s := status(token); s != http.StatusUnauthorized {
			t.Errorf("a token %s: %d", name, s)
		}
	}
	if s, _ := who(t, client, c, map[string]string{"Authorization": "Basic YWRtaW46YWRtaW4="}); s != http.StatusUnauthorized {
		t.Errorf("a password: %d", s)
	}
	// What a token is bound to goes: so does the token, once it is looked at again.
	bind := func(kind, name string) string {
		return request("bot", func(s *authenticationv1.TokenRequestSpec) {
			s.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: kind, Name: name}
		})
	}
	toPod, toSecret := bind("Pod", "bound"), bind("Secret", "bound")
	zero := metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}
	for _, step := range []struct {
		what, token string
		end         func() error
	}{
		{"its pod", toPod, func() error { return c.client.CoreV1().Pods("default").Delete(ctx, "bound", zero) }},
		{"its secret", toSecret, func() error { return c.client.CoreV1().Secrets("default").Delete(ctx, "bound", zero) }},
		{"its account, which came again", good, func() error {
			if err := c.client.CoreV1().ServiceAccounts("default").Delete(ctx, "bot", zero); err != nil {
				return err
			}
			return second(c.client.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "bot"}}, metav1.CreateOptions{}))
		}},
	} {
		if s := status(step.token); s != http.StatusCreated {
			t.Errorf("before the end of %s: %d", step.what, s)
		}
		if err := step.end(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the end of a token after "+step.what, func() error {
			if s := status(step.token); s != http.StatusUnauthorized {
				return fmt.Errorf("status %d", s)
			}
			return nil
		})
	}
}

func TestForgedCertificates(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	c := start(t, func(o *apiserver.Options) { o.Dir, o.Listener = dir, listen(t) })
	authorities, err := cert.ParseCertsPEM(c.CAPEM())
	if err != nil {
		t.Fatal(err)
	}
	ca, caKey := authorities[0], readKey(t, dir, "ca.key")
	now := time.Now()
	template := func(change func(*x509.Certificate)) *x509.Certificate {
		made := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes-admin", Organization: []string{"system:masters"}},
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		if change != nil {
			change(made)
		}
		return made
	}
	issue := func(made, parent *x509.Certificate, parentKey *ecdsa.PrivateKey, chain ...[]byte) (tls.Certificate, *ecdsa.PrivateKey) {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if parent == nil { // itself
			parent, parentKey = made, key
		}
		der, err := x509.CreateCertificate(rand.Reader, made, parent, key.Public(), parentKey)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: append([][]byte{der}, chain...), PrivateKey: key}, key
	}
	with := func(certificate tls.Certificate) int {
		t.Helper()
		client := plain(t, c)
		client.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{certificate}
		status, _ := who(t, client, c, nil)
		return status
	}
	good, goodKey := issue(template(nil), ca, caKey)
	if s := with(good); s != http.StatusCreated {
		t.Fatalf("a good certificate: %d", s)
	}
	leaf, err := x509.ParseCertificate(good.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	of := func(certificate tls.Certificate, _ *ecdsa.PrivateKey) tls.Certificate { return certificate }
	front, err := os.ReadFile(filepath.Join(dir, "front-proxy-ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	fronts, err := cert.ParseCertsPEM(front)
	if err != nil {
		t.Fatal(err)
	}
	for name, forged := range map[string]tls.Certificate{
		"signed by itself":                of(issue(template(nil), nil, nil)),
		"signed by itself as the CA":      of(issue(template(func(m *x509.Certificate) { m.Subject, m.IsCA, m.BasicConstraintsValid = ca.Subject, true, true }), nil, nil)),
		"of a client that signs":          of(issue(template(nil), leaf, goodKey, good.Certificate[0])),
		"expired":                         of(issue(template(func(m *x509.Certificate) { m.NotAfter = now.Add(-time.Minute) }), ca, caKey)),
		"not yet valid":                   of(issue(template(func(m *x509.Certificate) { m.NotBefore = now.Add(time.Minute) }), ca, caKey)),
		"for servers only":                of(issue(template(func(m *x509.Certificate) { m.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), ca, caKey)),
		"of the front proxy's authority":  of(issue(template(nil), fronts[0], readKey(t, dir, "front-proxy-ca.key"))),
		"without a name":                  of(issue(template(func(m *x509.Certificate) { m.Subject = pkix.Name{} }), ca, caKey)),
		"with the CA's in place of proof": {Certificate: [][]byte{good.Certificate[0], ca.Raw}, PrivateKey: forgedKey(t)},
	} {
		if name == "with the CA's in place of proof" { // the handshake proves the key
			client := plain(t, c)
			client.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{forged}
			if response, err := client.Get(c.URL() + "/version"); err == nil {
				response.Body.Close()
				t.Errorf("a certificate without its key: %s", response.Status)
			}
			continue
		}
		if s := with(forged); s != http.StatusUnauthorized {
			t.Errorf("a certificate %s: %d", name, s)
		}
	}
}

func forgedKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestHeadersNameNobody: nobody becomes someone else by headers, but by the right
// to impersonate.
func TestHeadersNameNobody(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
	token, err := c.client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const account = "system:serviceaccount:default:default"
	client := plain(t, c)
	for name, test := range map[string]struct {
		headers map[string]string
		status  int
		want    string
	}{
		"nothing":                       {nil, 201, account},
		"the front proxy's headers":     {map[string]string{"X-Remote-User": "admin", "X-Remote-Group": "system:masters", "X-Remote-Extra-A": "b", "X-Remote-Uid": "1"}, 201, account},
		"who it was forwarded for":      {map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-User": "admin", "X-Real-Ip": "::1"}, 201, account},
		"another user":                  {map[string]string{"Impersonate-User": "admin"}, 403, "cannot impersonate"},
		"itself":                        {map[string]string{"Impersonate-User": account}, 403, "cannot impersonate"},
		"a group":                       {map[string]string{"Impersonate-User": "x", "Impersonate-Group": "system:masters"}, 403, "cannot impersonate"},
		"a group without a user":        {map[string]string{"Impersonate-Group": "system:masters"}, 400, "without impersonating a user name"},
		"extra without a user":          {map[string]string{"Impersonate-Extra-Scopes": "a"}, 400, "without impersonating a user name"},
		"a uid without a user":          {map[string]string{"Impersonate-Uid": "a"}, 400, "without impersonating a user name"},
		"a method that is another's":    {map[string]string{"X-Http-Method-Override": "DELETE"}, 201, account},
		"a host that is another's":      {map[string]string{"Host": "quaymaster.internal"}, 201, account},
		"a trace that is none":          {map[string]string{"Traceparent": strings.Repeat("0", 10_000)}, 201, account},
		"an audit id of 10,000 letters": {map[string]string{"Audit-Id": strings.Repeat("a", 10_000)}, 201, account},
	} {
		headers := map[string]string{"Authorization": "Bearer " + token.Status.Token}
		maps.Copy(headers, test.headers)
		if status, got := who(t, client, c, headers); status != test.status || !strings.Contains(got, test.want) {
			t.Errorf("%s: %d %q, want %d with %q", name, status, got, test.status, test.want)
		}
	}
	// Without a token headers are worth as little.
	if status, _ := who(t, client, c, map[string]string{"X-Remote-User": "admin", "X-Remote-Group": "system:masters", "Impersonate-User": "admin"}); status != http.StatusUnauthorized {
		t.Errorf("headers alone: %d", status)
	}
}
