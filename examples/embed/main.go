// Command embed runs a cluster inside a Go program: no port, no files, nothing
// installed. It creates a Deployment, waits until its pods run on simulated
// nodes, and says where they are.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	engine, err := core.New(core.Options{Nodes: core.Nodes("node", 3)})
	if err != nil {
		return err
	}
	defer engine.Close(context.WithoutCancel(ctx))
	if err := engine.Start(ctx); err != nil {
		return err
	}
	select {
	case <-engine.Ready():
	case <-engine.Done():
		return engine.Close(ctx)
	}

	labels := map[string]string{"app": "web"}
	replicas := int32(6)
	client := engine.Client()
	_, err = client.AppsV1().Deployments("default").Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web:1"}}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}

	watch, err := client.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		return err
	}
	defer watch.Stop()
	running := map[string]bool{}
	for event := range watch.ResultChan() {
		pod, ok := event.Object.(*corev1.Pod)
		if !ok || pod.Status.Phase != corev1.PodRunning || running[pod.Name] {
			continue
		}
		running[pod.Name] = true
		fmt.Printf("%s runs on %s\n", pod.Name, pod.Spec.NodeName)
		if len(running) == int(replicas) {
			return nil
		}
	}
	return fmt.Errorf("the watch ended with %d of %d pods running: %w", len(running), replicas, context.Cause(ctx))
}
