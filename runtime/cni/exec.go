package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// pluginExec runs plugins in process groups of their own, so that the end of a call
// also ends the plugins that a plugin runs.
type pluginExec struct {
	version.PluginDecoder
}

func (*pluginExec) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

func (*pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	told := &types.Error{}
	if stdout.Len() > 0 && json.Unmarshal(stdout.Bytes(), told) == nil && told.Msg != "" {
		return nil, told
	}
	var exit *exec.ExitError
	if text := strings.TrimSpace(stderr.String() + stdout.String()); errors.As(err, &exit) && text != "" {
		return nil, &types.Error{Msg: fmt.Sprintf("%v: %s", err, text[:min(len(text), 1024)])}
	}
	return nil, &types.Error{Msg: err.Error()}
}
