package admission_test

import (
	"testing"

	qm "github.com/quaymaster/quaymaster/sdk/go"
	"github.com/quaymaster/quaymaster/sdk/go/admission"
)

func TestAnswer(t *testing.T) {
	var a admission.Answer
	a.Warn("a \"b\"\n")
	a.Warn("c")
	a.Annotate("k", "v")
	a.Add(admission.Path("metadata", "labels", "a/b~c"), "x\\")
	a.Remove(admission.Path("spec", "x"))
	a.Replace(admission.Path("n"), -5)
	a.Test(admission.Path(), qm.JSON("{}"))
	a.Add(admission.Path("m"), int64(-1<<63))
	a.Add(admission.Path("b"), true)
	const want = `{"allowed":true,"warnings":["a \"b\"\u000a","c"],"patch":[{"op":"add","path":"/metadata/labels/a~1b~0c","value":"x\\"},` +
		`{"op":"remove","path":"/spec/x"},{"op":"replace","path":"/n","value":-5},{"op":"test","path":"","value":{}},` +
		`{"op":"add","path":"/m","value":-9223372036854775808},{"op":"add","path":"/b","value":true}],"auditAnnotations":{"k":"v"}}`
	if got := string(a.Bytes()); got != want {
		t.Errorf("answer %s, expected %s", got, want)
	}
	var d admission.Answer
	d.Deny(403, "no")
	if got, want := string(d.Bytes()), `{"allowed":false,"code":403,"message":"no"}`; got != want {
		t.Errorf("answer %s, expected %s", got, want)
	}
}

func TestReview(t *testing.T) {
	r := admission.ReviewOf([]byte(`{"request": {"kind": {"kind": "Pod"}, "operation": "CREATE", "namespace": "ns", "object": {"a": 1}, "oldObject": null}}`))
	if r.Kind() != "Pod" || r.Operation() != "CREATE" || r.Namespace() != "ns" || string(r.Object()) != `{"a": 1}` || r.OldObject() != nil {
		t.Errorf("review %s", r.Request)
	}
}
