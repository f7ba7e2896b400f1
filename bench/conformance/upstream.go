//go:build upstream

package main

// The packages whose binaries are built, so that go.mod has what they need.
import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kubelet" // for bench/kubelet
	_ "k8s.io/kubernetes/test/e2e"
	_ "k8s.io/sample-apiserver"
)
