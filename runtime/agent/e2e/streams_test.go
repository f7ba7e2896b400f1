package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

// outside is a client as people have it.
func (n *node) outside() (*rest.Config, kubernetes.Interface) {
	n.t.Helper()
	kubeconfig, err := n.engine.Kubeconfig()
	if err != nil {
		n.t.Fatal(err)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(kubeconfig)
	if err != nil {
		n.t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		n.t.Fatal(err)
	}
	return config, client
}

// portforward is how to dial for a pod's ports.
func (n *node) portforward(config *rest.Config, pod string) httpstream.Dialer {
	n.t.Helper()
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		n.t.Fatal(err)
	}
	u, err := url.Parse(config.Host + "/api/v1/namespaces/default/pods/" + pod + "/portforward")
	if err != nil {
		n.t.Fatal(err)
	}
	return spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
}

// forward leads ports of this machine to a pod's until stop is closed, and returns them and how that ends.
func (n *node) forward(config *rest.Config, pod string, stop chan struct{}, ports ...string) ([]uint16, <-chan error) {
	n.t.Helper()
	ready := make(chan struct{})
	f, err := portforward.New(n.portforward(config, pod), ports, stop, ready, io.Discard, io.Discard)
	if err != nil {
		n.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		n.t.Fatal(err)
	}
	taken, err := f.GetPorts()
	if err != nil {
		n.t.Fatal(err)
	}
	var out []uint16
	for _, p := range taken {
		out = append(out, p.Local)
	}
	return out, done
}

// fetch gets the page of a port of this machine.
func fetch(port uint16) (string, error) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	r, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	page, err := io.ReadAll(r.Body)
	return string(page), err
}

func TestStreams(t *testing.T) {
	n := newNode(t)
	config, client := n.outside()
	n.create(n.podOf("web", "mkdir /tmp/www; echo hello > /tmp/www/index.html; httpd -p 8080 -h /tmp/www; "+forever, served))
	n.create(n.podOf("cat", "cat", func(p *v1.Pod) { p.Spec.Containers[0].Stdin = true }))
	web := n.ready("web")
	n.phase("cat", v1.PodRunning)

	executors := map[string]func(pod, sub string, options runtime.Object) (remotecommand.Executor, error){
		"SPDY": func(pod, sub string, options runtime.Object) (remotecommand.Executor, error) {
			u := client.CoreV1().RESTClient().Post().Resource("pods").Namespace("default").Name(pod).SubResource(sub).VersionedParams(options, scheme.ParameterCodec).URL()
			return remotecommand.NewSPDYExecutor(config, http.MethodPost, u)
		},
		"WebSocket": func(pod, sub string, options runtime.Object) (remotecommand.Executor, error) {
			u := client.CoreV1().RESTClient().Get().Resource("pods").Namespace("default").Name(pod).SubResource(sub).VersionedParams(options, scheme.ParameterCodec).URL()
			return remotecommand.NewWebSocketExecutor(config, http.MethodGet, u.String())
		},
	}
	for name, executor := range executors {
		t.Run("exec by "+name, func(t *testing.T) {
			run := func(stdin io.Reader, tty bool, command ...string) (stdout, stderr string, err error) {
				e, err := executor("web", "exec", &v1.PodExecOptions{Container: "c", Command: command, Stdin: stdin != nil, Stdout: true, Stderr: !tty, TTY: tty})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				var out, errs bytes.Buffer
				options := remotecommand.StreamOptions{Stdin: stdin, Stdout: &out, Tty: tty}
				if !tty {
					options.Stderr = &errs
				}
				err = e.StreamWithContext(ctx, options)
				return out.String(), errs.String(), err
			}
			if out, errs, err := run(nil, false, "sh", "-c", "echo out; echo err >&2"); out != "out\n" || errs != "err\n" || err != nil {
				t.Errorf("%q, %q, %v", out, errs, err)
			}
			var exit utilexec.CodeExitError
			if _, _, err := run(nil, false, "sh", "-c", "exit 7"); !errors.As(err, &exit) || exit.Code != 7 {
				t.Errorf("exit code: %v", err)
			}
			big := strings.Repeat("0123456789abcdef", 1<<16) // a mebibyte, as kubectl cp sends files
			if out, _, err := run(strings.NewReader(big), false, "sh", "-c", "cat > /tmp/big; md5sum < /tmp/big; cat /tmp/big"); !strings.HasSuffix(out, big) || err != nil {
				t.Errorf("a large input came back with %d bytes, %v", len(out), err)
			}
			if out, _, err := run(nil, true, "tty"); !strings.HasPrefix(out, "/dev/") || err != nil {
				t.Errorf("terminal: %q, %v", out, err)
			}
			if _, _, err := run(nil, false, "/no/such/program"); err == nil {
				t.Error("a program that is not there was run")
			}
		})
	}

	t.Run("attach", func(t *testing.T) {
		e, err := executors["SPDY"]("cat", "attach", &v1.PodAttachOptions{Container: "c", Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		in, feed := io.Pipe()
		out, said := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: said}) }()
		if _, err := io.WriteString(feed, "hello\n"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 6)
		if _, err := io.ReadFull(out, got); err != nil || string(got) != "hello\n" {
			t.Errorf("%q, %v", got, err)
		}
		cancel()
		_ = feed.Close()
		_ = said.Close()
		<-done
	})

	t.Run("port-forward", func(t *testing.T) {
		stop := make(chan struct{})
		ports, done := n.in(t).forward(config, "web", stop, "0:8080", "0:8081")
		if page, err := fetch(ports[0]); page != "hello\n" || err != nil {
			t.Errorf("%q, %v", page, err)
		}
		if page, err := fetch(ports[1]); err == nil { // nobody listens there
			t.Errorf("a closed port answers %q", page)
		}
		close(stop)
		<-done
	})

	t.Run("logs", func(t *testing.T) {
		n := n.in(t)
		n.create(n.podOf("talks", "for i in 1 2 3 4 5; do echo line $i; done; sleep 1; echo end"))
		n.phase("talks", v1.PodRunning)
		for !strings.Contains(n.log("talks", "c"), "line 5") { // the deadline is the tests'
			time.Sleep(10 * time.Millisecond)
		}
		r, err := client.CoreV1().Pods("default").GetLogs("talks", &v1.PodLogOptions{Follow: true, TailLines: ptr(int64(2))}).Stream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if data, err := io.ReadAll(r); err != nil || !strings.HasSuffix(string(data), "end\n") || strings.Contains(string(data), "line 1") {
			t.Errorf("%q, %v", data, err)
		}
		n.delete("talks")
	})

	t.Run("kubectl", func(t *testing.T) { n.in(t).kubectls(t) })

	t.Run("stats", func(t *testing.T) {
		data, err := client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/n1/proxy/stats/summary").DoRaw(t.Context())
		if err != nil {
			t.Fatalf("%v: %s", err, data)
		}
		var s statsapi.Summary
		if err := json.Unmarshal(data, &s); err != nil {
			t.Fatal(err)
		}
		if s.Node.NodeName != "n1" || *s.Node.CPU.UsageCoreNanoSeconds == 0 || *s.Node.Memory.WorkingSetBytes == 0 || s.Node.Fs == nil || s.Node.Runtime.ImageFs == nil {
			t.Errorf("the node: %s", data)
		}
		if len(s.Pods) != 2 || s.Pods[1].PodRef.Name != "web" || len(s.Pods[1].Containers) != 1 || *s.Pods[1].Containers[0].Memory.WorkingSetBytes == 0 ||
			*s.Pods[1].Containers[0].CPU.UsageCoreNanoSeconds == 0 || *s.Pods[1].EphemeralStorage.UsedBytes == 0 {
			t.Errorf("the pods: %s", data)
		}
		metrics, err := client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/n1/proxy/metrics/resource").DoRaw(t.Context())
		if want := `container_memory_working_set_bytes{container="c",namespace="default",pod="web"} `; err != nil || !strings.Contains(string(metrics), want) {
			t.Errorf("%v\n%s", err, metrics)
		}
		metrics, err = client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/n1/proxy/metrics/cadvisor").DoRaw(t.Context())
		for _, want := range []string{`container_memory_working_set_bytes{container="c",`, `container_processes{container="",`, `namespace="default",pod="web"} `} {
			if err != nil || !strings.Contains(string(metrics), want) {
				t.Errorf("want %s: %v\n%s", want, err, metrics)
			}
		}
	})

	t.Run("a token's owner", func(t *testing.T) {
		token, err := n.client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		node, err := n.client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		direct := rest.AnonymousClientConfig(config)
		direct.Host = fmt.Sprintf("https://%s:%d", containerdtest.NodeIP, node.Status.DaemonEndpoints.KubeletEndpoint.Port)
		get := func(token, path string) int {
			c := rest.CopyConfig(direct)
			c.BearerToken = token
			httpClient, err := rest.HTTPClientFor(c)
			if err != nil {
				t.Fatal(err)
			}
			r, err := httpClient.Get(c.Host + path)
			if err != nil {
				t.Fatal(err)
			}
			_ = r.Body.Close()
			return r.StatusCode
		}
		for _, test := range []struct {
			token, path string
			want        int
		}{
			{"", "/pods", http.StatusUnauthorized}, {"wrong", "/pods", http.StatusUnauthorized}, {token.Status.Token, "/stats/summary", http.StatusForbidden},
		} {
			if got := get(test.token, test.path); got != test.want {
				t.Errorf("%s with token %.5q: %d, want %d", test.path, test.token, got, test.want)
			}
		}
		_, err = n.client.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "stats"}, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"nodes/stats"}, Verbs: []string{"get"}},
		}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = n.client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "stats"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "stats"},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: "default"}},
		}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the token's owner to be let in", func(context.Context) (bool, error) {
			return get(token.Status.Token, "/stats/summary") == http.StatusOK, nil
		})
		if got := get(token.Status.Token, "/exec/default/web/c?command=id&output=1"); got != http.StatusForbidden {
			t.Errorf("exec by somebody who may see statistics: %d", got)
		}
	})
	if web.Status.PodIP == "" {
		t.Error("the pod has no address")
	}
	n.delete("web", "cat")
	n.clean()
}
