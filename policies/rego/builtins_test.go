package rego

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
)

type store struct{ fails error }

func (store) Revision() int64 { return 1 }

func (s store) Get(_ context.Context, revision int64, resource schema.GroupResource, namespace, name string) (runtime.Object, error) {
	if s.fails != nil {
		return nil, s.fails
	}
	if name != "flags" {
		return nil, apierrors.NewNotFound(resource, name)
	}
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: map[string]string{"closed": fmt.Sprint(revision == 7)}}, nil
}

func validate(t *testing.T, p policies.Program, c policies.Cycle) (string, error) {
	t.Helper()
	s := p.Session()
	defer s.Close()
	r := &admissionv1.AdmissionRequest{UID: "u", Operation: admissionv1.Create}
	r.Object.Raw = []byte("{}")
	answer, _, err := s.Admit(context.Background(), c, policyv1alpha1.ExtensionValidate, r)
	if err != nil || answer.Allowed {
		return "", err
	}
	return answer.Result.Message, nil
}

// Reads are of the decision's revision, and of what is granted.
func TestReads(t *testing.T) {
	source := func(resource, name string) []byte {
		return fmt.Appendf(nil, "package p\n\ndeny contains \"closed\" if quaymaster.get(%q, \"ns\", %q).data.closed == \"true\"\n", resource, name)
	}
	grants := &policyv1alpha1.PolicyGrants{Reads: []string{"configmaps"}}
	p := loadRego(t, source("configmaps", "flags"), "", grants)
	if p.Static() {
		t.Error("a policy that reads is static")
	}
	for revision, want := range map[int64]string{7: "closed", 8: ""} {
		if got, err := validate(t, p, policies.Cycle{Revision: revision, Reads: store{}}); err != nil || got != want {
			t.Errorf("at %d: %q, %v", revision, got, err)
		}
	}
	if got, err := validate(t, loadRego(t, source("configmaps", "none"), "", grants), policies.Cycle{Revision: 7, Reads: store{}}); err != nil || got != "" {
		t.Errorf("what is not there: %q, %v", got, err)
	}
	_, err := validate(t, p, policies.Cycle{Reads: store{fails: errors.New("compacted")}})
	if !errors.Is(err, policies.ErrRead) || !strings.Contains(err.Error(), "configmaps ns/flags at revision 0: compacted") {
		t.Errorf("a store that fails: %v", err)
	}
	_, err = New().Load(context.Background(), policies.Load{Policy: "test", Source: source("secrets", "flags"), Grants: grants})
	if err == nil || !strings.Contains(err.Error(), `quaymaster.get of "secrets" is not granted: name it in spec.grants.reads`) {
		t.Errorf("what is not granted: %v", err)
	}
	_, err = New().Load(context.Background(), policies.Load{Policy: "test", Source: source("secrets", "flags"), Grants: &policyv1alpha1.PolicyGrants{}})
	if err == nil || !strings.HasPrefix(err.Error(), "Imports: test.rego calls quaymaster.get, and the policy may read nothing") {
		t.Errorf("nothing granted: %v", err)
	}
}

// The network is there for the hosts that are granted, and for no other.
func TestNetwork(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"open":false}`)) }))
	defer server.Close()
	source := fmt.Appendf(nil, "package p\n\ndeny contains \"closed\" if not http.send({\"method\": \"GET\", \"url\": %q, \"force_json_decode\": true}).body.open\n", server.URL)
	load := func(hosts ...string) (policies.Program, error) {
		return New().Load(context.Background(), policies.Load{Policy: "test", Source: source, Grants: &policyv1alpha1.PolicyGrants{Network: hosts}})
	}
	if _, err := load(); err == nil || !strings.Contains(err.Error(), "unsafe built-in function calls in expression: http.send") {
		t.Errorf("nothing granted: %v", err)
	}
	before := ""
	for _, hosts := range [][]string{{"127.0.0.1"}, {"*"}} {
		p, err := load(hosts...)
		if err != nil {
			t.Fatal(err)
		}
		if before, err = validate(t, p, policies.Cycle{}); err != nil || before != "closed" {
			t.Errorf("%v: %q, %v", hosts, before, err)
		}
		if s, ok := p.(policies.Stateful); !ok || !s.Stateful() {
			t.Error("what the network answers is taken for repeatable")
		}
	}
	reached := fmt.Appendf(nil, "package p\n\ndeny contains \"reached\" if http.send({\"method\": \"GET\", \"url\": %q, \"raise_error\": false}).status_code == 200\n", server.URL)
	p, err := New().Load(context.Background(), policies.Load{Policy: "test", Source: reached, Grants: &policyv1alpha1.PolicyGrants{Network: []string{"example.com"}}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := validate(t, p, policies.Cycle{}); got == "reached" {
		t.Errorf("a host that is not granted was reached: %v", err)
	}
	_, err = New().Load(context.Background(), policies.Load{Policy: "test", Source: []byte("package p\n\ndeny contains opa.runtime().env.HOME\n"),
		Grants: &policyv1alpha1.PolicyGrants{Network: []string{"*"}}})
	if err == nil || !strings.Contains(err.Error(), "opa.runtime") {
		t.Errorf("the server's environment: %v", err)
	}
}
