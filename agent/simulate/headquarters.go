// Package simulate is a whole lane on one machine, for demonstrations and tests: a
// broker, a headquarters, scripted devices, and the real agent between them.
// Nothing in it is part of a lane in service.
package simulate

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"inspectd.org/inspectd/agent/evidence"
	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/agent/upstream"
)

// NATS is a NATS server with JetStream inside the process.
type NATS struct{ server *server.Server }

// StartNATS starts a server on a loopback address that keeps its streams in dir.
func StartNATS(host string, port int, dir string) (*NATS, error) {
	s, err := server.NewServer(&server.Options{Host: host, Port: port, JetStream: true, StoreDir: dir,
		NoSigs: true, NoLog: true, SyncAlways: false})
	if err != nil {
		return nil, fmt.Errorf("start NATS: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		s.Shutdown()
		return nil, fmt.Errorf("start NATS: it does not listen on %s:%d", host, port)
	}
	return &NATS{s}, nil
}

// URL is where the server listens.
func (n *NATS) URL() string { return n.server.ClientURL() }

// Close stops the server.
func (n *NATS) Close() {
	n.server.Shutdown()
	n.server.WaitForShutdown()
}

// Provision makes the streams that headquarters provides for the lanes of a site.
func Provision(ctx context.Context, js jetstream.JetStream, site string) error {
	_, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: upstream.DefaultStream, Subjects: []string{"insp.v1.*.*.event.>"}, Storage: jetstream.FileStorage,
		AllowAtomicPublish: true, AllowDirect: true, DenyDelete: true, DenyPurge: true, Retention: jetstream.LimitsPolicy,
	})
	if err != nil {
		return fmt.Errorf("make stream %s: %w", upstream.DefaultStream, err)
	}
	_, err = js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: upstream.EvidencePrefix + site, Storage: jetstream.FileStorage})
	if err != nil {
		return fmt.Errorf("make object store %s%s: %w", upstream.EvidencePrefix, site, err)
	}
	return nil
}

// Headquarters reads what a lane sends, as a central system would: it verifies the
// chain and keeps the reports.
type Headquarters struct {
	nc    *nats.Conn
	js    jetstream.JetStream
	chain *evidence.Chain
	stop  jetstream.ConsumeContext

	mu      sync.Mutex
	reports []*lane.Report
	events  []*evidence.Event
	broken  error
	news    chan struct{} // closed and replaced at every event
	tell    func(*lane.Report)
}

// Listen begins to read the events of a lane, whose public key it was given. tell
// is called for every report, in order.
func Listen(ctx context.Context, url string, l lane.Lane, key ed25519.PublicKey, tell func(*lane.Report)) (*Headquarters, error) {
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.Name("headquarters"))
	if err != nil {
		return nil, fmt.Errorf("connect headquarters: %w", err)
	}
	h := &Headquarters{nc: nc, chain: evidence.NewChain(l.Source(), key), news: make(chan struct{}), tell: tell}
	if h.js, err = jetstream.New(nc); err != nil {
		return nil, err
	}
	if err := Provision(ctx, h.js, l.Site); err != nil {
		return nil, err
	}
	cons, err := h.js.OrderedConsumer(ctx, upstream.DefaultStream, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{fmt.Sprintf("insp.v1.%s.%s.event.>", l.Site, l.ID)}})
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", upstream.DefaultStream, err)
	}
	h.stop, err = cons.Consume(h.take)
	return h, err
}

func (h *Headquarters) take(m jetstream.Msg) {
	e, err := evidence.FromHeaders(m.Headers().Get, m.Data())
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		err = h.chain.Next(e)
	}
	if err == nil && subjectKind(m.Subject()) != strings.TrimSuffix(strings.TrimPrefix(e.Type, "org.inspectd."), ".v1") {
		err = fmt.Errorf("event %d of type %s came on %s", e.Sequence, e.Type, m.Subject())
	}
	if err != nil {
		h.broken = errors.Join(h.broken, err)
		return
	}
	h.events = append(h.events, e)
	if e.Type == "org.inspectd.inspection.reported.v1" {
		r := new(lane.Report)
		if err := json.Unmarshal(e.Data, r); err != nil {
			h.broken = errors.Join(h.broken, err)
			return
		}
		h.reports = append(h.reports, r)
		if h.tell != nil {
			h.tell(r)
		}
	}
	close(h.news)
	h.news = make(chan struct{})
}

func subjectKind(subject string) string {
	_, kind, _ := strings.Cut(subject, ".event.")
	return kind
}

// Report returns the report of the item with an identifier value at a revision,
// nil if it has not come.
func (h *Headquarters) Report(value string, revision int) *lane.Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.reports {
		for _, id := range r.Identifiers {
			if id.Value == value && r.Revision == revision {
				return r
			}
		}
	}
	return nil
}

// Wait returns when done does, which is asked after every event.
func (h *Headquarters) Wait(ctx context.Context, what string, done func() bool) error {
	for {
		h.mu.Lock()
		news := h.news
		h.mu.Unlock()
		if done() {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		}
	}
}

// Events returns all events that came, in the order of the stream.
func (h *Headquarters) Events() []*evidence.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]*evidence.Event(nil), h.events...)
}

// Err tells whether the lane's chain ever broke.
func (h *Headquarters) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.broken
}

// Object reads a piece of evidence from the object store.
func (h *Headquarters) Object(ctx context.Context, l lane.Lane, d lane.Digest) ([]byte, error) {
	bucket, err := h.js.ObjectStore(ctx, upstream.EvidencePrefix+l.Site)
	if err != nil {
		return nil, err
	}
	return bucket.GetBytes(ctx, l.ID+"/"+string(d))
}

// Close ends the connection.
func (h *Headquarters) Close() {
	if h.stop != nil {
		h.stop.Stop()
	}
	h.nc.Close()
}
