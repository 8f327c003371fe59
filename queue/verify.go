package queue

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"go.etcd.io/bbolt"

	"inspectd.org/inspectd/agent/evidence"
	"inspectd.org/inspectd/agent/lane"
)

// Verdict is the outcome of Verify: what was checked, and every violation.
type Verdict struct {
	Lane         lane.Lane     `json:"lane"`
	Key          string        `json:"key"`
	Observations uint64        `json:"observations"`
	Quarantined  uint64        `json:"quarantined"`
	Inspections  int           `json:"inspections"`
	Reports      int           `json:"reports"`
	Events       uint64        `json:"events"`
	Confirmed    uint64        `json:"confirmed"`
	Evidence     int           `json:"evidence"`
	Head         evidence.Hash `json:"head"`
	Violations   []string      `json:"violations"`
}

// maxViolations bounds the list: a badly damaged store has as many as values.
const maxViolations = 100

func (v *Verdict) violation(format string, args ...any) {
	if len(v.Violations) < maxViolations {
		v.Violations = append(v.Violations, fmt.Sprintf(format, args...))
	}
}

// Verify checks everything the data folder promises: the checksum of every value,
// counters that add up (I2), every observation in exactly one inspection or an
// orphan and every closed inspection with its reports (I4), the chain with its
// signatures (I7), and the digest of every piece of evidence. The folder must not
// be in use. Violations are listed in the Verdict; an error means that Verify
// could not run.
func Verify(dir string) (*Verdict, error) {
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	return VerifyFile(filepath.Join(dir, "inspectd.db"), dir)
}

// VerifyFile is Verify for a database file, for example a Snapshot of a running
// store, with the keys and evidence of the folder dir.
func VerifyFile(path, dir string) (v *Verdict, err error) {
	defer damaged("verify "+path, &err)()
	public, err := evidence.ReadPublicKey(filepath.Join(dir, "keys", "lane.pem.pub"))
	if err != nil {
		return nil, fmt.Errorf("verify %s: %w", dir, err)
	}
	db, err := openDB(path, true)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	v = &Verdict{Violations: []string{}}
	err = db.View(func(tx *bbolt.Tx) error {
		st, err := getState(tx)
		if err != nil {
			return err
		}
		v.Lane, v.Key, v.Confirmed = st.Lane, st.Key, st.Confirmed
		for page := range tx.Check() {
			v.violation("database page: %v", page)
		}
		w := &walk{tx: tx, st: st, v: v, dir: dir, wanted: map[lane.Digest]bool{}}
		w.observations()
		w.quarantine()
		w.inspections()
		w.chain(public)
		w.evidence()
		return nil
	})
	return v, err
}

// walk is one pass of Verify over a store.
type walk struct {
	tx     *bbolt.Tx
	st     *state
	v      *Verdict
	dir    string
	wanted map[lane.Digest]bool // evidence that something refers to
}

// scan decodes every value of a bucket and reports the damaged ones.
func scan[T any](w *walk, bucket []byte, fn func(key []byte, x *T)) {
	c := w.tx.Bucket(bucket).Cursor()
	for k, raw := c.First(); k != nil; k, raw = c.Next() {
		x, err := decode[T](bucket, k, raw)
		if err != nil {
			w.v.violation("%v", err)
			continue
		}
		fn(k, x)
	}
}

func (w *walk) observations() {
	next := uint64(1)
	scan(w, bktObs, func(_ []byte, o *lane.Observation) {
		if o.Seq != next {
			w.v.violation("observation %d is followed by %d", next-1, o.Seq)
		}
		next = o.Seq + 1
		w.v.Observations++
		for _, e := range o.Evidence {
			w.wanted[e.SHA256] = true
		}
		member, err := getBytes(w.tx, bktMember, seqKey(o.Seq))
		switch {
		case o.Seq > w.st.Cursor && err == nil:
			w.v.violation("observation %d was correlated beyond the cursor %d", o.Seq, w.st.Cursor)
		case o.Seq <= w.st.Cursor && err != nil:
			w.v.violation("observation %d is in no inspection and no orphan: %v", o.Seq, err)
		case err == nil && string(member) != orphanMark:
			in, err := get[lane.Inspection](w.tx, bktInsp, member)
			if err != nil || !slices.Contains(in.Observations, o.Seq) {
				w.v.violation("observation %d is not in its inspection %s", o.Seq, member)
			}
		}
	})
	if w.v.Observations != w.st.Stored {
		w.v.violation("%d observations are stored, the counter says %d", w.v.Observations, w.st.Stored)
	}
	if w.st.Received != w.st.Stored+w.st.Dups+w.st.Refused {
		w.v.violation("received %d is not stored %d + duplicates %d + quarantined %d",
			w.st.Received, w.st.Stored, w.st.Dups, w.st.Refused)
	}
}

func (w *walk) quarantine() {
	scan(w, bktQuar, func(_ []byte, q *Quarantine) {
		w.v.Quarantined++
		w.wanted[q.Payload.SHA256] = true
	})
	if w.v.Quarantined != w.st.Refused {
		w.v.violation("%d messages are in quarantine, the counter says %d", w.v.Quarantined, w.st.Refused)
	}
}

func (w *walk) inspections() {
	owner := map[uint64]string{}
	scan(w, bktInsp, func(_ []byte, in *lane.Inspection) {
		w.v.Inspections++
		for _, seq := range in.Observations {
			if owner[seq] != "" {
				w.v.violation("observation %d is in inspections %s and %s", seq, owner[seq], in.ID)
			}
			owner[seq] = in.ID
		}
		for rev := 1; rev <= in.Revision; rev++ {
			if _, err := get[lane.Report](w.tx, bktReport, reportKey(in.ID, rev)); err != nil {
				w.v.violation("inspection %s has no report of revision %d: %v", in.ID, rev, err)
			}
		}
		if !in.Open() && !in.Stale && in.Revision == 0 {
			w.v.violation("inspection %s is closed and was never reported", in.ID)
		}
	})
	if w.v.Inspections != w.st.Inspected {
		w.v.violation("%d inspections are stored, the counter says %d", w.v.Inspections, w.st.Inspected)
	}
	scan(w, bktReport, func(key []byte, r *lane.Report) {
		w.v.Reports++
		for _, f := range r.Findings {
			for _, d := range f.Evidence {
				w.wanted[d] = true
			}
		}
		in, err := get[lane.Inspection](w.tx, bktInsp, []byte(r.Inspection))
		if err != nil || r.Revision > in.Revision {
			w.v.violation("report %s belongs to no revision of an inspection", key)
		}
	})
}

func (w *walk) chain(public ed25519.PublicKey) {
	chain := evidence.NewChain(w.st.Lane.Source(), public)
	broken := false
	scan(w, bktEvent, func(_ []byte, e *evidence.Event) {
		if broken {
			return
		}
		if err := chain.Next(e); err != nil {
			broken = true
			w.v.violation("%v", err)
		}
	})
	w.v.Events, w.v.Head = chain.Head()
	if !broken && (w.v.Events != w.st.HeadSeq || w.v.Head != w.st.Head) {
		w.v.violation("chain ends at event %d, the store says %d: its tail is missing", w.v.Events, w.st.HeadSeq)
	}
	if w.st.Confirmed > w.st.HeadSeq {
		w.v.violation("event %d is confirmed, the chain ends at %d", w.st.Confirmed, w.st.HeadSeq)
	}
	for _, b := range [][]byte{bktUpload, bktUploaded} {
		scan(w, b, func(_ []byte, u *Upload) { w.wanted[u.Digest] = true })
	}
}

func (w *walk) evidence() {
	for d := range w.wanted {
		w.v.Evidence++
		path := filepath.Join(w.dir, "evidence", string(d[:min(2, len(d))]), string(d))
		if _, err := readEvidence(w.tx, path, d); err != nil {
			w.v.violation("%v", err)
		}
	}
	for _, b := range [][]byte{bktAnalysis, bktDevice} {
		scan(w, b, func([]byte, *any) {})
	}
}

// Err is nil when nothing was violated.
func (v *Verdict) Err() error {
	if len(v.Violations) == 0 {
		return nil
	}
	return errors.New(v.Violations[0])
}
