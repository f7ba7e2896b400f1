package agent

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// resolvConf is the machine's own.
const resolvConf = "/etc/resolv.conf"

// parseResolv reads the lines of a resolv.conf that matter to pods.
func parseResolv(data []byte) *runtimeapi.DNSConfig {
	out := &runtimeapi.DNSConfig{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			out.Servers = append(out.Servers, fields[1])
		case "search", "domain": // the last one counts
			out.Searches = fields[1:]
		case "options":
			out.Options = fields[1:]
		}
	}
	return out
}

// dns is a pod's: the cluster's, the machine's, or its own alone; its dnsConfig is added to it.
func (a *Agent) dns(pod *v1.Pod) (*runtimeapi.DNSConfig, error) {
	h := a.opts.Containers
	policy := pod.Spec.DNSPolicy
	if policy == "" {
		policy = v1.DNSClusterFirst
	}
	if policy == v1.DNSClusterFirst && pod.Spec.HostNetwork {
		policy = v1.DNSDefault
	}
	out := &runtimeapi.DNSConfig{}
	if policy != v1.DNSNone {
		data, err := os.ReadFile(resolvConf)
		if err != nil && !os.IsNotExist(err) {
			return nil, fmt.Errorf("read the machine's name servers: %w", err)
		}
		out = parseResolv(data)
	}
	if policy != v1.DNSNone && policy != v1.DNSDefault && len(h.ClusterDNS) > 0 {
		domain := h.clusterDomain()
		out = &runtimeapi.DNSConfig{
			Servers:  slices.Clone(h.ClusterDNS),
			Searches: append([]string{pod.Namespace + ".svc." + domain, "svc." + domain, domain}, out.Searches...),
			Options:  []string{"ndots:5"},
		}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		out.Servers = unique(append(out.Servers, c.Nameservers...))
		out.Searches = unique(append(out.Searches, c.Searches...))
		for _, o := range c.Options {
			out.Options = slices.DeleteFunc(out.Options, func(old string) bool { name, _, _ := strings.Cut(old, ":"); return name == o.Name })
			option := o.Name
			if o.Value != nil && *o.Value != "" {
				option += ":" + *o.Value
			}
			out.Options = append(out.Options, option)
		}
	}
	return out, nil
}

func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// hostname is a pod's own, at most 63 bytes, and its domain, if it has one.
func (a *Agent) hostname(pod *v1.Pod) (name, domain string) {
	if pod.Spec.HostNetwork {
		return a.opts.NodeName, ""
	}
	if pod.Spec.HostnameOverride != nil {
		return *pod.Spec.HostnameOverride, ""
	}
	name = pod.Name
	if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	name = strings.TrimRight(name[:min(len(name), 63)], "-.")
	if pod.Spec.Subdomain != "" && a.opts.Containers != nil {
		domain = pod.Spec.Subdomain + "." + pod.Namespace + ".svc." + a.opts.Containers.clusterDomain()
	}
	return name, domain
}

// hostsFile writes a pod's /etc/hosts and returns its path.
func (a *Agent) hostsFile(pod *v1.Pod, ips []string) (string, error) {
	var b bytes.Buffer
	if pod.Spec.HostNetwork {
		data, err := os.ReadFile("/etc/hosts")
		if err != nil && !os.IsNotExist(err) {
			return "", fmt.Errorf("read the machine's /etc/hosts: %w", err)
		}
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(data)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		name, domain := a.hostname(pod)
		for _, ip := range ips {
			if domain != "" {
				fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, name, domain, name)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, name)
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, alias := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", alias.IP, strings.Join(alias.Hostnames, "\t"))
		}
	}
	path := filepath.Join(a.podDir(pod.UID), "etc-hosts")
	// Containers have the file itself mounted: it is written in place.
	if err := writeFile(path, b.Bytes(), 0o644); err != nil {
		return "", fmt.Errorf("write the pod's hosts file: %w", err)
	}
	return path, nil
}
