package endpoints

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

func service(change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns", UID: "svc", Labels: map[string]string{"a": "b", corev1.IsHeadlessService: "forged"}},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.1.1.1", IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromString("http")}},
		},
	}
	for _, f := range change {
		f(s)
	}
	return s
}

func headlessly(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }
func portless(s *corev1.Service)   { s.Spec.Ports, s.Spec.ClusterIP = nil, corev1.ClusterIPNone }
func publishing(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }
func dual(s *corev1.Service) {
	s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
}
func near(s *corev1.Service) {
	s.Spec.TrafficDistribution = ptr.To(corev1.ServiceTrafficDistributionPreferSameZone)
}
func zone(node string) string         { return map[string]string{"n1": "z1"}[node] }
func podPort(p *corev1.Pod, at int32) { p.Spec.Containers[0].Ports[0].ContainerPort = at }

// podsOf reads "1 2:unready 3:deleting": the last byte of the address and a
// state if it is not ready.
func podsOf(text string) []*corev1.Pod {
	var out []*corev1.Pod
	for _, word := range strings.Fields(text) {
		number, state, _ := strings.Cut(word, ":")
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "p" + number, Namespace: "ns", UID: types.UID("p" + number)},
			Spec: corev1.PodSpec{NodeName: "n1", Hostname: "h" + number, Subdomain: "web", Containers: []corev1.Container{{
				Ports: []corev1.ContainerPort{{Name: "http", Protocol: corev1.ProtocolTCP, ContainerPort: 8080}},
			}}},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0." + number, PodIPs: []corev1.PodIP{{IP: "10.0.0." + number}, {IP: "fd00::" + number}}},
		}
		ready := corev1.ConditionTrue
		switch state {
		case "unready":
			ready = corev1.ConditionFalse
		case "deleting":
			p.DeletionTimestamp = &metav1.Time{}
		case "failed":
			p.Status.Phase = corev1.PodFailed
		case "addressless":
			p.Status.PodIP, p.Status.PodIPs = "", nil
		case "elsewhere":
			podPort(p, 9090)
		}
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
		out = append(out, p)
	}
	return out
}

// told writes groups as "IPv4 http:8080[10.0.0.1 10.0.0.2!]": ! is not ready, ~ is
// terminating, @ the zone it is for.
func told(groups []Group) string {
	var out []string
	for _, g := range groups {
		var ports, at []string
		for _, p := range g.Ports {
			ports = append(ports, fmt.Sprintf("%s:%d", *p.Name, *p.Port))
		}
		for _, e := range g.Endpoints {
			text := e.Addresses[0]
			if !ptr.Deref(e.Conditions.Ready, false) {
				text += "!"
			}
			if ptr.Deref(e.Conditions.Terminating, false) {
				text += "~"
			}
			if e.Hints != nil {
				text += "@" + e.Hints.ForZones[0].Name
			}
			at = append(at, text)
		}
		out = append(out, fmt.Sprintf("%s %s%v", g.Type, strings.Join(ports, ","), at))
	}
	return strings.Join(out, " ")
}

func TestGroups(t *testing.T) {
	for _, tt := range []struct {
		name    string
		service *corev1.Service
		pods    string
		want    string
	}{
		{"none", service(), "", "IPv4 []"},
		{"ready and not", service(), "2 1:unready 3:deleting 4:failed 5:addressless", "IPv4 http:8080[10.0.0.1! 10.0.0.2 10.0.0.3!~]"},
		{"published before they are ready", service(publishing), "1:unready 2:deleting", "IPv4 http:8080[10.0.0.1 10.0.0.2~]"},
		{"by number of the port", service(), "1 2:elsewhere", "IPv4 http:8080[10.0.0.1] IPv4 http:9090[10.0.0.2]"},
		{"of both families", service(dual), "1", "IPv4 http:8080[10.0.0.1] IPv6 http:8080[fd00::1]"},
		{"without ports", service(portless), "1", "IPv4 [10.0.0.1]"},
		{"near", service(near), "1 2:unready", "IPv4 http:8080[10.0.0.1@z1 10.0.0.2!]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := told(Groups(Snapshot{Service: tt.service, Pods: podsOf(tt.pods), Zone: zone})); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
	e := Groups(Snapshot{Service: service(), Pods: podsOf("1"), Zone: zone})[0].Endpoints[0]
	if *e.Hostname != "h1" || *e.NodeName != "n1" || *e.Zone != "z1" || e.TargetRef.UID != "p1" {
		t.Errorf("%+v", e)
	}
}

func TestLegacy(t *testing.T) {
	for _, tt := range []struct {
		name    string
		service *corev1.Service
		pods    string
		want    string
	}{
		{"none", service(), "", "[]"},
		{"ready and not", service(), "2 1 3:unready 4:deleting", "[[10.0.0.1 10.0.0.2] [10.0.0.3] 8080]"},
		{"published before they are ready", service(publishing), "1:unready 2:deleting", "[[10.0.0.1 10.0.0.2] [] 8080]"},
		{"by number of the port", service(), "1 2:elsewhere", "[[10.0.0.1] [] 8080] [[10.0.0.2] [] 9090]"},
		{"without ports", service(portless), "1", "[[10.0.0.1] []]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := Legacy(Snapshot{Service: tt.service, Pods: podsOf(tt.pods), Zone: zone}, nil)
			var out []string
			for _, s := range e.Subsets {
				ips := func(list []corev1.EndpointAddress) (out []string) {
					for _, a := range list {
						out = append(out, a.IP)
					}
					return out
				}
				text := fmt.Sprint(ips(s.Addresses), " ", ips(s.NotReadyAddresses))
				for _, p := range s.Ports {
					text += fmt.Sprint(" ", p.Port)
				}
				out = append(out, "["+text+"]")
			}
			if got := strings.Join(out, " "); got != tt.want && (got != "" || tt.want != "[]") {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
	e := Legacy(Snapshot{Service: service(headlessly), Zone: zone}, &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "7", Annotations: map[string]string{"kept": "yes"}}})
	if e.ResourceVersion != "7" || e.Annotations["kept"] != "yes" || e.Labels["a"] != "b" || e.Labels[legacyLabel] != legacyName || e.Labels[corev1.IsHeadlessService] != "" {
		t.Errorf("%+v", e.ObjectMeta)
	}
	if _, forged := Legacy(Snapshot{Service: service(), Zone: zone}, nil).Labels[corev1.IsHeadlessService]; forged {
		t.Error("a service with an address is called headless")
	}
}

func TestTruncate(t *testing.T) {
	list := func(n int) []corev1.EndpointAddress { return make([]corev1.EndpointAddress, n) }
	subsets := []corev1.EndpointSubset{{Addresses: list(6), NotReadyAddresses: list(2)}, {Addresses: list(5), NotReadyAddresses: list(1)}}
	if !truncate(subsets, 10) || len(subsets[0].Addresses) != 5 || len(subsets[1].Addresses) != 5 || len(subsets[0].NotReadyAddresses)+len(subsets[1].NotReadyAddresses) != 0 {
		t.Errorf("%d %d %d %d", len(subsets[0].Addresses), len(subsets[0].NotReadyAddresses), len(subsets[1].Addresses), len(subsets[1].NotReadyAddresses))
	}
	if truncate(subsets, 10) {
		t.Error("truncated again")
	}
}

// settle applies a plan.
func settle(present []*discoveryv1.EndpointSlice, plan SlicePlan) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, s := range present {
		if slices.Contains(plan.Delete, s) {
			continue
		}
		if i := slices.IndexFunc(plan.Update, func(u *discoveryv1.EndpointSlice) bool { return u.Name == s.Name }); i >= 0 {
			s = plan.Update[i]
		}
		out = append(out, s)
	}
	return append(out, plan.Create...)
}

func TestDistribute(t *testing.T) {
	numbers := func(from, to int) string {
		var out []string
		for i := from; i <= to; i++ {
			out = append(out, fmt.Sprint(i))
		}
		return strings.Join(out, " ")
	}
	like := likeService(service())
	var present []*discoveryv1.EndpointSlice
	for _, step := range []struct {
		name                   string
		pods                   string
		created, updated, gone int
	}{
		{"an empty one", "", 1, 0, 0},
		{"no change", "", 0, 0, 0},
		{"filled, under the ports", numbers(1, 50), 1, 0, 1}, // the empty one has none
		{"three", numbers(1, 230), 2, 1, 0},
		{"no change again", numbers(1, 230), 0, 0, 0},
		{"one leaves", numbers(2, 230), 0, 1, 0},
		{"one comes back", numbers(1, 230), 0, 1, 0},
		{"one is not ready", "1:unready " + numbers(2, 230), 0, 1, 0},
		{"few", numbers(2, 3), 0, 1, 2},
		{"empty", "", 1, 0, 1},
	} {
		plan := Distribute(like, present, Groups(Snapshot{Service: service(), Pods: podsOf(step.pods), Zone: zone}))
		if len(plan.Create) != step.created || len(plan.Update) != step.updated || len(plan.Delete) != step.gone {
			t.Errorf("%s: %d created, %d updated, %d deleted; want %d, %d, %d", step.name, len(plan.Create), len(plan.Update), len(plan.Delete), step.created, step.updated, step.gone)
		}
		present = settle(present, plan)
		seen := map[string]bool{}
		for _, s := range present {
			if len(s.Endpoints) > like.Most || s.Labels[discoveryv1.LabelServiceName] != "web" || s.Labels["a"] != "b" || s.OwnerReferences[0].UID != "svc" {
				t.Errorf("%s: %d endpoints, %+v", step.name, len(s.Endpoints), s.ObjectMeta)
			}
			for _, e := range s.Endpoints {
				if seen[id(e)] {
					t.Errorf("%s: %s is there twice", step.name, id(e))
				}
				seen[id(e)] = true
			}
		}
		if want := len(strings.Fields(step.pods)); len(seen) != want {
			t.Errorf("%s: %d endpoints of %d", step.name, len(seen), want)
		}
	}
}

func TestMirrored(t *testing.T) {
	e := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: "web", Annotations: map[string]string{"a": "b", corev1.LastAppliedConfigAnnotation: "{}"}}, Subsets: []corev1.EndpointSubset{
		{Addresses: []corev1.EndpointAddress{{IP: "10.0.0.1"}, {IP: "fd00::1"}}, NotReadyAddresses: []corev1.EndpointAddress{{IP: "10.0.0.2"}}, Ports: []corev1.EndpointPort{{Name: "http", Port: 80}}},
		{Addresses: []corev1.EndpointAddress{{IP: "10.0.0.3"}}, Ports: []corev1.EndpointPort{{Name: "http", Port: 80}}},
		{Addresses: []corev1.EndpointAddress{{IP: "10.0.0.4"}}, Ports: []corev1.EndpointPort{{Name: "http", Port: 81}}},
	}}
	want := "IPv4 http:80[10.0.0.1 10.0.0.2! 10.0.0.3] IPv6 http:80[fd00::1] IPv4 http:81[10.0.0.4]"
	if got := told(Mirrored(e)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	like := likeMirrored(e)
	if like.Annotations["a"] != "b" || len(like.Annotations) != 1 || like.Labels[discoveryv1.LabelManagedBy] != MirroredBy {
		t.Errorf("%+v", like)
	}
	for name, e := range map[string]*corev1.Endpoints{
		"a lock":    {ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"control-plane.alpha.kubernetes.io/leader": ""}}},
		"says no":   {ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"}}},
		"mirrored!": {},
	} {
		if mirrors(e) != strings.HasSuffix(name, "!") {
			t.Error(name)
		}
	}
}
