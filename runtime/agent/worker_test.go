package agent

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Of a version the source's object is kept, whether it comes before or after the
// one that answered a write: others hold it as well.
func TestSourceObjectIsKept(t *testing.T) {
	at := func(version string) *v1.Pod { return &v1.Pod{ObjectMeta: metav1.ObjectMeta{ResourceVersion: version}} }
	for name, test := range map[string]struct{ sourceFirst bool }{"before the answer": {true}, "after the answer": {false}} {
		t.Run(name, func(t *testing.T) {
			p := &pod{a: &Agent{}, api: at("4")}
			source, answer := at("5"), at("5")
			if test.sourceFirst {
				p.set(source)
				p.stored(answer)
			} else {
				p.stored(answer)
				if p.set(source) {
					t.Error("the same version is something to do")
				}
			}
			if p.api != source {
				t.Error("the answer is kept")
			}
			p.set(at("4"))
			p.stored(at("4"))
			if p.api != source {
				t.Error("an older version took its place")
			}
			next := at("6")
			if p.stored(next); p.api != next {
				t.Error("a newer version is not taken")
			}
		})
	}
}
