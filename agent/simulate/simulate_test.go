package simulate_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/agent/simulate"
	"inspectd.org/inspectd/devices"
	"inspectd.org/inspectd/queue"
	"inspectd.org/inspectd/vision/artwork"
)

// patience ends a test that waits for what never comes.
const patience = 3 * time.Minute

func start(t *testing.T, dir string) (*simulate.Lane, context.Context) {
	t.Helper()
	worker := os.Getenv("INSPECTD_VISION")
	if _, err := os.Stat(worker); err != nil {
		if os.Getenv("INSPECTD_REQUIRE") == "all" {
			t.Fatalf("the vision worker is not built: %v", err)
		}
		t.Skip("SKIP no vision worker: set INSPECTD_VISION to bin/inspectd-vision, or run 'make test'")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	l, err := simulate.Start(ctx, simulate.Options{Dir: dir, MQTT: "127.0.0.1:0", NATS: "127.0.0.1:0", Listen: "127.0.0.1:0",
		Metrics: "127.0.0.1:0", Worker: worker, Version: "test", Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)})
	if err != nil {
		t.Fatal(err)
	}
	return l, ctx
}

// TestScenarios plays every scenario through a whole lane and compares the reports
// that reach headquarters; then everything the lane stored must hold, and the
// evidence of findings must lie upstream.
func TestScenarios(t *testing.T) {
	dir := t.TempDir()
	l, ctx := start(t, dir)
	scenarios, err := simulate.Scenarios()
	if err != nil {
		t.Fatal(err)
	}
	quarantined := 0
	for i, s := range scenarios {
		run := simulate.NewRun(uint64(i + 1))
		if err := l.Play(ctx, s, run); err != nil {
			t.Fatal(err)
		}
		if err := l.Check(ctx, s, run); err != nil {
			t.Error(err)
		}
		quarantined += s.Quarantined
	}
	st, err := l.Agent.Status()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range st.Problems {
		if p.Code != "DEV021" { // the scenario with garbage
			t.Errorf("the demonstration begins with a problem: %+v", p)
		}
	}
	checkFindings(t, ctx, l)
	if err := l.Stop(); err != nil {
		t.Fatal(err)
	}
	v, err := queue.Verify(filepath.Join(dir, "data"))
	if err != nil || v.Err() != nil {
		t.Fatalf("%v %v", err, v.Violations)
	}
	if v.Quarantined != uint64(quarantined) || v.Confirmed != v.Events {
		t.Errorf("%d messages in quarantine, want %d; %d of %d events confirmed", v.Quarantined, quarantined, v.Confirmed, v.Events)
	}
	checkGrouping(t, filepath.Join(dir, "data"))
}

// checkGrouping: what the lane grouped while it ran is what the pure rules make of
// the same observations.
func checkGrouping(t *testing.T, data string) {
	t.Helper()
	s, err := queue.Open(data, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	st, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	var all []uint64
	for seq := range st.Stored {
		all = append(all, seq+1)
	}
	observations, err1 := s.Observations(all)
	ran, err2 := s.Recent(int(st.Stored))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	rules := lane.Rules{OpenOn: []string{"scan-in"}, CloseOn: []string{"scan-out"}, CloseAfter: 8 * time.Second, Linger: 3 * time.Second,
		LateFor: 12 * time.Hour, Expected: []lane.Kind{lane.Label, lane.XRay, lane.Camera}}
	want := rules.Group(observations, observations[len(observations)-1].Elapsed).Inspections
	slices.Reverse(ran) // newest first
	if len(ran) != len(want) {
		t.Fatalf("the lane made %d inspections, the rules %d", len(ran), len(want))
	}
	for i := range want {
		if ran[i].ID != want[i].ID || !slices.Equal(ran[i].Observations, want[i].Observations) {
			t.Errorf("inspection %d: the lane has %s %v, the rules %s %v", i, ran[i].ID, ran[i].Observations, want[i].ID, want[i].Observations)
		}
	}
}

// checkFindings: every finding of a report was raised as an event before it, and its
// evidence lies in the object store under its digest.
func checkFindings(t *testing.T, ctx context.Context, l *simulate.Lane) {
	t.Helper()
	raised := map[string]bool{}
	demo := lane.Lane{Site: "demo", ID: "lane-01"}
	for _, e := range l.HQ.Events() {
		var body struct {
			Findings []lane.Finding `json:"findings"`
		}
		if err := json.Unmarshal(e.Data, &body); err != nil {
			t.Fatal(err)
		}
		for _, f := range body.Findings {
			switch {
			case strings.HasSuffix(e.Type, "finding.raised.v1"):
				raised[f.ID] = true
			case strings.HasSuffix(e.Type, "inspection.reported.v1") && !raised[f.ID]:
				t.Errorf("finding %s was reported before it was raised", f.Check)
			}
			for _, d := range f.Evidence {
				if b, err := object(ctx, l, demo, d); err != nil || lane.Sum(b) != d {
					t.Errorf("evidence %s of %s: %v", d, f.Check, err)
				}
			}
		}
	}
	if len(raised) < 8 {
		t.Errorf("only %d findings were raised", len(raised))
	}
}

// object reads an object as soon as it is there: pixels follow the event.
func object(ctx context.Context, l *simulate.Lane, demo lane.Lane, d lane.Digest) (b []byte, err error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if b, err = l.HQ.Object(ctx, demo, d); err == nil {
			return b, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// TestReplay: the same observations, packs and lists give the same report byte for
// byte, also after a restart in between.
func TestReplay(t *testing.T) {
	dir := t.TempDir()
	scenarios, err := simulate.Scenarios()
	if err != nil {
		t.Fatal(err)
	}
	var late *simulate.Scenario
	for _, s := range scenarios {
		if s.Name == "late-raman" {
			late = s
		}
	}
	first, second := *late, *late
	first.Steps, first.Expect = late.Steps[:6], late.Expect[:1] // up to the first report
	second.Steps, second.Expect = late.Steps[6:], late.Expect[1:]
	run := simulate.NewRun(77)

	l, ctx := start(t, dir)
	if err := l.Play(ctx, &first, run); err != nil {
		t.Fatal(err)
	}
	if err := l.Check(ctx, &first, run); err != nil {
		t.Fatal(err)
	}
	if err := l.Stop(); err != nil {
		t.Fatal(err)
	}
	l, ctx = start(t, dir) // headquarters keeps its streams in the same folder
	if err := l.Play(ctx, &second, run); err != nil {
		t.Fatal(err)
	}
	if err := l.Check(ctx, late, run); err != nil {
		t.Fatal(err)
	}
	before, after := l.HQ.Report(run.Item(), 1), l.HQ.Report(run.Item(), 2)
	if err := l.Stop(); err != nil {
		t.Fatal(err)
	}
	// Revision 2 asked every question again, of the same observations and one more.
	for i, c := range before.Checks {
		a, err1 := json.Marshal(c)
		b, err2 := json.Marshal(find(after.Checks, c.Name))
		if err1 != nil || err2 != nil || string(a) != string(b) {
			t.Errorf("check %d differs:\n%s\n%s", i, a, b)
		}
	}
}

func find(list []lane.Check, name string) *lane.Check {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

// TestHostileMessages: whatever arrives, the lane stays well, counts every message,
// and shows a code for each; an honest parcel passes after it as before.
func TestHostileMessages(t *testing.T) {
	dir := t.TempDir()
	l, ctx := start(t, dir)
	p, err := devices.DialPublisher(l.Broker.Addr(), "hostile")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	header := []byte("\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR\x00\x00\xea\x60\x00\x00\xea\x60\x08\x02\x00\x00\x00")
	header = binary.BigEndian.AppendUint32(header, crc32.ChecksumIEEE(header[12:]))
	for _, m := range []struct {
		topic   string
		payload []byte
	}{
		{"lane/01/cam-pack/h-1", header}, // claims 60000 x 60000
		{"lane/01/cam-pack/h-2", artwork.JPEG(artwork.XRay(1, 1))[:300]},
		{"lane/01/cam-pack/h-3", bytes.Repeat([]byte("x"), 33<<20)},
		{"lane/01/xray-1/h-4", []byte("<svg onload=alert(1)>")},
		{"lane/01/scan-in/data", []byte("\xff\xfe\x00")},
		{"lane/01/scan-pack/result", []byte(`{"id":"h","data":["x"]}`)},
		{"lane/01/scan-pack/result", []byte(`{"id":"old","data":"x","time":"1970-01-01T00:00:00Z","item":"h-5"}`)},
		{"lane/01/raman-1/result", []byte(strings.Repeat("[", 100_000))},
		{"lane/01/raman-1/result", []byte(`{"spectrum":{"jcamp":"##XYDATA=(X++(Y..Y))\n1AS999999999999"}}`)},
	} {
		if err := p.Publish(m.topic, m.payload); err != nil {
			t.Fatal(err)
		}
	}
	run := simulate.NewRun(5)
	scenarios, err := simulate.Scenarios()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scenarios {
		if s.Name != "honest-medicine" {
			continue
		}
		if err := errors.Join(l.Play(ctx, s, run), l.Check(ctx, s, run)); err != nil {
			t.Error(err)
		}
	}
	st, err := l.Agent.Status()
	if err != nil {
		t.Fatal(err)
	}
	if s := st.Store; s.Received != s.Stored+s.Duplicates+s.Quarantined || s.Quarantined != 5 || st.Vision.Restarts != 0 {
		t.Errorf("%+v, vision %+v", s, st.Vision)
	}
	page, _ := l.Agent.Addresses()
	resp, err := http.Get("http://" + page + "/")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"MSG_DECODE", "MSG_OVERSIZE", "DEV021"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("the page does not show %s", want)
		}
	}
	if err := l.Stop(); err != nil {
		t.Fatal(err)
	}
	if v, err := queue.Verify(filepath.Join(dir, "data")); err != nil || v.Err() != nil {
		t.Errorf("%v %v", err, v)
	}
}

// TestDemoPack: the faces of the pack that comes with the program are what the
// program draws.
func TestDemoPack(t *testing.T) {
	for _, p := range artwork.Products() {
		want, err := os.ReadFile("../../testdata/packs/fictional/faces/" + p.ID + ".png")
		if err != nil || !bytes.Equal(want, artwork.PNG(p.Draw(artwork.Tamper{}))) {
			t.Errorf("%s is drawn differently: run 'make packs' (%v)", p.ID, err)
		}
	}
}

// TestLoopbackOnly: a simulated lane has no log-in and stays on loopback.
func TestLoopbackOnly(t *testing.T) {
	_, err := simulate.Start(context.Background(), simulate.Options{Dir: t.TempDir(), MQTT: "0.0.0.0:0", NATS: "127.0.0.1:0", Log: zerolog.Nop()})
	if err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("%v", err)
	}
}
