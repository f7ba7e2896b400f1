package apiserver_test

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
)

// TestJudges: rules tell which operations are to be asked for by requests.
func TestJudges(t *testing.T) {
	c := start(t, nil)
	pods := corev1.SchemeGroupVersion.WithResource("pods")
	judged := func() string {
		return fmt.Sprintf("status %v, deletion %v", c.Judges(pods, "status", admission.Update), c.Judges(pods, "", admission.Delete))
	}
	becomes := func(what, want string) {
		t.Helper()
		eventually(t, what, func() error {
			if got := judged(); got != want {
				return fmt.Errorf("%s, want %s", got, want)
			}
			return nil
		})
	}
	const none = "status false, deletion false"
	becomes("nothing judges", none)
	for _, tt := range []struct{ name, text, want string }{
		{"others' kinds", `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: p}
spec:
  matchConstraints: {resourceRules: [{operations: ["*"], apiGroups: [apps], apiVersions: [v1], resources: ["*"]}, {operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: ["*"]}]}
  validations: [{expression: "true"}]
`, none},
		{"deletions", `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: q}
spec:
  matchConstraints: {resourceRules: [{operations: [DELETE], apiGroups: [""], apiVersions: [v1], resources: [pods]}]}
  validations: [{expression: "true"}]
`, "status false, deletion true"},
		{"any update", `
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: m}
spec:
  reinvocationPolicy: Never
  matchConstraints: {resourceRules: [{operations: [UPDATE], apiGroups: ["*"], apiVersions: ["*"], resources: ["*/*"]}]}
  mutations: [{patchType: ApplyConfiguration, applyConfiguration: {expression: 'Object{}'}}]
`, "status true, deletion true"},
	} {
		apply(t, c, tt.text)
		becomes(tt.name, tt.want)
	}
	registration := c.client.AdmissionregistrationV1()
	if err := registration.MutatingAdmissionPolicies().Delete(t.Context(), "m", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := registration.ValidatingAdmissionPolicies().Delete(t.Context(), "q", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	becomes("nothing judges any more", none)
	apply(t, c, `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: v}
webhooks:
- {name: v.example.com, clientConfig: {url: "https://192.0.2.1"}, sideEffects: None, admissionReviewVersions: [v1],
   rules: [{operations: ["*"], apiGroups: [""], apiVersions: [v1], resources: [pods/status]}]}
`)
	becomes("a webhook judges the status", "status true, deletion false")
}
