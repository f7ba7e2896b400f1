package core_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core"
)

// leaks fails the test when a goroutine that it started is left. Upstream starts
// some once in a process: the first engine, which has ended when leaks returns.
func leaks(t *testing.T) {
	t.Helper()
	if err := start(t, core.Options{}).Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	options := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if err := goleak.Find(options,
			goleak.IgnoreAnyFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
			goleak.IgnoreAnyFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		); err != nil {
			t.Error(err)
		}
	})
}

func namespaces(ctx context.Context, e *core.Engine) ([]string, error) {
	list, err := e.Client().CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, namespace := range list.Items {
		names = append(names, namespace.Name)
	}
	return names, nil
}

func TestTwentyEnginesShareNothing(t *testing.T) {
	leaks(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			begin := time.Now()
			e, err := core.New(core.Options{})
			if err != nil {
				t.Error(err)
				return
			}
			defer func() {
				if err := e.Close(t.Context()); err != nil {
					t.Errorf("close engine %d: %v", i, err)
				}
			}()
			if err := e.Start(t.Context()); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-e.Ready():
			case <-e.Done():
				t.Errorf("engine %d ended: %v", i, e.Close(t.Context()))
				return
			}
			t.Logf("engine %d ready after %s, among 20", i, time.Since(begin).Round(time.Millisecond))
			mine := fmt.Sprintf("only-in-%d", i)
			if _, err := e.Client().CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: mine}}, metav1.CreateOptions{}); err != nil {
				t.Error(err)
				return
			}
			names, err := namespaces(t.Context(), e)
			if err != nil {
				t.Error(err)
			}
			for _, name := range names {
				if strings.HasPrefix(name, "only-in-") && name != mine {
					t.Errorf("engine %d sees %s", i, name)
				}
			}
		})
	}
	wg.Wait()
}

func TestEngineLifeIsOrderly(t *testing.T) {
	leaks(t)
	e, err := core.New(core.Options{DataDir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // never started, and closed twice
		if err := e.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Start(t.Context()); err == nil {
		t.Error("an engine that was closed could be started")
	}

	ctx, cancel := context.WithCancel(t.Context())
	e, err = core.New(core.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := e.Start(ctx); err == nil {
		t.Error("an engine could be started twice")
	}
	<-e.Ready()
	cancel() // ends it as Close does
	<-e.Done()
	if err := e.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := namespaces(t.Context(), e); err == nil {
		t.Error("a closed engine answers")
	}
}

func TestDataOutlivesTheEngine(t *testing.T) {
	dir := t.TempDir()
	first := start(t, core.Options{DataDir: dir, Listen: "127.0.0.1:0"})
	created, err := first.Client().CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if *onEtcd {
		// Several may share one: no directory is locked.
	} else if _, err := core.New(core.Options{DataDir: dir}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a second engine on the directory: %v, want an error that names it", err)
	}
	if _, err := core.New(core.Options{Listen: first.Address().String()}); err == nil || !strings.Contains(err.Error(), "choose another address") {
		t.Errorf("a second engine on the port: %v", err)
	}
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(filepath.Join(dir, "pki"), func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}

	second := start(t, core.Options{DataDir: dir})
	kept, err := second.Client().CoreV1().ConfigMaps("default").Get(t.Context(), "kept", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if kept.UID != created.UID || kept.ResourceVersion != created.ResourceVersion {
		t.Errorf("kept %s at %s, created %s at %s", kept.UID, kept.ResourceVersion, created.UID, created.ResourceVersion)
	}
	if _, err := second.Client().CoreV1().ConfigMaps("default").Get(t.Context(), "never", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("get of what is not there: %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, test := range []struct {
		options core.Options
		want    string
	}{
		{core.Options{Listen: "6443"}, `option Listen: "6443" is not host:port`},
		{core.Options{History: -1}, "option History: -1ns is negative"},
		{core.Options{Nodes: []core.Node{{}}}, "option Nodes[0]: a node needs a name"},
		{core.Options{Nodes: append(core.Nodes("n", 1), core.Nodes("n", 1)...)}, `option Nodes[1]: there are two nodes "n01"`},
		{core.Options{Nodes: []core.Node{{Name: "n", Runtime: "docker"}}}, `node "n" has runtime "docker"`},
		{core.Options{Nodes: []core.Node{{Name: "n", Runtime: core.RuntimeWasm}}}, `needs DataDir`},
	} {
		if e, err := core.New(test.options); err == nil {
			t.Errorf("%+v was accepted", test.options)
			if err := e.Close(t.Context()); err != nil {
				t.Error(err)
			}
		} else if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v\nwant %q", test.options, err, test.want)
		}
	}
}
