package apiserver_test

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/rest"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

func writeTemp(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Request, resources: [{resources: [configmaps]}], verbs: [create]}
- {level: Metadata, resources: [{resources: [secrets]}], verbs: [create, get]}
- {level: Metadata, nonResourceURLs: ["/version"]}
- {level: None}
`

func TestAudit(t *testing.T) {
	log := filepath.Join(t.TempDir(), "audit.log")
	c := start(t, func(o *apiserver.Options) {
		o.Listener = listen(t)
		o.Audit = &apiserver.Audit{Policy: writeTemp(t, "policy.yaml", auditPolicy), Log: log}
	})
	ctx := t.Context()
	jane := clientFor(t, c.RESTConfig(&user.DefaultInfo{Name: "jane"}))
	if _, err := c.client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "m"}, Data: map[string]string{"a": "b"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := clientFor(t, c.https(t)).CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"password": "hunter2"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := jane.CoreV1().Secrets("default").Get(ctx, "s", metav1.GetOptions{}); err == nil {
		t.Error("jane reads a secret")
	}
	anonymous := clientFor(t, &rest.Config{Host: c.URL(), TLSClientConfig: rest.TLSClientConfig{CAData: c.CAPEM()}})
	if _, err := anonymous.Discovery().ServerVersion(); err == nil {
		t.Error("the version is told to everyone")
	}
	c.stop()
	info, err := os.Stat(log)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the log: %v, %v", info.Mode(), err)
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), "hunter2") || strings.Contains(string(data), "aHVudGVyMg==") {
		t.Error("a secret's value is in the log")
	}
	type line struct {
		verb, user, uri, name string
		code                  int32
		body                  bool
	}
	got := map[line]int{}
	for lines := bufio.NewScanner(strings.NewReader(string(data))); lines.Scan(); {
		var e auditv1.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%v in %s", err, lines.Text())
		}
		uri, _, _ := strings.Cut(e.RequestURI, "?")
		name := ""
		if e.ObjectRef != nil {
			name = e.ObjectRef.Name
		}
		got[line{e.Verb, e.User.Username, uri, name, e.ResponseStatus.Code, e.RequestObject != nil}]++
	}
	for _, want := range []line{
		{"create", "system:admin", "/api/v1/namespaces/default/configmaps", "m", 201, true},
		{"create", "kubernetes-admin", "/api/v1/namespaces/default/secrets", "s", 201, false},
		{"get", "jane", "/api/v1/namespaces/default/secrets/s", "s", 403, false},
		{"get", "", "/version", "", 401, false},
	} {
		if got[want] != 1 {
			t.Errorf("%+v is %d times in the log\n%s", want, got[want], data)
		}
	}
}

func TestAuditNeedsBothFiles(t *testing.T) {
	for name, test := range map[string]struct {
		audit apiserver.Audit
		want  string
	}{
		"no log":     {apiserver.Audit{Policy: writeTemp(t, "p", auditPolicy)}, "a policy file and a log file are needed"},
		"no policy":  {apiserver.Audit{Log: "x"}, "a policy file and a log file are needed"},
		"not there":  {apiserver.Audit{Policy: "/nowhere/p", Log: "x"}, "/nowhere/p"},
		"not a rule": {apiserver.Audit{Policy: writeTemp(t, "p", "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Much}]"), Log: "x"}, `Unsupported value: "Much"`},
		"no folder":  {apiserver.Audit{Policy: writeTemp(t, "p", auditPolicy), Log: "/nowhere/audit.log"}, "/nowhere/audit.log"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newServer(t, func(o *apiserver.Options) { o.Audit = &test.audit })
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
