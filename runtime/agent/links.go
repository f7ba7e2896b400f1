package agent

import (
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// serviceLinks are the variables by which a container finds services: that of the API
// server and, unless the pod wants none, those of its namespace; with upstream's names.
func (a *Agent) serviceLinks(pod *v1.Pod) (map[string]string, error) {
	if a.opts.Services == nil {
		return nil, nil
	}
	if a.opts.ServicesSynced != nil && !a.opts.ServicesSynced() {
		return nil, errors.New("services have not yet been read at least once, cannot construct envvars")
	}
	all, err := a.opts.Services.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	slices.SortFunc(all, func(x, y *v1.Service) int { return strings.Compare(x.Namespace+"/"+x.Name, y.Namespace+"/"+y.Name) })
	var own []*v1.Service
	for _, s := range all {
		switch {
		case s.Spec.ClusterIP == "" || s.Spec.ClusterIP == v1.ClusterIPNone || len(s.Spec.Ports) == 0:
		case s.Namespace == pod.Namespace && (pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks):
			own = append(own, s)
		case s.Namespace == metav1.NamespaceDefault && s.Name == "kubernetes":
			links(out, s)
		}
	}
	for _, s := range own { // over the API server's, if one has its name
		links(out, s)
	}
	return out, nil
}

func variable(name string) string { return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) }

func links(out map[string]string, s *v1.Service) {
	name := variable(s.Name)
	out[name+"_SERVICE_HOST"] = s.Spec.ClusterIP
	out[name+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
	for i, p := range s.Spec.Ports {
		port := strconv.Itoa(int(p.Port))
		if p.Name != "" {
			out[name+"_SERVICE_PORT_"+variable(p.Name)] = port
		}
		protocol := strings.ToLower(string(p.Protocol))
		if protocol == "" {
			protocol = "tcp"
		}
		url := protocol + "://" + net.JoinHostPort(s.Spec.ClusterIP, port)
		if i == 0 {
			out[name+"_PORT"] = url
		}
		prefix := name + "_PORT_" + port + "_" + strings.ToUpper(protocol)
		out[prefix], out[prefix+"_PROTO"], out[prefix+"_PORT"], out[prefix+"_ADDR"] = url, protocol, port, s.Spec.ClusterIP
	}
}
