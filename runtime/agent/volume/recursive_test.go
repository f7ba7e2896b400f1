package volume_test

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/runtime/agent/volume"
)

func TestRecursiveReadOnly(t *testing.T) {
	m := volume.New(volume.Options{Dir: t.TempDir(), Clock: clock.RealClock{}})
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}, Spec: v1.PodSpec{
		Volumes: []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}},
	}}
	const refused = `volume "v" requested recursive read-only mode, but it is not `
	for name, test := range map[string]struct {
		mode        v1.RecursiveReadOnlyMode
		writable    bool
		propagation v1.MountPropagationMode
		supported   bool
		want        bool
		err         string
	}{
		"not asked for":                {supported: true},
		"not asked for, writable":      {writable: true, supported: true},
		"disabled":                     {mode: "Disabled", supported: true},
		"disabled, writable":           {mode: "Disabled", writable: true, supported: true},
		"if possible":                  {mode: "IfPossible", supported: true, want: true},
		"if possible, no propagation":  {mode: "IfPossible", propagation: "None", supported: true, want: true},
		"if possible, which it is not": {mode: "IfPossible"},
		"if possible, writable":        {mode: "IfPossible", writable: true, err: refused + "read-only"},
		"enabled":                      {mode: "Enabled", supported: true, want: true},
		"enabled, not supported":       {mode: "Enabled", err: refused + "supported by the runtime"},
		"enabled, writable":            {mode: "Enabled", writable: true, supported: true, err: refused + "read-only"},
		"enabled, propagated":          {mode: "Enabled", propagation: "HostToContainer", supported: true, err: refused + `compatible with propagation "HostToContainer"`},
		"if possible, both ways":       {mode: "IfPossible", propagation: "Bidirectional", err: refused + `compatible with propagation "Bidirectional"`},
		"unknown":                      {mode: "Perhaps", supported: true, err: `unknown recursive read-only mode "Perhaps"`},
	} {
		t.Run(name, func(t *testing.T) {
			vm := v1.VolumeMount{Name: "v", MountPath: "/v", ReadOnly: !test.writable}
			if test.mode != "" {
				vm.RecursiveReadOnly = ptr.To(test.mode)
			}
			if test.propagation != "" {
				vm.MountPropagation = ptr.To(test.propagation)
			}
			text := func(err error) string {
				if err == nil {
					return ""
				}
				return err.Error()
			}
			if got, err := volume.RecursiveReadOnly(&vm, test.supported); got != test.want || text(err) != test.err {
				t.Errorf("%v, %v; want %v, %q", got, err, test.want, test.err)
			}
			want := test.err
			if want != "" {
				want = "failed to resolve recursive read-only mode: " + want
			}
			c := &v1.Container{Name: "c", VolumeMounts: []v1.VolumeMount{vm}}
			mounts, err := m.Mounts(pod, c, test.supported, same)
			if text(err) != want {
				t.Errorf("mounts: %v, want %q", err, want)
			} else if err == nil && (len(mounts) != 1 || mounts[0].RecursiveReadOnly != test.want || mounts[0].Readonly == test.writable) {
				t.Errorf("mounts: %v", mounts)
			}
			if err := volume.Check(c, test.supported, same); text(err) != want {
				t.Errorf("check: %v, want %q", err, want)
			}
		})
	}
}
