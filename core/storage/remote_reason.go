package storage

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"
)

// reasons tells of each endpoint why nobody speaks etcd with it.
func reasons(endpoints []string, config *tls.Config) (why []error) {
	for _, endpoint := range endpoints {
		err := reason(endpoint, config)
		if err == nil {
			err = errors.New("it takes connections and does not answer: is it etcd, and has it a leader?")
		}
		why = append(why, fmt.Errorf("%s: %w", endpoint, err))
	}
	return why
}

func reason(endpoint string, config *tls.Config) error {
	secure, address := false, endpoint
	if u, err := url.Parse(endpoint); err == nil && u.Host != "" {
		secure, address = u.Scheme == "https" || u.Scheme == "unixs", u.Host
	}
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	conn, err := dialer.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	if secure {
		config = config.Clone()
		if config == nil {
			config = &tls.Config{}
		}
		config.NextProtos = []string{"h2"}
		if config.ServerName == "" {
			config.ServerName, _, _ = net.SplitHostPort(address)
		}
		over := tls.Client(conn, config)
		if err := over.Handshake(); err != nil {
			return fmt.Errorf("%w (--etcd-cafile names the authority of its certificate)", err)
		}
		conn = over
	}
	// The beginning of HTTP/2. Who wants a certificate, or TLS, refuses now.
	if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	switch timeout := net.Error(nil); {
	case err == nil || errors.As(err, &timeout) && timeout.Timeout():
		return nil
	case secure:
		return fmt.Errorf("%w (it may want a certificate: --etcd-certfile, --etcd-keyfile)", err)
	}
	return fmt.Errorf("it ends the connection: %w; is it spoken to by https?", err)
}
