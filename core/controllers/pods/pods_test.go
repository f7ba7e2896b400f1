package pods

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	testclock "k8s.io/utils/clock/testing"
)

var kind = corev1.SchemeGroupVersion.WithKind("ReplicationController")

func controller(name string) *corev1.ReplicationController {
	return &corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: "rc"}}
}

func TestFromTemplate(t *testing.T) {
	template := &corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"}, Finalizers: []string{"e"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "x"}}},
	}
	pod := FromTemplate(template, controller("web"), kind)
	if pod.Namespace != "ns" || pod.GenerateName != "web-" || !strings.HasPrefix(pod.Name, "web-") || len(pod.Name) != len("web-")+5 {
		t.Errorf("%s/%s from %s", pod.Namespace, pod.Name, pod.GenerateName)
	}
	if !metav1.IsControlledBy(pod, controller("web")) || pod.Labels["a"] != "b" || pod.Annotations["c"] != "d" || pod.Finalizers[0] != "e" {
		t.Errorf("%+v", pod.ObjectMeta)
	}
	pod.Labels["a"], pod.Spec.Containers[0].Name = "changed", "changed"
	if template.Labels["a"] != "b" || template.Spec.Containers[0].Name != "x" {
		t.Error("the pod shares memory with the template")
	}
	long := strings.Repeat("a", 253)
	if got := NamePrefix("Web"); got != "Web" {
		t.Errorf("a prefix that is no name: %q", got)
	}
	if got := RandomName(long + "-"); len(got) != 63 {
		t.Errorf("%d characters", len(got))
	}
}

func TestAvailableIn(t *testing.T) {
	now := time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC)
	ready := func(status corev1.ConditionStatus, since time.Time) *corev1.Pod {
		return &corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.NewTime(since)}}}}
	}
	for _, tt := range []struct {
		name string
		pod  *corev1.Pod
		min  int32
		want time.Duration
	}{
		{"never ready", &corev1.Pod{}, 0, -1},
		{"not ready", ready(corev1.ConditionFalse, now), 0, -1},
		{"at once", ready(corev1.ConditionTrue, now), 0, 0},
		{"in a while", ready(corev1.ConditionTrue, now.Add(-4*time.Second)), 10, 6 * time.Second},
		{"just now", ready(corev1.ConditionTrue, now.Add(-10*time.Second)), 10, 0},
		{"since when is not known", ready(corev1.ConditionTrue, time.Time{}), 10, -1},
	} {
		if got := AvailableIn(tt.pod, tt.min, now); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestExpectations(t *testing.T) {
	clock := testclock.NewFakeClock(time.Now())
	e := NewExpectations(clock)
	check := func(when string, creates, deletes int) {
		t.Helper()
		if c, d := e.Pending("rc"); c != creates || d.Len() != deletes {
			t.Errorf("%s: %d creates and %d deletes, want %d and %d", when, c, d.Len(), creates, deletes)
		}
	}
	check("nothing", 0, 0)
	e.Create("rc", "a")
	e.Create("rc", "b")
	e.Create("other", "c")
	e.Delete("rc", "x")
	check("expected", 2, 1)
	e.CreateObserved("rc", "a")
	e.CreateObserved("rc", "a")
	e.CreateObserved("rc", "unknown")
	check("one seen twice", 1, 1)
	e.DeleteObserved("rc", "x")
	check("the delete seen", 1, 0)
	clock.Step(forgetAfter + time.Second)
	check("never seen", 0, 0)
	e.Forget("other")
	if c, _ := e.Pending("other"); c != 0 {
		t.Error("not forgotten")
	}
}

func TestBatch(t *testing.T) {
	var calls atomic.Int64
	if err := Batch(t.Context(), 1000, func(int) error { calls.Add(1); return nil }); err != nil || calls.Load() != 1000 {
		t.Errorf("%d calls, %v", calls.Load(), err)
	}
	calls.Store(0)
	failure := errors.New("no")
	err := Batch(t.Context(), 1000, func(i int) error {
		calls.Add(1)
		if i == 5 {
			return failure
		}
		return nil
	})
	if !errors.Is(err, failure) || calls.Load() != 7 { // 1, 2 and 4
		t.Errorf("%d calls, %v", calls.Load(), err)
	}
	if err := Batch(t.Context(), 0, func(int) error { return failure }); err != nil {
		t.Error(err)
	}
}

// fakeControl answers with an error by name.
type fakeControl struct {
	errs  []error // of one create after the other, then none
	calls int
}

func (f *fakeControl) Create(context.Context, *corev1.Pod) error { return f.next() }

func (f *fakeControl) Delete(context.Context, string, string, metav1.DeleteOptions) error {
	return f.next()
}

func (f *fakeControl) next() error {
	f.calls++
	if f.calls <= len(f.errs) {
		return f.errs[f.calls-1]
	}
	return nil
}

func TestWriter(t *testing.T) {
	terminating := apierrors.NewForbidden(corev1.Resource("pods"), "a", errors.New("terminating"))
	terminating.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
	exists := apierrors.NewAlreadyExists(corev1.Resource("pods"), "a")
	missing := apierrors.NewNotFound(corev1.Resource("pods"), "a")
	refused := errors.New("refused")
	tests := []struct {
		name    string
		errs    []error
		remove  bool
		pending int
		fails   bool
		event   string
	}{
		{"created", nil, false, 1, false, "Normal SuccessfulCreate Created pod: web-"},
		{"the name was taken", []error{exists}, false, 1, false, "Normal SuccessfulCreate Created pod: web-"},
		{"refused", []error{refused}, false, 0, true, "Warning FailedCreate Error creating: refused"},
		{"no more in this namespace", []error{terminating}, false, 0, false, ""},
		{"deleted", nil, true, 1, false, "Normal SuccessfulDelete Deleted pod: p"},
		{"gone already", []error{missing}, true, 0, false, ""},
		{"not deleted", []error{refused}, true, 0, true, "Warning FailedDelete Error deleting: refused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			recorder := record.NewFakeRecorder(10)
			w := Writer{Control: &fakeControl{errs: tt.errs}, Expected: NewExpectations(testclock.NewFakeClock(time.Now())), Recorder: recorder}
			var err error
			if tt.remove {
				err = w.Delete(t.Context(), controller("web"), "rc", []*corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: types.UID("p")}}})
			} else {
				err = w.Create(t.Context(), controller("web"), "rc", 1, func(int) *corev1.Pod { return FromTemplate(&corev1.PodTemplateSpec{}, controller("web"), kind) })
			}
			if (err != nil) != tt.fails {
				t.Errorf("error %v", err)
			}
			creates, deletes := w.Expected.Pending("rc")
			if creates+deletes.Len() != tt.pending {
				t.Errorf("%d creates and %d deletes expected", creates, deletes.Len())
			}
			event := ""
			if len(recorder.Events) > 0 {
				event = <-recorder.Events
			}
			if !strings.HasPrefix(event, tt.event) || tt.event == "" && event != "" {
				t.Errorf("event %q", event)
			}
		})
	}
}

func TestSortForDeletion(t *testing.T) {
	now := time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC)
	pod := func(name string, change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))}}
		p.Spec.NodeName, p.Status.Phase = "n", corev1.PodRunning
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Hour))}}
		change(p)
		return p
	}
	// In the order in which they must go, each for the reason it is named after.
	want := []*corev1.Pod{
		pod("unbound", func(p *corev1.Pod) { p.Spec.NodeName = "" }),
		pod("pending", func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }),
		pod("unknown", func(p *corev1.Pod) { p.Status.Phase = corev1.PodUnknown }),
		pod("unready", func(p *corev1.Pod) { p.Status.Conditions = nil }),
		pod("cheap", func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.PodDeletionCost: "-5"} }),
		pod("crowded", func(p *corev1.Pod) { p.Spec.NodeName = "full" }),
		pod("young", func(p *corev1.Pod) {
			p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(now.Add(-time.Minute))
		}),
		pod("restarting", func(p *corev1.Pod) { p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 3}} }),
		pod("new", func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(now.Add(-time.Minute)) }),
		pod("plain", func(*corev1.Pod) {}),
		pod("dear", func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.PodDeletionCost: "10"} }),
	}
	got := make([]*corev1.Pod, len(want))
	for i := range want {
		got[len(want)-1-i] = want[i]
	}
	SortForDeletion(got, map[string]int{"n": 1, "full": 7}, now)
	for i := range want {
		if got[i].Name != want[i].Name {
			t.Errorf("place %d has %s, want %s", i, got[i].Name, want[i].Name)
		}
	}
}
