// Package evidence makes what a lane reports provable: every event is sealed
// into a chain of hashes, each commit is signed once, and both can be checked
// offline with the lane's public key alone. It also signs and verifies folders.
//
// It knows bytes and keys, not findings, and imports nothing of ours.
package evidence

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gowebpki/jcs"
)

// Hash is a SHA-256 in the chain.
type Hash [sha256.Size]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ParseHash reads the hexadecimal form of a Hash.
func ParseHash(s string) (Hash, error) {
	var h Hash
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(h) {
		return h, fmt.Errorf("%q is not a SHA-256 in hexadecimal", s)
	}
	copy(h[:], b)
	return h, nil
}

// Event is one entry of a lane's chain: what happened, and its seal.
type Event struct {
	Source   string    `json:"source"` // CloudEvents source: /insp/<site>/<lane>
	Epoch    uint64    `json:"epoch"`  // boot epoch; a clone or a rolled-back disk shows here
	Sequence uint64    `json:"sequence"`
	ID       string    `json:"id"`
	Type     string    `json:"type"`    // org.inspectd.<noun>.<verb>.v1
	Subject  string    `json:"subject"` // the inspection's id, or empty
	Time     time.Time `json:"time"`    // when it happened, on the lane's clock
	Recorded time.Time `json:"recorded"`
	Data     []byte    `json:"data"` // RFC 8785 canonical JSON

	Seal Seal `json:"seal"`
}

// Seal binds an Event to everything before it. Head is the hash of the last
// event of the same commit, which alone is signed; Path holds the digests that
// lead from this event's Hash to Head.
type Seal struct {
	Prev Hash   `json:"prev"`
	Hash Hash   `json:"hash"`
	Head Hash   `json:"head"`
	Path []Hash `json:"path,omitempty"`
	Key  string `json:"key"` // id of the signing key
	Sig  []byte `json:"sig"` // Ed25519 over headStatement
}

// MarshalText writes hexadecimal.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads hexadecimal.
func (h *Hash) UnmarshalText(b []byte) (err error) {
	*h, err = ParseHash(string(b))
	return err
}

// Canonical marshals v as RFC 8785 canonical JSON, the form that is hashed.
func Canonical(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return jcs.Transform(b)
}

// Digest is the hash of the event's own content, without its place in the chain.
func (e *Event) Digest() (Hash, error) {
	data := sha256.Sum256(e.Data)
	b, err := Canonical(map[string]any{
		"source": e.Source, "epoch": fmt.Sprint(e.Epoch), "sequence": fmt.Sprint(e.Sequence),
		"id": e.ID, "type": e.Type, "subject": e.Subject,
		"time": Timestamp(e.Time), "recordedtime": Timestamp(e.Recorded),
		"data": hex.EncodeToString(data[:]),
	})
	if err != nil {
		return Hash{}, err
	}
	return sha256.Sum256(b), nil
}

// Timestamp is the one form in which times are hashed and sent: RFC 3339, UTC,
// nanoseconds as far as they are not zero.
func Timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// Genesis is the hash before the first event of a lane's chain. It binds the
// chain to the lane and to the key it started with.
func Genesis(source string, key ed25519.PublicKey) Hash {
	return sha256.Sum256([]byte("inspectd chain v1\n" + source + "\n" + base64.StdEncoding.EncodeToString(key)))
}

// link is the hash of an event in its place: after prev, with content digest.
func link(prev, digest Hash) Hash {
	h := sha256.New()
	h.Write([]byte("inspectd link v1\n"))
	h.Write(prev[:])
	h.Write(digest[:])
	return Hash(h.Sum(nil))
}

func headStatement(source string, sequence uint64, head Hash) []byte {
	return fmt.Appendf(nil, "inspectd head v1\n%s\n%d\n%s\n", source, sequence, head)
}

// MaxPath bounds the digests an event carries: more events than this in one
// commit are signed in several groups, so that headers stay small.
const MaxPath = 15

// SealCommit seals events, which must already carry consecutive sequences, as
// the continuation of prev, and returns the new chain head. It signs once per
// MaxPath+1 events.
func SealCommit(key *Key, prev Hash, events []*Event) (Hash, error) {
	for len(events) > 0 {
		n := min(len(events), MaxPath+1)
		group := events[:n]
		events = events[n:]
		digests := make([]Hash, n)
		for i, e := range group {
			d, err := e.Digest()
			if err != nil {
				return Hash{}, fmt.Errorf("seal event %d: %w", e.Sequence, err)
			}
			digests[i] = d
			e.Seal.Prev = prev
			prev = link(prev, d)
			e.Seal.Hash = prev
		}
		sig := ed25519.Sign(key.private, headStatement(group[0].Source, group[n-1].Sequence, prev))
		for i, e := range group {
			e.Seal.Head, e.Seal.Key, e.Seal.Sig = prev, key.ID(), sig
			e.Seal.Path = digests[i+1:]
		}
	}
	return prev, nil
}

// BreakError says where a chain does not hold.
type BreakError struct {
	Sequence uint64
	Reason   string
}

func (e *BreakError) Error() string {
	return fmt.Sprintf("chain is broken at event %d: %s", e.Sequence, e.Reason)
}

// Verify checks one event by itself: content, hash, path to the signed head, and
// the signature by key.
func (e *Event) Verify(key ed25519.PublicKey) error {
	d, err := e.Digest()
	if err != nil {
		return &BreakError{e.Sequence, err.Error()}
	}
	if link(e.Seal.Prev, d) != e.Seal.Hash {
		return &BreakError{e.Sequence, "content does not match its hash"}
	}
	head := e.Seal.Hash
	for _, d := range e.Seal.Path {
		head = link(head, d)
	}
	if head != e.Seal.Head {
		return &BreakError{e.Sequence, "path does not lead to the signed head"}
	}
	if KeyID(key) != e.Seal.Key {
		return &BreakError{e.Sequence, "signed with key " + e.Seal.Key + ", expected " + KeyID(key)}
	}
	if !ed25519.Verify(key, headStatement(e.Source, e.Sequence+uint64(len(e.Seal.Path)), head), e.Seal.Sig) {
		return &BreakError{e.Sequence, "signature does not check"}
	}
	return nil
}

// Chain verifies events in order. The zero value is not ready; see NewChain.
type Chain struct {
	key    ed25519.PublicKey
	source string
	next   uint64
	prev   Hash
	epoch  uint64
}

// NewChain verifies the chain of source from its first event.
func NewChain(source string, key ed25519.PublicKey) *Chain {
	return &Chain{key: key, source: source, next: 1, prev: Genesis(source, key)}
}

// Next verifies the next event of the chain.
func (c *Chain) Next(e *Event) error {
	switch {
	case e.Source != c.source:
		return &BreakError{e.Sequence, "belongs to " + e.Source + ", not to " + c.source}
	case e.Sequence != c.next:
		return &BreakError{c.next, fmt.Sprintf("missing: event %d follows", e.Sequence)}
	case e.Seal.Prev != c.prev:
		return &BreakError{e.Sequence, "does not follow the event before it"}
	case e.Epoch < c.epoch:
		return &BreakError{e.Sequence, "boot epoch goes back"}
	}
	if err := e.Verify(c.key); err != nil {
		return err
	}
	c.next, c.prev, c.epoch = e.Sequence+1, e.Seal.Hash, e.Epoch
	return nil
}

// Head is the sequence and hash of the last event that was verified.
func (c *Chain) Head() (uint64, Hash) { return c.next - 1, c.prev }

// Header names of the NATS binding: CloudEvents 1.0 binary mode, and the seal.
const (
	headerEpoch = "insp-epoch"
	headerPrev  = "insp-prev"
	headerHash  = "insp-hash"
	headerHead  = "insp-head"
	headerPath  = "insp-path"
	headerKey   = "insp-key"
	headerSig   = "insp-sig"
)

// Headers are the event's attributes and seal as message headers: CloudEvents
// 1.0, NATS protocol binding, binary mode. Header values here never need
// percent-encoding: all are ASCII tokens.
func (e *Event) Headers() map[string][]string {
	path := make([]string, len(e.Seal.Path))
	for i, h := range e.Seal.Path {
		path[i] = h.String()
	}
	h := map[string][]string{
		"ce-specversion":     {"1.0"},
		"ce-id":              {e.ID},
		"ce-source":          {e.Source},
		"ce-type":            {e.Type},
		"ce-time":            {Timestamp(e.Time)},
		"ce-recordedtime":    {Timestamp(e.Recorded)},
		"ce-sequence":        {fmt.Sprintf("%020d", e.Sequence)},
		"ce-datacontenttype": {"application/json"},
		"ce-dataschema":      {"https://inspectd.org/schema/" + strings.TrimPrefix(e.Type, "org.inspectd.") + ".json"},
		headerEpoch:          {fmt.Sprint(e.Epoch)},
		headerPrev:           {e.Seal.Prev.String()},
		headerHash:           {e.Seal.Hash.String()},
		headerHead:           {e.Seal.Head.String()},
		headerPath:           {strings.Join(path, ",")},
		headerKey:            {e.Seal.Key},
		headerSig:            {base64.StdEncoding.EncodeToString(e.Seal.Sig)},
	}
	if e.Subject != "" {
		h["ce-subject"] = []string{e.Subject}
	}
	return h
}

// ErrNotEvent is returned by FromHeaders for a message that is no event of a lane.
var ErrNotEvent = errors.New("message is not an event of a lane")

// FromHeaders is the reverse of Headers. It verifies nothing.
func FromHeaders(get func(string) string, data []byte) (*Event, error) {
	e := &Event{
		Source: get("ce-source"), ID: get("ce-id"), Type: get("ce-type"),
		Subject: get("ce-subject"), Data: data,
	}
	var err error
	fail := func(what string) (*Event, error) { return nil, fmt.Errorf("%w: header %s", ErrNotEvent, what) }
	if _, err = fmt.Sscanf(get("ce-sequence"), "%d", &e.Sequence); err != nil {
		return fail("ce-sequence")
	}
	if _, err = fmt.Sscanf(get(headerEpoch), "%d", &e.Epoch); err != nil {
		return fail(headerEpoch)
	}
	if e.Time, err = time.Parse(time.RFC3339Nano, get("ce-time")); err != nil {
		return fail("ce-time")
	}
	if e.Recorded, err = time.Parse(time.RFC3339Nano, get("ce-recordedtime")); err != nil {
		return fail("ce-recordedtime")
	}
	for name, h := range map[string]*Hash{headerPrev: &e.Seal.Prev, headerHash: &e.Seal.Hash, headerHead: &e.Seal.Head} {
		if *h, err = ParseHash(get(name)); err != nil {
			return fail(name)
		}
	}
	if path := get(headerPath); path != "" {
		for _, s := range strings.Split(path, ",") {
			h, err := ParseHash(s)
			if err != nil {
				return fail(headerPath)
			}
			e.Seal.Path = append(e.Seal.Path, h)
		}
	}
	e.Seal.Key = get(headerKey)
	if e.Seal.Sig, err = base64.StdEncoding.DecodeString(get(headerSig)); err != nil {
		return fail(headerSig)
	}
	return e, nil
}
