package cluster

import (
	"context"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
)

// Policies are the pinned policies of a profile and what one decision gives
// them to depend on.
type Policies struct {
	Cycle policies.Cycle
	// Pinned by name; a policy that is not there is not loaded.
	Pinned map[string]policies.Pinned
}

// builtinRefused marks, for the policies' scores, a row that a built-in filter
// or an earlier policy refuses.
const builtinRefused = 255

// policyRun is what the policies said about one pod.
type policyRun struct {
	filters  [][]uint8 // by filter of the profile and row; nil: ignored
	scores   [][]int64 // by score of the profile and row; nil: ignored
	verdicts []uint8   // by row; 0: feasible for all
}

// runPolicies calls each policy of the profile once for all rows. An error
// fails the decision: it is of a policy that must not be ignored.
func (s *State) runPolicies(ctx context.Context, profile *Profile, pod *v1.Pod, p Policies, feasible func(row int32) bool) (*policyRun, error) {
	rows := len(s.byRow)
	run := &policyRun{verdicts: make([]uint8, rows), scores: make([][]int64, len(profile.Scores))}
	if err := s.runFilters(ctx, profile, pod, p, run); err != nil {
		return nil, err
	}
	any := false
	for row := range run.verdicts {
		if s.byRow[row] == nil || !feasible(int32(row)) {
			run.verdicts[row] = builtinRefused
			continue
		}
		for _, verdicts := range run.filters {
			if verdicts != nil && verdicts[row] != 0 {
				run.verdicts[row] = verdicts[row]
				break
			}
		}
		any = any || run.verdicts[row] == 0
	}
	if !any {
		return run, nil
	}
	for i, f := range profile.Scores {
		pinned := p.Pinned[f.Policy]
		if pinned == nil {
			continue // a score that is not loaded prefers nothing
		}
		scores := make([]int64, rows)
		_, err := pinned.Score(ctx, p.Cycle, pod, &s.fleet, run.verdicts, scores)
		for row := 0; err == nil && row < rows; row++ {
			if run.verdicts[row] == 0 && (scores[row] < 0 || scores[row] > maxScore) {
				err = fmt.Errorf("score %d of node %q is not from 0 to %d", scores[row], s.byRow[row].name, maxScore)
			}
		}
		if err == nil {
			run.scores[i] = scores
		} else if pinned.FailurePolicy(policyv1alpha1.ExtensionScore) == policyv1alpha1.FailurePolicyFail {
			return nil, fmt.Errorf("score policy %q: %w", f.Policy, err)
		}
	}
	return run, nil
}

// runFilters asks the filters alone, about all rows.
func (s *State) runFilters(ctx context.Context, profile *Profile, pod *v1.Pod, p Policies, run *policyRun) error {
	run.filters = make([][]uint8, len(profile.Filters))
	for i, f := range profile.Filters {
		pinned := p.Pinned[f.Policy]
		if pinned == nil {
			return fmt.Errorf("filter policy %q: %w", f.Policy, policies.ErrNotLoaded)
		}
		verdicts := make([]uint8, len(s.byRow))
		if _, err := pinned.Filter(ctx, p.Cycle, pod, &s.fleet, verdicts); err == nil {
			run.filters[i] = verdicts
		} else if pinned.FailurePolicy(policyv1alpha1.ExtensionFilter) != policyv1alpha1.FailurePolicyIgnore {
			return fmt.Errorf("filter policy %q: %w", f.Policy, err)
		}
	}
	return nil
}

// refuses says that a filter refuses the row.
func (run *policyRun) refuses(row int32) bool {
	return slices.ContainsFunc(run.filters, func(verdicts []uint8) bool { return verdicts != nil && verdicts[row] != 0 })
}

// refusal returns which policy of the profile refused the row first, and its text.
func (run *policyRun) refusal(profile *Profile, p Policies, row int32) (policy, reason string) {
	for i, verdicts := range run.filters {
		if verdicts != nil && verdicts[row] != 0 {
			name := profile.Filters[i].Policy
			return name, p.Pinned[name].Reason(int(row), verdicts[row])
		}
	}
	return "", ""
}

// failures lists all policies that refuse the row. What a policy wants only it
// knows; its text says so. Which version of it said what is what there is to tell.
func (run *policyRun) failures(profile *Profile, p Policies, row int32) (list []Failure) {
	for i, verdicts := range run.filters {
		if verdicts == nil || verdicts[row] == 0 {
			continue
		}
		name := profile.Filters[i].Policy
		pinned := p.Pinned[name]
		from := pinned.Provenance()
		list = append(list, Failure{Plugin: name, Reason: pinned.Reason(int(row), verdicts[row]),
			Wanted: "verdict 0 of policy " + name, Found: fmt.Sprintf("verdict %d of its generation %d, %.19s", verdicts[row], from.Generation, from.Digest)})
	}
	return list
}

// total of the policies' weighted scores.
func (run *policyRun) total(profile *Profile, row int32) (sum int32) {
	for i, scores := range run.scores {
		if scores != nil {
			sum += int32(profile.Scores[i].Weight * scores[row])
		}
	}
	return sum
}

// DecideWithPolicies is Decide for a profile with policies, which see the pod
// itself: one batch call of each over the columns. When no node is feasible,
// the verdict says why.
func (s *State) DecideWithPolicies(ctx context.Context, c *Class, pod *v1.Pod, tie uint64, p Policies) (Outcome, *Verdict, error) {
	s.catchUp(c)
	out := Outcome{Evaluated: s.count}
	run, err := s.runPolicies(ctx, c.profile, pod, p, func(row int32) bool { return c.takes(row) })
	if err != nil {
		return out, nil, err
	}
	// The raw scores scale by the largest over the nodes feasible for all.
	narrowed := Class{profile: c.profile, factor: c.factor, deviceScores: c.deviceScores}
	for row, verdict := range run.verdicts {
		if verdict == 0 {
			out.Feasible++
			narrowed.mostTaints = max(narrowed.mostTaints, c.factor.taints[row])
			narrowed.mostAffinity = max(narrowed.mostAffinity, c.factor.affinity[row])
		}
	}
	if out.Feasible == 0 {
		return out, s.verdict(c, func(row int32) string {
			_, reason := run.refusal(c.profile, p, row)
			return reason
		}), nil
	}
	totals := make([]int32, len(run.verdicts))
	for row, verdict := range run.verdicts {
		if totals[row] = infeasible; verdict == 0 {
			totals[row] = narrowed.totalOf(int32(row), c.dynamic[row]) + run.total(c.profile, int32(row))
		}
	}
	if c.scored() {
		s.addRelated(c, totals)
	}
	best, count := infeasible, int32(0)
	for _, total := range totals {
		if total > best {
			best, count = total, 1
		} else if total == best && total >= 0 {
			count++
		}
	}
	out.Node, out.Score = s.fleet.Nodes[kthBest(totals, best, s.kth(tie, count))], int64(best)
	return out, nil, nil
}

// kthBest returns the k-th row with the best total.
func kthBest(totals []int32, best, k int32) int {
	for row, total := range totals {
		if total == best {
			if k == 0 {
				return row
			}
			k--
		}
	}
	return -1
}
