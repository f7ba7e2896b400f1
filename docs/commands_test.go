package docs_test

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// readme lists the README's two commands. They take the whole suite along, so
// it is .ci/run that runs them, to the letter.
var readme = []string{
	"go run ./cmd/quaymaster demo",
	"go run github.com/go-task/task/v3/cmd/task@v3.39.2 test",
}

// block is one fenced code block of the language sh.
type block struct {
	file string
	line int
	text string
}

func blocks(t *testing.T) []block {
	t.Helper()
	var all []block
	for _, root := range []string{"../README.md", "."} {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".md") {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			var current *block
			for i, line := range strings.Split(string(data), "\n") {
				switch {
				case current == nil && line == "```sh":
					current = &block{file: path, line: i + 2}
				case current != nil && line == "```":
					all = append(all, *current)
					current = nil
				case current != nil:
					current.text += line + "\n"
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(all) < 3 {
		t.Fatalf("found %d blocks of commands: the check would mean nothing", len(all))
	}
	return all
}

func TestCommandsRun(t *testing.T) {
	ci, err := os.ReadFile("../.ci/run")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks(t) {
		text := strings.TrimSpace(b.text)
		long := false
		for _, command := range readme {
			long = long || text == command
		}
		if long {
			if !strings.Contains(string(ci), "\n"+text+"\n") {
				t.Errorf("%s:%d: .ci/run does not run %q", b.file, b.line, text)
			}
			continue
		}
		t.Run(filepath.Base(b.file)+":"+strings.SplitN(text, "\n", 2)[0], func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			command := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", b.text)
			command.Dir = ".."
			if out, err := command.CombinedOutput(); err != nil {
				t.Errorf("%s:%d: %v\n%s\n%s", b.file, b.line, err, text, out)
			}
		})
	}
}
