package core_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core"
)

// processTime is the CPU time that this process has used, in user and kernel.
func processTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err) // it knows no error for this process
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// resident is the process's memory in MiB: all of it, and what is not mapped
// from files.
func resident(t testing.TB) (all, anonymous float64) {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var kilobytes float64
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kilobytes); err == nil {
			all = kilobytes / 1024
		}
		if _, err := fmt.Sscanf(line, "RssAnon: %f kB", &kilobytes); err == nil {
			anonymous = kilobytes / 1024
		}
	}
	return all, anonymous
}

func deployment(name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "web:1", Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("10Mi")}}}}},
			},
		},
	}
}

// BenchmarkDeployment creates one Deployment on 100 simulated nodes, durably,
// and waits until its pods are bound and until they run.
//
//	go test ./core -run '^$' -bench Deployment/8000 -benchtime 1x
func BenchmarkDeployment(b *testing.B) {
	for _, replicas := range []int32{100, 8000} {
		b.Run(fmt.Sprint(replicas), func(b *testing.B) {
			if replicas > 1000 && testing.Short() {
				b.Skip("8,000 pods take too long for -short")
			}
			for range b.N {
				e := start(b, core.Options{DataDir: b.TempDir(), Nodes: core.Nodes("node", 100)})
				watch, err := e.Client().CoreV1().Pods("default").Watch(b.Context(), metav1.ListOptions{})
				if err != nil {
					b.Fatal(err)
				}
				runtime.GC()
				begin, cpu := time.Now(), processTime()
				if _, err := e.Client().AppsV1().Deployments("default").Create(b.Context(), deployment("web", replicas), metav1.CreateOptions{}); err != nil {
					b.Fatal(err)
				}
				bound, running := map[string]bool{}, map[string]bool{}
				for event := range watch.ResultChan() {
					pod, ok := event.Object.(*corev1.Pod)
					if !ok {
						b.Fatalf("watch: %v", event.Object)
					}
					if pod.Spec.NodeName != "" && !bound[pod.Name] {
						if bound[pod.Name] = true; len(bound) == int(replicas) {
							b.ReportMetric(time.Since(begin).Seconds(), "s-to-bound")
							b.ReportMetric((processTime()-cpu).Seconds()*1e3/float64(replicas), "cpu-ms/pod-bound")
						}
					}
					if pod.Status.Phase == corev1.PodRunning {
						if running[pod.Name] = true; len(running) == int(replicas) {
							break
						}
					}
				}
				watch.Stop()
				b.ReportMetric(time.Since(begin).Seconds(), "s-to-running")
				b.ReportMetric((processTime()-cpu).Seconds()*1e3/float64(replicas), "cpu-ms/pod")
				all, anonymous := resident(b)
				b.ReportMetric(all, "MiB-resident")
				b.ReportMetric(anonymous, "MiB-anonymous")
				if err := e.Close(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkStart is the time from New to Ready of an engine in memory.
func BenchmarkStart(b *testing.B) {
	for range b.N {
		e := start(b, core.Options{})
		b.StopTimer()
		if err := e.Close(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
