package dns

import (
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// objects are a view that tests are made of.
type objects struct {
	svcs []*v1.Service
	eps  []*discoveryv1.EndpointSlice
}

func (o objects) service(namespace, name string) *v1.Service {
	for _, s := range o.svcs {
		if s.Namespace == namespace && s.Name == name {
			return s
		}
	}
	return nil
}

func (o objects) services(namespace string) bool {
	return slices.ContainsFunc(o.svcs, func(s *v1.Service) bool { return s.Namespace == namespace })
}

func (o objects) slices(namespace, service string) (out []*discoveryv1.EndpointSlice) {
	for _, e := range o.eps {
		if e.Namespace == namespace && e.Labels[discoveryv1.LabelServiceName] == service {
			out = append(out, e)
		}
	}
	return out
}

func (o objects) byClusterIP(address string) *v1.Service {
	for _, s := range o.svcs {
		if slices.Contains(s.Spec.ClusterIPs, address) {
			return s
		}
	}
	return nil
}

func (o objects) byEndpoint(address string) (out []*discoveryv1.EndpointSlice) {
	for _, e := range o.eps {
		if slices.ContainsFunc(e.Endpoints, func(e discoveryv1.Endpoint) bool { return slices.Contains(e.Addresses, address) }) {
			out = append(out, e)
		}
	}
	return out
}

func service(name string, change func(*v1.ServiceSpec)) *v1.Service {
	s := &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: v1.ServiceSpec{Type: v1.ServiceTypeClusterIP}}
	change(&s.Spec)
	return s
}

func cluster() objects {
	http := []v1.ServicePort{{Name: "http", Protocol: v1.ProtocolTCP, Port: 80}, {Name: "dns", Protocol: v1.ProtocolUDP, Port: 53}}
	return objects{
		svcs: []*v1.Service{
			service("web", func(s *v1.ServiceSpec) {
				s.ClusterIP, s.ClusterIPs, s.Ports = "10.96.0.7", []string{"10.96.0.7", "fd00::7"}, http
			}),
			service("db", func(s *v1.ServiceSpec) { s.ClusterIP, s.Ports = v1.ClusterIPNone, http[:1] }),
			service("empty", func(s *v1.ServiceSpec) { s.ClusterIP = v1.ClusterIPNone }),
			service("new", func(*v1.ServiceSpec) {}),
			service("away", func(s *v1.ServiceSpec) { s.Type, s.ExternalName = v1.ServiceTypeExternalName, "example.org" }),
			service("alias", func(s *v1.ServiceSpec) {
				s.Type, s.ExternalName = v1.ServiceTypeExternalName, "web.shop.svc.cluster.local"
			}),
			service("loop", func(s *v1.ServiceSpec) {
				s.Type, s.ExternalName = v1.ServiceTypeExternalName, "loop.shop.svc.cluster.local."
			}),
		},
		eps: []*discoveryv1.EndpointSlice{{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: "db-1", Labels: map[string]string{discoveryv1.LabelServiceName: "db"}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Protocol: ptr.To(v1.ProtocolTCP), Port: ptr.To[int32](8080)}},
			Endpoints: []discoveryv1.Endpoint{
				{Addresses: []string{"10.1.0.2"}, Hostname: ptr.To("db-0")},
				{Addresses: []string{"10.1.0.3"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}},
				{Addresses: []string{"10.1.0.4"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}},
			},
		}},
	}
}

func TestAnswers(t *testing.T) {
	z := zone{domain: "cluster.local.", view: cluster()}
	const ours, exists = "ours", "exists"
	for _, c := range []struct {
		name, kind string
		want       []string // ours, exists, and what follows the name, class and time in the records
	}{
		{"web.shop.svc.cluster.local.", "A", []string{ours, exists, "A 10.96.0.7"}},
		{"WEB.Shop.svc.Cluster.local.", "A", []string{ours, exists, "A 10.96.0.7"}},
		{"web.shop.svc.cluster.local.", "AAAA", []string{ours, exists, "AAAA fd00::7"}},
		{"web.shop.svc.cluster.local.", "MX", []string{ours, exists}},
		{"web.shop.svc.cluster.local.", "ANY", []string{ours, exists, "A 10.96.0.7", "AAAA fd00::7"}},
		{"_http._tcp.web.shop.svc.cluster.local.", "SRV", []string{ours, exists, "SRV 0 100 80 web.shop.svc.cluster.local.", "A 10.96.0.7", "AAAA fd00::7"}},
		{"_http._tcp.web.shop.svc.cluster.local.", "A", []string{ours, exists}},
		{"_http._udp.web.shop.svc.cluster.local.", "SRV", []string{ours}},
		{"_dns._udp.web.shop.svc.cluster.local.", "SRV", []string{ours, exists, "SRV 0 100 53 web.shop.svc.cluster.local.", "A 10.96.0.7", "AAAA fd00::7"}},
		{"db.shop.svc.cluster.local.", "A", []string{ours, exists, "A 10.1.0.2", "A 10.1.0.3"}},
		{"db-0.db.shop.svc.cluster.local.", "A", []string{ours, exists, "A 10.1.0.2"}},
		{"10-1-0-3.db.shop.svc.cluster.local.", "A", []string{ours, exists, "A 10.1.0.3"}},
		{"10-1-0-4.db.shop.svc.cluster.local.", "A", []string{ours}},
		{"_http._tcp.db.shop.svc.cluster.local.", "SRV", []string{ours, exists, "SRV 0 100 8080 10-1-0-3.db.shop.svc.cluster.local.",
			"SRV 0 100 8080 db-0.db.shop.svc.cluster.local.", "A 10.1.0.2", "A 10.1.0.3"}},
		{"10-1-0-2.web.shop.svc.cluster.local.", "A", []string{ours}},
		{"empty.shop.svc.cluster.local.", "A", []string{ours}},
		{"new.shop.svc.cluster.local.", "A", []string{ours}},
		{"none.shop.svc.cluster.local.", "A", []string{ours}},
		{"away.shop.svc.cluster.local.", "CNAME", []string{ours, exists, "CNAME example.org."}},
		{"away.shop.svc.cluster.local.", "A", []string{ours, exists, "CNAME example.org.", "alias example.org."}},
		{"x.away.shop.svc.cluster.local.", "A", []string{ours}},
		{"alias.shop.svc.cluster.local.", "A", []string{ours, exists, "CNAME web.shop.svc.cluster.local.", "A 10.96.0.7"}},
		{"loop.shop.svc.cluster.local.", "CNAME", []string{ours, exists, "CNAME loop.shop.svc.cluster.local."}},
		{"loop.shop.svc.cluster.local.", "A", []string{ours, exists, "CNAME loop.shop.svc.cluster.local.", "CNAME loop.shop.svc.cluster.local."}},
		{"10-1-2-3.shop.pod.cluster.local.", "A", []string{ours, exists, "A 10.1.2.3"}},
		{"fd00--9.shop.pod.cluster.local.", "AAAA", []string{ours, exists, "AAAA fd00::9"}},
		{"x.shop.pod.cluster.local.", "A", []string{ours}},
		{"shop.svc.cluster.local.", "A", []string{ours, exists}},
		{"other.svc.cluster.local.", "A", []string{ours}},
		{"cluster.local.", "SOA", []string{ours, exists, "SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"}},
		{"dns-version.cluster.local.", "TXT", []string{ours, exists, `TXT "1.1.0"`}},
		{"7.0.96.10.in-addr.arpa.", "PTR", []string{ours, exists, "PTR web.shop.svc.cluster.local."}},
		{"2.0.1.10.in-addr.arpa.", "PTR", []string{ours, exists, "PTR db-0.db.shop.svc.cluster.local."}},
		{"7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", "PTR", []string{ours, exists, "PTR web.shop.svc.cluster.local."}},
		{"9.9.9.9.in-addr.arpa.", "PTR", nil},
		{"notcluster.local.", "A", nil},
		{"example.org.", "A", nil},
	} {
		a := z.ask(dns.Question{Name: c.name, Qtype: dns.StringToType[c.kind], Qclass: dns.ClassINET})
		var got []string
		if a.ours {
			got = append(got, ours)
		}
		if a.exists {
			got = append(got, exists)
		}
		for _, part := range [][]dns.RR{a.records, a.extra} {
			var lines []string
			for _, r := range part {
				fields := strings.Fields(r.String())
				lines = append(lines, strings.Join(fields[3:], " "))
			}
			if len(lines) == 0 || !strings.HasPrefix(lines[0], "CNAME") {
				slices.Sort(lines)
			}
			got = append(got, lines...)
		}
		if a.alias != "" {
			got = append(got, "alias "+a.alias)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s %s: %q, want %q", c.name, c.kind, got, c.want)
		}
	}
}
