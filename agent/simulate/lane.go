package simulate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/rs/zerolog"

	"inspectd.org/inspectd/agent"
	"inspectd.org/inspectd/agent/evidence"
	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/devices"
	"inspectd.org/inspectd/queue"
	"inspectd.org/inspectd/testdata"
)

// Options configure a simulated lane. All addresses are loopback addresses; port 0
// picks a free one.
type Options struct {
	Dir     string // where everything is kept
	MQTT    string
	NATS    string
	Listen  string // the page
	Metrics string
	Socket  string // for commands; empty: <Dir>/inspectd.sock
	Worker  string // inspectd-vision; empty: beside this program
	Version string
	Log     zerolog.Logger
	Tell    func(*lane.Report) // called for every report that reaches headquarters
}

// Lane is a simulated lane that runs.
type Lane struct {
	Broker *devices.Broker
	NATS   *NATS
	HQ     *Headquarters
	Agent  *agent.Daemon

	name       lane.Lane
	publishers map[string]*devices.Publisher
	cancel     context.CancelFunc
	done       chan error
}

// closeAfter closes a simulated item when its closing scan is missing.
const closeAfter = 8 * time.Second

// Start starts broker, headquarters and agent.
func Start(ctx context.Context, opts Options) (*Lane, error) {
	l := &Lane{name: lane.Lane{Site: "demo", ID: "lane-01"}, publishers: map[string]*devices.Publisher{}}
	if err := l.start(ctx, opts); err != nil {
		return nil, errors.Join(err, l.Stop())
	}
	return l, nil
}

func (l *Lane) start(ctx context.Context, opts Options) (err error) {
	if err := loopback(opts.MQTT, opts.NATS); err != nil {
		return err
	}
	if l.Broker, err = devices.StartBroker(opts.MQTT); err != nil {
		return err
	}
	host, port, _ := net.SplitHostPort(opts.NATS)
	number, err := strconv.Atoi(port)
	if err != nil {
		return fmt.Errorf("address %q: %w", opts.NATS, err)
	}
	if number == 0 {
		number = -1 // the server's word for any free port
	}
	if l.NATS, err = StartNATS(host, number, filepath.Join(opts.Dir, "nats")); err != nil {
		return err
	}
	data := filepath.Join(opts.Dir, "data")
	key, err := Furnish(data, l.name)
	if err != nil {
		return err
	}
	if l.HQ, err = Listen(ctx, l.NATS.URL(), l.name, key.Public(), opts.Tell); err != nil {
		return err
	}
	cfg := Config(l.name, l.Broker.Addr(), l.NATS.URL())
	cfg.Console.Listen, cfg.Metrics.Listen, cfg.Vision.Worker = opts.Listen, opts.Metrics, opts.Worker
	socket := opts.Socket
	if socket == "" {
		socket = filepath.Join(opts.Dir, "inspectd.sock")
	}
	if l.Agent, err = agent.New(cfg, agent.Options{Data: data, Socket: socket, Version: opts.Version, Log: opts.Log}); err != nil {
		return err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l.cancel, l.done = cancel, make(chan error, 1)
	go func() { l.done <- l.Agent.Run(running) }()
	// A broker drops what nobody subscribes to: devices begin when the agent listens.
	select {
	case <-l.Agent.Ready():
		return nil
	case err := <-l.done:
		l.done <- err
		return fmt.Errorf("the agent ended: %w", err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func loopback(addrs ...string) error {
	for _, a := range addrs {
		host, _, err := net.SplitHostPort(a)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			return fmt.Errorf("address %q: a simulated lane has no log-in, so only a loopback address such as 127.0.0.1:0 will do", a)
		}
	}
	return nil
}

// Config is the configuration of the simulated lane.
func Config(l lane.Lane, broker, nats string) *agent.Config {
	cfg := agent.DefaultConfig()
	cfg.Version, cfg.Lane.Site, cfg.Lane.ID, cfg.Lane.Name = 1, l.Site, l.ID, "Demonstration lane"
	cfg.MQTT.Connect.URL = "mqtt://" + broker
	cfg.Devices = Devices()
	cfg.Correlation.OpenOn, cfg.Correlation.CloseOn = []string{"scan-in"}, []string{"scan-out"}
	cfg.Correlation.CloseAfter = closeAfter
	cfg.Queue.KeepFree = 64 << 20
	cfg.Upstream.Servers = []string{nats}
	cfg.SHA256 = lane.Sum([]byte("simulated lane"))
	return cfg
}

// Furnish makes the data folder of a simulated lane, if it is not there yet, with
// the reference packs that come with the program, signed by a headquarters key
// made for the purpose and not kept. It returns the lane's key.
func Furnish(data string, l lane.Lane) (*evidence.Key, error) {
	if _, err := os.Stat(filepath.Join(data, "inspectd.db")); err != nil {
		if err := queue.Create(data, l); err != nil {
			return nil, err
		}
		if err := installPacks(data); err != nil {
			return nil, err
		}
		list := "# scheme, value and what the officer is to do\nscheme,value,note\ngtin,09520003000018,the rights holder asked to see such parcels\n"
		if err := os.WriteFile(filepath.Join(data, "control", "watchlist.csv"), []byte(list), 0o644); err != nil {
			return nil, err
		}
	}
	return evidence.ReadKey(filepath.Join(data, "keys", "lane.pem"))
}

func installPacks(data string) error {
	key, err := evidence.NewKey()
	if err != nil {
		return err
	}
	trust := filepath.Join(data, "keys", "trust")
	if err := os.MkdirAll(trust, 0o755); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "inspectd-key-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	if err := key.WriteFile(filepath.Join(scratch, "hq.pem")); err != nil {
		return err
	}
	public, err := os.ReadFile(filepath.Join(scratch, "hq.pem.pub"))
	if err == nil {
		err = os.WriteFile(filepath.Join(trust, "headquarters.pub"), public, 0o644)
	}
	if err != nil {
		return err
	}
	packs, err := fs.Sub(testdata.Files, "packs")
	if err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(data, "packs"), packs); err != nil {
		return fmt.Errorf("install the demonstration packs: %w", err)
	}
	entries, err := os.ReadDir(filepath.Join(data, "packs"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := evidence.SignFolder(filepath.Join(data, "packs", e.Name()), key); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lane) publisher(device string) (*devices.Publisher, error) {
	if p := l.publishers[device]; p != nil {
		return p, nil
	}
	if _, ok := Devices()[device]; !ok {
		return nil, fmt.Errorf("the simulated lane has no device %q", device)
	}
	p, err := devices.DialPublisher(l.Broker.Addr(), "device-"+device)
	if err == nil {
		l.publishers[device] = p
	}
	return p, err
}

// Done receives the agent's end, should it end by itself.
func (l *Lane) Done() <-chan error { return l.done }

// Stop ends everything, the agent first.
func (l *Lane) Stop() error {
	for _, p := range l.publishers {
		p.Close()
	}
	var err error
	switch {
	case l.cancel != nil:
		l.cancel()
		err = <-l.done
	case l.Agent != nil:
		err = l.Agent.Close()
	}
	if l.HQ != nil {
		l.HQ.Close()
	}
	if l.NATS != nil {
		l.NATS.Close()
	}
	if l.Broker != nil {
		err = errors.Join(err, l.Broker.Close())
	}
	return err
}
