package probe_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/quaymaster/quaymaster/runtime/agent/probe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend answers commands: "exit N", or an error for "slow" and "down".
type backend struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	mu   sync.Mutex
	code int32
	asks int
}

func (b *backend) set(code int32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.code = code
}

func (b *backend) asked() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asks
}

func (b *backend) ExecSync(_ context.Context, in *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asks++
	switch in.Cmd[0] {
	case "slow":
		return nil, status.Error(codes.DeadlineExceeded, "timeout")
	case "down":
		return nil, status.Error(codes.Unavailable, "down")
	}
	return &runtimeapi.ExecSyncResponse{ExitCode: b.code, Stdout: []byte("out "), Stderr: []byte("err")}, nil
}

func action(command string) v1.ProbeHandler {
	return v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{command}}}
}

func TestCheck(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			fmt.Fprint(w, r.Header.Get("X-Test"), r.UserAgent(), r.Host)
		case "/away":
			http.Redirect(w, r, "http://elsewhere.example/", http.StatusFound)
		default:
			http.Error(w, "secret", http.StatusTeapot)
		}
	}))
	defer web.Close()
	port := intstr.FromInt(web.Listener.Addr().(*net.TCPAddr).Port)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, checks := grpc.NewServer(), health.NewServer()
	healthpb.RegisterHealthServer(server, checks)
	checks.SetServingStatus("bad", healthpb.HealthCheckResponse_NOT_SERVING)
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	grpcPort := int32(listener.Addr().(*net.TCPAddr).Port)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := intstr.FromInt(closed.Addr().(*net.TCPAddr).Port)
	closed.Close()

	get := func(path string, port intstr.IntOrString) v1.ProbeHandler {
		return v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: path, Port: port, HTTPHeaders: []v1.HTTPHeader{{Name: "X-Test", Value: "yes "}, {Name: "Host", Value: "my.host"}}}}
	}
	tcp := func(port intstr.IntOrString) v1.ProbeHandler {
		return v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: port}}
	}
	rpc := func(service string) v1.ProbeHandler {
		return v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: grpcPort, Service: &service}}
	}
	c := &v1.Container{Name: "c", Ports: []v1.ContainerPort{{Name: "web", ContainerPort: port.IntVal}}}
	b := &backend{code: 1}
	for name, test := range map[string]struct {
		handler v1.ProbeHandler
		ok      bool
		want    string // in the output or the error
		err     bool
	}{
		"command":        {action("x"), false, "out err", false},
		"slow command":   {action("slow"), false, `command timed out: "slow" timed out after 1s`, false},
		"no runtime":     {action("down"), false, "down", true},
		"http":           {get("/ok", port), true, "yeskube-probe/1.36my.host", false},
		"http by name":   {get("/ok", intstr.FromString("web")), true, "yes", false},
		"http no name":   {get("/ok", intstr.FromString("none")), false, "couldn't find port: none in container: c", true},
		"http status":    {get("/x", port), false, "HTTP probe failed with statuscode: 418", false},
		"http elsewhere": {get("/away", port), true, "", false},
		"http nobody":    {get("/", nobody), false, "connection refused", false},
		"http bad port":  {get("/", intstr.FromInt32(0)), false, "invalid port number: 0", true},
		"tcp":            {tcp(port), true, "", false},
		"tcp nobody":     {tcp(nobody), false, "connection refused", false},
		"grpc":           {rpc(""), true, "service healthy", false},
		"grpc bad":       {rpc("bad"), false, `service unhealthy (responded with "NOT_SERVING")`, false},
		"grpc unknown":   {rpc("none"), false, "error: health rpc probe failed", false},
		"nothing":        {v1.ProbeHandler{}, false, "missing probe handler", true},
	} {
		ok, output, err := probe.Check(t.Context(), b, &v1.Probe{ProbeHandler: test.handler, TimeoutSeconds: 1}, probe.Target{Container: c, ID: "id", IP: "127.0.0.1"})
		if err != nil {
			output = err.Error()
		}
		if ok != test.ok || (err != nil) != test.err || !strings.Contains(output, test.want) || strings.Contains(output, "secret") {
			t.Errorf("%s: %v, %q, %v", name, ok, output, err)
		}
	}
}

// TestWatch takes a container through its probes, on a clock of the test's.
func TestWatch(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))
	b := &backend{}
	changed := make(chan struct{}, 100)
	var mu sync.Mutex
	var failures []string
	p := probe.New(probe.Options{Backend: b, Changed: func() { changed <- struct{}{} }, Clock: clock, Failed: func(_ *v1.Container, message string) {
		mu.Lock()
		defer mu.Unlock()
		failures = append(failures, message)
	}})
	defer p.Stop()
	c := &v1.Container{
		Name:           "c",
		StartupProbe:   &v1.Probe{ProbeHandler: action("x"), PeriodSeconds: 1, FailureThreshold: 3, SuccessThreshold: 1},
		ReadinessProbe: &v1.Probe{ProbeHandler: action("x"), PeriodSeconds: 1, FailureThreshold: 2, SuccessThreshold: 2},
		LivenessProbe:  &v1.Probe{ProbeHandler: action("x"), PeriodSeconds: 1, FailureThreshold: 4, SuccessThreshold: 1},
	}
	b.set(1)
	p.Running(t.Context(), probe.Target{Container: c, ID: "id"}, clock.Now(), probe.Seen{})
	state := func(started, ready bool, failed string) {
		t.Helper()
		deadline := time.Now().Add(time.Minute)
		for {
			s, r, f := p.State("id")
			if s == started && r == ready && f == failed {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("started %v, ready %v, failed %q; want %v, %v, %q", s, r, f, started, ready, failed)
			}
			if clock.HasWaiters() {
				clock.Step(time.Second)
			}
			time.Sleep(time.Millisecond)
		}
	}
	for deadline := time.Now().Add(time.Minute); b.asked() == 0 && time.Now().Before(deadline); { // the first time it fails
		time.Sleep(time.Millisecond)
	}
	state(false, false, "")
	b.set(0)
	state(true, true, "")
	b.set(1)
	state(true, false, "")
	state(true, false, probe.Liveness)
	mu.Lock()
	text := strings.Join(failures, "\n")
	mu.Unlock()
	for _, want := range []string{"Startup probe failed: out err", "Readiness probe failed: out err", "Liveness probe failed: out err"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	p.Ended(nil)
	if started, ready, failed := p.State("id"); started || ready || failed != "" {
		t.Error("an ended container has a state")
	}
	// What an earlier agent saw holds until a probe says otherwise.
	p.Running(t.Context(), probe.Target{Container: c, ID: "old"}, clock.Now(), probe.Seen{Started: true, Ready: true})
	if started, ready, _ := p.State("old"); !started || !ready {
		t.Error("an adopted container is not ready")
	}
}
