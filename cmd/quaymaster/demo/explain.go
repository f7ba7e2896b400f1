package demo

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/cmd/quaymaster/matrix"
)

// explain prints the matrix of nodes by plugins for the pod of step 3.
func (t *tour) explain(ctx context.Context) error {
	pods, err := t.running(ctx, "httpserver", 1)
	if err != nil {
		return err
	}
	decision, err := t.ours.Decisions(pods[0].Namespace).Get(ctx, pods[0].Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("explain %s: %w", pods[0].Name, err)
	}
	if decision.Taken == nil || decision.Taken.Node != pods[0].Spec.NodeName {
		return fmt.Errorf("the ledger does not know why %s runs on %s", pods[0].Name, pods[0].Spec.NodeName)
	}
	if len(decision.Nodes) != 4 {
		return fmt.Errorf("%d of 4 nodes are in the answer", len(decision.Nodes))
	}
	t.say("quaymaster explain pod default/%s", pods[0].Name)
	return matrix.Write(t.Out, decision, "     ")
}
