package admission_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	upstream "k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/warning"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/quaymaster/quaymaster/core/admission"
	"github.com/quaymaster/quaymaster/core/api"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/rego"
)

const labels = `package labels

deny contains sprintf("%s by %s in %s lacks the label team", [input.request.object.metadata.name, input.request.userInfo.username, input.request.namespace]) if {
	not input.request.object.metadata.labels.team
}

warn contains "no owner" if not input.request.object.metadata.annotations.owner
`

const defaultTeam = `package team

patch contains {"op": "add", "path": "/metadata/labels", "value": {"team": "default"}} if {
	not input.request.object.metadata.labels
}

patch contains {"op": "add", "path": "/spec/containers/0/imagePullPolicy", "value": "Always"} if {
	input.request.object.spec
}
`

// internalPod stands for upstream's internal types: another Go type than the
// version that policies see.
type internalPod struct {
	metav1.TypeMeta
	metav1.ObjectMeta
	Spec corev1.PodSpec
}

func (p *internalPod) DeepCopyObject() runtime.Object {
	q := *p
	q.ObjectMeta = *p.ObjectMeta.DeepCopy()
	q.Spec = *p.Spec.DeepCopy()
	return &q
}

// objects implements admission.ObjectInterfaces.
type objects struct {
	*runtime.Scheme
}

func newObjects(t *testing.T) objects {
	s := runtime.NewScheme()
	if err := corev1.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	s.AddKnownTypeWithName(schema.GroupVersionKind{Version: runtime.APIVersionInternal, Kind: "Pod"}, &internalPod{})
	for _, err := range []error{
		s.AddConversionFunc((*internalPod)(nil), (*corev1.Pod)(nil), func(a, b any, _ conversion.Scope) error {
			in, out := a.(*internalPod), b.(*corev1.Pod)
			out.ObjectMeta, out.Spec = in.ObjectMeta, in.Spec
			return nil
		}),
		s.AddConversionFunc((*corev1.Pod)(nil), (*internalPod)(nil), func(a, b any, _ conversion.Scope) error {
			in, out := a.(*corev1.Pod), b.(*internalPod)
			out.ObjectMeta, out.Spec = in.ObjectMeta, in.Spec
			return nil
		}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.AddTypeDefaultingFunc(&corev1.Pod{}, func(o any) {
		if p := o.(*corev1.Pod); p.Spec.RestartPolicy == "" {
			p.Spec.RestartPolicy = corev1.RestartPolicyAlways
		}
	})
	return objects{s}
}

func (o objects) GetObjectCreater() runtime.ObjectCreater     { return o.Scheme }
func (o objects) GetObjectTyper() runtime.ObjectTyper         { return o.Scheme }
func (o objects) GetObjectDefaulter() runtime.ObjectDefaulter { return o.Scheme }
func (o objects) GetObjectConvertor() runtime.ObjectConvertor { return o.Scheme }
func (o objects) GetEquivalentResourceMapper() runtime.EquivalentResourceMapper {
	return runtime.NewEquivalentResourceRegistry()
}

func chain(t *testing.T, sources map[string]string, match *policyv1alpha1.PolicyMatch) upstream.Interface {
	t.Helper()
	h := policies.NewHost(policies.Options{Engines: map[policyv1alpha1.EngineType]policies.Engine{policyv1alpha1.EngineRego: rego.New()}})
	t.Cleanup(h.Close)
	for name, source := range sources {
		spec := &policyv1alpha1.PolicySpec{Engine: policyv1alpha1.EngineRego, Match: match}
		if _, err := h.Apply(context.Background(), name, spec, []byte(source), ""); err != nil {
			t.Fatal(err)
		}
	}
	store := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	if err := store.Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod", Labels: map[string]string{"env": "prod"}}}); err != nil {
		t.Fatal(err)
	}
	return admission.New(h, corelisters.NewNamespaceLister(store))
}

func attributes(object runtime.Object, namespace string, operation upstream.Operation) upstream.Attributes {
	return upstream.NewAttributesRecord(object, nil, schema.GroupVersionKind{Version: "v1", Kind: "Pod"}, namespace, "p",
		schema.GroupVersionResource{Version: "v1", Resource: "pods"}, "", operation, &metav1.CreateOptions{}, false,
		&user.DefaultInfo{Name: "joe", Groups: []string{"devs"}})
}

func newPod() *internalPod {
	return &internalPod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
}

func TestValidate(t *testing.T) {
	p := chain(t, map[string]string{"require-team": labels}, nil).(upstream.ValidationInterface)
	warnings := &recorder{}
	ctx := warning.WithWarningRecorder(context.Background(), warnings)
	err := p.Validate(ctx, attributes(newPod(), "prod", upstream.Create), newObjects(t))
	const want = `policy "require-team" denied the request: p by joe in prod lacks the label team`
	if !apierrors.IsForbidden(err) || err.Error() != want {
		t.Errorf("error %v, expected %s", err, want)
	}
	if status := err.(apierrors.APIStatus).Status(); status.Code != http.StatusForbidden || status.Details.Kind != "pods" || status.Details.Name != "p" {
		t.Errorf("status %+v", status)
	}
	good := newPod()
	good.Labels = map[string]string{"team": "x"}
	if err := p.Validate(ctx, attributes(good, "prod", upstream.Create), newObjects(t)); err != nil {
		t.Error(err)
	}
	if err := p.Validate(ctx, attributes(newPod(), "prod", upstream.Delete), newObjects(t)); err != nil {
		t.Errorf("delete, which does not match: %v", err)
	}
	if len(warnings.texts) != 2 || warnings.texts[0] != "no owner" {
		t.Errorf("warnings %v", warnings.texts)
	}
}

type recorder struct{ texts []string }

func (r *recorder) AddWarning(_, text string) { r.texts = append(r.texts, text) }

func TestMutate(t *testing.T) {
	p := chain(t, map[string]string{"default-team": defaultTeam}, nil).(upstream.MutationInterface)
	pod := newPod()
	if err := p.Admit(context.Background(), attributes(pod, "prod", upstream.Create), newObjects(t)); err != nil {
		t.Fatal(err)
	}
	if pod.Labels["team"] != "default" || pod.Spec.Containers[0].ImagePullPolicy != corev1.PullAlways || pod.Spec.Containers[0].Image != "i" {
		t.Errorf("pod is %+v", pod)
	}
	if pod.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		t.Error("what the patch left was not defaulted")
	}
}

func TestMutateRefuses(t *testing.T) {
	for _, tt := range []struct{ source, want string }{
		{`package p

patch contains {"op": "replace", "path": "/spec/nothing/here", "value": 1}`, `failed calling policy "p": patch: malformed result`},
		{`package p

patch contains {"op": "add", "path": "/spec/hostNetwork", "value": "yes"}`, "decode the object as the policies' patch leaves it"},
	} {
		p := chain(t, map[string]string{"p": tt.source}, nil).(upstream.MutationInterface)
		pod := newPod()
		err := p.Admit(context.Background(), attributes(pod, "prod", upstream.Create), newObjects(t))
		if !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, expected %s", err, tt.want)
		}
	}
}

func TestNamespaceSelector(t *testing.T) {
	match := &policyv1alpha1.PolicyMatch{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"env": "prod"}}}
	p := chain(t, map[string]string{"require-team": labels}, match).(upstream.ValidationInterface)
	if err := p.Validate(context.Background(), attributes(newPod(), "prod", upstream.Create), newObjects(t)); !apierrors.IsForbidden(err) {
		t.Errorf("in prod: %v", err)
	}
	if err := p.Validate(context.Background(), attributes(newPod(), "other", upstream.Create), newObjects(t)); err != nil {
		t.Errorf("elsewhere: %v", err)
	}
}

// Our own kinds have no internal version; no policy can refuse a Policy.
func TestPoliciesAreOutOfReach(t *testing.T) {
	p := chain(t, map[string]string{"no": "package no\n\ndeny contains \"no\""}, &policyv1alpha1.PolicyMatch{
		Rules: []policyv1alpha1.MatchRule{{APIGroups: []string{"*"}, Resources: []string{"*"}, Operations: []string{"*"}}},
	}).(upstream.ValidationInterface)
	object := &policyv1alpha1.Policy{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
	record := upstream.NewAttributesRecord(object, nil, policyv1alpha1.SchemeGroupVersion.WithKind("Policy"), "", "p",
		policyv1alpha1.SchemeGroupVersion.WithResource("policies"), "", upstream.Delete, &metav1.DeleteOptions{}, false, &user.DefaultInfo{})
	if err := p.Validate(context.Background(), record, objects{api.Scheme}); err != nil {
		t.Error(err)
	}
	if err := p.Validate(context.Background(), attributes(newPod(), "prod", upstream.Connect), newObjects(t)); !apierrors.IsForbidden(err) {
		t.Errorf("a pod: %v", err)
	}
}

// fixed answers every request alike.
type fixed struct{ policies.Admission }

func (fixed) Matches(policyv1alpha1.ExtensionPoint, string, string, string, admissionv1.Operation) bool {
	return true
}

func (fixed) Admit(context.Context, policyv1alpha1.ExtensionPoint, *admissionv1.AdmissionRequest, *corev1.Namespace) (*admissionv1.AdmissionResponse, []policies.Provenance) {
	return &admissionv1.AdmissionResponse{Allowed: true, Patch: []byte(`[{"op":"add","path":"/x","value":1}]`),
		AuditAnnotations: map[string]string{"p/k": "v"}}, nil
}

func TestPatchWithoutObject(t *testing.T) {
	p := admission.New(fixed{}, nil).(upstream.MutationInterface)
	err := p.Admit(context.Background(), attributes(nil, "prod", upstream.Delete), newObjects(t))
	if !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), "attempted to modify the object") {
		t.Errorf("error %v", err)
	}
}
