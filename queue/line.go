package queue

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"inspectd.org/inspectd/agent/evidence"
	"inspectd.org/inspectd/agent/lane"
)

func beUint64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

// Draft is an event before it is sealed.
type Draft struct {
	Noun, Verb string
	Subject    string    // inspection id, or empty
	Time       time.Time // when it happened
	Data       any
	Uploads    []lane.Digest // evidence that follows the event upstream
}

// Step is everything that one commit (2) changes. All of it becomes durable
// together or not at all.
type Step struct {
	Cursor      uint64 // last observation correlated; 0 leaves it
	Inspections []*lane.Inspection
	Orphans     []uint64
	Reports     []*lane.Report
	Evidence    []Blob // overlays that reports name
	Events      []Draft
}

// maxEventData is the most an event carries: with its headers it stays under
// 64 KiB. What is longer becomes evidence and is named by its digest.
const maxEventData = 56 << 10

// Commit is commit (2): the state of inspections, their reports, and the events
// that tell of them, sealed as the continuation of the chain, in one transaction.
func (s *Store) Commit(step Step) error {
	drafts, extra, err := canonicalEvents(step.Events)
	if err != nil {
		return err
	}
	blobs := append(extra, step.Evidence...)
	if err := s.writeEvidence(blobs); err != nil {
		return err
	}
	return s.update(func(tx *bbolt.Tx) error {
		st, err := getState(tx)
		if err != nil {
			return err
		}
		if step.Cursor > st.Cursor {
			st.Cursor = step.Cursor
		}
		if err := putSmall(tx, blobs); err != nil {
			return err
		}
		if err := putInspections(tx, st, step); err != nil {
			return err
		}
		if err := s.seal(tx, st, drafts); err != nil {
			return err
		}
		return putState(tx, st)
	})
}

// CloseSilent closes the open inspections that fell silent. silence is asked for
// them, with the lane's running time, inside the transaction, and only when every
// stored observation was correlated: an observation accepted later carries a later
// running time, so a replay closes the same inspections at the same places. While
// observations wait it stores nothing and returns ErrBehind.
func (s *Store) CloseSilent(silence func(elapsed time.Duration) []*lane.Inspection) (closed []*lane.Inspection, err error) {
	err = s.update(func(tx *bbolt.Tx) error {
		st, err := getState(tx)
		if err != nil {
			return err
		}
		if st.Cursor != st.Stored {
			return ErrBehind
		}
		st.Elapsed = max(st.Elapsed, s.elapsed())
		if closed = silence(st.Elapsed); len(closed) == 0 {
			return errNothing
		}
		if err := putInspections(tx, st, Step{Inspections: closed}); err != nil {
			return err
		}
		return putState(tx, st)
	})
	if errors.Is(err, errNothing) {
		err = nil
	}
	return closed, err
}

// errNothing rolls a transaction back that has nothing to say.
var errNothing = errors.New("nothing to store")

// Until is how long until the lane's running time is at.
func (s *Store) Until(at time.Duration) time.Duration {
	return max(0, at-s.elapsed()) + time.Millisecond
}

func putInspections(tx *bbolt.Tx, st *state, step Step) error {
	for _, in := range step.Inspections {
		if tx.Bucket(bktInsp).Get([]byte(in.ID)) == nil {
			st.Inspected++
		}
		if err := putInspection(tx, in); err != nil {
			return err
		}
	}
	for _, seq := range step.Orphans {
		if err := putBytes(tx.Bucket(bktMember), seqKey(seq), []byte(orphanMark)); err != nil {
			return err
		}
	}
	for _, r := range step.Reports {
		key := reportKey(r.Inspection, r.Revision)
		if tx.Bucket(bktReport).Get(key) != nil {
			return fmt.Errorf("report %s exists already: a report is immutable", key)
		}
		if err := put(tx.Bucket(bktReport), key, r); err != nil {
			return err
		}
	}
	return nil
}

func reportKey(id string, revision int) []byte { return fmt.Appendf(nil, "%s/%06d", id, revision) }

func putInspection(tx *bbolt.Tx, in *lane.Inspection) error {
	if err := put(tx.Bucket(bktInsp), []byte(in.ID), in); err != nil {
		return err
	}
	opened := seqKey(in.Observations[0])
	if err := putBytes(tx.Bucket(bktOpened), opened, []byte(in.ID)); err != nil {
		return err
	}
	// "open" holds what still needs work: open inspections and unreported revisions.
	if in.Open() || in.Stale {
		if err := putBytes(tx.Bucket(bktOpen), opened, []byte(in.ID)); err != nil {
			return err
		}
	} else if err := tx.Bucket(bktOpen).Delete(opened); err != nil {
		return err
	}
	if err := putKeys(tx, in); err != nil {
		return err
	}
	// Observations are ascending and never leave: those stored before are a prefix.
	for _, seq := range slices.Backward(in.Observations) {
		if tx.Bucket(bktMember).Get(seqKey(seq)) != nil {
			break
		}
		if err := putBytes(tx.Bucket(bktMember), seqKey(seq), []byte(in.ID)); err != nil {
			return err
		}
	}
	return nil
}

// putKeys lets the keys of an inspection find it, unless they find one that opened
// later: a belt number used again is the later item's, whenever the earlier one is
// written again.
func putKeys(tx *bbolt.Tx, in *lane.Inspection) error {
	for _, k := range in.Keys() {
		id, err := getBytes(tx, bktKey, []byte(k))
		if err == nil && string(id) != in.ID {
			holder, err := get[lane.Inspection](tx, bktInsp, id)
			if err != nil {
				return err
			}
			if holder.Observations[0] > in.Observations[0] {
				continue
			}
		} else if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if err := putBytes(tx.Bucket(bktKey), []byte(k), []byte(in.ID)); err != nil {
			return err
		}
	}
	return nil
}

// sealable is a Draft whose data is canonical.
type sealable struct {
	Draft
	data []byte
}

// canonicalEvents renders the data of drafts outside any transaction, and sets
// aside what is too long for an event.
func canonicalEvents(drafts []Draft) ([]sealable, []Blob, error) {
	out := make([]sealable, len(drafts))
	var extra []Blob
	for i, d := range drafts {
		data, err := evidence.Canonical(d.Data)
		if err != nil {
			return nil, nil, fmt.Errorf("event %s.%s: %w", d.Noun, d.Verb, err)
		}
		if len(data) > maxEventData {
			blob := Blob{lane.Sum(data), data}
			extra = append(extra, blob)
			d.Uploads = append(d.Uploads, blob.Digest)
			data, err = evidence.Canonical(map[string]any{"inspection": d.Subject, "moved_to_evidence": lane.Evidence{
				SHA256: blob.Digest, MediaType: "application/json", Size: int64(len(blob.Bytes)), Role: "event"}})
			if err != nil {
				return nil, nil, err
			}
		}
		out[i] = sealable{d, data}
	}
	return out, extra, nil
}

func (s *Store) seal(tx *bbolt.Tx, st *state, drafts []sealable) error {
	if len(drafts) == 0 {
		return nil
	}
	now := s.opts.Now()
	events := make([]*evidence.Event, len(drafts))
	for i, d := range drafts {
		st.HeadSeq++
		events[i] = &evidence.Event{
			Source: st.Lane.Source(), Epoch: st.Epoch, Sequence: st.HeadSeq,
			ID:   lane.DeriveID("event", st.Lane.Source(), fmt.Sprint(st.HeadSeq), string(lane.Sum(d.data))),
			Type: "org.inspectd." + d.Noun + "." + d.Verb + ".v1", Subject: d.Subject,
			Time: d.Time, Recorded: now, Data: d.data,
		}
	}
	head, err := evidence.SealCommit(s.key, st.Head, events)
	if err != nil {
		return err
	}
	st.Head = head
	for i, e := range events {
		if err := put(tx.Bucket(bktEvent), seqKey(e.Sequence), e); err != nil {
			return err
		}
		if err := addUploads(tx, e.Sequence, drafts[i].Uploads); err != nil {
			return err
		}
	}
	return nil
}

// Upload is evidence that upstream shall hold.
type Upload struct {
	Digest lane.Digest `json:"sha256"`
	After  uint64      `json:"after"` // the event that names it; goes first
}

func addUploads(tx *bbolt.Tx, after uint64, digests []lane.Digest) error {
	for _, d := range digests {
		if tx.Bucket(bktUpload).Get([]byte(d)) != nil || tx.Bucket(bktUploaded).Get([]byte(d)) != nil {
			continue
		}
		if err := put(tx.Bucket(bktUpload), []byte(d), Upload{Digest: d, After: after}); err != nil {
			return err
		}
	}
	return nil
}

// Pending returns up to n events that upstream has not confirmed, in chain order,
// and the place in the stream of the last confirmed one.
func (s *Store) Pending(n int) (events []*evidence.Event, streamSeq uint64, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		st, err := getState(tx)
		if err != nil {
			return err
		}
		streamSeq = st.StreamSeq
		c := tx.Bucket(bktEvent).Cursor()
		for k, v := c.Seek(seqKey(st.Confirmed + 1)); k != nil && len(events) < n; k, v = c.Next() {
			e, err := decode[evidence.Event](bktEvent, k, v)
			if err != nil {
				return err
			}
			events = append(events, e)
		}
		return nil
	})
	return events, streamSeq, err
}

// Event returns one event of the chain, confirmed or not.
func (s *Store) Event(sequence uint64) (e *evidence.Event, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		e, err = get[evidence.Event](tx, bktEvent, seqKey(sequence))
		return err
	})
	return e, err
}

// Confirm is commit (3): upstream holds every event up to sequence, the last of
// them at place streamSeq of its stream.
func (s *Store) Confirm(sequence, streamSeq uint64) error {
	return s.update(func(tx *bbolt.Tx) error {
		st, err := getState(tx)
		if err != nil {
			return err
		}
		if sequence > st.HeadSeq {
			return fmt.Errorf("confirm event %d: the chain ends at %d", sequence, st.HeadSeq)
		}
		st.Confirmed, st.StreamSeq = sequence, streamSeq
		return putState(tx, st)
	})
}

// Reopen takes back what was confirmed beyond sequence, for a server that lost what
// it had acknowledged: those events and their evidence will be sent again. incident
// tells of it and is sealed in the same transaction.
func (s *Store) Reopen(sequence, streamSeq uint64, incident Draft) error {
	drafts, _, err := canonicalEvents([]Draft{incident})
	if err != nil {
		return err
	}
	return s.update(func(tx *bbolt.Tx) error {
		st, err := getState(tx)
		if err != nil {
			return err
		}
		var again []Upload
		if err := each(tx, bktUploaded, func(_ []byte, u *Upload) (bool, error) {
			if u.After > sequence {
				again = append(again, *u)
			}
			return true, nil
		}); err != nil {
			return err
		}
		for _, u := range again {
			if err := tx.Bucket(bktUploaded).Delete([]byte(u.Digest)); err != nil {
				return err
			}
			if err := put(tx.Bucket(bktUpload), []byte(u.Digest), u); err != nil {
				return err
			}
		}
		st.Confirmed, st.StreamSeq = sequence, streamSeq
		if err := s.seal(tx, st, drafts); err != nil {
			return err
		}
		return putState(tx, st)
	})
}

// PendingUploads returns evidence to upload whose event upstream holds, at most n.
func (s *Store) PendingUploads(n int) (due []Upload, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		st, err := getState(tx)
		if err != nil {
			return err
		}
		return each(tx, bktUpload, func(_ []byte, u *Upload) (bool, error) {
			if u.After <= st.Confirmed {
				due = append(due, *u)
			}
			return len(due) < n, nil
		})
	})
	return due, err
}

// Uploaded records that upstream holds the evidence d.
func (s *Store) Uploaded(d lane.Digest) error {
	return s.update(func(tx *bbolt.Tx) error {
		u, err := get[Upload](tx, bktUpload, []byte(d))
		if err != nil {
			return err
		}
		if err := tx.Bucket(bktUpload).Delete([]byte(d)); err != nil {
			return err
		}
		return put(tx.Bucket(bktUploaded), []byte(d), u)
	})
}

// each decodes the values of a bucket in key order until fn returns false.
func each[T any](tx *bbolt.Tx, bucket []byte, fn func(key []byte, v *T) (bool, error)) error {
	c := tx.Bucket(bucket).Cursor()
	for k, raw := c.First(); k != nil; k, raw = c.Next() {
		v, err := decode[T](bucket, k, raw)
		if err != nil {
			return err
		}
		more, err := fn(k, v)
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// Analysis is what an image check answered, kept so that a later revision, or a
// restart, need not ask again. Attempts counts the workers that the image has cost:
// one that crashes them cannot do so for ever (I8).
type Analysis struct {
	Attempts int             `json:"attempts"`
	Result   json.RawMessage `json:"result,omitempty"`
}

// Analysis returns what is kept under key; a zero Analysis when nothing is.
func (s *Store) Analysis(key string) (a Analysis, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		v, err := get[Analysis](tx, bktAnalysis, []byte(key))
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err == nil {
			a = *v
		}
		return err
	})
	return a, err
}

// SetAnalysis stores a under key, and the pictures it refers to.
func (s *Store) SetAnalysis(key string, a Analysis, pictures ...Blob) error {
	if err := s.writeEvidence(pictures); err != nil {
		return err
	}
	return s.update(func(tx *bbolt.Tx) error {
		if err := putSmall(tx, pictures); err != nil {
			return err
		}
		return put(tx.Bucket(bktAnalysis), []byte(key), a)
	})
}
