package simulate

import (
	"cmp"
	"maps"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// turns are the pods that are still to be decided: in lanes, one for each queue of a
// profile that shares fairly, in the order of a server's queue.
type turns struct {
	run   *run
	lanes []*lane
	gangs map[gangKey][]*waiting
	idle  []Pod // not decided
}

type lane struct {
	profile *cluster.Profile
	queue   string
	pods    []*waiting
}

// waiting is a pod and what its turn depends on.
type waiting struct {
	pod      *v1.Pod
	profile  *cluster.Profile
	deadline time.Time
	sequence int
	gang     *gangKey
	within   cluster.Domain // that it is confined to
	done     bool
}

// gangKey names a gang: by our label, or by upstream's spec.schedulingGroup.
type gangKey struct {
	types.NamespacedName
	podGroup bool
}

func gangOf(pod *v1.Pod) (gangKey, bool) {
	if name := cluster.PodGroupOf(pod); name != "" {
		return gangKey{types.NamespacedName{Namespace: pod.Namespace, Name: name}, true}, true
	}
	name := pod.Labels[schedulingv1alpha1.PodGroupLabel]
	return gangKey{NamespacedName: types.NamespacedName{Namespace: pod.Namespace, Name: name}}, name != ""
}

// before is the order of a server's queue within a lane and between profiles.
func before(a, b *waiting) int {
	never := func(w *waiting) int {
		if w.deadline.IsZero() {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(*b.pod.Spec.Priority, *a.pod.Spec.Priority), cmp.Compare(never(a), never(b)), a.deadline.Compare(b.deadline), cmp.Compare(a.sequence, b.sequence))
}

// turns takes the pending pods in the order in which they came.
func (r *run) turns(queue []*v1.Pod) *turns {
	t := &turns{run: r, gangs: map[gangKey][]*waiting{}}
	var list []*waiting
	for i, pod := range queue {
		if why := r.waiting(pod); why != "" {
			t.idle = append(t.idle, *result(pod, why))
			continue
		}
		w := &waiting{pod: pod, profile: r.profileOf(pod), sequence: i}
		created := pod.CreationTimestamp.Time
		if created.IsZero() {
			created = r.options.Now
		}
		if w.deadline = w.profile.DeadlineOf(pod, created); !w.deadline.IsZero() && !r.options.Now.Before(w.deadline) {
			t.idle = append(t.idle, *result(pod, cluster.DeadlineMessage(w.deadline, "")))
			continue
		}
		if key, ok := gangOf(pod); ok && w.profile.Gangs(pod) {
			w.gang = &key
			t.gangs[key] = append(t.gangs[key], w)
		}
		list = append(list, w)
	}
	slices.SortStableFunc(list, before)
	for _, members := range t.gangs {
		slices.SortStableFunc(members, before)
	}
	for _, w := range list {
		if why := r.incomplete(t, w); why != "" {
			t.idle = append(t.idle, *result(w.pod, why))
			continue
		}
		name := ""
		if w.profile.FairShare {
			name = r.state.QueueOf(w.profile.QueueLabel, w.pod)
		}
		i := slices.IndexFunc(t.lanes, func(l *lane) bool { return l.profile == w.profile && l.queue == name })
		if i < 0 {
			i, t.lanes = len(t.lanes), append(t.lanes, &lane{profile: w.profile, queue: name})
		}
		t.lanes[i].pods = append(t.lanes[i].pods, w)
	}
	return t
}

// next is the pod whose turn it is, nil when all have been decided.
func (t *turns) next() *waiting {
	best := map[*cluster.Profile]*lane{}
	share := func(l *lane) float64 {
		return t.run.state.Share(l.profile.QueueLabel, l.queue) / float64(max(l.profile.Weights[l.queue], 1))
	}
	for _, l := range t.lanes {
		for len(l.pods) > 0 && l.pods[0].done {
			l.pods = l.pods[1:]
		}
		if len(l.pods) == 0 {
			continue
		}
		first := best[l.profile]
		if first == nil {
			best[l.profile] = l
			continue
		}
		a, b := l.pods[0], first.pods[0]
		order := cmp.Compare(*b.pod.Spec.Priority, *a.pod.Spec.Priority)
		if order = cmp.Or(order, cmp.Compare(share(l), share(first)), before(a, b)); order < 0 {
			best[l.profile] = l
		}
	}
	var next *waiting
	for _, l := range best {
		if w := l.pods[0]; next == nil || before(w, next) < 0 {
			next = w
		}
	}
	if next != nil {
		next.done = true
	}
	return next
}

// trackShares counts what the profiles that share fairly ask for.
func (r *run) trackShares() {
	labels := map[string]bool{}
	for _, profile := range r.profiles {
		if profile.FairShare {
			labels[profile.QueueLabel] = true
		}
	}
	r.state.TrackShares(slices.Collect(maps.Keys(labels))...)
}
