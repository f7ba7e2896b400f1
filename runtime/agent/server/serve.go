package server

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// superusers is the group that may do everything.
const superusers = "system:masters"

// ServeOptions are those of Serve. All but Logger are needed.
type ServeOptions struct {
	NodeName    string
	Listener    net.Listener
	Certificate func() (*tls.Certificate, error) // the serving one, asked for at each handshake
	ClientCA    func() *x509.CertPool            // the cluster's, asked for at each handshake
	Client      kubernetes.Interface             // for subject access reviews
	Handler     http.Handler
	Logger      *slog.Logger // nil = discard
}

// Serve serves a node's kubelet API over TLS until ctx ends, to clients with a
// certificate of the cluster's CA or a token that the cluster knows, who are of group system:masters or whom the
// cluster authorises for the node's subresource (pods, healthz, proxy).
func Serve(ctx context.Context, opts ServeOptions) error {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	base := &tls.Config{
		MinVersion: tls.VersionTLS12, ClientAuth: tls.VerifyClientCertIfGiven, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return opts.Certificate() },
	}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := base.Clone()
		now.ClientCAs = opts.ClientCA()
		return now, nil
	}
	s := &http.Server{
		Handler:           authorize(opts),
		TLSConfig:         base,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(logWriter{opts.Logger}, "", 0),
	}
	done := make(chan struct{})
	conns := &connections{Listener: opts.Listener, open: map[*connection]struct{}{}}
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = s.Close() // followers of logs would wait for ever otherwise
		conns.closeAll()
	})
	err := s.ServeTLS(conns, "", "")
	if stop() {
		close(done)
	}
	<-done
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve the kubelet API: %w", err)
}

// connections knows what a listener has open: a server's Close leaves those alone that were upgraded to streams, and
// who is attached to a container would not hear of the end.
type connections struct {
	net.Listener

	mu     sync.Mutex
	closed bool
	open   map[*connection]struct{}
}

type connection struct {
	net.Conn
	of *connections
}

func (c *connections) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	out := &connection{conn, c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = conn.Close()
	} else {
		c.open[out] = struct{}{}
	}
	return out, nil
}

func (c *connections) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for conn := range c.open {
		_ = conn.Conn.Close()
	}
}

func (c *connection) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// ServeHealth serves /healthz alone, without TLS and to anybody, until ctx ends.
func ServeHealth(ctx context.Context, listener net.Listener, host Host) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", (&handler{host: host}).healthz)
	return servePlain(ctx, listener, mux, "the node's health")
}

// ServeReadOnly serves what NewReadOnlyHandler has, without TLS and to anybody, until ctx ends.
func ServeReadOnly(ctx context.Context, listener net.Listener, host Host) error {
	return servePlain(ctx, listener, NewReadOnlyHandler(host), "the read-only kubelet API")
}

func servePlain(ctx context.Context, listener net.Listener, h http.Handler, what string) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = s.Close()
	})
	err := s.Serve(listener)
	if stop() {
		close(done)
	}
	<-done
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", what, err)
}

// logWriter takes net/http's complaints, which are clients' faults mostly.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Debug(strings.TrimSpace(string(p)))
	return len(p), nil
}

// subresource names what a path is in terms of the cluster's roles.
func subresource(path string) string {
	switch {
	case path == "/pods", strings.HasPrefix(path, "/runningpods"):
		return "pods"
	case path == "/healthz":
		return "healthz"
	case strings.HasPrefix(path, "/stats/"):
		return "stats"
	case path == "/metrics", strings.HasPrefix(path, "/metrics/"):
		return "metrics"
	}
	return "proxy"
}

func authorize(opts ServeOptions) http.Handler {
	tokens := &reviewer{client: opts.Client, known: map[[sha256.Size]byte]known{}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, ok := tokens.caller(r)
		if !ok {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		r.Header.Del("Authorization") // nobody behind this needs it
		if slices.Contains(who.Groups, superusers) {
			opts.Handler.ServeHTTP(w, r)
			return
		}
		verb := "get"
		if r.Method == http.MethodPost {
			verb = "create"
		}
		sub := subresource(r.URL.Path)
		review, err := opts.Client.AuthorizationV1().SubjectAccessReviews().Create(r.Context(), &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{
				User: who.Username, UID: who.UID, Groups: who.Groups, Extra: who.extra(),
				ResourceAttributes: &authorizationv1.ResourceAttributes{
					Verb: verb, Version: "v1", Resource: "nodes", Subresource: sub, Name: opts.NodeName,
				},
			},
		}, metav1.CreateOptions{})
		switch {
		case err != nil:
			http.Error(w, fmt.Sprintf("Authorization error (user=%s, verb=%s, resource=nodes, subresource=[%s])", who.Username, verb, sub), http.StatusInternalServerError)
		case !review.Status.Allowed:
			http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource=[%s])", who.Username, verb, sub), http.StatusForbidden)
		default:
			opts.Handler.ServeHTTP(w, r)
		}
	})
}
