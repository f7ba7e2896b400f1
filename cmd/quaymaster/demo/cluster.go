package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/quaymaster/quaymaster/core/api"
)

// connect makes the clients from the kubeconfig that the engine has written.
func (t *tour) connect() error {
	config, err := clientcmd.BuildConfigFromFlags("", t.kubeconfig())
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	config.QPS = -1 // a tour of one client need not be throttled
	if t.kubernetes, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if t.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return err
	}
	if t.ours, err = api.NewClient(config); err != nil {
		return err
	}
	t.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(t.kubernetes.Discovery()))
	return nil
}

// apply sends the documents of a manifest as `kubectl apply --server-side` does.
func (t *tour) apply(ctx context.Context, manifest []byte) error {
	for decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096); ; {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("decode manifest: %w", err)
		}
		gvk := object.GroupVersionKind()
		mapping, err := t.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil {
			return err
		}
		var client dynamic.ResourceInterface = t.dynamic.Resource(mapping.Resource)
		if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
			client = t.dynamic.Resource(mapping.Resource).Namespace(metav1.NamespaceDefault)
		}
		if _, err := client.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: "quaymaster-demo"}); err != nil {
			return fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
}

// eventually repeats check until it is true, or fails with what was awaited.
func eventually(ctx context.Context, awaited string, check func(context.Context) (bool, error)) error {
	err := wait.PollUntilContextCancel(ctx, 10*time.Millisecond, true, check)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("waited in vain for %s", awaited)
	}
	return err
}

// pods of the default namespace with the label app=NAME that are not on their
// way out.
func (t *tour) pods(ctx context.Context, app string) ([]corev1.Pod, error) {
	list, err := t.kubernetes.CoreV1().Pods(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		return nil, err
	}
	live := list.Items[:0]
	for _, pod := range list.Items {
		if pod.DeletionTimestamp == nil {
			live = append(live, pod)
		}
	}
	return live, nil
}

// running waits until n pods of the app run and returns them.
func (t *tour) running(ctx context.Context, app string, n int) (pods []corev1.Pod, err error) {
	err = eventually(ctx, fmt.Sprintf("%d running pods of %s", n, app), func(ctx context.Context) (bool, error) {
		all, err := t.pods(ctx, app)
		if err != nil {
			return false, err
		}
		pods = pods[:0]
		for _, pod := range all {
			if pod.Status.Phase == corev1.PodRunning {
				pods = append(pods, pod)
			}
		}
		return len(pods) == n && len(all) == n, nil
	})
	return pods, err
}

// refusal waits until the scheduler has said of the app's one pod, by condition
// and by event, that it fits nowhere, and returns the text.
func (t *tour) refusal(ctx context.Context, app string) (text string, err error) {
	err = eventually(ctx, "a FailedScheduling event for "+app, func(ctx context.Context) (bool, error) {
		pods, err := t.pods(ctx, app)
		if err != nil || len(pods) != 1 {
			return false, err
		}
		pod := pods[0]
		condition := ""
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
				condition = c.Message
			}
		}
		if condition == "" {
			return false, nil
		}
		events, err := t.kubernetes.CoreV1().Events(pod.Namespace).List(ctx, metav1.ListOptions{
			FieldSelector: "reason=FailedScheduling,involvedObject.uid=" + string(pod.UID)})
		if err != nil {
			return false, err
		}
		for _, event := range events.Items {
			if event.Message == condition && pod.Status.Phase == corev1.PodPending {
				text = condition
				return true, nil
			}
		}
		return false, nil
	})
	return text, err
}

// deleteDeployment deletes it and waits until its pods are gone.
func (t *tour) deleteDeployment(ctx context.Context, name string) error {
	propagation := metav1.DeletePropagationBackground
	err := t.kubernetes.AppsV1().Deployments(metav1.NamespaceDefault).Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &propagation})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return eventually(ctx, "the pods of "+name+" to be gone", func(ctx context.Context) (bool, error) {
		list, err := t.kubernetes.CoreV1().Pods(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
		return err == nil && len(list.Items) == 0, err
	})
}
