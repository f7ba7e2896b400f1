package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/quaymaster/quaymaster/runtime/agent/drain"
)

func newNode() *cobra.Command {
	command := &cobra.Command{Use: "node", Short: "Change nodes"}
	command.AddCommand(newNodeSwitch())
	return command
}

type nodeSwitch struct {
	cluster
	runtime, selector string
	force, detach     bool
	deleteEmptyDir    bool
	timeout           time.Duration
}

func newNodeSwitch() *cobra.Command {
	s := &nodeSwitch{}
	command := &cobra.Command{
		Use:   "switch NODE…",
		Short: "Change the container runtime of nodes",
		Long: `Switch has nodes change their container runtime, one after the other. Each takes
no more pods, evicts those that it has as their disruption budgets allow, ends what
is left (pods of DaemonSets and static ones), changes, and takes pods again. The
plan is kept on the Node object and carried out by the node itself: interrupted
at any step, by the end of this command, of the agent or of the machine, it goes on.
Pods whose emptyDir volumes would be lost are named, and nothing begins without
--delete-emptydir-data.
Asking for the former runtime again, before pods are gone, calls it off.`,
		Example: `  quaymaster node switch node01 --runtime oci
  quaymaster node switch --selector pool=edge --runtime containerd`,
		RunE: func(cmd *cobra.Command, args []string) error { return s.run(cmd, args) },
	}
	s.kubeconfigFlag(command)
	f := command.Flags()
	f.StringVar(&s.runtime, "runtime", "", "containerd, cri@unix:///PATH, oci, wasm or sim")
	f.StringVarP(&s.selector, "selector", "l", "", "labels of the nodes, in the place of names")
	f.BoolVar(&s.force, "force", false, "evict pods too that no controller makes anew")
	f.BoolVar(&s.deleteEmptyDir, "delete-emptydir-data", false, "evict pods too whose emptyDir volumes are lost with them")
	f.BoolVar(&s.detach, "detach", false, "do not wait: all nodes begin at once")
	f.DurationVar(&s.timeout, "timeout", 30*time.Minute, "time to wait for each node; its plan goes on")
	return command
}

func (s *nodeSwitch) run(cmd *cobra.Command, names []string) error {
	if _, _, err := parseRuntime(s.runtime); err != nil {
		return fmt.Errorf("--runtime: %w", err)
	}
	if (len(names) == 0) == (s.selector == "") {
		return errors.New("say the nodes by name or by --selector")
	}
	client, _, err := s.client()
	if err != nil {
		return err
	}
	if s.selector != "" {
		list, err := client.CoreV1().Nodes().List(cmd.Context(), metav1.ListOptions{LabelSelector: s.selector})
		if err != nil {
			return err
		}
		if len(list.Items) == 0 {
			return fmt.Errorf("no node has the labels %s", s.selector)
		}
		for _, n := range list.Items {
			names = append(names, n.Name)
		}
	}
	for _, name := range names {
		if err := s.ask(cmd.Context(), client, name); err != nil {
			return fmt.Errorf("node %s: %w", name, err)
		}
		if s.detach {
			fmt.Fprintf(cmd.OutOrStdout(), "node %s is to have runtime %s\n", name, s.runtime)
			continue
		}
		if err := s.follow(cmd, client, name); err != nil {
			return fmt.Errorf("node %s: %w", name, err)
		}
	}
	return nil
}

// loss says which pods of a node would lose data, as kubectl drain does.
func (s *nodeSwitch) loss(ctx context.Context, client kubernetes.Interface, name string) error {
	if s.deleteEmptyDir {
		return nil
	}
	list, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + name})
	if err != nil {
		return err
	}
	var pods []*corev1.Pod
	for i := range list.Items {
		pods = append(pods, &list.Items[i])
	}
	var lose []string
	for _, p := range drain.Evictable(pods) {
		if drain.LosesData(p) {
			lose = append(lose, p.Namespace+"/"+p.Name)
		}
	}
	if len(lose) == 0 {
		return nil
	}
	slices.Sort(lose)
	return fmt.Errorf("cannot delete Pods with local storage (use --delete-emptydir-data to override): %s", strings.Join(lose, ", "))
}

// ask writes what is wanted on the Node.
func (s *nodeSwitch) ask(ctx context.Context, client kubernetes.Interface, name string) error {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if node.Annotations[drain.Current] != s.runtime { // else a plan is called off, or nothing is to do
		if err := s.loss(ctx, client, name); err != nil {
			return err
		}
	}
	annotations := map[string]any{drain.Annotation: s.runtime, drain.Force: nil, drain.DeleteEmptyDir: nil}
	if s.force {
		annotations[drain.Force] = "true"
	}
	if s.deleteEmptyDir {
		annotations[drain.DeleteEmptyDir] = "true"
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// look is how often a Node is looked at.
const look = 500 * time.Millisecond

// follow says what becomes of a node's plan until it is done: the node said that it has the runtime, and has no plan.
func (s *nodeSwitch) follow(cmd *cobra.Command, client kubernetes.Interface, name string) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), s.timeout)
	defer cancel()
	last, seen, started := "", map[types.UID]bool{}, time.Now().Add(-time.Second)
	say := func(text string) {
		if text != last {
			fmt.Fprintf(cmd.OutOrStdout(), "node %s: %s\n", name, text)
			last = text
		}
	}
	for {
		node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			var state *drain.State
			if state, err = drain.StateOf(node); err != nil {
				return err
			}
			switch {
			case state != nil:
				say(fmt.Sprintf("%s, from %s to %s", state.Step, state.From, state.To))
			case node.Annotations[drain.Current] == s.runtime:
				say("has runtime " + s.runtime)
				return nil
			}
			s.events(ctx, client, name, started, seen, say)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it does not have runtime %s yet (%s); its plan goes on: %w", s.runtime, last, ctx.Err())
		case <-time.After(look):
		}
	}
}

// events says what the node tells of its plan.
func (s *nodeSwitch) events(ctx context.Context, client kubernetes.Interface, name string, since time.Time, seen map[types.UID]bool, say func(string)) {
	list, err := client.CoreV1().Events("").List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.kind=Node,involvedObject.name=" + name})
	if err != nil {
		return // the next look tells
	}
	for _, e := range list.Items {
		if !seen[e.UID] && e.Type == corev1.EventTypeWarning && e.LastTimestamp.After(since) && (e.Reason == drain.Blocked || e.Reason == drain.Failed) {
			seen[e.UID] = true
			say(e.Message)
		}
	}
}
