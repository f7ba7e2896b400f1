package dns

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

// serve runs a server over objects, which asks others for what it does not know. It returns its address.
func serve(t *testing.T, start bool, forward []string, all ...runtime.Object) string {
	t.Helper()
	factory := informers.NewSharedInformerFactory(fake.NewClientset(all...), 0)
	s, err := New(Options{Informers: factory, Listen: "127.0.0.1:0", Forward: forward})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	if start {
		factory.StartWithContext(ctx)
		factory.WaitForCacheSyncWithContext(ctx)
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		factory.Shutdown()
	})
	return s.Addr()
}

// ask sends a question until there is an answer: the socket is there before its reader.
func ask(t *testing.T, network, server string, q *dns.Msg) *dns.Msg {
	t.Helper()
	client := dns.Client{Net: network, Timeout: time.Minute, UDPSize: dns.MinMsgSize}
	reply, _, err := client.Exchange(q, server)
	if err != nil {
		t.Fatalf("ask %s by %s: %v", server, network, err)
	}
	return reply
}

// answered asks until a server answers that others do not keep waiting for too long, as they do on a busy machine.
func answered(t *testing.T, network, server string, q *dns.Msg) *dns.Msg {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		if r := ask(t, network, server, q); r.Rcode != dns.RcodeServerFailure || time.Now().After(deadline) {
			return r
		}
	}
}

func question(name string, kind uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, kind) }

func TestServed(t *testing.T) {
	web := cluster().svcs[0]
	other := elsewhere(t)
	server := serve(t, true, []string{other}, web, cluster().svcs[4], cluster().eps[0])
	for _, network := range []string{"udp", "tcp"} {
		for name, want := range map[string]struct {
			rcode, answers, authority int
			authoritative             bool
		}{
			"web.shop.svc.cluster.local.":  {dns.RcodeSuccess, 1, 0, true},
			"none.shop.svc.cluster.local.": {dns.RcodeNameError, 0, 1, true},
			"shop.svc.cluster.local.":      {dns.RcodeSuccess, 0, 1, true},
			"example.org.":                 {dns.RcodeSuccess, 1, 0, false},
			"away.shop.svc.cluster.local.": {dns.RcodeSuccess, 2, 0, true}, // the alias and where it leads
			"nowhere.org.":                 {dns.RcodeNameError, 0, 0, false},
		} {
			r := answered(t, network, server, question(name, dns.TypeA))
			if r.Rcode != want.rcode || len(r.Answer) != want.answers || len(r.Ns) != want.authority || r.Authoritative != want.authoritative || !r.RecursionAvailable {
				t.Errorf("%s by %s: %v\nwant %+v", name, network, r, want)
			}
		}
	}
	bad := question("web.shop.svc.cluster.local.", dns.TypeA)
	bad.Question = append(bad.Question, bad.Question[0])
	if r := ask(t, "tcp", server, bad); r.Rcode != dns.RcodeFormatError {
		t.Errorf("two questions in one: %v", r)
	}
	chaos := question("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	if r := ask(t, "udp", server, chaos); r.Rcode != dns.RcodeRefused {
		t.Errorf("a question of another class: %v", r)
	}
	update := new(dns.Msg).SetUpdate("cluster.local.")
	if r := ask(t, "udp", server, update); r.Rcode != dns.RcodeNotImplemented {
		t.Errorf("an update: %v", r)
	}
}

// TestTooLong: what does not fit a packet is cut, and whole by TCP or with room for it.
func TestTooLong(t *testing.T) {
	many := cluster()
	slice := many.eps[0]
	for i := range 200 {
		e := slice.Endpoints[1]
		e.Addresses = []string{fmt.Sprintf("10.2.0.%d", i)}
		slice.Endpoints = append(slice.Endpoints, e)
	}
	server := serve(t, true, nil, many.svcs[1], slice)
	q := question("db.shop.svc.cluster.local.", dns.TypeA)
	if r := ask(t, "udp", server, q); !r.Truncated || len(r.Answer) == 0 || len(r.Answer) > 31 {
		t.Errorf("by UDP: truncated %t, %d answers", r.Truncated, len(r.Answer))
	}
	if r := ask(t, "tcp", server, q); r.Truncated || len(r.Answer) != 202 {
		t.Errorf("by TCP: truncated %t, %d answers", r.Truncated, len(r.Answer))
	}
	if r := ask(t, "udp", server, q.SetEdns0(8192, false)); r.Truncated || len(r.Answer) != 202 || r.IsEdns0() == nil {
		t.Errorf("by UDP with room: truncated %t, %d answers", r.Truncated, len(r.Answer))
	}
}

// TestBeforeItKnows: a name of the cluster is not said to be none while nothing is known.
func TestBeforeItKnows(t *testing.T) {
	server := serve(t, false, nil)
	if r := ask(t, "udp", server, question("web.shop.svc.cluster.local.", dns.TypeA)); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("before it knows: %v", r)
	}
}

// TestOthersFail: the next server is asked, and without one that answers the question fails.
func TestOthersFail(t *testing.T) {
	dead, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := dead.LocalAddr().String()
	dead.Close()
	if r := answered(t, "udp", serve(t, true, []string{gone, elsewhere(t)}), question("example.org.", dns.TypeA)); len(r.Answer) != 1 {
		t.Errorf("with one that answers: %v", r)
	}
	if r := ask(t, "udp", serve(t, true, []string{gone}), question("example.org.", dns.TypeA)); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("with none that answers: %v", r)
	}
}

func TestBadOptions(t *testing.T) {
	for _, o := range []Options{{Listen: "127.0.0.1"}, {Listen: "127.0.0.1:0", Domain: "a..b"}, {Listen: "127.0.0.1:0", Domain: "."}} {
		o.Informers = informers.NewSharedInformerFactory(fake.NewClientset(), 0)
		if s, err := New(o); err == nil {
			t.Errorf("%+v was taken", o)
			s.Close()
		}
	}
}

// elsewhere is a server that knows example.org alone.
func elsewhere(t *testing.T) string {
	t.Helper()
	packets, streams, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		if q.Question[0].Name == "example.org." {
			r.Answer = records(dns.Question{Name: "example.org.", Qtype: q.Question[0].Qtype}, []string{"192.0.2.1"})
		} else {
			r.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(r) // who asked may have given up
	})
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: streams, Handler: handler}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		done := make(chan error, 1)
		go func() { done <- s.ActivateAndServe() }()
		select {
		case <-started:
		case err := <-done:
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Shutdown(); err != nil {
				t.Error(err)
			}
			<-done
		})
	}
	return packets.LocalAddr().String()
}

// FuzzHandle: no message that can be read makes the server fail, and every answer can be written.
func FuzzHandle(f *testing.F) {
	for _, q := range []*dns.Msg{question("web.shop.svc.cluster.local.", dns.TypeA), question("7.0.96.10.in-addr.arpa.", dns.TypePTR),
		question("_http._tcp.db.shop.svc.cluster.local.", dns.TypeSRV), question("a.b.ip6.arpa.", dns.TypePTR), question("loop.shop.svc.cluster.local.", dns.TypeANY)} {
		data, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	s := &Server{zone: zone{domain: "cluster.local.", view: cluster()}, synced: func() bool { return true }, asking: make(chan struct{}, 1)}
	f.Fuzz(func(t *testing.T, data []byte) {
		q := new(dns.Msg)
		if q.Unpack(data) != nil {
			return
		}
		r := s.handle(t.Context(), q, "udp")
		if out, err := r.Pack(); err != nil {
			t.Fatalf("an answer that cannot be written: %v\n%v", err, r)
		} else if len(out) > dns.MaxMsgSize {
			t.Fatalf("an answer of %d bytes", len(out))
		}
	})
}
