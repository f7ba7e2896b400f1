package apiserver

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// newHTTPServer serves the listener with TLS 1.2 or newer, HTTP/2 and HTTP/1.1.
// Client certificates are asked for and judged by the authentication.
func (s *Server) newHTTPServer() *http.Server {
	const (
		streams = 100       // of a connection, and four times as many that wait: what clients assume
		frame   = 256 << 10 // bytes; nearly all objects fit
	)
	return &http.Server{
		Handler:           s.forPort(s.front.Handler),
		MaxHeaderBytes:    1 << 20,
		IdleTimeout:       90 * time.Second,
		ReadHeaderTimeout: min(32*time.Second, s.options.RequestTimeout),
		ReadTimeout:       s.options.RequestTimeout,
		WriteTimeout:      s.options.RequestTimeout + answering,
		HTTP2: &http.HTTP2Config{ // upstream's, but for the timeout
			MaxConcurrentStreams: streams, MaxReadFrameSize: frame,
			MaxReceiveBufferPerStream: frame, MaxReceiveBufferPerConnection: streams * frame,
			WriteByteTimeout: s.options.StallTimeout,
		},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // handshakes that failed
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS12,
			ClientAuth: tls.RequestClientCert,
			NextProtos: []string{"h2", "http/1.1"},
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return s.pki.serving(s.options.Listener.Addr())
			},
		},
	}
}

// Kubeconfig returns a configuration file for an administrator with a client
// certificate of its own. It needs a listener.
func (s *Server) Kubeconfig() ([]byte, error) {
	if s.options.Listener == nil {
		return nil, errors.New("kubeconfig: the server has no listener")
	}
	certPEM, keyPEM, err := s.pki.sign(pkix.Name{CommonName: "kubernetes-admin", Organization: []string{"system:masters"}}, x509.ExtKeyUsageClientAuth, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["quaymaster"] = &clientcmdapi.Cluster{Server: s.URL(), CertificateAuthorityData: s.pki.trustPEM()}
	config.AuthInfos["quaymaster-admin"] = &clientcmdapi.AuthInfo{ClientCertificateData: certPEM, ClientKeyData: keyPEM}
	config.Contexts["quaymaster"] = &clientcmdapi.Context{Cluster: "quaymaster", AuthInfo: "quaymaster-admin"}
	config.CurrentContext = "quaymaster"
	return clientcmd.Write(*config)
}

// URL of the listener, reachable from this machine; empty without one.
func (s *Server) URL() string {
	if s.options.Listener == nil {
		return ""
	}
	host, port, err := net.SplitHostPort(s.options.Listener.Addr().String())
	if err != nil {
		return "https://" + s.options.Listener.Addr().String()
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "https://" + net.JoinHostPort(host, port)
}
