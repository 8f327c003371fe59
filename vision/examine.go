package vision

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"inspectd.org/inspectd/agent/lane"
)

// Analysis is everything the packs say about one photograph. It does not depend on
// what labels say: the report chooses among the candidates.
type Analysis struct {
	Width      int         `json:"width"`
	Height     int         `json:"height"`
	Candidates []Candidate `json:"candidates"` // best first
	// Failed tells why there is no answer; Code goes with it.
	Failed string    `json:"failed,omitempty"`
	Code   lane.Code `json:"code,omitempty"`
}

// Candidate is a product that the photograph may show.
type Candidate struct {
	Product   string          `json:"product"`
	Name      string          `json:"name"`
	GTINs     []string        `json:"gtins"`
	Reference *lane.Reference `json:"reference"`
	Agreement float64         `json:"agreement"` // share of textured patches that fit
	Inliers   int             `json:"inliers"`
	Reason    string          `json:"reason,omitempty"` // why it could not be judged
	Misfit    float64         `json:"misfit"`           // worst region, in units of its limit
	Checks    []lane.Check    `json:"checks,omitempty"`
	Overlay   *lane.Evidence  `json:"overlay,omitempty"`
}

// Judged reports whether the candidate's regions were compared.
func (c *Candidate) Judged() bool { return len(c.Checks) > 0 }

// Picture is an image made to explain, to be kept as evidence.
type Picture struct {
	Evidence lane.Evidence
	Bytes    []byte
}

const (
	shortlist  = 4    // products compared in full
	minMatches = 12   // matching points from which a comparison is worth its time
	minAgree   = 0.45 // agreement below which a photograph shows another product
)

// Examine asks the packs about a photograph. An image the worker refuses is told in
// the Analysis; an error is one of the worker itself.
func (p *Packs) Examine(w *Worker, image []byte) (*Analysis, []Picture, error) {
	a := &Analysis{Candidates: []Candidate{}}
	var pictures []Picture
	var f *Features
	var err error
	if a.Width, a.Height, f, err = w.Open(image); err == nil {
		for _, hit := range p.search(f) {
			var c *Candidate
			var pic *Picture
			if c, pic, err = hit.compare(w); err != nil {
				break
			}
			a.Candidates = append(a.Candidates, *c)
			if pic != nil {
				pictures = append(pictures, *pic)
			}
		}
	}
	var refused *Refused
	if errors.As(err, &refused) {
		return &Analysis{Candidates: []Candidate{}, Failed: refused.Reason, Code: "IMG_QUALITY"}, nil, nil
	}
	slices.SortStableFunc(a.Candidates, func(x, y Candidate) int { return cmp.Compare(y.Agreement, x.Agreement) })
	return a, pictures, err
}

// hit is a product whose features the photograph shares.
type hit struct {
	pack    *Pack
	product *Product
	pairs   []Pair
}

// search finds the products that share most features with the photograph.
func (p *Packs) search(f *Features) []hit {
	var hits []hit
	for _, pack := range p.List {
		for i := range pack.Products {
			product := &pack.Products[i]
			if pairs := MatchFeatures(product.features, f); len(pairs) >= minMatches {
				hits = append(hits, hit{pack, product, pairs})
			}
		}
	}
	slices.SortStableFunc(hits, func(x, y hit) int { return cmp.Compare(len(y.pairs), len(x.pairs)) })
	return hits[:min(len(hits), shortlist)]
}

func (p *Product) request(pairs []Pair) (CompareRequest, [][]byte) {
	req := CompareRequest{Pairs: pairs, Regions: p.Regions}
	files := [][]byte{p.face}
	for _, f := range p.Fakes {
		req.Fakes = append(req.Fakes, FakeRequest{f.Name, f.Region})
		files = append(files, f.picture)
	}
	return req, files
}

func (h *hit) compare(w *Worker) (*Candidate, *Picture, error) {
	req, files := h.product.request(h.pairs)
	m, err := w.Compare(req, files...)
	if err != nil {
		return nil, nil, err
	}
	c := &Candidate{
		Product: h.product.ID, Name: h.product.Name, GTINs: h.product.GTINs,
		Reference: &lane.Reference{Pack: h.pack.ID, Version: h.pack.Version, SHA256: h.pack.SHA256},
		Agreement: round(m.Agreement), Inliers: m.Inliers, Reason: m.Reason,
	}
	if !m.Aligned {
		return c, nil, nil
	}
	if m.Agreement < minAgree {
		c.Reason = fmt.Sprintf("only %.0f %% of the face's details are found again", 100*m.Agreement)
		return c, nil, nil
	}
	c.Checks = h.product.checks(c.Reference, m)
	for name, rm := range m.Regions {
		c.Misfit = max(c.Misfit, round(h.product.judge(name, rm).worst()))
	}
	pic, err := c.explain(w)
	return c, pic, err
}

// explain draws the regions that failed onto the photograph.
func (c *Candidate) explain(w *Worker) (*Picture, error) {
	marks := c.marks()
	if len(marks) == 0 {
		return nil, nil
	}
	jpeg, err := w.Overlay(marks)
	if err != nil {
		return nil, err
	}
	c.Overlay = &lane.Evidence{SHA256: lane.Sum(jpeg), MediaType: "image/jpeg", Size: int64(len(jpeg)), Role: "overlay"}
	return &Picture{*c.Overlay, jpeg}, nil
}

// marks are the regions that failed, each outlined once, whatever failed about it.
func (c *Candidate) marks() []Mark {
	var marks []Mark
	for _, check := range c.Checks {
		if check.Outcome != lane.Fail || len(check.Region) != 4 {
			continue
		}
		m := Mark{Quad: [4][2]float64(check.Region), Label: strings.TrimSuffix(strings.TrimPrefix(check.Name, "vision/"), "-colour"), Bad: true}
		if !slices.ContainsFunc(marks, func(x Mark) bool { return x.Quad == m.Quad }) {
			marks = append(marks, m)
		}
	}
	return marks
}
