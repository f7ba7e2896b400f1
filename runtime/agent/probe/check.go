// Package probe asks containers whether they are well, as their probes say: by a
// command in them, an HTTP request, a TCP connection or gRPC's health service.
// Results and texts are upstream's.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri"
)

// maxOutput is how much of an answer is read, in bytes.
const maxOutput = 10 << 10

// Target is a running container.
type Target struct {
	Container *v1.Container
	ID        string // the runtime's
	IP        string // of the pod
}

// Check runs a probe once. ok tells whether it succeeded, output what it said;
// an error says that nothing was learned of the container.
func Check(ctx context.Context, backend cri.Backend, p *v1.Probe, t Target) (ok bool, output string, err error) {
	timeout := time.Duration(max(p.TimeoutSeconds, 1)) * time.Second
	switch {
	case p.Exec != nil:
		return command(ctx, backend, t.ID, p.Exec.Command, timeout)
	case p.HTTPGet != nil:
		return get(ctx, p.HTTPGet, t, timeout, "probe")
	case p.TCPSocket != nil:
		host := p.TCPSocket.Host
		if host == "" {
			host = t.IP
		}
		port, err := containerPort(p.TCPSocket.Port, t.Container)
		if err != nil {
			return false, "", err
		}
		return connect(ctx, net.JoinHostPort(host, strconv.Itoa(port)), timeout)
	case p.GRPC != nil:
		service := ""
		if p.GRPC.Service != nil {
			service = *p.GRPC.Service
		}
		return health(ctx, net.JoinHostPort(t.IP, strconv.Itoa(int(p.GRPC.Port))), service, timeout)
	}
	return false, "", fmt.Errorf("missing probe handler for container %s", t.Container.Name)
}

// command succeeds if the program in the container ends with 0.
func command(ctx context.Context, backend cri.Backend, id string, command []string, timeout time.Duration) (bool, string, error) {
	// The runtime ends the command; this is for a runtime that does not.
	limit, cancel := context.WithTimeout(ctx, timeout+10*time.Second)
	defer cancel()
	r, err := backend.ExecSync(limit, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: int64(timeout / time.Second)})
	if status.Code(err) == codes.DeadlineExceeded && ctx.Err() == nil {
		return false, fmt.Sprintf("command timed out: %q timed out after %v", strings.Join(command, " "), timeout), nil
	}
	if err != nil {
		return false, "", err
	}
	output := string(append(r.Stdout, r.Stderr...))
	return r.ExitCode == 0, output[:min(len(output), maxOutput)], nil
}

// containerPort resolves a number or the name of a container's port.
func containerPort(p intstr.IntOrString, c *v1.Container) (int, error) {
	port := p.IntValue()
	if p.Type == intstr.String {
		for _, named := range c.Ports {
			if named.Name == p.StrVal {
				port = int(named.ContainerPort)
			}
		}
		if port == 0 {
			return 0, fmt.Errorf("couldn't find port: %v in container: %v", p.StrVal, c.Name)
		}
	}
	if port < 1 || port > 65535 {
		return 0, fmt.Errorf("invalid port number: %v", port)
	}
	return port, nil
}

// NewRequest makes the request of an action against a container; agent is the user agent's second word.
func NewRequest(ctx context.Context, a *v1.HTTPGetAction, t Target, agent string) (*http.Request, error) {
	port, err := containerPort(a.Port, t.Container)
	if err != nil {
		return nil, err
	}
	host := a.Host
	if host == "" {
		host = t.IP
	}
	u, err := url.Parse(a.Path)
	if err != nil {
		u = &url.URL{Path: a.Path}
	}
	u.Scheme, u.Host = "http", net.JoinHostPort(host, strconv.Itoa(port))
	if a.Scheme != "" {
		u.Scheme = strings.ToLower(string(a.Scheme))
	}
	r, err := http.NewRequestWithContext(context.WithValue(ctx, asking{}, ctx), http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range a.HTTPHeaders {
		r.Header.Add(h.Name, h.Value)
	}
	if _, ok := r.Header["User-Agent"]; !ok {
		r.Header.Set("User-Agent", "kube-"+agent+"/1.36")
	}
	if _, ok := r.Header["Accept"]; !ok {
		r.Header.Set("Accept", "*/*")
	} else if r.Header.Get("Accept") == "" {
		r.Header.Del("Accept")
	}
	r.Host = r.Header.Get("Host")
	return r, nil
}

// asking is the key of a request's own context in what a dial gets: a transport lets a dial go on without its request,
// for as long as the kernel tries, which for a pod that is gone is two minutes.
type asking struct{}

// Client asks containers over HTTP: it keeps no connection, checks no
// certificate and takes no proxy.
var Client = &http.Client{
	Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if request, ok := ctx.Value(asking{}).(context.Context); ok { // which is to say itself that its time is over
				own, cancel := context.WithCancel(ctx)
				defer cancel()
				defer context.AfterFunc(request, cancel)()
				ctx = own
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, DisableCompression: true,
	},
	CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if r.URL.Hostname() != via[0].URL.Hostname() {
			return http.ErrUseLastResponse
		}
		if len(via) >= 10 {
			return errors.New("stopped after 10 redirects")
		}
		return nil
	},
}

// get succeeds with a status below 400.
func get(ctx context.Context, a *v1.HTTPGetAction, t Target, timeout time.Duration, agent string) (bool, string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := NewRequest(ctx, a, t, agent)
	if err != nil {
		return false, "", err
	}
	r, err := Client.Do(request)
	if err != nil {
		return false, err.Error(), nil
	}
	defer r.Body.Close()
	body, err := io.ReadAll(io.LimitReader(r.Body, maxOutput))
	if err != nil {
		return false, err.Error(), nil
	}
	if r.StatusCode < http.StatusOK || r.StatusCode >= http.StatusBadRequest {
		return false, fmt.Sprintf("HTTP probe failed with statuscode: %d", r.StatusCode), nil
	}
	return true, string(body), nil
}

func connect(ctx context.Context, address string, timeout time.Duration) (bool, string, error) {
	conn, err := (&net.Dialer{Timeout: timeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false, err.Error(), nil
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // many probes would leave many sockets that wait
	}
	_ = conn.Close()
	return true, "", nil
}

func health(ctx context.Context, address, service string, timeout time.Duration) (bool, string, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent("kube-probe/1.36"))
	if err != nil {
		return false, "", err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service}, grpc.WaitForReady(true))
	switch status.Code(err) {
	case codes.OK:
	case codes.Unimplemented:
		return false, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + status.Convert(err).Message(), nil
	case codes.DeadlineExceeded:
		return false, fmt.Sprintf("timeout: health rpc did not complete within %v", timeout), nil
	default:
		return false, fmt.Sprintf("error: health rpc probe failed: %+v", err), nil
	}
	if r.Status != healthpb.HealthCheckResponse_SERVING {
		return false, fmt.Sprintf("service unhealthy (responded with %q)", r.Status.String()), nil
	}
	return true, "service healthy", nil
}
