package core_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// detector is client-go's switch of the detector that informers ask, read when a program starts.
const detector = "KUBE_CACHE_MUTATION_DETECTOR"

// Objects of informers share parts: who changed one would change others. Scheduler,
// controllers, admission and agents do not, in tests with pods that come, move and go: an
// informer compares each object that it ever had with a copy made when it came.
func TestNobodyChangesWhatInformersShare(t *testing.T) {
	if os.Getenv(detector) != "" {
		t.Skip("this is that process")
	}
	tests := []string{"TestPreemption", "TestGang", "TestClaimIsToldTheNode", "TestHousekeeping", "TestReadyThenSynced", "TestDataOutlivesTheEngine"}
	command := exec.Command(os.Args[0], "-test.run", "^("+strings.Join(tests, "|")+")$", "-test.v", "-test.timeout", "15m")
	command.Env = append(os.Environ(), detector+"=true")
	output, err := command.CombinedOutput()
	if passed := strings.Count(string(output), "\n--- PASS: "); err != nil || passed != len(tests) {
		t.Errorf("%d of %d passed: %v\n%s", passed, len(tests), err, output)
	}
}
