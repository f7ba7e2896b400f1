package trouble_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/quaymaster/quaymaster/runtime/agent/trouble"
)

func TestLevel(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	uid := func(n int) types.UID { return types.UID(fmt.Sprint(n)) }
	for name, test := range map[string]struct {
		failed, started int
		again           int // further failures of the first pod
		later           time.Duration
		want            trouble.Level
	}{
		"nothing":          {want: trouble.Fine},
		"one bad pod":      {failed: 1, again: 100, want: trouble.Fine},
		"three of three":   {failed: 3, want: trouble.Doubtful},
		"three of six":     {failed: 3, started: 3, want: trouble.Fine},
		"ten of twelve":    {failed: 10, started: 2, want: trouble.Breaking},
		"ten of a hundred": {failed: 10, started: 90, want: trouble.Fine},
		"long ago":         {failed: 20, later: 11 * time.Minute, want: trouble.Fine},
	} {
		var l trouble.Log
		for i := range test.failed {
			l.Failed(uid(i), "sandbox", now)
		}
		for range test.again {
			l.Failed(uid(0), "sandbox", now)
		}
		for i := range test.started {
			l.Started(uid(1000+i), now)
		}
		level, message := l.Level(now.Add(test.later))
		if level != test.want || (level != trouble.Fine) != strings.Contains(message, "because: sandbox") {
			t.Errorf("%s: %v, %q", name, level, message)
		}
	}
	var l trouble.Log
	for i := range 12 {
		l.Failed(uid(i), "sandbox", now)
	}
	for i := range 6 { // half of them start after all
		l.Started(uid(i), now)
	}
	if level, _ := l.Level(now); level != trouble.Fine {
		t.Errorf("forgiven: %v", level)
	}
}

func TestHammer(t *testing.T) {
	var l trouble.Log
	var wg sync.WaitGroup
	now := time.Unix(1_700_000_000, 0)
	for w := range 8 {
		wg.Go(func() {
			for i := range 500 {
				uid := types.UID(fmt.Sprint(w, i%7))
				if i%3 == 0 {
					l.Started(uid, now)
				} else {
					l.Failed(uid, "x", now)
				}
				l.Level(now)
			}
		})
	}
	wg.Wait()
}
