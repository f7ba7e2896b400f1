package apiserver

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"strings"

	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apiserver/pkg/admission"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/plugin/pkg/admission/serviceaccount"
)

// tokenVolumes is upstream's plugin ServiceAccount, but that the volume with the token has the
// same name in all pods of an account, where upstream's draws one for each: containers
// and volumes of these pods are equal then, and in memory once. A name is a pod's own affair.
type tokenVolumes struct{ *serviceaccount.Plugin }

func registerServiceAccount(plugins *admission.Plugins) {
	plugins.Register(serviceaccount.PluginName, func(io.Reader) (admission.Interface, error) {
		return tokenVolumes{serviceaccount.NewServiceAccount()}, nil
	})
}

// Admit implements admission.MutationInterface.
func (t tokenVolumes) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	pod, ok := a.GetObject().(*api.Pod)
	if !ok {
		return t.Plugin.Admit(ctx, a, o)
	}
	before := len(pod.Spec.Volumes)
	if err := t.Plugin.Admit(ctx, a, o); err != nil {
		return err
	}
	const prefix = serviceaccount.ServiceAccountVolumeName + "-"
	if len(pod.Spec.Volumes) == before+1 && strings.HasPrefix(pod.Spec.Volumes[before].Name, prefix) {
		hash := fnv.New32a()
		io.WriteString(hash, a.GetNamespace()+"/"+pod.Spec.ServiceAccountName)
		renameVolume(&pod.Spec, before, prefix+rand.SafeEncodeString(fmt.Sprintf("%05d", hash.Sum32()%100_000)))
	}
	return nil
}

// renameVolume gives a volume that only mounts name another name. If there is one of
// that name the volume keeps its own.
func renameVolume(spec *api.PodSpec, volume int, name string) {
	for i := range spec.Volumes {
		if spec.Volumes[i].Name == name {
			return
		}
	}
	old := spec.Volumes[volume].Name
	spec.Volumes[volume].Name = name
	for _, containers := range [][]api.Container{spec.InitContainers, spec.Containers} {
		for _, c := range containers {
			for i := range c.VolumeMounts {
				if c.VolumeMounts[i].Name == old {
					c.VolumeMounts[i].Name = name
				}
			}
		}
	}
}
