package core_test

import (
	"flag"
	"os"
	"testing"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

// Upstream's libraries tell of their starts and ends; the tests have no use for that.
func TestMain(m *testing.M) {
	klog.SetLogger(logr.Discard())
	if settings := os.Getenv(serverChild); settings != "" {
		beServer(settings)
	}
	flag.Parse()
	os.Exit(m.Run())
}
