// Package history keeps the revisions of a pod template as ControllerRevisions,
// in upstream's format: kubectl rollout reads and restores them.
package history

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"

	"github.com/quaymaster/quaymaster/core/controllers/owner"
)

// HashLabel is the label with the hash of a revision's data, for kinds that do
// not name their own.
const HashLabel = "controller.kubernetes.io/hash"

var codec = scheme.Codecs.LegacyCodec(appsv1.SchemeGroupVersion)

// Propose makes the revision of a workload's present template: its data is a
// strategic merge patch that puts the template back. number is the revision's
// place, and collisions goes into the hash in its name.
func (s Store) Propose(controller interface {
	metav1.Object
	runtime.Object
}, kind schema.GroupVersionKind, templateLabels map[string]string, number int64, collisions int32) (*appsv1.ControllerRevision, error) {
	encoded, err := runtime.Encode(codec, controller)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s/%s: %w", kind.Kind, controller.GetNamespace(), controller.GetName(), err)
	}
	var content struct {
		Spec struct {
			Template map[string]any `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(encoded, &content); err != nil {
		return nil, fmt.Errorf("template of %s %s/%s: %w", kind.Kind, controller.GetNamespace(), controller.GetName(), err)
	}
	content.Spec.Template["$patch"] = "replace"
	data, err := json.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("template of %s %s/%s: %w", kind.Kind, controller.GetNamespace(), controller.GetName(), err)
	}
	r := &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: controller.GetNamespace(), Labels: map[string]string{}, Annotations: maps.Clone(controller.GetAnnotations()),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(controller, kind)},
		},
		Data: runtime.RawExtension{Raw: data}, Revision: number,
	}
	maps.Copy(r.Labels, templateLabels)
	s.name(r, controller.GetName(), collisions)
	return r, nil
}

func (s Store) name(r *appsv1.ControllerRevision, controller string, collisions int32) {
	hash := fnv.New32()
	hash.Write(r.Data.Raw)
	hash.Write([]byte(strconv.Itoa(int(collisions))))
	text := rand.SafeEncodeString(strconv.FormatUint(uint64(hash.Sum32()), 10))
	const longest = 223 // leaves room for the hash in a name of 253
	r.Name, r.Labels[s.Label] = controller[:min(len(controller), longest)]+"-"+text, text
}

// Restore returns a copy of the workload with the revision's template.
func Restore[O runtime.Object](workload O, revision *appsv1.ControllerRevision, into O) (O, error) {
	encoded, err := runtime.Encode(codec, workload)
	if err != nil {
		return into, fmt.Errorf("encode for revision %s: %w", revision.Name, err)
	}
	patched, err := strategicpatch.StrategicMergePatch(encoded, revision.Data.Raw, into)
	if err != nil {
		return into, fmt.Errorf("restore revision %s: %w", revision.Name, err)
	}
	if err := json.Unmarshal(patched, into); err != nil {
		return into, fmt.Errorf("restore revision %s: %w", revision.Name, err)
	}
	return into, nil
}

// Equal reports whether two revisions restore the same.
func Equal(a, b *appsv1.ControllerRevision) bool { return bytes.Equal(a.Data.Raw, b.Data.Raw) }

// Sort puts the oldest first.
func Sort(revisions []*appsv1.ControllerRevision) {
	slices.SortStableFunc(revisions, func(a, b *appsv1.ControllerRevision) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
}

// Next is the number of the revision after those, sorted.
func Next(revisions []*appsv1.ControllerRevision) int64 {
	if len(revisions) == 0 {
		return 1
	}
	return revisions[len(revisions)-1].Revision + 1
}

// Surplus returns the oldest revisions above the limit that are not in use.
func Surplus(revisions []*appsv1.ControllerRevision, limit int, live func(*appsv1.ControllerRevision) bool) []*appsv1.ControllerRevision {
	var idle []*appsv1.ControllerRevision
	for _, r := range revisions {
		if !live(r) {
			idle = append(idle, r)
		}
	}
	Sort(idle)
	return idle[:max(0, len(idle)-max(0, limit))]
}

// Store reads and writes revisions.
type Store struct {
	Client    kubernetes.Interface
	Revisions cache.SharedIndexInformer // with the index of owner.AddIndex
	Label     string                    // takes the hash of a revision: HashLabel, or the kind's own
}

// Of returns the controller's revisions, sorted, orphans that its selector
// matches included: those it adopts.
func (s Store) Of(ctx context.Context, controller metav1.Object, kind schema.GroupVersionKind, selector labels.Selector, fresh func(context.Context) (metav1.Object, error)) ([]*appsv1.ControllerRevision, error) {
	candidates := append(owner.Controlled[*appsv1.ControllerRevision](s.Revisions, controller.GetUID()),
		owner.Orphans[*appsv1.ControllerRevision](s.Revisions, controller.GetNamespace())...)
	settler := owner.Settler[*appsv1.ControllerRevision]{
		Controller: controller, Kind: kind, Fresh: fresh,
		Patch: func(ctx context.Context, r *appsv1.ControllerRevision, patch []byte) error {
			_, err := s.Client.AppsV1().ControllerRevisions(r.Namespace).Patch(ctx, r.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
			return err
		},
	}
	claim := owner.Plan(controller, selector, candidates)
	claim.Held, claim.Release = append(claim.Held, claim.Release...), nil // the history stays, whatever its labels
	held, err := settler.Settle(ctx, claim)
	held = slices.Clone(held)
	Sort(held)
	return held, err
}

// Create stores the revision. If its name is taken by another content, it adds
// to collisions and tries the next name.
func (s Store) Create(ctx context.Context, controller string, r *appsv1.ControllerRevision, collisions *int32) (*appsv1.ControllerRevision, error) {
	r = r.DeepCopy()
	for {
		created, err := s.Client.AppsV1().ControllerRevisions(r.Namespace).Create(ctx, r, metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			return created, err
		}
		present, err := s.Client.AppsV1().ControllerRevisions(r.Namespace).Get(ctx, r.Name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		if Equal(present, r) {
			return present, nil
		}
		*collisions++
		s.name(r, controller, *collisions)
	}
}

// Newest returns the stored revision that is equal to the proposed one, which
// says its number: the newest one as it is, an older one renumbered (a roll
// back), or else the proposed one, stored. The revisions are sorted.
func (s Store) Newest(ctx context.Context, controller string, revisions []*appsv1.ControllerRevision, proposed *appsv1.ControllerRevision, collisions *int32) (*appsv1.ControllerRevision, error) {
	for i, r := range slices.Backward(revisions) {
		switch {
		case !Equal(r, proposed):
		case i == len(revisions)-1:
			return r, nil
		default:
			return s.Renumber(ctx, r, proposed.Revision)
		}
	}
	return s.Create(ctx, controller, proposed, collisions)
}

// Renumber makes an old revision the newest.
func (s Store) Renumber(ctx context.Context, r *appsv1.ControllerRevision, number int64) (*appsv1.ControllerRevision, error) {
	client := s.Client.AppsV1().ControllerRevisions(r.Namespace)
	updated := r.DeepCopy()
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() (err error) {
		updated.Revision = number
		stored, err := client.Update(ctx, updated, metav1.UpdateOptions{})
		if err == nil {
			updated = stored
			return nil
		}
		if fresh, getErr := client.Get(ctx, r.Name, metav1.GetOptions{}); getErr == nil {
			updated = fresh
		}
		return err
	})
	return updated, err
}

// Delete deletes revisions; one that is gone is no error.
func (s Store) Delete(ctx context.Context, revisions []*appsv1.ControllerRevision) error {
	for _, r := range revisions {
		if err := s.Client.AppsV1().ControllerRevisions(r.Namespace).Delete(ctx, r.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}
