package policy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/record"

	"github.com/quaymaster/quaymaster/core/api"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
)

// What marks the objects that are from the directory.
const (
	LabelManaged   = "policy.quaymaster.dev/managed-by"
	ManagedByFiles = "policy-directory"
	AnnotationFile = "policy.quaymaster.dev/file"
)

const (
	maxManifestFile = 16 << 20
	// grace before the objects of a file that went away are deleted: editors and
	// volume mounts replace files by way of a moment without them.
	grace = 300 * time.Millisecond
	// retry after an error of the server.
	retry = 500 * time.Millisecond
)

// SyncerOptions of a Syncer.
type SyncerOptions struct {
	// Dir is watched: its *.yaml, *.yml and *.json files hold one or more
	// Policy and SchedulerProfile objects each.
	Dir      string
	Client   *api.Client
	Recorder record.EventRecorder // nil: no events
	Logger   *slog.Logger         // nil: discard
}

// Syncer creates, updates and deletes objects as the files of a directory say.
// A file that cannot be read leaves its objects as they are. Objects that are
// not from the directory are never touched.
type Syncer struct {
	SyncerOptions
	synced  chan struct{}
	reports map[string]string    // last error by file
	written map[string]written   // what the server made of the last write, by kind and name
	missing map[string]time.Time // since when no file holds an object
}

// NewSyncer returns a syncer. Run it.
func NewSyncer(options SyncerOptions) *Syncer {
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	return &Syncer{
		SyncerOptions: options,
		synced:        make(chan struct{}),
		reports:       map[string]string{},
		written:       map[string]written{},
		missing:       map[string]time.Time{},
	}
}

// Synced is closed when every file there was at the start of Run has been
// brought to the server, or found wrong.
func (s *Syncer) Synced() <-chan struct{} { return s.synced }

// Run works until ctx ends. It is called once.
func (s *Syncer) Run(ctx context.Context) error {
	w := newWatcher(s.Logger)
	defer w.close()
	first := true
	sync := func() time.Duration {
		dirs := map[string]bool{s.Dir: true}
		err := s.sync(ctx, dirs)
		w.watch(dirs)
		if ctx.Err() != nil {
			return 0
		}
		s.report("", err)
		var unanswered *serverError
		if first && !errors.As(err, &unanswered) {
			first = false
			close(s.synced)
		}
		if err != nil {
			return retry
		}
		if len(s.missing) > 0 {
			return grace
		}
		return 0
	}
	w.watch(map[string]bool{s.Dir: true}) // before the first look, so that nothing is missed
	w.run(ctx, sync(), quiet, poll, sync)
	return nil
}

// serverError says that the server did not answer, so that nothing was done.
type serverError struct{ err error }

func (e *serverError) Error() string { return "list objects of the policy directory: " + e.err.Error() }
func (e *serverError) Unwrap() error { return e.err }

// report logs an error of a file, "" for the directory, when it is news.
func (s *Syncer) report(file string, err error) bool {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if s.reports[file] == text {
		return false
	}
	s.reports[file] = text
	if err != nil {
		s.Logger.Warn("policy directory", "dir", s.Dir, "file", file, "error", err)
	}
	return err != nil
}

// entry is an object of a file.
type entry struct {
	file   string
	object object
}

type object interface {
	runtime.Object
	metav1.Object
}

func key(o object) string {
	if _, ok := o.(*policyv1alpha1.Policy); ok {
		return "Policy/" + o.GetName()
	}
	return "SchedulerProfile/" + o.GetName()
}

// sync makes the objects equal to the files once, and adds to dirs what else
// is to be watched.
func (s *Syncer) sync(ctx context.Context, dirs map[string]bool) error {
	wanted, broken, err := s.read(dirs)
	if err != nil {
		return err
	}
	kinds := []kind{policyKind(s.Client), profileKind(s.Client)}
	missed := s.missing
	s.missing = map[string]time.Time{}
	var errs []error
	for _, k := range kinds {
		owned, err := k.list(ctx)
		if err != nil {
			return &serverError{err}
		}
		for _, o := range owned {
			file := o.GetAnnotations()[AnnotationFile]
			if problem, ok := broken[file]; ok {
				if s.report(key(o), problem) && s.Recorder != nil {
					s.Recorder.Event(o, corev1.EventTypeWarning, "PolicyFileInvalid", problem.Error())
				}
				continue
			}
			delete(s.reports, key(o))
			if _, ok := wanted[key(o)]; ok {
				continue
			}
			since, ok := missed[key(o)]
			if !ok {
				since = time.Now()
			}
			if time.Since(since) < grace {
				s.missing[key(o)] = since
				continue
			}
			if err := k.delete(ctx, o); err != nil && !apierrors.IsNotFound(err) {
				errs = append(errs, fmt.Errorf("delete %s: %w", key(o), err))
				continue
			}
			delete(s.written, key(o))
			s.Logger.Info("deleted with its file", "object", key(o), "file", file)
		}
		for name, e := range wanted {
			if !k.is(e.object) {
				continue
			}
			i := slices.IndexFunc(owned, func(o object) bool { return key(o) == name })
			var live object
			if i >= 0 {
				live = owned[i]
			}
			if err := s.write(ctx, k, e, live); err != nil {
				errs = append(errs, fmt.Errorf("%s: %s: %w", e.file, name, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (s *Syncer) write(ctx context.Context, k kind, e entry, live object) error {
	name := key(e.object)
	if live == nil {
		created, err := k.create(ctx, e.object)
		if apierrors.IsAlreadyExists(err) {
			return errors.New("an object of that name exists and is not from the policy directory; delete or rename one of them")
		}
		if err != nil {
			return err
		}
		s.written[name] = written{asked: e.object, got: created}
		s.Logger.Info("created from a file", "object", name, "file", e.file)
		return nil
	}
	if live.GetAnnotations()[AnnotationFile] == e.file {
		if k.equal(live, e.object) {
			return nil
		}
		// the server may have defaulted what the file leaves out
		if made, ok := s.written[name]; ok && k.equal(made.asked, e.object) && k.equal(made.got, live) {
			return nil
		}
	}
	next := live.DeepCopyObject().(object)
	k.take(next, e.object)
	mark(next, e.object.GetLabels(), e.object.GetAnnotations())
	got, err := k.update(ctx, next)
	if err != nil {
		return err
	}
	s.written[name] = written{asked: e.object, got: got}
	s.Logger.Info("updated from a file", "object", name, "file", e.file)
	return nil
}

// written is what was asked for and what the server made of it.
type written struct{ asked, got object }

func mark(o object, labels, annotations map[string]string) {
	merged := o.GetLabels()
	if merged == nil {
		merged = map[string]string{}
	}
	for k, v := range labels {
		merged[k] = v
	}
	o.SetLabels(merged)
	merged = o.GetAnnotations()
	if merged == nil {
		merged = map[string]string{}
	}
	for k, v := range annotations {
		merged[k] = v
	}
	o.SetAnnotations(merged)
}

// read returns the objects of all files by key, and the errors of files.
func (s *Syncer) read(dirs map[string]bool) (wanted map[string]entry, broken map[string]error, err error) {
	files, err := os.ReadDir(s.Dir)
	if err != nil {
		return nil, nil, err
	}
	wanted, broken = map[string]entry{}, map[string]error{}
	for _, f := range files {
		name := f.Name()
		if strings.HasPrefix(name, ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			continue
		}
		path := filepath.Join(s.Dir, name)
		if f.Type()&fs.ModeSymlink != 0 {
			addDirs(dirs, path)
		}
		objects, err := s.decode(path)
		if errors.Is(err, fs.ErrNotExist) && f.Type()&fs.ModeSymlink == 0 {
			continue // deleted since the directory was read
		}
		for _, o := range objects {
			if first, ok := wanted[key(o)]; ok && err == nil {
				err = fmt.Errorf("%s: %s is in %s already", name, key(o), first.file)
			}
		}
		s.report(name, err)
		if err != nil {
			broken[name] = err
			continue
		}
		for _, o := range objects {
			mark(o, map[string]string{LabelManaged: ManagedByFiles}, map[string]string{AnnotationFile: name})
			wanted[key(o)] = entry{name, o}
		}
	}
	return wanted, broken, nil
}

// decode reads all objects of a file; one that is wrong spoils the file.
func (s *Syncer) decode(path string) ([]object, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return decode(filepath.Base(path), data)
}
