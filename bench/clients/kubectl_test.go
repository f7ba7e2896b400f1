package clients

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// release is the one that a client says it is of.
const release = "-X=k8s.io/component-base/version.gitVersion=v1.36.3 -X=k8s.io/component-base/version.gitMajor=1 -X=k8s.io/component-base/version.gitMinor=36"

// TestKubectl runs the verbs that need no container with the client in our
// binary, with one that was built from k8s.io/kubectl, and with Debian's of
// release 1.20, which is sixteen releases older than the server.
func TestKubectl(t *testing.T) {
	for name, command := range map[string]func(*testing.T) []string{
		"embedded": func(t *testing.T) []string {
			return []string{build(t, "../..", "./cmd/quaymaster", "-ldflags="+release), "kubectl"}
		},
		"upstream": func(t *testing.T) []string { return []string{build(t, ".", "./kubectl", "-ldflags="+release)} },
		"debian":   func(t *testing.T) []string { return []string{debian(t)} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			release := 36
			if name == "debian" {
				release = 20
			}
			kubectl := startEngine(t).program(t, command(t)...)
			testProxy(t, kubectl)
			testWatch(t, kubectl)
			for _, s := range slices.Concat(script[:len(script)-leave], certificates(t), verbs(t, kubectl.home), script[len(script)-leave:]) {
				if !s.runs(release) {
					continue
				}
				kubectl.stdin = s.stdin
				args := strings.Fields(s.command)
				if s.args != nil {
					args = append(args, s.args...)
				}
				out, err := kubectl.run(t, args...)
				if (err != nil) != s.fails {
					t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
				}
				if !regexp.MustCompile(s.want).MatchString(out) {
					t.Errorf("kubectl %s: want %q in\n%s", strings.Join(args, " "), s.want, out)
				}
			}
		})
	}
}

// debian finds the kubectl of Debian's package kubernetes-client, or unpacks the
// package, as other packages have a file of the same name.
func debian(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("KUBECTL_DEBIAN"); path != "" {
		return path
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("no apt-get, so no package of Debian: set KUBECTL_DEBIAN to a kubectl of release 1.20")
	}
	dir := t.TempDir()
	for _, command := range []*exec.Cmd{exec.Command("apt-get", "download", "kubernetes-client"), exec.Command("sh", "-c", "dpkg-deb -x kubernetes-client_*.deb .")} {
		command.Dir = dir
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s\nrun apt-get update, or set KUBECTL_DEBIAN to a kubectl of release 1.20", strings.Join(command.Args, " "), err, out)
		}
	}
	return filepath.Join(dir, "usr", "bin", "kubectl")
}

// step is one command. since is the release that brought it or whose client
// can do it with this server, until the last that had it; 0 is any.
type step struct {
	command string
	args    []string // more, with spaces in them
	stdin   string
	want    string // a regular expression that the output matches
	fails   bool
	since   int
	until   int
}

func (s step) runs(release int) bool {
	return s.since <= release && (s.until == 0 || release <= s.until)
}

const deployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web, annotations: {note: edit-me}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "web:1", resources: {requests: {cpu: 10m}}}]}
`

// certificates has one request approved and signed, and another denied.
func certificates(t *testing.T) []step {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "alice"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	text := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request}))
	var out []step
	for _, name := range []string{"alice", "mallory"} {
		out = append(out, step{command: "create -f -", want: name + " created", stdin: fmt.Sprintf("apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\n"+
			"metadata: {name: %s}\nspec: {request: %s, signerName: kubernetes.io/kube-apiserver-client, usages: [client auth]}\n", name, text)})
	}
	return append(out,
		step{command: "certificate approve alice", want: `alice approved`},
		step{command: "certificate deny mallory", want: `mallory denied`},
		step{command: "wait csr/alice --for=condition=Approved --timeout=90s", want: `condition met`},
		step{command: "wait csr/alice", args: []string{"--for=jsonpath={.status.certificate}", "--timeout=90s"}, want: `condition met`, since: 31},
		step{command: "get csr alice", want: `kubernetes-admin .*Approved`},
		step{command: "get csr mallory", want: `Denied`},
		step{command: "describe csr alice", want: `Common Name: +alice`},
	)
}

// start runs kubectl until the test ends, for limit at most, and returns what it prints.
func (kubectl commandLine) start(t *testing.T, args ...string) io.Reader {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	command := exec.CommandContext(ctx, kubectl.command[0], append(slices.Clone(kubectl.command[1:]), args...)...)
	command.Env = []string{"KUBECONFIG=" + kubectl.kubeconfig, "HOME=" + kubectl.home}
	out, err := command.StdoutPipe()
	if err == nil {
		err = command.Start()
	}
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = command.Wait() // it was killed
	})
	return out
}

// testProxy reads through kubectl proxy, which adds the credentials.
func testProxy(t *testing.T, kubectl commandLine) {
	t.Helper()
	out := kubectl.start(t, "proxy", "--port=0")
	line, err := bufio.NewReader(out).ReadString('\n')
	address, ok := strings.CutPrefix(strings.TrimSpace(line), "Starting to serve on ")
	if err != nil || !ok {
		t.Fatalf("kubectl proxy says %q, %v", line, err)
	}
	response, err := http.Get("http://" + address + "/api/v1/namespaces/default")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK || !strings.Contains(string(body), `"kind": "Namespace"`) && !strings.Contains(string(body), `"kind":"Namespace"`) {
		t.Errorf("through kubectl proxy: %s: %.200s, %v", response.Status, body, err)
	}
}

// leave is how many commands at the end of the script take away what others need.
const leave = 3

const boats = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.harbour.example}
spec:
  group: harbour.example
  scope: Namespaced
  names: {kind: Boat, plural: boats, singular: boat, shortNames: [bt], categories: [fleet]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.masts, statusReplicasPath: .status.masts}}
    additionalPrinterColumns: [{name: Masts, type: integer, jsonPath: .spec.masts}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {masts: {type: integer, description: How many masts it has., default: 1, maximum: 5}}}
          status: {type: object, properties: {masts: {type: integer}}}
`

var script = []step{
	{command: "version", want: `v1\.36`},
	{command: "cluster-info", want: `control plane.*https://127.0.0.1|master.*https://127.0.0.1`},
	{command: "api-versions", want: `(?m)^apps/v1$`},
	{command: "api-resources --api-group=apps", want: `deployments +deploy`},
	{command: "explain deployment.spec.strategy.type", want: `(?i)RollingUpdate`},
	{command: "get nodes -o wide", want: `node02 +Ready`},
	{command: "get --raw /readyz", want: `ok`},
	{command: "get componentstatuses", want: `scheduler +Healthy`},
	{command: "get cs etcd-0", want: `etcd-0 +Healthy +ok`},
	{command: "create namespace other", want: `namespace/other created`},
	{command: "config set-context --current --namespace=other", want: `modified`},
	{command: "create configmap settings --from-literal=a=1 --dry-run=client -o yaml", want: `a: "1"`},
	{command: "create configmap settings --from-literal=a=1", want: `configmap/settings created`},
	{command: "create secret generic keys --from-literal=b=2", want: `secret/keys created`},
	{command: "create serviceaccount robot", want: `serviceaccount/robot created`},
	{command: "create role reader --verb=get,list --resource=pods", want: `reader created`},
	{command: "create rolebinding reader --role=reader --serviceaccount=other:robot", want: `reader created`},
	{command: "auth can-i list pods --as=system:serviceaccount:other:robot", want: `yes`},
	{command: "auth can-i delete pods --as=system:serviceaccount:other:robot", want: `no`, fails: true},
	{command: "auth whoami", want: `Username`, since: 26},
	{command: "create token robot", want: `^[\w-]+\.[\w-]+\.[\w-]+`, since: 24},
	{command: "create quota few --hard=configmaps=20", want: `few created`},
	{command: "describe quota few", want: `configmaps +\d+ +20`},

	{command: "apply -f -", stdin: deployment, want: `deployment.apps/web created`},
	{command: "apply -f -", stdin: deployment, want: `deployment.apps/web unchanged`},
	{command: "rollout status deployment/web --timeout=90s", want: `successfully rolled out`},
	{command: "get deployment web", want: `web +2/2 +2 +2`},
	{command: "get pods -l app=web --field-selector=status.phase=Running -o name", want: `pod/web-`},
	{command: "get deployment web -o", args: []string{"jsonpath={.spec.template.spec.containers[0].image}"}, want: `^web:1$`},
	{command: "get deployment web -o", args: []string{"custom-columns=N:.metadata.name,R:.spec.replicas"}, want: `web +2`},
	{command: "describe deployment web", want: `ScalingReplicaSet`},
	{command: "diff -f -", stdin: strings.Replace(deployment, "web:1", "web:9", 1), want: `web:9`, fails: true},
	{command: "apply --server-side --field-manager=other -f -", stdin: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: applied}\ndata: {x: \"1\"}\n", want: `serverside-applied`},
	{command: "apply --server-side --field-manager=third -f -", stdin: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: applied}\ndata: {x: \"2\"}\n", want: `conflict`, fails: true},
	{command: "edit deployment web", want: `edited`},
	{command: "get deployment web -o", args: []string{"jsonpath={.metadata.annotations.note}"}, want: `^edited$`},
	{command: "label deployment web tier=front", want: `labeled`},
	{command: "annotate deployment web by=hand", want: `annotate`},
	{command: "patch deployment web -p", args: []string{`{"spec":{"minReadySeconds":0}}`}, want: `patched`},
	{command: "patch deployment web --type=merge -p", args: []string{`{"metadata":{"labels":{"tier":null}}}`}, want: `patched`},
	{command: "patch deployment web --type=json -p", args: []string{`[{"op":"test","path":"/metadata/name","value":"web"}]`}, want: `patched`},
	{command: "set image deployment/web web=web:2", want: `image updated`},
	{command: "rollout status deployment/web --timeout=90s", want: `successfully rolled out`},
	{command: "rollout history deployment/web", want: `(?m)^2 `},
	{command: "rollout undo deployment/web", want: `rolled back`},
	{command: "rollout status deployment/web --timeout=90s", want: `successfully rolled out`},
	{command: "get deployment web -o", args: []string{"jsonpath={.spec.template.spec.containers[0].image}"}, want: `^web:1$`},
	{command: "rollout pause deployment/web", want: `paused`},
	{command: "rollout resume deployment/web", want: `resumed`},
	{command: "rollout restart deployment/web", want: `restarted`},
	{command: "rollout status deployment/web --timeout=90s", want: `successfully rolled out`},
	{command: "set env deployment/web A=B", want: `env updated`},
	{command: "set resources deployment/web --limits=cpu=200m", want: `resource requirements updated`},
	{command: "rollout status deployment/web --timeout=90s", want: `successfully rolled out`},
	{command: "scale deployment/web --replicas=3", want: `scaled`},
	{command: "wait deployment/web --for=condition=Available --timeout=90s", want: `condition met`},
	{command: "wait deployment/web", args: []string{"--for=jsonpath={.status.readyReplicas}=3", "--timeout=90s"}, want: `condition met`, since: 23},
	{command: "autoscale deployment/web --min=1 --max=5", want: `autoscaled`},
	{command: "get hpa web", want: `Deployment/web`, since: 26}, // 1.20 reads autoscaling/v1beta
	{command: "expose deployment web --port=80", want: `service/web exposed`},
	{command: "get endpoints web", want: `web +\d+\.\d+\.\d+\.\d+:80`},
	{command: "get endpointslices -l kubernetes.io/service-name=web", want: `IPv4 +80`},
	{command: "describe service web", want: `Endpoints: +\d+\.`},
	{command: "get events --field-selector=reason=ScalingReplicaSet", want: `ScalingReplicaSet`},
	{command: "events --for deployment/web", want: `ScalingReplicaSet`, since: 26},

	{command: "run single --image=single:1 --restart=Never", want: `pod/single created`},
	{command: "wait pod/single --for=condition=Ready --timeout=90s", want: `condition met`},
	{command: "describe pod single", want: `Scheduled|Started`},
	{command: "debug single --image=debugger:1 --target=single --attach=false", want: `debugger-`, since: 25},
	{command: "get pod single -o", args: []string{"jsonpath={.spec.ephemeralContainers[0].image} {.spec.ephemeralContainers[0].targetContainerName}"}, want: `^debugger:1 single$`, since: 25},
	{command: "debug single --image=debugger:2 --copy-to=copied --container=single --attach=false", want: `^$`, since: 25},
	{command: "get pod copied -o", args: []string{"jsonpath={.spec.containers[0].image}"}, want: `^debugger:2$`, since: 25},
	{command: "replace --force -f -", stdin: "apiVersion: v1\nkind: Pod\nmetadata: {name: single}\nspec: {containers: [{name: single, image: \"single:2\"}], terminationGracePeriodSeconds: 0}\n", want: `pod/single replaced`},
	{command: "delete pod single --wait --timeout=90s", want: `deleted`},
	{command: "create job once --image=once:1", want: `job.batch/once created`},
	{command: "delete job once", want: `deleted`},
	{command: "apply -f -", stdin: "apiVersion: v1\nkind: Pod\nmetadata: {name: says, annotations: {sim.quaymaster.dev/log: \"one line\"}}\nspec: {containers: [{name: says, image: \"says:1\"}], nodeSelector: {kubernetes.io/hostname: node02}, terminationGracePeriodSeconds: 0}\n", want: `pod/says created`},
	{command: "wait pod/says --for=condition=Ready --timeout=90s", want: `condition met`},
	{command: "logs says", want: `^one line\n$`},
	{command: "logs pod/says --tail=1 --timestamps", want: `^\d{4}-.* one line\n$`},
	{command: "apply view-last-applied pod/says", want: `one line`},
	{command: "delete pod says", want: `deleted`},
	{command: "create cronjob nightly --image=n:1", args: []string{"--schedule=0 3 * * *"}, want: `nightly created`, since: 21},
	{command: "get cronjobs", want: `0 3 \* \* \*`, since: 21},
	{command: "create poddisruptionbudget web --selector=app=web --min-available=1", want: `web created`, since: 21},
	{command: "get pdb web", want: `web +1`, since: 21},
	{command: "create ingress web", args: []string{"--rule=example.com/*=web:80"}, want: `web created`, since: 20},
	{command: "get ingress web", want: `example.com`},
	{command: "create priorityclass high --value=1000", want: `high created`},

	{command: "wait node/measured --for=condition=Ready --timeout=90s", want: `condition met`},
	{command: "top node measured", want: `measured +\d+m`},
	{command: "top node", want: `measured +\d+m`},
	{command: "top pods", want: `No resources found|metrics not available yet`, fails: true},

	{command: "apply -f -", stdin: boats, want: `boats.harbour.example created`},
	{command: "wait crd/boats.harbour.example --for=condition=Established --timeout=90s", want: `condition met`},
	{command: "create -f -", stdin: "apiVersion: harbour.example/v1\nkind: Boat\nmetadata: {name: ketch}\nspec: {masts: 2}\n", want: `boat.harbour.example/ketch created`},
	{command: "create -f -", stdin: "apiVersion: harbour.example/v1\nkind: Boat\nmetadata: {name: ship}\nspec: {masts: 9}\n", want: `should be less than or equal to 5`, fails: true},
	{command: "get bt", want: `ketch +2`},
	{command: "get fleet", want: `ketch`},
	{command: "scale boat/ketch --replicas=3", want: `scaled`},
	{command: "get boat ketch -o", args: []string{"jsonpath={.spec.masts}"}, want: `^3$`},
	{command: "explain boat.spec.masts", want: `How many masts it has`, since: 26},
	{command: "get apiservices v1.harbour.example", want: `Local +True`},
	{command: "get apiservices v1.apps v1beta1.metrics.k8s.io", want: `v1.apps +Local +True`},
	{command: "get servicecidrs", want: `kubernetes +10.96.0.0/16`},
	{command: "get ipaddresses 10.96.0.1", want: `services/default/kubernetes`},
	{command: "delete crd boats.harbour.example", want: `deleted`},

	{command: "kustomize testdata/kustomize", want: `name: kustom-made`},
	{command: "apply -k testdata/kustomize", want: `configmap/kustom-settings created`},
	{command: "diff -k testdata/kustomize", want: `^$`},
	{command: "delete -k testdata/kustomize", want: `deleted`},
	{command: "auth reconcile -f -", stdin: "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: reader, namespace: other}\nrules: [{apiGroups: [\"\"], resources: [pods, services], verbs: [get, list]}]\n", want: `reconciled`},
	{command: "auth can-i --list --as=system:serviceaccount:other:robot", want: `services +\[\] +\[\] +\[get list\]`},
	{command: "set subject rolebinding reader --user=carol", want: `updated`},
	{command: "set serviceaccount deployment web robot", want: `updated`},
	{command: "cluster-info dump --namespaces=other -o json", want: `"kind": "(NodeList|PodList|DeploymentList)"`},
	{command: "completion bash", want: `kubectl`},

	{command: "taint node node01 key=value:NoSchedule", want: `tainted`},
	{command: "taint node node01 key-", want: `untainted`},
	{command: "cordon node01", want: `cordoned`},
	{command: "get node node01", want: `SchedulingDisabled`},
	{command: "uncordon node01", want: `uncordoned`},
	{command: "drain node01 --ignore-daemonsets --force --timeout=90s", want: `drained|evicted`, since: 22}, // 1.20 evicts by policy/v1beta1
	{command: "uncordon node01", want: `uncordoned`},
	{command: "rollout status deployment/web --timeout=90s", want: `successfully rolled out`},

	{command: "get nosuchkind", want: `the server doesn't have a resource type "nosuchkind"`, fails: true},
	{command: "get deployment none", want: `deployments.apps "none" not found`, fails: true},
	{command: "create configmap settings", want: `already exists`, fails: true},
	{command: "apply -f -", stdin: "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {containers: []}\n", want: `spec.containers: Required value`, fails: true},
	{command: "apply -f -", stdin: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bad}\ndatum: {}\n", want: `unknown field "datum"|ValidationError.*datum`, fails: true},
	{command: "delete deployment,service,ingress,hpa web --ignore-not-found", want: `deployment.apps "web" deleted`},
	{command: "delete namespace other --timeout=90s", want: `namespace "other" deleted`},
	{command: "get namespaces", want: `kube-system`},
}
