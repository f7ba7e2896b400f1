package clients

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/util/cert"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/controller-runtime/pkg/webhook/conversion"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

// Garden is the kind of the operator under test.
type Garden struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              struct {
		Trees int32  `json:"trees"`
		Kind  string `json:"kind,omitempty"`
	} `json:"spec"`
	Status struct {
		Planted int32 `json:"planted,omitempty"`
	} `json:"status,omitempty"`
}

// GardenList is a list of them.
type GardenList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Garden `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (g *Garden) DeepCopyObject() runtime.Object {
	out := *g
	g.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// DeepCopyObject implements runtime.Object.
func (l *GardenList) DeepCopyObject() runtime.Object {
	out := *l
	out.Items = make([]Garden, len(l.Items))
	for i := range l.Items {
		out.Items[i] = *l.Items[i].DeepCopyObject().(*Garden)
	}
	return &out
}

var gardens = schema.GroupVersion{Group: "gardens.example.com", Version: "v1"}

func gardenScheme(t *testing.T) *runtime.Scheme {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	scheme.AddKnownTypes(gardens, &Garden{}, &GardenList{})
	metav1.AddToGroupVersion(scheme, gardens)
	addV2(scheme)
	return scheme
}

// definition is the operator's CRD.
func definition() *apiextensionsv1.CustomResourceDefinition {
	object := func(fields map[string]apiextensionsv1.JSONSchemaProps) apiextensionsv1.JSONSchemaProps {
		return apiextensionsv1.JSONSchemaProps{Type: "object", Properties: fields}
	}
	number, text := apiextensionsv1.JSONSchemaProps{Type: "integer"}, apiextensionsv1.JSONSchemaProps{Type: "string"}
	root := object(map[string]apiextensionsv1.JSONSchemaProps{
		"spec":   object(map[string]apiextensionsv1.JSONSchemaProps{"trees": number, "kind": text}),
		"status": object(map[string]apiextensionsv1.JSONSchemaProps{"planted": number}),
	})
	return &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "gardens." + gardens.Group},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: gardens.Group, Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Kind: "Garden", ListKind: "GardenList", Plural: "gardens", Singular: "garden"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: gardens.Version, Served: true, Storage: true, Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &root},
				Subresources: &apiextensionsv1.CustomResourceSubresources{Status: &apiextensionsv1.CustomResourceSubresourceStatus{}},
			}},
		},
	}
}

// gardener makes a ConfigMap for each tree, and says how many there are.
type gardener struct{ client.Client }

func (g gardener) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var garden Garden
	if err := g.Get(ctx, request.NamespacedName, &garden); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	for i := range garden.Spec.Trees {
		tree := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: garden.Namespace, Name: fmt.Sprintf("%s-%d", garden.Name, i)}}
		if _, err := ctrl.CreateOrUpdate(ctx, g.Client, tree, func() error {
			tree.Data = map[string]string{"kind": garden.Spec.Kind}
			return ctrl.SetControllerReference(&garden, tree, g.Scheme())
		}); err != nil {
			return ctrl.Result{}, err
		}
	}
	garden.Status.Planted = garden.Spec.Trees
	return ctrl.Result{}, g.Status().Update(ctx, &garden)
}

// decide answers the manager's webhooks: /mutate plants oaks where nothing is
// said, /validate forbids weeds.
func decide(mutate bool) http.Handler {
	return &webhook.Admission{Handler: admission.HandlerFunc(func(_ context.Context, request admission.Request) admission.Response {
		var garden Garden
		if err := json.Unmarshal(request.Object.Raw, &garden); err != nil {
			return admission.Errored(http.StatusBadRequest, err)
		}
		switch {
		case mutate && garden.Spec.Kind == "":
			garden.Spec.Kind = "oak"
			changed, err := json.Marshal(garden)
			if err != nil {
				return admission.Errored(http.StatusInternalServerError, err)
			}
			return admission.PatchResponseFromRaw(request.Object.Raw, changed)
		case !mutate && garden.Spec.Kind == "weed":
			return admission.Denied("no weeds here")
		}
		return admission.Allowed("")
	})}
}

// hooks tells the engine of the manager's webhooks.
func hooks(url string, ca []byte) []client.Object {
	rule := []admissionregistrationv1.RuleWithOperations{{
		Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create, admissionregistrationv1.Update},
		Rule:       admissionregistrationv1.Rule{APIGroups: []string{gardens.Group}, APIVersions: []string{gardens.Version}, Resources: []string{"gardens"}},
	}}
	at := func(path string) admissionregistrationv1.WebhookClientConfig {
		return admissionregistrationv1.WebhookClientConfig{URL: ptr.To(url + path), CABundle: ca}
	}
	none, fail := ptr.To(admissionregistrationv1.SideEffectClassNone), ptr.To(admissionregistrationv1.Fail)
	return []client.Object{
		&admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "gardens"}, Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "mutate." + gardens.Group, ClientConfig: at("/mutate"), Rules: rule, SideEffects: none, FailurePolicy: fail, AdmissionReviewVersions: []string{"v1"},
		}}},
		&admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "gardens"}, Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name: "validate." + gardens.Group, ClientConfig: at("/validate"), Rules: rule, SideEffects: none, FailurePolicy: fail, AdmissionReviewVersions: []string{"v1"},
		}}},
	}
}

// TestControllerRuntime runs an operator's suite on coretest, where it would
// have used envtest: no binaries, no port but the webhooks' own.
func TestControllerRuntime(t *testing.T) {
	t.Parallel()
	ctrl.SetLogger(testr.New(t)) // one of the process: no other test makes a manager
	engine := coretest.Start(t, core.Options{})
	scheme := gardenScheme(t)
	api, err := client.New(engine.RESTConfig(), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	certs := t.TempDir()
	ca, key, err := cert.GenerateSelfSignedCertKey("127.0.0.1", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"tls.crt": ca, "tls.key": key} {
		if err := os.WriteFile(filepath.Join(certs, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	listener := newPort(t)
	url := fmt.Sprintf("https://127.0.0.1:%d", listener)
	if err := api.Create(ctx, withV2(definition(), url, ca)); err != nil {
		t.Fatal(err)
	}
	hook := webhook.NewServer(webhook.Options{Host: "127.0.0.1", Port: listener, CertDir: certs})
	manager, err := ctrl.NewManager(engine.RESTConfig(), ctrl.Options{
		Scheme: scheme, Metrics: server.Options{BindAddress: "0"}, WebhookServer: hook,
		Controller: config.Controller{SkipNameValidation: ptr.To(true)},
		// Leads at once: the lease is nobody's.
		LeaderElection: true, LeaderElectionID: "gardener", LeaderElectionNamespace: "default", LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	coretest.Eventually(t, "the kind", func(ctx context.Context) (bool, error) {
		return api.List(ctx, &GardenList{}) == nil, nil
	})
	manager.GetWebhookServer().Register("/mutate", decide(true))
	manager.GetWebhookServer().Register("/validate", decide(false))
	manager.GetWebhookServer().Register("/convert", conversion.NewWebhookHandler(scheme, conversion.NewRegistry()))
	if err := ctrl.NewControllerManagedBy(manager).For(&Garden{}).Owns(&corev1.ConfigMap{}).Complete(gardener{manager.GetClient()}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- manager.Start(ctx) }()
	defer func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("manager: %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("the manager goes on a minute after its end")
		}
	}()
	coretest.Eventually(t, "the webhooks' port", func(context.Context) (bool, error) { return hook.StartedChecker()(nil) == nil, nil })
	for _, h := range hooks(url, ca) {
		if err := api.Create(ctx, h); err != nil {
			t.Fatal(err)
		}
	}
	garden := func(name, kind string, trees int32) *Garden {
		g := &Garden{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
		g.Spec.Kind, g.Spec.Trees = kind, trees
		return g
	}
	// The engine hears of the configurations a moment later.
	coretest.Eventually(t, "weeds to be refused", func(ctx context.Context) (bool, error) {
		err := api.Create(ctx, garden("weeds", "weed", 1), client.DryRunAll)
		if err == nil || strings.Contains(err.Error(), "no weeds here") {
			return err != nil, nil
		}
		return false, err
	})
	coretest.Eventually(t, "oaks by default", func(ctx context.Context) (bool, error) {
		g := garden("probe", "", 1)
		err := api.Create(ctx, g, client.DryRunAll)
		return err == nil && g.Spec.Kind == "oak", err
	})
	testConversion(t, api)
	if err := api.Create(ctx, garden("park", "", 3)); err != nil {
		t.Fatal(err)
	}
	coretest.Eventually(t, "three oaks", func(ctx context.Context) (bool, error) {
		g := &Garden{}
		if err := api.Get(ctx, client.ObjectKey{Namespace: "default", Name: "park"}, g); err != nil {
			return false, err
		}
		tree := &corev1.ConfigMap{}
		if err := api.Get(ctx, client.ObjectKey{Namespace: "default", Name: "park-2"}, tree); client.IgnoreNotFound(err) != nil {
			return false, err
		}
		return g.Status.Planted == 3 && tree.Data["kind"] == "oak", nil
	})
	// The engine's own controllers see to the rest: what the garden owns goes with it.
	if err := api.Delete(ctx, garden("park", "", 0)); err != nil {
		t.Fatal(err)
	}
	coretest.Eventually(t, "the trees to go", func(ctx context.Context) (bool, error) {
		err := api.Get(ctx, client.ObjectKey{Namespace: "default", Name: "park-2"}, &corev1.ConfigMap{})
		return err != nil && client.IgnoreNotFound(err) == nil, client.IgnoreNotFound(err)
	})
}
