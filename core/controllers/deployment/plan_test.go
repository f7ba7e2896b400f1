package deployment

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

var now = time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC)

func deploy(replicas int32, surge, unavailable string, change ...func(*appsv1.Deployment)) *appsv1.Deployment {
	s, u := intstr.Parse(surge), intstr.Parse(unavailable)
	labels := map[string]string{"app": "web"}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns", UID: "d", Generation: 1},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: template("v1"),
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &s, MaxUnavailable: &u},
			},
			ProgressDeadlineSeconds: ptr.To[int32](600),
			RevisionHistoryLimit:    ptr.To[int32](10),
		},
	}
	for _, f := range change {
		f(d)
	}
	return d
}

func template(image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}},
	}
}

// set is one with n replicas of which some are available, of a Deployment of
// the size, created at a minute of the hour that is also its revision.
func set(d *appsv1.Deployment, image string, minute int, n, available int32) *appsv1.ReplicaSet {
	of := d.DeepCopy()
	of.Spec.Template = template(image)
	rs := newSet(of)
	rs.UID = types.UID(image)
	rs.CreationTimestamp = metav1.NewTime(now.Add(time.Duration(minute-60) * time.Minute))
	*rs.Spec.Replicas = n
	rs.Status = appsv1.ReplicaSetStatus{Replicas: n, ReadyReplicas: available, AvailableReplicas: available, TerminatingReplicas: new(int32)}
	annotate(rs, d, int64(minute))
	setSizes(rs, d)
	return rs
}

func sizes(p Plan) map[string]int32 {
	out := map[string]int32{}
	if p.Create != nil {
		out["+"+p.Create.Spec.Template.Spec.Containers[0].Image] = *p.Create.Spec.Replicas
	}
	for _, u := range p.Update {
		out[u.Set.Spec.Template.Spec.Containers[0].Image] = *u.Set.Spec.Replicas
	}
	for _, rs := range p.Delete {
		out["-"+rs.Spec.Template.Spec.Containers[0].Image] = 0
	}
	return out
}

func image(v string) func(*appsv1.Deployment) {
	return func(d *appsv1.Deployment) { d.Spec.Template = template(v) }
}

func paused(d *appsv1.Deployment) { d.Spec.Paused = true }

func recreate(d *appsv1.Deployment) {
	d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
}

func TestDecideSizes(t *testing.T) {
	type sets = []*appsv1.ReplicaSet
	ten := deploy(10, "3", "2")
	tests := []struct {
		name string
		d    *appsv1.Deployment
		sets sets
		pods []*corev1.Pod
		want map[string]int32
	}{
		{"first", deploy(10, "25%", "25%"), nil, nil, map[string]int32{"+v1": 10}},
		{"second template starts with the surge", deploy(10, "3", "2", image("v2")), sets{set(ten, "v1", 1, 10, 10)}, nil,
			map[string]int32{"+v2": 3, "v1": 8}},
		{"new set unavailable: old ones stay at the minimum", deploy(10, "3", "2", image("v2")), sets{set(ten, "v1", 1, 8, 8), set(ten, "v2", 2, 5, 0)}, nil,
			map[string]int32{}},
		{"new set grows before old ones shrink", deploy(10, "3", "2", image("v2")), sets{set(ten, "v1", 1, 8, 8), set(ten, "v2", 2, 3, 3)}, nil,
			map[string]int32{"v2": 5}},
		{"new set available: old ones shrink", deploy(10, "3", "2", image("v2")), sets{set(ten, "v1", 1, 8, 8), set(ten, "v2", 2, 5, 5)}, nil,
			map[string]int32{"v1": 3}},
		{"unhealthy old pods go first", deploy(10, "3", "2", image("v3")), sets{set(ten, "v1", 1, 4, 0), set(ten, "v2", 2, 8, 8), set(ten, "v3", 3, 1, 1)}, nil,
			map[string]int32{"v1": 0, "v2": 7}},
		{"no surge", deploy(10, "0", "2", image("v2")), sets{set(deploy(10, "0", "2"), "v1", 1, 10, 10)}, nil,
			map[string]int32{"+v2": 0, "v1": 8}},
		{"both limits round to nothing", deploy(2, "0%", "1%", image("v2")), sets{set(deploy(2, "0%", "1%"), "v1", 1, 2, 2)}, nil,
			map[string]int32{"+v2": 0, "v1": 1}},
		{"back to an old template", deploy(10, "3", "2"), sets{set(ten, "v1", 1, 0, 0), set(ten, "v2", 2, 10, 10)}, nil,
			map[string]int32{"v1": 3}},
		{"done", deploy(10, "3", "2", image("v2")), sets{set(ten, "v1", 1, 0, 0), set(ten, "v2", 2, 10, 10)}, nil,
			map[string]int32{}},
		{"scale one", deploy(4, "3", "2"), sets{set(ten, "v1", 1, 10, 10)}, nil,
			map[string]int32{"v1": 4}},
		{"scale to nothing", deploy(0, "3", "2"), sets{set(ten, "v1", 1, 10, 10)}, nil,
			map[string]int32{"v1": 0}},
		{"scale in the middle of a rollout is in proportion", deploy(20, "3", "2", image("v2")), sets{set(ten, "v1", 1, 8, 8), set(ten, "v2", 2, 5, 5)}, nil,
			map[string]int32{"v1": 14, "v2": 9}},
		{"scale down in the middle of a rollout", deploy(5, "3", "2", image("v2")), sets{set(ten, "v1", 1, 8, 8), set(ten, "v2", 2, 5, 5)}, nil,
			map[string]int32{"v1": 5, "v2": 3}},
		{"scale to nothing in the middle of a rollout", deploy(0, "3", "2", image("v2")), sets{set(ten, "v1", 1, 8, 8), set(ten, "v2", 2, 5, 5)}, nil,
			map[string]int32{"v1": 0, "v2": 0}},
		{"paused: no rollout", deploy(10, "3", "2", image("v2"), paused), sets{set(ten, "v1", 1, 10, 10)}, nil,
			map[string]int32{}},
		{"paused: scaling goes on", deploy(6, "3", "2", image("v2"), paused), sets{set(ten, "v1", 1, 10, 10)}, nil,
			map[string]int32{"v1": 6}},
		{"recreate first ends all", deploy(3, "0", "0", image("v2"), recreate), sets{set(deploy(3, "0", "0", recreate), "v1", 1, 3, 3)}, nil,
			map[string]int32{"v1": 0}},
		{"recreate waits for pods that still run", deploy(3, "0", "0", image("v2"), recreate), sets{set(deploy(3, "0", "0", recreate), "v1", 1, 0, 0)},
			[]*corev1.Pod{{Status: corev1.PodStatus{Phase: corev1.PodRunning}}},
			map[string]int32{}},
		{"recreate goes on when they have ended", deploy(3, "0", "0", image("v2"), recreate), sets{set(deploy(3, "0", "0", recreate), "v1", 1, 0, 0)},
			[]*corev1.Pod{{Status: corev1.PodStatus{Phase: corev1.PodSucceeded}}},
			map[string]int32{"+v2": 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := tt.d.DeepCopy()
			p, err := Decide(Snapshot{Deployment: tt.d, Sets: tt.sets, Now: now, Pods: func(*appsv1.ReplicaSet) []*corev1.Pod { return tt.pods }})
			if err != nil {
				t.Fatal(err)
			}
			got := sizes(p)
			for _, u := range p.Update { // a set may be written for its annotations alone
				if u.From == *u.Set.Spec.Replicas {
					delete(got, u.Set.Spec.Template.Spec.Containers[0].Image)
				}
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("sizes (-want +got):\n%s", d)
			}
			if d := cmp.Diff(before, tt.d); d != "" {
				t.Errorf("the snapshot was changed:\n%s", d)
			}
		})
	}
}

// TestRollouts plays whole rollouts with pods that become available at random,
// and templates and sizes that change at random, and checks after every step
// what upstream promises.
func TestRollouts(t *testing.T) {
	for seed := range uint64(300) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { playRollout(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func playRollout(t *testing.T, random *rand.Rand) {
	surge, unavailable := random.Int32N(4), random.Int32N(4)
	if surge+unavailable == 0 {
		surge = 1
	}
	d := deploy(1+random.Int32N(12), fmt.Sprint(surge), fmt.Sprint(unavailable))
	var sets []*appsv1.ReplicaSet
	clock := now
	version, changes, quiet := 1, random.IntN(6), 0
	for step := 0; quiet < 3; step++ {
		if step > 500 {
			t.Fatal("no end after 500 steps")
		}
		clock = clock.Add(time.Second)
		before, scaling := availableIn(sets), scaled(d, sets)
		p, err := Decide(Snapshot{Deployment: d, Sets: sets, Now: clock})
		if err != nil {
			t.Fatal(err)
		}
		sets, d = apply(sets, d, p, clock)
		if !scaling {
			if limit := *d.Spec.Replicas + surge; grew(p) && replicas(sets) > limit {
				t.Fatalf("step %d: grew to %d replicas, at most %d allowed", step, replicas(sets), limit)
			}
			if floor := min(before, *d.Spec.Replicas-unavailable); availableIn(sets) < floor {
				t.Fatalf("step %d: %d left available of %d, at least %d promised", step, availableIn(sets), before, floor)
			}
		}
		if p.Create == nil && len(p.Update)+len(p.Delete) == 0 && p.Status == nil && changes == 0 && !settle(sets, random) {
			quiet++
			continue
		}
		quiet = 0
		settle(sets, random)
		if changes > 0 && random.IntN(4) == 0 {
			changes--
			d = d.DeepCopy()
			d.Generation++
			if random.IntN(2) == 0 {
				version = 1 + random.IntN(4)
				d.Spec.Template = template(fmt.Sprintf("v%d", version))
			} else {
				*d.Spec.Replicas = random.Int32N(12)
			}
		}
	}
	checkDone(t, d, sets, version)
}

// settle is what the set controller and the pods do in a second. It reports
// whether a pod is still to become available.
func settle(sets []*appsv1.ReplicaSet, random *rand.Rand) (busy bool) {
	for _, rs := range sets {
		s := &rs.Status
		busy = busy || s.AvailableReplicas < *rs.Spec.Replicas
		s.ObservedGeneration, s.Replicas, s.TerminatingReplicas = rs.Generation, *rs.Spec.Replicas, new(int32)
		s.AvailableReplicas = min(s.AvailableReplicas, s.Replicas)
		if s.AvailableReplicas < s.Replicas && random.IntN(2) == 0 {
			s.AvailableReplicas++
		}
		s.ReadyReplicas = s.AvailableReplicas
	}
	return busy
}

// availableIn counts the pods that stay if each set has shrunk to its size.
func availableIn(sets []*appsv1.ReplicaSet) (n int32) {
	for _, rs := range sets {
		n += available(rs)
	}
	return n
}

func scaled(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) bool {
	return slices.ContainsFunc(sets, func(rs *appsv1.ReplicaSet) bool {
		n, ok := sizeAnnotation(rs, desiredAnnotation)
		return *rs.Spec.Replicas > *d.Spec.Replicas || ok && n != *d.Spec.Replicas && *rs.Spec.Replicas > 0
	})
}

func grew(p Plan) bool {
	return p.Create != nil && *p.Create.Spec.Replicas > 0 || slices.ContainsFunc(p.Update, func(u SetUpdate) bool { return *u.Set.Spec.Replicas > u.From })
}

func apply(sets []*appsv1.ReplicaSet, d *appsv1.Deployment, p Plan, at time.Time) ([]*appsv1.ReplicaSet, *appsv1.Deployment) {
	sets = slices.Clone(sets)
	if p.Create != nil {
		rs := p.Create.DeepCopy()
		rs.UID, rs.CreationTimestamp, rs.Generation = types.UID(rs.Name), metav1.NewTime(at), 1
		sets = append(sets, rs)
	}
	for _, u := range p.Update {
		for i := range sets {
			if sets[i].UID == u.Set.UID {
				next := u.Set.DeepCopy()
				next.Generation++
				sets[i] = next
			}
		}
	}
	for _, gone := range p.Delete {
		sets = slices.DeleteFunc(sets, func(rs *appsv1.ReplicaSet) bool { return rs.UID == gone.UID })
	}
	if p.Status != nil {
		d = p.Status.DeepCopy()
	}
	return sets, d
}

func checkDone(t *testing.T, d *appsv1.Deployment, sets []*appsv1.ReplicaSet, version int) {
	t.Helper()
	highest := int64(0)
	var current *appsv1.ReplicaSet
	for _, rs := range sets {
		if rs.Spec.Template.Spec.Containers[0].Image == fmt.Sprintf("v%d", version) {
			current = rs
		} else if *rs.Spec.Replicas != 0 {
			t.Errorf("old set %s has %d replicas", rs.Name, *rs.Spec.Replicas)
		}
		n, _ := revision(rs)
		highest = max(highest, n)
	}
	if current == nil || *current.Spec.Replicas != *d.Spec.Replicas {
		t.Fatalf("the present template has no set of %d replicas", *d.Spec.Replicas)
	}
	if n, _ := revision(current); n != highest || d.Annotations[revisionAnnotation] != fmt.Sprint(n) {
		t.Errorf("revision of the set %d, of all %d, of the deployment %s", n, highest, d.Annotations[revisionAnnotation])
	}
	if !complete(d, &d.Status) {
		t.Errorf("status is not complete: %+v", d.Status)
	}
	if c := condition(&d.Status, appsv1.DeploymentProgressing); c == nil || c.Status != corev1.ConditionTrue {
		t.Errorf("progressing: %+v", c)
	}
	if c := condition(&d.Status, appsv1.DeploymentAvailable); c == nil || c.Status != corev1.ConditionTrue {
		t.Errorf("available: %+v", c)
	}
}

func TestProgress(t *testing.T) {
	since := func(s int) metav1.Time { return metav1.NewTime(now.Add(-time.Duration(s) * time.Second)) }
	progressing := func(reason string, ago int) appsv1.DeploymentCondition {
		return appsv1.DeploymentCondition{Type: appsv1.DeploymentProgressing, Status: corev1.ConditionTrue, Reason: reason, LastUpdateTime: since(ago), LastTransitionTime: since(1000)}
	}
	tests := []struct {
		name    string
		d       *appsv1.Deployment
		before  []appsv1.DeploymentCondition
		updated int32 // in the status before
		n, up   int32 // replicas of the set, and how many are available
		reason  string
		status  corev1.ConditionStatus
		message string
		requeue time.Duration
	}{
		{"complete", deploy(2, "1", "0"), nil, 2, 2, 2, reasonComplete, corev1.ConditionTrue, `ReplicaSet "web-HASH" has successfully progressed.`, 0},
		{"progress", deploy(2, "1", "0"), []appsv1.DeploymentCondition{progressing(reasonSetCreated, 300)}, 0, 2, 1, reasonSetUpdated, corev1.ConditionTrue, `ReplicaSet "web-HASH" is progressing.`, 601 * time.Second},
		{"stuck, with time left", deploy(2, "1", "0"), []appsv1.DeploymentCondition{progressing(reasonSetUpdated, 300)}, 2, 2, 0, reasonSetUpdated, corev1.ConditionTrue, "", 301 * time.Second},
		{"timed out", deploy(2, "1", "0"), []appsv1.DeploymentCondition{progressing(reasonSetUpdated, 601)}, 2, 2, 0, reasonTimedOut, corev1.ConditionFalse, `ReplicaSet "web-HASH" has timed out progressing.`, 0},
		{"a finished rollout does not time out", deploy(2, "1", "0"), []appsv1.DeploymentCondition{progressing(reasonComplete, 9000)}, 2, 2, 0, reasonComplete, corev1.ConditionTrue, "", 0},
		{"paused", deploy(2, "1", "0", paused), []appsv1.DeploymentCondition{progressing(reasonSetUpdated, 300)}, 2, 2, 0, reasonPaused, corev1.ConditionUnknown, "Deployment is paused", 0},
		{"resumed", deploy(2, "1", "0"), []appsv1.DeploymentCondition{progressing(reasonPaused, 9000)}, 2, 2, 0, reasonResumed, corev1.ConditionUnknown, "Deployment is resumed", 601 * time.Second},
		{"timed out stays when paused", deploy(2, "1", "0", paused), []appsv1.DeploymentCondition{progressing(reasonTimedOut, 9000)}, 2, 2, 0, reasonTimedOut, corev1.ConditionTrue, "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.d.Status = appsv1.DeploymentStatus{Conditions: tt.before, Replicas: tt.updated, UpdatedReplicas: tt.updated}
			rs := set(tt.d, "v1", 1, tt.n, tt.up)
			p, err := Decide(Snapshot{Deployment: tt.d, Sets: []*appsv1.ReplicaSet{rs}, Now: now})
			if err != nil {
				t.Fatal(err)
			}
			c := condition(&p.Status.Status, appsv1.DeploymentProgressing)
			message := strings.ReplaceAll(tt.message, "web-HASH", rs.Name)
			if c.Reason != tt.reason || c.Status != tt.status || c.Message != message || p.Requeue != tt.requeue {
				t.Errorf("got %s %s %q after %s, want %s %s %q after %s", c.Reason, c.Status, c.Message, p.Requeue, tt.reason, tt.status, message, tt.requeue)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	d := deploy(10, "3", "2", image("v2"), func(d *appsv1.Deployment) { d.Spec.ProgressDeadlineSeconds = nil })
	old, current := set(d, "v1", 1, 8, 7), set(d, "v2", 2, 5, 0)
	old.Status.TerminatingReplicas = ptr.To[int32](2)
	current.Status.Conditions = []appsv1.ReplicaSetCondition{{Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: "quota"}}
	p, err := Decide(Snapshot{Deployment: d, Sets: []*appsv1.ReplicaSet{old, current}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	at := metav1.NewTime(now)
	want := appsv1.DeploymentStatus{
		ObservedGeneration: 1, Replicas: 13, UpdatedReplicas: 5, ReadyReplicas: 7, AvailableReplicas: 7,
		UnavailableReplicas: 6, TerminatingReplicas: ptr.To[int32](2),
		Conditions: []appsv1.DeploymentCondition{
			{Type: appsv1.DeploymentAvailable, Status: corev1.ConditionFalse, Reason: "MinimumReplicasUnavailable", Message: "Deployment does not have minimum availability.", LastUpdateTime: at, LastTransitionTime: at},
			{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: "quota"},
		},
	}
	if diff := cmp.Diff(want, p.Status.Status); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	current.Status.TerminatingReplicas, current.Status.ObservedGeneration = nil, 1
	if p, _ = Decide(Snapshot{Deployment: d, Sets: []*appsv1.ReplicaSet{old, current}, Now: now}); p.Status.Status.TerminatingReplicas != nil {
		t.Error("terminating replicas are told though a set does not tell its own")
	}
}

func TestRevisions(t *testing.T) {
	d := deploy(3, "1", "0", func(d *appsv1.Deployment) {
		d.Annotations = map[string]string{"kubernetes.io/change-cause": "back", corev1.LastAppliedConfigAnnotation: "{}"}
	})
	back, last := set(d, "v1", 1, 0, 0), set(d, "v2", 2, 3, 3)
	p, err := Decide(Snapshot{Deployment: d, Sets: []*appsv1.ReplicaSet{back, last}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		revisionAnnotation: "3", historyAnnotation: "1", desiredAnnotation: "3", maxAnnotation: "4", "kubernetes.io/change-cause": "back",
	}
	if diff := cmp.Diff(want, p.Update[0].Set.Annotations); diff != "" {
		t.Errorf("annotations of the set (-want +got):\n%s", diff)
	}
	if got := p.Status.Annotations[revisionAnnotation]; got != "3" {
		t.Errorf("revision of the deployment: %q", got)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	a := map[string]string{}
	for i := range 2000 {
		appendHistory(a, fmt.Sprint(i))
	}
	h := a[historyAnnotation]
	if len(h) > historyLimit || !strings.HasSuffix(h, ",1998,1999") || strings.HasPrefix(h, ",") {
		t.Errorf("%d characters: %.20s … %s", len(h), h, h[len(h)-20:])
	}
}

func TestCleanUp(t *testing.T) {
	d := deploy(1, "1", "0", image("v5"), func(d *appsv1.Deployment) { d.Spec.RevisionHistoryLimit = ptr.To[int32](2) })
	d.Status = appsv1.DeploymentStatus{Replicas: 1, UpdatedReplicas: 1, AvailableReplicas: 1, ObservedGeneration: 1}
	sets := []*appsv1.ReplicaSet{set(d, "v4", 4, 0, 0), set(d, "v1", 1, 0, 0), set(d, "v2", 2, 0, 0), set(d, "v3", 3, 0, 0), set(d, "v5", 5, 1, 1)}
	sets[1].Generation = 7 // not observed yet: it stays, and counts
	p, err := Decide(Snapshot{Deployment: d, Sets: sets, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int32{"-v2": 0}, sizes(p)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRollback(t *testing.T) {
	for _, tt := range []struct{ to, image, reason, message string }{
		{"1", "v1", "DeploymentRollback", `Rolled back deployment "web" to revision 1`},
		{"0", "v2", "DeploymentRollback", `Rolled back deployment "web" to revision 2`},
		{"3", "v3", "DeploymentRollbackTemplateUnchanged", `The rollback revision contains the same template as current deployment "web"`},
		{"9", "v3", "DeploymentRollbackRevisionNotFound", "Unable to find the revision to rollback to."},
	} {
		t.Run(tt.to, func(t *testing.T) {
			d := deploy(1, "1", "0", image("v3"))
			sets := []*appsv1.ReplicaSet{set(d, "v1", 1, 0, 0), set(d, "v2", 2, 0, 0), set(d, "v3", 3, 1, 1)}
			d.Annotations = map[string]string{appsv1.DeprecatedRollbackTo: tt.to}
			p, err := Decide(Snapshot{Deployment: d, Sets: sets, Now: now})
			if err != nil {
				t.Fatal(err)
			}
			got := p.Rollback.Spec.Template
			if got.Spec.Containers[0].Image != tt.image || got.Labels[appsv1.DefaultDeploymentUniqueLabelKey] != "" || p.Rollback.Annotations[appsv1.DeprecatedRollbackTo] != "" {
				t.Errorf("template %s, labels %v, annotations %v", got.Spec.Containers[0].Image, got.Labels, p.Rollback.Annotations)
			}
			if e := p.Events[0]; e.Reason != tt.reason || e.Message != tt.message {
				t.Errorf("event %+v", e)
			}
		})
	}
}

func TestSelectingAll(t *testing.T) {
	d := deploy(1, "1", "0", func(d *appsv1.Deployment) { d.Spec.Selector = &metav1.LabelSelector{} })
	p, err := Decide(Snapshot{Deployment: d, Now: now})
	if err != nil || p.Create != nil || len(p.Events) != 1 || p.Events[0].Reason != "SelectingAll" || p.Status.Status.ObservedGeneration != 1 {
		t.Errorf("%+v %v", p, err)
	}
}
