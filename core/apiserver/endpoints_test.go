package apiserver_test

import (
	"net"
	"path/filepath"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// elsewhere is a listener that says it is at another address.
type elsewhere struct {
	net.Listener
	at *net.TCPAddr
}

func (e elsewhere) Addr() net.Addr { return e.at }

// TestKubernetesEndpoints: the service leads to where the server is, also when it
// comes back somewhere else; a server on the loopback is nowhere for a pod.
func TestKubernetesEndpoints(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	for _, at := range []string{"127.0.0.1", "10.1.2.3", "10.1.2.4", "fd00::9"} {
		c := start(t, func(o *apiserver.Options) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			o.Dir, o.Listener = dir, elsewhere{listener, &net.TCPAddr{IP: net.ParseIP(at), Port: 6443}}
		})
		ctx := t.Context()
		endpoints, err := c.client.CoreV1().Endpoints("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		slice, sliceErr := c.client.DiscoveryV1().EndpointSlices("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		if at == "127.0.0.1" {
			if !apierrors.IsNotFound(err) || !apierrors.IsNotFound(sliceErr) {
				t.Errorf("a server on the loopback has endpoints: %v, %v", err, sliceErr)
			}
		} else if err != nil || sliceErr != nil {
			t.Errorf("%s: %v, %v", at, err, sliceErr)
		} else if got := endpoints.Subsets[0]; got.Addresses[0].IP != at || got.Ports[0].Port != 6443 || slice.Endpoints[0].Addresses[0] != at || *slice.Ports[0].Port != 6443 {
			t.Errorf("%s: %+v, %+v", at, got, slice)
		}
		c.stop()
	}
}
