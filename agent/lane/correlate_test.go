package lane

import (
	"fmt"
	"reflect"
	"slices"
	"sort"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var rules = Rules{OpenOn: []string{"scan-in"}, CloseOn: []string{"scan-out"}, CloseAfter: 45 * time.Second, Linger: 3 * time.Second,
	LateFor: time.Hour, Expected: []Kind{Label, Camera}}

// seen builds observations as a lane would see them, one after another.
type seen struct {
	list []*Observation
	at   time.Duration
}

func (s *seen) after(d time.Duration, device string, kind Kind, keys ...string) *seen {
	s.at += d
	o := &Observation{Seq: uint64(len(s.list) + 1), Device: device, Kind: kind, Elapsed: s.at, Received: time.Unix(1_800_000_000, 0).Add(s.at)}
	o.ID = DeriveID("test", fmt.Sprint(o.Seq))
	for _, k := range keys {
		id := Identifier{Scheme: Belt, Value: k}
		if len(k) == 13 {
			id.Scheme = S10
		}
		o.Identifiers = append(o.Identifiers, id)
		if kind != Label { // a scanner reads the item's code, other devices are told the item
			o.Item = k
		}
	}
	s.list = append(s.list, o)
	return s
}

// sets renders a grouping as the sequences of each inspection, how each closed,
// and the orphans.
func sets(g Grouping) string {
	out := ""
	for _, in := range g.Inspections {
		state := string(in.Closed)
		if in.Open() {
			state = "open"
		}
		out += fmt.Sprintf("%v %s; ", in.Observations, state)
	}
	return out + fmt.Sprintf("orphans %v", g.Orphans)
}

const (
	parcelA = "RB473124829GB"
	parcelB = "RB123456785GB"
)

// TestGroup tells how parcels pass a lane.
func TestGroup(t *testing.T) {
	s := time.Second
	for _, c := range []struct {
		name string
		in   *seen
		end  time.Duration
		want string
	}{
		{"opening scan, picture, closing scan",
			new(seen).after(0, "scan-in", Label, parcelA).after(s, "cam", Camera).after(s, "scan-out", Label, parcelA), 0, "[1 2 3] scan; orphans []"},
		{"a picture that arrives after the closing scan",
			new(seen).after(0, "scan-in", Label, parcelA).after(s, "scan-out", Label, parcelA).after(s, "cam", Camera), 0, "[1 2 3] scan; orphans []"},
		{"a picture that never comes",
			new(seen).after(0, "scan-in", Label, parcelA).after(s, "scan-out", Label, parcelA), 5 * s, "[1 2] scan; orphans []"},
		{"no closing scan: silence closes",
			new(seen).after(0, "scan-in", Label, parcelA).after(s, "cam", Camera), 47 * s, "[1 2] silence; orphans []"},
		{"not yet silent",
			new(seen).after(0, "scan-in", Label, parcelA).after(s, "cam", Camera), 46 * s, "[1 2] open; orphans []"},
		{"two parcels, one after the other",
			new(seen).after(0, "scan-in", Label, parcelA).after(s, "scan-in", Label, parcelB).after(s, "cam", Camera), 2 * s, "[1] open; [2 3] open; orphans []"},
		{"two parcels at once on the belt, told by item id",
			new(seen).after(0, "xray", XRay, "belt-1").after(s, "xray", XRay, "belt-2").after(s, "cam", Camera, "belt-1").after(s, "cam", Camera, "belt-2"), 3 * s,
			"[1 3] open; [2 4] open; orphans []"},
		{"a picture before any item is an orphan",
			new(seen).after(0, "cam", Camera).after(s, "scan-in", Label, parcelA), s, "[2] open; orphans [1]"},
		{"a picture long after an item is an orphan",
			new(seen).after(0, "scan-in", Label, parcelA).after(60*s, "cam", Camera), 60 * s, "[1] silence; orphans [2]"},
		{"a forensic result by parcel number, hours late",
			new(seen).after(0, "scan-in", Label, parcelA).after(s, "cam", Camera).after(s, "scan-out", Label, parcelA).after(1800*s, "raman", Forensic, parcelA), 1803 * s,
			"[1 2 3 4] scan; orphans []"},
		{"a picture whose camera names the item that was just scanned",
			new(seen).after(0, "scan-in", Label, parcelA).after(s, "cam", Camera, "belt-1").after(s, "xray", XRay, "belt-1"), 2 * s, "[1 2 3] open; orphans []"},
		{"a result for another parcel than the one on the belt",
			new(seen).after(0, "xray", XRay, "belt-1").after(s, "raman", Forensic, parcelA), s, "[1] open; [2] open; orphans []"},
		{"too late: a visit of its own",
			new(seen).after(0, "scan-in", Label, parcelA).after(s, "scan-out", Label, parcelA).after(7200*s, "raman", Forensic, parcelA), 7202 * s,
			"[1 2] scan; [3] open; orphans []"},
		{"the same parcel comes again",
			new(seen).after(0, "scan-in", Label, parcelA).after(s, "cam", Camera).after(s, "scan-out", Label, parcelA).after(60*s, "scan-in", Label, parcelA), 62 * s,
			"[1 2 3] scan; [4] open; orphans []"},
		{"the opening scan read twice",
			new(seen).after(0, "scan-in", Label, parcelA).after(s, "scan-in", Label, parcelA), s, "[1 2] open; orphans []"},
		{"a belt number used again",
			new(seen).after(0, "cam", Camera, "belt-7").after(600*s, "cam", Camera, "belt-7"), 600 * s, "[1] silence; [2] open; orphans []"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := sets(rules.Group(c.in.list, max(c.end, c.in.at))); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// drawn is a random stretch of lane life.
func drawn(t *rapid.T) *seen {
	s := &seen{}
	for range rapid.IntRange(1, 40).Draw(t, "n") {
		device := rapid.SampledFrom([]string{"scan-in", "scan-out", "cam", "xray", "raman"}).Draw(t, "device")
		kind := map[string]Kind{"scan-in": Label, "scan-out": Label, "cam": Camera, "xray": XRay, "raman": Forensic}[device]
		var keys []string
		if k := rapid.SampledFrom([]string{"", parcelA, parcelB, "belt-1", "belt-2"}).Draw(t, "key"); k != "" {
			keys = append(keys, k)
		}
		s.after(time.Duration(rapid.IntRange(0, 50).Draw(t, "pause"))*time.Second, device, kind, keys...)
	}
	return s
}

// TestGroupAnyOrder: the same observations, in any order and with any repetitions,
// give the same inspections; and each observation is in exactly one of them.
func TestGroupAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawn(t)
		want := rules.Group(s.list, s.at)
		shuffled := rapid.Permutation(append(slices.Clone(s.list), s.list[:len(s.list)/2]...)).Draw(t, "order")
		if got := rules.Group(shuffled, s.at); !reflect.DeepEqual(got, want) {
			t.Fatalf("another order gives %s, not %s", sets(got), sets(want))
		}
		var all []uint64
		for _, in := range want.Inspections {
			all = append(all, in.Observations...)
			if in.ID != DeriveID("inspection", s.list[in.Observations[0]-1].ID) {
				t.Fatal("an inspection is not named after its opening observation")
			}
		}
		all = append(all, want.Orphans...)
		slices.Sort(all)
		if len(slices.Compact(all)) != len(s.list) || len(all) != len(s.list) {
			t.Fatalf("%d observations became %v", len(s.list), all)
		}
	})
}

// TestKeyedAnyArrival: observations that carry the item's own id are grouped the
// same in whatever order they really arrive.
func TestKeyedAnyArrival(t *testing.T) {
	byBelt := Rules{CloseAfter: time.Minute, LateFor: time.Hour}
	rapid.Check(t, func(t *rapid.T) {
		items := rapid.SliceOfN(rapid.SampledFrom([]string{"belt-1", "belt-2", "belt-3", parcelA}), 1, 30).Draw(t, "items")
		partition := func(order []string) []string {
			s := &seen{}
			for _, k := range order {
				s.after(time.Second, rapid.SampledFrom([]string{"cam", "xray", "scan"}).Draw(t, "device"), Camera, k)
			}
			var out []string
			for _, in := range byBelt.Group(s.list, s.at).Inspections {
				out = append(out, fmt.Sprint(in.Keys(), len(in.Observations)))
			}
			sort.Strings(out)
			return out
		}
		if a, b := partition(items), partition(rapid.Permutation(items).Draw(t, "order")); !slices.Equal(a, b) {
			t.Fatalf("%v\n%v", a, b)
		}
	})
}

// TestOutcomeZero: a check that says nothing is inconclusive, and names survive
// JSON.
func TestOutcomeZero(t *testing.T) {
	var c Check
	if c.Outcome != Inconclusive || c.Outcome.String() != "inconclusive" {
		t.Error("the zero outcome is not inconclusive")
	}
	for _, o := range []Outcome{Inconclusive, Pass, Fail} {
		text, _ := o.MarshalText()
		var back Outcome
		if err := back.UnmarshalText(text); err != nil || back != o {
			t.Errorf("%s came back as %s, %v", o, back, err)
		}
	}
	if err := new(Outcome).UnmarshalText([]byte("ok")); err == nil {
		t.Error("an unknown outcome was read")
	}
}

// TestCodes: every code has what people need, and a recommendation that exists.
func TestCodes(t *testing.T) {
	for code, info := range Codes {
		if info.Text == "" || info.Cure == "" || info.Recommend.Rank() < 0 || info.Weight < 0 || info.Weight > 100 {
			t.Errorf("%s: %+v", code, info)
		}
		if (info.Against == Goods) != (info.Weight > 0) {
			t.Errorf("%s: only what speaks against the goods has a weight", code)
		}
	}
}

func TestDeriveID(t *testing.T) {
	if a, b := DeriveID("ab", "c"), DeriveID("a", "bc"); a == b || len(a) != 26 {
		t.Errorf("%s %s", a, b)
	}
}
