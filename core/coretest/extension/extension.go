// Package extension runs upstream's sample of an extension server, for tests of
// what is served by other servers under the API.
package extension

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/registry/generic"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	utilcompatibility "k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/client-go/tools/clientcmd"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/sample-apiserver/pkg/apis/wardle/v1alpha1"
	sample "k8s.io/sample-apiserver/pkg/apiserver"
	sampleopenapi "k8s.io/sample-apiserver/pkg/generated/openapi"

	"github.com/quaymaster/quaymaster/core/storage"
)

// Server is the sample, on the loopback: it serves flunders and fischers in the
// group wardle.example.com, version v1alpha1.
type Server struct {
	Port int32
	CA   []byte // PEM
	Stop func() // ends it and waits; the end of the test does so as well
}

// flunders keeps the sample's objects in a store of its own.
type flunders struct{ decorator generic.StorageDecorator }

func (f flunders) GetRESTOptions(resource schema.GroupResource, _ runtime.Object) (generic.RESTOptions, error) {
	config := storagebackend.NewDefaultConfig("/wardle", sample.Codecs.LegacyCodec(v1alpha1.SchemeGroupVersion))
	config.EncodeVersioner = runtime.NewMultiGroupVersioner(v1alpha1.SchemeGroupVersion, schema.GroupKind{Group: v1alpha1.GroupName})
	return generic.RESTOptions{StorageConfig: config.ForResource(resource), Decorator: f.decorator, DeleteCollectionWorkers: 1, ResourcePrefix: resource.Resource}, nil
}

// Start runs the sample for the service of the name: it learns whom to believe
// from the cluster of the administrator's kubeconfig, and asks it what the user may.
func Start(t *testing.T, admin []byte, namespace, service string) *Server {
	t.Helper()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, admin, 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := storage.Open(storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	config := genericapiserver.NewRecommendedConfig(sample.Codecs)
	config.EffectiveVersion = utilcompatibility.DefaultBuildEffectiveVersion()
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(sampleopenapi.GetOpenAPIDefinitions, openapi.NewDefinitionNamer(sample.Scheme))
	config.OpenAPIConfig.Info.Title = "Wardle"
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(sampleopenapi.GetOpenAPIDefinitions, openapi.NewDefinitionNamer(sample.Scheme))
	config.OpenAPIV3Config.Info.Title = "Wardle"
	config.RESTOptionsGetter = flunders{store.StorageDecorator(nil)}

	serving := genericoptions.NewSecureServingOptions().WithLoopback()
	cert, key, err := certutil.GenerateSelfSignedCertKey(service+"."+namespace+".svc", []net.IP{net.IPv4(127, 0, 0, 1)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	files := serving.ServerCert
	files.CertKey.CertFile, files.CertKey.KeyFile = filepath.Join(t.TempDir(), "tls.crt"), filepath.Join(t.TempDir(), "tls.key")
	for name, content := range map[string][]byte{files.CertKey.CertFile: cert, files.CertKey.KeyFile: key} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	serving.ServerCert = files
	if serving.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if err := serving.ApplyTo(&config.SecureServing, &config.LoopbackClientConfig); err != nil {
		t.Fatal(err)
	}
	authentication, authorization := genericoptions.NewDelegatingAuthenticationOptions(), genericoptions.NewDelegatingAuthorizationOptions()
	authentication.RemoteKubeConfigFile, authorization.RemoteKubeConfigFile = kubeconfig, kubeconfig
	if err := authentication.ApplyTo(&config.Authentication, config.SecureServing, config.OpenAPIConfig); err != nil {
		t.Fatal(err)
	}
	if err := authorization.ApplyTo(&config.Authorization); err != nil {
		t.Fatal(err)
	}
	config.SharedInformerFactory = nil
	if config.ClientConfig, err = clientcmd.RESTConfigFromKubeConfig(admin); err != nil {
		t.Fatal(err)
	}
	server, err := (&sample.Config{GenericConfig: config}).Complete().New()
	if err != nil {
		t.Fatal(err)
	}
	server.GenericAPIServer.ShutdownTimeout = time.Second // watches are open when it ends
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.GenericAPIServer.PrepareRun().RunWithContext(ctx) }()
	_, port, err := net.SplitHostPort(serving.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.ParseInt(port, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	e := &Server{Port: int32(number), CA: cert}
	stopped := false
	e.Stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the extension server: %v", err)
		}
		if err := store.Close(); err != nil {
			t.Errorf("the extension server's store: %v", err)
		}
	}
	t.Cleanup(e.Stop)
	return e
}
