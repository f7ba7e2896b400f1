package core

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Etcd is where a real etcd is, and who leads of the engines that use it.
type Etcd struct {
	Endpoints []string // URLs, such as "https://10.0.0.1:2379"
	// CAFile, CertFile and KeyFile are PEM files for TLS: the authority of etcd's
	// certificates, and the engine's own as etcd's client.
	CAFile, CertFile, KeyFile string
	// Prefix of all keys, which lets clusters share an etcd.
	Prefix string
	// Term is how long a leader that has died is still thought to lead. Default
	// 15 seconds, as upstream's controllers.
	Term time.Duration
}

// ErrLeadershipLost is what an engine ends with that led and could not renew its
// lease in time: another leads now. Start it again to stand by.
var ErrLeadershipLost = errors.New("another engine leads now")

// leaseName is the Lease in kube-system that the leader holds.
const leaseName = "quaymaster"

// lead runs do while this engine leads, which it waits for. When ctx ends, or do
// does, it hands over: after do has ended.
func (p *parts) lead(ctx context.Context, do func(context.Context) error) error {
	term := p.options.Etcd.Term
	if term == 0 {
		term = 15 * time.Second
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	election, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	elected := make(chan context.Context, 1) // nobody may be there to take it
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: leaseName},
			Client:     p.client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: host + "_" + string(uuid.NewUUID())},
		},
		LeaseDuration: term, RenewDeadline: term * 2 / 3, RetryPeriod: term / 7,
		ReleaseOnCancel: true,
		Name:            leaseName,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) { elected <- leading },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("elect a leader: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		elector.Run(election)
	}()
	defer func() {
		stop()
		<-ended
	}()
	select {
	case <-ctx.Done():
		return nil
	case leading := <-elected:
		p.options.Logger.Info("this engine leads", "lease", leaseName)
		working, cancel := context.WithCancel(leading)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		err := do(working)
		if leading.Err() != nil && ctx.Err() == nil {
			return errors.Join(ErrLeadershipLost, err)
		}
		return err
	}
}
