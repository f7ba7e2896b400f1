package resident

import (
	"fmt"
	"slices"
	"testing"
)

func TestUnwritten(t *testing.T) {
	smaps := ""
	for _, m := range []struct {
		at, permissions, file string
		anonymous             int
	}{
		{"00400000-02374000", "r--p", "/bin/q", 0},
		{"02374000-063a2000", "r-xp", "/bin/q", 0},
		{"063a2000-063a3000", "r--p", "/bin/q", 4}, // what the loader relocated
		{"063a3000-063a4000", "rw-p", "/bin/q", 0},
		{"063a4000-063a5000", "r--s", "/bin/q", 0},
		{"063a5000-063a6000", "r-xp", "/lib/c.so", 0},
		{"063a6000-063a7000", "r-xp", "", 0},
	} {
		smaps += fmt.Sprintf("%s %s 00000000 fe:00 9978963    %s\nSize: 4 kB\nRss: 4 kB\nAnonymous: %8d kB\nVmFlags: rd mr mw me\n", m.at, m.permissions, m.file, m.anonymous)
	}
	want := []mapping{{0x400000, 0x2374000}, {0x2374000, 0x63a2000}}
	if got := unwritten(smaps, "/bin/q"); !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

// TestDropProgram goes on after its own program has been dropped.
func TestDropProgram(t *testing.T) {
	dropProgram(false)
	dropProgram(true)
	TestUnwritten(t)
}
