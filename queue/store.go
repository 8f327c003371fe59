// Package queue keeps what a lane has seen and what upstream has not yet
// confirmed: one bbolt file, and evidence files named by their SHA-256.
//
// Three commits move data along the line. Accept makes a message durable before
// it is acknowledged to the broker; Commit stores the state of inspections
// together with the sealed events that tell of it; Confirm marks what upstream
// holds. A crash between any two repeats a step and never skips one.
package queue

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"inspectd.org/inspectd/agent/evidence"
	"inspectd.org/inspectd/agent/lane"
)

// FormatVersion is the version of the store's format. A store of another version
// is refused, never guessed at.
const FormatVersion = 1

// Errors a caller decides on.
var (
	// ErrFull is returned when there is no room. Nothing was stored; the same call
	// may succeed later.
	ErrFull = errors.New("the disk that holds the queue is full")
	// ErrFinal is returned when a write or sync failed in a way that leaves unknown
	// what is on disk (I13): the process must acknowledge nothing more and exit.
	ErrFinal = errors.New("storage failed; what is on disk is uncertain")
	// ErrBehind is returned by CloseSilent while observations wait to be correlated.
	ErrBehind = errors.New("observations wait to be correlated")
	// ErrNotFound is returned when nothing is stored under a name.
	ErrNotFound = errors.New("not in the store")
	// ErrCorrupt is returned when a stored value fails its checksum.
	ErrCorrupt = errors.New("stored value is damaged")
	// ErrLocked is returned when another process uses the data folder.
	ErrLocked = errors.New("the data folder is in use by another inspectd")
)

// The buckets. Keys that are sequences are 8 bytes, big endian.
var (
	bktMeta     = []byte("meta")
	bktObs      = []byte("observations") // seq -> lane.Observation
	bktObsID    = []byte("observation_ids")
	bktDedupe   = []byte("dedupe")
	bktMember   = []byte("members") // seq -> inspection id, or orphanMark
	bktInsp     = []byte("inspections")
	bktOpened   = []byte("opened") // seq of the opening observation -> inspection id
	bktOpen     = []byte("open")   // the same, open inspections only
	bktKey      = []byte("keys")   // identifier key -> latest inspection id
	bktReport   = []byte("reports")
	bktAnalysis = []byte("analyses")
	bktEvent    = []byte("events")   // sequence -> evidence.Event
	bktUpload   = []byte("uploads")  // digest -> Upload, still to be sent
	bktUploaded = []byte("uploaded") // digest -> Upload, upstream holds it
	bktQuar     = []byte("quarantine")
	bktSmall    = []byte("small") // digest -> bytes of evidence below SmallLimit
	bktDevice   = []byte("devices")

	buckets = [][]byte{bktMeta, bktObs, bktObsID, bktDedupe, bktMember, bktInsp, bktOpened, bktOpen,
		bktKey, bktReport, bktAnalysis, bktEvent, bktUpload, bktUploaded, bktQuar, bktSmall, bktDevice}
)

const orphanMark = "orphan"

// state is the store's one record of where it stands. It is written by every
// transaction that moves something.
type state struct {
	Version   int           `json:"version"`
	Lane      lane.Lane     `json:"lane"`
	Key       string        `json:"key"` // id of the lane's key at creation
	Epoch     uint64        `json:"epoch"`
	Session   uint64        `json:"session"` // broker session
	Elapsed   time.Duration `json:"elapsed_ns"`
	Received  uint64        `json:"received"`   // messages acknowledged or about to be
	Stored    uint64        `json:"stored"`     // = last observation sequence
	Dups      uint64        `json:"duplicates"` // recognised repeats
	Refused   uint64        `json:"quarantined"`
	Cursor    uint64        `json:"cursor"` // last observation that was correlated
	Inspected int           `json:"inspections"`
	HeadSeq   uint64        `json:"head_sequence"`
	Head      evidence.Hash `json:"head"`
	// Confirmed is the last event upstream holds, StreamSeq its place in the stream,
	// the expectation of the next compare-and-append.
	Confirmed uint64 `json:"confirmed"`
	StreamSeq uint64 `json:"stream_sequence"`
}

// Options configure a Store.
type Options struct {
	KeepFree int64            // bytes of the disk that intake leaves free
	Now      func() time.Time // nil means time.Now
}

// Store is an open data folder. Its methods are safe for concurrent use.
type Store struct {
	dir      string
	lockFile *os.File
	db       *bbolt.DB
	key      *evidence.Key
	lane     lane.Lane
	opts     Options

	started time.Time     // monotonic reading at open
	base    time.Duration // the lane's running time at open

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every commit
	failed  error         // the first final error; nothing is written after it
}

// Create makes a new data folder for a lane, with a new key. It refuses a folder
// that already holds one: a chain is never started twice.
func Create(dir string, l lane.Lane) error {
	if !lane.ValidToken(l.Site) || !lane.ValidToken(l.ID) {
		return fmt.Errorf("create the data folder of lane %s/%s: site and id are 1 to 32 characters of a-z, 0-9 and '-'", l.Site, l.ID)
	}
	for _, d := range []string{"", "evidence", "keys", filepath.Join("keys", "trust"), "packs", "control"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o750); err != nil {
			return fmt.Errorf("create data folder: %w", err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "keys"), 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, "inspectd.db")
	if _, err := os.Stat(path); err == nil {
		return fmt.Errorf("create data folder: %s already holds a lane's data", dir)
	}
	if used, err := filepath.Glob(filepath.Join(dir, "evidence", "*")); err != nil || len(used) > 0 {
		return errors.Join(err, fmt.Errorf("create data folder: %s holds a lane's evidence but no inspectd.db: put the database back from a backup, or choose an empty folder and a new lane id", dir))
	}
	key, err := laneKey(dir)
	if err != nil {
		return err
	}
	// A file whose first pages are cut short by a power failure is unusable, so it
	// gets its name only when it is complete and synced.
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := bbolt.Open(fresh, 0o640, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return fmt.Errorf("create %s: %w", fresh, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range buckets {
			if _, err := tx.CreateBucket(b); err != nil {
				return err
			}
		}
		return putState(tx, &state{Version: FormatVersion, Lane: l, Key: key.ID(),
			Head: evidence.Genesis(l.Source(), key.Public())})
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("create %s: %w", fresh, err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	return syncDir(dir)
}

// laneKey reads the lane's key, or makes it when an earlier Create was cut short
// before the store existed.
func laneKey(dir string) (*evidence.Key, error) {
	path := filepath.Join(dir, "keys", "lane.pem")
	key, err := evidence.ReadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = evidence.NewKey(); err != nil {
		return nil, err
	}
	return key, key.WriteFile(path)
}

// Open opens an existing data folder for the daemon and begins a new boot epoch.
// It never creates anything: a missing store is an error, because inventing one
// would start a second chain.
func Open(dir string, opts Options) (*Store, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, lockFile: lock, opts: opts, started: time.Now(), changed: make(chan struct{})}
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) open() (err error) {
	if s.db, err = openDB(filepath.Join(s.dir, "inspectd.db"), false); err != nil {
		return err
	}
	if s.key, err = evidence.ReadKey(filepath.Join(s.dir, "keys", "lane.pem")); err != nil {
		return fmt.Errorf("open the lane's key: %w", err)
	}
	return s.update(func(tx *bbolt.Tx) error {
		st, err := getState(tx)
		if err != nil {
			return err
		}
		if st.Key != s.key.ID() {
			return fmt.Errorf("open %s: keys/lane.pem is key %s, the store was made with %s", s.dir, s.key.ID(), st.Key)
		}
		s.lane, s.base = st.Lane, st.Elapsed
		st.Epoch++
		return putState(tx, st)
	})
}

// damaged guards the use of a database file that may be damaged: bbolt then panics,
// and a file shorter than its own pages say faults in the memory map. Both become
// ErrCorrupt. It is used as: defer damaged("open x", &err)().
func damaged(what string, err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			*err = fmt.Errorf("%s: %w: %v", what, ErrCorrupt, r)
		}
	}
}

// openDB opens a bbolt file that must exist.
func openDB(path string, readOnly bool) (db *bbolt.DB, err error) {
	defer damaged("open "+path, &err)()
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("open the store: %w (a new lane's is made with 'inspectd init')", err)
	}
	db, err = bbolt.Open(path, 0o640, &bbolt.Options{
		Timeout: 2 * time.Second, FreelistType: bbolt.FreelistMapType, ReadOnly: readOnly,
		// Address space only: the map never has to grow while a reader holds it.
		InitialMmapSize: 1 << 30,
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	err = db.View(func(tx *bbolt.Tx) error {
		for _, b := range buckets {
			if tx.Bucket(b) == nil {
				return fmt.Errorf("open %s: %w: bucket %s is missing", path, ErrCorrupt, b)
			}
		}
		st, err := getState(tx)
		if err == nil && st.Version != FormatVersion {
			err = fmt.Errorf("open %s: the store has format %d, this program reads %d", path, st.Version, FormatVersion)
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// lockDir locks the data folder itself: a lock on the database file would not
// stop a second daemon once the file is replaced by rename.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the data folder: %w (make it with 'inspectd init')", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", dir, ErrLocked)
	}
	return f, nil
}

// Close closes the store and releases the folder.
func (s *Store) Close() error {
	var err error
	if s.db != nil {
		err = s.db.Close()
	}
	return errors.Join(err, s.lockFile.Close())
}

// Lane is the lane the store belongs to.
func (s *Store) Lane() lane.Lane { return s.lane }

// Key is the lane's signing key.
func (s *Store) Key() *evidence.Key { return s.key }

// elapsed is the lane's running time now. It continues across restarts, leaves out
// the time the daemon was down, and never goes back.
func (s *Store) elapsed() time.Duration { return s.base + time.Since(s.started) }

// Changed returns a channel that is closed at the next commit.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// update runs one read-write transaction. A failure to write for lack of room is
// ErrFull; any other failure of the disk is final for this Store.
func (s *Store) update(fn func(*bbolt.Tx) error) error {
	s.mu.Lock()
	failed := s.failed
	s.mu.Unlock()
	if failed != nil {
		return failed
	}
	var inner error
	err := s.write(func(tx *bbolt.Tx) error {
		inner = fn(tx)
		return inner
	})
	switch {
	case err == nil:
		s.mu.Lock()
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
		return nil
	case inner != nil:
		return inner
	default:
		return s.fault("commit", err)
	}
}

// view runs one read-only transaction.
func (s *Store) view(fn func(*bbolt.Tx) error) (err error) {
	defer damaged("read the store", &err)()
	return s.db.View(fn)
}

func (s *Store) write(fn func(*bbolt.Tx) error) (err error) {
	defer damaged("write the store", &err)()
	return s.db.Update(fn)
}

// fault sorts an error of the disk. A write that found no room left everything
// as it was. Of anything else, above all of a failed sync, nobody knows what
// reached the disk: the page cache may show what the disk does not have.
func (s *Store) fault(what string, err error) error {
	var op *fs.PathError
	if errors.As(err, &op) && op.Op == "write" && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)) {
		return fmt.Errorf("%s: %w: %w", what, ErrFull, err)
	}
	err = fmt.Errorf("%s: %w: %w", what, ErrFinal, err)
	s.mu.Lock()
	if s.failed == nil {
		s.failed = err
	}
	s.mu.Unlock()
	return err
}

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// put stores v as JSON behind a CRC-32C over key and value: bbolt itself checks
// only its two meta pages.
func put(b *bbolt.Bucket, key []byte, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return putBytes(b, key, data)
}

func putBytes(b *bbolt.Bucket, key, data []byte) error {
	buf := make([]byte, 4, 4+len(data))
	buf = append(buf, data...)
	binary.BigEndian.PutUint32(buf, checksum(key, data))
	return b.Put(key, buf)
}

func checksum(key, data []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, crcTable), crcTable, data)
}

// unwrap checks the CRC of a raw value; the result is valid only inside the
// transaction.
func unwrap(key, raw []byte) ([]byte, error) {
	if len(raw) < 4 || binary.BigEndian.Uint32(raw) != checksum(key, raw[4:]) {
		return nil, fmt.Errorf("%w: key %q", ErrCorrupt, key)
	}
	return raw[4:], nil
}

// get reads what put stored.
func get[T any](tx *bbolt.Tx, bucket, key []byte) (*T, error) {
	raw := tx.Bucket(bucket).Get(key)
	if raw == nil {
		return nil, fmt.Errorf("%s %q: %w", bucket, key, ErrNotFound)
	}
	return decode[T](bucket, key, raw)
}

func decode[T any](bucket, key, raw []byte) (*T, error) {
	data, err := unwrap(key, raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", bucket, err)
	}
	v := new(T)
	if err := json.Unmarshal(data, v); err != nil {
		return nil, fmt.Errorf("%s %q: %w: %w", bucket, key, ErrCorrupt, err)
	}
	return v, nil
}

func getBytes(tx *bbolt.Tx, bucket, key []byte) ([]byte, error) {
	raw := tx.Bucket(bucket).Get(key)
	if raw == nil {
		return nil, fmt.Errorf("%s %q: %w", bucket, key, ErrNotFound)
	}
	data, err := unwrap(key, raw)
	return append([]byte(nil), data...), err
}

func seqKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

var stateKey = []byte("state")

func getState(tx *bbolt.Tx) (*state, error)  { return get[state](tx, bktMeta, stateKey) }
func putState(tx *bbolt.Tx, st *state) error { return put(tx.Bucket(bktMeta), stateKey, st) }
