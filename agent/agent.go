package agent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"inspectd.org/inspectd/agent/console"
	"inspectd.org/inspectd/agent/evidence"
	"inspectd.org/inspectd/agent/risk"
	"inspectd.org/inspectd/agent/upstream"
	"inspectd.org/inspectd/devices"
	"inspectd.org/inspectd/queue"
	"inspectd.org/inspectd/vision"
)

// Options are what the command line adds to a Config.
type Options struct {
	Data    string // data folder, made by 'inspectd init'
	Socket  string // path of the Unix socket for commands; empty: none
	Version string
	Log     zerolog.Logger
}

// Daemon is one running lane.
type Daemon struct {
	cfg      *Config
	opts     Options
	log      zerolog.Logger
	started  time.Time
	registry *devices.Registry
	store    *queue.Store
	session  *devices.Session
	pool     *vision.Pool
	link     *upstream.Link
	inspect  *inspector
	console  *console.Server

	reference atomic.Pointer[reference] // swapped as a whole by Reload

	mu    sync.Mutex
	full  error   // why intake stands still, nil while it runs
	loops []*loop // progress, for /healthz
}

// reference is what items are judged by, besides their own observations.
type reference struct {
	packs     *vision.Packs
	watchlist *risk.Watchlist
	problems  []error // packs and keys that could not be used
	listError error   // why the watchlist on disk is not the one in force
}

// New assembles a lane. It opens the store and begins a boot epoch; nothing runs
// before Run.
func New(cfg *Config, opts Options) (*Daemon, error) {
	registry, problems := devices.NewRegistry(cfg.Devices)
	if len(problems) > 0 {
		return nil, fmt.Errorf("device %s: %s", problems[0].Device, problems[0].Text)
	}
	store, err := queue.Open(opts.Data, queue.Options{KeepFree: int64(cfg.Queue.KeepFree)})
	if err != nil {
		return nil, err
	}
	d := &Daemon{cfg: cfg, opts: opts, log: opts.Log, started: time.Now(), registry: registry, store: store}
	if err := d.assemble(); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return d, nil
}

func (d *Daemon) assemble() error {
	if l := d.store.Lane(); l.Site != d.cfg.Lane.Site || l.ID != d.cfg.Lane.ID {
		return fmt.Errorf("the data folder belongs to lane %s/%s, the configuration is for %s/%s", l.Site, l.ID, d.cfg.Lane.Site, d.cfg.Lane.ID)
	}
	password, err := d.cfg.MQTT.Connect.Password.read()
	if err != nil {
		return fmt.Errorf("mqtt.connect.password: %w", err)
	}
	number, err := d.store.Session()
	if err != nil {
		return err
	}
	connect := d.cfg.MQTT.Connect.Connect
	if connect.ClientID == "" {
		connect.ClientID = "inspectd-" + d.cfg.Lane.Site + "-" + d.cfg.Lane.ID
	}
	d.session, err = devices.NewSession(devices.SessionOptions{Connect: connect, Password: password, Filters: d.registry.Filters(),
		Session: number, NewSession: d.newSession, Log: d.log.With().Str("part", "mqtt").Logger()})
	if err != nil {
		return err
	}
	d.pool = vision.NewPool(vision.PoolOptions{Program: d.workerPath(), Workers: d.cfg.Vision.Workers,
		Timeout: d.cfg.Vision.Timeout, Log: d.log.With().Str("part", "vision").Logger()})
	d.Reload()
	d.link = upstream.New(upstream.Config{Servers: d.cfg.Upstream.Servers, Credentials: d.cfg.Upstream.Credentials.Path(),
		Stream: d.cfg.Upstream.Stream, Evidence: d.cfg.Upstream.Images.Store}, d.store, d.log.With().Str("part", "upstream").Logger())
	d.inspect = newInspector(d)
	d.console, err = console.New(console.Options{Listen: d.cfg.Console.Listen, Metrics: d.cfg.Metrics.Listen, Socket: d.opts.Socket,
		Store: d.store, Data: d.opts.Data, Status: d.Status, Alive: d.alive, Log: d.log.With().Str("part", "console").Logger()})
	return err
}

// newSession records a new broker session. A store that cannot record it stops
// everything else too; the number then matters no more.
func (d *Daemon) newSession() uint64 {
	n, err := d.store.NewSession()
	if err != nil {
		d.log.Error().Err(err).Msg("the new broker session could not be recorded")
	}
	return n
}

// workerPath is the configured worker, or the one beside this program, or the one
// that the package installs.
func (d *Daemon) workerPath() string {
	if d.cfg.Vision.Worker != "" {
		return d.cfg.Vision.Worker
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "inspectd-vision")
		if _, err := os.Stat(beside); err == nil {
			return beside
		}
	}
	return "/usr/libexec/inspectd/inspectd-vision"
}

// Reload reads packs and control files again and swaps them in whole. What cannot
// be used is told in the status; a list that is damaged leaves the last good one
// in force.
func (d *Daemon) Reload() {
	old := d.reference.Load()
	ref := &reference{}
	trusted, problems := d.trustedKeys()
	var errs []error
	ref.packs, errs = vision.LoadPacks(d.under(d.cfg.Vision.Packs, "packs"), trusted)
	problems = append(problems, errs...)
	list, err := risk.Load(filepath.Join(d.under(d.cfg.Checks.Control, "control"), "watchlist.csv"))
	if err != nil && old != nil {
		list = old.watchlist
	}
	ref.watchlist, ref.listError, ref.problems = list, err, problems
	for _, err := range problems {
		d.log.Error().Err(err).Msg("a pack is not used")
	}
	if err != nil {
		d.log.Error().Err(err).Int("entries_in_force", list.Len()).Msg("the watchlist is not used; the one before it stays in force")
	}
	d.log.Info().Int("packs", len(ref.packs.List)).Int("watchlist_entries", list.Len()).Msg("packs and control files read")
	d.reference.Store(ref)
}

func (d *Daemon) under(configured, name string) string {
	if configured != "" {
		return configured
	}
	return filepath.Join(d.opts.Data, name)
}

// trustedKeys reads the public keys whose packs this lane accepts.
func (d *Daemon) trustedKeys() (keys []ed25519.PublicKey, problems []error) {
	files, err := filepath.Glob(filepath.Join(d.under(d.cfg.Upstream.Trust, "keys/trust"), "*.pub"))
	if err != nil {
		return nil, []error{err}
	}
	for _, f := range files {
		key, err := evidence.ReadPublicKey(f)
		if err != nil {
			problems = append(problems, fmt.Errorf("trusted key: %w", err))
			continue
		}
		keys = append(keys, key)
	}
	return keys, problems
}

// Addresses are where the page and the metrics listen, known once New returned.
func (d *Daemon) Addresses() (page, metrics string) { return d.console.Addresses() }

// Ready is closed once devices' messages reach the lane.
func (d *Daemon) Ready() <-chan struct{} { return d.session.Ready() }

// Run moves data along the line until ctx ends or the store fails for good.
func (d *Daemon) Run(ctx context.Context) error {
	if err := d.inspect.announce(); errors.Is(err, queue.ErrFull) {
		d.setFull(err) // not a reason to stay away
	} else if err != nil {
		return errors.Join(err, d.Close())
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.session.Run(ctx) })
	g.Go(func() error { return d.ingest(ctx, d.loop("intake")) })
	g.Go(func() error { return d.inspect.run(ctx, d.loop("inspection")) })
	g.Go(func() error {
		if err := d.link.Run(ctx); !errors.Is(err, upstream.ErrCloned) {
			return err
		}
		return nil // stopped and shown; intake goes on
	})
	g.Go(func() error { return d.console.Run(ctx) })
	g.Go(func() error {
		if err := d.pool.Probe(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn().Err(err).Msg("pictures cannot be examined")
		}
		return nil
	})
	d.log.Info().Str("lane", d.store.Lane().Source()).Str("key", d.store.Key().ID()).Msg("lane is running")
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// Close releases what New opened. Run does it by itself.
func (d *Daemon) Close() error {
	d.pool.Close()
	return d.store.Close()
}

// loop is the pulse of one of the daemon's loops.
type loop struct {
	name string
	last atomic.Int64 // unix nanoseconds of the last turn
}

func (d *Daemon) loop(name string) *loop {
	l := &loop{name: name}
	l.beat()
	d.mu.Lock()
	d.loops = append(d.loops, l)
	d.mu.Unlock()
	return l
}

func (l *loop) beat() { l.last.Store(time.Now().UnixNano()) }

// pulse is how often a healthy loop turns even when there is nothing to do.
const pulse = 5 * time.Second

// alive names the first loop that stopped turning, nil if all turn.
func (d *Daemon) alive() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.loops {
		if age := time.Since(time.Unix(0, l.last.Load())); age > 12*pulse {
			return fmt.Errorf("the %s loop stands still for %s", l.name, age.Round(time.Second))
		}
	}
	return nil
}
