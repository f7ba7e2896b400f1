package clients

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/util/cert"
)

const limits = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s, labels: {set: pruned}}\ndata: {max: \"%d\"}\n"

// verbs are the steps of those verbs and flags that the story of the script has
// no use for. They need files: a plugin and a certificate.
func verbs(t *testing.T, home string) []step {
	t.Helper()
	certificate, key, err := cert.GenerateSelfSignedCertKey("web.example.com", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	path := func(name string) string { return filepath.Join(home, name) }
	for _, f := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{
		{"tls.crt", certificate, 0o600},
		{"tls.key", key, 0o600},
		{"kubectl-hello", []byte("#!/bin/sh\necho hello \"$@\"\n"), 0o700},
	} {
		if err := os.WriteFile(path(f.name), f.data, f.mode); err != nil {
			t.Fatal(err)
		}
	}
	one, two := fmt.Sprintf(limits, "one", 1), fmt.Sprintf(limits, "two", 2)
	return []step{
		{command: "create clusterrole lookout --verb=get --resource=nodes", want: `lookout created`},
		{command: "create clusterrole healthy --verb=get --non-resource-url=/healthz", want: `healthy created`},
		{command: "create clusterrolebinding lookout --clusterrole=lookout --user=dave", want: `lookout created`},
		{command: "auth can-i get nodes --as=dave", want: `yes`},
		{command: "create deployment made --image=made:1 --replicas=1", want: `deployment.apps/made created`},
		{command: "rollout status deployment/made --timeout=90s", want: `successfully rolled out`},
		{command: "create job from-nightly --from=cronjob/nightly", want: `from-nightly created`, since: 21},
		{command: "create secret docker-registry pull --docker-server=registry.example --docker-username=u --docker-password=p", want: `secret/pull created`},
		{command: "get secret pull -o", args: []string{"jsonpath={.type}"}, want: `^kubernetes.io/dockerconfigjson$`},
		{command: "create secret tls served --cert=" + path("tls.crt") + " --key=" + path("tls.key"), want: `secret/served created`},
		{command: "get secret served -o", args: []string{"jsonpath={.type}"}, want: `^kubernetes.io/tls$`},
		{command: "create service clusterip inner --tcp=80:8080", want: `service/inner created`},
		{command: "create service nodeport ported --tcp=80:8080 --node-port=30123", want: `service/ported created`},
		{command: "get service ported", want: `NodePort +\S+ +<none> +80:30123/TCP`},
		{command: "create service loadbalancer outer --tcp=80", want: `service/outer created`},
		{command: "create service externalname alias --external-name=example.com", want: `service/alias created`},
		{command: "get service alias", want: `ExternalName +<none> +example.com`},
		{command: "create configmap wrong --from-literal=a=1 --dry-run=server -o name", want: `configmap/wrong`},
		{command: "get configmap wrong", want: `"wrong" not found`, fails: true},

		{command: "set selector service inner", args: []string{"app=made"}, want: `selector updated`},
		{command: "get service inner -o", args: []string{"jsonpath={.spec.selector.app}"}, want: `^made$`},
		{command: "set env deployment/made --list", want: `Deployment made, container made`},
		{command: "set image deployment/made made=made:2 --dry-run=server", want: `image updated \(server dry run\)`},
		{command: "get deployment made -o", args: []string{"jsonpath={.spec.template.spec.containers[0].image}"}, want: `^made:1$`},

		{command: "get configmaps,secrets --chunk-size=1 -o name", want: `(?s)configmap/settings.*secret/keys`},
		{command: "get configmaps --chunk-size=1 --sort-by=.metadata.name --show-labels --no-headers", want: `(?s)kube-root-ca.crt.*settings`},
		{command: "get deployment made --subresource=scale -o", args: []string{"jsonpath={.kind} {.spec.replicas}"}, want: `^Scale 1$`, since: 24},
		{command: "get deployment made --subresource=status", want: `made +1/1`, since: 24},
		{command: "patch deployment made --subresource=scale --type=merge -p", args: []string{`{"spec":{"replicas":2}}`}, want: `scale.autoscaling/made patched`, since: 24},
		{command: "get deployment made -o", args: []string{"jsonpath={.spec.replicas}"}, want: `^2$`, since: 24},
		{command: "patch deployment made --dry-run=server -p", args: []string{`{"spec":{"replicas":7}}`}, want: `patched`},
		{command: "label deployment made --list", want: `app=made`},

		{command: "apply -f - --prune -l set=pruned --prune-whitelist=core/v1/ConfigMap", stdin: one + "---\n" + two, want: `(?s)one created.*two created`, until: 25},
		{command: "apply -f - --prune -l set=pruned --prune-whitelist=core/v1/ConfigMap", stdin: one, want: `(?s)one unchanged.*two pruned`, until: 25},
		{command: "apply -f - --prune -l set=pruned --prune-allowlist=core/v1/ConfigMap", stdin: one + "---\n" + two, want: `(?s)one created.*two created`, since: 26},
		{command: "apply -f - --prune -l set=pruned --prune-allowlist=core/v1/ConfigMap", stdin: one, want: `(?s)one unchanged.*two pruned`, since: 26},
		{command: "get configmap two", want: `"two" not found`, fails: true},
		{command: "apply set-last-applied -f -", stdin: strings.Replace(one, `"1"`, `"edit-me"`, 1), want: `one configured|one`},
		{command: "apply edit-last-applied configmap/one", want: `one edited`},
		{command: "apply view-last-applied configmap/one", want: `max: edited`},
		{command: "apply -f - --dry-run=server", stdin: strings.Replace(one, `"1"`, `"3"`, 1), want: `one configured \(server dry run\)`},
		{command: "replace -f -", stdin: strings.Replace(one, `"1"`, `"4"`, 1), want: `configmap/one replaced`},
		{command: "get configmap one -o", args: []string{"jsonpath={.data.max}"}, want: `^4$`},

		{command: "delete configmap one --dry-run=server", want: `deleted.* \(server dry run\)`},
		{command: "get configmap one", want: `one +1`},
		{command: "delete configmap -l set=pruned", want: `"one" deleted`},
		// The deployment goes and its replica set stays, which the next adopts and takes along.
		{command: "delete deployment made --cascade=orphan", want: `"made" deleted`},
		{command: "get replicasets -l app=made -o name", want: `replicaset.apps/made-`},
		{command: "delete replicasets -l app=made --cascade=foreground --timeout=90s", want: `deleted`},
		{command: "get replicasets -l app=made -o name", want: `^$`},
		{command: "create deployment made --image=made:1", want: `deployment.apps/made created`},
		{command: "delete deployment made --cascade=background", want: `"made" deleted`},
		{command: "delete service inner ported outer alias --now", want: `(?s)"inner" deleted.*"alias" deleted`},

		{command: "config current-context", want: `\S`},
		{command: "config get-contexts", want: `\* +\S+.*other`},
		{command: "config get-clusters", want: `(?m)^NAME$`},
		{command: "config get-users", want: `(?m)^NAME$`},
		{command: "config view --minify", want: `namespace: other`},
		{command: "config set-cluster spare --server=https://127.0.0.1:1", want: `Cluster "spare" set`},
		// Debian's 1.20 breaks where it writes a new user: it is older than the Go that it was built with.
		{command: "config set-credentials spare --token=none", want: `User "spare" set`, since: 21},
		{command: "config set-context spare --cluster=spare --user=spare", want: `Context "spare" created`},
		{command: "config set contexts.spare.namespace hold", want: `Property "contexts.spare.namespace" set`},
		{command: "config unset contexts.spare.namespace", want: `Property "contexts.spare.namespace" unset`},
		{command: "config rename-context spare extra", want: `renamed to "extra"`},
		{command: "config use-context extra", want: `Switched to context "extra"`},
		{command: "config use-context quaymaster", want: `Switched to context "quaymaster"`},
		{command: "config delete-context extra", want: `deleted context extra`},
		{command: "config delete-cluster spare", want: `deleted cluster spare`},
		{command: "config delete-user spare", want: `deleted user spare`, since: 21},

		{command: "plugin list", want: `kubectl-hello`},
		{command: "hello there", want: "^hello there\n$"},
		{command: "options", want: `--kubeconfig`},
	}
}

// testWatch sees an object come and change by kubectl get -w.
func testWatch(t *testing.T, kubectl commandLine) {
	t.Helper()
	out := kubectl.start(t, "get", "configmaps", "-w", "--namespace=default", "--field-selector=metadata.name=watched", "--output-watch-events")
	lines := bufio.NewScanner(out)
	for _, s := range []struct{ command, event string }{
		{"create configmap watched --namespace=default --from-literal=n=1", "ADDED watched 1"},
		{`patch configmap watched --namespace=default -p {"data":{"m":"2"}}`, "MODIFIED watched 2"},
		{"delete configmap watched --namespace=default", "DELETED watched 2"},
	} {
		if out, err := kubectl.run(t, strings.Fields(s.command)...); err != nil {
			t.Fatalf("kubectl %s: %v\n%s", s.command, err, out)
		}
		for got := ""; !strings.HasPrefix(got, s.event); got = strings.Join(strings.Fields(lines.Text()), " ") {
			if !lines.Scan() {
				t.Fatalf("kubectl get -w ended before %q: %v", s.event, lines.Err())
			}
		}
	}
}
