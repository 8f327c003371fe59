// Package checks turns an inspection into checks, findings and a report. It is
// pure: the same observations, analyses and lists give the same report, byte for
// byte.
package checks

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/agent/risk"
	"inspectd.org/inspectd/vision"
)

// Material is everything an inspection is judged by.
type Material struct {
	Lane         lane.Lane
	Inspection   *lane.Inspection
	Observations []*lane.Observation
	// Analyses holds, per sequence of a camera observation, what the packs say about
	// it. A camera image without one was not examined; see Unexamined.
	Analyses   map[uint64]*vision.Analysis
	Unexamined map[uint64]string // sequence -> why the image check could not run
	Packs      *vision.Packs
	Watchlist  *risk.Watchlist // nil when none is in force
	ListError  string          // why the watchlist there is cannot be used
	Expected   []lane.Kind
	Config     lane.Digest
	Software   string
}

// judge collects checks under unique names.
type judge struct {
	Material
	checks []lane.Check
	names  map[string]int
}

// add keeps a check. A second one of the same name is the same question asked of
// another observation; it gets "@2".
func (j *judge) add(c lane.Check) {
	j.names[c.Name]++
	if n := j.names[c.Name]; n > 1 {
		c.Name = fmt.Sprintf("%s@%d", c.Name, n)
	}
	j.checks = append(j.checks, c)
}

// Checks asks every question the lane has.
func Checks(m Material) []lane.Check {
	j := &judge{Material: m, names: map[string]int{}}
	j.labels()
	for _, o := range m.Observations {
		if o.Image != nil {
			j.imageFile(o)
		}
	}
	seen := j.photographs()
	for _, o := range m.Observations {
		if o.Test != nil {
			j.add(forensic(o))
		}
	}
	j.add(j.product(seen))
	j.add(j.watchlist())
	return j.checks
}

// labels checks each code once, however often it was scanned.
func (j *judge) labels() {
	done := map[string]bool{}
	for _, o := range j.Observations {
		if o.Label == nil || done[o.Label.AIM+o.Label.Data] {
			continue
		}
		done[o.Label.AIM+o.Label.Data] = true
		c := lane.Check{Name: "label/" + o.Device, Outcome: lane.Pass, Evidence: []lane.Digest{o.Original().SHA256},
			Algorithm: &lane.Algorithm{Name: "label-syntax", Version: "1"}}
		var texts []string
		for _, p := range o.Label.Problems {
			if p.Severity != "error" {
				continue
			}
			c.Outcome = lane.Fail
			texts = append(texts, sentence(p.Text))
			if !slices.Contains(c.Codes, p.Code) {
				c.Codes = append(c.Codes, p.Code)
			}
		}
		switch {
		case c.Outcome == lane.Fail:
			c.Text = strings.Join(texts, " ")
		case o.Label.Scheme == "opaque":
			c.Outcome = lane.Inconclusive
			c.Text = "The scan is no standard code; there is nothing to check it by."
		default:
			c.Text = "The code follows its standard and its check digits are right."
		}
		j.add(c)
	}
}

func sentence(s string) string {
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

// imageFile checks that the file of an image is whole.
func (j *judge) imageFile(o *lane.Observation) {
	c := lane.Check{Name: "image/" + o.Device, Outcome: lane.Pass, Evidence: []lane.Digest{o.Original().SHA256},
		Text: fmt.Sprintf("The image file is whole: %d x %d pixels, %d bits.", o.Image.Width, o.Image.Height, o.Image.Depth)}
	if o.Image.Damage != "" {
		c.Outcome, c.Codes, c.Text = lane.Inconclusive, []lane.Code{o.Image.Code}, sentence(o.Image.Damage)
	}
	j.add(c)
	if o.Kind == lane.XRay && o.Image.Damage == "" {
		// A whole file must not read as a parcel that was looked into.
		j.add(lane.Check{Name: "xray/" + o.Device, Evidence: c.Evidence,
			Text: "What the X-ray image shows was not judged: there is no reference to compare it with. Look at the picture."})
	}
}

// gtins are the product codes the labels name.
func (j *judge) gtins() []string {
	var out []string
	for _, id := range j.Inspection.Identifiers {
		if id.Scheme == lane.GTIN {
			out = append(out, id.Value)
		}
	}
	return out
}

// sighting is what one photograph shows.
type sighting struct {
	candidate *vision.Candidate
	named     bool // a code on the item names this product
}

// photographs reports what the packs say of each photograph, and returns the
// products that were seen.
func (j *judge) photographs() []sighting {
	var seen []sighting
	nth := 0
	for _, o := range j.Observations {
		if o.Kind != lane.Camera || o.Image == nil {
			continue
		}
		nth++
		if o.Image.Damage != "" {
			continue
		}
		c := lane.Check{Name: "vision/" + o.Device, Evidence: []lane.Digest{o.Original().SHA256}}
		a := j.Analyses[o.Seq]
		switch {
		case a == nil:
			c.Codes, c.Text = []lane.Code{"SYS_WORKER"}, "The picture was not examined: "+j.Unexamined[o.Seq]+"."
			j.add(c)
		case a.Failed != "":
			c.Codes, c.Text = []lane.Code{a.Code}, sentence(a.Failed)
			j.add(c)
		default:
			if s := j.photograph(c, a, nth); s != nil {
				seen = append(seen, *s)
			}
		}
	}
	return seen
}

// photograph chooses which product a picture shows and adds its checks. Those of
// the nth picture carry its number, whichever pictures were examined before it:
// a finding keeps its name while others are still being examined.
func (j *judge) photograph(c lane.Check, a *vision.Analysis, nth int) *sighting {
	s, why := choose(a, j.gtins())
	if s == nil {
		c.Text = sentence(why)
		if len(j.Packs.Known(j.gtins())) > 0 {
			c.Codes = []lane.Code{"IMG_QUALITY"}
		}
		j.add(c)
		return nil
	}
	c.Outcome, c.Reference = lane.Pass, s.candidate.Reference
	c.Score = &lane.Score{Value: s.candidate.Agreement, Metric: "area_agreement", Scale: 1, Better: "higher"}
	c.Text = fmt.Sprintf("The picture shows %s.", s.candidate.Name)
	j.add(c)
	original := c.Evidence[0]
	for _, rc := range s.candidate.Checks {
		if nth > 1 {
			rc.Name = fmt.Sprintf("%s@%d", rc.Name, nth)
		}
		rc.Evidence = []lane.Digest{original}
		if rc.Outcome == lane.Fail && s.candidate.Overlay != nil {
			rc.Evidence = append(rc.Evidence, s.candidate.Overlay.SHA256)
		}
		// Without a code that names the product, the pack may be a sibling that nobody
		// enrolled. Then only a known counterfeit feature speaks for itself.
		if !s.named && rc.Outcome == lane.Fail && !slices.Contains(rc.Codes, "IMG_FEATURE_FAKE") {
			rc.Outcome, rc.Codes = lane.Inconclusive, nil
			rc.Text += " Advice only: no code on the item names this product."
		}
		j.add(rc)
	}
	return s
}

// fits is the misfit up to which a photograph is as genuine captures are.
const fits = 1

// choose decides which candidate a photograph shows, given the product codes on
// the item. The code is the primary key; the picture contradicts it only when it
// fits another product fully.
func choose(a *vision.Analysis, gtins []string) (*sighting, string) {
	var named, best, second *vision.Candidate
	why := "it shows no product of the installed packs"
	for i := range a.Candidates {
		c := &a.Candidates[i]
		if !c.Judged() {
			if slices.ContainsFunc(c.GTINs, func(g string) bool { return slices.Contains(gtins, g) }) {
				why = fmt.Sprintf("it cannot be judged as %s: %s", c.Name, c.Reason)
			}
			continue
		}
		if slices.ContainsFunc(c.GTINs, func(g string) bool { return slices.Contains(gtins, g) }) && (named == nil || c.Misfit < named.Misfit) {
			named = c
		}
		switch {
		case best == nil || c.Misfit < best.Misfit:
			best, second = c, best
		case second == nil || c.Misfit < second.Misfit:
			second = c
		}
	}
	switch {
	case named != nil && (named.Misfit <= fits || best.Misfit > fits):
		return &sighting{named, true}, ""
	case best == nil:
		return nil, why
	case best.Misfit <= fits:
		return &sighting{best, false}, ""
	case second != nil && second.Misfit < 1.5*best.Misfit:
		return nil, fmt.Sprintf("it may show %s or %s; without a code on the item they cannot be told apart", best.Name, second.Name)
	}
	return &sighting{best, false}, ""
}

// product is the consistency rule between code and picture.
func (j *judge) product(seen []sighting) lane.Check {
	c := lane.Check{Name: "consistency/product", Algorithm: &lane.Algorithm{Name: "code-against-picture", Version: "1"}}
	gtins := j.gtins()
	named := strings.Join(j.Packs.Known(gtins), " and ")
	switch {
	case len(gtins) == 0:
		c.Text = "No code names a product, so there is nothing to compare the pictures with."
	case named == "":
		c.Text = "No installed pack knows the product that the code names."
	case len(seen) == 0:
		c.Text = "No picture shows the product well enough to compare it with the code."
	default:
		c.Outcome, c.Text = lane.Pass, "Code and picture name the same product: "+seen[0].candidate.Name+"."
		for _, s := range seen {
			switch {
			case s.named:
				continue
			case s.candidate.Misfit <= fits:
				c.Outcome, c.Codes = lane.Fail, []lane.Code{"IMG_PRODUCT_OTHER"}
				c.Text = fmt.Sprintf("The code names %s, the picture shows %s.", named, s.candidate.Name)
				return c
			default:
				c.Outcome, c.Codes = lane.Inconclusive, []lane.Code{"IMG_QUALITY"}
				c.Text = fmt.Sprintf("The code names %s; the picture resembles %s but does not fit it.", named, s.candidate.Name)
			}
		}
	}
	return c
}

func (j *judge) watchlist() lane.Check {
	c := lane.Check{Name: "risk/watchlist", Algorithm: &lane.Algorithm{Name: "watchlist", Version: "1"}}
	if j.Watchlist == nil {
		c.Text = "This lane has no watchlist."
		if j.ListError != "" {
			c.Text = "The item was not compared with the watchlist, which cannot be used: " + j.ListError + "."
		}
		return c
	}
	c.Reference = &lane.Reference{Pack: "watchlist", Version: string(j.Watchlist.SHA256[:12]), SHA256: j.Watchlist.SHA256}
	if len(j.Inspection.Identifiers) == 0 {
		c.Text = "The item has no identifier that could be listed."
		return c
	}
	hits := j.Watchlist.Match(j.Inspection.Identifiers)
	if len(hits) == 0 {
		c.Outcome, c.Text = lane.Pass, "None of the item's identifiers is listed."
		return c
	}
	c.Outcome, c.Codes = lane.Fail, []lane.Code{"RISK_PROFILE"}
	var texts []string
	for _, h := range hits {
		texts = append(texts, fmt.Sprintf("%s %s is on the watchlist: %s", strings.ToUpper(string(h.Scheme)), h.Value, h.Note))
	}
	c.Text = strings.Join(texts, ". ") + "."
	return c
}

// forensic takes over the verdict of an instrument, through two gates: its
// calibration, and that it does not contradict its own score.
func forensic(o *lane.Observation) lane.Check {
	t := o.Test
	c := lane.Check{Name: "forensic/" + o.Device, Score: t.Score, Threshold: t.Threshold, Evidence: []lane.Digest{o.Original().SHA256}}
	if t.Method != "" {
		c.Algorithm = &lane.Algorithm{Name: t.Technique, Version: t.Method}
	}
	name := strings.TrimSpace(t.Technique + " test")
	calibration := strings.ToLower(strings.TrimSpace(t.Calibration.Status))
	switch {
	case calibration != "" && calibration != "valid":
		c.Codes = []lane.Code{"FOR_CAL_EXPIRED"}
		c.Text = fmt.Sprintf("The %s does not count: the instrument's calibration is %q, not valid. Its verdict was %q.", name, t.Calibration.Status, t.Verdict)
	case t.Verdict == "" && t.Spectrum != nil:
		c.Codes = []lane.Code{"FOR_INCONCLUSIVE"}
		c.Text = fmt.Sprintf("A spectrum of %d points was kept; the instrument gave no verdict, and the lane has no reference to compare it with.", t.Spectrum.Points)
	case t.Verdict == "" || t.Verdict == "inconclusive":
		c.Codes = []lane.Code{"FOR_INCONCLUSIVE"}
		c.Text = fmt.Sprintf("The %s gave no clear result.", name)
	case contradicts(t):
		c.Codes = []lane.Code{"FOR_INCONCLUSIVE"}
		c.Text = fmt.Sprintf("The %s says %s, but its score %.4g against %.4g says otherwise.", name, t.Verdict, t.Score.Value, *t.Threshold)
	case t.Verdict == "pass":
		c.Outcome = lane.Pass
		c.Text = fmt.Sprintf("The %s confirms the substance.", name)
	default:
		c.Outcome, c.Codes = lane.Fail, []lane.Code{"FOR_ID_FAIL"}
		c.Text = fmt.Sprintf("The %s does not confirm the substance.", name)
		if t.BestHit != "" {
			c.Text = fmt.Sprintf("The %s does not confirm the substance; it is nearest to %s.", name, t.BestHit)
		}
	}
	if calibration == "" && c.Outcome != lane.Inconclusive {
		c.Text += " The instrument does not tell its calibration."
	}
	return c
}

// contradicts reports whether an instrument's verdict disagrees with its own score
// and threshold.
func contradicts(t *lane.TestResult) bool {
	if t.Score == nil || t.Threshold == nil || t.Score.Better != "higher" && t.Score.Better != "lower" {
		return false
	}
	passes := t.Score.Value >= *t.Threshold
	if t.Score.Better == "lower" {
		passes = t.Score.Value <= *t.Threshold
	}
	return passes != (t.Verdict == "pass")
}

// highWeight is the weight of a reason code from which its finding is strong.
const highWeight = 40

// Findings are what speaks against the goods, the strong ones first: the failed
// checks, and what was raised before and no check has taken back. A check takes a
// finding back only by passing; one that could not run this time does not.
func Findings(in *lane.Inspection, checks []lane.Check) []lane.Finding {
	findings := []lane.Finding{}
	outcome := map[string]lane.Outcome{}
	for _, c := range checks {
		outcome[c.Name] = c.Outcome
		if c.Outcome == lane.Fail && slices.ContainsFunc(c.Codes, speaksAgainstGoods) {
			findings = append(findings, finding(in.ID, c))
		}
	}
	for _, f := range in.Raised {
		if outcome[f.Check] == lane.Inconclusive { // also when nobody asked
			findings = append(findings, f)
		}
	}
	sort.SliceStable(findings, func(i, k int) bool { return findings[i].Strength == lane.High && findings[k].Strength != lane.High })
	return findings
}

func speaksAgainstGoods(k lane.Code) bool { return lane.Codes[k].Against == lane.Goods }

func finding(inspection string, c lane.Check) lane.Finding {
	f := lane.Finding{ID: lane.DeriveID("finding", inspection, c.Name), Check: c.Name, Strength: lane.Suspect,
		Codes: c.Codes, Text: c.Text, Evidence: c.Evidence}
	if f.Evidence == nil {
		f.Evidence = []lane.Digest{}
	}
	for _, k := range c.Codes {
		if lane.Codes[k].Weight >= highWeight {
			f.Strength = lane.High
		}
	}
	return f
}

// Report sums up an inspection as its next revision.
func Report(m Material, checks []lane.Check) *lane.Report {
	in := m.Inspection
	r := &lane.Report{
		Inspection: in.ID, Revision: in.Revision + 1, Lane: m.Lane, Identifiers: in.Identifiers,
		Opened: in.Opened, Closed: in.ClosedAt, Missing: in.Missing(m.Expected),
		Checks: checks, Findings: Findings(in, checks),
		ConfigSHA256: m.Config, Software: m.Software,
	}
	if r.Identifiers == nil {
		r.Identifiers = []lane.Identifier{}
	}
	r.Complete = len(r.Missing) == 0
	r.Reasons = reasons(r.Findings)
	r.Score, r.Recommendation = weigh(r.Reasons, checks)
	for _, o := range m.Observations {
		r.Observations = append(r.Observations, lane.ObservationRef{ID: o.ID, Device: o.Device, Kind: o.Kind,
			Observed: o.Observed, Received: o.Received, Clock: o.Clock, QoS: o.QoS, Authenticated: o.Authentic,
			Evidence: o.Evidence, Notes: o.Notes})
	}
	return r
}

// reasons lists what speaks against the goods, heaviest first.
func reasons(findings []lane.Finding) []lane.Reason {
	out := []lane.Reason{}
	for _, f := range findings {
		for _, k := range f.Codes {
			if speaksAgainstGoods(k) {
				out = append(out, lane.Reason{Code: k, Check: f.Check, Weight: lane.Codes[k].Weight, Text: f.Text})
			}
		}
	}
	sort.SliceStable(out, func(i, k int) bool { return out[i].Weight > out[k].Weight })
	return out
}

// weigh combines reasons into a score and a recommendation. Each code counts once,
// as independent evidence: two reasons of 50 make 75, never 100.
func weigh(reasons []lane.Reason, checks []lane.Check) (int, lane.Recommendation) {
	clean := 1.0
	counted := map[lane.Code]bool{}
	recommend := lane.Recommendation("none")
	raise := func(k lane.Code) {
		if r := lane.Codes[k].Recommend; r.Rank() > recommend.Rank() {
			recommend = r
		}
	}
	for _, r := range reasons {
		if !counted[r.Code] {
			counted[r.Code] = true
			clean *= 1 - float64(r.Weight)/100
		}
		raise(r.Code)
	}
	for _, c := range checks {
		for _, k := range c.Codes {
			raise(k)
		}
	}
	return int(100*(1-clean) + 0.5), recommend
}
