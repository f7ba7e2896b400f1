package oom

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var records = []struct {
	record string
	want   Victim
	ok     bool
}{
	{"6,1187,14744267194,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/x,task=tail,pid=16659,uid=0\n", Victim{"tail", 16659}, true},
	{"6,1,1,-;oom-kill:constraint=CONSTRAINT_CPUSET,nodemask=0,cpuset=/,task=a,b,pid=7,uid=0\n SUBSYSTEM=x\n", Victim{"a,b", 7}, true},
	{"6,1,1,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),oom_memcg=/kubepods/pod1,task_memcg=/kubepods/pod1/c,task=tail,pid=16659,uid=0\n", Victim{}, false},
	{"12,1,1,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),task=forged,pid=7,uid=0\n", Victim{}, false},
	{"4,1,1,-;Memory cgroup out of memory: Killed process 16659 (tail)\n", Victim{}, false},
	{"6,1,1,-;oom-kill:constraint=CONSTRAINT_NONE,task=tail,pid=x,uid=0\n", Victim{}, false},
	{"6,1,1,-;oom-kill:constraint=CONSTRAINT_NONE,pid=3,task=tail\n", Victim{}, false},
	{"", Victim{}, false},
}

func TestParse(t *testing.T) {
	for _, test := range records {
		if got, ok := parse(test.record); ok != test.ok || got != test.want {
			t.Errorf("%q: %+v, %v; want %+v, %v", test.record, got, ok, test.want, test.ok)
		}
	}
	if got := (Victim{"tail", 3}).String(); got != "System OOM encountered, victim process: tail, pid: 3" {
		t.Error(got)
	}
}

func FuzzParse(f *testing.F) {
	for _, test := range records {
		f.Add(test.record)
	}
	f.Fuzz(func(t *testing.T, record string) {
		if v, ok := parse(record); ok && v.PID <= 0 {
			t.Errorf("%q: %+v", record, v)
		}
	})
}

// TestWatch reads the machine's own log, and ends with its context.
func TestWatch(t *testing.T) {
	if _, err := os.Stat(Log); err != nil || os.Geteuid() != 0 {
		t.Skipf("the kernel's log needs root and %s: %v", Log, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	records, done := make(chan string, 1000), make(chan error, 1)
	go func() { done <- watch(ctx, Log, func(r string) { records <- r }) }()
	// Anybody may write a record, which then has facility 1; it may come before the watch begins, so it is written again.
	deadline := time.After(time.Minute)
	for got := false; !got; {
		if err := os.WriteFile(Log, []byte("quaymaster's test of the kernel's log\n"), 0); err != nil {
			t.Fatal(err)
		}
		select {
		case r := <-records:
			got = strings.Contains(r, "quaymaster's test of the kernel's log")
		case err := <-done:
			t.Fatal(err)
		case <-deadline:
			t.Fatal("no record was read in a minute")
		case <-time.After(10 * time.Millisecond):
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := Watch(t.Context(), filepath.Join(t.TempDir(), "none"), nil); err == nil {
		t.Error("a log that is not there was watched")
	}
}
