package queue

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"inspectd.org/inspectd/agent/lane"
)

// SmallLimit is the size up to which evidence lies in the database. Larger
// values cost bbolt about seven times their size in writes.
const SmallLimit = 32 << 10

func (s *Store) evidencePath(d lane.Digest) string {
	return filepath.Join(s.dir, "evidence", string(d[:2]), string(d))
}

// writeEvidence makes the large ones of blobs durable as files named by their
// digest. The order of calls, per file: open temp, write, fsync, close, rename;
// then fsync of every directory that got a new name. Only after that may a
// transaction refer to them. A file that exists already is complete: it got its
// name after its content was synced.
func (s *Store) writeEvidence(blobs []Blob) error {
	dirs := map[string]bool{}
	for _, b := range blobs {
		if len(b.Bytes) <= SmallLimit {
			continue
		}
		path := s.evidencePath(b.Digest)
		if info, err := os.Stat(path); err == nil && info.Size() == int64(len(b.Bytes)) {
			// It may be there only because of a crash before its directory was synced.
			dirs[filepath.Dir(path)] = true
			continue
		}
		if err := s.makeEvidenceDir(filepath.Dir(path)); err != nil {
			return err
		}
		if err := s.writeFile(path, b.Bytes); err != nil {
			return err
		}
		dirs[filepath.Dir(path)] = true
	}
	for dir := range dirs {
		if err := syncDir(dir); err != nil {
			return s.fault("sync "+dir, err)
		}
	}
	return nil
}

func (s *Store) makeEvidenceDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		if errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("make %s: %w: %w", dir, ErrFull, err)
		}
		return s.fault("make "+dir, err)
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return s.fault("sync "+filepath.Dir(dir), err)
	}
	return nil
}

func (s *Store) writeFile(path string, data []byte) error {
	temp := path + ".part"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		if errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("make %s: %w: %w", temp, ErrFull, err)
		}
		return s.fault("make "+temp, err)
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		os.Remove(temp)
		return s.fault("write "+temp, err)
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return s.fault("sync "+temp, err)
	}
	if err := f.Close(); err != nil {
		return s.fault("close "+temp, err)
	}
	if err := os.Rename(temp, path); err != nil {
		return s.fault("rename "+temp, err)
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// putSmall stores the small ones of blobs inside tx.
func putSmall(tx *bbolt.Tx, blobs []Blob) error {
	for _, b := range blobs {
		if len(b.Bytes) > SmallLimit {
			continue
		}
		if err := putBytes(tx.Bucket(bktSmall), []byte(b.Digest), b.Bytes); err != nil {
			return err
		}
	}
	return nil
}

// Evidence returns the bytes named d, verified against their name. A mismatch is
// ErrCorrupt: damaged bytes are never handed out as evidence.
func (s *Store) Evidence(d lane.Digest) ([]byte, error) {
	if !d.Valid() {
		return nil, fmt.Errorf("evidence %q: %w", d, ErrNotFound)
	}
	var data []byte
	err := s.view(func(tx *bbolt.Tx) (err error) {
		data, err = readEvidence(tx, s.evidencePath(d), d)
		return err
	})
	return data, err
}

func readEvidence(tx *bbolt.Tx, path string, d lane.Digest) ([]byte, error) {
	data, err := getBytes(tx, bktSmall, []byte(d))
	if errors.Is(err, ErrNotFound) {
		data, err = os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("evidence %s: %w", d, ErrNotFound)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("evidence %s: %w", d, err)
	}
	if lane.Sum(data) != d {
		return nil, fmt.Errorf("evidence %s: %w: its bytes have another digest", d, ErrCorrupt)
	}
	return data, nil
}

// freeSpace fails with ErrFull when the disk has less than KeepFree left.
func (s *Store) freeSpace() error {
	if s.opts.KeepFree <= 0 {
		return nil
	}
	free, err := s.FreeBytes()
	if err != nil {
		return fmt.Errorf("look for free space: %w", err)
	}
	if free < s.opts.KeepFree {
		return fmt.Errorf("%w: %d MiB free, queue.keep_free is %d MiB", ErrFull, free>>20, s.opts.KeepFree>>20)
	}
	return nil
}

// FreeBytes is the room left on the disk that holds the store.
func (s *Store) FreeBytes() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}
