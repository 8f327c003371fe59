package agent

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/queue"
)

// TestRestartWithSeveralDue: a daemon that was killed between closing several items
// and reporting them reports each of them once after its restart.
func TestRestartWithSeveralDue(t *testing.T) {
	dir := t.TempDir()
	l := lane.Lane{Site: "nlrtm", ID: "lane-03"}
	if err := queue.Create(dir, l); err != nil {
		t.Fatal(err)
	}
	store, err := queue.Open(dir, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	const n = 5
	step := queue.Step{Cursor: n}
	for i := range uint64(n) {
		payload := fmt.Appendf(nil, "scan %d", i)
		o := &lane.Observation{Device: "scan-in", Kind: lane.Label, Received: time.Now().UTC(), Label: &lane.LabelRead{Data: string(payload), Scheme: "opaque"},
			Evidence: []lane.Evidence{{SHA256: lane.Sum(payload), Size: int64(len(payload)), Role: "original"}}}
		receipts, err := store.Accept([]queue.Arrival{{Topic: "t", Device: "scan-in", Received: time.Now(), Observation: o, Payload: queue.Blob{Digest: lane.Sum(payload), Bytes: payload}}})
		if err != nil {
			t.Fatal(err)
		}
		step.Inspections = append(step.Inspections, &lane.Inspection{ID: lane.DeriveID("inspection", receipts[0].ID), Observations: []uint64{i + 1},
			Kinds: []lane.Kind{lane.Label}, Closed: lane.BySilence, Stale: true})
	}
	if err := store.Commit(step); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	cfg, err := LoadConfig("../configs/minimal.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Console.Listen, cfg.Metrics.Listen, cfg.Queue.KeepFree = "127.0.0.1:0", "127.0.0.1:0", 0
	d, err := New(cfg, Options{Data: dir, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- d.inspect.run(ctx, &loop{}) }()
	for _, in := range step.Inspections {
		for {
			changed := d.store.Changed()
			if _, err := d.store.Report(in.ID, 1); err == nil {
				break
			}
			select {
			case <-changed:
			case err := <-done:
				t.Fatal(err)
			}
		}
	}
	cancel()
	<-done
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	v, err := queue.Verify(dir)
	if err != nil || v.Err() != nil || v.Reports != n {
		t.Errorf("%v %+v", err, v)
	}
}
