package policy

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
)

// The versions that were in force are ControllerRevisions, as those of
// DaemonSets are: in the store, so that a rollback outlives a restart, is in
// backups and is the same for every replica; owned by the policy, so that they
// go with it.
const (
	historyNamespace = metav1.NamespaceSystem
	labelPolicy      = "policy.quaymaster.dev/uid"
	annotationID     = "policy.quaymaster.dev/version"
	annotationDigest = "policy.quaymaster.dev/digest"

	versionsKept = 5
	// maxKept bytes of a compressed source: what a store of etcd's takes in one object.
	maxKept = 1 << 20
)

// version is a spec with a source that was in force.
type version struct {
	revision   int64
	id, digest string
	time       metav1.Time
	spec       policyv1alpha1.PolicySpec
	compressed []byte
}

// kept is the data of a ControllerRevision.
type kept struct {
	Spec   policyv1alpha1.PolicySpec `json:"spec"`
	Source []byte                    `json:"source"` // gzip
}

// identify names a version: two with the same name are the same.
func identify(spec *policyv1alpha1.PolicySpec, digest string) string {
	bare := spec.DeepCopy()
	bare.Source = policyv1alpha1.PolicySource{} // where it is from does not matter, its digest does
	data, err := json.Marshal(bare)
	if err != nil {
		data = fmt.Appendf(nil, "%+v", bare) // a config that is not JSON, which no server lets through
	}
	return fmt.Sprintf("%x", sha256.Sum256(append(data, digest...)))[:16]
}

// revisions of a policy, newest first.
func (c *Controller) revisions(p *policyv1alpha1.Policy) ([]*appsv1.ControllerRevision, error) {
	if c.Revisions == nil {
		return nil, nil
	}
	list, err := c.Revisions.Lister().ControllerRevisions(historyNamespace).List(labels.SelectorFromSet(labels.Set{labelPolicy: string(p.UID)}))
	if err != nil {
		return nil, fmt.Errorf("list versions: %w", err)
	}
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b *appsv1.ControllerRevision) int { return cmp.Compare(b.Revision, a.Revision) })
	return list, nil
}

// version returns one that was kept.
func (c *Controller) version(p *policyv1alpha1.Policy, revision int64) (*version, error) {
	list, err := c.revisions(p)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(list, func(r *appsv1.ControllerRevision) bool { return r.Revision == revision })
	if at < 0 {
		return nil, fmt.Errorf("there is no version %d: status.versions lists those that are kept", revision)
	}
	r := list[at]
	var data kept
	if err := json.Unmarshal(r.Data.Raw, &data); err != nil {
		return nil, fmt.Errorf("version %d, ControllerRevision %s/%s: %w", revision, r.Namespace, r.Name, err)
	}
	return &version{revision: revision, id: r.Annotations[annotationID], digest: r.Annotations[annotationDigest], time: r.CreationTimestamp,
		spec: data.Spec, compressed: data.Source}, nil
}

func (v *version) source() ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(v.compressed))
	if err == nil {
		var data []byte
		if data, err = io.ReadAll(io.LimitReader(r, maxSource+1)); err == nil && len(data) <= maxSource {
			return data, nil
		}
		err = errors.Join(err, errors.New("too large"))
	}
	return nil, fmt.Errorf("version %d: %w", v.revision, err)
}

// remember keeps a version and returns its revision, 0 when it cannot be kept.
func (c *Controller) remember(ctx context.Context, p *policyv1alpha1.Policy, w *wanted) (int64, error) {
	if c.Revisions == nil || c.Kube == nil {
		return 0, nil
	}
	list, err := c.revisions(p)
	if err != nil {
		return 0, err
	}
	next := int64(1)
	for _, r := range list {
		if r.Annotations[annotationID] == w.id {
			return r.Revision, nil
		}
		next = max(next, r.Revision+1)
	}
	source, err := w.source(ctx)
	if err != nil {
		return 0, fmt.Errorf("keep version: %w", err)
	}
	var compressed bytes.Buffer
	z := gzip.NewWriter(&compressed)
	if _, err := z.Write(source); err != nil {
		return 0, err
	}
	if err := z.Close(); err != nil {
		return 0, err
	}
	if compressed.Len() > maxKept {
		c.event(p, corev1.EventTypeWarning, "PolicyVersionNotKept",
			fmt.Sprintf("the source has %d bytes compressed, at most %d are kept: it can be rolled back to in its successor's probation only", compressed.Len(), maxKept))
		return 0, nil
	}
	spec := p.Spec.DeepCopy()
	spec.Source = policyv1alpha1.PolicySource{}
	data, err := json.Marshal(kept{*spec, compressed.Bytes()})
	if err != nil {
		return 0, err
	}
	revision := &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("policy-%s-%d", p.UID, next), Namespace: historyNamespace,
			Labels:          map[string]string{labelPolicy: string(p.UID)},
			Annotations:     map[string]string{annotationID: w.id, annotationDigest: w.digest, "policy.quaymaster.dev/name": p.Name},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(p, policyv1alpha1.SchemeGroupVersion.WithKind("Policy"))},
		},
		Revision: next,
	}
	revision.Data.Raw = data
	created, err := c.Kube.AppsV1().ControllerRevisions(historyNamespace).Create(ctx, revision, metav1.CreateOptions{})
	if err != nil {
		return 0, fmt.Errorf("keep version %d of policy %s: %w", next, p.Name, err)
	}
	c.mu.Lock()
	c.state(p.Name).newest = created
	c.mu.Unlock()
	c.prune(ctx, p, append([]*appsv1.ControllerRevision{created}, list...))
	return next, nil
}

// prune deletes the oldest versions but those that the status speaks of.
func (c *Controller) prune(ctx context.Context, p *policyv1alpha1.Policy, list []*appsv1.ControllerRevision) {
	for i, r := range list {
		if i < versionsKept || r.Revision == p.Status.Revision || p.Status.Rollback != nil && p.Status.Rollback.To == r.Revision {
			continue
		}
		err := c.Kube.AppsV1().ControllerRevisions(r.Namespace).Delete(ctx, r.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			c.Logger.Warn("delete an old version", "policy", p.Name, "revision", r.Revision, "error", err)
		}
	}
}

// versions as the status tells them.
func (c *Controller) versions(p *policyv1alpha1.Policy) (out []policyv1alpha1.PolicyVersion) {
	list, err := c.revisions(p)
	if err != nil {
		return p.Status.Versions
	}
	c.mu.Lock()
	newest := c.state(p.Name).newest
	c.mu.Unlock()
	if newest != nil && (len(list) == 0 || list[0].Revision < newest.Revision) {
		list = append([]*appsv1.ControllerRevision{newest}, list...) // the informer has not seen it yet
	}
	for _, r := range list {
		out = append(out, policyv1alpha1.PolicyVersion{Revision: r.Revision, Digest: r.Annotations[annotationDigest], Time: r.CreationTimestamp})
	}
	return out
}
