package verify

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quaymaster/quaymaster/sdk/backend/network"
)

// NetworkTarget is a network to be tested, and how to look at what it does.
type NetworkTarget struct {
	Network network.NetworkClient
	// NewNamespace makes a network namespace that is bound to a file, RemoveNamespace
	// ends it; removing what is not there is no error.
	NewNamespace, RemoveNamespace func(path string) error
	// Run runs a program in a namespace and returns what it printed.
	Run func(ctx context.Context, netns string, program ...string) (string, error)
}

type networkSuite struct {
	NetworkTarget
	t   T
	ctx context.Context
	dir string
}

// Network runs the suite of networks. It needs root, iproute2 and ping or busybox, and leaves nothing behind.
func Network(t T, target NetworkTarget) {
	for _, part := range []struct {
		name string
		fn   func(*networkSuite)
	}{
		{"Status", (*networkSuite).status},
		{"AddAndDel", (*networkSuite).addAndDel},
		{"AddAgain", (*networkSuite).addAgain},
		{"DelAgain", (*networkSuite).delAgain},
		{"PodsReachEachOther", (*networkSuite).reach},
		{"NamespaceGone", (*networkSuite).namespaceGone},
		{"Check", (*networkSuite).check},
		{"Errors", (*networkSuite).errors},
		{"GC", (*networkSuite).gc},
		{"Parallel", (*networkSuite).parallel},
	} {
		t.Group(part.name, func(t T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			part.fn(&networkSuite{NetworkTarget: target, t: t, ctx: ctx, dir: t.TempDir()})
		})
	}
}

// pod makes a namespace to be attached; all is taken back at the end of the part.
func (s *networkSuite) pod(name string) *network.Attachment {
	s.t.Helper()
	a := &network.Attachment{
		ContainerId: fmt.Sprintf("verify-%s-%d", name, time.Now().UnixNano()), Interface: "eth0", Netns: filepath.Join(s.dir, name),
		PodNamespace: "verify", PodName: name, PodUid: "uid-" + name,
	}
	if err := s.NewNamespace(a.Netns); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := s.Network.Del(ctx, &network.DelRequest{Attachment: a}); err != nil {
			s.t.Errorf("del of %s: %v", name, err)
		}
		if err := s.RemoveNamespace(a.Netns); err != nil {
			s.t.Error(err)
		}
	})
	return a
}

func (s *networkSuite) add(a *network.Attachment) netip.Prefix {
	s.t.Helper()
	r, err := s.Network.Add(s.ctx, &network.AddRequest{Attachment: a})
	if err != nil {
		s.t.Fatalf("add of %s: %v", a.PodName, err)
	}
	if len(r.Addresses) == 0 {
		s.t.Fatalf("add of %s gave no address", a.PodName)
	}
	p, err := netip.ParsePrefix(r.Addresses[0].Address)
	if err != nil {
		s.t.Fatalf("address %q: want one with its prefix, like 10.0.0.7/24", r.Addresses[0].Address)
	}
	return p
}

func (s *networkSuite) del(a *network.Attachment) {
	s.t.Helper()
	if _, err := s.Network.Del(s.ctx, &network.DelRequest{Attachment: a}); err != nil {
		s.t.Fatalf("del of %s: %v", a.PodName, err)
	}
}

// has tells whether a pod's interface has an address.
func (s *networkSuite) has(a *network.Attachment, p netip.Prefix) bool {
	_, err := s.Run(s.ctx, a.Netns, "sh", "-c", fmt.Sprintf("ip -o address show dev %s | grep -qw '%s'", a.Interface, p))
	return err == nil
}

func (s *networkSuite) status() {
	st, err := s.Network.Status(s.ctx, &network.StatusRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	if !st.Ready || st.Network == "" {
		s.t.Errorf("want a network that is ready and has a name for people, have %v", st)
	}
}

func (s *networkSuite) addAndDel() {
	a := s.pod("a")
	p := s.add(a)
	if !s.has(a, p) {
		out, err := s.Run(s.ctx, a.Netns, "ip", "-o", "address")
		s.t.Errorf("%s has no address %s: %v\n%s", a.Interface, p, err, out)
	}
	s.del(a)
	if _, err := s.Run(s.ctx, a.Netns, "ip", "link", "show", "dev", a.Interface); err == nil {
		s.t.Errorf("after del %s is still there", a.Interface)
	}
}

func (s *networkSuite) addAgain() {
	a := s.pod("a")
	if first, again := s.add(a), s.add(a); first != again {
		s.t.Errorf("the same attachment got %s and then %s", first, again)
	}
}

func (s *networkSuite) delAgain() {
	a := s.pod("a")
	s.del(a) // never attached
	s.add(a)
	s.del(a)
	s.del(a)
	s.add(a) // and again
}

func (s *networkSuite) reach() {
	a, b := s.pod("a"), s.pod("b")
	pa, pb := s.add(a), s.add(b)
	if pa.Addr() == pb.Addr() {
		s.t.Fatalf("two pods have the address %s", pa.Addr())
	}
	if out, err := s.Run(s.ctx, a.Netns, "sh", "-c", "command -v ping > /dev/null || alias ping='busybox ping'\nping -c 1 -W 10 "+pb.Addr().String()); err != nil {
		s.t.Errorf("pod a (%s) does not reach pod b (%s): %v\n%s", pa, pb, err, out)
	}
}

func (s *networkSuite) namespaceGone() {
	a := s.pod("a")
	s.add(a)
	if err := s.RemoveNamespace(a.Netns); err != nil {
		s.t.Fatal(err)
	}
	s.del(&network.Attachment{ContainerId: a.ContainerId, Interface: a.Interface})
}

func (s *networkSuite) check() {
	a := s.pod("a")
	if _, err := s.Network.Check(s.ctx, &network.CheckRequest{Attachment: a}); status.Code(err) != codes.NotFound {
		s.t.Errorf("check of what is not attached: %v; want code NotFound", err)
	}
	s.add(a)
	if _, err := s.Network.Check(s.ctx, &network.CheckRequest{Attachment: a}); err != nil {
		s.t.Errorf("check: %v", err)
	}
	if _, err := s.Run(s.ctx, a.Netns, "ip", "address", "flush", "dev", a.Interface); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.Network.Check(s.ctx, &network.CheckRequest{Attachment: a}); err == nil {
		s.t.Error("check of a pod that has lost its address: no error")
	}
}

func (s *networkSuite) errors() {
	for name, a := range map[string]*network.Attachment{
		"nothing":      nil,
		"no container": {Interface: "eth0", Netns: "/n"},
		"no interface": {ContainerId: "a", Netns: "/n"},
		"no namespace": {ContainerId: "a", Interface: "eth0"},
		"a path as ID": {ContainerId: "../../a", Interface: "eth0", Netns: "/n"},
	} {
		if _, err := s.Network.Add(s.ctx, &network.AddRequest{Attachment: a}); status.Code(err) != codes.InvalidArgument {
			s.t.Errorf("add of %s: %v; want code InvalidArgument", name, err)
		}
	}
	gone := &network.Attachment{ContainerId: "verify-gone", Interface: "eth0", Netns: filepath.Join(s.dir, "gone")}
	if _, err := s.Network.Add(s.ctx, &network.AddRequest{Attachment: gone}); err == nil {
		s.t.Error("add to a namespace that does not exist: no error")
	}
	s.del(gone)
}

func (s *networkSuite) gc() {
	a, b := s.pod("a"), s.pod("b")
	pa := s.add(a)
	s.add(b)
	valid := []*network.Attachment{{ContainerId: a.ContainerId, Interface: a.Interface}}
	if _, err := s.Network.GC(s.ctx, &network.GCRequest{Valid: valid}); err != nil {
		s.t.Fatal(err)
	}
	if !s.has(a, pa) {
		s.t.Errorf("the valid pod has lost its address %s", pa)
	}
	if _, err := s.Network.Check(s.ctx, &network.CheckRequest{Attachment: a}); err != nil {
		s.t.Errorf("check of the valid pod: %v", err)
	}
	if _, err := s.Network.Check(s.ctx, &network.CheckRequest{Attachment: b}); status.Code(err) != codes.NotFound {
		s.t.Errorf("check of the collected pod: %v; want code NotFound", err)
	}
	if _, err := os.Stat(b.Netns); err != nil {
		s.t.Errorf("a namespace outside of /run/netns was removed: %v", err)
	}
}

func (s *networkSuite) parallel() {
	const n = 8
	pods := make([]*network.Attachment, n)
	for i := range pods {
		pods[i] = s.pod(fmt.Sprint("p", i))
	}
	answers, errs := make([]*network.AddResponse, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range pods {
		wg.Go(func() { answers[i], errs[i] = s.Network.Add(s.ctx, &network.AddRequest{Attachment: pods[i]}) })
	}
	wg.Wait()
	var seen []string
	for i, r := range answers {
		if errs[i] != nil || len(r.Addresses) == 0 {
			s.t.Errorf("pod %d: %v, %v", i, r, errs[i])
			continue
		}
		if slices.Contains(seen, r.Addresses[0].Address) {
			s.t.Errorf("two pods have the address %s", r.Addresses[0].Address)
		}
		seen = append(seen, r.Addresses[0].Address)
	}
}
