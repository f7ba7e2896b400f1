package policy

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
)

// maxSource bytes are read of any source.
const maxSource = 64 << 20

// fetch returns the program of a policy and the name of the file it is from.
func (c *Controller) fetch(p *policyv1alpha1.Policy) (source []byte, file string, err error) {
	s := &p.Spec.Source
	members := 0
	for _, set := range []bool{s.Rego != "", len(s.Wasm) > 0, s.File != "", s.ConfigMap != nil} {
		if set {
			members++
		}
	}
	path := ""
	if s.File != "" && members == 1 {
		if path, err = c.path(s.File); err != nil {
			return nil, "", err
		}
	}
	c.watch(p.Name, path)
	switch {
	case members != 1:
		return nil, "", fmt.Errorf("spec.source has %d of rego, wasm, file and configMap; set exactly one", members)
	case s.Rego != "":
		return []byte(s.Rego), "", nil
	case len(s.Wasm) > 0:
		return s.Wasm, "", nil
	case s.ConfigMap != nil:
		source, err = c.configMap(s.ConfigMap)
		return source, s.ConfigMap.Key, err
	}
	source, err = readFile(path)
	return source, s.File, err
}

func (c *Controller) path(file string) (string, error) {
	switch {
	case filepath.IsAbs(file):
		return filepath.Clean(file), nil
	case c.Dir == "":
		return "", fmt.Errorf("spec.source.file %q is relative, and this server has no policy directory", file)
	}
	return filepath.Join(c.Dir, file), nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSource+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSource {
		return nil, fmt.Errorf("%s: more than %d bytes", path, maxSource)
	}
	return data, nil
}

func (c *Controller) configMap(k *policyv1alpha1.ConfigMapKey) ([]byte, error) {
	if c.ConfigMaps == nil {
		return nil, errors.New("this server takes no sources from config maps")
	}
	m, err := c.ConfigMaps.Lister().ConfigMaps(k.Namespace).Get(k.Name)
	if err != nil {
		return nil, err
	}
	if data, ok := m.BinaryData[k.Key]; ok {
		return data, nil
	}
	if text, ok := m.Data[k.Key]; ok {
		return []byte(text), nil
	}
	return nil, fmt.Errorf("config map %s/%s has no key %q", k.Namespace, k.Name, k.Key)
}

// watch notes the file that a policy is from, "" for none.
func (c *Controller) watch(policy, path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fromFile[policy] != path {
		if path == "" {
			delete(c.fromFile, policy)
		} else {
			c.fromFile[policy] = path
		}
	}
	dirs := map[string]bool{}
	for _, file := range c.fromFile {
		addDirs(dirs, file)
	}
	c.files.watch(dirs)
}
