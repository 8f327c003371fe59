package queue

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"go.etcd.io/bbolt"

	"inspectd.org/inspectd/agent/lane"
)

// Blob is bytes to keep, named by their digest.
type Blob struct {
	Digest lane.Digest
	Bytes  []byte
}

// Refusal says why a message is quarantined instead of read.
type Refusal struct {
	Code   lane.Code `json:"code"`
	Reason string    `json:"reason"`
}

// Arrival is one delivered message as intake hands it over: either an
// observation or a refusal, and in both cases its bytes.
type Arrival struct {
	Topic    string
	Device   string // empty when no device is configured for the topic
	PacketID uint16 // MQTT packet identifier, 0 for QoS 0
	Dup      bool   // MQTT DUP flag
	Session  uint64 // broker session; packet identifiers mean nothing across sessions
	Received time.Time
	Payload  Blob

	Observation *lane.Observation // without ID, Seq and Elapsed, which Accept gives it
	Refusal     *Refusal
}

// Result tells what became of an Arrival.
type Result int

// Results of Accept.
const (
	Stored Result = iota
	Duplicate
	Quarantined
)

// Receipt is the answer to one Arrival, valid once Accept has returned.
type Receipt struct {
	Result Result
	Seq    uint64 // of the observation, or of the one it repeats; for Quarantined of the quarantine entry
	ID     string // of the observation
}

// Quarantine is a refused message as it is kept.
type Quarantine struct {
	Seq      uint64        `json:"seq"`
	Topic    string        `json:"topic"`
	Device   string        `json:"device,omitempty"`
	Received time.Time     `json:"received"`
	Payload  lane.Evidence `json:"payload"`
	Refusal
}

// DeviceStats is what the store counts for one device.
type DeviceStats struct {
	Received    uint64    `json:"received"`
	Stored      uint64    `json:"stored"`
	Duplicates  uint64    `json:"duplicates"`
	Quarantined uint64    `json:"quarantined"`
	QoS0        uint64    `json:"qos0"`
	Damaged     uint64    `json:"damaged"` // images stored although their file is damaged
	Last        time.Time `json:"last_message"`
	LastRefusal *Refusal  `json:"last_refusal,omitempty"`
	RefusedAt   time.Time `json:"last_refusal_time,omitzero"`
}

// dedupeWindow is how many observations back a redelivery is recognised by its
// packet identifier. Brokers reuse an identifier only after some 65 000 others,
// and have far fewer messages in flight.
const dedupeWindow = 4096

// Accept is commit (1): evidence synced first, then one transaction for the whole
// batch. When it returns nil, every arrival is durable and may be acknowledged,
// in order. On ErrFull nothing was stored and the batch may be offered again; on
// ErrFinal nothing may be acknowledged any more.
func (s *Store) Accept(batch []Arrival) ([]Receipt, error) {
	if err := s.freeSpace(); err != nil {
		return nil, err
	}
	blobs := make([]Blob, len(batch))
	for i := range batch {
		blobs[i] = batch[i].Payload
		batch[i].refuseUnstorable()
	}
	if err := s.writeEvidence(blobs); err != nil {
		return nil, err
	}
	receipts := make([]Receipt, len(batch))
	err := s.update(func(tx *bbolt.Tx) error {
		st, err := getState(tx)
		if err != nil {
			return err
		}
		// Taken inside the transaction: with a single writer, running time and arrival
		// sequence then agree, and silence is the same in a replay.
		st.Elapsed = max(st.Elapsed, s.elapsed())
		for i := range batch {
			if receipts[i], err = s.acceptOne(tx, st, &batch[i]); err != nil {
				return fmt.Errorf("accept message on %s: %w", batch[i].Topic, err)
			}
		}
		return putState(tx, st)
	})
	return receipts, err
}

// refuseUnstorable turns an observation that has no JSON form into a refusal. No
// decoder makes one; but one that did would otherwise stop the lane, since the
// broker would deliver its message again for ever.
func (a *Arrival) refuseUnstorable() {
	if a.Observation == nil {
		return
	}
	if _, err := json.Marshal(a.Observation); err != nil {
		a.Observation, a.Refusal = nil, &Refusal{"MSG_DECODE", "it cannot be stored: " + err.Error()}
	}
}

func (s *Store) acceptOne(tx *bbolt.Tx, st *state, a *Arrival) (Receipt, error) {
	st.Received++
	if seq, err := findRepeat(tx, st, a); err != nil || seq > 0 {
		if err != nil {
			return Receipt{}, err
		}
		st.Dups++
		return s.duplicate(tx, a, seq)
	}
	if err := putSmall(tx, []Blob{a.Payload}); err != nil {
		return Receipt{}, err
	}
	var r Receipt
	var err error
	if a.Refusal != nil {
		r, err = quarantine(tx, st, a)
	} else {
		r, err = record(tx, st, a)
	}
	if err != nil {
		return r, err
	}
	return r, count(tx, a, r)
}

func (s *Store) duplicate(tx *bbolt.Tx, a *Arrival, seq uint64) (Receipt, error) {
	r := Receipt{Result: Duplicate, Seq: seq}
	if a.Observation != nil {
		o, err := get[lane.Observation](tx, bktObs, seqKey(seq))
		if err != nil {
			return r, err
		}
		r.ID = o.ID
	}
	return r, count(tx, a, r)
}

// record stores an observation under the next sequence and gives it its id.
func record(tx *bbolt.Tx, st *state, a *Arrival) (Receipt, error) {
	copied := *a.Observation // the batch may be offered again
	o := &copied
	o.Notes = slices.Clone(o.Notes)
	st.Stored++
	o.Seq, o.Elapsed = st.Stored, st.Elapsed
	own := o.MessageID
	if own == "" {
		own = strconv.FormatUint(o.Seq, 10)
	}
	o.ID = lane.DeriveID("observation", st.Lane.Source(), o.Device, own)
	if tx.Bucket(bktObsID).Get([]byte(o.ID)) != nil {
		// The device used an id again for other content (its counter restarted).
		// Both messages are kept; the later one gets an id of its own.
		o.Notes = append(o.Notes, lane.Problem{Code: "CUS_REPEAT", Severity: "warning",
			Text: "the device used message id " + strconv.Quote(o.MessageID) + " before, with other content"})
		o.ID = lane.DeriveID("observation", st.Lane.Source(), o.Device, own, strconv.FormatUint(o.Seq, 10))
	}
	if err := put(tx.Bucket(bktObs), seqKey(o.Seq), o); err != nil {
		return Receipt{}, err
	}
	if err := putBytes(tx.Bucket(bktObsID), []byte(o.ID), seqKey(o.Seq)); err != nil {
		return Receipt{}, err
	}
	return Receipt{Result: Stored, Seq: o.Seq, ID: o.ID}, remember(tx, a, 'o', o.Seq)
}

func quarantine(tx *bbolt.Tx, st *state, a *Arrival) (Receipt, error) {
	st.Refused++
	q := Quarantine{Seq: st.Refused, Topic: a.Topic, Device: a.Device, Received: a.Received, Refusal: *a.Refusal,
		Payload: lane.Evidence{SHA256: a.Payload.Digest, MediaType: "application/octet-stream", Size: int64(len(a.Payload.Bytes)), Role: "original"}}
	if err := put(tx.Bucket(bktQuar), seqKey(q.Seq), q); err != nil {
		return Receipt{}, err
	}
	return Receipt{Result: Quarantined, Seq: q.Seq}, remember(tx, a, 'q', q.Seq)
}

// The two ways in which a repeat is recognised (I3). By the device's own id: the
// same id with the same content is the same message, however often it comes. By
// the broker: a redelivery repeats topic, packet identifier and content within one
// session, and has DUP set; two equal barcodes in flight differ in their packet identifier.
//
// Keys are derived: what devices choose may be longer than a key of the database.
func ownKey(a *Arrival) []byte {
	if a.Observation == nil || a.Observation.MessageID == "" {
		return nil
	}
	return []byte(lane.DeriveID("own id", a.Device, a.Observation.MessageID, string(a.Payload.Digest)))
}

func redeliveryKey(a *Arrival) []byte {
	if a.PacketID == 0 {
		return nil
	}
	return []byte(lane.DeriveID("redelivery", strconv.FormatUint(a.Session, 10), a.Topic, strconv.Itoa(int(a.PacketID)), string(a.Payload.Digest)))
}

func remember(tx *bbolt.Tx, a *Arrival, what byte, seq uint64) error {
	for _, k := range [][]byte{ownKey(a), redeliveryKey(a)} {
		if k == nil {
			continue
		}
		if err := putBytes(tx.Bucket(bktDedupe), k, append([]byte{what}, seqKey(seq)...)); err != nil {
			return err
		}
	}
	return nil
}

// findRepeat returns the sequence of the entry that a repeats, or 0.
func findRepeat(tx *bbolt.Tx, st *state, a *Arrival) (uint64, error) {
	want, last := byte('o'), st.Stored
	if a.Refusal != nil {
		want, last = 'q', st.Refused
	}
	look := func(key []byte, window uint64) (uint64, error) {
		if key == nil {
			return 0, nil
		}
		v, err := getBytes(tx, bktDedupe, key)
		if errors.Is(err, ErrNotFound) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		seq := beUint64(v[1:])
		if v[0] != want || last-seq >= window {
			return 0, nil
		}
		return seq, nil
	}
	seq, err := look(ownKey(a), ^uint64(0))
	if seq > 0 || err != nil || !a.Dup {
		return seq, err
	}
	return look(redeliveryKey(a), dedupeWindow)
}

// NewSession records that the broker began a new session for this lane, and
// returns its number.
func (s *Store) NewSession() (n uint64, err error) {
	err = s.update(func(tx *bbolt.Tx) error {
		st, err := getState(tx)
		if err != nil {
			return err
		}
		st.Session++
		n = st.Session
		return putState(tx, st)
	})
	return n, err
}

// Session returns the number of the last broker session.
func (s *Store) Session() (n uint64, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		st, err := getState(tx)
		if err == nil {
			n = st.Session
		}
		return err
	})
	return n, err
}

// unknownDevice is the name under which messages without a configured device are
// counted.
const unknownDevice = "?"

func count(tx *bbolt.Tx, a *Arrival, r Receipt) error {
	name := a.Device
	if name == "" {
		name = unknownDevice
	}
	d, err := get[DeviceStats](tx, bktDevice, []byte(name))
	if errors.Is(err, ErrNotFound) {
		d, err = &DeviceStats{}, nil
	}
	if err != nil {
		return err
	}
	d.Received++
	d.Last = a.Received
	if a.PacketID == 0 {
		d.QoS0++
	}
	switch r.Result {
	case Stored:
		d.Stored++
		if img := a.Observation.Image; img != nil && img.Damage != "" {
			d.Damaged++
			d.LastRefusal, d.RefusedAt = &Refusal{img.Code, img.Damage}, a.Received
		}
	case Duplicate:
		d.Duplicates++
	case Quarantined:
		d.Quarantined++
		d.LastRefusal, d.RefusedAt = a.Refusal, a.Received
	}
	return put(tx.Bucket(bktDevice), []byte(name), d)
}
