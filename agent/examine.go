package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/queue"
	"inspectd.org/inspectd/vision"
)

// answer is what became of the examination of one picture.
type answer struct {
	seq      uint64
	analysis *vision.Analysis
	why      string // why there is no analysis
}

// maxAttempts is how often a picture may crash or delay the worker before it is
// parked: its check stays inconclusive, its bytes stay as evidence.
const maxAttempts = 2

// examinable reports whether the packs can be asked about an observation.
func examinable(o *lane.Observation) bool {
	return o.Kind == lane.Camera && o.Image != nil && o.Image.Damage == ""
}

// ask has the pictures of an inspection examined that were not asked for yet.
func (n *inspector) ask(ctx context.Context, in *lane.Inspection) error {
	var fresh []uint64
	for _, seq := range in.Observations {
		if !n.asked[seq] {
			n.asked[seq] = true
			fresh = append(fresh, seq)
		}
	}
	list, err := n.d.store.Observations(fresh)
	if err != nil {
		return err
	}
	packs := n.d.reference.Load().packs
	for _, o := range list {
		if !examinable(o) {
			continue
		}
		go func() {
			a := n.d.examine(ctx, o, packs)
			select {
			case n.results <- a:
			case <-ctx.Done():
			}
		}()
	}
	return nil
}

// answered sorts what is known of the pictures among list.
func (n *inspector) answered(list []*lane.Observation) (done map[uint64]*vision.Analysis, not map[uint64]string, pending bool) {
	done, not = map[uint64]*vision.Analysis{}, map[uint64]string{}
	for _, o := range list {
		if !examinable(o) {
			continue
		}
		switch a, ok := n.answers[o.Seq]; {
		case !ok:
			pending = true
			not[o.Seq] = "it is still being examined"
		case a.analysis != nil:
			done[o.Seq] = a.analysis
		default:
			not[o.Seq] = a.why
		}
	}
	return done, not, pending
}

// examine asks the packs about one picture, unless the answer is already kept. It
// waits for a worker, but for no worker longer than its time limit.
func (d *Daemon) examine(ctx context.Context, o *lane.Observation, packs *vision.Packs) answer {
	digest := o.Original().SHA256
	key := string(digest) + "/" + string(packs.Digest)
	for {
		kept, err := d.store.Analysis(key)
		switch {
		case err != nil:
			return answer{seq: o.Seq, why: err.Error()}
		case kept.Result != nil:
			out := answer{seq: o.Seq, analysis: new(vision.Analysis)}
			if err := json.Unmarshal(kept.Result, out.analysis); err != nil {
				return answer{seq: o.Seq, why: "its kept analysis cannot be read: " + err.Error()}
			}
			return out
		case kept.Attempts >= maxAttempts:
			return answer{seq: o.Seq, why: fmt.Sprintf("it crashed or delayed the vision worker %d times and is parked", kept.Attempts)}
		}
		switch err := d.attempt(ctx, packs, digest, key, kept); {
		case errors.Is(err, queue.ErrFull): // the report waits for room too
			select {
			case <-time.After(retryFull):
			case <-ctx.Done():
			}
		case err != nil:
			return answer{seq: o.Seq, why: err.Error()}
		}
	}
}

// attempt asks once and keeps what comes of it: the answer, or that the picture
// cost a worker. An error is not the picture's fault.
func (d *Daemon) attempt(ctx context.Context, packs *vision.Packs, digest lane.Digest, key string, kept queue.Analysis) error {
	var a *vision.Analysis
	var pictures []vision.Picture
	err := d.pool.With(ctx, func(w *vision.Worker) error {
		// Read only now: pictures that wait for a worker wait on disk.
		image, err := d.store.Evidence(digest)
		if err == nil {
			a, pictures, err = packs.Examine(w, image)
		}
		return err
	})
	if ctx.Err() != nil {
		return ctx.Err() // the daemon stops; whatever became of the worker, it was not the picture
	}
	if errors.Is(err, vision.ErrWorkerDied) || errors.Is(err, vision.ErrWorkerLate) {
		kept.Attempts++
		return d.store.SetAnalysis(key, kept)
	}
	if err != nil {
		return err
	}
	if kept.Result, err = json.Marshal(a); err != nil {
		return err
	}
	blobs := make([]queue.Blob, len(pictures))
	for i, p := range pictures {
		blobs[i] = queue.Blob{Digest: p.Evidence.SHA256, Bytes: p.Bytes}
	}
	return d.store.SetAnalysis(key, kept, blobs...)
}
