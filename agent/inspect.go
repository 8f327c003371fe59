package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"inspectd.org/inspectd/agent/checks"
	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/queue"
)

// inspector correlates observations, has pictures examined, raises findings and
// writes reports. Its loop is the only one that changes inspections; every field
// belongs to it.
type inspector struct {
	d         *Daemon
	rules     lane.Rules
	open      []*lane.Inspection // open, or closed with something no report covers
	answers   map[uint64]answer  // by sequence of camera observations of open
	asked     map[uint64]bool
	results   chan answer
	unsettled bool // some inspection of open may not have been judged
}

// batch is how many observations one commit correlates.
const batch = 256

func newInspector(d *Daemon) *inspector {
	return &inspector{d: d, rules: d.cfg.rules(d.registry), answers: map[uint64]answer{}, asked: map[uint64]bool{},
		results: make(chan answer, 64)}
}

// announce records the start of the lane as an event of its chain.
func (n *inspector) announce() error {
	stats, err := n.d.store.Stats()
	if err != nil {
		return err
	}
	return n.d.store.Commit(queue.Step{Events: []queue.Draft{{Noun: "lane", Verb: "changed", Time: n.d.started,
		Data: map[string]any{"lane": n.d.store.Lane(), "change": "started", "epoch": stats.Epoch,
			"software": n.d.opts.Version, "config_sha256": n.d.cfg.SHA256, "key": n.d.store.Key().ID()}}}})
}

func (n *inspector) run(ctx context.Context, l *loop) error {
	var err error
	if n.open, err = n.d.store.Unfinished(); err != nil {
		return err
	}
	for _, in := range n.open {
		if err := n.ask(ctx, in); err != nil {
			return err
		}
	}
	n.unsettled = true // an earlier run may have ended in between
	for ctx.Err() == nil {
		l.beat()
		if err := n.fault(n.turn(ctx)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// turn does what there is to do, or waits for something.
func (n *inspector) turn(ctx context.Context) error {
	changed := n.d.store.Changed()
	if n.unsettled {
		if err := n.settle(ctx, slices.Clone(n.open)); err != nil {
			return err
		}
		n.unsettled = false
		n.d.setFull(nil)
	}
	more, err := n.correlate(ctx)
	if err != nil || more {
		return err
	}
	if err := n.closeSilent(ctx); err != nil {
		return err
	}
	return n.wait(ctx, changed)
}

// fault decides what an error of a turn means: while the disk is full the loop
// tries again, anything else ends the daemon.
func (n *inspector) fault(err error) error {
	if err == nil || !errors.Is(err, queue.ErrFull) {
		return err
	}
	n.unsettled = true // the turn may have left an inspection unjudged
	n.d.setFull(err)
	time.Sleep(retryFull)
	return nil
}

// wait returns when something arrived, a picture was examined, or an inspection
// fell silent.
func (n *inspector) wait(ctx context.Context, changed <-chan struct{}) error {
	pause := pulse
	if at, ok := n.rules.Due(n.waiting()); ok {
		pause = min(pause, n.d.store.Until(at))
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-timer.C:
	case a := <-n.results:
		n.answers[a.seq] = a
		for _, in := range n.open {
			if slices.Contains(in.Observations, a.seq) {
				return n.settle(ctx, []*lane.Inspection{in})
			}
		}
	}
	return nil
}

// waiting are the inspections that still wait for observations.
func (n *inspector) waiting() []*lane.Inspection {
	return slices.DeleteFunc(slices.Clone(n.open), func(in *lane.Inspection) bool { return !in.Open() })
}

// replace puts a changed inspection in the place of its former state.
func (n *inspector) replace(in *lane.Inspection) {
	for i := range n.open {
		if n.open[i].ID == in.ID {
			n.open[i] = in
			return
		}
	}
	n.open = append(n.open, in)
}

// correlate places the next batch of observations and commits it: where each
// belongs, and the events that tell of it. more is true when there may be others.
func (n *inspector) correlate(ctx context.Context) (more bool, err error) {
	list, err := n.d.store.Unread(batch)
	if err != nil || len(list) == 0 {
		return false, err
	}
	before := slices.Clone(n.open)
	step, touched, err := n.place(list)
	if err == nil {
		err = n.d.store.Commit(step)
	}
	if err != nil {
		n.open = before // the same batch comes again
		return false, err
	}
	var work []*lane.Inspection
	for _, in := range n.open {
		if touched[in.ID] {
			work = append(work, in)
		}
	}
	for _, in := range work {
		if err := n.ask(ctx, in); err != nil {
			return false, err
		}
	}
	return len(list) == batch, n.settle(ctx, work)
}

func (n *inspector) place(list []*lane.Observation) (queue.Step, map[string]bool, error) {
	step := queue.Step{Cursor: list[len(list)-1].Seq}
	touched := map[string]bool{}
	var failed error
	recall := func(key string) *lane.Inspection {
		for _, in := range slices.Backward(n.open) {
			if in.Has(key) {
				return in
			}
		}
		in, err := n.d.store.ByKey(key)
		failed = errors.Join(failed, err)
		return in
	}
	for _, o := range list {
		for _, in := range n.rules.Silence(n.waiting(), o.Elapsed) {
			n.replace(in)
			touched[in.ID] = true
		}
		p := n.rules.Place(o, n.waiting(), recall)
		if failed != nil {
			return step, nil, failed
		}
		if p.Inspection == nil {
			step.Orphans = append(step.Orphans, o.Seq)
			step.Events = append(step.Events, observed("orphaned", "", o))
			continue
		}
		n.replace(p.Inspection)
		touched[p.Inspection.ID] = true
		if p.New {
			step.Events = append(step.Events, queue.Draft{Noun: "inspection", Verb: "opened", Subject: p.Inspection.ID, Time: o.Received,
				Data: map[string]any{"inspection": p.Inspection.ID, "lane": n.d.store.Lane(), "opened": o.Received,
					"observation": o.ID, "device": o.Device}})
		}
		step.Events = append(step.Events, observed("recorded", p.Inspection.ID, o))
	}
	for _, in := range n.open {
		if touched[in.ID] {
			step.Inspections = append(step.Inspections, in)
		}
	}
	return step, touched, nil
}

// observed is the event of one observation.
func observed(verb, inspection string, o *lane.Observation) queue.Draft {
	data := map[string]any{"observation": o}
	if inspection != "" {
		data["inspection"] = inspection
	}
	return queue.Draft{Noun: "observation", Verb: verb, Subject: inspection, Time: o.Received, Data: data}
}

// closeSilent closes what fell silent.
func (n *inspector) closeSilent(ctx context.Context) error {
	closed, err := n.d.store.CloseSilent(func(elapsed time.Duration) []*lane.Inspection {
		return n.rules.Silence(n.waiting(), elapsed)
	})
	if errors.Is(err, queue.ErrBehind) {
		return nil // something arrived meanwhile; the loop reads it first
	}
	if err != nil {
		return err
	}
	for _, in := range closed {
		n.replace(in)
	}
	return n.settle(ctx, closed)
}

// settle judges inspections, a list of its own, by what is known so far: it raises findings at once,
// withdraws what no longer holds, and writes the report of those that are closed
// and whose pictures are all examined.
func (n *inspector) settle(ctx context.Context, list []*lane.Inspection) error {
	for _, in := range list {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		m, pending, err := n.material(in)
		if err != nil {
			return err
		}
		step := n.judge(m, pending)
		if len(step.Inspections) == 0 {
			continue
		}
		if err := n.d.store.Commit(step); err != nil {
			return err
		}
		n.replace(step.Inspections[0])
		n.forgetFinished()
	}
	return nil
}

// judge turns material into what is to be stored; nothing, when nothing changed.
func (n *inspector) judge(m checks.Material, pending bool) queue.Step {
	in := *m.Inspection
	list := checks.Checks(m)
	findings := checks.Findings(&in, list)
	step := queue.Step{Events: findingEvents(&in, findings, m)}
	if in.NeedsReport() && !pending {
		r := checks.Report(m, list)
		in.Revision, in.Stale = r.Revision, false
		step.Reports = []*lane.Report{r}
		step.Events = append(step.Events, queue.Draft{Noun: "inspection", Verb: "reported", Subject: in.ID, Time: r.Closed, Data: r, Uploads: evidenceOf(findings)})
		n.d.log.Info().Str("inspection", in.ID).Int("revision", r.Revision).Str("recommendation", string(r.Recommendation)).
			Int("score", r.Score).Int("findings", len(r.Findings)).Msg("inspection reported")
	}
	if len(step.Events) > 0 {
		step.Inspections = []*lane.Inspection{&in}
	}
	return step
}

// findingEvents compares findings with those raised before, and keeps the new list
// in in.
func findingEvents(in *lane.Inspection, findings []lane.Finding, m checks.Material) []queue.Draft {
	var events []queue.Draft
	when := in.LastReceived
	body := func(f lane.Finding) map[string]any {
		return map[string]any{"inspection": in.ID, "identifiers": in.Identifiers, "lane": m.Lane, "findings": []lane.Finding{f}}
	}
	known := func(list []lane.Finding, id string) bool {
		return slices.ContainsFunc(list, func(f lane.Finding) bool { return f.ID == id })
	}
	for _, f := range findings {
		if !known(in.Raised, f.ID) {
			events = append(events, queue.Draft{Noun: "finding", Verb: "raised", Subject: in.ID, Time: when, Data: body(f), Uploads: f.Evidence})
		}
	}
	for _, f := range in.Raised {
		if !known(findings, f.ID) {
			events = append(events, queue.Draft{Noun: "finding", Verb: "withdrawn", Subject: in.ID, Time: when, Data: body(f)})
		}
	}
	in.Raised = findings
	return events
}

func evidenceOf(findings []lane.Finding) []lane.Digest {
	var out []lane.Digest
	for _, f := range findings {
		out = append(out, f.Evidence...)
	}
	return out
}

// forgetFinished drops inspections that are closed and reported.
func (n *inspector) forgetFinished() {
	n.open = slices.DeleteFunc(n.open, func(in *lane.Inspection) bool {
		done := !in.Open() && !in.Stale
		if done {
			for _, seq := range in.Observations {
				delete(n.answers, seq)
				delete(n.asked, seq)
			}
		}
		return done
	})
}

// material gathers what an inspection is judged by. pending is true while some
// picture is still being examined.
func (n *inspector) material(in *lane.Inspection) (m checks.Material, pending bool, err error) {
	ref := n.d.reference.Load()
	m = checks.Material{Lane: n.d.store.Lane(), Inspection: in, Packs: ref.packs, Watchlist: ref.watchlist,
		Expected: n.rules.Expected, Config: n.d.cfg.SHA256, Software: "inspectd " + n.d.opts.Version}
	if ref.listError != nil {
		m.ListError = ref.listError.Error()
	}
	if m.Observations, err = n.d.store.Observations(in.Observations); err != nil {
		return m, false, fmt.Errorf("inspection %s: %w", in.ID, err)
	}
	m.Analyses, m.Unexamined, pending = n.answered(m.Observations)
	return m, pending, nil
}
