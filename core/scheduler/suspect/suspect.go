// Package suspect tells which workloads bring nodes down: whose pods had started, on several nodes, shortly before
// each of them fell into trouble. Their next pods had better wait, before they travel the whole cluster. It is pure.
package suspect

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// Coincidence is how long before a node's trouble a pod's start is a reason to suspect it: a node is missed 40 s after
	// its last word, and what leaks takes minutes.
	Coincidence = 5 * time.Minute
	// Window is how long troubles are remembered, and how long a suspect's pods wait after the last one.
	Window = time.Hour
	// Several is of how many nodes' trouble a suspect was shortly before. Of all nodes that fell into trouble these must be
	// half at least: when a whole zone goes down, whoever had a pod start there is not to blame.
	Several = 3
)

// App is what starts pods of one template.
type App struct {
	Kind, Namespace, Name string
	UID                   types.UID
	Template              string // its hash; "" where pods have none
}

// Of returns the app that a pod is of. A pod of no controller has none, as nothing makes it anew, nor has a static one.
func Of(pod *v1.Pod) (App, bool) {
	owner := metav1.GetControllerOf(pod)
	if owner == nil || owner.Kind == "Node" {
		return App{}, false
	}
	template := pod.Labels[appsv1.DefaultDeploymentUniqueLabelKey]
	if template == "" {
		template = pod.Labels[appsv1.ControllerRevisionHashLabelKey]
	}
	return App{owner.Kind, pod.Namespace, owner.Name, owner.UID, template}, true
}

// Trouble tells since when a node has been in trouble, and in which. One that is cordoned is somebody's work.
func Trouble(node *v1.Node) (since time.Time, what string) {
	if node == nil || node.Spec.Unschedulable {
		return time.Time{}, ""
	}
	for _, c := range node.Status.Conditions {
		switch c.Type {
		case v1.NodeReady:
			if c.Status == v1.ConditionTrue {
				continue
			}
		case v1.NodeMemoryPressure, v1.NodeDiskPressure, v1.NodePIDPressure:
			if c.Status != v1.ConditionTrue {
				continue
			}
		default:
			continue
		}
		if since.IsZero() || c.LastTransitionTime.Time.Before(since) {
			since, what = c.LastTransitionTime.Time, string(c.Type)+"="+string(c.Status)
		}
	}
	return since, what
}

// Log remembers troubles. The zero value is ready; it is for one goroutine.
type Log struct {
	nodes map[string]time.Time         // that fell into trouble, and when
	apps  map[App]map[string]time.Time // of which apps pods had started shortly before
	ended map[string][]start           // by node: pods that ended early, as those do that a node short of memory evicts
}

type start struct {
	app App
	at  time.Time
}

// maxEnded bounds how many pods that ended early are remembered of a node.
const maxEnded = 32

// Ended notes that a pod of a node has ended or is gone.
func (l *Log) Ended(pod *v1.Pod, now time.Time) {
	app, ok := Of(pod)
	begun := started(pod)
	if node := pod.Spec.NodeName; ok && node != "" && now.Sub(begun) <= Coincidence {
		if l.ended == nil {
			l.ended = map[string][]start{}
		}
		list := slices.DeleteFunc(l.ended[node], func(s start) bool { return now.Sub(s.at) > Coincidence || s.app == app })
		list = append(list, start{app, begun})
		l.ended[node] = list[max(0, len(list)-maxEnded):]
	}
}

// Forget forgets what ended on a node that is there no more.
func (l *Log) Forget(node string) { delete(l.ended, node) }

// Node notes that a node fell into trouble with these pods on it.
func (l *Log) Node(name string, since time.Time, pods []*v1.Pod) {
	if l.nodes == nil {
		l.nodes, l.apps = map[string]time.Time{}, map[App]map[string]time.Time{}
	}
	old := func(_ string, at time.Time) bool { return since.Sub(at) > Window }
	maps.DeleteFunc(l.nodes, old)
	maps.DeleteFunc(l.apps, func(_ App, nodes map[string]time.Time) bool {
		maps.DeleteFunc(nodes, old)
		return len(nodes) == 0
	})
	l.nodes[name] = since
	starts := l.ended[name]
	delete(l.ended, name)
	for _, pod := range pods {
		if app, ok := Of(pod); ok {
			starts = append(starts, start{app, started(pod)})
		}
	}
	for _, s := range starts {
		if s.at.After(since) || since.Sub(s.at) > Coincidence {
			continue
		}
		if l.apps[s.app] == nil {
			l.apps[s.app] = map[string]time.Time{}
		}
		l.apps[s.app][name] = since
	}
}

// started is when a pod's node took it, or else when it was bound.
func started(pod *v1.Pod) time.Time {
	if pod.Status.StartTime != nil {
		return pod.Status.StartTime.Time
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == v1.PodScheduled && c.Status == v1.ConditionTrue {
			return c.LastTransitionTime.Time
		}
	}
	return pod.CreationTimestamp.Time
}

// Held tells until when a pod had better wait, and why; the zero time: it need not.
func (l *Log) Held(pod *v1.Pod, now time.Time) (until time.Time, why string) {
	if len(l.apps) == 0 {
		return time.Time{}, ""
	}
	app, ok := Of(pod)
	if !ok {
		return time.Time{}, ""
	}
	recent := func(nodes map[string]time.Time) (names []string) {
		for name, at := range nodes {
			if now.Sub(at) < Window {
				names = append(names, name)
			}
		}
		return names
	}
	coincide := recent(l.apps[app])
	if len(coincide) < Several {
		return time.Time{}, ""
	}
	all := len(recent(l.nodes))
	if 2*len(coincide) < all {
		return time.Time{}, ""
	}
	slices.SortFunc(coincide, func(a, b string) int {
		return cmp.Or(l.apps[app][b].Compare(l.apps[app][a]), strings.Compare(a, b))
	})
	until = l.apps[app][coincide[0]].Add(Window)
	shown := strings.Join(coincide[:min(len(coincide), 5)], ", ")
	if len(coincide) > 5 {
		shown += ", …"
	}
	return until, fmt.Sprintf("held back until %s, or until the pod template changes: of %d nodes that fell into trouble in the last %v, %d had started pods of %s %s shortly before (%s)",
		until.UTC().Format(time.RFC3339), all, Window, len(coincide), app.Kind, app.Name, shown)
}
