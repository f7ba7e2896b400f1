package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

const (
	// ttl of what the cluster says, in seconds: that of CoreDNS.
	ttl = 5
	// version of the specification, as dns-version.DOMAIN says.
	version = "1.1.0"
)

// view is what is known of a cluster.
type view interface {
	service(namespace, name string) *v1.Service // nil: there is none
	services(namespace string) bool             // is there one?
	slices(namespace, service string) []*discoveryv1.EndpointSlice
	byClusterIP(address string) *v1.Service
	byEndpoint(address string) []*discoveryv1.EndpointSlice
}

// answer is what a question has for one.
type answer struct {
	ours    bool // false: another server is to be asked
	exists  bool // the name, whatever it has of the type that was asked for
	records []dns.RR
	extra   []dns.RR
	alias   string // the records end in a CNAME to this name, which is not ours to know
}

// zone answers from a view. Domain is in lower case and ends in a dot.
type zone struct {
	domain string
	view
	alias bool // the question is where an alias leads
}

// ask answers a question of class IN.
func (z zone) ask(q dns.Question) answer {
	name := strings.ToLower(q.Name)
	if rest, ok := cutDomain(name, z.domain); ok {
		a := z.inside(q, rest)
		a.ours = true
		return a
	}
	if address, ok := reverse(name); ok {
		return z.pointer(q, address)
	}
	return answer{}
}

// cutDomain returns the labels before a domain, the last first.
func cutDomain(name, domain string) (labels []string, ok bool) {
	if name == domain {
		return nil, true
	}
	rest, ok := strings.CutSuffix(name, "."+domain)
	if !ok {
		return nil, false
	}
	labels = strings.Split(rest, ".")
	slices.Reverse(labels)
	return labels, true
}

func (z zone) inside(q dns.Question, labels []string) answer {
	if len(labels) == 0 {
		a := answer{exists: true}
		if q.Qtype == dns.TypeSOA || q.Qtype == dns.TypeANY {
			a.records = []dns.RR{z.soa()}
		}
		return a
	}
	switch labels[0] {
	case "svc":
		return z.inServices(q, labels[1:])
	case "pod":
		return z.inPods(q, labels[1:])
	case "dns-version":
		a := answer{exists: len(labels) == 1}
		if a.exists && wants(q, dns.TypeTXT) {
			a.records = []dns.RR{&dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: []string{version}}}
		}
		return a
	}
	return answer{}
}

// inServices answers below svc.DOMAIN.
func (z zone) inServices(q dns.Question, labels []string) answer {
	switch len(labels) {
	case 0:
		return answer{exists: true}
	case 1:
		return answer{exists: z.services(labels[0])}
	}
	namespace, name := labels[0], labels[1]
	s := z.service(namespace, name)
	if s == nil || s.Spec.Type != v1.ServiceTypeExternalName && s.Spec.ClusterIP == "" {
		return answer{}
	}
	labels = labels[2:]
	if s.Spec.Type == v1.ServiceTypeExternalName {
		if len(labels) > 0 {
			return answer{}
		}
		return z.external(q, s.Spec.ExternalName)
	}
	headless := s.Spec.ClusterIP == v1.ClusterIPNone
	switch {
	case len(labels) == 0 && headless:
		return z.addresses(q, slices.Collect(z.endpoints(namespace, name, func(host, _ string) bool { return true })))
	case len(labels) == 0:
		return answer{exists: true, records: records(q, s.Spec.ClusterIPs)}
	case strings.HasPrefix(labels[0], "_") && len(labels) <= 2:
		return z.ports(q, s, labels)
	case len(labels) == 1 && headless:
		return z.addresses(q, slices.Collect(z.endpoints(namespace, name, func(host, _ string) bool { return host == labels[0] })))
	}
	return answer{}
}

// addresses answers with endpoints; a name without any is none.
func (z zone) addresses(q dns.Question, addresses []string) answer {
	slices.Sort(addresses)
	addresses = slices.Compact(addresses)
	return answer{exists: len(addresses) > 0, records: records(q, addresses)}
}

// endpoints are the addresses of a service's that take requests and whose hostname, or address with dashes where
// they have none, is wanted.
func (z zone) endpoints(namespace, name string, wanted func(host, address string) bool) func(func(string) bool) {
	return func(yield func(string) bool) {
		for _, slice := range z.slices(namespace, name) {
			for _, e := range slice.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready {
					continue
				}
				for _, address := range e.Addresses {
					if wanted(hostOf(e, address), address) && !yield(address) {
						return
					}
				}
			}
		}
	}
}

// hostOf is the label of an endpoint's address below its service.
func hostOf(e discoveryv1.Endpoint, address string) string {
	if e.Hostname != nil && *e.Hostname != "" {
		return strings.ToLower(*e.Hostname)
	}
	return strings.NewReplacer(".", "-", ":", "-").Replace(address)
}

// ports answers for _proto and _port._proto: the labels come the last first.
func (z zone) ports(q dns.Question, s *v1.Service, labels []string) answer {
	base := s.Name + "." + s.Namespace + ".svc." + z.domain
	protocol := func(p v1.Protocol) bool { return "_"+strings.ToLower(string(p)) == labels[0] }
	named := func(name string) bool { return len(labels) == 1 || name != "" && "_"+name == labels[1] }
	a := answer{}
	add := func(target string, port int32, addresses ...string) {
		a.exists = true
		if !wants(q, dns.TypeSRV) {
			return
		}
		a.records = append(a.records, &dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Weight: 100, Port: uint16(port), Target: target})
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
			a.extra = append(a.extra, records(dns.Question{Name: target, Qtype: t}, addresses)...)
		}
	}
	if s.Spec.ClusterIP != v1.ClusterIPNone {
		for _, p := range s.Spec.Ports {
			if protocol(p.Protocol) && named(p.Name) {
				add(base, p.Port, s.Spec.ClusterIPs...)
			}
		}
		return a
	}
	for _, slice := range z.slices(s.Namespace, s.Name) {
		for _, p := range slice.Ports {
			if p.Port == nil || p.Protocol == nil || !protocol(*p.Protocol) || !named(deref(p.Name)) {
				continue
			}
			for _, e := range slice.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready {
					continue
				}
				for _, address := range e.Addresses {
					add(hostOf(e, address)+"."+base, *p.Port, address)
				}
			}
		}
	}
	return a
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// external answers for a service that is another's name.
func (z zone) external(q dns.Question, target string) answer {
	target = dns.Fqdn(target)
	a := answer{exists: true, records: []dns.RR{&dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: target}}}
	if q.Qtype == dns.TypeCNAME || z.alias {
		return a
	}
	followed := dns.Question{Name: target, Qtype: q.Qtype, Qclass: q.Qclass}
	if _, ours := cutDomain(strings.ToLower(target), z.domain); !ours {
		a.alias = target
		return a
	}
	z.alias = true // one step: an alias of an alias is for whoever asks, and a loop ends here
	a.records = append(a.records, z.ask(followed).records...)
	return a
}

// inPods answers below pod.DOMAIN: the name is the address, whoever has it.
func (z zone) inPods(q dns.Question, labels []string) answer {
	switch len(labels) {
	case 0, 1:
		return answer{exists: true}
	case 2:
		for _, text := range []string{strings.ReplaceAll(labels[1], "-", "."), strings.ReplaceAll(labels[1], "-", ":")} {
			if address, err := netip.ParseAddr(text); err == nil {
				return answer{exists: true, records: records(q, []string{address.String()})}
			}
		}
	}
	return answer{}
}

// pointer answers for an address. One that the cluster does not know is not ours.
func (z zone) pointer(q dns.Question, address string) answer {
	var targets []string
	if s := z.byClusterIP(address); s != nil {
		targets = append(targets, s.Name+"."+s.Namespace+".svc."+z.domain)
	} else {
		for _, slice := range z.byEndpoint(address) {
			service := slice.Labels[discoveryv1.LabelServiceName]
			if service == "" {
				continue
			}
			for _, e := range slice.Endpoints {
				if slices.Contains(e.Addresses, address) {
					targets = append(targets, hostOf(e, address)+"."+service+"."+slice.Namespace+".svc."+z.domain)
				}
			}
		}
	}
	a := answer{ours: len(targets) > 0, exists: len(targets) > 0}
	if !wants(q, dns.TypePTR) {
		return a
	}
	slices.Sort(targets)
	for _, t := range slices.Compact(targets) {
		a.records = append(a.records, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: t})
	}
	return a
}

// reverse is the address of a name below in-addr.arpa or ip6.arpa.
func reverse(name string) (string, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := strings.Split(rest, ".")
		slices.Reverse(labels)
		address, err := netip.ParseAddr(strings.Join(labels, "."))
		return address.String(), err == nil && address.Is4()
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(rest) != 63 {
		return "", false
	}
	digits := strings.Split(rest, ".")
	slices.Reverse(digits)
	var text strings.Builder
	for i, d := range digits {
		if i > 0 && i%4 == 0 {
			text.WriteByte(':')
		}
		text.WriteString(d)
	}
	address, err := netip.ParseAddr(text.String())
	return address.String(), err == nil
}

// records are the A or AAAA ones of addresses, as the question wants.
func records(q dns.Question, addresses []string) []dns.RR {
	var out []dns.RR
	for _, text := range addresses {
		address, err := netip.ParseAddr(text)
		if err != nil {
			continue // no address: validation has refused it
		}
		if address.Is4() && wants(q, dns.TypeA) {
			out = append(out, &dns.A{Hdr: header(q.Name, dns.TypeA), A: address.AsSlice()})
		} else if address.Is6() && wants(q, dns.TypeAAAA) {
			out = append(out, &dns.AAAA{Hdr: header(q.Name, dns.TypeAAAA), AAAA: address.AsSlice()})
		}
	}
	return out
}

func wants(q dns.Question, t uint16) bool { return q.Qtype == t || q.Qtype == dns.TypeANY }

func header(name string, t uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
}

// soa is what answers without records have: how long "there is none" holds.
func (z zone) soa() dns.RR {
	return &dns.SOA{Hdr: header(z.domain, dns.TypeSOA), Ns: "ns.dns." + z.domain, Mbox: "hostmaster." + z.domain,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl}
}
