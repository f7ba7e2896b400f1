package qm_test

import (
	"encoding/json"
	"testing"

	qm "github.com/quaymaster/quaymaster/sdk/go"
)

// like reads v with the SDK as encoding/json would.
func like(v qm.JSON) any {
	switch v.Kind() {
	case qm.Object:
		out := map[string]any{}
		v.Items(func(key, value qm.JSON) bool {
			out[key.Text()] = like(value)
			return true
		})
		return out
	case qm.Array:
		out := []any{}
		for _, e := range v.Elements() {
			out = append(out, like(e))
		}
		return out
	case qm.String:
		return v.Text()
	case qm.Bool:
		b, _ := v.Bool()
		return b
	case qm.Number:
		return json.Number(v)
	}
	return nil
}

func same(t *testing.T, text []byte) {
	t.Helper()
	var want any
	if err := json.Unmarshal(text, &want); err != nil {
		like(qm.ParseJSON(text)) // what is no JSON must not panic
		return
	}
	got, err := json.Marshal(like(qm.ParseJSON(text)))
	if err != nil {
		t.Fatal(err)
	}
	var back any
	if err := json.Unmarshal(got, &back); err != nil {
		t.Fatal(err)
	}
	x, _ := json.Marshal(back)
	y, _ := json.Marshal(want)
	if string(x) != string(y) {
		t.Errorf("%s is read as %s, expected %s", text, x, y)
	}
}

func TestJSON(t *testing.T) {
	for _, text := range []string{
		`{}`, `[]`, ` { "a" : [ 1 , -2.5e3 , "x\"y" , true , null , { } ] , "b" : { "c" : "h\u00e9\n\ud83d\ude00\\" } } `, `"a"`, `7`, `null`,
		`{"a":{"b":{"c":[[["]"]]]}}}`, `{"\u0061":1}`, `[1,2,3`, `{"a":`, `{"a"`, `"\`, `"\u12`, `{,}`, ``,
	} {
		same(t, []byte(text))
	}
	v := qm.ParseJSON([]byte(`{"a": {"b\u0063": "x\ty", "n": -12, "t": true}}`))
	if n, ok := v.Member("a", "n").Int64(); n != -12 || !ok {
		t.Errorf("n is %d, %t", n, ok)
	}
	if !v.Member("a", "bc").Is("x\ty") || v.Member("a", "bc").Is("x") || v.Member("none", "b") != nil {
		t.Error("members")
	}
	if b, ok := v.Member("a", "t").Bool(); !b || !ok {
		t.Error("a bool")
	}
	if _, ok := v.Member("a").Int64(); ok {
		t.Error("an object is no number")
	}
}

func FuzzJSON(f *testing.F) {
	f.Add([]byte(`{"a":[1,"\u0000",{"b":null}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if json.Valid(text) && !duplicates(text) {
			same(t, text)
		} else {
			like(qm.ParseJSON(text))
		}
	})
}

// duplicates, and what encoding/json mends, are read differently.
func duplicates(text []byte) bool {
	for _, b := range text {
		if b == '\\' || b >= 0x80 {
			return true
		}
	}
	return false
}
