// Package upstream is the lane's link to headquarters: it forwards the sealed
// events to NATS JetStream, each exactly once and in chain order, and uploads the
// evidence that they name.
//
// Every publish names the place of the lane's last event in the stream, so the
// stream itself refuses what is out of order or already there. Whatever answer is
// missing or unclear leads to one question: which is the lane's last event there?
package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"inspectd.org/inspectd/agent/evidence"
	"inspectd.org/inspectd/queue"
)

// Config says where headquarters is.
type Config struct {
	Servers     []string `yaml:"servers"`     // nats://host:4222
	Credentials string   `yaml:"credentials"` // path of a NATS credentials file; empty: none
	Stream      string   `yaml:"stream"`      // empty: INSP_EVENTS
	Evidence    string   `yaml:"evidence"`    // object store; empty: INSP_EVIDENCE_<site>
}

// Defaults of the names that headquarters provides.
const (
	DefaultStream  = "INSP_EVENTS"
	EvidencePrefix = "INSP_EVIDENCE_"
)

// State is how the link stands.
type State string

// States of the link.
const (
	Connecting State = "connecting" // no connection; events wait
	Forwarding State = "forwarding" // events flow, or there are none
	Refused    State = "refused"    // connected, but upstream does not take events; see Error
	Cloned     State = "cloned"     // another machine publishes as this lane: stopped for good
)

// Status is what people are told of the link.
type Status struct {
	State     State     `json:"state"`
	Connected bool      `json:"connected"`
	Server    string    `json:"server,omitempty"`
	Since     time.Time `json:"since"`
	Error     string    `json:"error,omitempty"`
	Published uint64    `json:"published"` // events confirmed since start
	Uploaded  uint64    `json:"uploaded"`
	Upload    string    `json:"upload_error,omitempty"` // why evidence waits
	Reopened  uint64    `json:"reopened"`               // events sent again because the server had lost them
	Weaker    string    `json:"weaker,omitempty"`       // what the server lacks for the full promise
}

// Link forwards what a store holds.
type Link struct {
	cfg   Config
	store *queue.Store
	log   zerolog.Logger

	nc     *nats.Conn
	js     jetstream.JetStream
	site   string
	lane   string
	atomic bool // the stream takes atomic batches

	mu        sync.Mutex
	status    Status
	violation string // last permission the server refused, with its time
	violated  time.Time
	abandon   context.CancelFunc // ends the request under way
	wake      chan struct{}      // a connection came up
}

// ErrCloned is returned by Run when the stream holds events of this lane that this
// machine did not make.
var ErrCloned = errors.New("headquarters holds events of this lane that this machine did not make")

// New prepares a link.
func New(cfg Config, store *queue.Store, log zerolog.Logger) *Link {
	l := store.Lane()
	if cfg.Stream == "" {
		cfg.Stream = DefaultStream
	}
	if cfg.Evidence == "" {
		cfg.Evidence = EvidencePrefix + l.Site
	}
	return &Link{cfg: cfg, store: store, log: log, site: l.Site, lane: l.ID, wake: make(chan struct{}, 1),
		status: Status{State: Connecting, Since: time.Now()}}
}

// Subject is the subject of an event: insp.v1.<site>.<lane>.event.<noun>.<verb>.
func (l *Link) Subject(e *evidence.Event) string {
	kind := strings.TrimSuffix(strings.TrimPrefix(e.Type, "org.inspectd."), ".v1")
	return "insp.v1." + l.site + "." + l.lane + ".event." + kind
}

func (l *Link) filter() string { return "insp.v1." + l.site + "." + l.lane + ".event.>" }

// Status tells how the link stands.
func (l *Link) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.status
	if l.nc != nil && l.nc.IsConnected() {
		s.Connected, s.Server = true, l.nc.ConnectedAddr()
	} else if s.State == Forwarding || s.State == Refused {
		// The loop hears of a lost connection only when it wants to send.
		s.State, s.Error = Connecting, "no connection"
	}
	return s
}

func (l *Link) set(state State, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if state != l.status.State || text != l.status.Error {
		l.status.Since = time.Now()
		event := l.log.Info()
		if err != nil {
			event = l.log.Warn().Err(err)
		}
		event.Str("state", string(state)).Msg("upstream link")
	}
	l.status.State, l.status.Error = state, text
}

// Run connects and forwards until ctx ends. Headquarters may be away for as long
// as it likes. Run returns ErrCloned when it must not go on.
func (l *Link) Run(ctx context.Context) error {
	if err := l.connect(); err != nil {
		return err
	}
	defer l.nc.Close()
	ctx, cancel := context.WithCancel(ctx)
	uploaded := make(chan struct{})
	go func() {
		defer close(uploaded)
		l.uploadAll(ctx)
	}()
	defer func() { cancel(); <-uploaded }()
	for attempt := 0; ctx.Err() == nil; attempt++ {
		err := l.forward(ctx, func() { attempt = 0 })
		if err == nil {
			continue
		}
		if errors.Is(err, queue.ErrFinal) {
			return err
		}
		if errors.Is(err, ErrCloned) {
			l.set(Cloned, err)
			<-ctx.Done()
			return ErrCloned
		}
		if ctx.Err() != nil {
			break
		}
		if l.nc.IsConnected() {
			l.set(Refused, err)
		} else {
			l.set(Connecting, err)
		}
		l.pause(ctx, attempt)
	}
	return ctx.Err()
}

// pause waits before the next attempt: longer each time, up to 30 s, with jitter,
// or until a connection comes up.
func (l *Link) pause(ctx context.Context, attempt int) {
	wait := min(30*time.Second, 250*time.Millisecond<<min(attempt, 7))
	select {
	case <-time.After(wait/2 + rand.N(wait/2)):
	case <-l.wake:
	case <-ctx.Done():
	}
}

func (l *Link) connect() error {
	opts := []nats.Option{
		nats.Name("inspectd " + l.site + "/" + l.lane),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectBufSize(-1), // the store is the buffer
		nats.IgnoreAuthErrorAbort(),
		nats.CustomInboxPrefix("_INBOX.insp." + l.site + "." + l.lane),
		nats.PingInterval(20 * time.Second), nats.MaxPingsOutstanding(2),
		nats.CustomReconnectDelay(func(n int) time.Duration {
			wait := min(30*time.Second, 250*time.Millisecond<<min(n, 7))
			return wait/2 + rand.N(wait/2)
		}),
		nats.ConnectHandler(func(*nats.Conn) { l.connected() }),
		nats.ReconnectHandler(func(*nats.Conn) { l.connected() }),
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if !nc.IsClosed() { // our own Close is no news
				l.set(Connecting, errors.Join(errors.New("no connection"), err))
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { l.asyncError(err) }),
	}
	if l.cfg.Credentials != "" {
		opts = append(opts, nats.UserCredentials(l.cfg.Credentials))
	}
	nc, err := nats.Connect(strings.Join(l.cfg.Servers, ","), opts...)
	if err != nil {
		return fmt.Errorf("upstream.servers %v: %w", l.cfg.Servers, err)
	}
	l.mu.Lock()
	l.nc = nc
	l.mu.Unlock()
	l.js, err = jetstream.New(nc)
	return err
}

func (l *Link) connected() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// objectSubjects are in the subjects of uploads, which run beside the events.
const objectSubjects = "OBJ_"

// asyncError keeps a refused permission: the call it belongs to only times out.
func (l *Link) asyncError(err error) {
	if errors.Is(err, nats.ErrPermissionViolation) {
		l.mu.Lock()
		l.violation, l.violated = err.Error(), time.Now()
		if l.abandon != nil && !strings.Contains(l.violation, objectSubjects) {
			l.abandon() // no answer will come
		}
		l.mu.Unlock()
	}
	l.log.Warn().Err(err).Msg("upstream reports a problem")
}

// explain adds the reason that arrived elsewhere to an error that began at start.
func (l *Link) explain(start time.Time, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil && l.violation != "" && !l.violated.Before(start) {
		return fmt.Errorf("this lane's rights do not allow it: %s: %w", l.violation, err)
	}
	return err
}

// attempt bounds one request to the server.
func (l *Link) attempt(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	l.mu.Lock()
	l.abandon = cancel
	l.mu.Unlock()
	return ctx, cancel
}

const (
	ackTimeout = 10 * time.Second
	maxBatch   = 500     // the server takes 1000
	maxBytes   = 4 << 20 // of one batch
)

// forward reconciles with the stream and then sends what waits, batch by batch,
// until something fails.
func (l *Link) forward(ctx context.Context, worked func()) error {
	if !l.nc.IsConnected() {
		return nats.ErrDisconnected
	}
	expect, err := l.reconcile(ctx)
	if err != nil {
		return err
	}
	l.set(Forwarding, nil)
	for {
		changed := l.store.Changed()
		batch, _, err := l.store.Pending(maxBatch)
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			worked()
			select {
			case <-changed:
				continue
			case <-l.wake:
				return nil // a new connection: look again at what the stream holds
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		taken, place, err := l.send(ctx, batch, expect)
		if taken > 0 {
			expect = place
			if err := l.store.Confirm(batch[taken-1].Sequence, expect); err != nil {
				return err
			}
			l.mu.Lock()
			l.status.Published += uint64(taken)
			l.mu.Unlock()
			l.set(Forwarding, nil)
			worked()
		}
		if err != nil {
			return err
		}
	}
}

// send appends the beginning of a batch: as one atomic batch, or event by event
// where the stream takes none. It returns how many events the stream took and the
// place of the last of them.
func (l *Link) send(ctx context.Context, batch []*evidence.Event, expect uint64) (taken int, place uint64, err error) {
	if l.atomic {
		batch = bounded(batch)
		place, err = l.append(ctx, batch, expect)
		if err != nil {
			return 0, 0, err
		}
		return len(batch), place, nil
	}
	for taken = range batch {
		if expect, err = l.append(ctx, batch[taken:taken+1], expect); err != nil {
			return taken, place, err
		}
		place = expect
	}
	return len(batch), place, nil
}

// bounded cuts a batch to what one request may carry.
func bounded(batch []*evidence.Event) []*evidence.Event {
	size := 0
	for i, e := range batch {
		if size += len(e.Data) + 2048; size > maxBytes && i > 0 {
			return batch[:i]
		}
	}
	return batch
}

// reconcile reads the lane's last event back from the stream, brings the store in
// line with it, and returns its place: the expectation of the next append.
func (l *Link) reconcile(ctx context.Context) (uint64, error) {
	ctx, cancel := l.attempt(ctx)
	defer cancel()
	start := time.Now()
	stream, err := l.js.Stream(ctx, l.cfg.Stream)
	if err != nil {
		return 0, l.explain(start, fmt.Errorf("stream %s: %w", l.cfg.Stream, err))
	}
	l.look(stream.CachedInfo().Config)
	last, err := stream.GetLastMsgForSubject(ctx, l.filter())
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return l.nothingThere(stream.CachedInfo().State)
	}
	if err != nil {
		return 0, l.explain(start, fmt.Errorf("read the lane's last event back: %w", err))
	}
	there, err := evidence.FromHeaders(last.Header.Get, last.Data)
	if err != nil {
		return 0, fmt.Errorf("%w: message %d of %s: %w", ErrCloned, last.Sequence, l.cfg.Stream, err)
	}
	return last.Sequence, l.align(there, last.Sequence)
}

// look notes what the stream's settings mean.
func (l *Link) look(cfg jetstream.StreamConfig) {
	var weaker []string
	if !cfg.AllowAtomicPublish {
		weaker = append(weaker, "no atomic batches: events go one by one")
	}
	if cfg.Discard == jetstream.DiscardOld && (cfg.MaxMsgs > 0 || cfg.MaxBytes > 0) {
		weaker = append(weaker, "when full, the stream discards old events")
	}
	if cfg.Replicas < 3 {
		weaker = append(weaker, fmt.Sprintf("%d replica: a power cut there may lose what it acknowledged", cfg.Replicas))
	}
	l.atomic = cfg.AllowAtomicPublish
	l.mu.Lock()
	l.status.Weaker = strings.Join(weaker, "; ")
	l.mu.Unlock()
}

// nothingThere: the stream has no event of this lane.
func (l *Link) nothingThere(st jetstream.StreamState) (uint64, error) {
	_, streamSeq, err := l.store.Pending(1)
	if err != nil {
		return 0, err
	}
	stats, err := l.store.Stats()
	if err != nil {
		return 0, err
	}
	confirmed := stats.Events - stats.Waiting
	if confirmed == 0 || st.FirstSeq > streamSeq {
		return 0, nil // never sent, or aged out of the stream
	}
	return 0, l.reopen(0, 0, confirmed)
}

// align compares the lane's last event there with the store.
func (l *Link) align(there *evidence.Event, streamSeq uint64) error {
	stats, err := l.store.Stats()
	if err != nil {
		return err
	}
	confirmed := stats.Events - stats.Waiting
	if there.Sequence > stats.Events || there.Epoch > stats.Epoch {
		return fmt.Errorf("%w: the stream holds event %d of boot %d, this machine knows %d events and is in boot %d",
			ErrCloned, there.Sequence, there.Epoch, stats.Events, stats.Epoch)
	}
	ours, err := l.store.Event(there.Sequence)
	if err != nil {
		return err
	}
	if ours.Seal.Hash != there.Seal.Hash {
		return fmt.Errorf("%w: event %d there has another hash than here", ErrCloned, there.Sequence)
	}
	if there.Sequence < confirmed {
		return l.reopen(there.Sequence, streamSeq, confirmed)
	}
	return l.store.Confirm(there.Sequence, streamSeq)
}

// reopen sends again what the server had acknowledged and lost. An incident is
// recorded in the chain.
func (l *Link) reopen(sequence, streamSeq, confirmed uint64) error {
	lost := confirmed - sequence
	l.log.Error().Uint64("events", lost).Msg("the server lost events it had acknowledged; they are sent again")
	err := l.store.Reopen(sequence, streamSeq, queue.Draft{Noun: "lane", Verb: "changed", Time: time.Now(),
		Data: map[string]any{"incident": "upstream_lost_events", "code": "SYS_UPSTREAM", "first": sequence + 1, "last": confirmed,
			"text": fmt.Sprintf("The server lost %d events it had acknowledged. They were sent again from the lane's copies.", lost)}})
	if err == nil {
		l.mu.Lock()
		l.status.Reopened += lost
		l.mu.Unlock()
	}
	return err
}

// Headers of atomic batches (NATS 2.12) and of the expectation.
const (
	headerBatchID    = "Nats-Batch-Id"
	headerBatchSeq   = "Nats-Batch-Sequence"
	headerCommit     = "Nats-Batch-Commit"
	headerExpectSeq  = "Nats-Expected-Last-Subject-Sequence"
	headerExpectSubj = "Nats-Expected-Last-Subject-Sequence-Subject"
	headerStream     = "Nats-Expected-Stream"
)

// append adds a batch behind place expect of the stream, all of it or nothing, and
// returns the place of its last event. After any error what the stream holds is
// unknown: reconcile tells.
func (l *Link) append(ctx context.Context, batch []*evidence.Event, expect uint64) (uint64, error) {
	ctx, cancel := l.attempt(ctx)
	defer cancel()
	start := time.Now()
	id := nats.NewInbox() // a fresh id for every attempt
	id = id[strings.LastIndexByte(id, '.')+1:]
	for i, e := range batch {
		msg := &nats.Msg{Subject: l.Subject(e), Header: nats.Header(e.Headers()), Data: e.Data}
		msg.Header.Set(headerStream, l.cfg.Stream)
		if i == 0 {
			msg.Header.Set(headerExpectSeq, fmt.Sprint(expect))
			msg.Header.Set(headerExpectSubj, l.filter())
		}
		if len(batch) > 1 {
			msg.Header.Set(headerBatchID, id)
			msg.Header.Set(headerBatchSeq, fmt.Sprint(i+1))
		}
		if i < len(batch)-1 {
			if err := l.nc.PublishMsg(msg); err != nil {
				return 0, err
			}
			continue
		}
		if len(batch) > 1 {
			msg.Header.Set(headerCommit, "1")
		}
		seq, err := l.request(ctx, msg)
		return seq, l.explain(start, err)
	}
	return expect, nil
}

// request sends the last message of a batch and reads the PubAck.
func (l *Link) request(ctx context.Context, msg *nats.Msg) (uint64, error) {
	resp, err := l.nc.RequestMsgWithContext(ctx, msg)
	if errors.Is(err, nats.ErrNoResponders) {
		return 0, fmt.Errorf("no stream takes %s: %w", msg.Subject, err)
	}
	if err != nil {
		return 0, fmt.Errorf("no acknowledgement for %s: %w", msg.Subject, err)
	}
	var ack struct {
		Stream    string              `json:"stream"`
		Sequence  uint64              `json:"seq"`
		Duplicate bool                `json:"duplicate"`
		Error     *jetstream.APIError `json:"error"`
	}
	switch err := json.Unmarshal(resp.Data, &ack); {
	case err != nil:
		return 0, fmt.Errorf("acknowledgement for %s: %w", msg.Subject, err)
	case ack.Error != nil:
		return 0, fmt.Errorf("stream %s refuses: %w", l.cfg.Stream, ack.Error)
	case ack.Stream != l.cfg.Stream || ack.Duplicate || ack.Sequence == 0:
		return 0, fmt.Errorf("unclear acknowledgement %s", resp.Data)
	}
	return ack.Sequence, nil
}
