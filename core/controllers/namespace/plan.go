// Package namespace empties namespaces that are being deleted, and then lets
// them go.
package namespace

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
)

// Remains is what was left in a namespace after a round of deletions.
type Remains struct {
	Objects    map[schema.GroupVersionResource]int
	Finalizers map[string]int // objects that wait for a finalizer
	Errors     []error
	Unknown    error // kinds that may have objects here cannot be asked for
}

// Empty reports that nothing is left and nothing went wrong.
func (r Remains) Empty() bool { return len(r.Objects) == 0 && len(r.Errors) == 0 && r.Unknown == nil }

var fine = []corev1.NamespaceCondition{
	{Type: corev1.NamespaceDeletionDiscoveryFailure, Reason: "ResourcesDiscovered", Message: "All resources successfully discovered"},
	{Type: corev1.NamespaceDeletionGVParsingFailure, Reason: "ParsedGroupVersions", Message: "All legacy kube types successfully parsed"},
	{Type: corev1.NamespaceDeletionContentFailure, Reason: "ContentDeleted", Message: "All content successfully deleted, may be waiting on finalization"},
	{Type: corev1.NamespaceContentRemaining, Reason: "ContentRemoved", Message: "All content successfully removed"},
	{Type: corev1.NamespaceFinalizersRemaining, Reason: "ContentHasNoFinalizers", Message: "All content-preserving finalizers finished"},
}

// Conditions returns the status conditions that say what remains, from those of
// before, and whether they differ.
func Conditions(before []corev1.NamespaceCondition, r Remains, now time.Time) ([]corev1.NamespaceCondition, bool) {
	bad := map[corev1.NamespaceConditionType]corev1.NamespaceCondition{}
	if r.Unknown != nil {
		message := r.Unknown.Error()
		var failed *discovery.ErrGroupDiscoveryFailed
		if errors.As(r.Unknown, &failed) {
			message = fmt.Sprintf("Discovery failed for some groups, %d failing: %v", len(failed.Groups), failed)
		}
		bad[corev1.NamespaceDeletionDiscoveryFailure] = corev1.NamespaceCondition{Reason: "DiscoveryFailed", Message: message}
	}
	if len(r.Errors) > 0 {
		messages := make([]string, len(r.Errors))
		for i, err := range r.Errors {
			messages[i] = err.Error()
		}
		slices.Sort(messages)
		bad[corev1.NamespaceDeletionContentFailure] = corev1.NamespaceCondition{
			Reason:  "ContentDeletionFailed",
			Message: fmt.Sprintf("Failed to delete all resource types, %d remaining: %s", len(messages), strings.Join(messages, ", ")),
		}
	}
	if len(r.Objects) > 0 {
		bad[corev1.NamespaceContentRemaining] = corev1.NamespaceCondition{
			Reason: "SomeResourcesRemain",
			Message: "Some resources are remaining: " + list(r.Objects, func(gvr schema.GroupVersionResource, n int) string {
				return fmt.Sprintf("%s.%s has %d resource instances", gvr.Resource, gvr.Group, n)
			}),
		}
	}
	if len(r.Finalizers) > 0 {
		bad[corev1.NamespaceFinalizersRemaining] = corev1.NamespaceCondition{
			Reason: "SomeFinalizersRemain",
			Message: "Some content in the namespace has finalizers remaining: " + list(r.Finalizers, func(f string, n int) string {
				return fmt.Sprintf("%s in %d resource instances", f, n)
			}),
		}
	}
	after, changed := slices.Clone(before), false
	for _, next := range fine {
		next.Status = corev1.ConditionFalse
		if b, ok := bad[next.Type]; ok {
			next.Status, next.Reason, next.Message = corev1.ConditionTrue, b.Reason, b.Message
		}
		next.LastTransitionTime = metav1.NewTime(now)
		i := slices.IndexFunc(after, func(c corev1.NamespaceCondition) bool { return c.Type == next.Type })
		if i < 0 {
			after, changed = append(after, next), true
			continue
		}
		if after[i].Status == next.Status {
			next.LastTransitionTime = after[i].LastTransitionTime
		}
		changed = changed || after[i] != next
		after[i] = next
	}
	return after, changed
}

func list[K comparable](counts map[K]int, text func(K, int) string) string {
	parts := make([]string, 0, len(counts))
	for k := range maps.Keys(counts) {
		parts = append(parts, text(k, counts[k]))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// Wait is how long to leave the rest alone: half of what the slowest pod may
// take to end and a second, or of 15 s if a finalizer holds something up.
func Wait(r Remains, longestGrace time.Duration, since time.Duration) time.Duration {
	estimate := longestGrace
	if since >= longestGrace {
		estimate = 0
	}
	if len(r.Finalizers) > 0 {
		estimate = max(estimate, 15*time.Second)
	}
	return estimate/2 + time.Second
}
