package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// usage asks nodes what they and their pods use: metrics-server's work, done
// when somebody asks.
type usage struct {
	server *Server

	mu    sync.Mutex
	nodes map[string]*nodeUsage
}

// nodeUsage is what a node said last. Its lock is held while it is asked.
type nodeUsage struct {
	sync.Mutex
	at      time.Time // zero: it has not been asked
	summary *statsapi.Summary
}

const (
	usageAge     = 10 * time.Second // how old an answer may be
	usageTimeout = 5 * time.Second  // of one node
	usageAsked   = 16               // nodes at a time
	usageLimit   = 32 << 20         // bytes of an answer
)

// of asks the nodes. One that does not answer, or does not measure, is not in
// what is returned.
func (u *usage) of(ctx context.Context, names []string) map[string]*statsapi.Summary {
	var mu sync.Mutex
	out := make(map[string]*statsapi.Summary, len(names))
	var group errgroup.Group
	group.SetLimit(usageAsked)
	for _, name := range names {
		group.Go(func() error {
			summary, err := u.node(ctx, name)
			if err != nil {
				u.server.log.Debug("a node does not say what it uses", "node", name, "error", err)
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			out[name] = summary
			return nil
		})
	}
	_ = group.Wait() // none fails
	return out
}

func (u *usage) node(ctx context.Context, name string) (*statsapi.Summary, error) {
	u.mu.Lock()
	if u.nodes == nil {
		u.nodes = map[string]*nodeUsage{}
	}
	n := u.nodes[name]
	if n == nil {
		n = &nodeUsage{}
		u.nodes[name] = n
	}
	u.mu.Unlock()
	n.Lock()
	defer n.Unlock()
	now := u.server.clock.Now()
	if n.summary != nil && now.Sub(n.at) < usageAge {
		return n.summary, nil
	}
	summary, err := u.ask(ctx, name)
	if err != nil {
		u.mu.Lock()
		delete(u.nodes, name) // it may be gone for good
		u.mu.Unlock()
		return nil, err
	}
	n.at, n.summary = now, summary
	return summary, nil
}

func (u *usage) ask(ctx context.Context, name string) (*statsapi.Summary, error) {
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	to, err := u.server.kubelets.GetConnectionInfo(ctx, types.NodeName(name))
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, to.Scheme+"://"+to.Hostname+":"+to.Port+"/stats/summary?only_cpu_and_memory=true", nil)
	if err != nil {
		return nil, err
	}
	response, err := to.Transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 200)) // for the message only
		return nil, fmt.Errorf("node %s answers %s: %s", name, response.Status, text)
	}
	var summary statsapi.Summary
	if err := json.NewDecoder(io.LimitReader(response.Body, usageLimit)).Decode(&summary); err != nil {
		return nil, fmt.Errorf("what node %s uses: %w", name, err)
	}
	return &summary, nil
}

// measured is one reading: CPU as a rate over the window, memory as the working
// set at its end. It is not ok when a part is missing.
func measured(cpu *statsapi.CPUStats, memory *statsapi.MemoryStats) (corev1.ResourceList, metav1.Time, bool) {
	if cpu == nil || memory == nil || cpu.UsageNanoCores == nil || memory.WorkingSetBytes == nil {
		return nil, metav1.Time{}, false
	}
	return corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewScaledQuantity(int64(*cpu.UsageNanoCores), resource.Nano),
		corev1.ResourceMemory: *resource.NewQuantity(int64(*memory.WorkingSetBytes), resource.BinarySI),
	}, cpu.Time, true
}
