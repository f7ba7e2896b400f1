package apiserver_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/kubectl/pkg/cmd"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: httpserver}
spec:
  replicas: 2
  selector: {matchLabels: {app: httpserver}}
  template:
    metadata: {labels: {app: httpserver}}
    spec:
      containers:
      - {name: main, image: registry.example/httpserver:1, resources: {requests: {cpu: 100m, memory: 100Mi}}}
`

// TestKubectl runs upstream's kubectl against the port.
func TestKubectl(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t); o.Version = "v0.1.0" })
	dir := t.TempDir()
	manifest, policy := filepath.Join(dir, "deployment.yaml"), filepath.Join(dir, "policy.yaml")
	for path, content := range map[string]string{
		manifest: deployment,
		policy:   "apiVersion: policy.quaymaster.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec: {engine: Rego, source: {rego: package p}}\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kubectl := kubectlFor(t, c)
	for _, test := range []struct{ args, want string }{
		{"version", `Server Version: v1\.36\.3\+quaymaster-0\.1\.0`},
		{"get namespaces", `(?s)NAME +STATUS +AGE\n.*kube-system +Active +\d+s`},
		{"apply -f " + manifest, `deployment.apps/httpserver created`},
		{"apply -f " + manifest, `deployment.apps/httpserver unchanged`},
		{"apply --server-side --force-conflicts -f " + manifest, `deployment.apps/httpserver serverside-applied`},
		{"get deploy", `NAME +READY +UP-TO-DATE +AVAILABLE +AGE\nhttpserver +0/2 +0 +0 +\d+s`},
		{"get deployments -o wide", `CONTAINERS +IMAGES +SELECTOR\n.* main +registry.example/httpserver:1 +app=httpserver`},
		{"scale deployment httpserver --replicas=5", `deployment.apps/httpserver scaled`},
		{"get deployment httpserver -o jsonpath={.spec.replicas}", `^5$`},
		{"set image deployment/httpserver main=registry.example/httpserver:2", `deployment.apps/httpserver image updated`},
		{"describe deployment httpserver", `(?s)Replicas: +5 desired.*Image: +registry.example/httpserver:2`},
		{"explain pod.spec.tolerations.effect", `(?s)KIND: +Pod.*Effect indicates the taint effect to match`},
		{"explain policy.spec.engine", `(?s)GROUP: +policy.quaymaster.dev.*Engine runs the policy.`},
		{"apply -f " + policy, `policy.policy.quaymaster.dev/p created`},
		{"get pol", `NAME +ENGINE +POINTS +READY +GENERATION +DIGEST +AGE\np +Rego +Unknown +0 +\d+s`},
		{"api-resources --api-group=policy.quaymaster.dev", `policies +pol +policy.quaymaster.dev/v1alpha1 +false +Policy`},
		{"api-resources", `(?s)pods +po +v1 +true +Pod.*horizontalpodautoscalers +hpa +autoscaling/v2.*decisions +decision.quaymaster.dev/v1alpha1 +true +Decision`},
		{"get all", `(?s)service/kubernetes +ClusterIP +10\.96\.0\.1 .*deployment.apps/httpserver`},
		{"create configmap c --from-literal=a=b", `configmap/c created`},
		{"label configmap c x=y", `configmap/c labeled`},
		{"get cm c -o yaml", `(?s)apiVersion: v1\ndata:\n  a: b\nkind: ConfigMap.*x: "?y"?`},
		{"get events.events.k8s.io", `No resources found in default namespace`},
		{"auth can-i create pods", `yes`},
		{"auth whoami", `Username +kubernetes-admin`},
		{"get pods nothing", `Error from server \(NotFound\): pods "nothing" not found`},
		{"delete -f " + manifest, `deployment.apps "httpserver" deleted`},
		{"get deploy", `No resources found in default namespace`},
	} {
		if out := kubectl(strings.Fields(test.args)...); !regexp.MustCompile(test.want).MatchString(out) {
			t.Errorf("kubectl %s\nwant: %s\n got: %s", test.args, test.want, out)
		}
	}
	broken := strings.Replace(deployment, "replicas:", "replicaz:", 1)
	if err := os.WriteFile(manifest, []byte(broken), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := kubectl("apply", "-f", manifest); !strings.Contains(out, `unknown field "spec.replicaz"`) {
		t.Errorf("an unknown field: %s", out)
	}
}

// kubectlFor runs upstream's kubectl with an administrator's kubeconfig and
// returns what it prints.
func kubectlFor(t testing.TB, c *cluster) func(args ...string) string {
	t.Helper()
	cmdutil.BehaviorOnFatal(func(message string, _ int) { panic(fatal(message)) })
	t.Cleanup(cmdutil.DefaultBehaviorOnFatal)
	dir := t.TempDir()
	kubeconfig, cache := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "cache")
	data, err := c.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kubeconfig, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return func(args ...string) (out string) {
		var stdout, stderr bytes.Buffer
		defer func() {
			out = stdout.String() + stderr.String()
			if p := recover(); p != nil {
				message, ok := p.(fatal)
				if !ok {
					panic(p)
				}
				out += string(message)
			}
		}()
		flags := genericclioptions.NewConfigFlags(true)
		flags.CacheDir, flags.KubeConfig = &cache, &kubeconfig
		command := cmd.NewKubectlCommand(cmd.KubectlOptions{
			IOStreams:   genericiooptions.IOStreams{In: strings.NewReader(""), Out: &stdout, ErrOut: &stderr},
			ConfigFlags: flags, Arguments: append([]string{"kubectl"}, args...),
		})
		command.SetArgs(args)
		command.SetOut(&stdout)
		command.SetErr(&stderr)
		if err := command.Execute(); err != nil {
			fmt.Fprintln(&stderr, err)
		}
		return
	}
}

// fatal is what kubectl would exit with.
type fatal string
