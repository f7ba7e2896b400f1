// Package dns answers for the names of a cluster's services and pods, as Kubernetes' DNS specification
// (github.com/kubernetes/dns/blob/master/docs/specification.md, version 1.1.0) has them, and asks other servers for
// all other names.
//
//	my-svc.my-ns.svc.cluster.local             A, AAAA of the service, or of its endpoints where it is headless; CNAME of ExternalName
//	_http._tcp.my-svc.my-ns.svc.cluster.local  SRV of a port with a name
//	pod-0.my-svc.my-ns.svc.cluster.local       A, AAAA of an endpoint with that hostname
//	10-1-2-3.my-ns.pod.cluster.local           A of the address
//	1.0.96.10.in-addr.arpa                     PTR of cluster addresses and of endpoints
//
// Each node may run one: what it knows are the same two watches that a service proxy has.
package dns
