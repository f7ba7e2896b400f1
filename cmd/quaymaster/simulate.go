package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/quaymaster/quaymaster/cmd/quaymaster/matrix"
	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/apiserver/manifest"
	"github.com/quaymaster/quaymaster/core/decision"
	"github.com/quaymaster/quaymaster/core/scheduler/simulate"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/author"
	"github.com/quaymaster/quaymaster/policies/bundle"
)

func newSimulate() *cobra.Command {
	s := &simulation{}
	command := &cobra.Command{
		Use:   "simulate -f FILE… [--profile FILE]",
		Short: "Tell where the pending pods of a cluster in files would go",
		Long: `Simulate reads a cluster from Kubernetes YAML or JSON and decides for its pending
pods, those without spec.nodeName, as the server would. It needs no server. The
files hold nodes, pods, namespaces, services, replica sets and other controllers,
disruption budgets, priority classes, scheduler profiles and policies; a list, as
"kubectl get … -o yaml" prints it, is as good as documents. "-" is the standard
input; a folder stands for the .yaml, .yml and .json files in it.`,
		Example: `  kubectl get nodes,pods -A -o yaml | quaymaster simulate -f - -f new-pods.yaml
  quaymaster simulate -f cluster.yaml --profile bin-packing.yaml --explain -o json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s.files = append(s.files, args...)
			if len(s.files) == 0 {
				return errors.New("nothing to simulate: name the files of a cluster with -f")
			}
			if s.output != "table" && s.output != "json" {
				return fmt.Errorf("unknown output %q: it is table or json", s.output)
			}
			return s.run(cmd)
		},
	}
	flags := command.Flags()
	flags.StringArrayVarP(&s.files, "file", "f", nil, "file or folder with objects, - for the standard input; may be repeated")
	flags.StringVar(&s.profile, "profile", "", "file with a SchedulerProfile, and policies; when no pod names its scheduler, it decides for those of default-scheduler")
	flags.BoolVar(&s.explain, "explain", false, "add how each node was judged")
	flags.Uint64Var(&s.seed, "seed", 0, "seed of the choice between nodes with equal scores; a server's is 0, too, unless it was given one")
	flags.StringVarP(&s.output, "output", "o", "table", "table or json")
	return command
}

type simulation struct {
	files           []string
	profile, output string
	explain         bool
	seed            uint64

	objects    simulate.Objects
	profiles   []*schedulingv1alpha1.SchedulerProfile
	policies   []filePolicy
	configMaps []*corev1.ConfigMap
	ignored    map[string]int
}

// filePolicy is a policy with the folder that its source's file is relative to.
type filePolicy struct {
	*policyv1alpha1.Policy
	where, dir string
}

func (s *simulation) run(cmd *cobra.Command) error {
	for _, name := range s.files {
		if err := s.read(cmd, name); err != nil {
			return err
		}
	}
	if err := s.readProfile(cmd); err != nil {
		return err
	}
	for _, kind := range slices.Sorted(maps.Keys(s.ignored)) {
		fmt.Fprintf(cmd.ErrOrStderr(), "simulate: %d %s play no part\n", s.ignored[kind], kind)
	}
	return withEngines(func(engines author.Engines) error {
		host := policies.NewHost(policies.Options{Engines: engines})
		defer host.Close()
		for _, p := range s.policies {
			if err := s.apply(cmd.Context(), host, p); err != nil {
				return err
			}
		}
		plan, err := simulate.Run(cmd.Context(), &s.objects, simulate.Options{
			Profiles: s.profiles, Policies: host, Seed: s.seed, Now: time.Now(), Explain: s.explain,
		})
		if err != nil {
			return err
		}
		if s.output == "json" {
			return printed(cmd, "json", plan, nil)
		}
		return s.table(cmd.OutOrStdout(), plan)
	})
}

// read takes the objects of a file, of the files of a folder, or of "-".
func (s *simulation) read(cmd *cobra.Command, name string) error {
	if name == "-" {
		return s.add("standard input", ".", cmd.InOrStdin())
	}
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if info.IsDir() {
		entries, err := os.ReadDir(name)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if !entry.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(entry.Name())) {
				if err := s.read(cmd, filepath.Join(name, entry.Name())); err != nil {
					return err
				}
			}
		}
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return s.add(name, filepath.Dir(name), f)
}

func (s *simulation) add(name, dir string, in io.Reader) error {
	objects, err := manifest.Read(name, in)
	if err != nil {
		return err
	}
	for _, o := range objects {
		switch object := o.Object.(type) {
		case *schedulingv1alpha1.SchedulerProfile:
			s.profiles = append(s.profiles, object)
		case *policyv1alpha1.Policy:
			s.policies = append(s.policies, filePolicy{object, o.Where, dir})
		case *corev1.ConfigMap:
			s.configMaps = append(s.configMaps, object)
		default:
			plays, err := s.objects.Add(object)
			if err != nil {
				return fmt.Errorf("%s: %w", o.Where, err)
			}
			if !plays {
				if s.ignored == nil {
					s.ignored = map[string]int{}
				}
				s.ignored[object.GetObjectKind().GroupVersionKind().Kind]++
			}
		}
	}
	return nil
}

// readProfile reads --profile. When no pod names the scheduler of the one profile
// there, it takes the place of the default one.
func (s *simulation) readProfile(cmd *cobra.Command) error {
	if s.profile == "" {
		return nil
	}
	before := len(s.profiles)
	if err := s.read(cmd, s.profile); err != nil {
		return err
	}
	switch given := s.profiles[before:]; len(given) {
	case 0:
		return fmt.Errorf("%s holds no SchedulerProfile", s.profile)
	case 1:
		name := given[0].Spec.SchedulerName
		if name == "" {
			name = given[0].Name
		}
		if !s.objects.Asked(name) {
			given[0].Spec.SchedulerName = corev1.DefaultSchedulerName
		}
	}
	return nil
}

// apply loads a policy as a server does.
func (s *simulation) apply(ctx context.Context, host *policies.Host, p filePolicy) error {
	source, file, err := s.source(p)
	if err == nil {
		_, err = host.Apply(ctx, p.Name, &p.Spec, source, file)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p.where, err)
	}
	return nil
}

func (s *simulation) source(p filePolicy) (source []byte, file string, err error) {
	switch from := &p.Spec.Source; {
	case from.Rego != "":
		return []byte(from.Rego), "", nil
	case len(from.Wasm) > 0:
		source, err = bundle.Unpack(from.Wasm)
		return source, "", err
	case from.File != "":
		if file = from.File; !filepath.IsAbs(file) {
			file = filepath.Join(p.dir, file)
		}
		source, err = os.ReadFile(file)
		return source, file, err
	case from.ConfigMap != nil:
		key := from.ConfigMap
		for _, m := range s.configMaps {
			if m.Name != key.Name || m.Namespace != key.Namespace {
				continue
			}
			if data, ok := m.BinaryData[key.Key]; ok {
				return data, key.Key, nil
			}
			if text, ok := m.Data[key.Key]; ok {
				return []byte(text), key.Key, nil
			}
		}
		return nil, "", fmt.Errorf("spec.source.configMap: no file holds the config map %s/%s with a key %q", key.Namespace, key.Name, key.Key)
	}
	return nil, "", errors.New("spec.source: one of rego, wasm, file and configMap is needed here")
}

func (s *simulation) table(out io.Writer, plan *simulate.Plan) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "POD\tNODE\tMESSAGE")
	placed := 0
	for i := range plan.Pods {
		p := &plan.Pods[i]
		node, message := p.Node, p.Message
		if node != "" {
			placed++
		} else if node = "<none>"; p.NominatedNode != "" && len(p.Victims) > 0 {
			message = fmt.Sprintf("goes to %s when %s ended", p.NominatedNode, strings.Join(p.Victims, " and "))
		}
		fmt.Fprintf(table, "%s/%s\t%s\t%s\n", p.Namespace, p.Name, node, message)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "%d of %d pods have a node, of %d nodes\n", placed, len(plan.Pods), s.objects.Nodes()); err != nil {
		return err
	}
	if !s.explain {
		return nil
	}
	for i := range plan.Pods {
		if _, err := fmt.Fprintln(out); err != nil {
			return err
		}
		if err := matrix.Write(out, decisionOf(&plan.Pods[i]), ""); err != nil {
			return err
		}
	}
	return nil
}

func decisionOf(p *simulate.Pod) *decisionv1alpha1.Decision {
	d := &decisionv1alpha1.Decision{SchedulerName: p.SchedulerName, Node: p.Node, Message: p.Message}
	d.Namespace, d.Name = p.Namespace, p.Name
	for i := range p.Nodes {
		node := decisionv1alpha1.NodeVerdict{Name: p.Nodes[i].Name, Total: p.Nodes[i].Total, Filter: (*decisionv1alpha1.FilterVerdict)(p.Nodes[i].Filter)}
		for _, score := range p.Nodes[i].Scores {
			node.Scores = append(node.Scores, decisionv1alpha1.PluginScore(score))
		}
		d.Nodes = append(d.Nodes, node)
	}
	decision.Sort(d)
	return d
}
