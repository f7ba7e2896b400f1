//go:build upstream

package main

// The package whose test binary is built, so that go.mod has what it needs.
import _ "k8s.io/kubernetes/test/e2e"
