package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

// kubectlEnv makes the test binary upstream's kubectl.
const kubectlEnv = "QUAYMASTER_TEST_KUBECTL"

func becomeKubectl() {
	if os.Getenv(kubectlEnv) == "" {
		return
	}
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err) // ends the process
	}
	os.Exit(0)
}

// kubectl is a process of it for the node's cluster, which ends with ctx.
func (n *node) kubectl(ctx context.Context, home string, args ...string) *exec.Cmd {
	n.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	kubeconfig, err := n.engine.Kubeconfig()
	if err != nil {
		n.t.Fatal(err)
	}
	n.write(filepath.Join(home, "kubeconfig"), string(kubeconfig), 0o600)
	c := exec.CommandContext(ctx, exe, append([]string{"--kubeconfig", filepath.Join(home, "kubeconfig")}, args...)...)
	c.Env = append(os.Environ(), kubectlEnv+"=yes", "HOME="+home)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
}

// kubectls runs the verbs of kubectl that need a container on the pods web and cat.
func (n *node) kubectls(t *testing.T) {
	home := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	run := func(stdin string, args ...string) (string, error) {
		c := n.kubectl(ctx, home, args...)
		var out, errs bytes.Buffer
		c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), &out, &errs
		if err := c.Run(); err != nil {
			return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, errs.String())
		}
		return out.String(), nil
	}
	if out, err := run("hello", "exec", "-i", "web", "--", "sh", "-c", "cat; echo; exit 0"); out != "hello\n" || err != nil {
		t.Errorf("exec: %q, %v", out, err)
	}
	if _, err := run("", "exec", "web", "--", "sh", "-c", "exit 7"); err == nil || !strings.Contains(err.Error(), "command terminated with exit code 7") {
		t.Errorf("exec of a command that fails: %v", err)
	}

	n.write(filepath.Join(home, "folder", "file"), strings.Repeat("0123456789abcdef", 1<<16), 0o600)
	for _, args := range [][]string{{"cp", filepath.Join(home, "folder"), "web:/tmp/copied"}, {"cp", "web:/tmp/copied", filepath.Join(home, "back")}} {
		if _, err := run("", args...); err != nil {
			t.Fatal(err)
		}
	}
	was, err1 := os.ReadFile(filepath.Join(home, "folder", "file"))
	if is, err := os.ReadFile(filepath.Join(home, "back", "file")); err != nil || err1 != nil || !bytes.Equal(was, is) {
		t.Errorf("cp brings back %d bytes of %d: %v, %v", len(is), len(was), err, err1)
	}

	// A container for debugging sees its target's processes; its log is what kubectl logs shows.
	if _, err := run("", "debug", "web", "--image", n.daemon.Busybox, "--target", "c", "-c", "look", "--", "sh", "-c", "echo first; ps"); err != nil {
		t.Fatal(err)
	}
	n.until("web", "has no ended container for debugging", func(p *v1.Pod) bool {
		return len(p.Status.EphemeralContainerStatuses) == 1 && p.Status.EphemeralContainerStatuses[0].State.Terminated != nil
	})
	if out, err := run("", "logs", "web", "-c", "look", "--since", "1h"); err != nil || !strings.HasPrefix(out, "first\n") || !strings.Contains(out, "httpd -p 8080") {
		t.Errorf("logs: %q, %v", out, err)
	}
	if out, err := run("", "logs", "web", "-c", "look", "--tail", "1"); err != nil || strings.Count(out, "\n") != 1 {
		t.Errorf("the last line of the log: %q, %v", out, err)
	}
	eventually(t, "kubectl top to show node and pod", func(context.Context) (bool, error) {
		node, err1 := run("", "top", "node", "n1")
		pod, err2 := run("", "top", "pod", "web")
		return err1 == nil && err2 == nil && strings.Contains(node, "n1 ") && strings.Contains(pod, "web "), nil
	})

	// What goes on until it is ended.
	begin := func(args ...string) (io.WriteCloser, *bufio.Reader, func()) {
		c := n.kubectl(ctx, home, args...)
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return in, bufio.NewReader(out), func() { _ = c.Process.Kill(); _ = c.Wait() }
	}
	in, out, end := begin("attach", "-i", "cat")
	_, err := io.WriteString(in, "attached\n")
	if line, readErr := out.ReadString('\n'); line != "attached\n" || err != nil || readErr != nil {
		t.Errorf("attach: %q, %v, %v", line, err, readErr)
	}
	end()
	_, out, end = begin("port-forward", "pod/web", ":8080")
	line, err := out.ReadString('\n')
	if port := regexp.MustCompile(`127\.0\.0\.1:(\d+) -> 8080`).FindStringSubmatch(line); port == nil {
		t.Errorf("port-forward: %q, %v", line, err)
	} else {
		var number uint16
		_, _ = fmt.Sscan(port[1], &number)
		if page, err := fetch(number); page != "hello\n" || err != nil {
			t.Errorf("through kubectl port-forward: %q, %v", page, err)
		}
	}
	end()
}
