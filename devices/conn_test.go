package devices

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/rs/zerolog"

	"inspectd.org/inspectd/agent/lane"
)

func sum(b []byte) lane.Digest { return lane.Sum(b) }

// wire is a connection whose other end said everything already.
type wire struct {
	net.Conn
	r io.Reader
}

func (w wire) Read(p []byte) (int, error)       { return w.r.Read(p) }
func (w wire) SetReadDeadline(time.Time) error  { return nil }
func (w wire) SetWriteDeadline(time.Time) error { return nil }

func packet(first byte, body []byte) []byte {
	return append(append([]byte{first}, remainingLength(len(body))...), body...)
}

func publishPacket(topic string, id uint16, payload []byte) []byte {
	body := binary.BigEndian.AppendUint16(nil, uint16(len(topic)))
	body = append(body, topic...)
	body = binary.BigEndian.AppendUint16(body, id)
	return packet(0x32, append(body, payload...))
}

// TestClaim: five bytes that claim 256 MB cost no memory.
func TestClaim(t *testing.T) {
	claim := []byte{0x32, 0xff, 0xff, 0xff, 0x7f, 0, 3, 'a', '/', 'b', 0, 1}
	c, err := newBoundedConn(wire{r: bytes.NewReader(claim)}, 1<<20, func(bool) {})
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = io.ReadAll(c)
	runtime.ReadMemStats(&after)
	if err == nil {
		t.Error("a packet that broke off was taken for whole")
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 4<<20 {
		t.Errorf("%d bytes were allocated", used)
	}
}

// TestSessionPresent: CONNACK tells at every connection whether the session was
// there; a refused connection tells nothing.
func TestSessionPresent(t *testing.T) {
	for _, c := range []struct {
		connack []byte
		want    string
	}{{[]byte{0x20, 2, 0, 0}, "new"}, {[]byte{0x20, 2, 1, 0}, "present"}, {[]byte{0x20, 2, 0, 5}, ""}} {
		got := ""
		conn, _ := newBoundedConn(wire{r: bytes.NewReader(c.connack)}, 1<<20, func(present bool) {
			got = map[bool]string{true: "present", false: "new"}[present]
		})
		b, err := io.ReadAll(conn)
		if err != nil || !bytes.Equal(b, c.connack) || got != c.want {
			t.Errorf("% x: %q, %v", c.connack, got, err)
		}
	}
}

// TestBreakOff: the reason for which we broke a connection off reaches the reader.
func TestBreakOff(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	c, _ := newBoundedConn(here, 1<<20, func(bool) {})
	read := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	own := errors.New("our own reason")
	c.breakOff(own)
	if err := <-read; !errors.Is(err, own) {
		t.Errorf("the reader was told %v", err)
	}
}

// fakeMessage is a message as the client hands it over.
type fakeMessage struct{ mqtt.Message }

func (fakeMessage) Topic() string     { return "lane/a" }
func (fakeMessage) Payload() []byte   { return []byte("x") }
func (fakeMessage) Retained() bool    { return false }
func (fakeMessage) Duplicate() bool   { return false }
func (fakeMessage) Qos() byte         { return 1 }
func (fakeMessage) MessageID() uint16 { return 1 }
func (fakeMessage) Ack()              {}

// TestHandlerNeverBlocks: with nobody taking messages the handler still returns,
// every time; beyond its room it breaks the connection off and takes nothing more.
// A handler that blocked would hold up ping answers until the link is lost.
func TestHandlerNeverBlocks(t *testing.T) {
	s, err := NewSession(SessionOptions{Connect: Connect{URL: "mqtt://127.0.0.1:1"}, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	s.conn, _ = newBoundedConn(wire{r: bytes.NewReader(nil)}, 1<<20, func(bool) {})
	for range handOver + 3 {
		s.handle(nil, fakeMessage{})
	}
	if len(s.messages) != handOver || s.Status().Overruns != 1 {
		t.Errorf("%d messages taken, %d overruns", len(s.messages), s.Status().Overruns)
	}
	if _, err := s.conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("the connection was not broken off: %v", err)
	}
}

// FuzzConn: whatever a broker sends, no packet beyond the limit passes, nothing
// panics, and packets within the limit pass unchanged.
func FuzzConn(f *testing.F) {
	f.Add([]byte{0x20, 2, 0, 0})
	f.Add(publishPacket("a/b", 7, []byte("small")))
	f.Add(publishPacket("a/b", 7, bytes.Repeat([]byte("x"), 3000)))
	f.Add([]byte{0x32, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff})
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, data []byte) {
		const limit = 1000
		c, err := newBoundedConn(wire{r: bytes.NewReader(data)}, limit, func(bool) {})
		if err != nil {
			t.Fatal(err)
		}
		out, _ := io.ReadAll(c)
		for len(out) > 0 {
			n, size := binary.Uvarint(out[1:])
			if size <= 0 || 1+size > len(out) {
				return // cut off inside a header
			}
			body := out[1+size:]
			if int(n) > len(body) {
				return // cut off inside a packet
			}
			if int(n) > limit {
				if out[0]>>4 != typePublish || !bytes.Contains(body[:n], []byte(c.nonce)) {
					t.Fatalf("a packet of %d bytes passed", n)
				}
			}
			out = body[n:]
		}
	})
}
