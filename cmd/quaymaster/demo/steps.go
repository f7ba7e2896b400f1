package demo

import (
	"context"
	"embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/quaymaster/quaymaster/examples/hello"
)

//go:embed manifests
var manifests embed.FS

func manifest(name string) []byte {
	data, err := manifests.ReadFile("manifests/" + name)
	if err != nil {
		panic(err) // the file is compiled in
	}
	return data
}

// startEngine starts the server half of Quaymaster in a process of its own.
func (t *tour) startEngine(ctx context.Context) error {
	begin := time.Now()
	address := t.address
	if address == "" {
		address = "127.0.0.1:0"
	}
	engine, err := start(ctx, t.Binary, t.logDir(), "engine", "ready:",
		"server", "--data", t.DataDir, "--listen", address, "--policies", t.policyDir())
	if err != nil {
		return err
	}
	t.engine = engine
	if err := t.connect(); err != nil {
		return err
	}
	body, err := t.kubernetes.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("ask /readyz: %w", err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", t.kubeconfig())
	if err != nil {
		return err
	}
	t.address = strings.TrimPrefix(config.Host, "https://")
	t.say("%s answered %q on /readyz after %s", config.Host, body, since(begin))
	return nil
}

// joinNodes starts one agent process for each node; each asks for a certificate
// with the join token.
func (t *tour) joinNodes(ctx context.Context) error {
	token, err := os.ReadFile(filepath.Join(t.DataDir, "join-token"))
	if err != nil {
		return fmt.Errorf("read the join token: %w", err)
	}
	image := filepath.Join(t.DataDir, "hello.wasm")
	if err := os.WriteFile(image, hello.Program, 0o600); err != nil {
		return err
	}
	local := filepath.Join(t.DataDir, "nodes", "local")
	importImage := exec.CommandContext(ctx, t.Binary, "image", "import", image, "localhost/hello:1.0", "--data", local)
	if out, err := importImage.CombinedOutput(); err != nil {
		return fmt.Errorf("import the image: %w: %s", err, out)
	}
	nodes := []struct {
		name, runtime string
		args          []string
	}{
		{"master01", "sim", []string{"--taint", "node-role.kubernetes.io/master:NoSchedule"}},
		{"node01", "sim", nil},
		{"node02", "sim", nil},
		{"local", "wasm", []string{"--taint", "kubernetes.io/arch=wasm:NoSchedule"}},
	}
	t.agents = make([]*process, len(nodes))
	failed := make(chan error, len(nodes))
	for i, node := range nodes {
		go func() {
			args := append([]string{"agent", "--server", "https://" + t.address, "--token", strings.TrimSpace(string(token)),
				"--name", node.name, "--runtime", node.runtime, "--data", filepath.Join(t.DataDir, "nodes", node.name)}, node.args...)
			var err error
			t.agents[i], err = start(ctx, t.Binary, t.logDir(), node.name, "ready:", args...)
			failed <- err
		}()
	}
	for range nodes {
		if err := <-failed; err != nil {
			return err
		}
	}
	return eventually(ctx, "four nodes to be Ready", func(ctx context.Context) (bool, error) {
		list, err := t.kubernetes.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		ready := 0
		for _, node := range list.Items {
			for _, condition := range node.Status.Conditions {
				if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
					ready++
				}
			}
		}
		if ready != len(nodes) {
			return false, nil
		}
		for _, node := range list.Items {
			t.say("%-9s Ready  %s", node.Name, node.Status.NodeInfo.ContainerRuntimeVersion)
		}
		return true, nil
	})
}

func (t *tour) nodeSelector(ctx context.Context) error {
	if err := t.apply(ctx, manifest("httpserver.yaml")); err != nil {
		return err
	}
	text, err := t.refusal(ctx, "httpserver")
	if err != nil {
		return err
	}
	if err := contains(text, "0/4 nodes are available:", "2 node(s) didn't match Pod's node affinity/selector", "2 node(s) had untolerated taint(s)"); err != nil {
		return err
	}
	t.say("Pending: %s", text)
	if err := t.label(ctx, "node01", "disktype", "ssd"); err != nil {
		return err
	}
	t.say("kubectl label node node01 disktype=ssd")
	pods, err := t.running(ctx, "httpserver", 1)
	if err != nil {
		return err
	}
	if pods[0].Spec.NodeName != "node01" {
		return fmt.Errorf("the pod runs on %s, not on node01", pods[0].Spec.NodeName)
	}
	t.say("Running: %s on %s", pods[0].Name, pods[0].Spec.NodeName)
	return nil
}

func (t *tour) taints(ctx context.Context) error {
	taint := []byte(`{"spec":{"taints":[{"key":"for-special-user","value":"cadmin","effect":"NoSchedule"}]}}`)
	for _, node := range []string{"node01", "node02"} {
		if _, err := t.kubernetes.CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, taint, metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("taint %s: %w", node, err)
		}
		t.say("kubectl taint node %s for-special-user=cadmin:NoSchedule", node)
	}
	if err := t.taintsSeen(ctx, "httpserver"); err != nil {
		return err
	}
	for _, name := range []string{"plain.yaml", "tolerant.yaml"} {
		if err := t.apply(ctx, manifest(name)); err != nil {
			return err
		}
	}
	text, err := t.refusal(ctx, "plain")
	if err != nil {
		return err
	}
	if err := contains(text, "0/4 nodes are available:", "4 node(s) had untolerated taint(s)"); err != nil {
		return err
	}
	t.say("plain:    Pending: %s", text)
	pods, err := t.running(ctx, "tolerant", 1)
	if err != nil {
		return err
	}
	t.say("tolerant: Running on %s", pods[0].Spec.NodeName)
	untaint := []byte(`{"spec":{"taints":[]}}`)
	for _, node := range []string{"node01", "node02"} {
		if _, err := t.kubernetes.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, untaint, metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("untaint %s: %w", node, err)
		}
	}
	if pods, err = t.running(ctx, "plain", 1); err != nil {
		return err
	}
	t.say("taints removed; plain: Running on %s", pods[0].Spec.NodeName)
	for _, name := range []string{"plain", "tolerant"} {
		if err := t.deleteDeployment(ctx, name); err != nil {
			return err
		}
	}
	t.say("both deleted, with their replica sets and pods")
	return nil
}

// taintsSeen waits until the scheduler would refuse every node to the app's one
// pod for its taints.
func (t *tour) taintsSeen(ctx context.Context, app string) error {
	return eventually(ctx, "the scheduler to see the taints", func(ctx context.Context) (bool, error) {
		pods, err := t.pods(ctx, app)
		if err != nil || len(pods) != 1 {
			return false, err
		}
		decision, err := t.ours.Decisions(pods[0].Namespace).Get(ctx, pods[0].Name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, node := range decision.Nodes {
			if node.Filter == nil || node.Filter.Plugin != "TaintToleration" {
				return false, nil
			}
		}
		return true, nil
	})
}

// workload runs a WebAssembly program and reads what it said and how it ended.
func (t *tour) workload(ctx context.Context) error {
	if err := t.apply(ctx, manifest("workload.yaml")); err != nil {
		return err
	}
	pods := t.kubernetes.CoreV1().Pods(metav1.NamespaceDefault)
	var ended *corev1.ContainerStateTerminated
	err := eventually(ctx, "the pod hello to end", func(ctx context.Context) (bool, error) {
		pod, err := pods.Get(ctx, "hello", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		if len(pod.Status.ContainerStatuses) == 1 {
			ended = pod.Status.ContainerStatuses[0].State.Terminated
		}
		return pod.Status.Phase == corev1.PodFailed && ended != nil, nil
	})
	if err != nil {
		return err
	}
	stream, err := pods.GetLogs("hello", &corev1.PodLogOptions{}).Stream(ctx)
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	defer stream.Close()
	log, err := io.ReadAll(stream)
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	if err := contains(string(log), "hello from a pod"); err != nil {
		return err
	}
	for line := range strings.Lines(string(log)) {
		t.say("kubectl logs hello: %s", strings.TrimSpace(line))
	}
	if ended.ExitCode != 3 {
		return fmt.Errorf("exit code %d in the status, the program was asked for 3", ended.ExitCode)
	}
	t.say("status: %s, exit code %d", ended.Reason, ended.ExitCode)
	return nil
}

func (t *tour) label(ctx context.Context, node, key, value string) error {
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, key, value)
	_, err := t.kubernetes.CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("label %s: %w", node, err)
	}
	return nil
}

func contains(text string, parts ...string) error {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return fmt.Errorf("expected %q in %q", part, text)
		}
	}
	return nil
}
