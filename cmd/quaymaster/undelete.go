package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/quaymaster/quaymaster/core"
)

func newUndelete() *cobra.Command {
	var target cluster
	var revision int64
	var dryRun bool
	command := &cobra.Command{
		Use:   "undelete KIND [NAMESPACE/]NAME",
		Short: "Make a deleted object again, as it last was",
		Long: `Undelete creates the object anew from its last state before its deletion, or from
the one at --revision ("quaymaster history" lists them). It is a new object: it gets
a UID of its own, and what was its status is found out anew. Owners that are gone
are left out, or it would be deleted again at once. A pod is scheduled anew. What
was deleted with it, pods of a Deployment for example, is made by its controller
or undeleted by itself.

` + pastNote,
		Example: "  quaymaster undelete configmap shop/settings\n  quaymaster undelete deployment web -n shop --dry-run",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, o, err := target.one(cmd, args)
			if err != nil {
				return err
			}
			last, at, err := lastState(cmd, config, o, revision)
			if err != nil {
				return fmt.Errorf("undelete %s: %w", o, err)
			}
			made, left, err := undelete(cmd, config, o, last, dryRun)
			if err != nil {
				return fmt.Errorf("undelete %s: %w", o, err)
			}
			for _, owner := range left {
				fmt.Fprintf(cmd.ErrOrStderr(), "its owner %s %s is gone: it has none now\n", owner.Kind, owner.Name)
			}
			word := "made"
			if dryRun {
				word = "would be made (dry run)"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s as it was at revision %d; its UID is %s\n", o, word, at, made.GetUID())
			return err
		},
	}
	target.flags(command)
	command.Flags().Int64Var(&revision, "revision", 0, "the state that came about at this revision (default: the last one)")
	command.Flags().BoolVar(&dryRun, "dry-run", false, "let the server check it and store nothing")
	return command
}

// lastState reads the object as it was before its deletion, and when.
func lastState(cmd *cobra.Command, config *rest.Config, o object, revision int64) (last map[string]any, at int64, err error) {
	exists := false
	_, err = readHistory(cmd, config, o.query(), func(_ core.HistoryHead, e core.HistoryEntry) error {
		exists = e.New != nil
		if e.New == nil || revision != 0 && e.Revision != revision {
			return nil
		}
		at = e.Revision
		last, err = decode(e.New)
		return err
	})
	switch {
	case err != nil:
		return nil, 0, err
	case exists:
		return nil, 0, errors.New("it exists; see quaymaster history, and kubectl apply to change it back")
	case last == nil && revision != 0:
		return nil, 0, fmt.Errorf("it had no state at revision %d; quaymaster history lists those it had", revision)
	case last == nil:
		return nil, 0, errors.New("all that is still known of it is its deletion")
	}
	return last, at, nil
}

func undelete(cmd *cobra.Command, config *rest.Config, o object, last map[string]any, dryRun bool) (*unstructured.Unstructured, []metav1.OwnerReference, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, nil, err
	}
	again := &unstructured.Unstructured{Object: last}
	for _, field := range []string{"uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields"} {
		unstructured.RemoveNestedField(again.Object, "metadata", field)
	}
	unstructured.RemoveNestedField(again.Object, "status")
	if o.mapping.Resource.Group == "" && o.mapping.Resource.Resource == "pods" {
		unstructured.RemoveNestedField(again.Object, "spec", "nodeName")
	}
	var left []metav1.OwnerReference
	owners := again.GetOwnerReferences()
	for i, owner := range slices.Backward(owners) {
		there, err := lives(cmd, config, client, o.namespace, owner)
		if err != nil {
			return nil, nil, err
		}
		if !there {
			left = append(left, owner)
			owners = slices.Delete(owners, i, i+1)
		}
	}
	if len(left) > 0 {
		again.SetOwnerReferences(owners)
	}
	options := metav1.CreateOptions{FieldManager: "quaymaster-undelete"}
	if dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	made, err := in(client, o.mapping, o.namespace).Create(cmd.Context(), again, options)
	return made, left, err
}

// lives tells whether an owner is still the same object.
func lives(cmd *cobra.Command, config *rest.Config, client dynamic.Interface, namespace string, owner metav1.OwnerReference) (bool, error) {
	mapper, err := newMapper(config)
	if err != nil {
		return false, err
	}
	kind := schema.FromAPIVersionAndKind(owner.APIVersion, owner.Kind)
	mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) {
		return false, nil // nothing of that kind can be
	}
	if err != nil {
		return false, err
	}
	found, err := in(client, mapping, namespace).Get(cmd.Context(), owner.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil && found.GetUID() == owner.UID, err
}
