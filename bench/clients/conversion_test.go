package clients

import (
	"context"
	"fmt"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/conversion"

	"github.com/quaymaster/quaymaster/core/coretest"
)

// gardensV2 has another name for a field; the manager converts.
var gardensV2 = schema.GroupVersion{Group: gardens.Group, Version: "v2"}

// Hub implements conversion.Hub: v1 is what is stored and what the manager works on.
func (g *Garden) Hub() {}

// GardenV2 is the kind in its second version.
type GardenV2 struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              struct {
		Trees   int32  `json:"trees"`
		Species string `json:"species,omitempty"`
	} `json:"spec"`
	Status struct {
		Planted int32 `json:"planted,omitempty"`
	} `json:"status,omitempty"`
}

// GardenV2List is a list of them.
type GardenV2List struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []GardenV2 `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (g *GardenV2) DeepCopyObject() runtime.Object {
	out := *g
	g.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// DeepCopyObject implements runtime.Object.
func (l *GardenV2List) DeepCopyObject() runtime.Object {
	out := *l
	out.Items = make([]GardenV2, len(l.Items))
	for i := range l.Items {
		out.Items[i] = *l.Items[i].DeepCopyObject().(*GardenV2)
	}
	return &out
}

// ConvertTo implements conversion.Convertible.
func (g *GardenV2) ConvertTo(hub conversion.Hub) error {
	to, ok := hub.(*Garden)
	if !ok {
		return fmt.Errorf("a %T is no hub", hub)
	}
	to.ObjectMeta = g.ObjectMeta
	to.Spec.Trees, to.Spec.Kind = g.Spec.Trees, g.Spec.Species
	to.Status.Planted = g.Status.Planted
	return nil
}

// ConvertFrom implements conversion.Convertible.
func (g *GardenV2) ConvertFrom(hub conversion.Hub) error {
	from, ok := hub.(*Garden)
	if !ok {
		return fmt.Errorf("a %T is no hub", hub)
	}
	g.ObjectMeta = from.ObjectMeta
	g.Spec.Trees, g.Spec.Species = from.Spec.Trees, from.Spec.Kind
	g.Status.Planted = from.Status.Planted
	return nil
}

func addV2(scheme *runtime.Scheme) {
	scheme.AddKnownTypeWithName(gardensV2.WithKind("Garden"), &GardenV2{})
	scheme.AddKnownTypeWithName(gardensV2.WithKind("GardenList"), &GardenV2List{})
	metav1.AddToGroupVersion(scheme, gardensV2)
}

// withV2 serves the definition in two versions, which the webhook at the URL converts.
func withV2(d *apiextensionsv1.CustomResourceDefinition, url string, ca []byte) *apiextensionsv1.CustomResourceDefinition {
	second := d.Spec.Versions[0].DeepCopy()
	second.Name, second.Storage = gardensV2.Version, false
	spec := second.Schema.OpenAPIV3Schema.Properties["spec"]
	spec.Properties["species"] = spec.Properties["kind"]
	delete(spec.Properties, "kind")
	d.Spec.Versions = append(d.Spec.Versions, *second)
	d.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.WebhookConverter, Webhook: &apiextensionsv1.WebhookConversion{
		ConversionReviewVersions: []string{"v1"},
		ClientConfig:             &apiextensionsv1.WebhookClientConfig{URL: ptr.To(url + "/convert"), CABundle: ca},
	}}
	return d
}

// testConversion writes in one version and reads in the other.
func testConversion(t *testing.T, api client.Client) {
	ctx := t.Context()
	second := &GardenV2{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "orchard"}}
	second.Spec.Trees, second.Spec.Species = 2, "apple"
	if err := api.Create(ctx, second); err != nil {
		t.Fatal(err)
	}
	first := &Garden{}
	if err := api.Get(ctx, client.ObjectKeyFromObject(second), first); err != nil || first.Spec.Kind != "apple" || first.UID != second.UID {
		t.Errorf("v2 read as v1: %+v, %v", first, err)
	}
	coretest.Eventually(t, "what the manager says in v1, in v2", func(ctx context.Context) (bool, error) {
		err := api.Get(ctx, client.ObjectKeyFromObject(second), second)
		return err == nil && second.Status.Planted == 2, err
	})
	if err := api.Patch(ctx, second, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"species":"pear"}}`))); err != nil {
		t.Fatal(err)
	}
	var list GardenV2List
	if err := api.List(ctx, &list, client.InNamespace("default")); err != nil || len(list.Items) != 1 || list.Items[0].Spec.Species != "pear" {
		t.Errorf("the list in v2: %+v, %v", list.Items, err)
	}
	if err := api.Get(ctx, client.ObjectKeyFromObject(second), first); err != nil || first.Spec.Kind != "pear" {
		t.Errorf("v1 after a patch in v2: %+v, %v", first, err)
	}
	first.Spec.Kind = "plum"
	if err := api.Update(ctx, first); client.IgnoreNotFound(err) != nil {
		coretest.Eventually(t, "an update in v1", func(ctx context.Context) (bool, error) { // the manager may have written meanwhile
			if err := api.Get(ctx, client.ObjectKeyFromObject(second), first); err != nil {
				return false, err
			}
			first.Spec.Kind = "plum"
			return api.Update(ctx, first) == nil, nil
		})
	}
	if err := api.Get(ctx, client.ObjectKeyFromObject(second), second); err != nil || second.Spec.Species != "plum" {
		t.Errorf("v2 after an update in v1: %+v, %v", second, err)
	}
	if err := api.Delete(ctx, second); err != nil {
		t.Fatal(err)
	}
	coretest.Eventually(t, "the orchard to go", func(ctx context.Context) (bool, error) {
		err := api.Get(ctx, client.ObjectKeyFromObject(second), first)
		return err != nil && client.IgnoreNotFound(err) == nil, client.IgnoreNotFound(err)
	})
}
