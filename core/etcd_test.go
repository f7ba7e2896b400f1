package core_test

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/storage/etcd3/testserver"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

var onEtcd = flag.Bool("etcd", false, "run the engines of the tests on an etcd each, where they do not need the embedded store")

// etcds are the endpoints of the etcd of a data directory.
var etcds sync.Map

// startEtcd starts one that ends with the test.
func startEtcd(t testing.TB) []string {
	t.Helper()
	client := testserver.RunEtcd(t, nil)
	endpoints := client.Endpoints()
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	return endpoints
}

// start is coretest.Start, on an etcd if the flag says so.
func start(t testing.TB, options core.Options) *core.Engine {
	t.Helper()
	if *onEtcd {
		endpoints, ok := etcds.Load(options.DataDir) // of an engine that starts again
		if !ok || options.DataDir == "" {
			endpoints = startEtcd(t)
			etcds.Store(options.DataDir, endpoints)
		}
		options.Etcd = &core.Etcd{Endpoints: endpoints.([]string), Term: 30 * time.Second} // a busy machine must not lose it
	}
	e := coretest.Start(t, options)
	select {
	case <-e.Leading():
	case <-time.After(3 * time.Minute):
		t.Fatal("the engine does not lead")
	}
	return e
}

// embedded marks a test of what only the embedded store does.
func embedded(t testing.TB) {
	if *onEtcd {
		t.Skip("history by time, forks and backups are the embedded store's")
	}
}

// serverChild tells the test's binary, by the environment, to be a server: the
// endpoint of etcd and the data directory.
const serverChild = "QUAYMASTER_TEST_SERVER"

// beServer runs an engine until it is killed, and says what it does.
func beServer(settings string) {
	endpoint, dir, _ := strings.Cut(settings, " ")
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	e, err := core.New(core.Options{DataDir: dir, Listen: "127.0.0.1:0", Nodes: core.Nodes(filepath.Base(dir), 1),
		Etcd: &core.Etcd{Endpoints: []string{endpoint}, Term: 30 * time.Second}}) // as in start
	if err != nil {
		fail(err)
	}
	if err := e.Start(context.Background()); err != nil {
		fail(err)
	}
	go func() {
		<-e.Leading()
		fmt.Println("leads")
	}()
	select {
	case <-e.Ready():
	case <-e.Done():
		fail(e.Close(context.Background()))
	}
	kubeconfig, err := e.Kubeconfig()
	if err != nil {
		fail(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kubeconfig"), kubeconfig, 0o600); err != nil {
		fail(err)
	}
	fmt.Println("ready")
	<-e.Done()
	fail(e.Close(context.Background()))
}

// serverProcess is a child and what it has said.
type serverProcess struct {
	cmd    *exec.Cmd
	mu     sync.Mutex
	said   []string
	client kubernetes.Interface
}

func startServer(t *testing.T, endpoint, dir string) *serverProcess {
	t.Helper()
	s := &serverProcess{cmd: exec.Command(os.Args[0])}
	s.cmd.Env = append(os.Environ(), serverChild+"="+endpoint+" "+dir)
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill() // it may have been killed before
		_ = s.cmd.Wait()
	})
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			s.mu.Lock()
			s.said = append(s.said, lines.Text())
			s.mu.Unlock()
		}
	}()
	coretest.Eventually(t, "the server in "+dir, func(context.Context) (bool, error) { return s.says("ready"), nil })
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	if s.client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *serverProcess) says(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.said, what)
}

// Two servers on one etcd: one leads. It is killed while clients write: the
// other goes on, and nothing that was acknowledged is lost.
func TestTakeover(t *testing.T) {
	if *onEtcd {
		t.Skip("it is on etcd in any case")
	}
	ctx := t.Context()
	endpoint := startEtcd(t)[0]
	base := t.TempDir()
	one := startServer(t, endpoint, filepath.Join(base, "one"))
	coretest.Eventually(t, "the first server to lead", func(context.Context) (bool, error) { return one.says("leads"), nil })
	if err := os.CopyFS(filepath.Join(base, "two", "pki"), os.DirFS(filepath.Join(base, "one", "pki"))); err != nil {
		t.Fatal(err)
	}
	two := startServer(t, endpoint, filepath.Join(base, "two"))

	var mu sync.Mutex
	acknowledged := map[string]string{}
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := 0; ; i++ {
				name, text := fmt.Sprintf("w%d-%d", w, i), fmt.Sprint(i)
				if _, err := one.client.CoreV1().ConfigMaps("default").Create(ctx, setting(name, text), metav1.CreateOptions{}); err != nil {
					return // it is dead
				}
				mu.Lock()
				acknowledged[name] = text
				mu.Unlock()
			}
		})
	}
	coretest.Eventually(t, "a hundred writes", func(context.Context) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		return len(acknowledged) >= 100, nil
	})
	if two.says("leads") {
		t.Error("both lead")
	}
	if err := one.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	writers.Wait()
	coretest.Eventually(t, "the second server to lead", func(context.Context) (bool, error) { return two.says("leads"), nil })

	list, err := two.client.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]string{}
	for _, m := range list.Items {
		there[m.Name] = m.Data["text"]
	}
	for name, text := range acknowledged {
		if there[name] != text {
			t.Errorf("%s was acknowledged and is %q", name, there[name])
		}
	}
	replicas := int32(2)
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{Replicas: &replicas,
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
			Spec: corev1.PodSpec{NodeSelector: map[string]string{corev1.LabelHostname: "two01"}, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}}}
	if _, err := two.client.AppsV1().Deployments("default").Create(ctx, deployment, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	coretest.Eventually(t, "the second server to run pods", func(ctx context.Context) (bool, error) {
		d, err := two.client.AppsV1().Deployments("default").Get(ctx, "web", metav1.GetOptions{})
		return err == nil && d.Status.AvailableReplicas == replicas, err
	})
}

// An orderly end hands over at once.
func TestHandover(t *testing.T) {
	if *onEtcd {
		t.Skip("it is on etcd in any case")
	}
	etcd := &core.Etcd{Endpoints: startEtcd(t), Prefix: "/one", Term: 30 * time.Second}
	one := coretest.Start(t, core.Options{Etcd: etcd})
	<-one.Leading()
	two := coretest.Start(t, core.Options{Etcd: etcd})
	other := coretest.Start(t, core.Options{Etcd: &core.Etcd{Endpoints: etcd.Endpoints, Prefix: "/other"}})
	<-other.Leading()
	if _, err := one.Client().CoreV1().ConfigMaps("default").Create(t.Context(), setting("a", "x"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := texts(t, two); got != "a=x" {
		t.Errorf("the standby has %q", got)
	}
	if got := texts(t, other); got != "" {
		t.Errorf("another prefix has %q", got)
	}
	select {
	case <-two.Leading():
		t.Error("both lead")
	default:
	}
	begin := time.Now()
	closed(t, one)
	select {
	case <-two.Leading():
	case <-time.After(3 * time.Minute):
		t.Fatal("nobody leads")
	}
	t.Logf("handed over in %s", time.Since(begin))
	for what, err := range map[string]error{
		"history": func() error { _, err := two.History(); return err }(),
		"time":    func() error { _, err := two.At(core.Time(time.Now())); return err }(),
		"fork":    func() error { _, err := two.Fork(t.Context(), core.Moment{}, core.Options{}); return err }(),
		"backup":  func() error { _, err := two.Backup(t.Context(), os.Stdout, 0); return err }(),
	} {
		if !errors.Is(err, core.ErrNoHistory) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if past, err := two.At(core.Revision(two.Revision())); err != nil {
		t.Error(err)
	} else if m, err := past.Client().CoreV1().ConfigMaps("default").Get(t.Context(), "a", metav1.GetOptions{}); err != nil || m.Data["text"] != "x" {
		t.Errorf("at a revision of etcd: %v, %v", m, err)
	}
}
