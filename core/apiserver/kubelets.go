package apiserver

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	core "k8s.io/kubernetes/pkg/apis/core"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
	nodestore "k8s.io/kubernetes/pkg/registry/core/node/storage"
)

// kubelets finds the way to a node's kubelet API: in the process, or by TLS
// with a client certificate of ours to a server certificate of our authority.
type kubelets struct {
	server    *Server
	nodes     *nodestore.REST
	transport atomic.Pointer[http.Transport]
}

// kubeletPort is where a node listens that does not say where.
const kubeletPort = 10250

func newKubelets(s *Server) *kubelets {
	k := &kubelets{server: s}
	k.renew()
	s.pki.onChange(k.renew)
	return k
}

// renew makes a transport that trusts what is to be trusted now, and shows a
// certificate of now. Requests under way go on.
func (k *kubelets) renew() {
	p := k.server.pki
	before := k.transport.Swap(&http.Transport{
		IdleConnTimeout:     90 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS12,
			RootCAs:    p.cluster.Load().pool(p.clock.Now()),
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return p.kubeletClient()
			},
		},
	})
	if before != nil {
		before.CloseIdleConnections()
	}
}

func (k *kubelets) close() { k.transport.Load().CloseIdleConnections() }

// preferredAddresses of a node, best first.
var preferredAddresses = []core.NodeAddressType{core.NodeInternalIP, core.NodeExternalIP, core.NodeHostName, core.NodeInternalDNS, core.NodeExternalDNS}

// GetConnectionInfo implements client.ConnectionInfoGetter.
func (k *kubelets) GetConnectionInfo(ctx context.Context, name types.NodeName) (*kubeletclient.ConnectionInfo, error) {
	object, err := k.nodes.Get(ctx, string(name), &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	node := object.(*core.Node)
	if local := k.server.options.NodeTransport; local != nil {
		if transport, ok := local(string(name)); ok {
			return &kubeletclient.ConnectionInfo{
				Scheme: "http", Hostname: string(name), Port: strconv.Itoa(kubeletPort),
				Transport: lastBytes{transport}, InsecureSkipTLSVerifyTransport: lastBytes{transport},
				NodeFeatures: node.Status.DeclaredFeatures,
			}, nil
		}
	}
	port := int(node.Status.DaemonEndpoints.KubeletEndpoint.Port)
	if port <= 0 {
		port = kubeletPort
	}
	transport := k.transport.Load()
	for _, kind := range preferredAddresses {
		for _, address := range node.Status.Addresses {
			if address.Type == kind {
				return &kubeletclient.ConnectionInfo{
					Scheme: "https", Hostname: address.Address, Port: strconv.Itoa(port),
					Transport: lastBytes{transport}, InsecureSkipTLSVerifyTransport: lastBytes{transport},
					NodeFeatures: node.Status.DeclaredFeatures,
				}, nil
			}
		}
	}
	return nil, fmt.Errorf("no preferred addresses found; known addresses: %v", node.Status.Addresses)
}
