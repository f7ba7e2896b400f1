package loop

import (
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
)

// Cached returns what the informer holds under the key, the zero of O if
// nothing or something else. It is shared: not to be changed.
func Cached[O any](informer cache.SharedInformer, key string) O {
	obj, _, _ := informer.GetStore().GetByKey(key) // the error is of functions that make keys, not of this
	found, _ := obj.(O)
	return found
}

// IgnoreTerminating drops the error of a namespace that is being deleted, in
// which nothing can be made any more: trying again would not help.
func IgnoreTerminating(err error) error {
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return err
}
