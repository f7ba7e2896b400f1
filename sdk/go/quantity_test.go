package qm_test

import (
	"math"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"

	qm "github.com/quaymaster/quaymaster/sdk/go"
)

func TestQuantity(t *testing.T) {
	for _, text := range []string{
		"1", "0", "250m", "1.5Gi", "0.1", ".5", "5.", "1e3", "1E3", "12e-2", "100u", "1n", "-250m", "-1.5", "+3", "7E", "16Ei", "8Ei", "7.5Ei", "0.123456789012Ti",
		"99999999999999999999", "9223372036854775807", "1000000000000k", "3k", "3M", "3G", "3T", "3P", "128974848", "129e6", "123Mi", "0.000001m",
	} {
		want, err := resource.ParseQuantity(text)
		if err != nil {
			t.Fatal(err)
		}
		q := qm.Quantity(text)
		value, milli := want.Value(), want.MilliValue()
		if limit := resource.MustParse("9223372036854775"); want.Cmp(limit) > 0 { // where upstream overflows
			milli = math.MaxInt64
		}
		if limit := *resource.NewQuantity(math.MaxInt64, resource.DecimalSI); want.Cmp(limit) > 0 {
			value = math.MaxInt64
		}
		if q.Value() != value || q.Milli() != milli {
			t.Errorf("%s is %d and %d thousandths, expected %d and %d", text, q.Value(), q.Milli(), value, milli)
		}
	}
	for _, text := range []string{"", "x", "1Qi", "1e", "1e999", "1 ", "1mi", "1K"} {
		if q := qm.Quantity(text); q.Value() != 0 || q.Milli() != 0 {
			t.Errorf("%q is %d", text, q.Value())
		}
	}
}

func FuzzQuantity(f *testing.F) {
	f.Add("1.5Gi")
	f.Add("250m")
	f.Fuzz(func(t *testing.T, text string) {
		want, err := resource.ParseQuantity(text)
		if err != nil || len(text) > 18 || want.Sign() < 0 {
			qm.Quantity(text).Milli()
			return
		}
		if q := qm.Quantity(text); want.Value() < 1<<60 && q.Value() != want.Value() {
			t.Errorf("%s is %d, expected %d", text, q.Value(), want.Value())
		}
	})
}
