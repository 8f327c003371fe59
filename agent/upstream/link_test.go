package upstream_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"inspectd.org/inspectd/agent/evidence"
	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/agent/upstream"
	"inspectd.org/inspectd/queue"
)

// patience ends a test that waits for what never comes.
const patience = 60 * time.Second

var laneName = lane.Lane{Site: "demo", ID: "lane-01"}

// headquarters is a real NATS server with JetStream.
type headquarters struct {
	server *server.Server
	js     jetstream.JetStream
	nc     *nats.Conn
}

func startServer(t *testing.T, opts server.Options) *headquarters {
	t.Helper()
	opts.Host, opts.JetStream, opts.NoSigs, opts.NoLog = "127.0.0.1", true, true, true
	if opts.StoreDir == "" {
		opts.StoreDir = t.TempDir()
	}
	if opts.Port == 0 {
		opts.Port = -1
	}
	s, err := server.NewServer(&opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(patience) {
		t.Fatal("NATS does not come up")
	}
	h := &headquarters{server: s}
	t.Cleanup(h.stop)
	if len(opts.Users) == 0 {
		h.connect(t, s.ClientURL())
	}
	return h
}

func (h *headquarters) connect(t *testing.T, url string) {
	t.Helper()
	var err error
	if h.nc, err = nats.Connect(url); err != nil {
		t.Fatal(err)
	}
	if h.js, err = jetstream.New(h.nc); err != nil {
		t.Fatal(err)
	}
}

func (h *headquarters) stop() {
	if h.nc != nil {
		h.nc.Close()
	}
	h.server.Shutdown()
	h.server.WaitForShutdown()
}

func (h *headquarters) provision(t *testing.T, change func(*jetstream.StreamConfig)) {
	t.Helper()
	// The stream that we tell headquarters to make.
	b, err := os.ReadFile("../../configs/insp-events.json")
	if err != nil {
		t.Fatal(err)
	}
	var cfg jetstream.StreamConfig
	if err := json.Unmarshal(b, &cfg); err != nil {
		t.Fatal(err)
	}
	cfg.DenyPurge = false // the tests play what must not happen
	if change != nil {
		change(&cfg)
	}
	ctx := context.Background()
	if _, err := h.js.CreateStream(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := h.js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: upstream.EvidencePrefix + laneName.Site}); err != nil {
		t.Fatal(err)
	}
}

// events reads the whole stream and verifies the chain from its first event.
func (h *headquarters) events(t *testing.T, s *queue.Store) []*evidence.Event {
	t.Helper()
	ctx := context.Background()
	stream, err := h.js.Stream(ctx, upstream.DefaultStream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	chain := evidence.NewChain(laneName.Source(), s.Key().Public())
	var list []*evidence.Event
	for seq := info.State.FirstSeq; info.State.Msgs > 0 && seq <= info.State.LastSeq; seq++ {
		m, err := stream.GetMsg(ctx, seq)
		if err != nil {
			t.Fatal(err)
		}
		e, err := evidence.FromHeaders(m.Header.Get, m.Data)
		if err != nil {
			t.Fatal(err)
		}
		if err := chain.Next(e); err != nil {
			t.Fatalf("place %d: %v", seq, err)
		}
		list = append(list, e)
	}
	return list
}

func openStore(t *testing.T) (*queue.Store, string) {
	t.Helper()
	dir := t.TempDir()
	if err := queue.Create(dir, laneName); err != nil {
		t.Fatal(err)
	}
	return reopen(t, dir), dir
}

func reopen(t *testing.T, dir string) *queue.Store {
	t.Helper()
	s, err := queue.Open(dir, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func seal(t *testing.T, s *queue.Store, n int) {
	t.Helper()
	for done := 0; done < n; {
		var drafts []queue.Draft
		for range min(n-done, 40) {
			done++
			drafts = append(drafts, queue.Draft{Noun: "lane", Verb: "changed", Time: time.Now(), Data: map[string]any{"n": done}})
		}
		if err := s.Commit(queue.Step{Events: drafts}); err != nil {
			t.Fatal(err)
		}
	}
}

// link runs a link until the test ends.
func link(t *testing.T, s *queue.Store, url string) (*upstream.Link, func()) {
	t.Helper()
	l := upstream.New(upstream.Config{Servers: []string{url}}, s, zerolog.Nop())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { l.Run(ctx); close(done) }() //nolint:errcheck // its status is what the tests look at
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return l, stop
}

// until waits for a state of the world.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func sent(t *testing.T, s *queue.Store) func() bool {
	return func() bool {
		st, err := s.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return st.Waiting == 0
	}
}

// TestForward: a backlog goes out in batches, then single events as they come, each
// once and in order.
func TestForward(t *testing.T) {
	for name, change := range map[string]func(*jetstream.StreamConfig){
		"atomic batches": nil,
		"one by one":     func(c *jetstream.StreamConfig) { c.AllowAtomicPublish = false },
	} {
		t.Run(name, func(t *testing.T) {
			h := startServer(t, server.Options{})
			h.provision(t, change)
			s, _ := openStore(t)
			seal(t, s, 1300)
			l, _ := link(t, s, h.server.ClientURL())
			until(t, "the backlog", sent(t, s))
			for range 5 {
				seal(t, s, 1)
				until(t, "one event", sent(t, s))
			}
			if n := len(h.events(t, s)); n != 1305 {
				t.Errorf("%d events in the stream, want 1305", n)
			}
			if st := l.Status(); st.State != upstream.Forwarding || (st.Weaker == "") || strings.Contains(st.Weaker, "one by one") != (change != nil) {
				t.Errorf("%+v", st)
			}
		})
	}
}

// TestAbsent: headquarters is away at start, comes, goes, and comes again.
func TestAbsent(t *testing.T) {
	first := startServer(t, server.Options{})
	url, port, dir := first.server.ClientURL(), first.server.Addr().String(), first.server.StoreDir()
	first.provision(t, nil)
	first.stop()
	s, _ := openStore(t)
	l, _ := link(t, s, url)
	seal(t, s, 50)
	if st := l.Status(); st.State != upstream.Connecting {
		t.Errorf("%+v", st)
	}
	var number int
	fmt.Sscanf(port[strings.LastIndexByte(port, ':')+1:], "%d", &number)
	for range 2 {
		h := startServer(t, server.Options{Port: number, StoreDir: filepath.Dir(dir)})
		seal(t, s, 50)
		until(t, "everything", sent(t, s))
		want, _ := s.Stats()
		if n := len(h.events(t, s)); uint64(n) != want.Events {
			t.Errorf("%d events in the stream, want %d", n, want.Events)
		}
		h.stop()
		seal(t, s, 10)
	}
}

// TestAppliedButUnknown: the stream took events whose acknowledgement never came.
// They are recognised, not sent again.
func TestAppliedButUnknown(t *testing.T) {
	h := startServer(t, server.Options{})
	h.provision(t, nil)
	s, _ := openStore(t)
	seal(t, s, 30)
	_, stop := link(t, s, h.server.ClientURL())
	until(t, "everything", sent(t, s))
	stop()
	for _, known := range []uint64{0, 7, 29} {
		if err := s.Confirm(known, known); err != nil { // as if the answer had been lost
			t.Fatal(err)
		}
		_, stop := link(t, s, h.server.ClientURL())
		until(t, "reconciliation", sent(t, s))
		stop()
		if n := len(h.events(t, s)); n != 30 {
			t.Errorf("after an unknown answer at %d the stream holds %d events, want 30", known, n)
		}
	}
}

// TestServerLost: a server that lost what it had acknowledged gets it again, and an
// incident is recorded.
func TestServerLost(t *testing.T) {
	h := startServer(t, server.Options{})
	h.provision(t, nil)
	s, _ := openStore(t)
	seal(t, s, 30)
	_, stop := link(t, s, h.server.ClientURL())
	until(t, "everything", sent(t, s))
	stop()
	if err := h.js.DeleteStream(context.Background(), upstream.DefaultStream); err != nil {
		t.Fatal(err)
	}
	h.provision(t, nil)
	l, _ := link(t, s, h.server.ClientURL())
	until(t, "everything again", func() bool { st, _ := s.Stats(); return st.Waiting == 0 && st.Events == 31 })
	events := h.events(t, s)
	if len(events) != 31 || !strings.Contains(string(events[30].Data), "upstream_lost_events") || l.Status().Reopened != 30 {
		t.Errorf("%d events, %+v", len(events), l.Status())
	}
}

// TestAgedOut: events that the stream let go by its own rules are not sent again.
func TestAgedOut(t *testing.T) {
	h := startServer(t, server.Options{})
	h.provision(t, nil)
	s, _ := openStore(t)
	seal(t, s, 30)
	_, stop := link(t, s, h.server.ClientURL())
	until(t, "everything", sent(t, s))
	stop()
	stream, err := h.js.Stream(context.Background(), upstream.DefaultStream)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(context.Background()); err != nil {
		t.Fatal(err)
	}
	seal(t, s, 1)
	link(t, s, h.server.ClientURL())
	until(t, "the new event", sent(t, s))
	info, err := stream.Info(context.Background())
	if err != nil || info.State.Msgs != 1 {
		t.Errorf("%d events in the stream, want the new one: %v", info.State.Msgs, err)
	}
}

// TestClone: two machines with one data folder: the one that finds events it did
// not make stops and says so.
func TestClone(t *testing.T) {
	h := startServer(t, server.Options{})
	h.provision(t, nil)
	s, dir := openStore(t)
	seal(t, s, 5)
	_, stop := link(t, s, h.server.ClientURL())
	until(t, "everything", sent(t, s))
	stop()
	s.Close()
	other := t.TempDir()
	if err := os.CopyFS(filepath.Join(other, "copy"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, dir)
	seal(t, s, 3)
	_, stop = link(t, s, h.server.ClientURL())
	until(t, "everything", sent(t, s))
	stop()
	clone := reopen(t, filepath.Join(other, "copy"))
	seal(t, clone, 4)
	l, _ := link(t, clone, h.server.ClientURL())
	until(t, "the clone to stop", func() bool { return l.Status().State == upstream.Cloned })
	if n := len(h.events(t, s)); n != 8 {
		t.Errorf("%d events in the stream, want the 8 of the original", n)
	}
	if st, _ := clone.Stats(); st.Waiting == 0 {
		t.Error("the clone took its events for sent")
	}
}

// TestNoStream: without a stream events wait and the reason is told; the lane makes
// none itself.
func TestNoStream(t *testing.T) {
	h := startServer(t, server.Options{})
	s, _ := openStore(t)
	seal(t, s, 5)
	l, _ := link(t, s, h.server.ClientURL())
	until(t, "the refusal", func() bool { return l.Status().State == upstream.Refused })
	if st := l.Status(); !strings.Contains(st.Error, upstream.DefaultStream) {
		t.Errorf("%+v", st)
	}
	if _, err := h.js.Stream(context.Background(), upstream.DefaultStream); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("the lane made a stream: %v", err)
	}
	h.provision(t, nil)
	until(t, "everything", sent(t, s))
}

// TestForeignPublisher: something else that publishes on the lane's subjects is
// noticed, and nothing is appended behind it.
func TestForeignPublisher(t *testing.T) {
	h := startServer(t, server.Options{})
	h.provision(t, nil)
	if _, err := h.js.Publish(context.Background(), "insp.v1.demo.lane-01.event.lane.changed", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	s, _ := openStore(t)
	seal(t, s, 1)
	l, _ := link(t, s, h.server.ClientURL())
	until(t, "the lane to stop", func() bool { return l.Status().State == upstream.Cloned })
}

// TestRights: a refused right is told as such, not as a time-out.
func TestRights(t *testing.T) {
	h := startServer(t, server.Options{Users: []*server.User{
		{Username: "hq", Password: "hq"},
		{Username: "lane", Password: "lane", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{"insp.v1.demo.lane-02.>"}}, Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.insp.demo.lane-01.>"}}}},
	}})
	addr := h.server.Addr().String()
	h.connect(t, "nats://hq:hq@"+addr)
	h.provision(t, nil)
	s, _ := openStore(t)
	seal(t, s, 1)
	l, _ := link(t, s, "nats://lane:lane@"+addr)
	until(t, "the refusal", func() bool { return strings.Contains(l.Status().Error, "rights do not allow") })
}

// TestReconnectIdle: after a restart of the server with nothing to send, the link
// says again that it forwards, and gives back what the server lost meanwhile.
func TestReconnectIdle(t *testing.T) {
	dir := t.TempDir()
	first := startServer(t, server.Options{StoreDir: dir})
	url, addr := first.server.ClientURL(), first.server.Addr().String()
	first.provision(t, nil)
	s, _ := openStore(t)
	seal(t, s, 5)
	l, _ := link(t, s, url)
	until(t, "everything", sent(t, s))
	first.stop()
	until(t, "the loss of the connection", func() bool { return l.Status().State == upstream.Connecting })
	var port int
	fmt.Sscanf(addr[strings.LastIndexByte(addr, ':')+1:], "%d", &port)
	second := startServer(t, server.Options{Port: port}) // an empty one
	second.provision(t, nil)
	until(t, "everything again", func() bool {
		st, _ := s.Stats()
		return st.Waiting == 0 && st.Events == 6 && l.Status().State == upstream.Forwarding
	})
	if n := len(second.events(t, s)); n != 6 {
		t.Errorf("%d events in the stream, want 6", n)
	}
}

// TestBadUpload: a piece of evidence that cannot be uploaded is told and holds up
// no other.
func TestBadUpload(t *testing.T) {
	h := startServer(t, server.Options{})
	h.provision(t, nil)
	s, dir := openStore(t)
	var digests []lane.Digest
	var blobs []queue.Blob
	for i := range 4 {
		b := []byte(strings.Repeat(fmt.Sprint(i), 50_000))
		blobs, digests = append(blobs, queue.Blob{Digest: lane.Sum(b), Bytes: b}), append(digests, lane.Sum(b))
	}
	if err := s.Commit(queue.Step{Evidence: blobs, Events: []queue.Draft{{Noun: "finding", Verb: "raised", Time: time.Now(), Data: 1, Uploads: digests}}}); err != nil {
		t.Fatal(err)
	}
	damaged := slices.Min(digests) // the first that is looked at
	if err := os.WriteFile(filepath.Join(dir, "evidence", string(damaged[:2]), string(damaged)), []byte("damaged"), 0o640); err != nil {
		t.Fatal(err)
	}
	l, _ := link(t, s, h.server.ClientURL())
	until(t, "the other three", func() bool { st, _ := s.Stats(); return st.Uploads == 1 })
	until(t, "the reason", func() bool { return strings.Contains(l.Status().Upload, string(damaged)) })
}

// TestEvidence: evidence follows its event, once, under its digest.
func TestEvidence(t *testing.T) {
	h := startServer(t, server.Options{})
	h.provision(t, nil)
	s, _ := openStore(t)
	small, large := []byte("small"), []byte(strings.Repeat("large ", 100_000))
	blobs := []queue.Blob{{Digest: lane.Sum(small), Bytes: small}, {Digest: lane.Sum(large), Bytes: large}}
	for range 2 { // named by two events, uploaded once
		err := s.Commit(queue.Step{Evidence: blobs, Events: []queue.Draft{{Noun: "finding", Verb: "raised", Time: time.Now(), Data: map[string]any{},
			Uploads: []lane.Digest{blobs[0].Digest, blobs[1].Digest}}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	l, _ := link(t, s, h.server.ClientURL())
	until(t, "the uploads", func() bool { st, _ := s.Stats(); return st.Uploads == 0 && st.Waiting == 0 })
	bucket, err := h.js.ObjectStore(context.Background(), upstream.EvidencePrefix+laneName.Site)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		got, err := bucket.GetBytes(context.Background(), laneName.ID+"/"+string(b.Digest))
		if err != nil || string(got) != string(b.Bytes) {
			t.Errorf("%d bytes: %v", len(got), err)
		}
	}
	if n := l.Status().Uploaded; n != 2 {
		t.Errorf("%d uploads, want 2", n)
	}
}
