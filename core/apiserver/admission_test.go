package apiserver_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/util/cert"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// makePod makes a pod through admission and returns what was stored.
func (c *cluster) makePod(t *testing.T, namespace, name string, change func(*corev1.Pod)) (*corev1.Pod, error) {
	t.Helper()
	pod := samplePod(name)
	pod.Namespace = namespace
	if change != nil {
		change(pod)
	}
	return c.client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{})
}

func (c *cluster) makeNamespace(t *testing.T, name string, labels, annotations map[string]string) {
	t.Helper()
	if _, err := c.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the service account of "+name, func() error {
		_, err := c.client.CoreV1().ServiceAccounts(name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
}

func TestAdmissionPluginsAreUpstreams(t *testing.T) {
	// What kube-apiserver 1.36 has by default, without those of what is not served (those of
	// pod groups do nothing without their feature gate), and NodeRestriction.
	want := []string{"NamespaceLifecycle", "LimitRanger", "ServiceAccount", "NodeRestriction", "TaintNodesByCondition", "PodSecurity", "Priority",
		"DefaultTolerationSeconds", "DefaultStorageClass", "StorageObjectInUseProtection", "PodGroupProtection", "PersistentVolumeClaimResize", "RuntimeClass",
		"CertificateApproval", "CertificateSigning", "CertificateSubjectRestriction", "DefaultIngressClass", "PodTopologyLabels", "PodGroupWorkloadExists", "PodResizeValidator",
		"MutatingAdmissionPolicy", "MutatingAdmissionWebhook", "ValidatingAdmissionPolicy", "ValidatingAdmissionWebhook", "ResourceQuota"}
	if standard, _ := apiserver.AdmissionPlugins(); !slices.Equal(standard, want) {
		t.Errorf("got  %v\nwant %v", standard, want)
	}
	_, err := newServer(t, func(o *apiserver.Options) { o.EnableAdmission = []string{"NoSuch"} })
	if err == nil || !strings.Contains(err.Error(), `there is no plugin "NoSuch"; there are NamespaceLifecycle, `) {
		t.Errorf("an unknown plugin: %v", err)
	}
}

// TestAdmissionPlugins sees the work of each plugin that changes or refuses something.
func TestAdmissionPlugins(t *testing.T) {
	c := start(t, func(o *apiserver.Options) {
		o.EnableAdmission = []string{"PodTolerationRestriction", "ExtendedResourceToleration"}
	})
	ctx := t.Context()
	always := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	forbidden := func(t *testing.T, err error, part string) {
		t.Helper()
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), part) {
			t.Errorf("got %v, want a 403 with %q", err, part)
		}
	}
	t.Run("PodSecurity", func(t *testing.T) {
		c.makeNamespace(t, "guarded", map[string]string{"pod-security.kubernetes.io/enforce": "baseline"}, nil)
		_, err := c.makePod(t, "guarded", "privileged", func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: new(true)}
		})
		forbidden(t, err, `violates PodSecurity "baseline:latest": privileged`)
		_, err = c.makePod(t, "guarded", "plain", nil)
		always(t, err)
	})
	t.Run("PodTolerationRestriction", func(t *testing.T) {
		c.makeNamespace(t, "tolerant", nil, map[string]string{"scheduler.alpha.kubernetes.io/defaultTolerations": `[{"key":"k","operator":"Exists"}]`,
			"scheduler.alpha.kubernetes.io/tolerationsWhitelist": `[{"key":"k","operator":"Exists"},{"key":"node.kubernetes.io/memory-pressure","operator":"Exists"},{"key":"node.kubernetes.io/not-ready","operator":"Exists"},{"key":"node.kubernetes.io/unreachable","operator":"Exists"}]`})
		pod, err := c.makePod(t, "tolerant", "p", nil)
		always(t, err)
		if !slices.ContainsFunc(pod.Spec.Tolerations, func(t corev1.Toleration) bool { return t.Key == "k" }) {
			t.Errorf("tolerations %v", pod.Spec.Tolerations)
		}
		_, err = c.makePod(t, "tolerant", "q", func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Key: "other", Operator: corev1.TolerationOpExists}}
		})
		if err == nil || !strings.Contains(err.Error(), "conflict with its namespace whitelist") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("ExtendedResourceToleration", func(t *testing.T) {
		pod, err := c.makePod(t, "default", "gpu", func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"example.com/gpu": resource.MustParse("1")}
		})
		always(t, err)
		if !slices.ContainsFunc(pod.Spec.Tolerations, func(t corev1.Toleration) bool { return t.Key == "example.com/gpu" }) {
			t.Errorf("tolerations %v", pod.Spec.Tolerations)
		}
	})
	t.Run("DefaultStorageClass and StorageObjectInUseProtection", func(t *testing.T) {
		apply(t, c, `{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: usual, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}, provisioner: example.com/disk}`)
		eventually(t, "the default class", func() error {
			claims := c.client.CoreV1().PersistentVolumeClaims("default")
			claim, err := claims.Create(ctx, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{GenerateName: "c-"}, Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
			}}, metav1.CreateOptions{})
			always(t, err)
			if !slices.Contains(claim.Finalizers, "kubernetes.io/pvc-protection") {
				t.Errorf("finalizers %v", claim.Finalizers)
			}
			always(t, claims.Delete(ctx, claim.Name, metav1.DeleteOptions{}))
			eventually(t, "the end of a claim that nothing uses", func() error {
				if _, err := claims.Get(ctx, claim.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
					return fmt.Errorf("it is there: %w", err)
				}
				return nil
			})
			if claim.Spec.StorageClassName == nil || *claim.Spec.StorageClassName != "usual" {
				return errors.New("the claim has none")
			}
			return nil
		})
	})
	t.Run("LimitRanger", func(t *testing.T) {
		c.makeNamespace(t, "ranged", nil, nil)
		apply(t, c, `{apiVersion: v1, kind: LimitRange, metadata: {name: r, namespace: ranged}, spec: {limits: [{type: Container, default: {cpu: 100m}, max: {cpu: "1"}}]}}`)
		eventually(t, "the limit range", func() error {
			pod, err := c.makePod(t, "ranged", "", func(p *corev1.Pod) {
				p.GenerateName = "p-"
				p.Spec.Containers[0].Resources = corev1.ResourceRequirements{}
			})
			always(t, err)
			if pod.Spec.Containers[0].Resources.Limits.Cpu().String() != "100m" {
				return errors.New("no default limit")
			}
			return nil
		})
		_, err := c.makePod(t, "ranged", "big", func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}
		})
		forbidden(t, err, "maximum cpu usage per Container is 1, but limit is 2")
	})
}

func TestResourceQuota(t *testing.T) {
	c := start(t, nil)
	// The first quota starts upstream's controller, which counts all of them once
	// more: a pod that was charged and is not stored yet would be given back.
	c.makeNamespace(t, "first", nil, nil)
	first := c.client.CoreV1().ResourceQuotas("first")
	if _, err := first.Create(t.Context(), &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{
		corev1.ResourcePods: resource.MustParse("1"),
	}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first quota's usage", func() error {
		q, err := first.Get(t.Context(), "q", metav1.GetOptions{})
		if err == nil && len(q.Status.Used) == 0 {
			err = errors.New("not counted")
		}
		return err
	})
	c.makeNamespace(t, "small", nil, nil)
	quotas := c.client.CoreV1().ResourceQuotas("small")
	if _, err := quotas.Create(t.Context(), &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{
		corev1.ResourcePods: resource.MustParse("2"), "count/configmaps": resource.MustParse("3"),
	}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	used := func(pods, maps string) {
		t.Helper()
		eventually(t, "the usage", func() error {
			q, err := quotas.Get(t.Context(), "q", metav1.GetOptions{})
			if err != nil {
				return err
			}
			got := [2]string{q.Status.Used.Pods().String(), func() string { n := q.Status.Used["count/configmaps"]; return n.String() }()}
			if got != [2]string{pods, maps} {
				return fmt.Errorf("used %v, want %s pods and %s maps", got, pods, maps)
			}
			return nil
		})
	}
	used("0", "1") // the root certificate
	// The controller may write the quota between a creation's reading and charging it: a client tries again.
	mustMake := func(name string) {
		t.Helper()
		eventually(t, "pod "+name, func() error {
			_, err := c.makePod(t, "small", name, nil)
			if err != nil && !apierrors.IsConflict(err) {
				t.Fatal(err)
			}
			return err
		})
	}
	mustMake("a")
	mustMake("b")
	used("2", "1")
	var err error
	eventually(t, "the answer to a third pod", func() error {
		if _, err = c.makePod(t, "small", "c", nil); apierrors.IsConflict(err) {
			return err
		}
		return nil
	})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2") {
		t.Errorf("a third pod: %v", err)
	}
	// The controller gives back what was deleted.
	if err := c.client.CoreV1().Pods("small").Delete(t.Context(), "a", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
	used("1", "1")
	eventually(t, "room for pod c", func() error { // admission reads the quota as its informer has it
		_, err := c.makePod(t, "small", "c", nil)
		if err != nil && !apierrors.IsConflict(err) && !apierrors.IsForbidden(err) {
			t.Fatal(err)
		}
		return err
	})
}

// hook serves admission webhooks with a certificate of its own.
type hook struct {
	*httptest.Server
	caPEM []byte
}

func newHook(t *testing.T, answer func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse) *hook {
	t.Helper()
	h := &hook{Server: httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		review.Response = answer(review.Request)
		review.Response.UID = review.Request.UID
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(review)
	}))}
	t.Cleanup(h.Close)
	var err error
	if h.caPEM, err = cert.EncodeCertificates(h.Certificate()); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *hook) config() admissionregistrationv1.WebhookClientConfig {
	return admissionregistrationv1.WebhookClientConfig{URL: &h.URL, CABundle: h.caPEM}
}

var configMapRules = []admissionregistrationv1.RuleWithOperations{{
	Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
	Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
}}

func TestWebhooks(t *testing.T) {
	c := start(t, nil)
	ctx := t.Context()
	none := admissionregistrationv1.SideEffectClassNone
	mutating := newHook(t, func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		jsonPatch := admissionv1.PatchTypeJSONPatch
		return &admissionv1.AdmissionResponse{Allowed: true, PatchType: &jsonPatch, Patch: []byte(`[{"op":"add","path":"/data","value":{"by":"webhook"}}]`), Warnings: []string{"mutated " + r.Name}}
	})
	validating := newHook(t, func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		var m corev1.ConfigMap
		if err := json.Unmarshal(r.Object.Raw, &m); err != nil || m.Data["by"] != "webhook" {
			return &admissionv1.AdmissionResponse{Result: &metav1.Status{Message: fmt.Sprintf("not mutated before: %v %v", m.Data, err)}}
		}
		return &admissionv1.AdmissionResponse{Allowed: r.Name != "bad", Result: &metav1.Status{Message: "no bad ones", Code: http.StatusTeapot}}
	})
	registration := c.client.AdmissionregistrationV1()
	if _, err := registration.MutatingWebhookConfigurations().Create(ctx, &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "m"},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{Name: "m.example.com", ClientConfig: mutating.config(), Rules: configMapRules, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
			MatchConditions: []admissionregistrationv1.MatchCondition{{Name: "not-skipped", Expression: `object.metadata.name != "skipped"`}}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := registration.ValidatingWebhookConfigurations().Create(ctx, &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "v"},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{{Name: "v.example.com", ClientConfig: validating.config(), Rules: configMapRules, SideEffects: &none, AdmissionReviewVersions: []string{"v1"}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	maps := c.client.CoreV1().ConfigMaps("default")
	create := func(name string, options metav1.CreateOptions) (*corev1.ConfigMap, error) {
		return maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, options)
	}
	eventually(t, "both webhooks", func() error {
		m, err := create("good", metav1.CreateOptions{DryRun: []string{"All"}})
		if err != nil || m.Data["by"] != "webhook" {
			return fmt.Errorf("%v, %w", m.Data, err)
		}
		if _, err := create("bad", metav1.CreateOptions{DryRun: []string{"All"}}); err == nil {
			return errors.New("a bad one is admitted")
		}
		return nil
	})
	_, err := create("bad", metav1.CreateOptions{})
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code != http.StatusTeapot || status.Status().Message != `admission webhook "v.example.com" denied the request: no bad ones` {
		t.Errorf("a bad one: %v", err)
	}
	if _, err := create("skipped", metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "not mutated before") {
		t.Errorf("one that the condition leaves out: %v", err)
	}
	// Direct takes the same way.
	made, err := c.Direct(nil).Create(ctx, corev1.SchemeGroupVersion.WithResource("configmaps"), "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "direct"}})
	if err != nil || made.(*corev1.ConfigMap).Data["by"] != "webhook" {
		t.Errorf("direct: %v, %v", made, err)
	}
	// A webhook that is gone refuses by its failure policy.
	mutating.Close()
	if _, err := create("late", metav1.CreateOptions{}); !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), `failed calling webhook "m.example.com"`) {
		t.Errorf("without the webhook: %v", err)
	}
	if _, err := registration.MutatingWebhookConfigurations().Patch(ctx, "m", types.JSONPatchType, []byte(`[{"op":"replace","path":"/webhooks/0/failurePolicy","value":"Ignore"}]`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the changed failure policy", func() error {
		if _, err := create("late", metav1.CreateOptions{DryRun: []string{"All"}}); err == nil || !strings.Contains(err.Error(), "not mutated before") {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
}

func TestAdmissionPolicies(t *testing.T) {
	c := start(t, nil)
	ctx := t.Context()
	apply(t, c, `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: few}
spec:
  failurePolicy: Fail
  paramKind: {apiVersion: v1, kind: ConfigMap}
  matchConstraints: {resourceRules: [{operations: [CREATE], apiGroups: [apps], apiVersions: [v1], resources: [deployments]}]}
  validations: [{expression: "object.spec.replicas <= int(params.data.most)", messageExpression: "'at most ' + params.data.most"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: few}
spec: {policyName: few, paramRef: {name: most, namespace: default, parameterNotFoundAction: Deny}, validationActions: [Deny]}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: most, namespace: default}, data: {most: "3"}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: mark}
spec:
  reinvocationPolicy: Never
  matchConstraints: {resourceRules: [{operations: [CREATE], apiGroups: [apps], apiVersions: [v1], resources: [deployments]}]}
  mutations: [{patchType: ApplyConfiguration, applyConfiguration: {expression: 'Object{metadata: Object.metadata{labels: {"marked": "yes"}}}'}}]
---
{apiVersion: admissionregistration.k8s.io/v1, kind: MutatingAdmissionPolicyBinding, metadata: {name: mark}, spec: {policyName: mark}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: mistaken}
spec:
  matchConstraints: {resourceRules: [{operations: [CREATE], apiGroups: [apps], apiVersions: [v1], resources: [deployments]}]}
  validations: [{expression: "object.spec.replicas == 'many'"}]
`)
	deployment := func(name string, replicas int) string {
		return fmt.Sprintf(`{apiVersion: apps/v1, kind: Deployment, metadata: {name: %s, namespace: default}, spec: {replicas: %d, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}`, name, replicas)
	}
	eventually(t, "both policies", func() error {
		made, err := tryApply(t, c, deployment("good", 3), true)
		if err != nil {
			return err
		}
		if made.GetLabels()["marked"] != "yes" {
			return fmt.Errorf("labels %v", made.GetLabels())
		}
		if _, err := tryApply(t, c, deployment("many", 4), true); err == nil {
			return errors.New("too many are admitted")
		}
		return nil
	})
	if _, err := tryApply(t, c, deployment("many", 4), false); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), `ValidatingAdmissionPolicy 'few' with binding 'few' denied request: at most 3`) {
		t.Errorf("too many: %v", err)
	}
	eventually(t, "the checked types", func() error {
		policy, err := c.client.AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(ctx, "mistaken", metav1.GetOptions{})
		if err != nil || policy.Status.ObservedGeneration == 0 || policy.Status.TypeChecking == nil {
			return fmt.Errorf("no status yet: %w", err)
		}
		if w := policy.Status.TypeChecking.ExpressionWarnings; len(w) != 1 || !strings.Contains(w[0].Warning, "no matching overload") {
			return fmt.Errorf("warnings %v", w)
		}
		return nil
	})
	// Who may not read the parameters may not make a policy that does.
	apply(t, c, `{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: author}, rules: [{apiGroups: [admissionregistration.k8s.io], resources: ["*"], verbs: ["*"]}]}`)
	apply(t, c, `{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: author}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: author}, subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: jane}]}`)
	jane := clientFor(t, c.RESTConfig(&user.DefaultInfo{Name: "jane"}))
	eventually(t, "the check of the author", func() error {
		few, err := c.client.AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(ctx, "few", metav1.GetOptions{})
		if err != nil {
			return err
		}
		few.ObjectMeta = metav1.ObjectMeta{Name: "hers"}
		if _, err = jane.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(ctx, few, metav1.CreateOptions{}); !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "paramKind") {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
}
