package core_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/storage"
)

// BenchmarkFork is a fork of a hundred thousand pods until its client has
// answered; beside it what the engine over them takes until it is ready, and synced, and
// what it holds when it has come to rest. Bare pods have a container; running ones what a
// Deployment's have, but an owner, which would have to be there: labels, requests,
// a token's volume, tolerations, managed fields and a status. Fifty started in each second; those
// of any time and volume have times and a name of the volume that no other has.
func BenchmarkFork(b *testing.B) {
	for name, pod := range map[string]func(int) *corev1.Pod{"bare": barePod, "running": runningPod, "any": anyPod} {
		b.Run(name, func(b *testing.B) { benchmarkFork(b, pod) })
	}
}

func benchmarkFork(b *testing.B, pod func(int) *corev1.Pod) {
	dir := b.TempDir()
	s, err := storage.Open(storage.Options{Dir: filepath.Join(dir, "store")})
	if err != nil {
		b.Fatal(err)
	}
	writes := make([]storage.Write, 0, 1000)
	stored := 0
	for i := range 100_000 {
		var value strings.Builder
		if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(pod(i), &value); err != nil {
			b.Fatal(err)
		}
		stored += value.Len()
		writes = append(writes, storage.Write{Key: "/registry/pods/default/" + pod(i).Name, Value: []byte(value.String())})
		if len(writes) == cap(writes) {
			for _, r := range s.Commit(b.Context(), writes) {
				if r.Err != nil {
					b.Fatal(r.Err)
				}
			}
			writes = writes[:0]
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	writes = nil
	debug.FreeOSMemory()
	begin, used := time.Now(), cpuTime(b)
	e, err := core.New(core.Options{DataDir: dir})
	if err != nil {
		b.Fatal(err)
	}
	defer closed(b, e)
	if err := e.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	var wall, work [2]time.Duration
	for i, moment := range []<-chan struct{}{e.Ready(), e.Synced()} {
		select {
		case <-moment:
			wall[i], work[i] = time.Since(begin), cpuTime(b)-used
		case <-e.Done():
			b.Fatal(e.Close(b.Context()))
		}
	}
	heap := atRest(b)
	debug.FreeOSMemory()
	resident := anonymous(b)
	defer func() {
		b.ReportMetric(wall[0].Seconds(), "ready-s")
		b.ReportMetric(work[0].Seconds(), "ready-cpu-s")
		b.ReportMetric(wall[1].Seconds(), "synced-s")
		b.ReportMetric(work[1].Seconds(), "synced-cpu-s")
		b.ReportMetric(float64(heap>>20), "heap-MiB")
		b.ReportMetric(float64(resident>>10), "anonymous-MiB")
		b.ReportMetric(float64(stored)/100_000, "B/value")
	}()
	for b.Loop() {
		f, err := e.Fork(b.Context(), core.Moment{}, core.Options{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Client().CoreV1().Pods("default").Get(b.Context(), "pod-050000", metav1.GetOptions{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		closed(b, f)
		b.StartTimer()
	}
}

// atRest is the heap in use when what an engine's start left to do is done: when it
// has stopped to shrink.
func atRest(b *testing.B) uint64 {
	var memory runtime.MemStats
	least, same := uint64(math.MaxUint64), 0
	for deadline := time.Now().Add(time.Minute); same < 5 && time.Now().Before(deadline); {
		runtime.GC()
		runtime.ReadMemStats(&memory)
		if same++; memory.HeapAlloc < least-least/100 {
			least, same = memory.HeapAlloc, 0
		}
	}
	return least
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// anonymous is what the process has in memory but the pages of files, in KiB; 0
// where nothing tells.
func anonymous(b *testing.B) (kib uint64) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		b.Fatal(err)
	}
	return kib
}

func barePod(i int) *corev1.Pod {
	return &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("pod-%06d", i), UID: "u"},
		Spec:       corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{Name: "c", Image: "registry.example/image:1"}}}}
}

func runningPod(i int) *corev1.Pod { return startedPod(i, i*7919%2000, "kube-api-access-abcde") }

// anyPod shares least with others.
func anyPod(i int) *corev1.Pod { return startedPod(i, 3*i, fmt.Sprintf("kube-api-access-%05d", i)) }

func startedPod(i, second int, volume string) *corev1.Pod {
	pod, yes, seconds := barePod(i), true, int64(300)
	created, now := metav1.Unix(1_700_000_000+int64(second), 0), metav1.Unix(1_700_000_002+int64(second), 0)
	pod.UID, pod.CreationTimestamp = types.UID(fmt.Sprintf("00000000-0000-0000-0000-%012d", i)), created
	pod.Labels = map[string]string{"app": "web", "pod-template-hash": "5d4f8c7b9d"}
	for manager, fields := range map[string]string{"quaymaster": `{"f:metadata":{"f:labels":{"f:app":{}}},"f:spec":{"f:containers":{}}}`, "kubelet": `{"f:status":{"f:conditions":{},"f:phase":{}}}`} {
		pod.ManagedFields = append(pod.ManagedFields, metav1.ManagedFieldsEntry{Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", Time: &now, FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{Raw: []byte(fields)}})
	}
	c := &pod.Spec.Containers[0]
	c.Resources.Requests = corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")}
	c.VolumeMounts = []corev1.VolumeMount{{Name: volume, ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}}
	pod.Spec.Volumes = []corev1.Volume{{Name: volume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}}}}
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds})
	}
	pod.Spec.ServiceAccountName, pod.Spec.SchedulerName, pod.Spec.RestartPolicy = "default", "default-scheduler", corev1.RestartPolicyAlways
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, HostIP: "10.0.0.1", PodIP: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), StartTime: &created, QOSClass: corev1.PodQOSBurstable,
		ContainerStatuses: []corev1.ContainerStatus{{Name: "c", Ready: true, Started: &yes, Image: c.Image, ImageID: "sha256:0", ContainerID: fmt.Sprintf("containerd://%064d", i), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}}}}
	pod.Status.PodIPs = []corev1.PodIP{{IP: pod.Status.PodIP}}
	for _, condition := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		at := created
		if condition == corev1.ContainersReady || condition == corev1.PodReady {
			at = now
		}
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: condition, Status: corev1.ConditionTrue, LastTransitionTime: at})
	}
	return pod
}
