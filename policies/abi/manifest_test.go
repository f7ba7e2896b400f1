package abi

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

const goodManifest = `{"abi":"qm/1","name":"n","version":"1","extensionPoints":["Filter","Score"],` +
	`"columns":["labels","allocatable/nvidia.com/gpu","requested.cpu"],"reasons":["no"],"grants":["log"],"limits":{"fuel":5,"memory":"1Mi","deadline":"5ms"},` +
	`"selfTest":[{"name":"t","nodes":[{"metadata":{"name":"a"}}],"verdicts":[0],"scores":[7]}]}`

func TestParseManifest(t *testing.T) {
	m, columns, err := ParseManifest([]byte(goodManifest))
	if err != nil {
		t.Fatal(err)
	}
	var ids []uint16
	for _, c := range columns {
		ids = append(ids, c.ID)
	}
	if !reflect.DeepEqual(ids, []uint16{64, 256, 32}) || m.Limits.Memory.Value() != 1<<20 || m.Encoding != EncodingProtobuf {
		t.Errorf("columns %v, memory %v", ids, m.Limits.Memory)
	}
	for _, tt := range []struct{ from, to, want string }{
		{`"qm/1"`, `"qm/9"`, `ABI "qm/9"`},
		{`"name":"n",`, ``, "no name"},
		{`["Filter","Score"]`, `[]`, "no extensionPoints"},
		{`"Score"`, `"Scores"`, `unknown extension point "Scores"`},
		{`"labels"`, `"labels","labels"`, "named twice"},
		{`"labels"`, `"pods"`, `unknown column "pods"`},
		{`["no"]`, `[""]`, "reason 1 has 0 bytes"},
		{`["no"]`, `["` + strings.Repeat(`a","`, 250) + `a"]`, "251 reasons"},
		{`["log"]`, `["root"]`, `unknown grant "root"`},
		{`["log"]`, `["read"]`, "go together"},
		{`"grants":["log"]`, `"reads":["pods"]`, "go together"},
		{`["log"]`, `["read"],"reads":["Pod"]`, `"Pod" is no resource`},
		{`["log"]`, `["read"],"reads":["deployments."]`, `"deployments." is no resource`},
		{`["log"]`, `["read"],"reads":[` + strings.Repeat(`"pods",`, 32) + `"pods"]`, "33 reads"},
		{`["log"]`, `["log"],"encoding":"yaml"`, `encoding "yaml"`},
		{`"fuel":5`, `"fuel":0`, "must be positive"},
		{`"verdicts":[0]`, `"verdicts":[0,0]`, "2 verdicts"},
		{`[{"metadata":{"name":"a"}}]`, `[null]`, "null node"},
		{`"version":"1"`, `"verzion":"1"`, `unknown field "verzion"`},
	} {
		text := strings.Replace(goodManifest, tt.from, tt.to, 1)
		if _, _, err := ParseManifest([]byte(text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s for %s: error %v, expected %q", tt.to, tt.from, err, tt.want)
		}
	}
}

// FuzzParseManifest: what is accepted survives a round trip.
func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(goodManifest))
	f.Add([]byte(strings.Replace(goodManifest, `["log"]`, `["read"],"reads":["deployments.apps"],"encoding":"json","stateful":true`, 1)))
	f.Add([]byte(`{"abi":"qm/1"}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, columns, err := ParseManifest(data)
		if err != nil {
			return
		}
		if len(columns) != len(m.Columns) {
			t.Fatalf("%d columns of %d names", len(columns), len(m.Columns))
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		n, _, err := ParseManifest(again)
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, data, again)
		}
		if n.Name != m.Name || !reflect.DeepEqual(n.Reasons, m.Reasons) {
			t.Fatalf("%+v\n%+v", m, n)
		}
	})
}
