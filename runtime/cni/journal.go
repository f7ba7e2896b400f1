package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/quaymaster/quaymaster/sdk/backend/network"
)

// entry is an attachment with the configuration that made it, written before the
// first plugin runs and removed after all that it holds was taken back.
type entry struct {
	Attachment *network.Attachment `json:"attachment"`
	Config     json.RawMessage     `json:"config"`
}

func (s *Service) journalDir() string { return filepath.Join(s.opts.StateDir, "attachments") }

func (s *Service) entry(key string) (*entry, error) {
	data, err := os.ReadFile(filepath.Join(s.journalDir(), key))
	if err != nil {
		return nil, err
	}
	e := &entry{}
	if err := json.Unmarshal(data, e); err != nil || e.Attachment == nil {
		return nil, fmt.Errorf("the network's journal: %s: %w", key, errors.Join(err, errors.New("it has no attachment")))
	}
	return e, nil
}

func (s *Service) write(key string, e *entry) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(s.opts.StateDir, ".entry-*")
	if err != nil {
		return fmt.Errorf("the network's journal: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(s.journalDir(), key))
	}
	if err != nil {
		return fmt.Errorf("the network's journal: %w", err)
	}
	return nil
}

// cached is what the plugins answered to a finished Add; nil = it was cut short.
func (s *Service) cached(e *entry) types.Result {
	list, err := parse(e.Config)
	if err != nil {
		return nil
	}
	r, err := s.cni.GetNetworkListCachedResult(list, runtimeConf(e.Attachment))
	if err != nil {
		return nil
	}
	return r
}

// release takes back what an attachment holds: by the plugins, then what they leave when they
// were cut short, the namespace is gone, or its pod has changed its own addresses, from which
// bridge derives the names of rules. On success the entry is gone.
func (s *Service) release(ctx context.Context, key string, e *entry) error {
	list, err := parse(e.Config)
	if err != nil {
		return err
	}
	rt := runtimeConf(e.Attachment)
	whole := s.cached(e) != nil
	if _, err := os.Stat(rt.NetNS); err != nil {
		rt.NetNS, whole = "", false
	}
	addresses := addressesOf(list, rt.ContainerID, rt.IfName)
	if err := s.cni.DelNetworkList(ctx, list, rt); err != nil {
		if whole { // the plugins will be asked again
			return err
		}
		s.log.Info("plugins do not take back what was cut short", "attachment", key, "err", err)
	}
	if err := s.sweep(ctx, list, rt, addresses); err != nil {
		return err
	}
	_ = s.forget(list, rt)
	if err := os.Remove(filepath.Join(s.journalDir(), key)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the network's journal: %w", err)
	}
	return nil
}

// forget removes what libcni keeps of an attachment, which it does itself after a DEL that succeeded.
func (s *Service) forget(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	return os.Remove(filepath.Join(s.opts.StateDir, "cache", "results", fmt.Sprintf("%s-%s-%s", list.Name, rt.ContainerID, rt.IfName)))
}
