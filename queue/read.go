package queue

import (
	"errors"
	"os"
	"time"

	"go.etcd.io/bbolt"

	"inspectd.org/inspectd/agent/evidence"
	"inspectd.org/inspectd/agent/lane"
)

// Unread returns up to n observations that were not yet correlated, in order.
func (s *Store) Unread(n int) (list []*lane.Observation, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		st, err := getState(tx)
		if err != nil {
			return err
		}
		c := tx.Bucket(bktObs).Cursor()
		for k, v := c.Seek(seqKey(st.Cursor + 1)); k != nil && len(list) < n; k, v = c.Next() {
			o, err := decode[lane.Observation](bktObs, k, v)
			if err != nil {
				return err
			}
			list = append(list, o)
		}
		return nil
	})
	return list, err
}

// Unfinished returns the inspections that are open or hold something no report
// covers, in the order they opened.
func (s *Store) Unfinished() (list []*lane.Inspection, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bktOpen).Cursor()
		for k, raw := c.First(); k != nil; k, raw = c.Next() {
			id, err := unwrap(k, raw)
			if err != nil {
				return err
			}
			in, err := get[lane.Inspection](tx, bktInsp, id)
			if err != nil {
				return err
			}
			list = append(list, in)
		}
		return nil
	})
	return list, err
}

// ByKey returns the latest inspection with an identifier key, nil if there is none.
func (s *Store) ByKey(key string) (in *lane.Inspection, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		id, err := getBytes(tx, bktKey, []byte(key))
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		in, err = get[lane.Inspection](tx, bktInsp, id)
		return err
	})
	return in, err
}

// Inspection returns an inspection by id.
func (s *Store) Inspection(id string) (in *lane.Inspection, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		in, err = get[lane.Inspection](tx, bktInsp, []byte(id))
		return err
	})
	return in, err
}

// Observations returns the observations with the given sequences.
func (s *Store) Observations(seqs []uint64) (list []*lane.Observation, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		for _, n := range seqs {
			o, err := get[lane.Observation](tx, bktObs, seqKey(n))
			if err != nil {
				return err
			}
			list = append(list, o)
		}
		return nil
	})
	return list, err
}

// Report returns one revision of an inspection's report.
func (s *Store) Report(id string, revision int) (r *lane.Report, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		r, err = get[lane.Report](tx, bktReport, reportKey(id, revision))
		return err
	})
	return r, err
}

// Recent returns the n inspections opened last, newest first.
func (s *Store) Recent(n int) (list []*lane.Inspection, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bktOpened).Cursor()
		for k, raw := c.Last(); k != nil && len(list) < n; k, raw = c.Prev() {
			id, err := unwrap(k, raw)
			if err != nil {
				return err
			}
			in, err := get[lane.Inspection](tx, bktInsp, id)
			if err != nil {
				return err
			}
			list = append(list, in)
		}
		return nil
	})
	return list, err
}

// Quarantined returns the n messages refused last, newest first.
func (s *Store) Quarantined(n int) (list []*Quarantine, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bktQuar).Cursor()
		for k, raw := c.Last(); k != nil && len(list) < n; k, raw = c.Prev() {
			q, err := decode[Quarantine](bktQuar, k, raw)
			if err != nil {
				return err
			}
			list = append(list, q)
		}
		return nil
	})
	return list, err
}

// Orphans returns the n observations that joined no inspection last, newest first.
func (s *Store) Orphans(n int) (list []*lane.Observation, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bktMember).Cursor()
		for k, raw := c.Last(); k != nil && len(list) < n; k, raw = c.Prev() {
			id, err := unwrap(k, raw)
			if err != nil {
				return err
			}
			if string(id) != orphanMark {
				continue
			}
			o, err := get[lane.Observation](tx, bktObs, k)
			if err != nil {
				return err
			}
			list = append(list, o)
		}
		return nil
	})
	return list, err
}

// Stats is where the store stands.
type Stats struct {
	Epoch       uint64                 `json:"epoch"`
	Received    uint64                 `json:"received"`
	Stored      uint64                 `json:"stored"`
	Duplicates  uint64                 `json:"duplicates"`
	Quarantined uint64                 `json:"quarantined"`
	Correlated  uint64                 `json:"correlated"`
	Inspections int                    `json:"inspections"`
	Events      uint64                 `json:"events"`
	Head        evidence.Hash          `json:"head"`
	Waiting     uint64                 `json:"waiting"` // events upstream has not confirmed
	OldestWait  *time.Time             `json:"oldest_waiting,omitempty"`
	Uploads     int                    `json:"uploads_waiting"`
	FileBytes   int64                  `json:"file_bytes"`
	FreeBytes   int64                  `json:"free_bytes"`
	Devices     map[string]DeviceStats `json:"devices"`
}

// Stats reads the counters. Received = Stored + Duplicates + Quarantined, always.
func (s *Store) Stats() (*Stats, error) {
	out := &Stats{Devices: map[string]DeviceStats{}}
	err := s.view(func(tx *bbolt.Tx) error {
		st, err := getState(tx)
		if err != nil {
			return err
		}
		out.Epoch, out.Received, out.Stored, out.Duplicates = st.Epoch, st.Received, st.Stored, st.Dups
		out.Quarantined, out.Correlated = st.Refused, st.Cursor
		out.Events, out.Head, out.Waiting = st.HeadSeq, st.Head, st.HeadSeq-st.Confirmed
		out.Inspections = st.Inspected
		out.FileBytes = tx.Size()
		if out.Waiting > 0 {
			e, err := get[evidence.Event](tx, bktEvent, seqKey(st.Confirmed+1))
			if err != nil {
				return err
			}
			out.OldestWait = &e.Recorded
		}
		if err := each(tx, bktUpload, func(_ []byte, u *Upload) (bool, error) {
			out.Uploads++
			return true, nil
		}); err != nil {
			return err
		}
		return each(tx, bktDevice, func(k []byte, d *DeviceStats) (bool, error) {
			out.Devices[string(k)] = *d
			return true, nil
		})
	})
	if err != nil {
		return nil, err
	}
	out.FreeBytes, err = s.FreeBytes()
	return out, err
}

// Snapshot copies the database to path, for a check or a backup that must not
// hold a long read transaction.
func (s *Store) Snapshot(path string) error {
	err := s.view(func(tx *bbolt.Tx) error { return tx.CopyFile(path, 0o600) })
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
