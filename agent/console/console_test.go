package console_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/rs/zerolog"

	"inspectd.org/inspectd/agent/console"
	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/queue"
	"inspectd.org/inspectd/vision/artwork"
)

// lane under test: a real store behind a console.
type testLane struct {
	store         *queue.Store
	page, metrics string
	socket        string
	state         string
	alive         error
}

func start(t *testing.T) *testLane {
	t.Helper()
	dir := t.TempDir()
	if err := queue.Create(dir, lane.Lane{Site: "demo", ID: "lane-01"}); err != nil {
		t.Fatal(err)
	}
	s, err := queue.Open(dir, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l := &testLane{store: s, socket: filepath.Join(dir, "s"), state: "ready"}
	c, err := console.New(console.Options{Listen: "127.0.0.1:0", Metrics: "127.0.0.1:0", Socket: l.socket, Data: dir, Store: s, Log: zerolog.Nop(),
		Alive: func() error { return l.alive },
		Status: func() (*console.Status, error) {
			stats, err := s.Stats()
			return &console.Status{Schema: "inspectd.status/v1", Lane: s.Lane(), State: l.state, Store: stats,
				Devices:  []console.Device{{ID: "cam-pack", Kind: lane.Camera, State: "online", DeviceStats: stats.Devices["cam-pack"]}},
				Problems: []console.Problem{{Code: "DEV014", Severity: "warning", Text: "<script>alert(1)</script>", Cure: "none"}}}, err
		}})
	if err != nil {
		t.Fatal(err)
	}
	l.page, l.metrics = c.Addresses()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			t.Error(err)
		}
		if v, err := queue.Verify(dir); err != nil || v.Err() != nil {
			t.Errorf("verify: %v %v", err, v)
		}
	})
	return l
}

// item stores one reported inspection whose label carries data.
func (l *testLane) item(t *testing.T, data string, picture []byte) *lane.Report {
	t.Helper()
	o := &lane.Observation{Device: "cam-pack", Kind: lane.Camera, Topic: "t", Received: time.Now().UTC(),
		Evidence: []lane.Evidence{{SHA256: lane.Sum(picture), MediaType: "image/png", Size: int64(len(picture)), Role: "original"}}}
	r, err := l.store.Accept([]queue.Arrival{{Topic: "t", Device: "cam-pack", Received: time.Now(), Observation: o, Payload: queue.Blob{Digest: lane.Sum(picture), Bytes: picture}}})
	if err != nil {
		t.Fatal(err)
	}
	ids := []lane.Identifier{{Scheme: lane.Belt, Value: data}}
	in := &lane.Inspection{ID: lane.DeriveID(data, fmt.Sprint(r[0].Seq)), Observations: []uint64{r[0].Seq}, Identifiers: ids, Opened: time.Now(), Closed: lane.ByScan, Revision: 1}
	report := &lane.Report{Inspection: in.ID, Revision: 1, Identifiers: ids, Recommendation: "none",
		Observations: []lane.ObservationRef{{Device: "cam-pack", Kind: lane.Camera, Evidence: o.Evidence}},
		Checks:       []lane.Check{{Name: "vision/logo", Outcome: lane.Pass, Text: data}}}
	if err := l.store.Commit(queue.Step{Cursor: r[0].Seq, Inspections: []*lane.Inspection{in}, Reports: []*lane.Report{report}}); err != nil {
		t.Fatal(err)
	}
	return report
}

func get(t *testing.T, url, host string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		req.Host = host
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

var picture = artwork.PNG(image.NewGray(image.Rect(0, 0, 8, 8)))

// TestPage: the page shows the item, runs nothing but its own script, and treats
// whatever devices sent as text.
func TestPage(t *testing.T) {
	l := start(t)
	l.item(t, `belt"><script>alert(2)</script>`, picture)
	resp, body := get(t, "http://"+l.page+"/", "")
	if resp.StatusCode != 200 || !strings.Contains(body, "Nothing found") || !strings.Contains(body, "/api/v1/evidence/"+string(lane.Sum(picture))) {
		t.Errorf("%s\n%s", resp.Status, body)
	}
	if strings.Contains(body, "<script>alert") {
		t.Error("what a device sent became part of the page")
	}
	csp := resp.Header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} {
		if !strings.Contains(csp, want) {
			t.Errorf("policy %q lacks %s", csp, want)
		}
	}
	if strings.Contains(csp, "unsafe") || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("headers %v", resp.Header)
	}
	for _, file := range []string{"/page.js", "/style.css"} {
		if resp, _ := get(t, "http://"+l.page+file, ""); resp.StatusCode != 200 {
			t.Errorf("%s: %s", file, resp.Status)
		}
	}
	if resp, _ := get(t, "http://"+l.page+"/page.html", ""); resp.StatusCode != 404 {
		t.Error("the template itself is served")
	}
}

// TestHost: a name that a foreign page made up for this address is not answered.
func TestHost(t *testing.T) {
	l := start(t)
	_, port, _ := net.SplitHostPort(l.page)
	for host, want := range map[string]int{"localhost:" + port: 200, "127.0.0.1:" + port: 200, "evil.example": 421, "evil.example:" + port: 421} {
		for _, path := range []string{"/", "/api/v1/status", "/api/v1/events"} {
			if path == "/api/v1/events" && want == 200 {
				continue // never ends
			}
			if resp, _ := get(t, "http://"+l.page+path, host); resp.StatusCode != want {
				t.Errorf("%s as %s: %s", path, host, resp.Status)
			}
		}
	}
}

// TestEvidence: pictures are shown, anything else is only handed out.
func TestEvidence(t *testing.T) {
	l := start(t)
	html := []byte("<html><script>alert(3)</script></html>")
	l.item(t, "a", picture)
	l.item(t, "b", html)
	base := "http://" + l.page + "/api/v1/evidence/"
	resp, body := get(t, base+string(lane.Sum(picture)), "")
	if resp.Header.Get("Content-Type") != "image/png" || body != string(picture) {
		t.Errorf("picture: %v", resp.Header)
	}
	resp, _ = get(t, base+string(lane.Sum(html)), "")
	if resp.Header.Get("Content-Type") != "application/octet-stream" || resp.Header.Get("Content-Disposition") != "attachment" {
		t.Errorf("web page: %v", resp.Header)
	}
	for _, bad := range []string{"0", strings.Repeat("0", 64), "..%2f..%2finspectd.db"} {
		if resp, _ := get(t, base+bad, ""); resp.StatusCode != 404 {
			t.Errorf("%s: %s", bad, resp.Status)
		}
	}
}

// TestLive: an item that is stored while the page is open is sent to it.
func TestLive(t *testing.T) {
	l := start(t)
	resp, err := http.Get("http://" + l.page + "/api/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	parts := func() map[string]string {
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var m map[string]string
				if err := json.Unmarshal([]byte(data), &m); err != nil {
					t.Fatal(err)
				}
				return m
			}
		}
		t.Fatal("the stream ended")
		return nil
	}
	if first := parts(); !strings.Contains(first["items"], "No item yet") {
		t.Errorf("%v", first)
	}
	l.item(t, "belt-4711", picture)
	for !strings.Contains(parts()["items"], "belt-4711") {
	}
}

// TestHealth: alive is about the process, ready about the lane.
func TestHealth(t *testing.T) {
	l := start(t)
	for _, base := range []string{l.page, l.metrics} {
		for path, want := range map[string]int{"/healthz": 200, "/readyz": 200} {
			if resp, body := get(t, "http://"+base+path, ""); resp.StatusCode != want {
				t.Errorf("%s: %s %s", path, resp.Status, body)
			}
		}
	}
	l.state, l.alive = "not-ready", errors.New("the intake loop stands still")
	for _, path := range []string{"/healthz", "/readyz"} {
		if resp, body := get(t, "http://"+l.metrics+path, ""); resp.StatusCode != 503 || body == "" {
			t.Errorf("%s: %s %q", path, resp.Status, body)
		}
	}
}

// TestMetrics: the metrics are in good form and count what was stored.
func TestMetrics(t *testing.T) {
	l := start(t)
	l.item(t, "a", picture)
	_, body := get(t, "http://"+l.metrics+"/metrics", "")
	if !strings.Contains(body, `inspectd_device_messages_total{device="cam-pack",kind="camera",result="stored"} 1`) {
		t.Errorf("%s", body)
	}
	problems, err := promlint.New(bytes.NewReader([]byte(body))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "inspectd_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// TestSocket: the commands' door offers verification; the page's does not.
func TestSocket(t *testing.T) {
	l := start(t)
	l.item(t, "a", picture)
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.socket)
	}}}
	resp, err := client.Get("http://inspectd/api/v1/verify")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var v queue.Verdict
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil || v.Err() != nil || v.Observations != 1 {
		t.Errorf("%v %+v", err, v)
	}
	if resp, _ := get(t, "http://"+l.page+"/api/v1/verify", ""); resp.StatusCode != 404 {
		t.Errorf("the page's door offers verification: %s", resp.Status)
	}
	for _, path := range []string{"status", "items", "quarantine"} {
		if resp, body := get(t, "http://"+l.page+"/api/v1/"+path, ""); resp.StatusCode != 200 || !json.Valid([]byte(body)) {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}
