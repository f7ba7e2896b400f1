package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/history"
)

const pastNote = `The past goes back as far as --history of "quaymaster up" and the room on its disk
allow; beyond that the error says what is still there. Only administrators may
look, and whom a role allows "get" of the non-resource URL /history: each sees
the objects that he may list.`

// step is one change of an object, as it is printed.
type step struct {
	Revision int64            `json:"revision"`
	Time     *time.Time       `json:"time,omitempty"`
	What     string           `json:"what"` // created, changed, deleted, known
	Changes  []history.Change `json:"changes,omitempty"`
}

func newHistory() *cobra.Command {
	var target cluster
	var output, field string
	var limit int
	command := &cobra.Command{
		Use:   "history KIND [NAMESPACE/]NAME",
		Short: "Tell what changed in an object, when, and who did it",
		Long: `History lists every change of an object that the server still knows: its revision,
its time to the second, the fields and the managers that own them. An object that
was deleted has its history too.

` + pastNote,
		Example: "  quaymaster history deployment shop/web\n  quaymaster history cm settings --field .data --limit 5",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, o, err := target.one(cmd, args)
			if err != nil {
				return err
			}
			query := o.query()
			if limit > 0 {
				query.Set("limit", strconv.Itoa(limit+1)) // what the first is compared with
			}
			var steps []step
			var before map[string]any
			head, err := readHistory(cmd, config, query, func(_ core.HistoryHead, e core.HistoryEntry) error {
				after, err := decode(e.New)
				if err != nil {
					return err
				}
				s := step{Revision: e.Revision, Time: e.Time}
				switch {
				case after == nil:
					s.What = "deleted"
				case before == nil && len(steps) > 0:
					s.What = "created"
				case before == nil:
					s.What = "known"
				default:
					s.What = "changed"
					s.Changes = within(history.Diff(before, after), field)
				}
				before = after
				steps = append(steps, s)
				return nil
			})
			if err != nil {
				return fmt.Errorf("history of %s: %w", o, err)
			}
			if limit > 0 && len(steps) > limit {
				steps = steps[1:]
			} else if steps[0].What == "known" && steps[0].Revision > head.Oldest {
				steps[0].What = "created"
			}
			return printSteps(cmd.OutOrStdout(), steps, output)
		},
	}
	target.flags(command)
	command.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	command.Flags().StringVar(&field, "field", "", "only changes of this field and those below: .spec")
	command.Flags().IntVar(&limit, "limit", 0, "only the newest so many changes")
	return command
}

func decode(data json.RawMessage) (map[string]any, error) {
	if len(data) == 0 {
		return nil, nil
	}
	var object map[string]any
	if err := json.Unmarshal(data, &object); err != nil {
		return nil, fmt.Errorf("decode an object: %w", err)
	}
	return object, nil
}

// within keeps the changes of a field and those below.
func within(changes []history.Change, field string) []history.Change {
	if field == "" {
		return changes
	}
	var out []history.Change
	for _, c := range changes {
		if rest, ok := strings.CutPrefix(c.Path, field); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			out = append(out, c)
		}
	}
	return out
}

func printSteps(out io.Writer, steps []step, output string) error {
	switch output {
	case "json":
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		return encoder.Encode(steps)
	case "table":
	default:
		return fmt.Errorf("unknown output %q: it is table or json", output)
	}
	table := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "REVISION\tWHEN\tWHO\tWHAT")
	for _, s := range steps {
		when := "unknown"
		if s.Time != nil {
			when = s.Time.Local().Format(time.DateTime)
		}
		row := fmt.Sprintf("%d\t%s", s.Revision, when)
		if len(s.Changes) == 0 {
			what := s.What
			if what == "known" {
				what = "the oldest state that is known"
			}
			fmt.Fprintf(table, "%s\t\t%s\n", row, what)
			continue
		}
		for _, c := range s.Changes {
			fmt.Fprintf(table, "%s\t%s\t%s\n", row, strings.Join(c.Managers, ", "), describe(c))
			row = "\t"
		}
	}
	return table.Flush()
}

// describe says a change in a line.
func describe(c history.Change) string {
	switch {
	case c.Old == nil:
		return fmt.Sprintf("%s: added %s", c.Path, short(c.New))
	case c.New == nil:
		return fmt.Sprintf("%s: removed %s", c.Path, short(c.Old))
	}
	return fmt.Sprintf("%s: %s → %s", c.Path, short(c.Old), short(c.New))
}

// short is a value in at most so many characters.
func short(value any) string {
	const most = 120
	text, ok := value.(string)
	if !ok || strings.ContainsAny(text, "\n\t ") || text == "" {
		var b strings.Builder
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(value); err == nil {
			text = strings.TrimSpace(b.String())
		}
	}
	if r := []rune(text); len(r) > most {
		return string(r[:most]) + "…"
	}
	return text
}

// difference is an object that is not the same at two moments, as it is printed.
type difference struct {
	Group     string           `json:"group,omitempty"`
	Resource  string           `json:"resource"`
	Namespace string           `json:"namespace,omitempty"`
	Name      string           `json:"name"`
	What      string           `json:"what"`
	Changes   []history.Change `json:"changes,omitempty"`
}

func newDiff() *cobra.Command {
	var target cluster
	var output, field, from, to string
	command := &cobra.Command{
		Use:   "diff --from MOMENT [--to MOMENT] [KIND [[NAMESPACE/]NAME]]",
		Short: "Tell what differs between two moments, in one object or in all",
		Long: `Diff lists the objects that were created, deleted or changed between two moments,
and the fields that changed with the managers that own them. A moment is a revision (48210), a
time (2026-01-31T14:03:00Z) or how long ago (10m, 2d). With --to before --from it says
what going back would do.

` + pastNote,
		Example: `  quaymaster diff --from 10m
  quaymaster diff --from 48210 --to 2026-01-31T14:03:00Z deployments -n shop
  quaymaster diff --from 1h pod shop/web-7c5d`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			for name, text := range map[string]string{"--from": from, "--to": to} {
				if text == "" && name == "--to" {
					continue
				}
				if _, err := core.ParseMoment(text, time.Now()); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
			if output != "text" && output != "json" {
				return fmt.Errorf("unknown output %q: it is text or json", output)
			}
			config, namespace, err := target.config()
			if err != nil {
				return err
			}
			o, err := target.object(config, namespace, args)
			if err != nil {
				return err
			}
			query := o.query()
			query.Set("from", from)
			if to != "" {
				query.Set("to", to)
			}
			found := 0
			head, err := readHistory(cmd, config, query, func(_ core.HistoryHead, e core.HistoryEntry) error {
				if e.Error != "" {
					_, err := fmt.Fprintf(cmd.ErrOrStderr(), "%s are not shown: %s\n", strings.TrimSpace(e.Resource+" "+e.Namespace), e.Error)
					return err
				}
				d, err := compare(e, field)
				if err != nil || d == nil {
					return err
				}
				found++
				return printDifference(cmd.OutOrStdout(), d, output)
			})
			if err != nil {
				return fmt.Errorf("diff: %w", err)
			}
			if found == 0 && output == "text" {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "nothing differs between revision %d and %d\n", head.From, head.To)
			}
			return err
		},
	}
	target.flags(command)
	flags := command.Flags()
	flags.StringVar(&from, "from", "", "the earlier moment")
	flags.StringVar(&to, "to", "", "the later moment (default: now)")
	flags.StringVarP(&output, "output", "o", "text", "text, or json: an object a line")
	flags.StringVar(&field, "field", "", "only changes of this field and those below: .spec")
	if err := command.MarkFlagRequired("from"); err != nil {
		panic(err) // the flag is above
	}
	return command
}

// compare gives nil when the fields that matter are the same.
func compare(e core.HistoryEntry, field string) (*difference, error) {
	old, err := decode(e.Old)
	if err != nil {
		return nil, err
	}
	now, err := decode(e.New)
	if err != nil {
		return nil, err
	}
	d := &difference{Group: e.Group, Resource: e.Resource, Namespace: e.Namespace, Name: e.Name}
	switch {
	case old == nil:
		d.What = "created"
	case now == nil:
		d.What = "deleted"
	default:
		d.What = "changed"
		if d.Changes = within(history.Diff(old, now), field); len(d.Changes) == 0 {
			return nil, nil
		}
	}
	return d, nil
}

func printDifference(out io.Writer, d *difference, output string) error {
	if output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetEscapeHTML(false)
		return encoder.Encode(d)
	}
	name := d.Name
	if d.Namespace != "" {
		name = d.Namespace + "/" + d.Name
	}
	kind := d.Resource
	if d.Group != "" {
		kind += "." + d.Group
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s\n", kind, name, d.What)
	for _, c := range d.Changes {
		fmt.Fprintf(&b, "  %s", describe(c))
		if len(c.Managers) > 0 {
			fmt.Fprintf(&b, "  (%s)", strings.Join(c.Managers, ", "))
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(out, b.String())
	return err
}
