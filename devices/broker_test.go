package devices

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// patience ends a test that waits for what never comes.
const patience = 60 * time.Second

// mosquitto starts a stock Mosquitto with extra configuration and returns its
// address.
func mosquitto(t *testing.T, conf string) string {
	t.Helper()
	program, err := exec.LookPath("mosquitto")
	if err != nil {
		program = "/usr/sbin/mosquitto"
	}
	if _, err := os.Stat(program); err != nil {
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
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil { // started by root, Mosquitto gives up its rights
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(addr)
	file := filepath.Join(dir, "mosquitto.conf")
	if err := os.WriteFile(file, []byte(fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\npersistence_location %s/\n%s\n", port, dir, conf)), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-v", "-c", file)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	running := make(chan bool, 1)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.HasSuffix(lines.Text(), "running") {
				running <- true
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	select {
	case <-running:
	case <-time.After(patience):
		t.Fatal("mosquitto does not come up")
	}
	return addr
}

func embedded(t *testing.T) string {
	t.Helper()
	b, err := StartBroker("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b.Addr()
}

// lane is a session under test and the number of broker sessions it was told of.
type testLane struct {
	*Session
	sessions atomic.Uint64
	stop     func()
}

func connect(t *testing.T, addr string, maxPacket Size, filters ...string) *testLane {
	t.Helper()
	l := &testLane{}
	s, err := NewSession(SessionOptions{Connect: Connect{URL: "mqtt://" + addr, ClientID: "lane", MaxPacket: maxPacket},
		Filters: filters, NewSession: func() uint64 { return l.sessions.Add(1) }, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	l.Session = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	l.stop = func() { cancel(); <-done }
	t.Cleanup(l.stop)
	return l
}

func (l *testLane) next(t *testing.T) Message {
	t.Helper()
	select {
	case m := <-l.Messages():
		return m
	case <-time.After(patience):
		t.Fatalf("no message came; the session says %+v", l.Status())
	}
	return Message{}
}

func device(t *testing.T, addr string) *Publisher {
	t.Helper()
	p, err := DialPublisher(addr, "device")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func publish(t *testing.T, p *Publisher, topic, payload string) {
	t.Helper()
	if err := p.Publish(topic, []byte(payload)); err != nil {
		t.Fatal(err)
	}
}

// subscribed waits until the lane's subscriptions are in force, by a message that
// comes through.
func (l *testLane) subscribed(t *testing.T, p *Publisher, topic string) {
	t.Helper()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(patience)
	for {
		publish(t, p, topic, "are you there")
		select {
		case m := <-l.Messages():
			m.Ack()
			for { // the other probes
				select {
				case m := <-l.Messages():
					m.Ack()
				case <-ticker.C:
					return
				}
			}
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("the lane does not subscribe: %+v", l.Status())
		}
	}
}

// TestBrokers: messages of devices arrive in order, each once, through the embedded
// broker and through a stock Mosquitto.
func TestBrokers(t *testing.T) {
	for name, start := range map[string]func(*testing.T) string{
		"embedded":  embedded,
		"mosquitto": func(t *testing.T) string { return mosquitto(t, "") },
	} {
		t.Run(name, func(t *testing.T) {
			addr := start(t)
			l, p := connect(t, addr, 0, "lane/+/data"), device(t, addr)
			l.subscribed(t, p, "lane/a/data")
			for i := range 200 {
				publish(t, p, "lane/a/data", fmt.Sprint(i))
			}
			for i := range 200 {
				m := l.next(t)
				if string(m.Payload) != fmt.Sprint(i) || m.Dup || m.QoS != 1 || m.PacketID == 0 {
					t.Fatalf("message %d: %+v", i, m)
				}
				m.Ack()
			}
			if st := l.Status(); !st.Connected || st.Lost != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// TestAckAcrossReconnect: an acknowledgement on a message of an ended connection is
// lost; the redelivered one must be acknowledged, and then it ends.
func TestAckAcrossReconnect(t *testing.T) {
	addr := mosquitto(t, "")
	l, p := connect(t, addr, 0, "lane/#"), device(t, addr)
	l.subscribed(t, p, "lane/a")
	publish(t, p, "lane/a", "held")
	first := l.next(t)
	l.breakOff(fmt.Errorf("test: cable pulled"))
	again := l.next(t)
	if string(again.Payload) != "held" || !again.Dup || again.PacketID != first.PacketID || again.Session != first.Session {
		t.Fatalf("after the reconnect came %+v, before it %+v", again, first)
	}
	first.Ack() // of the old connection: does nothing
	l.breakOff(fmt.Errorf("test: cable pulled again"))
	third := l.next(t)
	if string(third.Payload) != "held" || !third.Dup {
		t.Fatalf("the lost acknowledgement counted: %+v", third)
	}
	third.Ack()
	publish(t, p, "lane/a", "next")
	if m := l.next(t); string(m.Payload) != "next" {
		t.Errorf("after the acknowledgement came %q", m.Payload)
	}
}

// TestDeliveryBeforeSubscribe: a persistent session delivers before the lane has
// subscribed, also on topics it no longer asks for. All of it arrives and can be
// acknowledged, or the broker would stop after its window.
func TestDeliveryBeforeSubscribe(t *testing.T) {
	addr := mosquitto(t, "")
	p := device(t, addr)
	old := connect(t, addr, 0, "old/topic")
	old.subscribed(t, p, "old/topic")
	old.stop()
	for i := range 50 {
		publish(t, p, "old/topic", fmt.Sprint(i))
	}
	l := connect(t, addr, 0, "new/topic")
	for i := range 50 {
		m := l.next(t)
		if m.Topic != "old/topic" || string(m.Payload) != fmt.Sprint(i) {
			t.Fatalf("message %d: %s %q", i, m.Topic, m.Payload)
		}
		m.Ack()
	}
	if l.sessions.Load() != 0 {
		t.Error("the broker had the session, the lane took it for a new one")
	}
}

// TestBrokerForgets: a broker that lost its sessions gets the subscriptions again,
// and the lane counts a new session.
func TestBrokerForgets(t *testing.T) {
	b, err := StartBroker("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := b.Addr()
	l, p := connect(t, addr, 0, "lane/#"), device(t, addr)
	l.subscribed(t, p, "lane/a")
	before := l.sessions.Load()
	p.Close()
	b.Close()
	if b, err = StartBroker(addr); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p = device(t, addr)
	l.subscribed(t, p, "lane/a")
	if before != 1 || l.sessions.Load() != 2 {
		t.Errorf("%d sessions, then %d; want 1 and 2", before, l.sessions.Load())
	}
}

// TestRetained: retained messages, which every subscription delivers again, are
// state and no observations; the same topic's live messages are.
func TestRetained(t *testing.T) {
	addr := mosquitto(t, "")
	p := device(t, addr)
	if err := p.PublishRetained("lane/a", []byte("old state")); err != nil {
		t.Fatal(err)
	}
	l := connect(t, addr, 0, "lane/#")
	l.subscribed(t, p, "lane/b")
	l.breakOff(fmt.Errorf("test: cable pulled"))
	l.subscribed(t, p, "lane/b")
	publish(t, p, "lane/a", "live")
	if m := l.next(t); string(m.Payload) != "live" {
		t.Errorf("the lane took %q", m.Payload)
	}
	if n := l.Status().Retained; n < 2 {
		t.Errorf("%d retained messages were seen, want one for each subscription", n)
	}
}

// TestOversize: a message beyond the limit is told by size and digest, in its place,
// and does not come again.
func TestOversize(t *testing.T) {
	addr := mosquitto(t, "")
	l, p := connect(t, addr, 1<<20, "lane/#"), device(t, addr)
	l.subscribed(t, p, "lane/a")
	big := bytes.Repeat([]byte("large "), 500_000)
	publish(t, p, "lane/a", "before")
	publish(t, p, "lane/a", string(big))
	publish(t, p, "lane/a", "after")
	if m := l.next(t); string(m.Payload) != "before" {
		t.Fatalf("%.20q", m.Payload)
	}
	m := l.next(t)
	if m.Oversize == nil || m.Oversize.Size != int64(len(big)) || m.Oversize.SHA256 != sum(big) || !bytes.Equal(m.Payload, big[:oversizeKeep]) {
		t.Fatalf("%+v with %d bytes", m.Oversize, len(m.Payload))
	}
	m.Ack()
	if m = l.next(t); string(m.Payload) != "after" {
		t.Fatalf("%.20q", m.Payload)
	}
	if l.Status().Lost != 0 {
		t.Error("the connection was lost over it")
	}
}

// TestBrokerLimits: with the settings we ship, Mosquitto keeps everything that
// devices publish while the lane is away. With its defaults 1000 of these remain.
func TestBrokerLimits(t *testing.T) {
	settings, err := os.ReadFile("../configs/mosquitto-inspectd.conf")
	if err != nil {
		t.Fatal(err)
	}
	addr := mosquitto(t, string(settings))
	p := device(t, addr)
	l := connect(t, addr, 0, "lane/#")
	l.subscribed(t, p, "lane/a")
	l.stop()
	const n = 3000
	for i := range n {
		publish(t, p, "lane/a", fmt.Sprint(i))
	}
	l = connect(t, addr, 0, "lane/#")
	for i := range n {
		m := l.next(t)
		if string(m.Payload) != fmt.Sprint(i) {
			t.Fatalf("message %d is %q", i, m.Payload)
		}
		m.Ack()
	}
}

// TestOverrun: when the lane does not keep up, the broker holds the messages and
// every one of them still comes.
func TestOverrun(t *testing.T) {
	addr := embedded(t)
	l, p := connect(t, addr, 0, "lane/#"), device(t, addr)
	l.subscribed(t, p, "lane/a")
	const n = handOver + 500
	for i := range n {
		publish(t, p, "lane/a", fmt.Sprint(i))
	}
	missing := map[string]bool{}
	for i := range n {
		missing[fmt.Sprint(i)] = true
	}
	for len(missing) > 0 {
		m := l.next(t)
		m.Ack()
		delete(missing, string(m.Payload))
	}
	if l.Status().Overruns == 0 {
		t.Error("the lane was never overrun; the test shows nothing")
	}
}
