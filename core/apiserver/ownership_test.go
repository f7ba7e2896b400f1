package apiserver

import (
	"fmt"
	"math/rand"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	upstreamtesting "k8s.io/kubernetes/pkg/api/testing"
)

// TestOwnershipAgreesWithUpstream makes random objects of every kind whose
// creates are ours, changes one value after the other, and has upstream compute
// the managed fields of each beside what is recorded by shape.
func TestOwnershipAgreesWithUpstream(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	source := rand.NewSource(seed)
	random := rand.New(source)
	fuzz := fuzzer.FuzzerFor(upstreamtesting.FuzzerFuncs, source, legacyscheme.Codecs)
	for _, k := range kinds {
		if k.scope != namespaced || k.own() {
			continue
		}
		for _, version := range k.versions {
			o, err := newOwnership(k, version, "", nil)
			if err != nil {
				t.Fatal(err)
			}
			var hits, all int
			for range 15 {
				object, err := legacyscheme.Scheme.New(o.gvk.GroupKind().WithVersion(runtime.APIVersionInternal))
				if err != nil {
					t.Fatal(err)
				}
				fuzz.Fill(object)
				accessor(object).SetManagedFields(nil)
				for range 25 {
					known := o.shapes.Len()
					want, err := o.compute(object.DeepCopyObject(), "m")
					if err != nil {
						t.Fatal(err)
					}
					got, err := o.record(object.DeepCopyObject(), "m")
					if err != nil {
						t.Fatal(err)
					}
					all++
					if o.shapes.Len() == known {
						hits++
					}
					if diff := cmp.Diff(entries(want), entries(got)); diff != "" {
						t.Fatalf("%s: %s\nof %#v", o.gvk, diff, object)
					}
					var leaves []reflect.Value
					leavesOf(reflect.ValueOf(object).Elem(), &leaves)
					change(random, leaves[random.Intn(len(leaves))])
				}
			}
			if hits == 0 {
				t.Errorf("%s: of %d objects none had the shape of another", o.gvk, all)
			}
		}
	}
}

func entries(object runtime.Object) (out []string) {
	for _, e := range accessor(object).GetManagedFields() {
		out = append(out, fmt.Sprint(e.Manager, e.Operation, e.APIVersion, e.FieldsType, e.Subresource, e.Time != nil), string(e.FieldsV1.Raw))
	}
	return out
}

// leavesOf are the values in an object that can be changed.
func leavesOf(v reflect.Value, leaves *[]reflect.Value) {
	switch v.Interface().(type) {
	case metav1.Time, metav1.MicroTime, resource.Quantity:
		return
	case metav1.ObjectMeta:
		for _, field := range []string{"Labels", "OwnerReferences", "Finalizers"} {
			leavesOf(v.FieldByName(field), leaves)
		}
		return
	case intstr.IntOrString:
		*leaves = append(*leaves, v.FieldByName("IntVal"), v.FieldByName("StrVal"))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			leavesOf(v.Elem(), leaves)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				leavesOf(v.Field(i), leaves)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		for i := range v.Len() {
			leavesOf(v.Index(i), leaves)
		}
	case reflect.Map, reflect.String, reflect.Bool, reflect.Int, reflect.Int32, reflect.Int64:
		*leaves = append(*leaves, v)
	}
}

func change(random *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprint("s", random.Intn(1000)))
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Map:
		if keys := v.MapKeys(); len(keys) > 0 && v.Type().Elem().Kind() == reflect.String { // one value for another
			v.SetMapIndex(keys[0], reflect.ValueOf(fmt.Sprint("v", random.Intn(1000))).Convert(v.Type().Elem()))
		}
	default:
		v.SetInt(1 + random.Int63n(100))
	}
}
