package lane

import (
	"slices"
	"sort"
	"strings"
	"time"
)

// Rules say how observations are grouped into inspections.
type Rules struct {
	OpenOn     []string      // devices whose scan opens an item
	CloseOn    []string      // devices whose scan ends the item it belongs to
	CloseAfter time.Duration // silence that closes an item, on the lane's running time
	Linger     time.Duration // the same after the closing scan, while an expected kind is missing
	LateFor    time.Duration // how long after closing a keyed result still joins, as a new revision
	Expected   []Kind        // kinds an item is complete with
}

// ClosedBy says what closed an inspection.
type ClosedBy string

// What closes an inspection.
const (
	ByScan    ClosedBy = "scan"
	BySilence ClosedBy = "silence"
)

// Inspection is the record of one item: which observations belong to it, and
// whether it is still open. The correlation rules own every field but Revision
// and Raised, which the reporting step owns.
type Inspection struct {
	ID           string        `json:"id"`
	Observations []uint64      `json:"observations"` // arrival sequences, ascending
	Devices      []string      `json:"devices"`
	Kinds        []Kind        `json:"kinds"`
	Identifiers  []Identifier  `json:"identifiers"`
	Opened       time.Time     `json:"opened"`
	LastReceived time.Time     `json:"last_received"`
	LastElapsed  time.Duration `json:"last_elapsed_ns"`
	Opening      bool          `json:"opening"` // an opening scan belongs to it
	Named        bool          `json:"named"`   // some device named the item itself
	Ending       bool          `json:"ending"`  // its closing scan has come
	Closed       ClosedBy      `json:"closed,omitempty"`
	ClosedAt     time.Time     `json:"closed_at,omitzero"`
	ClosedElapse time.Duration `json:"closed_elapsed_ns,omitempty"`
	Stale        bool          `json:"stale,omitempty"` // an observation joined that no report covers yet

	Revision int       `json:"revision"`         // of the last report; 0 before the first
	Raised   []Finding `json:"raised,omitempty"` // findings raised and not withdrawn
}

// Open reports whether the inspection still waits for observations.
func (in *Inspection) Open() bool { return in.Closed == "" }

// NeedsReport reports whether the inspection is closed and holds something that
// no report covers yet.
func (in *Inspection) NeedsReport() bool { return !in.Open() && in.Stale }

// Keys are the index keys under which later observations find the inspection.
func (in *Inspection) Keys() []string {
	var keys []string
	for _, id := range in.Identifiers {
		if id.Scheme.Unique() || id.Scheme == Belt {
			keys = append(keys, id.Key())
		}
	}
	return keys
}

// Has reports whether key is one of Keys.
func (in *Inspection) Has(key string) bool {
	scheme, value, _ := strings.Cut(key, ":")
	return slices.ContainsFunc(in.Identifiers, func(id Identifier) bool { return id.Value == value && string(id.Scheme) == scheme })
}

// Missing lists the kinds of want that no observation of the inspection has.
func (in *Inspection) Missing(want []Kind) []Kind {
	var missing []Kind
	for _, k := range want {
		if !slices.Contains(in.Kinds, k) {
			missing = append(missing, k)
		}
	}
	return missing
}

// Placement says where an observation belongs. A nil Inspection is an orphan.
type Placement struct {
	Inspection *Inspection
	New        bool
}

// Place decides to which inspection o belongs, among the open ones (in the order
// they opened) and those that recall returns for an index key, and returns that
// inspection with o added; neither open nor what recall returns is modified.
// Inspections that fell silent before o arrived must have been closed with
// Silence first. The same arguments always give the same answer.
func (r Rules) Place(o *Observation, open []*Inspection, recall func(key string) *Inspection) Placement {
	opens := slices.Contains(r.OpenOn, o.Device)
	target := r.match(o, open, recall, opens)
	if target == nil && !opens {
		target = current(o, open)
	}
	if target != nil {
		return Placement{Inspection: r.add(target, o)}
	}
	if !opens && len(itemKeys(o)) == 0 && !(o.Kind == Label && len(r.OpenOn) == 0) {
		return Placement{}
	}
	fresh := &Inspection{
		ID:     DeriveID("inspection", o.ID),
		Opened: o.Received,
	}
	return Placement{Inspection: r.add(fresh, o), New: true}
}

// itemKeys are the index keys o carries, the lane's own item id first.
func itemKeys(o *Observation) []string {
	in := Inspection{Identifiers: o.Identifiers}
	keys := in.Keys()
	sort.SliceStable(keys, func(i, j int) bool { return isBelt(keys[i]) && !isBelt(keys[j]) })
	return keys
}

func isBelt(key string) bool { return len(key) > 5 && key[:5] == "belt:" }

// match finds the inspection that shares an item key with o.
func (r Rules) match(o *Observation, open []*Inspection, recall func(string) *Inspection, opens bool) *Inspection {
	for _, key := range itemKeys(o) {
		for _, in := range slices.Backward(open) {
			if in.Has(key) {
				return in
			}
		}
		if in := recall(key); in != nil && !in.Open() && r.mayJoinLate(o, in, key, opens) {
			return in
		}
	}
	return nil
}

// mayJoinLate decides whether o still belongs to the closed inspection in. A
// second opening scan is the item's next visit. A belt number is used again, so
// by belt number only a result that was still missing joins.
func (r Rules) mayJoinLate(o *Observation, in *Inspection, key string, opens bool) bool {
	if o.Elapsed-in.ClosedElapse > r.LateFor || (opens && in.Opening) {
		return false
	}
	return !isBelt(key) || o.Kind == Forensic || !slices.Contains(in.Devices, o.Device)
}

// current is the inspection that an observation without a known key belongs to:
// the one opened last, unless the two name different items. A device that names
// the item itself joins only an item that no device has named yet, and only by the
// lane's own number: a result for a parcel nobody has seen belongs to none other.
func current(o *Observation, open []*Inspection) *Inspection {
	if len(open) == 0 {
		return nil
	}
	in := open[len(open)-1]
	if conflicts(in.Identifiers, o.Identifiers) {
		return nil
	}
	byBelt := slices.ContainsFunc(o.Identifiers, func(id Identifier) bool { return id.Scheme == Belt })
	if o.Item != "" && (in.Named || !byBelt) {
		return nil
	}
	return in
}

// conflicts reports whether a and b cannot be of one item: two different parcel
// numbers of one scheme, or two serialised packs outside any parcel.
func conflicts(a, b []Identifier) bool {
	parcel := false
	for _, x := range a {
		parcel = parcel || x.Scheme == SSCC || x.Scheme == S10 || x.Scheme == Belt
	}
	for _, y := range b {
		if !y.Scheme.Unique() && y.Scheme != Belt || y.Scheme == SGTIN && parcel {
			continue
		}
		same, other := false, false
		for _, x := range a {
			if x.Scheme == y.Scheme {
				same = same || x.Value == y.Value
				other = other || x.Value != y.Value
			}
		}
		if other && !same {
			return true
		}
	}
	return false
}

// add returns a copy of in with o in it.
func (r Rules) add(in *Inspection, o *Observation) *Inspection {
	out := *in
	if slices.Contains(in.Observations, o.Seq) {
		return &out // repeating a step changes nothing
	}
	out.Observations = append(slices.Clone(in.Observations), o.Seq)
	out.Devices = withValue(in.Devices, o.Device)
	out.Kinds = withValue(in.Kinds, o.Kind)
	out.Identifiers = slices.Clone(in.Identifiers)
	for _, id := range o.Identifiers {
		if !slices.ContainsFunc(out.Identifiers, func(x Identifier) bool { return x.Key() == id.Key() }) {
			out.Identifiers = append(out.Identifiers, id)
		}
	}
	out.LastReceived, out.LastElapsed = o.Received, o.Elapsed
	out.Opening = in.Opening || slices.Contains(r.OpenOn, o.Device)
	out.Ending = in.Ending || slices.Contains(r.CloseOn, o.Device)
	out.Named = in.Named || o.Item != ""
	out.Stale = true
	// Large pictures overtake nothing: the one taken before the closing scan may
	// arrive after it. So the closing scan closes a complete item, and an incomplete
	// one after it lingered.
	if in.Open() && out.Ending && len(out.Missing(r.Expected)) == 0 {
		out.Closed, out.ClosedAt, out.ClosedElapse = ByScan, o.Received, o.Elapsed
	}
	return &out
}

func withValue[T comparable](list []T, v T) []T {
	if slices.Contains(list, v) {
		return list
	}
	return append(slices.Clone(list), v)
}

// Patience is how long the inspection waits for its next observation.
func (r Rules) Patience(in *Inspection) time.Duration {
	if in.Ending {
		return min(r.Linger, r.CloseAfter)
	}
	return r.CloseAfter
}

// Silence returns closed copies of the open inspections whose patience had run out
// when the lane's running time was elapsed. The time of closing is reckoned from
// the last observation, not from when somebody looked, so that a replay of the
// same observations closes them at the same instant.
func (r Rules) Silence(open []*Inspection, elapsed time.Duration) []*Inspection {
	var closed []*Inspection
	for _, in := range open {
		patience := r.Patience(in)
		if elapsed-in.LastElapsed <= patience {
			continue
		}
		out := *in
		out.Closed = BySilence
		if in.Ending {
			out.Closed = ByScan
		}
		out.ClosedAt = in.LastReceived.Add(patience)
		out.ClosedElapse = in.LastElapsed + patience
		closed = append(closed, &out)
	}
	return closed
}

// Due is the lane's running time at which the first of the open inspections runs
// out of patience; false when none is open.
func (r Rules) Due(open []*Inspection) (at time.Duration, any bool) {
	for _, in := range open {
		if t := in.LastElapsed + r.Patience(in); !any || t < at {
			at, any = t, true
		}
	}
	return at, any
}

// Grouping is the result of Group.
type Grouping struct {
	Inspections []*Inspection // in the order they opened
	Orphans     []uint64
}

// Group correlates a set of observations, given in any order and with any
// repetitions, as the lane would have done while they arrived; at the end it
// closes what had fallen silent at elapsed. The running lane takes the same steps one
// observation at a time; its tests compare the two.
func (r Rules) Group(set []*Observation, elapsed time.Duration) Grouping {
	sorted := slices.Clone(set)
	sort.SliceStable(sorted, func(i, j int) bool { return sorted[i].Seq < sorted[j].Seq })
	sorted = slices.CompactFunc(sorted, func(a, b *Observation) bool { return a.ID == b.ID })

	var g Grouping
	byKey := map[string]int{}
	replace := func(in *Inspection) {
		i := slices.IndexFunc(g.Inspections, func(x *Inspection) bool { return x.ID == in.ID })
		if i < 0 {
			i = len(g.Inspections)
			g.Inspections = append(g.Inspections, in)
		}
		g.Inspections[i] = in
		for _, k := range in.Keys() { // a key finds the item that opened last
			byKey[k] = max(i, byKey[k])
		}
	}
	open := func() []*Inspection {
		return slices.DeleteFunc(slices.Clone(g.Inspections), func(in *Inspection) bool { return !in.Open() })
	}
	recall := func(key string) *Inspection {
		if i, ok := byKey[key]; ok {
			return g.Inspections[i]
		}
		return nil
	}
	for _, o := range sorted {
		for _, in := range r.Silence(open(), o.Elapsed) {
			replace(in)
		}
		p := r.Place(o, open(), recall)
		if p.Inspection == nil {
			g.Orphans = append(g.Orphans, o.Seq)
			continue
		}
		replace(p.Inspection)
	}
	for _, in := range r.Silence(open(), elapsed) {
		replace(in)
	}
	return g
}
