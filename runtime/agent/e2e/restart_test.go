package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

// TestRestartWithStreams ends the agent while people are attached to its pods: their streams end, the pods do
// not notice, and the next agent serves the same calls.
func TestRestartWithStreams(t *testing.T) {
	n := newNode(t)
	config, client := n.outside()
	n.create(n.podOf("web", "mkdir /tmp/www; echo hello > /tmp/www/index.html; httpd -p 8080 -h /tmp/www; i=0; while true; do echo line $((i=i+1)); sleep 0.05; done", always, served))
	n.create(n.podOf("cat", "cat", always, func(p *v1.Pod) { p.Spec.Containers[0].Stdin = true }))
	web, cat := n.ready("web"), n.ready("cat")
	stream := func(ctx context.Context, pod, sub string, options runtime.Object) (*io.PipeReader, *io.PipeWriter, <-chan error) {
		t.Helper()
		u := client.CoreV1().RESTClient().Post().Resource("pods").Namespace("default").Name(pod).SubResource(sub).VersionedParams(options, scheme.ParameterCodec).URL()
		e, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, u)
		if err != nil {
			t.Fatal(err)
		}
		in, feed := io.Pipe()
		out, said := io.Pipe()
		done := make(chan error, 1)
		go func() {
			err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: said})
			_ = in.Close()
			_ = said.Close()
			done <- err
		}()
		return out, feed, done
	}
	echo := func(what string, out io.Reader, feed io.Writer) {
		t.Helper()
		if _, err := io.WriteString(feed, "hello\n"); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		got := make([]byte, 6)
		if _, err := io.ReadFull(out, got); err != nil || string(got) != "hello\n" {
			t.Fatalf("%s: %q, %v", what, got, err)
		}
	}
	ended := func(what string, done <-chan error) {
		t.Helper()
		select {
		case err := <-done:
			t.Logf("%s ends with %v", what, err)
		case <-time.After(patience):
			t.Fatalf("%s does not end with the agent", what)
		}
	}
	follow := func() io.ReadCloser {
		t.Helper()
		var r io.ReadCloser
		eventually(t, "the log to be followed", func(ctx context.Context) (bool, error) {
			var err error
			r, err = client.CoreV1().Pods("default").GetLogs("web", &v1.PodLogOptions{Follow: true}).Stream(t.Context())
			return err == nil, nil
		})
		return r
	}
	lines := func(r io.Reader, least int) {
		t.Helper()
		seen := 0
		buf := make([]byte, 1<<10)
		for seen < least {
			k, err := r.Read(buf)
			seen += strings.Count(string(buf[:k]), "\n")
			if err != nil {
				t.Fatalf("after %d lines: %v", seen, err)
			}
		}
	}
	execOptions := &v1.PodExecOptions{Container: "c", Command: []string{"cat"}, Stdin: true, Stdout: true}
	attachOptions := &v1.PodAttachOptions{Container: "c", Stdin: true, Stdout: true}

	for round := range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		out, feed, exec := stream(ctx, "web", "exec", execOptions)
		echo("exec", out, feed)
		attachOut, attachFeed, attach := stream(ctx, "cat", "attach", attachOptions)
		echo("attach", attachOut, attachFeed)
		stop := make(chan struct{})
		ports, forwarded := n.forward(config, "web", stop, "0:8080")
		if got, err := fetch(ports[0]); got != "hello\n" || err != nil {
			t.Errorf("through the forwarded port: %q, %v", got, err)
		}
		log := follow()
		lines(log, 20)
		if round == 1 { // what the agent's second life serves ends by itself
			cancel()
			_ = feed.Close()
			_ = attachFeed.Close()
			close(stop)
			ended("exec", exec)
			ended("attach", attach)
			ended("port-forward", forwarded)
			_ = log.Close()
			break
		}
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0])) // open, and idle
		if err != nil {
			t.Fatal(err)
		}
		followed := make(chan error, 1)
		go func() { _, err := io.Copy(io.Discard, log); followed <- err }()
		n.stop()
		ended("logs -f", followed)
		_ = log.Close()
		ended("exec", exec)
		ended("attach", attach)
		ended("port-forward", forwarded)
		if _, err := io.ReadAll(conn); err != nil {
			t.Logf("the forwarded connection ends with %v", err)
		}
		_ = conn.Close()
		cancel()
		_ = feed.Close()
		_ = attachFeed.Close()
		close(stop)
		n.run()
		n.nodeReady(v1.ConditionTrue)
		n.unharmed(web, "an agent's restart with streams")
		n.unharmed(cat, "an agent's restart with streams")
	}
	n.delete("web", "cat")
	n.clean()
}
