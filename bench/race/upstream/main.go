// Command upstream is the other side of the race: etcd, kube-apiserver,
// kube-scheduler and the controllers of Deployments, in one process.
package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	apiserverapp "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apiserveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/controller/deployment"
	"k8s.io/kubernetes/pkg/controller/replicaset"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/profile"
)

func main() {
	dir := flag.String("dir", "", "directory of the data")
	flag.String("profile", "", "not used")
	flag.Parse()
	if err := run(context.Background(), *dir); err != nil {
		fmt.Fprintln(os.Stderr, "upstream:", err)
		os.Exit(1)
	}
}

// run is etcd, kube-apiserver, kube-scheduler and the controllers of
// Deployments in one process, until the standard input ends. Their clients have
// no rate limit.
func run(ctx context.Context, dir string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	klog.SetOutput(os.Stderr)
	endpoint, stop, err := startEtcd(dir)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	defer stop()
	config, stopped, err := startAPIServer(ctx, dir, endpoint)
	if err != nil {
		return fmt.Errorf("kube-apiserver: %w", err)
	}
	defer func() { cancel(); <-stopped }()
	if err := startScheduler(ctx, config); err != nil {
		return fmt.Errorf("kube-scheduler: %w", err)
	}
	if err := startControllers(ctx, config); err != nil {
		return fmt.Errorf("controllers: %w", err)
	}
	file := filepath.Join(dir, "kubeconfig")
	if err := writeKubeconfig(config, file); err != nil {
		return err
	}
	fmt.Println(file)
	_, err = io.Copy(io.Discard, bufio.NewReader(os.Stdin))
	return err
}

func startEtcd(dir string) (endpoint string, stop func(), err error) {
	c := embed.NewConfig()
	c.Dir = filepath.Join(dir, "etcd")
	c.LogLevel = "error"
	local := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	c.ListenClientUrls, c.AdvertiseClientUrls = local, local
	c.ListenPeerUrls, c.AdvertisePeerUrls = local, local
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.QuotaBackendBytes = 8 << 30
	e, err := embed.StartEtcd(c)
	if err != nil {
		return "", nil, err
	}
	<-e.Server.ReadyNotify()
	return "http://" + e.Clients[0].Addr().String(), e.Close, nil
}

const token = "race"

func startAPIServer(ctx context.Context, dir, etcd string) (*rest.Config, <-chan struct{}, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	keyFile, tokens := filepath.Join(dir, "sa.key"), filepath.Join(dir, "tokens")
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return nil, nil, err
	}
	if err := os.WriteFile(tokens, []byte(token+",admin,admin,system:masters\n"), 0o600); err != nil {
		return nil, nil, err
	}
	o := apiserveroptions.NewServerRunOptions()
	flags := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	for _, set := range o.Flags().FlagSets {
		flags.AddFlagSet(set)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	o.SecureServing.Listener, o.SecureServing.BindPort = listener, listener.Addr().(*net.TCPAddr).Port
	o.SecureServing.ExternalAddress = net.IPv4(127, 0, 0, 1)
	if err := flags.Parse([]string{
		"--etcd-servers=" + etcd, "--cert-dir=" + dir, "--token-auth-file=" + tokens, "--authorization-mode=RBAC",
		"--service-account-key-file=" + keyFile, "--service-account-signing-key-file=" + keyFile, "--service-account-issuer=https://race.invalid",
		"--service-cluster-ip-range=10.0.0.0/16", "--max-requests-inflight=4000", "--max-mutating-requests-inflight=2000",
		// There is no controller that makes accounts or takes taints off nodes.
		"--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
	}); err != nil {
		return nil, nil, err
	}
	if err := o.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return nil, nil, err
	}
	completed, err := o.Complete(ctx)
	if err != nil {
		return nil, nil, err
	}
	c, err := apiserverapp.NewConfig(completed)
	if err != nil {
		return nil, nil, err
	}
	all, err := c.Complete()
	if err != nil {
		return nil, nil, err
	}
	server, err := apiserverapp.CreateServerChain(all)
	if err != nil {
		return nil, nil, err
	}
	prepared, err := server.PrepareRun()
	if err != nil {
		return nil, nil, err
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		if err := prepared.Run(ctx); err != nil {
			klog.ErrorS(err, "kube-apiserver")
		}
	}()
	config := &rest.Config{Host: fmt.Sprintf("https://127.0.0.1:%d", o.SecureServing.BindPort), BearerToken: token, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(dir, "apiserver.crt")}}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = config.ContentType + ",application/json"
	return config, stopped, waitReady(ctx, config)
}

func waitReady(ctx context.Context, config *rest.Config) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if _, err = client.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err == nil {
			return nil
		}
	}
	return fmt.Errorf("not ready: %w", err)
}

func startScheduler(ctx context.Context, config *rest.Config) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := scheduler.NewInformerFactory(client, 0)
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return err
	}
	s, err := scheduler.New(ctx, client, factory, nil, profile.NewRecorderFactory(broadcaster), scheduler.WithKubeConfig(config))
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	if err := s.WaitForHandlersSync(ctx); err != nil {
		return err
	}
	go s.Run(ctx)
	return nil
}

func startControllers(ctx context.Context, config *rest.Config) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	deployments, replicaSets, pods := factory.Apps().V1().Deployments(), factory.Apps().V1().ReplicaSets(), factory.Core().V1().Pods()
	d, err := deployment.NewDeploymentController(ctx, deployments, replicaSets, pods, client)
	if err != nil {
		return err
	}
	r := replicaset.NewReplicaSetController(ctx, replicaSets, pods, client, replicaset.BurstReplicas)
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	go d.Run(ctx, 5)
	go r.Run(ctx, 5)
	return nil
}

func writeKubeconfig(c *rest.Config, file string) error {
	k := clientcmdapi.NewConfig()
	k.Clusters["race"] = &clientcmdapi.Cluster{Server: c.Host, CertificateAuthority: c.CAFile}
	k.AuthInfos["race"] = &clientcmdapi.AuthInfo{Token: c.BearerToken}
	k.Contexts["race"] = &clientcmdapi.Context{Cluster: "race", AuthInfo: "race"}
	k.CurrentContext = "race"
	return clientcmd.WriteToFile(*k, file)
}
