package vision

import (
	"fmt"
	"math"
	"slices"

	"inspectd.org/inspectd/agent/lane"
)

// Floors of the standard deviations: a handful of captures may agree by chance
// more closely than the next one will.
const (
	floorStructure = 0.12 // Fisher z
	floorDetail    = 0.20
	floorShift     = 0.30 // pixels of the face
	floorLab       = 0.90 // CIELAB units
	floorMargin    = 0.04 // difference of two correlations
)

// Limits, in standard deviations of prediction, beyond which a region is not as
// genuine captures are. They are wide because a parcel stopped in error is a
// defect too; see docs/decisions.
const (
	limitStructure = 6.0
	limitDetail    = 6.0
	limitShift     = 6.0
	limitColour    = 5.0
	limitMargin    = 6.0
)

// algorithm names what produces the checks of this package, for reports.
var algorithm = &lane.Algorithm{Name: "region-spread", Version: "1"}

// predicted is the standard deviation with which the next genuine capture is
// predicted from n earlier ones.
func (s Spread) predicted(floor float64, n int) float64 {
	return math.Sqrt((s.SD*s.SD + floor*floor) * (1 + 1/float64(max(n, 1))))
}

// fisher stretches a correlation so that its spread is even.
func fisher(r float64) float64 { return math.Atanh(min(max(r, -0.999), 0.999)) }

// judged is the distance of one region from what is normal, in units of its limit:
// above 1 it is not as genuine captures are.
type judged struct {
	structure, detail, shift, colour float64
}

func (j judged) worst() float64 { return max(j.structure, j.detail, j.shift, j.colour) }

func (p *Product) judge(region string, m RegionMeasurement) judged {
	n := p.Normal[region]
	j := judged{
		structure: (n.Structure.Mean - fisher(m.ZNCC)) / n.Structure.predicted(floorStructure, p.Captures) / limitStructure,
		detail:    (n.Detail.Mean - fisher(m.Worst)) / n.Detail.predicted(floorDetail, p.Captures) / limitDetail,
		shift:     (m.ShiftPx - n.Shift.Mean) / n.Shift.predicted(floorShift, p.Captures) / limitShift,
	}
	sum := 0.0
	for k := range 3 {
		d := (m.Lab[k] - n.Lab[k].Mean) / n.Lab[k].predicted(floorLab, p.Captures)
		sum += d * d
	}
	j.colour = math.Sqrt(sum) / limitColour
	return j
}

// checks answers the questions of a product about a photograph.
func (p *Product) checks(ref *lane.Reference, m *Measurement) []lane.Check {
	var out []lane.Check
	for _, name := range sortedKeys(p.Regions) {
		rm := m.Regions[name]
		base := lane.Check{Region: rm.Quad[:], Reference: ref, Algorithm: algorithm}
		if rm.Hidden != "" {
			base.Name, base.Codes = "vision/"+name, []lane.Code{"IMG_QUALITY"}
			base.Text = fmt.Sprintf("The %s cannot be judged: %s.", name, rm.Hidden)
			out = append(out, base)
			continue
		}
		j := p.judge(name, rm)
		out = append(out, p.structureCheck(base, name, rm, j), p.colourCheck(base, name, rm, j))
	}
	for i, f := range p.Fakes {
		out = append(out, p.fakeCheck(lane.Check{Reference: ref, Algorithm: algorithm}, f, m.Fakes[i], m.Regions[f.Region]))
	}
	if p.Captures < MinCaptures {
		for i := range out {
			out[i].Outcome, out[i].Codes = lane.Inconclusive, nil
			out[i].Text += fmt.Sprintf(" Advice only: the pack knows %d genuine captures of this product, %d are needed to judge.", p.Captures, MinCaptures)
		}
	}
	return out
}

func (p *Product) structureCheck(c lane.Check, name string, rm RegionMeasurement, j judged) lane.Check {
	n := p.Normal[name]
	c.Name = "vision/" + name
	c.Score = &lane.Score{Value: round(rm.ZNCC), Metric: "zncc", Scale: 1, Better: "higher"}
	c.Threshold = number(math.Tanh(n.Structure.Mean - limitStructure*n.Structure.predicted(floorStructure, p.Captures)))
	kind := p.Regions[name].Kind
	switch {
	case j.structure <= 1 && j.detail <= 1 && j.shift <= 1:
		c.Outcome = lane.Pass
		c.Text = fmt.Sprintf("The %s is as on genuine packs.", name)
	case j.structure > 1 && rm.ZNCC < 0.5 && (kind == "seal" || kind == "logo"):
		c.Outcome, c.Codes = lane.Fail, []lane.Code{"IMG_FEATURE_MISSING"}
		c.Text = fmt.Sprintf("The genuine %s is not there: correlation %.2f, genuine packs have at least %.2f.", name, rm.ZNCC, *c.Threshold)
	case j.shift > 1 && j.structure <= 1:
		c.Outcome, c.Codes = lane.Fail, []lane.Code{"IMG_LAYOUT"}
		c.Score = &lane.Score{Value: round(rm.ShiftPx * p.MMPerPx), Metric: "shift_mm", Better: "lower"}
		c.Threshold = number((n.Shift.Mean + limitShift*n.Shift.predicted(floorShift, p.Captures)) * p.MMPerPx)
		c.Text = fmt.Sprintf("The %s sits %.2f mm off its place, genuine packs at most %.2f mm.", name, c.Score.Value, *c.Threshold)
	case j.structure > 1:
		c.Outcome, c.Codes = lane.Fail, []lane.Code{"IMG_LAYOUT"}
		c.Text = fmt.Sprintf("The %s is drawn differently: correlation %.2f, genuine packs have at least %.2f.", name, rm.ZNCC, *c.Threshold)
	default:
		c.Outcome, c.Codes = lane.Fail, []lane.Code{"IMG_LAYOUT"}
		c.Score.Value = round(rm.Worst)
		c.Threshold = number(math.Tanh(n.Detail.Mean - limitDetail*n.Detail.predicted(floorDetail, p.Captures)))
		c.Text = fmt.Sprintf("A part of the %s is drawn differently: correlation %.2f, genuine packs have at least %.2f.", name, rm.Worst, *c.Threshold)
	}
	return c
}

func (p *Product) colourCheck(c lane.Check, name string, rm RegionMeasurement, j judged) lane.Check {
	c.Name = "vision/" + name + "-colour"
	c.Score = &lane.Score{Value: round(j.colour * limitColour), Metric: "mahalanobis_lab", Better: "lower"}
	c.Threshold = number(limitColour)
	if j.colour <= 1 {
		c.Outcome = lane.Pass
		c.Text = fmt.Sprintf("The colour of the %s is as on genuine packs.", name)
		return c
	}
	c.Outcome, c.Codes = lane.Fail, []lane.Code{"IMG_COLOUR"}
	c.Text = fmt.Sprintf("The colour of the %s differs from the genuine one by dE2000 %.1f.", name, rm.DE2000)
	return c
}

func (p *Product) fakeCheck(c lane.Check, f Fake, m FakeMeasurement, rm RegionMeasurement) lane.Check {
	c.Name = "vision/fake/" + f.Name
	c.Region = rm.Quad[:]
	margin := m.Fake - m.Genuine
	limit := max(f.Margin.Mean+limitMargin*f.Margin.predicted(floorMargin, p.Captures), 0.05)
	c.Score = &lane.Score{Value: round(margin), Metric: "zncc_fake_minus_genuine", Better: "lower"}
	c.Threshold = number(limit)
	switch {
	case rm.Hidden != "":
		c.Codes = []lane.Code{"IMG_QUALITY"}
		c.Text = fmt.Sprintf("Whether %q is there cannot be judged: %s.", f.Name, rm.Hidden)
	case margin > limit && m.Fake > 0.6:
		c.Outcome, c.Codes = lane.Fail, []lane.Code{"IMG_FEATURE_FAKE"}
		c.Text = fmt.Sprintf("Known counterfeit feature %q on the %s: it fits with %.2f, the genuine one with %.2f.", f.Name, f.Region, m.Fake, m.Genuine)
	default:
		c.Outcome = lane.Pass
		c.Text = fmt.Sprintf("Known counterfeit feature %q is not there.", f.Name)
	}
	return c
}

// round keeps four decimals: what is reported must not differ in the last bits
// from one machine to the next.
func round(v float64) float64 { return math.Round(v*1e4) / 1e4 }

func number(v float64) *float64 {
	v = round(v)
	return &v
}

// spread is the mean and standard deviation of a sample.
func spread(v []float64) Spread {
	mean := 0.0
	for _, x := range v {
		mean += x / float64(len(v))
	}
	sum := 0.0
	for _, x := range v {
		sum += (x - mean) * (x - mean)
	}
	return Spread{round(mean), round(math.Sqrt(sum / float64(max(len(v)-1, 1))))}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
