package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/quaymaster/quaymaster/core/api"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	policycontroller "github.com/quaymaster/quaymaster/core/controllers/policy"
	"github.com/quaymaster/quaymaster/policies/bundle"
)

// maxInline bytes of a program are sent in an object: base64 adds a third, and
// a server takes 3 MB a request, a store of etcd's 1.5 MB an object.
const maxInline = 1 << 20

// policyServer is the running server of the commands that put policies in force.
type policyServer struct {
	cluster
	timeout time.Duration
}

func (s *policyServer) flags(command *cobra.Command) {
	command.Flags().StringVar(&s.kubeconfig, "kubeconfig", "", "kubeconfig file (default: KUBECONFIG, then ~/.kube/config)")
}

func (s *policyServer) client() (*api.Client, error) {
	config, _, err := s.config()
	if err != nil {
		return nil, err
	}
	return api.NewClient(config)
}

func newPolicyApply() *cobra.Command {
	s := &policyServer{}
	command := &cobra.Command{
		Use:   "apply FILE…",
		Short: "Put policies in force on a running server",
		Long: `Apply creates or updates the Policy and SchedulerProfile objects of YAML files and
waits until each policy is in force. It fails with the step and the reason when
the server refuses a version; the one before stays in force then.

A source.file that exists beside the YAML file is sent with the object. Another
one is left to the server's policy directory.`,
		Example: "  quaymaster policy apply teams/policy.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := s.client()
			if err != nil {
				return err
			}
			var errs []error
			for _, file := range args {
				errs = append(errs, s.apply(cmd, client, file))
			}
			return errors.Join(errs...)
		},
	}
	s.flags(command)
	command.Flags().DurationVar(&s.timeout, "timeout", 30*time.Second, "time to wait for each policy")
	return command
}

func (s *policyServer) apply(cmd *cobra.Command, client *api.Client, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	policies, profiles, err := policycontroller.Decode(file, data)
	if err != nil {
		return err
	}
	for _, p := range policies {
		if err := inline(p, filepath.Dir(file)); err != nil {
			return fmt.Errorf("%s: policy %s: %w", file, p.Name, err)
		}
	}
	ctx := cmd.Context()
	for _, p := range policies {
		written, err := put(ctx, client.Policies, p, func(live *policyv1alpha1.Policy) bool {
			same := apiequality.Semantic.DeepEqual(live.Spec, p.Spec)
			live.Spec = p.Spec
			return same
		})
		if err != nil {
			return fmt.Errorf("%s: policy %s: %w", file, p.Name, err)
		}
		now, err := s.wait(ctx, client, p.Name, "be looked at by the server", func(now *policyv1alpha1.Policy) bool {
			return now.Status.ObservedGeneration >= written.Generation
		})
		if err != nil {
			return err
		}
		if e := now.Status.LastError; e != nil {
			return fmt.Errorf("%s: policy %s was refused: %s: %s%s", file, p.Name, e.Step, e.Message, stays(now))
		}
		fmt.Fprintf(cmd.OutOrStdout(), "policy %s: generation %d is in force, %s\n", p.Name, now.Status.ActiveGeneration, inForceAs(now))
	}
	for _, p := range profiles {
		if _, err := put(ctx, client.SchedulerProfiles, p, func(live *schedulingv1alpha1.SchedulerProfile) bool {
			same := apiequality.Semantic.DeepEqual(live.Spec, p.Spec)
			live.Spec = p.Spec
			return same
		}); err != nil {
			return fmt.Errorf("%s: scheduler profile %s: %w", file, p.Name, err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "scheduler profile %s: applied\n", p.Name)
	}
	return nil
}

func stays(p *policyv1alpha1.Policy) string {
	if p.Status.ActiveGeneration == 0 {
		return "; no version is in force"
	}
	return fmt.Sprintf("; generation %d stays in force", p.Status.ActiveGeneration)
}

func inForceAs(p *policyv1alpha1.Policy) string {
	if p.Status.Revision > 0 {
		return fmt.Sprintf("revision %d, %s", p.Status.Revision, p.Status.ActiveDigest)
	}
	return p.Status.ActiveDigest
}

// inline puts the program of a file that is beside the object into the object.
func inline(p *policyv1alpha1.Policy, dir string) error {
	path := p.Spec.Source.File
	if path == "" {
		return nil
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	size := len(data)
	if size > maxInline && p.Spec.Engine == policyv1alpha1.EngineWasm {
		if data, err = bundle.Pack(data); err != nil {
			return fmt.Errorf("compress %s: %w", path, err)
		}
	}
	if len(data) > maxInline {
		return fmt.Errorf("%s has %d bytes, an object holds at most %d: put it into the server's policy directory or name an OCI artifact in spec.source.oci", path, size, maxInline)
	}
	p.Spec.Source.File = ""
	switch {
	case p.Spec.Engine == policyv1alpha1.EngineWasm:
		p.Spec.Source.Wasm = data
	case strings.HasSuffix(path, ".rego"):
		p.Spec.Source.Rego = string(data)
	default:
		return fmt.Errorf("%s: only .rego files of Rego policies are sent; put it into the server's policy directory, a ConfigMap or an OCI artifact", path)
	}
	return nil
}

type named interface {
	comparable
	metav1.Object
}

type writer[T named] interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (T, error)
	Create(ctx context.Context, object T, o metav1.CreateOptions) (T, error)
	Update(ctx context.Context, object T, o metav1.UpdateOptions) (T, error)
}

// put creates an object or makes the live one like it; change reports that
// there was nothing to change.
func put[T named](ctx context.Context, client writer[T], object T, change func(live T) bool) (T, error) {
	for {
		live, err := client.Get(ctx, object.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			created, err := client.Create(ctx, object, metav1.CreateOptions{FieldManager: "quaymaster-policy"})
			if apierrors.IsAlreadyExists(err) {
				continue
			}
			return created, err
		}
		if err != nil || change(live) {
			return live, err
		}
		updated, err := client.Update(ctx, live, metav1.UpdateOptions{FieldManager: "quaymaster-policy"})
		if !apierrors.IsConflict(err) {
			return updated, err
		}
	}
}

// wait polls a policy until it is as it should be.
func (s *policyServer) wait(ctx context.Context, client *api.Client, name, what string, done func(*policyv1alpha1.Policy) bool) (p *policyv1alpha1.Policy, err error) {
	err = wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, s.timeout, true, func(ctx context.Context) (bool, error) {
		p, err = client.Policies.Get(ctx, name, metav1.GetOptions{})
		return err == nil && done(p), err
	})
	if wait.Interrupted(err) {
		return p, fmt.Errorf("policy %s did not come to %s within %v: quaymaster policy status %s tells more", name, what, s.timeout, name)
	}
	if err != nil {
		return p, fmt.Errorf("policy %s: %w", name, err)
	}
	return p, nil
}

func newPolicyRollback() *cobra.Command {
	s := &policyServer{}
	var to int64
	command := &cobra.Command{
		Use:   "rollback NAME",
		Short: "Put an earlier version of a policy back in force",
		Long: `Rollback puts the version before the one in force, or the one with the revision
that --to names, back in force. It holds, over restarts too, until the policy or
its source changes, or until another rollback; one to the newest revision ends it.`,
		Example: "  quaymaster policy rollback teams\n  quaymaster policy rollback teams --to 3",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := s.client()
			if err != nil {
				return err
			}
			name, ctx := args[0], cmd.Context()
			p, err := client.Policies.Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			target, err := rollbackTarget(p, to)
			if err != nil {
				return err
			}
			patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"%d"}}}`, policyv1alpha1.AnnotationRollback, target)
			if _, err := client.Policies.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "quaymaster-policy"}); err != nil {
				return fmt.Errorf("policy %s: %w", name, err)
			}
			p, err = s.wait(ctx, client, name, "be rolled back", func(p *policyv1alpha1.Policy) bool {
				_, pending := p.Annotations[policyv1alpha1.AnnotationRollback]
				return !pending
			})
			if err != nil {
				return err
			}
			if p.Status.Revision != target {
				message := "see its events"
				if p.Status.LastError != nil {
					message = p.Status.LastError.Step + ": " + p.Status.LastError.Message
				}
				return fmt.Errorf("policy %s was not rolled back to revision %d: %s%s", name, target, message, stays(p))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "policy %s: generation %d is in force, %s\n", name, p.Status.ActiveGeneration, inForceAs(p))
			return err
		},
	}
	s.flags(command)
	command.Flags().Int64Var(&to, "to", 0, "revision (default: the one before the one in force)")
	command.Flags().DurationVar(&s.timeout, "timeout", 30*time.Second, "time to wait")
	return command
}

// rollbackTarget is the revision asked for, or the newest before the one in force.
func rollbackTarget(p *policyv1alpha1.Policy, asked int64) (int64, error) {
	var have []string
	var before int64
	for _, v := range p.Status.Versions {
		if v.Revision == asked {
			return asked, nil
		}
		if v.Revision < p.Status.Revision {
			before = max(before, v.Revision)
		}
		have = append(have, fmt.Sprint(v.Revision))
	}
	if asked == 0 && before > 0 {
		return before, nil
	}
	text := "none"
	if len(have) > 0 {
		text = strings.Join(have, ", ")
	}
	if asked == 0 {
		return 0, fmt.Errorf("policy %s: there is no version before revision %d; kept are %s", p.Name, p.Status.Revision, text)
	}
	return 0, fmt.Errorf("policy %s: revision %d is not kept; kept are %s", p.Name, asked, text)
}

func newPolicyStatus() *cobra.Command {
	s := &policyServer{}
	var output string
	command := &cobra.Command{
		Use:     "status [NAME…]",
		Short:   "Tell what is in force, what it costs, and why something is not",
		Example: "  quaymaster policy status\n  quaymaster policy status teams -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := s.client()
			if err != nil {
				return err
			}
			var list []*policyv1alpha1.Policy
			for _, name := range args {
				p, err := client.Policies.Get(cmd.Context(), name, metav1.GetOptions{})
				if err != nil {
					return err
				}
				list = append(list, p)
			}
			if len(args) == 0 {
				all, err := client.Policies.List(cmd.Context(), metav1.ListOptions{})
				if err != nil {
					return err
				}
				for i := range all.Items {
					list = append(list, &all.Items[i])
				}
			}
			return printStatus(cmd.OutOrStdout(), output, list, len(args) > 0)
		},
	}
	s.flags(command)
	command.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return command
}

// policyStatus is what -o json tells of a policy.
type policyStatus struct {
	Name   string                      `json:"name"`
	Mode   policyv1alpha1.PolicyMode   `json:"mode"`
	Status policyv1alpha1.PolicyStatus `json:"status"`
}

func printStatus(out io.Writer, output string, list []*policyv1alpha1.Policy, details bool) error {
	switch output {
	case "json":
		all := make([]policyStatus, len(list))
		for i, p := range list {
			all[i] = policyStatus{p.Name, modeOf(p), p.Status}
		}
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(all)
	case "table":
	default:
		return fmt.Errorf("unknown output %q: it is table or json", output)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if !details {
		fmt.Fprintln(table, "NAME\tENGINE\tMODE\tREADY\tGENERATION\tREVISION\tCALLS\tFAILURES\tPER CALL\tMEMORY\tBREAKER")
	}
	for i, p := range list {
		if details {
			if i > 0 {
				fmt.Fprintln(table)
			}
			detail(table, p)
			continue
		}
		cost := cmp.Or(p.Status.Cost, &policyv1alpha1.PolicyCost{})
		memory := "-"
		if cost.Memory != nil {
			memory = cost.Memory.String()
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%v\t%s\t%s\n", p.Name, p.Spec.Engine, modeOf(p), readiness(p), p.Status.ActiveGeneration, p.Status.Revision,
			cost.Calls, cost.Failures, cost.TimePerCall.Round(time.Microsecond), memory, cmp.Or(p.Status.Breaker, "-"))
	}
	return table.Flush()
}

func modeOf(p *policyv1alpha1.Policy) policyv1alpha1.PolicyMode {
	return cmp.Or(p.Spec.Mode, policyv1alpha1.PolicyModeEnforce)
}

func readiness(p *policyv1alpha1.Policy) string {
	if c := meta.FindStatusCondition(p.Status.Conditions, policyv1alpha1.ConditionReady); c != nil {
		return string(c.Status)
	}
	return "Unknown"
}

// detail writes everything of one policy, a line each.
func detail(w io.Writer, p *policyv1alpha1.Policy) {
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	s := &p.Status
	row("policy", "%s, %s, %s", p.Name, p.Spec.Engine, modeOf(p))
	for _, c := range s.Conditions {
		row(strings.ToLower(c.Type), "%s, %s: %s", c.Status, c.Reason, c.Message)
	}
	if s.ActiveGeneration > 0 {
		row("in force", "generation %d, %s", s.ActiveGeneration, inForceAs(p))
		points := make([]string, len(s.ExtensionPoints))
		for i, point := range s.ExtensionPoints {
			points[i] = string(point)
		}
		row("extension points", "%s", strings.Join(points, ", "))
		row("breaker", "%s", s.Breaker)
	}
	if s.ProbationEnds != nil {
		row("in probation", "until %s", s.ProbationEnds.Format(time.RFC3339))
	}
	if r := s.Rollback; r != nil {
		row("rolled back", "to revision %d at %s: %s", r.To, r.Time.Format(time.RFC3339), r.Reason)
	}
	if e := s.LastError; e != nil {
		row("refused", "%s: %s", e.Step, e.Message)
	}
	if c := s.Cost; c != nil {
		text := fmt.Sprintf("%d calls, %d failed, %v a call", c.Calls, c.Failures, c.TimePerCall.Round(time.Microsecond))
		if c.FuelPerCall > 0 {
			text += fmt.Sprintf(", %d fuel a call", c.FuelPerCall)
		}
		if c.Memory != nil {
			text += ", " + c.Memory.String() + " of memory"
		}
		row("cost", "%s", text)
		if modeOf(p) == policyv1alpha1.PolicyModeShadow {
			row("would have changed", "%d decisions", c.Differences)
		}
	}
	for i, v := range s.Versions {
		name := ""
		if i == 0 {
			name = "versions"
		}
		row(name, "%d  %s  %s", v.Revision, v.Time.Format(time.RFC3339), v.Digest)
	}
}
