package probe_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/quaymaster/quaymaster/runtime/agent/probe"
)

// silent returns a port whose socket takes no more connections and refuses none: who dials it waits.
func silent(t *testing.T) int {
	t.Helper()
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(s) })
	if err := errors.Join(unix.Bind(s, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(s, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(s)
	if err != nil {
		t.Fatal(err)
	}
	port := name.(*unix.SockaddrInet4).Port
	for range 100 { // until those that nobody accepts fill what room there is
		c, err := net.DialTimeout("tcp", (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}).String(), 300*time.Millisecond)
		if err != nil {
			return port
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("a socket without room takes 100 connections")
	return 0
}

// TestDialEndsWithItsRequest gives a request up whose connection is not made: nobody goes on making it.
func TestDialEndsWithItsRequest(t *testing.T) {
	port := silent(t)
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	r, err := probe.NewRequest(ctx, &v1.HTTPGetAction{Port: intstr.FromInt32(int32(port))}, probe.Target{IP: "127.0.0.1", Container: &v1.Container{}}, "probe")
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := probe.Client.Do(r); err == nil {
		_ = answer.Body.Close()
		t.Fatalf("a socket that takes no connection answers %s", answer.Status)
	} else if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; { // the kernel would try for two
		if err = goleak.Find(before); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
