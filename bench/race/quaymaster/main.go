// Command quaymaster is our side of the race: the engine on Badger, in a process
// of its own.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/quaymaster/quaymaster/bench/race/work"
	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/resident"
)

// renewEvery keeps the nodes, which have no agent, from being taken for dead.
const renewEvery = 25 * time.Second

func main() {
	dir, profile := flag.String("dir", "", "directory of the data"), flag.String("profile", "", "folder for profiles of what is timed: CPU and memory")
	flag.Parse()
	if err := run(context.Background(), *dir, *profile); err != nil {
		fmt.Fprintln(os.Stderr, "quaymaster:", err)
		os.Exit(1)
	}
}

// run is Quaymaster on Badger, which syncs, until the standard input ends.
// What it does for requests there goes through the client in the process.
func run(ctx context.Context, dir, profile string) (err error) {
	e, err := core.New(core.Options{DataDir: filepath.Join(dir, "data"), Listen: "127.0.0.1:0"})
	if err != nil {
		return err
	}
	if err := e.Start(ctx); err != nil {
		return err
	}
	defer func() {
		if closed := e.Close(context.WithoutCancel(ctx)); err == nil {
			err = closed
		}
	}()
	select {
	case <-e.Ready():
	case <-e.Done():
		return nil
	}
	kubeconfig, err := e.Kubeconfig()
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(file, kubeconfig, 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		renew(ctx, e.Client())
	}()
	go resident.Server(ctx) // as the server's own program does
	defer func() { cancel(); <-done }()
	fmt.Println(file)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var r work.Request
		a := work.Answer{}
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return err
		}
		if r.Profile {
			stop, err := startProfile(profile)
			if err != nil {
				return err
			}
			defer stop()
			continue
		}
		elapsed, err := answerTo(ctx, e.Client(), r)
		if a.Seconds = elapsed.Seconds(); err != nil {
			a.Error = err.Error()
		}
		if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
			return err
		}
	}
	return nil
}

// startProfile takes a CPU profile until the returned function is called. Before and
// after it writes what the heap holds and what was allocated until then: a file .before
// and one .heap.
func startProfile(folder string) (stop func(), err error) {
	cpu, err := os.CreateTemp(folder, "race-*.cpu")
	if err != nil {
		return nil, err
	}
	name := strings.TrimSuffix(cpu.Name(), ".cpu")
	if err := writeHeap(name + ".before"); err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		if err := errors.Join(cpu.Close(), writeHeap(name+".heap")); err != nil {
			fmt.Fprintln(os.Stderr, "profile:", err)
		}
	}, nil
}

func writeHeap(name string) error {
	runtime.GC() // a heap's profile is that of the last collection
	heap, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(pprof.WriteHeapProfile(heap), heap.Close())
}

func answerTo(ctx context.Context, client kubernetes.Interface, r work.Request) (time.Duration, error) {
	found, err := work.Find(r.Scenario)
	if err != nil {
		return 0, err
	}
	s := *found
	s.Nodes, s.Before, s.Pods = r.Nodes, r.Before, r.Pods
	w := &work.Work{Client: client, Clients: r.Clients}
	return w.Run(ctx, &s, work.ModeGo)
}

// renew does for all nodes what their agents would.
func renew(ctx context.Context, client kubernetes.Interface) {
	leases := client.CoordinationV1().Leases(v1.NamespaceNodeLease)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(renewEvery):
		}
		nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			continue // at the end, or the next time
		}
		for i := range nodes.Items {
			name, now := nodes.Items[i].Name, metav1.NowMicro()
			lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: coordinationv1.LeaseSpec{HolderIdentity: &name, RenewTime: &now}}
			if _, err := leases.Update(ctx, lease, metav1.UpdateOptions{}); apierrors.IsNotFound(err) {
				_, _ = leases.Create(ctx, lease, metav1.CreateOptions{}) // or the next time
			}
		}
	}
}
