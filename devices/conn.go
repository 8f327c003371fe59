package devices

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"sync/atomic"
	"time"

	"inspectd.org/inspectd/agent/lane"
)

// MQTT 3.1.1 control packet types, as the high nibble of the first byte.
const (
	typeConnack = 2
	typePublish = 3
)

// oversizeKeep is how much of an oversize payload is kept.
const oversizeKeep = 64 << 10

// writeTimeout bounds every write, acks and pings included: a half-dead link
// must not hang the writer.
const writeTimeout = 10 * time.Second

// boundedConn stands between the MQTT client and the broker. The client allocates
// what a packet's header claims, up to 256 MB for five bytes. boundedConn reads
// the headers first: a PUBLISH beyond the limit is streamed through a hash, and
// the client is handed a small PUBLISH in its place, with the same topic and
// packet identifier. So it can be quarantined and acknowledged like any message,
// instead of coming back for ever. It also reads from CONNACK whether the broker
// still had the session, which the client tells only at its first connect.
type boundedConn struct {
	net.Conn
	in        *bufio.Reader
	limit     int
	nonce     string             // marks substitutes; nobody outside can make one
	onConnack func(present bool) // called before any message of the connection

	pending []byte // bytes to hand out before reading on
	pass    int    // bytes of the current packet still to be passed through
	broken  atomic.Pointer[error]
}

func newBoundedConn(c net.Conn, limit int, onConnack func(bool)) (*boundedConn, error) {
	nonce := make([]byte, 16)
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return &boundedConn{Conn: c, in: bufio.NewReaderSize(c, 64<<10), limit: limit, nonce: string(nonce), onConnack: onConnack}, nil
}

// breakOff ends the connection with an error of ours. A plain Close would be
// swallowed by the client until its next ping.
func (c *boundedConn) breakOff(err error) {
	c.broken.CompareAndSwap(nil, &err)
	c.Conn.SetReadDeadline(time.Unix(1, 0))
}

func (c *boundedConn) Read(p []byte) (int, error) {
	for {
		if err := c.broken.Load(); err != nil {
			return 0, *err
		}
		if len(c.pending) > 0 {
			n := copy(p, c.pending)
			c.pending = c.pending[n:]
			return n, nil
		}
		if c.pass > 0 {
			n, err := c.in.Read(p[:min(len(p), c.pass)])
			c.pass -= n
			return n, c.cause(err)
		}
		if err := c.next(); err != nil {
			return 0, c.cause(err)
		}
	}
}

// cause prefers the reason for which we broke the connection off.
func (c *boundedConn) cause(err error) error {
	if own := c.broken.Load(); err != nil && own != nil {
		return *own
	}
	return err
}

func (c *boundedConn) Write(p []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// next reads the fixed header of the next packet and decides what to do with it.
func (c *boundedConn) next() error {
	first, err := c.in.ReadByte()
	if err != nil {
		return err
	}
	header := []byte{first}
	length, shift := 0, 0
	for {
		b, err := c.in.ReadByte()
		if err != nil {
			return err
		}
		header = append(header, b)
		length |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			break
		}
		if shift += 7; shift > 21 {
			return errors.New("the broker sent a malformed packet length")
		}
	}
	switch kind := first >> 4; {
	case length > c.limit && kind == typePublish:
		err := c.substitute(first, length)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // in the middle of a packet
		}
		return err
	case length > c.limit:
		return fmt.Errorf("the broker sent a packet of type %d with %d bytes", kind, length)
	case kind == typeConnack && length == 2:
		flags, err := c.in.Peek(2)
		if err != nil {
			return err
		}
		if flags[1] == 0 { // accepted
			c.onConnack(flags[0]&1 == 1)
		}
	}
	c.pending, c.pass = header, length
	return nil
}

// oversizeMark is what a substitute carries behind the nonce.
type oversizeMark struct {
	Size   int64       `json:"size"`
	SHA256 lane.Digest `json:"sha256"`
}

// substitute swallows an oversize PUBLISH and puts a small one in its place.
func (c *boundedConn) substitute(first byte, length int) error {
	variable := make([]byte, 2)
	if _, err := io.ReadFull(c.in, variable); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(variable))
	if qos := first >> 1 & 3; qos > 0 {
		n += 2
	}
	if 2+n > length {
		return errors.New("the broker sent a malformed PUBLISH")
	}
	variable = append(variable, make([]byte, n)...)
	if _, err := io.ReadFull(c.in, variable[2:]); err != nil {
		return err
	}
	rest := int64(length - len(variable))
	head := make([]byte, min(rest, oversizeKeep))
	if _, err := io.ReadFull(c.in, head); err != nil {
		return err
	}
	sum := sha256.New()
	sum.Write(head)
	if err := swallow(c.in, sum, rest-int64(len(head))); err != nil {
		return err
	}
	mark, err := json.Marshal(oversizeMark{rest, lane.Digest(hex.EncodeToString(sum.Sum(nil)))})
	if err != nil {
		return err
	}
	body := append(variable, c.nonce...)
	body = binary.BigEndian.AppendUint16(body, uint16(len(mark)))
	body = append(body, mark...)
	body = append(body, head...)
	c.pending = append(append([]byte{first}, remainingLength(len(body))...), body...)
	return nil
}

func swallow(r io.Reader, sum hash.Hash, n int64) error {
	m, err := io.CopyN(sum, r, n)
	if err != nil {
		return fmt.Errorf("oversize message broke off after %d of %d bytes: %w", m, n, err)
	}
	return nil
}

// remainingLength encodes a length as MQTT does (3.1.1, 2.2.3).
func remainingLength(n int) []byte {
	var out []byte
	for {
		b := byte(n & 0x7f)
		if n >>= 7; n > 0 {
			b |= 0x80
		}
		out = append(out, b)
		if n == 0 {
			return out
		}
	}
}

// unmark recognises a substitute and returns what it stands for.
func (c *boundedConn) unmark(payload []byte) (head []byte, o *Oversize) {
	rest, ok := bytes.CutPrefix(payload, []byte(c.nonce))
	if !ok || len(rest) < 2 {
		return payload, nil
	}
	n := int(binary.BigEndian.Uint16(rest))
	var mark oversizeMark
	if len(rest) < 2+n || json.Unmarshal(rest[2:2+n], &mark) != nil {
		return payload, nil
	}
	return rest[2+n:], &Oversize{Size: mark.Size, SHA256: mark.SHA256}
}
