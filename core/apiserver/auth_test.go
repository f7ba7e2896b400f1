package apiserver_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// plain is an HTTP client that trusts the cluster and shows no certificate.
func plain(t testing.TB, c *cluster) *http.Client {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(c.CAPEM()) {
		t.Fatal("no certificate in CAPEM")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestAnonymous(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
	client := plain(t, c)
	for _, test := range []struct {
		path, token string
		status      int
		body        string
	}{
		{"/healthz", "", 200, "ok"},
		{"/livez", "", 200, "ok"},
		{"/readyz", "", 200, "ok"},
		{"/version", "", 401, "Unauthorized"},
		{"/api", "", 401, "Unauthorized"},
		{"/apis/apps/v1", "", 401, "Unauthorized"},
		{"/api/v1/namespaces", "", 401, "Unauthorized"},
		{"/openapi/v2", "", 401, "Unauthorized"},
		{"/metrics", "", 401, "Unauthorized"},
		{"/readyz/../api/v1/secrets", "", 401, ""},
		{"/api/v1/namespaces", "abcdef.0123456789abcdef", 401, "Unauthorized"},
		{"/api/v1/namespaces", "nonsense", 401, "Unauthorized"},
		{"/healthz", "nonsense", 401, "Unauthorized"},
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.URL()+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if test.token != "" {
			request.Header.Set("Authorization", "Bearer "+test.token)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != test.status || !strings.Contains(string(body), test.body) {
			t.Errorf("GET %s with token %q: %s %q, %v; want %d %q", test.path, test.token, response.Status, body, err, test.status, test.body)
		}
	}
}

func TestTLS(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
	address := strings.TrimPrefix(c.URL(), "https://")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.CAPEM())
	for version, ok := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS10, MaxVersion: version})
		if (err == nil) != ok {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			conn.Close()
		}
	}
	for _, name := range []string{"localhost", "127.0.0.1", "kubernetes.default.svc", "10.96.0.1"} {
		conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: roots, ServerName: name})
		if err != nil {
			t.Errorf("as %s: %v", name, err)
			continue
		}
		conn.Close()
	}
}

// TestForeignCertificate shows a client certificate of another authority with
// the same name: it proves nothing.
func TestForeignCertificate(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
	other := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
	config := other.https(t)
	config.Host, config.CAData = c.URL(), c.CAPEM()
	_, err := clientFor(t, config).CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	if !apierrors.IsUnauthorized(err) {
		t.Errorf("with a certificate of another cluster: %v", err)
	}
}

func TestServiceAccountToken(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
	ctx := t.Context()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(600))}}
	token, err := c.client.CoreV1().ServiceAccounts("default").CreateToken(ctx, "default", request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := &rest.Config{Host: c.URL(), BearerToken: token.Status.Token, TLSClientConfig: rest.TLSClientConfig{CAData: c.CAPEM()}}
	client := clientFor(t, config)
	who, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || who.Status.UserInfo.Username != "system:serviceaccount:default:default" {
		t.Fatalf("who am I: %v, %v", who, err)
	}
	_, err = client.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
	want := `configmaps is forbidden: User "system:serviceaccount:default:default" cannot list resource "configmaps" in API group "" in the namespace "default"`
	if !apierrors.IsForbidden(err) || err.Error() != want {
		t.Errorf("without a role: %v", err)
	}
	if _, err := c.client.RbacV1().RoleBindings("default").Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "view"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: "default"}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "with the role view", func() error {
		_, err := client.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
		return err
	})
	if _, err := client.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("secrets with the role view: %v", err)
	}
	review, err := c.client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token.Status.Token}}, metav1.CreateOptions{})
	if err != nil || !review.Status.Authenticated {
		t.Errorf("token review: %v, %v", review.Status, err)
	}
	// A forged signature: the last characters of the token are part of it.
	config.BearerToken = token.Status.Token[:len(token.Status.Token)-4] + "AAAA"
	if _, err := clientFor(t, config).CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("with a forged token: %v", err)
	}
}

func TestEscalation(t *testing.T) {
	c := start(t, nil)
	ctx := t.Context()
	if _, err := c.client.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "role-writer"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{rbacv1.GroupName}, Resources: []string{"*"}, Verbs: []string{"create", "update"}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "role-writer"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "role-writer"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "jane"}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	jane := clientFor(t, c.RESTConfig(&user.DefaultInfo{Name: "jane"}))
	create := func(verbs ...string) error {
		_, err := jane.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "role-"},
			Rules:      []rbacv1.PolicyRule{{APIGroups: []string{rbacv1.GroupName}, Resources: []string{"*"}, Verbs: verbs}},
		}, metav1.CreateOptions{})
		return err
	}
	eventually(t, "a role with the author's own rights", func() error { return create("create") })
	if err := create("delete"); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "attempting to grant RBAC permissions not currently held") {
		t.Errorf("a role with more rights than its author's: %v", err)
	}
	review, err := jane.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "get", Resource: "secrets", Namespace: "default"}},
	}, metav1.CreateOptions{})
	if err != nil || review.Status.Allowed {
		t.Errorf("may jane read secrets: %v, %v", review.Status, err)
	}
}

func TestImpersonation(t *testing.T) {
	c := start(t, nil)
	config := c.RESTConfig(nil)
	config.Impersonate = rest.ImpersonationConfig{UserName: "jane"}
	if _, err := clientFor(t, config).CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("an administrator as jane: %v", err)
	}
}

// TestNodesKeepToThemselves exercises the node authorizer and NodeRestriction.
func TestNodesKeepToThemselves(t *testing.T) {
	c := start(t, nil)
	ctx := t.Context()
	node := func(name string) kubernetes.Interface {
		return clientFor(t, c.RESTConfig(&user.DefaultInfo{Name: "system:node:" + name, Groups: []string{"system:nodes"}}))
	}
	register := func(client kubernetes.Interface, name string, labels map[string]string) error {
		_, err := client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{})
		return err
	}
	a, b := node("a"), node("b")
	if err := errors.Join(register(a, "a", nil), register(b, "b", nil)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"used", "unused"} {
		if _, err := c.client.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	pod, err := c.client.CoreV1().Pods("default").Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "of-a"},
		Spec: corev1.PodSpec{NodeName: "a", Containers: []corev1.Container{{Name: "main", Image: "x"}},
			Volumes: []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "used"}}}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "node a reads the secret of its pod", func() error {
		_, err := a.CoreV1().Secrets("default").Get(ctx, "used", metav1.GetOptions{})
		return err
	})
	pod.Status.Phase = corev1.PodRunning
	if _, err := a.CoreV1().Pods("default").UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		t.Errorf("node a reports on its pod: %v", err)
	}
	for what, err := range map[string]error{
		"node b reads the secret":             second(b.CoreV1().Secrets("default").Get(ctx, "used", metav1.GetOptions{})),
		"node a reads another secret":         second(a.CoreV1().Secrets("default").Get(ctx, "unused", metav1.GetOptions{})),
		"node a lists secrets":                second(a.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{})),
		"node b reports on the pod of node a": second(b.CoreV1().Pods("default").UpdateStatus(ctx, pod, metav1.UpdateOptions{})),
		"node b deletes the pod of node a":    b.CoreV1().Pods("default").Delete(ctx, "of-a", metav1.DeleteOptions{}),
		"node a registers node c":             register(a, "c", nil),
		"a node takes a label of the control": register(node("d"), "d", map[string]string{"node-restriction.kubernetes.io/x": "y"}),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestKeysOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	with := func(o *apiserver.Options) { o.Dir, o.Listener = dir, listen(t) }
	first := start(t, with)
	ca := string(first.CAPEM())
	token, err := first.client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil || token.Status.Token == "" {
		t.Fatal(err)
	}
	first.stop()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 8 { // two authorities, the front proxy, the key of tokens and when its last one ends
		t.Fatalf("%v, %v", entries, err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", entry.Name(), info.Mode(), err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v, %v", info.Mode(), err)
	}
	again := start(t, with)
	if string(again.CAPEM()) != ca {
		t.Error("the second start has another authority")
	}
	again.stop()
	for name, content := range map[string]string{"ca.crt": "nonsense", "ca.key": "nonsense", "front-proxy-ca.crt": "nonsense", "front-proxy-ca.key": "nonsense"} {
		old, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = newServer(t, func(o *apiserver.Options) { o.Dir = dir })
		if err == nil || !strings.Contains(err.Error(), filepath.Join(dir, name)) {
			t.Errorf("with a broken %s: %v", name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), old, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
