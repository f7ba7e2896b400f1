package e2e

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// conflist is a network whose pods have an address of each of the prefixes, on a bridge of theirs; more plugins come after it.
func (n *node) conflist(prefixes []string, more ...string) string {
	var ranges, routes, plugins []string
	for _, p := range prefixes {
		ranges = append(ranges, fmt.Sprintf(`[{"subnet": %q}]`, p))
		routes = append(routes, map[bool]string{true: `{"dst": "0.0.0.0/0"}`, false: `{"dst": "::/0"}`}[netip.MustParsePrefix(p).Addr().Is4()])
	}
	for _, m := range more {
		plugins = append(plugins, fmt.Sprintf(`, {"type": %q}`, m))
	}
	return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "test", "plugins": [
  {"type": "bridge", "bridge": "qm%08x", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": %q, "ranges": [%s], "routes": [%s]}}%s]}`,
		crc32.ChecksumIEEE([]byte(strings.Join(prefixes, " "))), filepath.Join(n.daemon.Dir, "ipam"), strings.Join(ranges, ", "), strings.Join(routes, ", "), strings.Join(plugins, ""))
}

// plugin installs a CNI plugin that is a shell script, beside the standard ones.
func (n *node) plugin(name, script string) {
	n.t.Helper()
	dir := n.daemon.PluginDir()
	if onOCI() {
		dir = filepath.Join(n.oci(), "bin")
	}
	n.write(filepath.Join(dir, name), script, 0o755)
}

// TestNetworkFails has a CNI plugin that fails for one pod and hangs for another one: each says so, no
// other pod notices, and they run when the plugin is mended.
func TestNetworkFails(t *testing.T) {
	n := newNode(t)
	n.create(n.podOf("stays", forever, always))
	before := n.ready("stays")
	begun := filepath.Join(n.daemon.Dir, "begun")
	n.plugin("moody", fmt.Sprintf(`#!/bin/sh
config=$(cat)
if [ "$CNI_COMMAND" = VERSION ]; then echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'; exit; fi
if [ "$CNI_COMMAND" != ADD ]; then exit; fi
case "$CNI_ARGS" in
*K8S_POD_NAME=fails*) echo '{"cniVersion":"1.0.0","code":100,"msg":"this pod is not to my taste"}'; exit 1 ;;
*K8S_POD_NAME=hangs*) echo $$ > %s.new; mv %[1]s.new %[1]s; exec sleep 1000 ;;
esac
`, begun)+passOn)
	n.setNetwork(n.conflist([]string{"10.88.1.0/24"}, "moody"))
	n.create(n.podOf("fails", forever))
	n.event("fails", "FailedCreatePodSandBox", "this pod is not to my taste")
	n.create(n.podOf("hangs", forever))
	var pid int
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		data, _ := os.ReadFile(begun)
		if _, err := fmt.Sscan(string(data), &pid); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the plugin does not begin")
		}
	}
	n.create(n.podOf("later", forever))
	n.phase("later", v1.PodRunning)
	n.unharmed(before, "a plugin that hangs")
	n.nodeReady(v1.ConditionTrue)
	n.setNetwork(n.conflist([]string{"10.88.1.0/24"}))
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.event("hangs", "FailedCreatePodSandBox", "network")
	n.phase("hangs", v1.PodRunning)
	n.phase("fails", v1.PodRunning)
	n.delete("fails", "hangs", "later")

	// A configuration whose plugins are not there.
	n.setNetwork(n.conflist([]string{"10.88.1.0/24"}, "magic"))
	n.create(n.podOf("nowhere", forever, func(p *v1.Pod) {
		p.Spec.Tolerations = []v1.Toleration{{Operator: v1.TolerationOpExists}}
	}))
	n.event("nowhere", "FailedCreatePodSandBox", "magic")
	n.unharmed(before, "a network without its plugins")
	n.setNetwork(n.conflist([]string{"10.88.1.0/24"}))
	n.phase("nowhere", v1.PodRunning)
	n.nodeReady(v1.ConditionTrue)
	n.delete("nowhere", "stays")
	n.clean()
}

// passOn ends a plugin's script that leaves the result of those before it as it is.
const passOn = `
rest=${config#*\"prevResult\":}
depth=0 out=
while [ -n "$rest" ]; do
	c=${rest%"${rest#?}"} rest=${rest#?} out=$out$c
	case $c in
	"{") depth=$((depth+1)) ;;
	"}") depth=$((depth-1)); [ $depth = 0 ] && break ;;
	esac
done
echo "$out"
`

// served makes a pod ready when it serves a page at port 8080.
func served(p *v1.Pod) {
	p.Spec.Containers[0].ReadinessProbe = &v1.Probe{PeriodSeconds: 1, TimeoutSeconds: 30, ProbeHandler: v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)}}}
}

// TestAddresses gives pods addresses of both families, then of IPv6 alone.
func TestAddresses(t *testing.T) {
	if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Skipf("this machine has no IPv6: %v", err)
	} else {
		_ = l.Close()
	}
	n := newNode(t)
	const www = "mkdir /tmp/www; echo hello > /tmp/www/index.html; httpd -p [::]:8080 -h /tmp/www; cat /etc/hosts; " + forever
	for name, test := range map[string]struct {
		prefixes []string
		six      []bool // of each of the pod's addresses, in order
	}{
		"both": {[]string{"10.88.2.0/24", "fd00:88:2::/64"}, []bool{false, true}},
		"six":  {[]string{"fd00:88:3::/64"}, []bool{true}},
	} {
		t.Run(name, func(t *testing.T) {
			n := n.in(t)
			n.setNetwork(n.conflist(test.prefixes))
			n.create(n.podOf(name, www, served))
			pod := n.ready(name)
			if len(pod.Status.PodIPs) != len(test.six) || pod.Status.PodIPs[0].IP != pod.Status.PodIP {
				t.Fatalf("addresses %v, the first %s", pod.Status.PodIPs, pod.Status.PodIP)
			}
			hosts := n.log(name, "c")
			for i, p := range pod.Status.PodIPs {
				address := netip.MustParseAddr(p.IP)
				if address.Is6() != test.six[i] || !netip.MustParsePrefix(test.prefixes[i]).Contains(address) {
					t.Errorf("address %d is %s", i, address)
				}
				// The node's own new address cannot be spoken from at once: a connection that came too early is tried again.
				const patience = 5 * time.Second // of a dial, too: one that is left goes on without its request
				client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: patience}).DialContext}, Timeout: patience}
				eventually(t, "the page at "+p.IP, func(context.Context) (bool, error) {
					r, err := client.Get("http://" + netip.AddrPortFrom(address, 8080).String())
					if err != nil {
						return false, nil
					}
					defer r.Body.Close()
					page, err := io.ReadAll(r.Body)
					return err == nil && string(page) == "hello\n", nil
				})
				if !strings.Contains(hosts, p.IP+"\t"+name) {
					t.Errorf("/etc/hosts has no %s:\n%s", p.IP, hosts)
				}
			}
			n.delete(name)
		})
	}
	n.clean()
}
