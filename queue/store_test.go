package queue_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/queue"
)

var laneName = lane.Lane{Site: "demo", ID: "lane-01"}

// openStore makes a store whose every promise is checked when the test ends.
func openStore(t *testing.T) (*queue.Store, string) {
	t.Helper()
	dir := t.TempDir()
	if err := queue.Create(dir, laneName); err != nil {
		t.Fatal(err)
	}
	return reopen(t, dir), dir
}

func reopen(t *testing.T, dir string) *queue.Store {
	t.Helper()
	s, err := queue.Open(dir, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		verified(t, dir)
	})
	return s
}

func verified(t *testing.T, dir string) *queue.Verdict {
	t.Helper()
	v, err := queue.Verify(dir)
	if errors.Is(err, queue.ErrLocked) {
		return v // reopened by the same test, which checks at its own end
	}
	if err != nil || v.Err() != nil {
		t.Errorf("verify: %v %v", err, v)
	}
	return v
}

// scan is a label scan as intake hands it over.
func scan(device, messageID, payload string) queue.Arrival {
	b := []byte(payload)
	return queue.Arrival{Topic: "lane/" + device, Device: device, Received: time.Now(), Payload: queue.Blob{Digest: lane.Sum(b), Bytes: b},
		Observation: &lane.Observation{Device: device, Kind: lane.Label, MessageID: messageID, Topic: "lane/" + device, Received: time.Now().UTC(),
			Evidence: []lane.Evidence{{SHA256: lane.Sum(b), MediaType: "text/plain", Size: int64(len(b)), Role: "original"}}}}
}

func garbage(payload string) queue.Arrival {
	a := scan("cam", "", payload)
	a.Observation, a.Refusal = nil, &queue.Refusal{Code: "MSG_DECODE", Reason: "not a picture"}
	return a
}

func accept(t *testing.T, s *queue.Store, batch ...queue.Arrival) []queue.Receipt {
	t.Helper()
	r, err := s.Accept(batch)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestAccept: what is accepted is there after a restart, in order, with its bytes,
// small ones and large ones.
func TestAccept(t *testing.T) {
	s, dir := openStore(t)
	large := strings.Repeat("x", queue.SmallLimit+1)
	r := accept(t, s, scan("a", "1", "one"), scan("b", "", large), garbage("junk"), garbage(large+"junk"))
	want := []queue.Result{queue.Stored, queue.Stored, queue.Quarantined, queue.Quarantined}
	for i := range r {
		if r[i].Result != want[i] {
			t.Errorf("message %d: %+v", i, r[i])
		}
	}
	s.Close()
	s = reopen(t, dir)
	list, err := s.Unread(10)
	if err != nil || len(list) != 2 || list[0].Seq != 1 || list[1].Seq != 2 || list[0].ID == list[1].ID || list[0].ID != r[0].ID {
		t.Fatalf("%v %v", list, err)
	}
	for _, text := range []string{"one", large, "junk", large + "junk"} {
		if b, err := s.Evidence(lane.Sum([]byte(text))); err != nil || string(b) != text {
			t.Errorf("evidence of %d bytes: %v", len(text), err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "evidence", string(lane.Sum([]byte(large))[:2]), string(lane.Sum([]byte(large))))); err != nil {
		t.Error("large evidence is no file:", err)
	}
}

// TestRepeats tells repeats from honest equals (I3).
func TestRepeats(t *testing.T) {
	s, _ := openStore(t)
	with := func(a queue.Arrival, session uint64, packet uint16, dup bool) queue.Arrival {
		a.Session, a.PacketID, a.Dup = session, packet, dup
		return a
	}
	for _, c := range []struct {
		what string
		a    queue.Arrival
		want queue.Result
	}{
		{"a barcode", with(scan("s", "", "950600013435"), 1, 1, false), queue.Stored},
		{"the same barcode on the next parcel", with(scan("s", "", "950600013435"), 1, 2, false), queue.Stored},
		{"redelivery of the first", with(scan("s", "", "950600013435"), 1, 1, true), queue.Duplicate},
		{"a third, in flight when the link broke, never seen before", with(scan("s", "", "950600013435"), 1, 3, true), queue.Stored},
		{"the packet id of the first, in a new broker session", with(scan("s", "", "950600013435"), 2, 1, true), queue.Stored},
		{"a message with the device's own id", with(scan("j", "S-1", `{"id":"S-1"}`), 2, 9, false), queue.Stored},
		{"the device sends it again by itself", with(scan("j", "S-1", `{"id":"S-1"}`), 2, 10, false), queue.Duplicate},
		{"its counter restarts: same id, other content", with(scan("j", "S-1", `{"id":"S-1","n":2}`), 2, 11, false), queue.Stored},
		{"garbage", with(garbage("junk"), 2, 12, false), queue.Quarantined},
		{"redelivered garbage", with(garbage("junk"), 2, 12, true), queue.Duplicate},
	} {
		if got := accept(t, s, c.a)[0].Result; got != c.want {
			t.Errorf("%s: result %d, want %d", c.what, got, c.want)
		}
	}
	list, err := s.Unread(20)
	if err != nil {
		t.Fatal(err)
	}
	last := list[len(list)-1]
	if len(last.Notes) != 1 || last.Notes[0].Code != "CUS_REPEAT" {
		t.Errorf("the restarted counter left no note: %+v", last)
	}
	st, _ := s.Stats()
	if st.Received != 10 || st.Stored != 6 || st.Duplicates != 3 || st.Quarantined != 1 {
		t.Errorf("%+v", st)
	}
}

// TestLongNames: topics and ids longer than a key of the database are stored and
// recognised all the same.
func TestLongNames(t *testing.T) {
	s, _ := openStore(t)
	a := scan("j", strings.Repeat("n", 60<<10), "payload")
	a.Topic, a.PacketID = strings.Repeat("t", 60<<10), 7
	if got := accept(t, s, a)[0].Result; got != queue.Stored {
		t.Errorf("result %d", got)
	}
	a = scan("j", strings.Repeat("n", 60<<10), "payload")
	if got := accept(t, s, a)[0].Result; got != queue.Duplicate {
		t.Errorf("result %d", got)
	}
}

// commitEvents seals n events.
func commitEvents(t *testing.T, s *queue.Store, n int) {
	t.Helper()
	var drafts []queue.Draft
	for i := range n {
		drafts = append(drafts, queue.Draft{Noun: "lane", Verb: "changed", Time: time.Now(), Data: map[string]any{"n": i}})
	}
	if err := s.Commit(queue.Step{Events: drafts}); err != nil {
		t.Fatal(err)
	}
}

// TestOutbox: events wait in order until they are confirmed, also across restarts,
// and come back when upstream lost them.
func TestOutbox(t *testing.T) {
	s, dir := openStore(t)
	commitEvents(t, s, 5)
	events, at, err := s.Pending(3)
	if err != nil || len(events) != 3 || events[0].Sequence != 1 || at != 0 {
		t.Fatalf("%v %d %v", events, at, err)
	}
	if err := s.Confirm(3, 17); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = reopen(t, dir)
	commitEvents(t, s, 1)
	events, at, _ = s.Pending(10)
	if len(events) != 3 || events[0].Sequence != 4 || at != 17 || events[2].Epoch != 2 || events[0].Epoch != 1 {
		t.Fatalf("%v %d", events, at)
	}
	if err := s.Confirm(1, 9); err != nil {
		t.Fatal(err)
	}
	if events, _, _ = s.Pending(10); len(events) != 5 {
		t.Errorf("%d events wait after the server lost some, want 5", len(events))
	}
	if err := s.Confirm(99, 9); err == nil {
		t.Error("an event that does not exist was confirmed")
	}
}

// TestLongEvent: what is too long for an event goes to evidence and is named.
func TestLongEvent(t *testing.T) {
	s, _ := openStore(t)
	long := strings.Repeat("long ", 20000)
	if err := s.Commit(queue.Step{Events: []queue.Draft{{Noun: "inspection", Verb: "reported", Time: time.Now(), Data: map[string]string{"text": long}}}}); err != nil {
		t.Fatal(err)
	}
	events, _, _ := s.Pending(1)
	if len(events[0].Data) > 1000 || !bytes.Contains(events[0].Data, []byte("moved_to_evidence")) {
		t.Fatalf("event of %d bytes", len(events[0].Data))
	}
	s.Confirm(1, 1)
	due, err := s.PendingUploads(5)
	if err != nil || len(due) != 1 {
		t.Fatalf("%v %v", due, err)
	}
	if b, err := s.Evidence(due[0].Digest); err != nil || !bytes.Contains(b, []byte(long)) {
		t.Error(err)
	}
}

// TestOneDaemon: two daemons never share a data folder, and nothing is invented.
func TestOneDaemon(t *testing.T) {
	_, dir := openStore(t)
	if _, err := queue.Open(dir, queue.Options{}); !errors.Is(err, queue.ErrLocked) {
		t.Errorf("a second daemon: %v", err)
	}
	if err := queue.Create(dir, laneName); err == nil {
		t.Error("a second chain was begun")
	}
	if _, err := queue.Open(t.TempDir(), queue.Options{}); err == nil || !strings.Contains(err.Error(), "inspectd init") {
		t.Errorf("an empty folder: %v", err)
	}
}

// TestFull: without room nothing is stored and nothing is lost; with room the same
// call succeeds.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	if err := queue.Create(dir, laneName); err != nil {
		t.Fatal(err)
	}
	s, err := queue.Open(dir, queue.Options{KeepFree: 1 << 60})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Accept([]queue.Arrival{scan("a", "1", "x")}); !errors.Is(err, queue.ErrFull) {
		t.Errorf("%v", err)
	}
	commitEvents(t, s, 1) // the alarm itself still gets through
	s.Close()
	accept(t, reopen(t, dir), scan("a", "1", "x"))
}

// TestFullDisk fills a real file system of one megabyte: every accepted message is
// still there, and intake goes on when there is room.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if os.Geteuid() != 0 {
		t.Skip("SKIP only root can mount a small file system")
	}
	if err := exec.Command("mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", dir).Run(); err != nil {
		skip(t, "mounting a small file system", err)
	}
	t.Cleanup(func() { exec.Command("umount", dir).Run() })
	data := filepath.Join(dir, "lane")
	if err := queue.Create(data, laneName); err != nil {
		t.Fatal(err)
	}
	s, err := queue.Open(data, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	stored := 0
	for i := range 1000 {
		_, err = s.Accept([]queue.Arrival{scan("a", fmt.Sprint(i), fmt.Sprint(i)+strings.Repeat("x", 40<<10))})
		if err != nil {
			break
		}
		stored++
	}
	if !errors.Is(err, queue.ErrFull) || stored == 0 {
		t.Fatalf("after %d messages: %v", stored, err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	accept(t, s, scan("a", "after", "room again"))
	s.Close()
	if v := verified(t, data); v.Observations != uint64(stored+1) {
		t.Errorf("%d observations, %d were accepted", v.Observations, stored+1)
	}
}

// skip says aloud what did not run; where everything is required, it fails.
func skip(t *testing.T, what string, err error) {
	t.Helper()
	if os.Getenv("INSPECTD_REQUIRE") == "all" {
		t.Fatalf("%s: %v", what, err)
	}
	t.Skipf("SKIP %s is not possible here: %v", what, err)
}

// TestDamage: a changed value is found, wherever it is, and never handed out.
func TestDamage(t *testing.T) {
	s, dir := openStore(t)
	large := strings.Repeat("y", 50<<10)
	accept(t, s, scan("a", "1", "needle-in-a-haystack"), scan("a", "2", large))
	commitEvents(t, s, 3)
	s.Close()
	path := filepath.Join(dir, "inspectd.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flip := func(pattern string) {
		b := bytes.Clone(whole)
		// bbolt copies on write: stale pages keep old copies, so every copy is damaged.
		if bytes.Count(b, []byte(pattern)) == 0 {
			t.Fatalf("%q is not in the file", pattern)
		}
		b = bytes.ReplaceAll(b, []byte(pattern), []byte(strings.ToUpper(pattern)))
		if err := os.WriteFile(path, b, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for _, pattern := range []string{"needle-in-a-haystack", `"device":"a"`, `"head_sequence":3`, `org.inspectd.lane`} {
		flip(pattern)
		v, err := queue.Verify(dir)
		if err == nil && v.Err() == nil {
			t.Errorf("damage of %q was not found", pattern)
		}
	}
	flip("needle-in-a-haystack")
	damaged, err := queue.Open(dir, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := damaged.Evidence(lane.Sum([]byte("needle-in-a-haystack"))); !errors.Is(err, queue.ErrCorrupt) {
		t.Errorf("damaged evidence was handed out: %v", err)
	}
	damaged.Close()
	if err := os.WriteFile(path, whole, 0o640); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "evidence", string(lane.Sum([]byte(large))[:2]), string(lane.Sum([]byte(large))))
	os.WriteFile(file, []byte(strings.ToUpper(large)), 0o640)
	if v, err := queue.Verify(dir); err != nil || v.Err() == nil {
		t.Errorf("a changed evidence file was not found: %v", err)
	}
	os.WriteFile(file, []byte(large), 0o640)
}

// TestForeignFile: what is no store is refused, not repaired and not replaced.
func TestForeignFile(t *testing.T) {
	for name, content := range map[string][]byte{"empty": {}, "text": []byte("hello"), "zeroes": make([]byte, 64<<10)} {
		dir := t.TempDir()
		if err := queue.Create(dir, laneName); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "inspectd.db")
		os.WriteFile(path, content, 0o640)
		if s, err := queue.Open(dir, queue.Options{}); err == nil {
			s.Close()
			t.Errorf("%s was opened", name)
		}
		if b, _ := os.ReadFile(path); name != "empty" && !bytes.Equal(b, content) {
			t.Errorf("%s was changed", name)
		}
	}
}

// TestBrokenFile: a file cut short or with pages that are something else is an error
// to whoever opens or verifies it, never a crash; and no second store is made beside
// a lane's evidence.
func TestBrokenFile(t *testing.T) {
	s, dir := openStore(t)
	for i := range 300 {
		accept(t, s, scan("a", fmt.Sprint(i), fmt.Sprint(i, strings.Repeat("z", 2000))))
	}
	accept(t, s, scan("a", "large", strings.Repeat("z", 50_000)))
	s.Close()
	path := filepath.Join(dir, "inspectd.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	overwritten := bytes.Clone(whole)
	for i := 100_000; i < 500_000; i++ { // the file is larger than what it holds
		overwritten[i] = byte(i * 7)
	}
	for name, content := range map[string][]byte{"cut short": whole[:300_000], "cut to its first pages": whole[:3*4096], "overwritten in the middle": overwritten} {
		// A folder for each: whoever fails to open a broken file may keep it locked.
		broken := func() string {
			copied := filepath.Join(t.TempDir(), "lane")
			if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			os.WriteFile(filepath.Join(copied, "inspectd.db"), content, 0o640)
			return copied
		}
		if v, err := queue.Verify(broken()); err == nil && v.Err() == nil {
			t.Errorf("%s: verify found nothing: %+v", name, v)
		}
		if s, err := queue.Open(broken(), queue.Options{}); err == nil {
			// It may open and fail later: then with an error, for as long as one asks.
			for range 2 {
				if _, err := s.Unread(1000); err == nil {
					t.Errorf("%s: everything was read", name)
				}
				s.Accept([]queue.Arrival{scan("a", "new", "new")}) //nolint:errcheck // it may fail, it may not crash
			}
			s.Close()
		} else if !errors.Is(err, queue.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	os.Remove(path)
	if err := queue.Create(dir, laneName); err == nil || !strings.Contains(err.Error(), "backup") {
		t.Errorf("a second store beside the lane's evidence: %v", err)
	}
	os.WriteFile(path, whole, 0o640)
}

// TestCloseSilent closes nothing while observations wait to be correlated.
func TestCloseSilent(t *testing.T) {
	s, _ := openStore(t)
	accept(t, s, scan("a", "1", "x"))
	asked := func(time.Duration) []*lane.Inspection { t.Error("asked too early"); return nil }
	if _, err := s.CloseSilent(asked); !errors.Is(err, queue.ErrBehind) {
		t.Errorf("%v", err)
	}
	if err := s.Commit(queue.Step{Cursor: 1, Orphans: []uint64{1}}); err != nil {
		t.Fatal(err)
	}
	var elapsed time.Duration
	if _, err := s.CloseSilent(func(e time.Duration) []*lane.Inspection { elapsed = e; return nil }); err != nil || elapsed == 0 {
		t.Errorf("%v %v", elapsed, err)
	}
}

// TestByKey: a belt number used again finds the later item, also after the earlier
// one was written again.
func TestByKey(t *testing.T) {
	s, _ := openStore(t)
	accept(t, s, scan("a", "1", "x"), scan("a", "2", "y"))
	belt := []lane.Identifier{{Scheme: lane.Belt, Value: "88"}}
	first := &lane.Inspection{ID: "FIRST", Observations: []uint64{1}, Identifiers: belt}
	second := &lane.Inspection{ID: "SECOND", Observations: []uint64{2}, Identifiers: belt}
	for _, step := range []queue.Step{{Cursor: 1, Inspections: []*lane.Inspection{first}}, {Cursor: 2, Inspections: []*lane.Inspection{second}}, {Inspections: []*lane.Inspection{first}}} {
		if err := s.Commit(step); err != nil {
			t.Fatal(err)
		}
	}
	if in, err := s.ByKey("belt:88"); err != nil || in.ID != "SECOND" {
		t.Errorf("%v %v", in, err)
	}
}

// TestUnstorable: an observation that has no JSON form is refused and kept; it does
// not stop the lane.
func TestUnstorable(t *testing.T) {
	s, _ := openStore(t)
	a := scan("a", "1", "x")
	year := time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	a.Observation.Observed = &year
	if got := accept(t, s, a)[0].Result; got != queue.Quarantined {
		t.Errorf("result %d", got)
	}
}

// TestReopen: what a server lost goes out again, events and evidence, with an
// incident in the chain.
func TestReopen(t *testing.T) {
	s, _ := openStore(t)
	blob := queue.Blob{Digest: lane.Sum([]byte("p")), Bytes: []byte("p")}
	commitEvents(t, s, 1)
	if err := s.Commit(queue.Step{Evidence: []queue.Blob{blob}, Events: []queue.Draft{{Noun: "finding", Verb: "raised", Time: time.Now(), Data: 1, Uploads: []lane.Digest{blob.Digest}}}}); err != nil {
		t.Fatal(err)
	}
	s.Confirm(2, 2)
	if err := s.Uploaded(blob.Digest); err != nil {
		t.Fatal(err)
	}
	if err := s.Reopen(1, 1, queue.Draft{Noun: "lane", Verb: "changed", Time: time.Now(), Data: 2}); err != nil {
		t.Fatal(err)
	}
	if st, err := s.Stats(); err != nil || st.Waiting != 2 || st.Uploads != 1 || st.Events != 3 {
		t.Errorf("%+v %v", st, err)
	}
}

// TestSnapshotWhileBusy: a snapshot taken during intake verifies.
func TestSnapshotWhileBusy(t *testing.T) {
	s, dir := openStore(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 50 {
			accept(t, s, scan("a", fmt.Sprint(i), fmt.Sprint("payload ", i)))
		}
	})
	for i := range 5 {
		path := filepath.Join(dir, fmt.Sprintf("copy-%d.db", i))
		if err := s.Snapshot(path); err != nil {
			t.Fatal(err)
		}
		if v, err := queue.VerifyFile(path, dir); err != nil || v.Err() != nil {
			t.Errorf("%v %v", err, v)
		}
	}
	wg.Wait()
}

// BenchmarkAccept is intake of 256-byte labels with durable acknowledgement, alone
// and in groups; BenchmarkFloor is the same bytes appended to a file with one sync.
func BenchmarkAccept(b *testing.B) {
	for _, group := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("group=%d", group), func(b *testing.B) {
			dir := b.TempDir()
			if err := queue.Create(dir, laneName); err != nil {
				b.Fatal(err)
			}
			s, err := queue.Open(dir, queue.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			n := uint64(0)
			for b.Loop() {
				batch := make([]queue.Arrival, group)
				for i := range batch {
					n++
					batch[i] = scan("a", fmt.Sprint(n), fmt.Sprintf("%0256d", n))
				}
				if _, err := s.Accept(batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}

func BenchmarkFloor(b *testing.B) {
	for _, group := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("group=%d", group), func(b *testing.B) {
			f, err := os.Create(filepath.Join(b.TempDir(), "log"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			buf := make([]byte, 256*group)
			n := 0
			for b.Loop() {
				binary.LittleEndian.PutUint64(buf, uint64(n))
				if _, err := f.Write(buf); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
				n += group
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}
