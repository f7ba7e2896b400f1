package statefulset

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/ptr"
)

var now = time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC)

func newSet(replicas int32, change ...func(*appsv1.StatefulSet)) *appsv1.StatefulSet {
	labels := map[string]string{"app": "db"}
	set := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "ns", UID: "set"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, ServiceName: "db", Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template:             corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}},
			UpdateStrategy: appsv1.StatefulSetUpdateStrategy{
				Type: appsv1.RollingUpdateStatefulSetStrategyType, RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: ptr.To[int32](0)},
			},
		},
	}
	for _, f := range change {
		f(set)
	}
	return set
}

func parallel(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }
func onDelete(s *appsv1.StatefulSet) {
	s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
}
func partition(n int32) func(*appsv1.StatefulSet) {
	return func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.RollingUpdate.Partition = &n }
}
func from(n int32) func(*appsv1.StatefulSet) {
	return func(s *appsv1.StatefulSet) { s.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: n} }
}

// pods reads "0 1:pending 2@old:deleting": the number, the revision if it is not
// "new", and a state if it is not ready.
func podsOf(set *appsv1.StatefulSet, text string) []*corev1.Pod {
	var out []*corev1.Pod
	for _, word := range strings.Fields(text) {
		word, state, _ := strings.Cut(word, ":")
		number, revision, _ := strings.Cut(word, "@")
		if revision == "" {
			revision = "new"
		}
		var ordinal int
		if _, err := fmt.Sscan(number, &ordinal); err != nil {
			panic(err)
		}
		pod := newPod(set, ordinal, revision)
		pod.UID = types.UID(pod.Name)
		pod.Status.Phase = corev1.PodRunning
		ready := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Hour))}
		switch state {
		case "pending":
			pod.Status.Phase = corev1.PodPending
			ready.Status = corev1.ConditionFalse
		case "unready":
			ready.Status = corev1.ConditionFalse
		case "failed":
			pod.Status.Phase = corev1.PodFailed
			ready.Status = corev1.ConditionFalse
		case "deleting":
			pod.DeletionTimestamp = &metav1.Time{Time: now}
		case "young":
			ready.LastTransitionTime = metav1.NewTime(now.Add(-4 * time.Second))
		case "nameless":
			delete(pod.Labels, appsv1.StatefulSetPodNameLabel)
		}
		pod.Status.Conditions = []corev1.PodCondition{ready}
		out = append(out, pod)
	}
	return out
}

// told writes a plan as "create 1@new, delete 2".
func told(p Plan) string {
	var out []string
	add := func(verb string, list []*corev1.Pod, revision bool) {
		for _, pod := range list {
			_, ordinal := ordinalOf(pod)
			text := fmt.Sprintf("%s %d", verb, ordinal)
			if revision {
				text += "@" + revisionOf(pod)
			}
			out = append(out, text)
		}
	}
	add("create", p.Create, true)
	add("update", p.Update, false)
	add("delete", p.Delete, false)
	return strings.Join(out, ", ")
}

func TestDecide(t *testing.T) {
	all := func(name string) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}}
	}
	for _, tt := range []struct {
		name     string
		set      *appsv1.StatefulSet
		pods     string
		creating int
		deleting []types.UID
		want     string
	}{
		{"the first", newSet(3), "", 0, nil, "create 0@new"},
		{"waits for what was made", newSet(3), "", 1, nil, ""},
		{"waits for the first", newSet(3), "0:pending", 0, nil, ""},
		{"the next", newSet(3), "0", 0, nil, "create 1@new"},
		{"all at once", newSet(3, parallel), "1:pending", 0, nil, "create 0@new, create 2@new"},
		{"from another number", newSet(2, from(5)), "5", 0, nil, "create 6@new"},
		{"complete", newSet(2), "0 1", 0, nil, ""},
		{"a failed one goes first", newSet(2), "0:failed 1", 0, nil, "delete 0"},
		{"the last goes", newSet(1), "0 1 2", 0, nil, "delete 2"},
		{"one at a time", newSet(1), "0 1 2:deleting", 0, nil, ""},
		{"one at a time, not shown yet", newSet(1), "0 1 2", 0, []types.UID{"db-2"}, ""},
		{"not while another is unwell", newSet(1), "0 1:unready 2", 0, nil, "delete 2"},
		{"the first unwell one may go", newSet(1), "0 1 2:unready", 0, nil, "delete 2"},
		{"not before the first unwell one", newSet(1), "0 1:unready 2:unready", 0, nil, ""},
		{"all at once, down", newSet(1, parallel), "0 1 2", 0, nil, "delete 2, delete 1"},
		{"update from the end", newSet(3), "0@old 1@old 2@old", 0, nil, "delete 2"},
		{"update waits", newSet(3), "0@old 1@old 2:unready", 0, nil, ""},
		{"update goes on", newSet(3), "0@old 1@old 2", 0, nil, "delete 1"},
		{"update up to the partition", newSet(3, partition(2)), "0@old 1@old 2", 0, nil, ""},
		{"below the partition at the old revision", newSet(3, partition(2)), "0@old", 0, nil, "create 1@old"},
		{"on delete", newSet(2, onDelete), "0@old 1@old", 0, nil, ""},
		{"an identity is put right", newSet(2), "0:nameless 1", 0, nil, "update 0"},
		{"available before the next", newSet(2, func(s *appsv1.StatefulSet) { s.Spec.MinReadySeconds = 10 }), "0:young", 0, nil, ""},
		{"being deleted", newSet(3, func(s *appsv1.StatefulSet) { s.DeletionTimestamp = &metav1.Time{Time: now} }), "0", 0, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			plan := Decide(Snapshot{
				Set: tt.set, Current: tt.set, Update: tt.set, CurrentRevision: "old", UpdateRevision: "new", Pods: podsOf(tt.set, tt.pods),
				Claim: all, Creating: tt.creating, Deleting: sets.New(tt.deleting...), Now: now,
			})
			if got := told(plan); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	set := newSet(3)
	decide := func(pods string) appsv1.StatefulSetStatus {
		return Decide(Snapshot{Set: set, Current: set, Update: set, CurrentRevision: "old", UpdateRevision: "new", Pods: podsOf(set, pods),
			Claim: func(string) *corev1.PersistentVolumeClaim { return nil }, Now: now}).Status
	}
	zero := ptr.To[int32](0)
	for pods, want := range map[string]appsv1.StatefulSetStatus{
		"0@old 1@old:unready 2": {Replicas: 3, ReadyReplicas: 2, AvailableReplicas: 2, CurrentReplicas: 2, UpdatedReplicas: 1, CurrentRevision: "old", UpdateRevision: "new", CollisionCount: zero},
		"0@old 1@old 2":         {Replicas: 3, ReadyReplicas: 3, AvailableReplicas: 3, CurrentReplicas: 1, UpdatedReplicas: 1, CurrentRevision: "old", UpdateRevision: "new", CollisionCount: zero},
		"0 1 2":                 {Replicas: 3, ReadyReplicas: 3, AvailableReplicas: 3, CurrentReplicas: 3, UpdatedReplicas: 3, CurrentRevision: "new", UpdateRevision: "new", CollisionCount: zero},
	} {
		if d := cmp.Diff(want, decide(pods)); d != "" {
			t.Errorf("%s (-want +got):\n%s", pods, d)
		}
	}
}

func TestClaims(t *testing.T) {
	const keep, drop = appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	policy := func(deleted, scaled appsv1.PersistentVolumeClaimRetentionPolicyType) func(*appsv1.StatefulSet) {
		return func(s *appsv1.StatefulSet) {
			s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: deleted, WhenScaled: scaled}
		}
	}
	yes := true
	ofSet := metav1.OwnerReference{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db", UID: "set", Controller: &yes}
	ofPod := metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: "db-1", UID: "db-1", Controller: &yes}
	earlier, other := ofPod, metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "x", UID: "x", Controller: &yes}
	earlier.UID = "earlier"
	for _, tt := range []struct {
		name     string
		replicas int32
		policy   func(*appsv1.StatefulSet)
		has      []metav1.OwnerReference
		want     string // kinds of the owners; "=" for no change
		foreign  bool
	}{
		{"kept", 2, policy(keep, keep), nil, "=", false},
		{"kept, no longer owned", 2, policy(keep, keep), []metav1.OwnerReference{ofSet}, "", false},
		{"goes with the set", 2, policy(drop, keep), nil, "StatefulSet", false},
		{"goes with the set already", 2, policy(drop, keep), []metav1.OwnerReference{ofSet}, "=", false},
		{"goes with a pod that is scaled away", 1, policy(keep, drop), nil, "Pod", false},
		{"stays with a pod that stays", 2, policy(keep, drop), []metav1.OwnerReference{ofPod}, "", false},
		{"of set and pod the pod", 1, policy(drop, drop), []metav1.OwnerReference{ofSet}, "Pod", false},
		{"of set and pod the set", 2, policy(drop, drop), []metav1.OwnerReference{ofPod}, "StatefulSet", false},
		{"of an earlier pod", 2, policy(drop, drop), []metav1.OwnerReference{earlier}, "=", false},
		{"controlled by somebody", 2, policy(drop, drop), []metav1.OwnerReference{other}, "=", false},
		{"and by us", 2, policy(drop, drop), []metav1.OwnerReference{other, ofSet}, "ConfigMap", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			set := newSet(tt.replicas, tt.policy)
			plan := Decide(Snapshot{Set: set, Current: set, Update: set, CurrentRevision: "new", UpdateRevision: "new", Pods: podsOf(set, "0 1"), Now: now,
				Claim: func(name string) *corev1.PersistentVolumeClaim {
					claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}}
					if name == "data-db-1" {
						claim.OwnerReferences = tt.has
					}
					return claim
				}})
			got := "="
			for _, claim := range plan.Owners {
				if claim.Name != "data-db-1" {
					continue
				}
				var owners []string
				for _, ref := range claim.OwnerReferences {
					owners = append(owners, ref.Kind)
				}
				got = strings.Join(owners, " ")
			}
			if got != tt.want || (len(plan.Foreign) > 0) != tt.foreign {
				t.Errorf("owners %q, want %q; foreign %v", got, tt.want, plan.Foreign)
			}
		})
	}
	t.Run("made before the pod", func(t *testing.T) {
		set := newSet(1)
		s := Snapshot{Set: set, Current: set, Update: set, Now: now, Claim: func(string) *corev1.PersistentVolumeClaim { return nil }}
		plan := Decide(s)
		if len(plan.Claims) != 1 || plan.Claims[0].Name != "data-db-0" || plan.Claims[0].Labels["app"] != "db" || len(plan.Create) != 1 ||
			plan.Create[0].Spec.Volumes[0].PersistentVolumeClaim.ClaimName != "data-db-0" {
			t.Errorf("%+v", plan)
		}
		s.Claim = func(name string) *corev1.PersistentVolumeClaim {
			return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name, DeletionTimestamp: &metav1.Time{Time: now}}}
		}
		if plan := Decide(s); len(plan.Create) != 0 || plan.Held != "pvc data-db-0 is being deleted" {
			t.Errorf("on a claim that goes away: %+v", plan)
		}
	})
}
