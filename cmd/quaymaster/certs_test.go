package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/cert"

	"github.com/quaymaster/quaymaster/core/coretest"
)

// TestCerts rotates the authority of a server with two nodes: one that joined
// before, and one that joins after with the token of before.
func TestCerts(t *testing.T) {
	_, url, dir, client := server(t)
	config := filepath.Join(dir, "kubeconfig")
	token, err := os.ReadFile(filepath.Join(dir, "join-token"))
	if err != nil {
		t.Fatal(err)
	}
	must := func(want string, args ...string) {
		t.Helper()
		out, err := run(t, append(args, "--kubeconfig", config)...)
		if err != nil || !regexp.MustCompile(want).MatchString(out) {
			t.Fatalf("%v: %v\n%s\nwant %q", args, err, out, want)
		}
	}
	// log is what the server fetches from a node, each with the certificates of its time.
	log := func(name, node string) {
		t.Helper()
		pods := client.CoreV1().Pods("default")
		coretest.Eventually(t, "the service account", func(context.Context) (bool, error) {
			_, err := pods.Create(t.Context(), &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"sim.quaymaster.dev/log": "a line"}},
				Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "main", Image: "says:1"}}},
			}, metav1.CreateOptions{})
			return err == nil, nil
		})
		coretest.Eventually(t, "the log of "+name, func(context.Context) (bool, error) {
			got, err := pods.GetLogs(name, &corev1.PodLogOptions{}).DoRaw(t.Context())
			return err == nil && strings.Contains(string(got), "a line"), nil
		})
	}
	join := func(name string) string {
		t.Helper()
		data := t.TempDir()
		start(t, "agent", "--server", url, "--token", strings.TrimSpace(string(token)), "--name", name, "--data", data, "--runtime", "sim")
		return data
	}
	join("before")
	log("one", "before")
	must(`(?s)NAME +SUBJECT +FILE +EXPIRES +RENEWED +SIGNED BY.*authority of the cluster .*ca\.crt.*the API server +CN=kube-apiserver +\(memory\).*front proxy .*key of tokens .*this client .*CN=kubernetes-admin`, "certs", "check")
	if out, err := run(t, "certs", "rotate", "--ca", "--overlap", "1m", "--kubeconfig", config); err == nil || !strings.Contains(err.Error(), "an overlap of less than 1h0m0s") {
		t.Errorf("an overlap of a minute: %v\n%s", err, out)
	}
	if out, err := run(t, "certs", "rotate", "--overlap", "2h", "--kubeconfig", config); err == nil || !strings.Contains(err.Error(), "--overlap is for") {
		t.Errorf("an overlap of nothing: %v\n%s", err, out)
	}
	before, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	must(`(?s)certificates are new.*trusted until 20.*signs from 20`, "certs", "rotate", "--ca", "--front-proxy-ca", "--token-key")
	coretest.Eventually(t, "a new kubeconfig", func(context.Context) (bool, error) {
		after, err := os.ReadFile(config)
		return string(after) != string(before), err
	})
	if info, err := os.Stat(config); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the new kubeconfig: %v, %v", info, err)
	}
	must(`(?s)authority of the cluster, retired .*ca-retired\.pem.*authority of the front proxy, retired .*key of tokens, from 20`, "certs", "check")
	must(`"signedBy": "SERIALNUMBER=`, "certs", "check", "-o", "json")

	log("two", "before") // who has not asked yet
	data := join("after")
	log("three", "after")
	coretest.Eventually(t, "a certificate of the new authority", func(context.Context) (bool, error) {
		all, err := cert.CertsFromFile(filepath.Join(data, "ca.crt"))
		if err != nil || len(all) != 2 {
			return false, err
		}
		own, err := cert.CertsFromFile(filepath.Join(data, "client.crt"))
		if err != nil {
			return false, err
		}
		if own[0].CheckSignatureFrom(all[0]) != nil {
			return false, nil
		}
		if own[0].Subject.CommonName != "system:node:after" {
			return false, fmt.Errorf("the certificate is of %s", own[0].Subject.CommonName)
		}
		return true, nil
	})
}
