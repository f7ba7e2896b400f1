package deployment

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/dump"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Annotations that kubectl rollout and other controllers read.
const (
	revisionAnnotation = "deployment.kubernetes.io/revision"
	historyAnnotation  = "deployment.kubernetes.io/revision-history"
	desiredAnnotation  = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation      = "deployment.kubernetes.io/max-replicas"

	// historyLimit bounds the revision history annotation, in characters.
	historyLimit = 2000
)

// notCopied are the annotations of a Deployment that its sets do not inherit.
var notCopied = []string{
	corev1.LastAppliedConfigAnnotation, revisionAnnotation, historyAnnotation,
	desiredAnnotation, maxAnnotation, appsv1.DeprecatedRollbackTo,
}

// Hash is the value of the pod-template-hash label, as upstream computes it.
func Hash(template *corev1.PodTemplateSpec, collisions *int32) string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%v", dump.ForHash(*template))
	if collisions != nil {
		var b [8]byte
		binary.LittleEndian.PutUint32(b[:], uint32(*collisions))
		h.Write(b[:])
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

func setName(deployment, hash string) string {
	if longest := validation.DNS1123SubdomainMaxLength - 1 - len(hash); len(deployment) > longest {
		deployment = deployment[:longest]
	}
	return deployment + "-" + hash
}

// newSet is the set of the Deployment's present template, with no replicas yet.
func newSet(d *appsv1.Deployment) *appsv1.ReplicaSet {
	template := d.Spec.Template.DeepCopy()
	hash := Hash(template, d.Status.CollisionCount)
	template.Labels = with(template.Labels, appsv1.DefaultDeploymentUniqueLabelKey, hash)
	selector := d.Spec.Selector.DeepCopy()
	selector.MatchLabels = with(selector.MatchLabels, appsv1.DefaultDeploymentUniqueLabelKey, hash)
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name:            setName(d.Name, hash),
			Namespace:       d.Namespace,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, kind)},
			Labels:          maps.Clone(template.Labels),
		},
		Spec: appsv1.ReplicaSetSpec{
			Replicas:        new(int32),
			MinReadySeconds: d.Spec.MinReadySeconds,
			Selector:        selector,
			Template:        *template,
		},
	}
}

func with(labels map[string]string, key, value string) map[string]string {
	out := maps.Clone(labels)
	if out == nil {
		out = make(map[string]string, 1)
	}
	out[key] = value
	return out
}

// sameTemplate compares all but the pod-template-hash label.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	return equality.Semantic.DeepEqual(withoutHash(a), withoutHash(b))
}

func withoutHash(t *corev1.PodTemplateSpec) *corev1.PodTemplateSpec {
	if _, ok := t.Labels[appsv1.DefaultDeploymentUniqueLabelKey]; !ok {
		return t
	}
	out := *t
	out.Labels = maps.Clone(t.Labels)
	delete(out.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	return &out
}

// byAge sorts the oldest first.
func byAge(a, b *appsv1.ReplicaSet) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

func bySize(a, b *appsv1.ReplicaSet) int { return cmp.Compare(*b.Spec.Replicas, *a.Spec.Replicas) }

func revision(rs *appsv1.ReplicaSet) (int64, bool) {
	v, ok := rs.Annotations[revisionAnnotation]
	if !ok {
		return 0, true
	}
	n, err := strconv.ParseInt(v, 10, 64)
	return n, err == nil
}

// maxRevision skips revisions that cannot be read.
func maxRevision(sets []*appsv1.ReplicaSet) (highest int64) {
	for _, rs := range sets {
		if n, ok := revision(rs); ok {
			highest = max(highest, n)
		}
	}
	return highest
}

// annotate gives a set the Deployment's annotations and a revision that is at
// least next, keeping the revisions it had before for history. It changes rs in
// place and reports whether it did.
func annotate(rs *appsv1.ReplicaSet, d *appsv1.Deployment, next int64) bool {
	changed := copyAnnotations(rs, d)
	had, ok := rs.Annotations[revisionAnnotation]
	old, err := strconv.ParseInt(had, 10, 64)
	if (err != nil && had != "") || old >= next {
		return changed && (err == nil || had == "")
	}
	rs.Annotations[revisionAnnotation] = strconv.FormatInt(next, 10)
	if ok {
		appendHistory(rs.Annotations, had)
	}
	return true
}

func copyAnnotations(rs *appsv1.ReplicaSet, d *appsv1.Deployment) (changed bool) {
	if rs.Annotations == nil {
		rs.Annotations = make(map[string]string)
	}
	for k, v := range d.Annotations {
		if have, ok := rs.Annotations[k]; slices.Contains(notCopied, k) || ok && have == v {
			continue
		}
		rs.Annotations[k] = v
		changed = true
	}
	return changed
}

func appendHistory(annotations map[string]string, old string) {
	history := annotations[historyAnnotation]
	if history == "" {
		annotations[historyAnnotation] = old
		return
	}
	history += "," + old
	for len(history) > historyLimit {
		_, rest, ok := strings.Cut(history, ",")
		if !ok {
			return // the one revision is longer than the limit
		}
		history = rest
	}
	annotations[historyAnnotation] = history
}

// setSizes records on a set what size its Deployment has, which separates
// scaling from rolling out.
func setSizes(rs *appsv1.ReplicaSet, d *appsv1.Deployment) (changed bool) {
	desired := *d.Spec.Replicas
	for k, n := range map[string]int32{desiredAnnotation: desired, maxAnnotation: desired + maxSurge(d)} {
		if v := strconv.Itoa(int(n)); rs.Annotations[k] != v {
			if rs.Annotations == nil {
				rs.Annotations = make(map[string]string)
			}
			rs.Annotations[k] = v
			changed = true
		}
	}
	return changed
}

func sizeAnnotation(rs *appsv1.ReplicaSet, key string) (int32, bool) {
	n, err := strconv.ParseUint(rs.Annotations[key], 10, 31)
	return int32(n), err == nil
}

func isRolling(d *appsv1.Deployment) bool {
	return d.Spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType
}

func maxSurge(d *appsv1.Deployment) int32 {
	surge, _ := fenceposts(d)
	return surge
}

func maxUnavailable(d *appsv1.Deployment) int32 {
	_, unavailable := fenceposts(d)
	return min(unavailable, *d.Spec.Replicas)
}

// fenceposts resolves both limits at once: surge rounds up and unavailable
// down, and where both would be none, one may be unavailable, as a surge might
// never succeed for want of quota. Validation has refused what cannot be parsed.
func fenceposts(d *appsv1.Deployment) (surge, unavailable int32) {
	r := d.Spec.Strategy.RollingUpdate
	if !isRolling(d) || r == nil {
		return 0, 0
	}
	zero := intstr.FromInt32(0)
	s, err1 := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(r.MaxSurge, zero), int(*d.Spec.Replicas), true)
	u, err2 := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(r.MaxUnavailable, zero), int(*d.Spec.Replicas), false)
	if err1 != nil || err2 != nil {
		return 0, 0
	}
	if s == 0 && u == 0 {
		u = 1
	}
	return int32(s), int32(u)
}

func hasDeadline(d *appsv1.Deployment) bool {
	return d.Spec.ProgressDeadlineSeconds != nil && *d.Spec.ProgressDeadlineSeconds != math.MaxInt32
}
