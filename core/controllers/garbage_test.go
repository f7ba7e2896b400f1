package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/utils/clock"
)

// TestCascade deletes a Deployment in each of the three ways.
func TestCascade(t *testing.T) {
	k := start(t, clock.RealClock{})
	k.namespace("test")
	ctx := t.Context()
	count := func() (sets, pods int) {
		s, err := k.AppsV1().ReplicaSets("test").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		p, err := k.CoreV1().Pods("test").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return len(s.Items), len(p.Items)
	}
	for _, policy := range []metav1.DeletionPropagation{metav1.DeletePropagationBackground, metav1.DeletePropagationForeground, metav1.DeletePropagationOrphan} {
		t.Run(string(policy), func(t *testing.T) {
			if _, err := k.AppsV1().Deployments("test").Create(ctx, deployment("web", 3, "v1"), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() error { return k.rolledOut("web") })
			if err := k.AppsV1().Deployments("test").Delete(ctx, "web", metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() error {
				_, err := k.AppsV1().Deployments("test").Get(ctx, "web", metav1.GetOptions{})
				return gone(err)
			})
			if policy == metav1.DeletePropagationForeground {
				if sets, _ := count(); sets != 0 {
					t.Errorf("the deployment went before its %d sets", sets)
				}
			}
			if policy == metav1.DeletePropagationOrphan {
				sets, err := k.AppsV1().ReplicaSets("test").List(ctx, metav1.ListOptions{})
				if err != nil || len(sets.Items) != 1 || len(sets.Items[0].OwnerReferences) != 0 {
					t.Fatalf("sets %+v, %v", sets.Items, err)
				}
				if _, pods := count(); pods != 3 {
					t.Errorf("%d pods", pods)
				}
				return
			}
			eventually(t, func() error {
				if sets, pods := count(); sets+pods > 0 {
					return fmt.Errorf("%d sets and %d pods", sets, pods)
				}
				return nil
			})
		})
	}
}

func configMap(name string, owners ...metav1.OwnerReference) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "test", OwnerReferences: owners}}
}

func ref(o *corev1.ConfigMap, block bool) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: o.Name, UID: o.UID, BlockOwnerDeletion: &block}
}

func (k *cluster) create(o *corev1.ConfigMap) *corev1.ConfigMap {
	k.t.Helper()
	created, err := k.CoreV1().ConfigMaps(o.Namespace).Create(k.t.Context(), o, metav1.CreateOptions{})
	if err != nil {
		k.t.Fatal(err)
	}
	return created
}

func (k *cluster) eventuallyGone(name string) {
	k.t.Helper()
	eventually(k.t, func() error {
		_, err := k.CoreV1().ConfigMaps("test").Get(k.t.Context(), name, metav1.GetOptions{})
		return gone(err)
	})
}

func TestOwners(t *testing.T) {
	k := start(t, clock.RealClock{})
	k.namespace("test")
	k.namespace("other")
	ctx := t.Context()
	maps := k.CoreV1().ConfigMaps("test")
	absent := metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "never", UID: uuid.NewUUID()}

	t.Run("an absent owner", func(t *testing.T) {
		k.create(configMap("a", absent))
		k.eventuallyGone("a")
	})
	t.Run("an owner of the same name but another uid", func(t *testing.T) {
		owner := ref(k.create(configMap("namesake")), false)
		owner.UID = uuid.NewUUID()
		k.create(configMap("b", owner))
		k.eventuallyGone("b")
	})
	t.Run("one of two owners", func(t *testing.T) {
		solid := k.create(configMap("solid"))
		k.create(configMap("c", absent, ref(solid, false)))
		eventually(t, func() error {
			c, err := maps.Get(ctx, "c", metav1.GetOptions{})
			if err == nil && (len(c.OwnerReferences) != 1 || c.OwnerReferences[0].UID != solid.UID) {
				err = fmt.Errorf("owners %v", c.OwnerReferences)
			}
			return err
		})
	})
	t.Run("an owner in another namespace", func(t *testing.T) {
		stranger := configMap("stranger")
		stranger.Namespace = "other"
		k.create(configMap("d", ref(k.create(stranger), false)))
		k.eventuallyGone("d")
		eventually(t, func() error {
			return k.told("ConfigMap", "d", "OwnerRefInvalidNamespace", "ownerRef [v1/ConfigMap, namespace: test, name: stranger, uid: ")
		})
	})
	t.Run("a kind that is not served", func(t *testing.T) {
		k.create(configMap("e", metav1.OwnerReference{APIVersion: "example.com/v1", Kind: "Thing", Name: "thing", UID: uuid.NewUUID()}))
		k.create(configMap("e-after", absent))
		k.eventuallyGone("e-after")
		if _, err := maps.Get(ctx, "e", metav1.GetOptions{}); err != nil {
			t.Errorf("it went with an owner that nobody knows: %v", err)
		}
	})
	t.Run("foreground waits for those that block", func(t *testing.T) {
		owner := k.create(configMap("f"))
		held := configMap("f-held", ref(owner, true))
		held.Finalizers = []string{"example.com/hold"}
		k.create(held)
		k.create(configMap("f-free", ref(owner, false)))
		foreground := metav1.DeletePropagationForeground
		if err := maps.Delete(ctx, "f", metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
			t.Fatal(err)
		}
		k.eventuallyGone("f-free")
		eventually(t, func() error {
			held, err := maps.Get(ctx, "f-held", metav1.GetOptions{})
			if err == nil && held.DeletionTimestamp == nil {
				err = errors.New("the dependent is not being deleted")
			}
			return err
		})
		if f, err := maps.Get(ctx, "f", metav1.GetOptions{}); err != nil || f.DeletionTimestamp == nil {
			t.Fatalf("the owner did not wait: %v", err)
		}
		if _, err := maps.Patch(ctx, "f-held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		k.eventuallyGone("f")
	})
	t.Run("a circle in the foreground", func(t *testing.T) {
		one := k.create(configMap("g1"))
		two := k.create(configMap("g2", ref(one, true)))
		one.OwnerReferences = []metav1.OwnerReference{ref(two, true)}
		if _, err := maps.Update(ctx, one, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		foreground := metav1.DeletePropagationForeground
		if err := maps.Delete(ctx, "g1", metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
			t.Fatal(err)
		}
		k.eventuallyGone("g1")
		k.eventuallyGone("g2")
	})
	t.Run("a chain across kinds", func(t *testing.T) {
		node, err := k.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		h := k.create(configMap("h", metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}))
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "h", OwnerReferences: []metav1.OwnerReference{ref(h, false)}}}
		if _, err := k.CoreV1().Secrets("test").Create(ctx, secret, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := k.CoreV1().Nodes().Delete(ctx, "owner", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			_, err := k.CoreV1().Secrets("test").Get(ctx, "h", metav1.GetOptions{})
			return gone(err)
		})
	})
}

func TestNamespaceDeletion(t *testing.T) {
	k := start(t, clock.RealClock{})
	k.namespace("test")
	ctx := t.Context()
	if _, err := k.AppsV1().Deployments("test").Create(ctx, deployment("web", 3, "v1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return k.rolledOut("web") })
	held := configMap("held")
	held.Finalizers = []string{"example.com/hold"}
	k.create(held)
	begin := time.Now()
	if err := k.CoreV1().Namespaces().Delete(ctx, "test", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		ns, err := k.CoreV1().Namespaces().Get(ctx, "test", metav1.GetOptions{})
		if err != nil {
			return err
		}
		var remaining, finalizers string
		for _, c := range ns.Status.Conditions {
			switch c.Type {
			case corev1.NamespaceContentRemaining:
				remaining = c.Message
			case corev1.NamespaceFinalizersRemaining:
				finalizers = c.Message
			}
		}
		if remaining != "Some resources are remaining: configmaps. has 1 resource instances" ||
			finalizers != "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances" {
			return fmt.Errorf("conditions %+v", ns.Status.Conditions)
		}
		return nil
	})
	if _, err := k.CoreV1().ConfigMaps("test").Patch(ctx, "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		_, err := k.CoreV1().Namespaces().Get(ctx, "test", metav1.GetOptions{})
		return gone(err)
	})
	t.Logf("gone after %s", time.Since(begin))
	pods, err := k.CoreV1().Pods("").List(context.Background(), metav1.ListOptions{})
	if err != nil || len(pods.Items) > 0 {
		t.Errorf("%d pods left, %v", len(pods.Items), err)
	}
}
