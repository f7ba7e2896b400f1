package history

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the goldens anew")

// A golden is one file: the old state, the new one, what differs.
func TestDiff(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 4 {
		t.Fatalf("%v, %v", files, err)
	}
	const line = "\n----------\n"
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parts := strings.Split(string(data), line)
			if len(parts) != 3 {
				t.Fatalf("%d parts", len(parts))
			}
			var old, new map[string]any
			if err := json.Unmarshal([]byte(parts[0]), &old); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(parts[1]), &new); err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for _, c := range Diff(old, new) {
				text, err := json.Marshal(c)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&got, "%s\n", text)
			}
			if *update {
				if err := os.WriteFile(file, []byte(parts[0]+line+parts[1]+line+got.String()), 0o600); err != nil {
					t.Fatal(err)
				}
			} else if got.String() != parts[2] {
				t.Errorf("it says\n%snot\n%s", got.String(), parts[2])
			}
		})
	}
}

// Equal states never differ, and whatever is in managedFields nothing panics.
func FuzzDiff(f *testing.F) {
	f.Add(`{"a":[{"name":"x"}]}`, `{"a":[{"name":"y"}],"metadata":{"managedFields":[{"manager":"m","fieldsV1":{"f:a":{"k:{\"name\":\"x\"}":{}}}}]}}`)
	f.Fuzz(func(t *testing.T, one, two string) {
		var a, b map[string]any
		if json.Unmarshal([]byte(one), &a) != nil || json.Unmarshal([]byte(two), &b) != nil {
			return
		}
		if c := Diff(a, a); len(c) != 0 {
			t.Fatalf("%v differs from itself: %v", a, c)
		}
		forth, back := Diff(a, b), Diff(b, a)
		if (a["kind"] == "Secret") == (b["kind"] == "Secret") && (len(forth) == 0) != (len(back) == 0) {
			t.Fatalf("%v there and %v back", forth, back)
		}
	})
}
