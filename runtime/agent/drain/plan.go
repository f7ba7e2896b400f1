// Package drain moves a node from one container runtime to another, by a plan
// that is kept on its Node object, so that whatever is interrupted goes on:
// the node takes no more pods, those that it has are evicted as their
// disruption budgets let it, what is left is ended, the runtime is changed, and the
// node takes pods again.
package drain

import (
	"encoding/json"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// Annotation of a Node is the runtime that it is to have, as --runtime of the agent names it; an address
	// follows after "@".
	Annotation = "quaymaster.dev/runtime"
	// Force is the annotation, "true", by which pods are evicted too that no controller makes anew.
	Force = "quaymaster.dev/runtime-switch-force"
	// DeleteEmptyDir is the annotation, "true", by which pods are evicted too whose emptyDir volumes are lost with them.
	DeleteEmptyDir = "quaymaster.dev/runtime-switch-delete-emptydir-data"
	// Current is the annotation by which the node says which runtime it has.
	Current = "quaymaster.dev/runtime-current"
	// StateAnnotation is the plan's state, for as long as there is one.
	StateAnnotation = "quaymaster.dev/runtime-switch"
)

// Reasons of events by which a node says what keeps its plan.
const (
	Blocked = "RuntimeSwitchBlocked"
	Failed  = "RuntimeSwitchFailed"
)

// Step is how far a plan is.
type Step string

// The steps.
const (
	Draining  Step = "Draining"  // pods are evicted
	Switching Step = "Switching" // what is left is ended, and the runtime changed
)

// State is a plan.
type State struct {
	From string `json:"from"`
	To   string `json:"to"`
	Step Step   `json:"step"`
	// Cordoned tells that the plan made the node unschedulable, and is to undo it.
	Cordoned bool `json:"cordoned"`
}

// StateOf reads a Node's plan, nil where there is none. One that cannot be read is an error.
func StateOf(node *v1.Node) (*State, error) {
	text, ok := node.Annotations[StateAnnotation]
	if !ok {
		return nil, nil
	}
	s := &State{}
	if err := json.Unmarshal([]byte(text), s); err != nil {
		return nil, fmt.Errorf("annotation %s of node %s: %w", StateAnnotation, node.Name, err)
	}
	return s, nil
}

// Action is what to do next.
type Action string

// The actions.
const (
	Nothing Action = ""
	Begin   Action = "Begin"  // write a plan down, and take no more pods
	Evict   Action = "Evict"  // ask for the end of pods
	Empty   Action = "Empty"  // write down that the node is drained
	Switch  Action = "Switch" // end what is left and change the runtime
	Finish  Action = "Finish" // take pods again, and forget the plan
)

// Plan says what to do next for a node whose agent runs a runtime at present. It is pure.
func Plan(node *v1.Node, pods []*v1.Pod, current string) (Action, *State, error) {
	s, err := StateOf(node)
	if err != nil {
		return Nothing, nil, err
	}
	wanted := node.Annotations[Annotation]
	if wanted == "" {
		if wanted = current; s != nil && s.Step == Switching {
			wanted = s.To // what has begun to change is changed
		}
	}
	switch {
	case s == nil && wanted == current:
		return Nothing, nil, nil
	case s == nil:
		return Begin, &State{From: current, To: wanted, Step: Draining, Cordoned: !node.Spec.Unschedulable}, nil
	case wanted == current:
		return Finish, s, nil // it is there, or not wanted any more
	case wanted != s.To:
		return Begin, &State{From: current, To: wanted, Step: Draining, Cordoned: s.Cordoned || !node.Spec.Unschedulable}, nil
	case s.Step == Switching:
		return Switch, s, nil
	case len(Evictable(pods)) > 0:
		return Evict, s, nil
	}
	return Empty, s, nil
}

// Evictable are the pods that a drained node has not: all but those that belong to the node and those that have ended.
func Evictable(pods []*v1.Pod) []*v1.Pod {
	return slices.DeleteFunc(slices.Clone(pods), func(p *v1.Pod) bool {
		_, mirror := p.Annotations[v1.MirrorPodAnnotationKey]
		c := metav1.GetControllerOf(p)
		return mirror || c != nil && c.Kind == "DaemonSet" || p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed
	})
}

// LosesData tells whether a pod has data on the node that end with it: emptyDir volumes, as kubectl drain sees it.
func LosesData(p *v1.Pod) bool {
	return slices.ContainsFunc(p.Spec.Volumes, func(v v1.Volume) bool { return v.EmptyDir != nil })
}
