package containerdtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Debian's sources, beside what the machine has set up.
const debianSources = "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main\n"

// BuildBusybox makes one of Debian's source package at a path, where it is not there yet. The shell of the packaged one keeps variables from programs whose
// names are none for a shell, and has its own programs before those of PATH; that of upstream's image does neither.
func BuildBusybox(ctx context.Context, path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	fmt.Fprintln(os.Stderr, "build busybox")
	dir, err := os.MkdirTemp("", "busybox")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	sources, lists := filepath.Join(dir, "sources.list"), filepath.Join(dir, "lists")
	if err := errors.Join(os.WriteFile(sources, []byte(debianSources), 0o600), os.MkdirAll(filepath.Join(lists, "partial"), 0o755)); err != nil {
		return err
	}
	apt := func(args ...string) error {
		return command(ctx, dir, "apt-get", append([]string{"-o", "Dir::Etc::SourceList=" + sources, "-o", "Dir::Etc::SourceParts=/dev/null",
			"-o", "Dir::State::Lists=" + lists, "-o", "Dir::Cache=" + dir, "-o", "APT::Sandbox::User=root"}, args...)...)
	}
	if err := errors.Join(apt("update"), apt("source", "busybox")); err != nil {
		return fmt.Errorf("%w; apt-get install dpkg-dev where dpkg-source is missing", err)
	}
	folders, err := filepath.Glob(filepath.Join(dir, "busybox-*"))
	if err != nil || len(folders) != 1 {
		return fmt.Errorf("apt-get source busybox left %q, %w", folders, err)
	}
	if err := command(ctx, folders[0], "make", "defconfig"); err != nil {
		return fmt.Errorf("%w; apt-get install build-essential", err)
	}
	config := filepath.Join(folders[0], ".config")
	content, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	text := string(content)
	for _, option := range []string{"CONFIG_STATIC", "CONFIG_FEATURE_DI_ENV_HACK"} { // the second is Debian's own, for such variables
		off := "# " + option + " is not set"
		if !strings.Contains(text, off) {
			return fmt.Errorf("busybox of this Debian has no %s", option)
		}
		text = strings.Replace(text, off, option+"=y", 1)
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	if err := command(ctx, folders[0], "make", "-j2", "busybox"); err != nil {
		return err
	}
	built, err := os.ReadFile(filepath.Join(folders[0], "busybox"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", built, 0o755); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
