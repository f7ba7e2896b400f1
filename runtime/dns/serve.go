package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// Options of New. Informers and Listen are needed.
type Options struct {
	// Informers are of services and EndpointSlices; they must not have been started.
	Informers informers.SharedInformerFactory
	// Listen is HOST:PORT, for UDP and TCP. Port 0 picks a free one.
	Listen string
	// Domain of the cluster, "" = cluster.local.
	Domain string
	// Forward are servers, HOST:PORT, that other names are asked of, one after the other until one answers.
	Forward []string
	Logger  *slog.Logger // nil = discard
}

// Server answers questions. Close frees its sockets when Run is not called.
type Server struct {
	zone    zone
	synced  cache.InformerSynced
	forward []string
	packets net.PacketConn
	streams net.Listener
	asking  chan struct{} // holds as many as may be asked of others at a time
	log     *slog.Logger
}

const (
	// forwardTime is how long one other server has.
	forwardTime = 2 * time.Second
	// forwardMany bounds the questions that wait for others; past it they fail, so that memory is bounded.
	forwardMany = 1000
)

// New listens.
func New(opts Options) (*Server, error) {
	if opts.Domain == "" {
		opts.Domain = "cluster.local"
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	domain := strings.ToLower(dns.Fqdn(opts.Domain))
	if _, ok := dns.IsDomainName(domain); !ok || domain == "." {
		return nil, fmt.Errorf("the cluster's domain %q is none", opts.Domain)
	}
	known, synced, err := newInformed(opts.Informers)
	if err != nil {
		return nil, err
	}
	s := &Server{zone: zone{domain: domain, view: known}, synced: synced, asking: make(chan struct{}, forwardMany), log: opts.Logger}
	if s.packets, s.streams, err = listen(opts.Listen); err != nil {
		return nil, fmt.Errorf("listen for names on %s: %w", opts.Listen, err)
	}
	// A server that asks itself would never have an answer.
	s.forward = slices.DeleteFunc(slices.Clone(opts.Forward), func(other string) bool { return other == s.Addr() })
	return s, nil
}

// listen takes one port of both kinds: with port 0 another one if TCP's is taken.
func listen(address string) (net.PacketConn, net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, nil, err
	}
	for try := 0; ; try++ {
		packets, err := net.ListenPacket("udp", address)
		if err != nil {
			return nil, nil, err
		}
		_, chosen, err := net.SplitHostPort(packets.LocalAddr().String())
		if err != nil {
			return nil, nil, errors.Join(err, packets.Close())
		}
		streams, err := net.Listen("tcp", net.JoinHostPort(host, chosen))
		if err == nil {
			return packets, streams, nil
		}
		err = errors.Join(err, packets.Close())
		if port != "0" || try == 10 {
			return nil, nil, err
		}
	}
}

// Addr is where the server listens, HOST:PORT.
func (s *Server) Addr() string { return s.packets.LocalAddr().String() }

// Close ends it.
func (s *Server) Close() error { return errors.Join(s.packets.Close(), s.streams.Close()) }

// Run answers until the context ends. Until the informers know what there is, questions for the cluster's names fail,
// as "there is none" would be believed.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if err := w.WriteMsg(s.handle(ctx, q, w.RemoteAddr().Network())); err != nil {
			s.log.Debug("answer a question", "to", w.RemoteAddr(), "err", err)
		}
	})
	for _, server := range []*dns.Server{{PacketConn: s.packets, Handler: handler}, {Listener: s.streams, Handler: handler}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		group.Go(func() error {
			if err := server.ActivateAndServe(); err != nil && ctx.Err() == nil {
				return fmt.Errorf("serve names: %w", err)
			}
			return nil
		})
		group.Go(func() error {
			select {
			case <-started:
			case <-ctx.Done():
			}
			<-ctx.Done()
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), forwardTime)
			defer cancel()
			if err := server.ShutdownContext(end); err != nil {
				return s.Close() // it had not begun, or clients hold it
			}
			return nil
		})
	}
	err := group.Wait()
	if closed := s.Close(); err == nil && !errors.Is(closed, net.ErrClosed) {
		err = closed
	}
	return err
}

// handle answers a message that came by udp or tcp.
func (s *Server) handle(ctx context.Context, q *dns.Msg, network string) *dns.Msg {
	size := dns.MaxMsgSize
	if network == "udp" {
		size = dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
	}
	reply := s.reply(ctx, q, network)
	reply.RecursionAvailable = true
	reply.Compress = true
	if opt := q.IsEdns0(); opt != nil && reply.IsEdns0() == nil {
		reply.SetEdns0(max(opt.UDPSize(), dns.MinMsgSize), false)
	}
	reply.Truncate(size)
	return reply
}

func (s *Server) reply(ctx context.Context, q *dns.Msg, network string) *dns.Msg {
	reply := new(dns.Msg).SetReply(q)
	switch {
	case q.Opcode != dns.OpcodeQuery:
		reply.Rcode = dns.RcodeNotImplemented
		return reply
	case len(q.Question) != 1:
		reply.Rcode = dns.RcodeFormatError
		return reply
	case q.Question[0].Qclass != dns.ClassINET:
		reply.Rcode = dns.RcodeRefused
		return reply
	}
	a := s.zone.ask(q.Question[0])
	switch {
	case !a.ours:
		return s.elsewhere(ctx, q, network)
	case !s.synced():
		reply.Rcode = dns.RcodeServerFailure
		return reply
	}
	reply.Authoritative = true
	rand.Shuffle(len(a.records), func(i, j int) { // CNAMEs are alone, or before one other record's
		if a.records[0].Header().Rrtype != dns.TypeCNAME {
			a.records[i], a.records[j] = a.records[j], a.records[i]
		}
	})
	reply.Answer, reply.Extra = a.records, a.extra
	if a.alias != "" {
		followed := q.Copy()
		followed.Question[0].Name = a.alias
		found := s.elsewhere(ctx, followed, network)
		reply.Answer = append(reply.Answer, found.Answer...) // without one, whoever asked has the alias
	}
	if !a.exists {
		reply.Rcode = dns.RcodeNameError
	}
	if len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{s.zone.soa()}
	}
	return reply
}

// elsewhere asks the other servers.
func (s *Server) elsewhere(ctx context.Context, q *dns.Msg, network string) *dns.Msg {
	failed := new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	default:
		return failed
	}
	if len(s.forward) == 0 { // nobody else is there to know
		failed.Rcode = dns.RcodeNameError
		return failed
	}
	client := dns.Client{Net: network, Timeout: forwardTime, UDPSize: dns.MaxMsgSize}
	for _, other := range s.forward {
		out := q.Copy()
		out.Id = dns.Id()
		found, _, err := client.ExchangeContext(ctx, out, other)
		if err != nil || found.Rcode == dns.RcodeServerFailure {
			s.log.Debug("ask another server", "server", other, "name", q.Question[0].Name, "err", err)
			continue
		}
		found.Id = q.Id
		return found
	}
	return failed
}
