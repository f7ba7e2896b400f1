package storage

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
)

// TestCrash ends a writer process with SIGKILL at random points and looks at
// what it left. The writer tells every acknowledged change down a pipe, whose
// content outlives it:
//
//	put|delete KEY REVISION TOKEN
//
// A token is written once in the life of the directory. Counter keys hold a
// number that each compare-and-set raises by one. Gangs are written whole.
func TestCrash(t *testing.T) {
	if testing.Short() && *crashRounds > 3 {
		*crashRounds = 3
	}
	dir := t.TempDir()
	model := crashModel{state: map[string]*clientv3.Event{}, tokens: map[string]int64{}, base: 1}
	total := 0
	for round := range *crashRounds {
		acks := runCrashWriter(t, dir, round)
		total += len(acks)
		s, err := Open(Options{Dir: dir, Retention: -1, MaxHistory: -1, replay: 16})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		model.check(t, s, acks)
		if backup, err := os.Open(dir + ".backup"); err != nil {
			t.Error(err)
		} else if _, err := Verify(backup); err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("round %d: the backup that was cut short: %v", round, err)
		} else if err := backup.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Fatalf("round %d: close: %v", round, err)
		}
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	if total == 0 {
		t.Fatal("nothing was acknowledged in any round")
	}
	t.Logf("%d rounds, %d acknowledged changes, revision %d", *crashRounds, total, model.base)
}

const crashChild = "QUAYMASTER_STORAGE_CRASH"

type crashAck struct {
	put   bool
	key   string
	rev   int64
	token string
}

// runCrashWriter kills the child after a random number of acknowledgements and
// returns them all.
func runCrashWriter(t *testing.T, dir string, round int) (acks []crashAck) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashChild+"="+dir, fmt.Sprintf("%s_ROUND=%d", crashChild, round))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killAt := rand.IntN(3000)
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); n++ {
		if n == killAt {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		f := strings.Fields(lines.Text())
		if len(f) == 1 && f[0] == "open" {
			continue
		}
		if len(f) != 4 {
			t.Fatalf("the writer says %q", lines.Text())
		}
		rev, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		acks = append(acks, crashAck{f[0] == "put", f[1], rev, f[3]})
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the writer ended by itself: %v", err)
	}
	return acks
}

// crashModel is what the directory must hold.
type crashModel struct {
	base   int64 // compacted and checked up to here
	state  map[string]*clientv3.Event
	tokens map[string]int64
}

func (m *crashModel) check(t *testing.T, s *Store, acks []crashAck) {
	now := s.Revision()
	events := replayAll(t, s, m.base+1, now)
	byRev := map[int64]*clientv3.Event{}
	gangs := map[string][]int64{}
	last := m.base
	for _, e := range events {
		key, rev := string(e.Kv.Key), e.Kv.ModRevision
		if rev <= last {
			t.Errorf("revision %d after %d", rev, last)
		}
		last, byRev[rev] = rev, e
		if old := m.state[key]; (old == nil) != (e.PrevKv == nil) || old != nil && old.Kv.ModRevision != e.PrevKv.ModRevision {
			t.Errorf("%s at %d: previous state %v, not %v", key, rev, e.PrevKv, old)
		}
		if e.Type == clientv3.EventTypeDelete {
			delete(m.state, key)
			continue
		}
		token, number := crashValue(e.Kv.Value)
		if strings.HasPrefix(key, "/gang/") {
			gangs[token] = append(gangs[token], rev)
		} else if at, twice := m.tokens[token]; twice {
			t.Errorf("%s was applied at %d and %d", token, at, rev)
		}
		m.tokens[token] = rev
		if strings.HasPrefix(key, "/counter/") {
			var before int
			if e.PrevKv != nil {
				_, before = crashValue(e.PrevKv.Value)
			}
			if number != before+1 {
				t.Errorf("%s goes from %d to %d at %d", key, before, number, rev)
			}
		}
		m.state[key] = e
	}
	for token, revs := range gangs {
		if len(revs) != gangSize || revs[gangSize-1]-revs[0] != gangSize-1 {
			t.Errorf("gang %s is at %v", token, revs)
		}
	}
	for _, a := range acks {
		e := byRev[a.rev]
		switch {
		case e == nil || string(e.Kv.Key) != a.key:
			t.Errorf("acknowledged %+v is lost, there is %v", a, e)
		case a.put != (e.Type == clientv3.EventTypePut):
			t.Errorf("acknowledged %+v is a %v", a, e.Type)
		case a.put:
			if token, _ := crashValue(e.Kv.Value); token != a.token {
				t.Errorf("acknowledged %+v has %s", a, token)
			}
		}
	}
	checkWatches(t, s, m.base, events)
	r, err := s.Etcd().KV.Get(context.Background(), "\x00", clientv3.WithFromKey())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Kvs) != len(m.state) {
		t.Errorf("%d keys, not %d", len(r.Kvs), len(m.state))
	}
	for _, kv := range r.Kvs {
		if e := m.state[string(kv.Key)]; e == nil || e.Kv.ModRevision != kv.ModRevision || string(e.Kv.Value) != string(kv.Value) {
			t.Errorf("%s is at %d, not %v", kv.Key, kv.ModRevision, e)
		}
	}
	if now > m.base {
		if _, err := s.Etcd().Compact(context.Background(), now); err != nil {
			t.Fatal(err)
		}
	}
	m.base = now
}

// checkWatches watches from the revision before each event, and so from each
// that was acknowledged, and wants the events that follow. What a watch sends
// first, it reads from history as one that begins where that ends: so each is read
// as far as its first response, and a few to their end.
func checkWatches(t *testing.T, s *Store, base int64, events []*clientv3.Event) {
	t.Helper()
	const readers, whole = 8, 4
	var next atomic.Int64
	var wait sync.WaitGroup
	for range readers {
		wait.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(events) && !t.Failed(); i = int(next.Add(1)) - 1 {
				after := base
				if i > 0 {
					after = events[i-1].Kv.ModRevision
				}
				var got []*clientv3.Event
				if i%(len(events)/whole+1) == 0 {
					got = replayAll(t, s, after+1, s.Revision())
					if len(got) != len(events)-i {
						t.Errorf("a watch after %d has %d events, not %d", after, len(got), len(events)-i)
						return
					}
				} else {
					got = replayFirst(t, s, after+1)
				}
				if len(got) == 0 || len(got) > len(events)-i || !slices.EqualFunc(got, events[i:i+len(got)], sameEvent) {
					t.Errorf("a watch after %d differs from the whole", after)
					return
				}
			}
		})
	}
	wait.Wait()
}

// replayFirst gives the events of the first response of a watch of all keys.
func replayFirst(t testing.TB, s *Store, from int64) []*clientv3.Event {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, ok := <-s.Etcd().Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(from), clientv3.WithPrevKV())
	if !ok || r.Err() != nil {
		t.Errorf("watch from %d: %v", from, r.Err())
	}
	return r.Events
}

func sameEvent(a, b *clientv3.Event) bool {
	return a.Type == b.Type && a.Kv.ModRevision == b.Kv.ModRevision && string(a.Kv.Key) == string(b.Kv.Key) &&
		string(a.Kv.Value) == string(b.Kv.Value) && (a.PrevKv == nil) == (b.PrevKv == nil)
}

// replayAll gives the events of all keys from one revision to another.
func replayAll(t testing.TB, s *Store, from, to int64) (events []*clientv3.Event) {
	t.Helper()
	if from > to {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w := s.Etcd().Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(from), clientv3.WithPrevKV())
	if err := s.Etcd().RequestProgress(ctx); err != nil {
		t.Error(err)
		return nil
	}
	for r := range w {
		if r.Err() != nil {
			t.Errorf("watch from %d: %v", from, r.Err())
			return events
		}
		events = append(events, r.Events...)
		if r.IsProgressNotify() && r.Header.Revision >= to {
			return events
		}
	}
	t.Errorf("the watch from %d ended before %d", from, to)
	return events
}

const gangSize = 5

func crashValue(value []byte) (token string, number int) {
	f := strings.Fields(string(value))
	number, _ = strconv.Atoi(f[1])
	return f[0], number
}

// crashWriter is the child: clients that write until they are killed.
func crashWriter(dir string) {
	s, err := Open(Options{Dir: dir, Retention: -1, MaxHistory: -1, journal: 64 << 10})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("open")
	var clients sync.WaitGroup
	clients.Go(func() {
		for since := int64(0); ; {
			if since, err = crashBackup(s, dir, since); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	})
	for i := range 24 {
		clients.Go(func() {
			c := crashClient{s: s, name: fmt.Sprintf("%s.%d", os.Getenv(crashChild+"_ROUND"), i), own: strconv.Itoa(i)}
			for {
				if err := c.step(); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
			}
		})
	}
	clients.Wait()
}

// crashBackup makes full backups and increments by turns. The last one may be
// cut short.
func crashBackup(s *Store, dir string, since int64) (rev int64, err error) {
	file, err := os.Create(dir + ".backup")
	if err != nil {
		return 0, err
	}
	rev, err = s.Backup(context.Background(), file, since)
	if since > 0 {
		rev = 0
	}
	return rev, errors.Join(err, file.Close())
}

type crashClient struct {
	s         *Store
	name, own string
	n         int
}

// value is a token, a number and padding: now and then enough for the value log.
func (c *crashClient) value(number int) (token string, value []byte) {
	c.n++
	token = fmt.Sprintf("%s.%d", c.name, c.n)
	size := rand.IntN(2000)
	if rand.IntN(200) == 0 {
		size = inline + rand.IntN(inline/4)
	}
	return token, fmt.Appendf(nil, "%s %d %s", token, number, strings.Repeat("x", size))
}

func (c *crashClient) now(key string) (rev int64, number int, err error) {
	r, err := c.s.Etcd().Kubernetes.Get(context.Background(), key, kubernetes.GetOptions{})
	if err != nil || r.KV == nil {
		return 0, 0, err
	}
	_, number = crashValue(r.KV.Value)
	return r.KV.ModRevision, number, nil
}

func (c *crashClient) step() error {
	ctx := context.Background()
	switch rand.IntN(5) {
	case 0: // a counter that all share
		key := fmt.Sprintf("/counter/%d", rand.IntN(3))
		rev, number, err := c.now(key)
		if err != nil {
			return err
		}
		token, value := c.value(number + 1)
		r := c.s.Commit(ctx, []Write{{Key: key, Value: value, Expect: rev}})[0]
		if conflict := (*ConflictError)(nil); errors.As(r.Err, &conflict) {
			return nil
		}
		return c.ack(true, key, r.Revision, token, r.Err)
	case 1: // a gang
		writes := make([]Write, gangSize)
		token, value := c.value(0)
		for i := range writes {
			writes[i] = Write{Key: fmt.Sprintf("/gang/%s/%d", c.own, i), Value: value}
			var err error
			if writes[i].Expect, _, err = c.now(writes[i].Key); err != nil {
				return err
			}
		}
		revs, err := c.s.CommitAll(ctx, writes)
		for i := range revs {
			err = errors.Join(err, c.ack(true, writes[i].Key, revs[i], token, nil))
		}
		return err
	default:
		key := fmt.Sprintf("/own/%s/%d", c.own, rand.IntN(8))
		rev, _, err := c.now(key)
		if err != nil {
			return err
		}
		if rev != 0 && rand.IntN(3) == 0 {
			r, err := c.s.Etcd().Kubernetes.OptimisticDelete(ctx, key, rev, kubernetes.DeleteOptions{})
			return c.ack(false, key, r.Revision, "-", err)
		}
		token, value := c.value(0)
		r, err := c.s.Etcd().Kubernetes.OptimisticPut(ctx, key, value, rev, kubernetes.PutOptions{})
		return c.ack(true, key, r.Revision, token, err)
	}
}

func (c *crashClient) ack(put bool, key string, rev int64, token string, err error) error {
	if err != nil {
		return err
	}
	kind := "delete"
	if put {
		kind = "put"
	}
	_, err = os.Stdout.WriteString(fmt.Sprintf("%s %s %d %s\n", kind, key, rev, token))
	return err
}
