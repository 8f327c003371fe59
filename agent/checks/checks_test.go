package checks

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/agent/risk"
	"inspectd.org/inspectd/vision"
)

const gtin = "09520001000010"

// material is an item with a scan, a photograph and whatever is added to it.
func material(t *testing.T, change ...func(*Material)) Material {
	t.Helper()
	pack, err := vision.ReadPack("../../testdata/packs/fictional")
	if err != nil {
		t.Fatal(err)
	}
	m := Material{
		Lane:       lane.Lane{Site: "demo", ID: "lane-01"},
		Inspection: &lane.Inspection{ID: "I", Kinds: []lane.Kind{lane.Label, lane.Camera}, Identifiers: []lane.Identifier{{Scheme: lane.GTIN, Value: gtin}}, Closed: lane.ByScan, Stale: true},
		Observations: []*lane.Observation{
			{Seq: 1, Device: "scan", Kind: lane.Label, Label: &lane.LabelRead{AIM: "]d2", Data: "x", Scheme: "gs1"}, Evidence: []lane.Evidence{{SHA256: lane.Sum([]byte("1"))}}},
			{Seq: 2, Device: "cam", Kind: lane.Camera, Image: &lane.ImageTaken{Width: 10, Height: 10, Depth: 8}, Evidence: []lane.Evidence{{SHA256: lane.Sum([]byte("2"))}}},
		},
		Analyses:   map[uint64]*vision.Analysis{2: {Candidates: []vision.Candidate{shown("velmaris-20", gtin, 0.2)}}},
		Unexamined: map[uint64]string{},
		Packs:      &vision.Packs{List: []*vision.Pack{pack}},
		Expected:   []lane.Kind{lane.Label, lane.Camera},
	}
	for _, c := range change {
		c(&m)
	}
	return m
}

// shown is a candidate that was judged, with the misfit of its worst region.
func shown(product, gtin string, misfit float64) vision.Candidate {
	c := lane.Check{Name: "vision/logo", Outcome: lane.Pass, Text: "as genuine"}
	if misfit > 1 {
		c.Outcome, c.Codes, c.Text = lane.Fail, []lane.Code{"IMG_LAYOUT"}, "differs"
	}
	return vision.Candidate{Product: product, Name: product, GTINs: []string{gtin}, Agreement: 0.95, Misfit: misfit, Checks: []lane.Check{c}}
}

func candidates(list ...vision.Candidate) func(*Material) {
	return func(m *Material) { m.Analyses[2] = &vision.Analysis{Candidates: list} }
}

func noCode(m *Material) { m.Inspection.Identifiers = nil }

func test(change func(*lane.TestResult)) func(*Material) {
	return func(m *Material) {
		threshold := 0.95
		r := &lane.TestResult{Technique: "raman", Verdict: "pass", Calibration: lane.Calibration{Status: "valid"},
			Score: &lane.Score{Value: 0.98, Metric: "hqi", Better: "higher"}, Threshold: &threshold}
		change(r)
		m.Observations = append(m.Observations, &lane.Observation{Seq: 3, Device: "raman", Kind: lane.Forensic, Test: r, Evidence: []lane.Evidence{{SHA256: lane.Sum([]byte("3"))}}})
	}
}

// TestChecks asks about items and looks at single answers: name, outcome, codes.
func TestChecks(t *testing.T) {
	for name, c := range map[string]struct {
		m    Material
		want string // the check, its outcome, its codes
		rec  lane.Recommendation
	}{
		"honest":                 {material(t), "vision/logo pass []", "none"},
		"code and picture agree": {material(t), "consistency/product pass []", "none"},
		"an X-ray image nobody judged": {material(t, func(m *Material) {
			m.Observations = append(m.Observations, &lane.Observation{Seq: 3, Device: "tunnel", Kind: lane.XRay, Image: &lane.ImageTaken{Width: 9, Height: 9}, Evidence: []lane.Evidence{{SHA256: lane.Sum([]byte("3"))}}})
		}), "xray/tunnel inconclusive []", "none"},
		"no watchlist":                 {material(t), "risk/watchlist inconclusive []", "none"},
		"altered pack":                 {material(t, candidates(shown("velmaris-20", gtin, 3))), "vision/logo fail [IMG_LAYOUT]", "open_inspect"},
		"altered, and a worse sibling": {material(t, candidates(shown("velmaris-40", "x", 9), shown("velmaris-20", gtin, 3))), "consistency/product pass []", "open_inspect"},
		"another product":              {material(t, candidates(shown("velmaris-40", "x", 0.3), shown("velmaris-20", gtin, 9))), "consistency/product fail [IMG_PRODUCT_OTHER]", "open_inspect"},
		"resembles another":            {material(t, candidates(shown("velmaris-40", "x", 4))), "consistency/product inconclusive [IMG_QUALITY]", "rescan"},
		"no code: advice only":         {material(t, noCode, candidates(shown("velmaris-20", gtin, 3))), "vision/logo inconclusive []", "none"},
		"no code, two siblings":        {material(t, noCode, candidates(shown("velmaris-20", gtin, 3), shown("velmaris-40", "x", 3.5))), "vision/cam inconclusive []", "none"},
		"no product in sight":          {material(t, candidates()), "vision/cam inconclusive [IMG_QUALITY]", "rescan"},
		"no product, none expected":    {material(t, noCode, candidates()), "vision/cam inconclusive []", "none"},
		"worker away": {material(t, func(m *Material) { delete(m.Analyses, 2); m.Unexamined[2] = "no worker" }),
			"vision/cam inconclusive [SYS_WORKER]", "rescan"},
		"picture refused": {material(t, func(m *Material) { m.Analyses[2] = &vision.Analysis{Failed: "cannot be decoded", Code: "IMG_QUALITY"} }),
			"vision/cam inconclusive [IMG_QUALITY]", "rescan"},
		"picture cut off": {material(t, func(m *Material) {
			m.Observations[1].Image.Damage, m.Observations[1].Image.Code = "cut off", "IMG_INCOMPLETE"
		}),
			"image/cam inconclusive [IMG_INCOMPLETE]", "rescan"},
		"wrong check digit": {material(t, func(m *Material) {
			m.Observations[0].Label.Problems = []lane.Problem{{Code: "LBL_CHECKDIGIT", Severity: "error", Text: "the check digit is wrong"}}
		}), "label/scan fail [LBL_CHECKDIGIT]", "document_check"},
		"a warning is no failure": {material(t, func(m *Material) {
			m.Observations[0].Label.Problems = []lane.Problem{{Code: "LBL_AIM_MISSING", Severity: "warning", Text: "no identifier"}}
		}), "label/scan pass []", "none"},
		"text that is no code":           {material(t, func(m *Material) { m.Observations[0].Label.Scheme = "opaque" }), "label/scan inconclusive []", "none"},
		"test passed":                    {material(t, test(func(*lane.TestResult) {})), "forensic/raman pass []", "none"},
		"test failed":                    {material(t, test(func(r *lane.TestResult) { r.Verdict, r.Score.Value = "fail", 0.4 })), "forensic/raman fail [FOR_ID_FAIL]", "lab_sample"},
		"test unclear":                   {material(t, test(func(r *lane.TestResult) { r.Verdict = "inconclusive" })), "forensic/raman inconclusive [FOR_INCONCLUSIVE]", "retest"},
		"out of calibration":             {material(t, test(func(r *lane.TestResult) { r.Verdict, r.Calibration.Status = "fail", "expired" })), "forensic/raman inconclusive [FOR_CAL_EXPIRED]", "retest"},
		"calibration of no word we know": {material(t, test(func(r *lane.TestResult) { r.Calibration.Status = "OVERDUE" })), "forensic/raman inconclusive [FOR_CAL_EXPIRED]", "retest"},
		"calibration in capitals":        {material(t, test(func(r *lane.TestResult) { r.Calibration.Status = "VALID" })), "forensic/raman pass []", "none"},
		"contradicts itself":             {material(t, test(func(r *lane.TestResult) { r.Score.Value = 0.2 })), "forensic/raman inconclusive [FOR_INCONCLUSIVE]", "retest"},
		"only a spectrum": {material(t, test(func(r *lane.TestResult) { *r = lane.TestResult{Spectrum: &lane.Spectrum{Points: 7}} })),
			"forensic/raman inconclusive [FOR_INCONCLUSIVE]", "retest"},
	} {
		list := Checks(c.m)
		r := Report(c.m, list)
		var all []string
		for _, x := range list {
			codes := "[]"
			if len(x.Codes) > 0 {
				codes = "[" + string(x.Codes[0]) + "]"
			}
			all = append(all, x.Name+" "+x.Outcome.String()+" "+codes)
			if x.Text == "" {
				t.Errorf("%s: %s says nothing", name, x.Name)
			}
		}
		if !slices.Contains(all, c.want) {
			t.Errorf("%s: want %s among\n  %s", name, c.want, strings.Join(all, "\n  "))
		}
		if r.Recommendation != c.rec {
			t.Errorf("%s: recommends %s, want %s", name, r.Recommendation, c.rec)
		}
		if (len(r.Findings) > 0) != (r.Score > 0) || len(r.Findings) > 0 && c.rec == "none" {
			t.Errorf("%s: score %d with %d findings", name, r.Score, len(r.Findings))
		}
	}
}

// TestWatchlist: listed identifiers are found in normal form; a list with a mistake
// is refused whole.
func TestWatchlist(t *testing.T) {
	path := filepath.Join(t.TempDir(), "watchlist.csv")
	write := func(s string) {
		if err := os.WriteFile(path, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if w, err := risk.Load(path); w != nil || err != nil {
		t.Errorf("no list: %v %v", w, err)
	}
	write("# comment\nscheme,value,note\ngtin,9520001000010,hold for the rights holder\ns10,RB473124829GB,known sender\n")
	w, err := risk.Load(path)
	if err != nil || w.Len() != 2 {
		t.Fatalf("%v %v", w, err)
	}
	m := material(t, func(m *Material) { m.Watchlist = w })
	r := Report(m, Checks(m))
	if len(r.Findings) != 1 || r.Findings[0].Codes[0] != "RISK_PROFILE" || !strings.Contains(r.Findings[0].Text, "hold for the rights holder") {
		t.Errorf("%+v", r.Findings)
	}
	write("\xef\xbb\xbfscheme,value,note\ns10,rb 473 124 829 gb,as typed\nsscc,(00)006141411234567890,no\n")
	if _, err := risk.Load(path); err == nil || strings.Contains(err.Error(), "s10") || !strings.Contains(err.Error(), "entry 2") {
		t.Errorf("%v", err)
	}
	write("scheme,value,note\ns10,rb 473 124 829 gb,as typed\nsscc,00006141411234567890,with its AI\nsgtin,9520001000010.aB1,case of a serial counts\n")
	if w, err = risk.Load(path); err != nil {
		t.Fatal(err)
	}
	for _, id := range []lane.Identifier{{Scheme: lane.S10, Value: "RB473124829GB"}, {Scheme: lane.SSCC, Value: "006141411234567890"}, {Scheme: lane.SGTIN, Value: "09520001000010.aB1"}} {
		if len(w.Match([]lane.Identifier{id})) != 1 {
			t.Errorf("%s is listed and was not met", id.Key())
		}
	}
	for _, bad := range []string{"scheme,value,note\ngtin,9520001000011,wrong check digit\n", "scheme,value,note\ns10,RB473124828GB,wrong check digit\n", "", "scheme,value\n", "scheme,value,note\nsscc,,empty\nphone,1,no such\n", "scheme,value,note\n\"open"} {
		write(bad)
		if w, err := risk.Load(path); err == nil {
			t.Errorf("%q was read: %v", bad, w)
		}
	}
}

// TestStanding: a finding that was raised stands until its check passes. A check that
// could not run this time, or was not asked, takes nothing back.
func TestStanding(t *testing.T) {
	altered := candidates(shown("velmaris-20", gtin, 3))
	first := material(t, altered)
	raised := Findings(first.Inspection, Checks(first))
	if len(raised) != 1 {
		t.Fatalf("%+v", raised)
	}
	for name, c := range map[string]struct {
		change func(*Material)
		stands bool
	}{
		"still failed":     {altered, true},
		"worker away":      {func(m *Material) { delete(m.Analyses, 2); m.Unexamined[2] = "no worker" }, true},
		"packs are gone":   {func(m *Material) { m.Packs = &vision.Packs{}; m.Analyses[2] = &vision.Analysis{} }, true},
		"passes this time": {func(m *Material) {}, false},
	} {
		m := material(t, c.change, func(m *Material) { m.Inspection.Raised = raised })
		r := Report(m, Checks(m))
		if got := len(r.Findings) == 1 && r.Recommendation == "open_inspect" && len(r.Reasons) == 1; got != c.stands {
			t.Errorf("%s: %d findings, %s", name, len(r.Findings), r.Recommendation)
		}
	}
}

// TestNamesWhilePending: the checks of a picture keep their names, whichever
// pictures were examined first.
func TestNamesWhilePending(t *testing.T) {
	two := func(m *Material) {
		o := *m.Observations[1]
		o.Seq = 9
		m.Observations = append(m.Observations, &o)
		m.Analyses[9] = &vision.Analysis{Candidates: []vision.Candidate{shown("velmaris-20", gtin, 3)}}
	}
	pending := material(t, two, func(m *Material) { delete(m.Analyses, 2); m.Unexamined[2] = "it is still being examined" })
	done := material(t, two)
	a, b := Findings(pending.Inspection, Checks(pending)), Findings(done.Inspection, Checks(done))
	if len(a) != 1 || len(b) != 1 || a[0].ID != b[0].ID || a[0].Check != "vision/logo@2" {
		t.Errorf("%+v\n%+v", a, b)
	}
}

// TestReport: a report is the same byte for byte from the same material, counts each
// code once, and names what is missing.
func TestReport(t *testing.T) {
	m := material(t, candidates(shown("velmaris-20", gtin, 3)), test(func(r *lane.TestResult) { r.Verdict, r.Score.Value = "fail", 0.4 }),
		func(m *Material) { m.Expected = append(m.Expected, lane.XRay); m.Inspection.Opened = time.Unix(1, 0) })
	a, err1 := json.Marshal(Report(m, Checks(m)))
	b, err2 := json.Marshal(Report(m, Checks(m)))
	if err1 != nil || err2 != nil || string(a) != string(b) {
		t.Error("two reports of the same material differ")
	}
	r := Report(m, Checks(m))
	if r.Revision != 1 || r.Complete || len(r.Missing) != 1 || r.Missing[0] != lane.XRay {
		t.Errorf("%+v", r)
	}
	// 70 and 35 as independent evidence: 1 - 0.3 * 0.65.
	if r.Score != 81 || r.Reasons[0].Code != "FOR_ID_FAIL" || r.Findings[0].Strength != lane.High {
		t.Errorf("score %d, reasons %+v", r.Score, r.Reasons)
	}
}
