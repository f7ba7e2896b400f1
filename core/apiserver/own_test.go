package apiserver_test

import (
	"context"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/quaymaster/quaymaster/core/api"
	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/apiserver"
)

// TestInvalidFields holds the messages that people read.
func TestInvalidFields(t *testing.T) {
	c := start(t, nil)
	client, err := dynamic.NewForConfig(c.RESTConfig(nil))
	if err != nil {
		t.Fatal(err)
	}
	pods := schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	policies := policyv1alpha1.SchemeGroupVersion.WithResource(policyv1alpha1.Resource)
	profiles := schedulingv1alpha1.SchemeGroupVersion.WithResource(schedulingv1alpha1.Resource)
	for _, test := range []struct {
		resource schema.GroupVersionResource
		object   string
		message  string
	}{
		{pods, `{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, image: i, imagePullPolcy: Always}]}}`,
			`Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.containers[0].imagePullPolcy"`},
		{pods, `{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: []}}`,
			`Pod "a" is invalid: spec.containers: Required value`},
		{pods, `{apiVersion: v1, kind: Pod, metadata: {name: A}, spec: {containers: [{name: c, image: i}]}}`,
			`Pod "A" is invalid: metadata.name: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of`},
		{policies, `{apiVersion: policy.quaymaster.dev/v1alpha1, kind: Policy, metadata: {name: a}, spec: {engine: Wasm, sources: {}}}`,
			`strict decoding error: unknown field "spec.sources"`},
		{policies, `{apiVersion: policy.quaymaster.dev/v1alpha1, kind: Policy, metadata: {name: a}, spec: {engine: Lua, source: {rego: x}}}`,
			`Policy.policy.quaymaster.dev "a" is invalid: spec.engine: Unsupported value: "Lua": supported values: "Rego", "Wasm"`},
		{policies, `{apiVersion: policy.quaymaster.dev/v1alpha1, kind: Policy, metadata: {name: a}, spec: {source: {rego: x}}}`,
			`spec.engine: Required value: name the engine: Wasm or Rego`},
		{policies, `{apiVersion: policy.quaymaster.dev/v1alpha1, kind: Policy, metadata: {name: a}, spec: {engine: Wasm}}`,
			`spec.source: Required value: set one of rego, wasm, file, configMap, oci`},
		{policies, `{apiVersion: policy.quaymaster.dev/v1alpha1, kind: Policy, metadata: {name: a}, spec: {engine: Rego, source: {rego: x, file: z}}}`,
			`spec.source: Forbidden: only one of rego, wasm, file, configMap, oci may be set`},
		{policies, `{apiVersion: policy.quaymaster.dev/v1alpha1, kind: Policy, metadata: {name: a}, spec: {engine: Wasm, source: {rego: x}}}`,
			`spec.source.rego: Forbidden: the engine is Wasm`},
		{policies, `{apiVersion: policy.quaymaster.dev/v1alpha1, kind: Policy, metadata: {name: a}, spec: {engine: Wasm, source: {file: x, digest: "sha256:1"}}}`,
			`spec.source.digest: Invalid value: "sha256:1": must be "sha256:" and 64 lower-case hexadecimal digits`},
		{policies, `{apiVersion: policy.quaymaster.dev/v1alpha1, kind: Policy, metadata: {name: a}, spec: {engine: Wasm, source: {file: x}, extensionPoints: [Filter, Sort, Filter]}}`,
			`[spec.extensionPoints[1]: Unsupported value: "Sort": supported values: "Filter", "Mutate", "Score", "Validate", spec.extensionPoints[2]: Duplicate value: "Filter"]`},
		{policies, `{apiVersion: policy.quaymaster.dev/v1alpha1, kind: Policy, metadata: {name: a}, spec: {engine: Wasm, mode: Canary, source: {oci: {image: "r.example.com/p:v1"}}}}`,
			`[spec.source.oci.image: Invalid value: "r.example.com/p:v1": must be an image with the digest of its manifest, such as "registry.example.com/policies/teams@sha256:…": a tag may change what runs, spec.mode: Unsupported value: "Canary": supported values: "Enforce", "Shadow"]`},
		{policies, `{apiVersion: policy.quaymaster.dev/v1alpha1, kind: Policy, metadata: {name: a}, spec: {engine: Wasm, source: {oci: {layout: x, pullSecret: {namespace: ns}}}}}`,
			`[spec.source.oci: Forbidden: certificateAuthority and pullSecret are for images, spec.source.oci.pullSecret.name: Required value]`},
		{policies, `{apiVersion: policy.quaymaster.dev/v1alpha1, kind: Policy, metadata: {name: a}, spec: {engine: Rego, source: {rego: x}, grants: {network: ["http://a"]}}}`,
			`spec.grants.network[0]: Invalid value: "http://a": must be a host name or address without scheme and port, or "*"`},
		{policies, `{apiVersion: policy.quaymaster.dev/v1alpha1, kind: Policy, metadata: {name: a}, spec: {engine: Wasm, source: {file: x}, grants: {reads: [Pod, pods, pods]}}}`,
			`[spec.grants.reads[0]: Invalid value: "Pod": must be a resource in plural with its group, such as "configmaps" or "deployments.apps", spec.grants.reads[2]: Duplicate value: "pods"]`},
		{policies, `{apiVersion: policy.quaymaster.dev/v1alpha1, kind: Policy, metadata: {name: a}, spec: {engine: Wasm, source: {file: x}, limits: {fuel: 0, memory: "-1", deadline: 0s}}}`,
			`spec.limits.memory: Invalid value: "-1": must be greater than zero`},
		{policies, `{apiVersion: policy.quaymaster.dev/v1alpha1, kind: Policy, metadata: {name: a}, spec: {engine: Wasm, source: {configMap: {name: x, key: k}}, failurePolicy: Panic}}`,
			`spec.source.configMap.namespace: Required value, spec.failurePolicy: Unsupported value: "Panic": supported values: "Fail", "Ignore"`},
		{policies, `{apiVersion: policy.quaymaster.dev/v1alpha1, kind: Policy, metadata: {name: a}, spec: {engine: Rego, source: {rego: x}, match: {rules: [{operations: [READ]}], objectSelector: {matchExpressions: [{key: a, operator: Near}]}}}}`,
			`spec.match.rules[0].operations[0]: Unsupported value: "READ": supported values: "*", "CONNECT", "CREATE", "DELETE", "UPDATE"`},
		{profiles, `{apiVersion: scheduling.quaymaster.dev/v1alpha1, kind: SchedulerProfile, metadata: {name: a}, spec: {plugins: {score: {enabled: [{}]}}}}`,
			`spec.plugins.score.enabled[0]: Required value: set one of name, policy`},
		{profiles, `{apiVersion: scheduling.quaymaster.dev/v1alpha1, kind: SchedulerProfile, metadata: {name: a}, spec: {plugins: {score: {enabled: [{name: a, policy: b}]}}}}`,
			`spec.plugins.score.enabled[0]: Forbidden: only one of name, policy may be set`},
		{profiles, `{apiVersion: scheduling.quaymaster.dev/v1alpha1, kind: SchedulerProfile, metadata: {name: a}, spec: {plugins: {score: {enabled: [{policy: b, weight: 101}]}}}}`,
			`spec.plugins.score.enabled[0].weight: Invalid value: 101: must be between 1 and 100, inclusive`},
		{profiles, `{apiVersion: scheduling.quaymaster.dev/v1alpha1, kind: SchedulerProfile, metadata: {name: a}, spec: {plugins: {filter: {enabled: [{policy: b, weight: 1}, {policy: b}]}}}}`,
			`[spec.plugins.filter.enabled[0].weight: Forbidden: only an enabled score has a weight, spec.plugins.filter.enabled[1]: Duplicate value: "b"]`},
		{profiles, `{apiVersion: scheduling.quaymaster.dev/v1alpha1, kind: SchedulerProfile, metadata: {name: a}, spec: {schedulerName: "A b"}}`,
			`spec.schedulerName: Invalid value: "A b": a lowercase RFC 1123 subdomain must consist of`},
	} {
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(test.object), object); err != nil {
			t.Fatal(err)
		}
		var resource dynamic.ResourceInterface = client.Resource(test.resource)
		if test.resource == pods {
			resource = client.Resource(test.resource).Namespace("default")
		}
		_, err := resource.Create(t.Context(), object, metav1.CreateOptions{FieldValidation: "Strict"})
		if err == nil || !strings.Contains(err.Error(), test.message) || !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) {
			t.Errorf("%s\n got: %v\nwant: %s", test.object, err, test.message)
		}
	}
}

// TestPolicyStatus keeps spec and status apart and counts generations.
func TestPolicyStatus(t *testing.T) {
	c := start(t, nil)
	client, err := api.NewClient(c.RESTConfig(nil))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	p, err := client.Policies.Create(ctx, &policyv1alpha1.Policy{
		ObjectMeta: metav1.ObjectMeta{Name: "a"},
		Spec:       policyv1alpha1.PolicySpec{Engine: policyv1alpha1.EngineRego, Source: policyv1alpha1.PolicySource{Rego: "package a"}},
		Status:     policyv1alpha1.PolicyStatus{ActiveGeneration: 9},
	}, metav1.CreateOptions{})
	if err != nil || p.Generation != 1 || p.Status.ActiveGeneration != 0 {
		t.Fatalf("created with generation %d and a status %+v, %v", p.Generation, p.Status, err)
	}
	p.Status = policyv1alpha1.PolicyStatus{ActiveGeneration: 3, ActiveDigest: "sha256:" + strings.Repeat("ab", 32),
		ExtensionPoints: []policyv1alpha1.ExtensionPoint{"Validate"},
		Conditions:      []metav1.Condition{{Type: "Ready", Status: "True", Reason: "InForce", LastTransitionTime: metav1.Now()}}}
	p.Spec.Source.Rego = "package b"
	if p, err = client.Policies.UpdateStatus(ctx, p, metav1.UpdateOptions{}); err != nil || p.Generation != 1 || p.Spec.Source.Rego != "package a" || p.Status.ActiveGeneration != 3 {
		t.Fatalf("after a status update: %+v, %v", p, err)
	}
	p.Status.ActiveGeneration = 7
	p.Spec.Source.Rego = "package b"
	if p, err = client.Policies.Update(ctx, p, metav1.UpdateOptions{}); err != nil || p.Generation != 2 || p.Status.ActiveGeneration != 3 {
		t.Fatalf("after an update: %+v, %v", p, err)
	}
	raw := string(get(t, c.RESTConfig(nil), "/apis/policy.quaymaster.dev/v1alpha1/policies/a", "application/json;as=Table;v=v1;g=meta.k8s.io"))
	for _, want := range []string{`"name":"Engine"`, `"cells":["a","Rego","Validate","True",3,"sha256:abababababab",0,"Enforce",""`} {
		if !strings.Contains(raw, want) {
			t.Errorf("the table lacks %s: %s", want, raw)
		}
	}
}

func TestDecisions(t *testing.T) {
	c := start(t, func(o *apiserver.Options) {
		o.Decisions = func(_ context.Context, namespace, pod string, view apiserver.DecisionView) (*decisionv1alpha1.Decision, error) {
			if pod != "p" {
				return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, pod)
			}
			message := ""
			if view != apiserver.DecisionNow {
				message = "in " + string(view)
			}
			return &decisionv1alpha1.Decision{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: pod}, Node: "n1", Message: message,
				Nodes: []decisionv1alpha1.NodeVerdict{{Name: "n1", Total: 77}, {Name: "n2", Filter: &decisionv1alpha1.FilterVerdict{Plugin: "TaintToleration", Reason: "node(s) had untolerated taint(s)"}}},
			}, nil
		}
	})
	client, err := api.NewClient(c.RESTConfig(nil))
	if err != nil {
		t.Fatal(err)
	}
	decision, err := client.Decisions("default").Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil || decision.Node != "n1" || len(decision.Nodes) != 2 {
		t.Fatalf("%+v, %v", decision, err)
	}
	if full, err := client.FullDecision(t.Context(), "default", "p"); err != nil || full.Message != "in full" || decision.Message != "" {
		t.Errorf("the subresource full: %+v, %v", full, err)
	}
	if taken, err := client.TakenDecision(t.Context(), "default", "p"); err != nil || taken.Message != "in taken" {
		t.Errorf("the subresource taken: %+v, %v", taken, err)
	}
	if _, err := client.Decisions("default").Get(t.Context(), "q", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("of a pod that is not there: %v", err)
	}
	raw := string(get(t, c.RESTConfig(nil), "/apis/decision.quaymaster.dev/v1alpha1/namespaces/default/decisions/p", "application/json;as=Table;v=v1;g=meta.k8s.io"))
	for _, want := range []string{`"cells":["n1","*",77,"",""]`, `"cells":["n2","",0,"TaintToleration","node(s) had untolerated taint(s)"]`} {
		if !strings.Contains(raw, want) {
			t.Errorf("the table lacks %s: %s", want, raw)
		}
	}
}
