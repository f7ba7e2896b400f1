package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/status"
)

// errInterrupted ends a step that waits for a grace period which became shorter.
var errInterrupted = errors.New("the pod's deletion was brought forward")

// step brings the pod one state nearer to what its object asks for. It returns
// when to look again although nothing happens (0 = never).
func (p *pod) step(ctx context.Context, api *v1.Pod, gone bool) (again time.Duration, err error) {
	p.fresh = nil
	if err := p.observe(ctx); err != nil {
		return 0, err
	}
	if p.failure == nil {
		p.mu.Lock()
		verdict := p.verdict
		p.mu.Unlock()
		if verdict == nil && !gone && api.DeletionTimestamp == nil {
			if verdict, err = p.admit(ctx, api); err != nil {
				return 0, err
			}
		}
		if verdict != nil {
			p.fail(verdict)
		} else {
			again = p.deadline(api)
		}
	}
	switch {
	case gone:
		if err := p.stop(ctx, api, 0); err != nil {
			return 0, err
		}
		if err := p.remove(ctx); err != nil {
			return 0, err
		}
		p.forget()
		return 0, nil
	case api.DeletionTimestamp != nil:
		return 0, p.terminate(ctx, api)
	case p.finished || p.failure != nil || api.Status.Phase == v1.PodSucceeded || api.Status.Phase == v1.PodFailed:
		p.finished = true
		return 0, p.end(ctx, api)
	}
	if api.Status.StartTime == nil && p.a.volumes != nil {
		// What follows may take long: say that the pod was seen.
		if err := p.report(ctx, false); err != nil {
			return 0, err
		}
	}
	if p.endedUntold(api) && !p.done(api) {
		// Nobody should be sent to it while its image is pulled anew and its hooks run. An API server that is
		// away holds no restart back; the step's end tells again.
		if err := p.report(ctx, false); err != nil {
			p.a.log.Info("a container's end is not told before its restart", "pod", api.Namespace+"/"+api.Name, "err", err)
		}
	}
	api = p.allocate(api)
	due := again
	again, err = p.start(ctx, api)
	sooner := func(d time.Duration) {
		if d > 0 && (again == 0 || d < again) {
			again = d
		}
	}
	sooner(due)
	if err == nil && !p.finished {
		var retry time.Duration
		retry, err = p.actuate(ctx, api)
		sooner(retry)
	}
	if observed := p.observe(ctx); observed != nil {
		return 0, observed
	}
	if !p.finished {
		if reported := p.report(ctx, false); reported != nil {
			return 0, reported
		}
	}
	if p.finished {
		return 0, p.end(ctx, api)
	}
	return again, err
}

// endedUntold tells whether a container has ended that the API still shows as running.
func (p *pod) endedUntold(api *v1.Pod) bool {
	return slices.ContainsFunc(api.Status.ContainerStatuses, func(st v1.ContainerStatus) bool {
		cur := p.rt.Current(st.Name)
		return st.State.Running != nil && cur != nil && cur.State == runtimeapi.ContainerState_CONTAINER_EXITED && strings.HasSuffix(st.ContainerID, "://"+cur.Id)
	})
}

// reportTime bounds how long an API server that does not answer holds a pod's worker.
const reportTime = 10 * time.Second

// report writes the pod's status where it differs from what the API has.
func (p *pod) report(ctx context.Context, terminal bool) error {
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	for range 5 {
		p.mu.Lock()
		api, gone := p.api, p.gone
		p.mu.Unlock()
		if gone {
			return nil
		}
		st := status.Generate(api, &p.rt, p.waiting, terminal, p.a.opts.Clock.Now())
		if st.Phase == v1.PodFailed || st.Phase == v1.PodSucceeded {
			p.finished = true
		}
		if apiequality.Semantic.DeepEqual(st, api.Status) {
			return nil
		}
		next := *api
		next.Status = st
		got, err := p.a.opts.PodWriter.UpdateStatus(ctx, &next)
		switch {
		case err == nil:
			p.stored(got)
			return nil
		case apierrors.IsNotFound(err):
			return nil // the source will tell
		case !apierrors.IsConflict(err):
			return fmt.Errorf("update the pod's status: %w", err)
		}
		got, err = p.a.opts.Client.CoreV1().Pods(api.Namespace).Get(ctx, api.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && got.UID != p.uid {
			return nil
		}
		if err != nil {
			return fmt.Errorf("get the pod after a conflict: %w", err)
		}
		p.stored(got)
	}
	return fmt.Errorf("update the pod's status: it keeps changing")
}

// stored takes an object that the API answered with. A change of what the pod
// should be is noticed when the source hands the same version over.
func (p *pod) stored(obj *v1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if obj.ResourceVersion == p.api.ResourceVersion && obj.ResourceVersion != "" {
		return // the source was here before
	}
	if older(obj.ResourceVersion, p.api.ResourceVersion) || p.api.DeletionTimestamp != nil && obj.DeletionTimestamp == nil {
		return // a deletion is not taken back, by an answer without a version either
	}
	if !obj.DeletionTimestamp.Equal(p.api.DeletionTimestamp) || !apiequality.Semantic.DeepEqual(obj.Spec, p.api.Spec) {
		p.dirty = true
	}
	p.api = obj
}

// remove takes the pod out of the runtime and frees its volumes and logs.
func (p *pod) remove(ctx context.Context) error {
	if p.probes != nil {
		p.probes.Stop()
	}
	if p.sandboxID != "" {
		if _, err := p.a.opts.Backend.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.sandboxID}); err != nil {
			return fmt.Errorf("remove sandbox %s: %w", p.sandboxID, err)
		}
		p.sandboxID, p.rt.SandboxReady = "", false
	}
	if err := p.sweep(ctx); err != nil {
		return err
	}
	p.release()
	return p.a.cleanUp(p.object())
}

// terminate is graceful deletion: containers are asked to end, the last status
// is written, then the API object goes, with the grace period zero.
func (p *pod) terminate(ctx context.Context, api *v1.Pod) error {
	grace := int64(v1.DefaultTerminationGracePeriodSeconds)
	switch {
	case api.DeletionGracePeriodSeconds != nil:
		grace = *api.DeletionGracePeriodSeconds
	case api.Spec.TerminationGracePeriodSeconds != nil:
		grace = *api.Spec.TerminationGracePeriodSeconds
	}
	if err := p.stop(ctx, api, grace); err != nil {
		return err
	}
	if err := p.observe(ctx); err != nil {
		return err
	}
	p.waiting = nil
	if p.probes != nil {
		p.probes.Ended(nil)
	}
	p.release() // whoever hears of the pod's end may send another in its place
	if err := p.report(ctx, true); err != nil {
		return err
	}
	if err := p.remove(ctx); err != nil {
		return err
	}
	zero := int64(0)
	err := p.a.opts.PodWriter.Delete(ctx, api.Namespace, api.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &p.uid},
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete the pod: %w", err)
	}
	return nil
}

// end reports a pod whose containers are all done. Its sandbox is stopped; its
// containers stay for their logs until the pod is deleted.
func (p *pod) end(ctx context.Context, api *v1.Pod) error {
	grace := ptrOr(api.Spec.TerminationGracePeriodSeconds, v1.DefaultTerminationGracePeriodSeconds)
	if p.failure != nil {
		grace = ptrOr(p.failure.Grace, grace)
	}
	if err := p.stop(ctx, api, grace); err != nil {
		return err
	}
	if err := p.observe(ctx); err != nil {
		return err
	}
	p.release()
	return p.report(ctx, true)
}

func ptrOr(p *int64, def int64) int64 {
	if p != nil {
		return *p
	}
	return def
}
