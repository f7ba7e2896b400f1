package apiserver

import (
	"flag"
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

// TestOwnershipOfChangesAgreesWithUpstream makes random objects of every kind
// whose updates are ours, has several managers change values, elements and
// structure, and has upstream compute the managed fields beside each.
func TestOwnershipOfChangesAgreesWithUpstream(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	source := rand.NewSource(seed)
	random := rand.New(source)
	fuzz := fuzzer.FuzzerFor(upstreamtesting.FuzzerFuncs, source, legacyscheme.Codecs)
	all, hits := 0, 0
	for begin, round := time.Now(), 0; round < 2 || time.Since(begin) < *changesFor; round++ {
		for _, k := range kinds {
			if k.scope == virtual || k.own() {
				continue
			}
			for _, version := range k.versions {
				for _, subresource := range []string{"", "status"} {
					o, err := newOwnership(k, version, subresource, nil)
					if err != nil {
						t.Fatal(err)
					}
					object, err := legacyscheme.Scheme.New(o.gvk.GroupKind().WithVersion(runtime.APIVersionInternal))
					if err != nil {
						t.Fatal(err)
					}
					fuzz.Fill(object)
					accessor(object).SetManagedFields(nil)
					accessor(object).SetUID("u")
					hits += agree(t, random, o, object)
					all += changesOfOne
				}
			}
		}
	}
	t.Logf("%d changes, %d of them known", all, hits)
	if hits < all/20 {
		t.Error("hardly any change was like one before")
	}
}

var changesFor = flag.Duration("changes-for", 0, "how long random changes are compared with upstream; at least two rounds")

const (
	steps        = 6 // of an object from one live state to the next
	repeats      = 3 // of a step, to other values
	changesOfOne = steps * repeats
)

// agree changes one object again and again, and counts the changes that were known.
func agree(t *testing.T, random *rand.Rand, o *ownership, object runtime.Object) (hits int) {
	t.Helper()
	live, err := o.compute(object, "creator")
	if err != nil {
		t.Fatal(err)
	}
	for range steps {
		entries := accessor(live).GetManagedFields()
		for i := range entries { // each has a time of its own
			entries[i].Time = &metav1.Time{Time: time.Unix(int64(1000+random.Intn(3)*10+i), 0)}
		}
		accessor(live).SetManagedFields(entries)
		changed := live.DeepCopyObject()
		if random.Intn(2) == 0 {
			versioned, err := legacyscheme.Scheme.ConvertToVersion(changed, o.gvk.GroupVersion()) // as a client does
			if err != nil {
				t.Fatal(err)
			}
			restructure(random, reflect.ValueOf(versioned).Elem())
			legacyscheme.Scheme.Default(versioned)
			if changed, err = legacyscheme.Scheme.ConvertToVersion(versioned, runtime.InternalGroupVersioner); err != nil {
				t.Fatal(err)
			}
		}
		var which []int
		for range random.Intn(4) {
			which = append(which, random.Int())
		}
		manager := []string{"a", "b", "creator", ""}[random.Intn(4)]
		with := random.Intn(3)
		for range repeats { // the same values change to others
			var leaves []reflect.Value
			valuesOf(reflect.ValueOf(changed).Elem(), &leaves)
			for _, n := range which {
				if len(leaves) > 0 {
					vary(random, leaves[n%len(leaves)])
				}
			}
			given := changed.DeepCopyObject()
			if with == 0 {
				accessor(given).SetManagedFields(nil)
			}
			want := o.upstream.UpdateNoErrors(live.DeepCopyObject(), given.DeepCopyObject(), manager)
			known := o.changes.Len()
			got := o.update(live.DeepCopyObject(), given.DeepCopyObject(), manager)
			if _, key, ok := o.change(live, given, manager); ok && o.changes.Len() == known {
				if _, ok := o.changes.Get(key); ok {
					hits++
				}
			}
			if diff := cmp.Diff(ownersOf(want), ownersOf(got)); diff != "" {
				t.Fatalf("%s %s: upstream's (-), ours (+): %s\nof %#v\nto %#v", o.gvk, o.subresource, diff, live, given)
			}
			if diff := cmp.Diff(withoutOwners(want), withoutOwners(got), cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
				t.Fatalf("%s: the object itself: %s", o.gvk, diff)
			}
		}
		live = o.upstream.UpdateNoErrors(live, changed.DeepCopyObject(), manager)
	}
	return hits
}

// ownersOf are the entries, with whether this change has touched them.
func ownersOf(object runtime.Object) (out []string) {
	for _, e := range accessor(object).GetManagedFields() {
		at := "now"
		if e.Time == nil || time.Since(e.Time.Time) > 24*time.Hour {
			at = fmt.Sprint(e.Time)
		}
		out = append(out, fmt.Sprint(e.Manager, e.Operation, e.APIVersion, e.FieldsType, e.Subresource, at), string(e.FieldsV1.Raw))
	}
	return out
}

func withoutOwners(object runtime.Object) runtime.Object {
	object = object.DeepCopyObject()
	accessor(object).SetManagedFields(nil)
	return object
}

// valuesOf are leavesOf with times and quantities.
func valuesOf(v reflect.Value, leaves *[]reflect.Value) {
	switch v.Interface().(type) {
	case metav1.Time, metav1.MicroTime, resource.Quantity:
		if v.CanSet() {
			*leaves = append(*leaves, v)
		}
		return
	case metav1.ObjectMeta, intstr.IntOrString:
		leavesOf(v, leaves)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			valuesOf(v.Elem(), leaves)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				valuesOf(v.Field(i), leaves)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		for i := range v.Len() {
			valuesOf(v.Index(i), leaves)
		}
	default:
		leavesOf(v, leaves)
	}
}

// vary changes a value as change does, or a time or quantity to one that may be
// written alike.
func vary(random *rand.Rand, v reflect.Value) {
	switch v.Interface().(type) {
	case metav1.Time:
		v.Set(reflect.ValueOf(metav1.Unix(int64(1+random.Intn(2)), int64(random.Intn(2)*1000))))
	case metav1.MicroTime:
		v.Set(reflect.ValueOf(metav1.MicroTime{Time: time.Unix(int64(1+random.Intn(2)), int64(random.Intn(2)))}))
	case resource.Quantity:
		v.Set(reflect.ValueOf(resource.MustParse([]string{"1", "1000m", "2", "1Ki", "1024"}[random.Intn(5)])))
	default:
		change(random, v)
	}
}

// restructure takes elements and values away, adds and moves them.
func restructure(random *rand.Rand, v reflect.Value) {
	var places []reflect.Value
	var find func(reflect.Value)
	find = func(v reflect.Value) {
		switch v.Interface().(type) {
		case metav1.Time, metav1.MicroTime, resource.Quantity, intstr.IntOrString:
			return
		case metav1.ObjectMeta:
			for _, field := range []string{"Labels", "OwnerReferences", "Finalizers"} {
				find(v.FieldByName(field))
			}
			return
		}
		switch v.Kind() {
		case reflect.Pointer:
			if !v.IsNil() {
				if v.CanSet() {
					places = append(places, v)
				}
				find(v.Elem())
			}
		case reflect.Struct:
			for i := range v.NumField() {
				if v.Type().Field(i).IsExported() {
					find(v.Field(i))
				}
			}
		case reflect.Slice:
			if v.Type().Elem().Kind() != reflect.Uint8 && v.CanSet() {
				places = append(places, v)
				for i := range v.Len() {
					find(v.Index(i))
				}
			}
		case reflect.Map:
			if v.CanSet() && !v.IsNil() {
				places = append(places, v)
			}
		}
	}
	find(v)
	if len(places) == 0 {
		return
	}
	switch v := places[random.Intn(len(places))]; {
	case v.Kind() == reflect.Pointer:
		v.SetZero()
	case v.Kind() == reflect.Map:
		if keys := v.MapKeys(); len(keys) > 0 {
			value := v.MapIndex(keys[0])
			v.SetMapIndex(reflect.ValueOf(fmt.Sprint("k", random.Intn(5))).Convert(v.Type().Key()), value)
			v.SetMapIndex(keys[0], reflect.Value{})
		}
	case v.Len() == 0:
		v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
	default:
		i, j := random.Intn(v.Len()), random.Intn(v.Len())
		switch random.Intn(4) {
		case 0: // without one
			v.Set(reflect.AppendSlice(v.Slice3(0, i, i), v.Slice(i+1, v.Len())))
		case 1: // one twice
			v.Set(reflect.Append(v, v.Index(i)))
		case 2:
			reflect.Swapper(v.Interface())(i, j)
		case 3:
			v.SetZero()
		}
	}
}
