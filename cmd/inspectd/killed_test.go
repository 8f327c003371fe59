package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"inspectd.org/inspectd/agent/evidence"
	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/agent/simulate"
	"inspectd.org/inspectd/devices"
	"inspectd.org/inspectd/devices/label"
	"inspectd.org/inspectd/queue"
)

// TestMain lets the test binary be the program itself, so that tests run and kill
// what users run.
func TestMain(m *testing.M) {
	if os.Getenv("INSPECTD_BE_THE_PROGRAM") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func program(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "INSPECTD_BE_THE_PROGRAM=1")
	return cmd
}

// startMosquitto starts a stock Mosquitto that keeps everything in memory.
func startMosquitto(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto"
	}
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("INSPECTD_REQUIRE") == "all" {
			t.Fatal("mosquitto is not installed")
		}
		t.Skip("SKIP mosquitto is not installed")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	conf := filepath.Join(t.TempDir(), "mosquitto.conf")
	if err := os.WriteFile(conf, []byte("listener "+port+" 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-v", "-c", conf)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	running := make(chan bool, 1)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.HasSuffix(lines.Text(), "running") {
				running <- true
			}
		}
	}()
	select {
	case <-running:
	case <-time.After(time.Minute):
		t.Fatal("mosquitto does not come up")
	}
	return addr
}

const killConfig = `version: 1
lane: { site: demo, id: lane-01 }
mqtt: { connect: { url: "mqtt://%s" } }
devices:
  numbered: { profile: label/json, topic: lane/numbered }
  plain: { profile: label/text, topic: lane/plain }
correlation: { open_on: [plain], close_after: 1s }
queue: { keep_free: 1MiB }
upstream: { servers: ["%s"] }
console: { listen: "127.0.0.1:0" }
metrics: { listen: "127.0.0.1:0" }
logging: { level: warn, output: json }
`

// stage is everything around the daemon: broker, headquarters, devices, and what
// the broker acknowledged to each device.
type stage struct {
	dir, config string
	broker      string
	hq          *simulate.Headquarters
	log         bytes.Buffer // of the daemon

	mu    sync.Mutex
	acked map[string][]string // device -> payloads, in the order of their acknowledgements
}

func (s *stage) data() string { return filepath.Join(s.dir, "data") }

// daemon starts the daemon.
func (s *stage) daemon(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := program("run", "--config", s.config, "--data", s.data(), "--socket", filepath.Join(s.dir, "socket"))
	cmd.Stderr = &s.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// publish sends n messages of a device, each after the last was acknowledged.
func (s *stage) publish(t *testing.T, p *devices.Publisher, device string, n int) {
	for range n {
		s.mu.Lock()
		count := len(s.acked[device])
		s.mu.Unlock()
		// Scanners of "plain" read equal barcodes again and again: each is a parcel.
		payload := fmt.Sprintf("carton type %d", count%3)
		if device == "numbered" {
			serial := fmt.Sprintf("%08d", count)
			b, err := json.Marshal(map[string]string{"id": fmt.Sprint("N-", count), "aim": "]C0", "data": "RB" + serial + string(label.S10CheckDigit(serial)) + "GB"})
			if err != nil {
				t.Error(err)
			}
			payload = string(b)
		}
		if err := p.Publish("lane/"+device, []byte(payload)); err != nil {
			t.Error(err)
			return
		}
		s.mu.Lock()
		s.acked[device] = append(s.acked[device], payload)
		s.mu.Unlock()
	}
}

// received is what headquarters has of each device, in the order of the stream.
func (s *stage) received(t *testing.T, store map[lane.Digest]string) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, e := range s.hq.Events() {
		if !strings.Contains(e.Type, ".observation.") {
			continue
		}
		var body struct {
			Observation lane.Observation `json:"observation"`
		}
		if err := json.Unmarshal(e.Data, &body); err != nil {
			t.Fatal(err)
		}
		o := body.Observation
		out[o.Device] = append(out[o.Device], store[o.Evidence[0].SHA256])
	}
	return out
}

// TestKilled kills the daemon, at random, 100 times while devices publish. Whatever
// the broker acknowledged to a device is in the stream at headquarters exactly once
// and in order, also equal barcodes without any number; the chain is whole, and so
// is everything stored.
func TestKilled(t *testing.T) {
	kills := 100
	if n, err := strconv.Atoi(os.Getenv("INSPECTD_KILLS")); err == nil {
		kills = n
	}
	if testing.Short() {
		kills = 10
	}
	s := setStage(t)
	publishers := map[string]*devices.Publisher{}
	for _, device := range []string{"numbered", "plain"} {
		p, err := devices.DialPublisher(s.broker, device)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		publishers[device] = p
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	s.settle(t) // the first start makes the session, so that the broker keeps what comes
	for range kills {
		cmd := s.daemon(t)
		var wg sync.WaitGroup
		for device, p := range publishers {
			wg.Go(func() { s.publish(t, p, device, 25) })
		}
		<-time.After(time.Duration(rng.IntN(600)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() //nolint:errcheck // killed
		wg.Wait()
	}
	s.settle(t)
	s.compare(t, kills)
}

func setStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{dir: t.TempDir(), broker: startMosquitto(t), acked: map[string][]string{}}
	nats, err := simulate.StartNATS("127.0.0.1", -1, filepath.Join(s.dir, "nats"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nats.Close)
	l := lane.Lane{Site: "demo", ID: "lane-01"}
	if err := queue.Create(s.data(), l); err != nil {
		t.Fatal(err)
	}
	key, err := evidence.ReadKey(filepath.Join(s.data(), "keys", "lane.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if s.hq, err = simulate.Listen(context.Background(), nats.URL(), l, key.Public(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.hq.Close)
	s.config = filepath.Join(s.dir, "lane.yaml")
	if err := os.WriteFile(s.config, fmt.Appendf(nil, killConfig, s.broker, nats.URL()), 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

// settle runs the daemon until a last message of its own has reached headquarters
// and nothing waits, and ends it the gentle way.
func (s *stage) settle(t *testing.T) {
	t.Helper()
	cmd := s.daemon(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	client := &common{socket: filepath.Join(s.dir, "socket")}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for done := false; !done; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the daemon does not settle; its log:\n%s", s.log.String())
		}
		done = s.settled(ctx, client)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("SIGTERM ended the daemon with %v; its log:\n%s", err, s.log.String())
	}
}

// settled reports whether the lane has what the devices sent and headquarters has
// what the lane sealed.
func (s *stage) settled(ctx context.Context, client *common) bool {
	var st struct {
		MQTT  struct{ Connected bool }
		Store queue.Stats
	}
	if client.ask(ctx, "/api/v1/status", &st) != nil || !st.MQTT.Connected {
		return false
	}
	s.mu.Lock()
	sent := len(s.acked["numbered"]) + len(s.acked["plain"])
	s.mu.Unlock()
	return int(st.Store.Stored) >= sent && st.Store.Correlated == st.Store.Stored && st.Store.Waiting == 0 &&
		uint64(len(s.hq.Events())) >= st.Store.Events
}

func (s *stage) compare(t *testing.T, kills int) {
	t.Helper()
	if err := s.hq.Err(); err != nil {
		t.Errorf("the chain at headquarters: %v", err)
	}
	payloads := map[lane.Digest]string{}
	for _, list := range s.acked {
		for _, p := range list {
			payloads[lane.Sum([]byte(p))] = p
		}
	}
	got := s.received(t, payloads)
	total := 0
	for device, want := range s.acked {
		total += len(want)
		if !slices.Equal(got[device], want) {
			t.Errorf("device %s: %d messages were acknowledged, headquarters has %d; first difference at %d",
				device, len(want), len(got[device]), firstDifference(want, got[device]))
		}
	}
	v, err := queue.Verify(s.data())
	if err != nil || v.Err() != nil {
		t.Fatalf("verify: %v %v", err, v)
	}
	t.Logf("cycles %d acked %d checked %d violations %d; %d events, %d reports", kills, total, total, len(v.Violations), v.Events, v.Reports)
}

func firstDifference(a, b []string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}
