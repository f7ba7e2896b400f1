package main

import (
	_ "embed"
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const milliGPU v1.ResourceName = "openb.example/milligpu" // thousandths of GPUs

const (
	modelLabel = "openb.example/gpu-model"
	shapeLabel = "openb.example/shape"
	oneGPU     = 1000
)

// trace is a cluster and the pods that arrive in it.
type trace struct {
	nodes  []*v1.Node
	gpus   int
	pods   []int // shapes
	shapes []shape
}

// shape is what scheduling can tell of a pod.
type shape struct {
	pod         *v1.Pod
	cpu, memory int64    // thousandths, MiB
	gpus        int64    // devices
	share       int64    // of each, in thousandths
	models      []string // nil: any
	count       int
}

func (s *shape) demand() int64 { return s.gpus * s.share }

func readTrace(dir string) (*trace, error) {
	t := &trace{}
	if err := eachLine(filepath.Join(dir, "openb_node_list_all_node.csv"), 5, func(f []string, number func(int) int64) {
		t.addNode(f[0], number(1), number(2), number(3), f[4])
	}); err != nil {
		return nil, err
	}
	byText := map[string]int{}
	err := eachLine(filepath.Join(dir, "openb_pod_list_default.csv"), 11, func(f []string, number func(int) int64) {
		text := strings.Join(f[1:6], ",")
		id, known := byText[text]
		if !known {
			id = len(t.shapes)
			byText[text] = id
			t.addShape(number(1), number(2), number(3), number(4), f[5])
		}
		t.shapes[id].count++
		t.pods = append(t.pods, id)
	})
	return t, err
}

func (t *trace) addNode(name string, cpu, memory, gpus int64, model string) {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{modelLabel: model}}}
	n.Status.Allocatable = v1.ResourceList{
		v1.ResourceCPU:    *resource.NewMilliQuantity(cpu, resource.DecimalSI),
		v1.ResourceMemory: *resource.NewQuantity(memory<<20, resource.BinarySI),
		v1.ResourcePods:   *resource.NewQuantity(1<<20, resource.DecimalSI), // the trace knows no limit
		milliGPU:          *resource.NewQuantity(gpus*oneGPU, resource.DecimalSI),
	}
	t.nodes = append(t.nodes, n)
	t.gpus += int(gpus)
}

func (t *trace) addShape(cpu, memory, gpus, share int64, models string) {
	s := shape{cpu: cpu, memory: memory, gpus: gpus, share: share}
	requests := v1.ResourceList{
		v1.ResourceCPU:    *resource.NewMilliQuantity(cpu, resource.DecimalSI),
		v1.ResourceMemory: *resource.NewQuantity(memory<<20, resource.BinarySI),
	}
	if s.demand() > 0 {
		requests[milliGPU] = *resource.NewQuantity(s.demand(), resource.DecimalSI)
	} else {
		s.gpus = 0
	}
	s.pod = &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "openb", Labels: map[string]string{shapeLabel: strconv.Itoa(len(t.shapes))}}}
	s.pod.Spec.Containers = []v1.Container{{Name: "main", Image: "openb", Resources: v1.ResourceRequirements{Requests: requests}}}
	if models != "" {
		s.models = strings.Split(models, "|")
		s.pod.Spec.Affinity = &v1.Affinity{NodeAffinity: &v1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{
			{MatchExpressions: []v1.NodeSelectorRequirement{{Key: modelLabel, Operator: v1.NodeSelectorOpIn, Values: s.models}}}}}}}
	}
	t.shapes = append(t.shapes, s)
}

// eachLine calls f for each line but the first, with a function that reads a
// number in a column.
func eachLine(file string, columns int, f func(fields []string, number func(int) int64)) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	lines := csv.NewReader(in)
	lines.FieldsPerRecord = columns
	for i := 1; ; i++ {
		fields, err := lines.Read()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if i == 1 {
			continue
		}
		var wrong error
		f(fields, func(column int) int64 {
			if fields[column] == "" {
				return 0
			}
			n, err := strconv.ParseInt(fields[column], 10, 64)
			if err != nil || n < 0 {
				wrong = fmt.Errorf("%s: line %d: %q in column %d is not a number from 0", file, i, fields[column], column+1)
			}
			return n
		})
		if wrong != nil {
			return wrong
		}
	}
}

const (
	step = 5          // percent of the GPUs asked for between two points of a curve
	last = 130 / step // the last point
)

// curve is what was reached when so much was asked for, in percent of all GPUs.
type curve struct {
	name                 string
	allocated, fragments [last + 1]float64
}

func (c *curve) add(o *curve, weight float64) {
	for i := range c.allocated {
		c.allocated[i] += weight * o.allocated[i]
		c.fragments[i] += weight * o.fragments[i]
	}
}

// published has the means of ten runs of the artifact of "Beware of
// Fragmentation" (experiments/analysis/expected_results, openb_pod_list_default).
//
//go:embed published.csv
var publishedCSV string

func readPublished() (list []curve, err error) {
	records, err := csv.NewReader(strings.NewReader(publishedCSV)).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("published.csv: %w", err)
	}
	byName := map[string]int{}
	for _, record := range records[1:] {
		measure, name := record[0], record[1]
		i, known := byName[name]
		if !known {
			i = len(list)
			byName[name] = i
			list = append(list, curve{name: name + " (published)"})
		}
		for k, text := range record[2:] {
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				value = math.NaN()
			}
			switch measure {
			case "alloc":
				list[i].allocated[k] = value
			case "frag":
				list[i].fragments[k] = value
			}
		}
	}
	return list, nil
}
