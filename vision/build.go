package vision

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/draw"
	"image/png"
	"os"
	"path/filepath"

	"inspectd.org/inspectd/agent/lane"
)

// ErrNotShown is returned when a capture does not show the product it is meant to.
var ErrNotShown = errors.New("the picture does not show this product well enough")

// AddProduct adds a product with its genuine face (PNG bytes) to the pack and
// finds the face's features.
func (p *Pack) AddProduct(ctx context.Context, pool *Pool, product Product, face []byte) (*Product, error) {
	product.Face = "faces/" + product.ID + ".png"
	product.face, product.Normal = face, map[string]Normal{}
	err := pool.With(ctx, func(w *Worker) (err error) {
		_, _, product.features, err = w.Open(face)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("face of %s: %w", product.ID, err)
	}
	p.Products = append(p.Products, product)
	return &p.Products[len(p.Products)-1], nil
}

// measure compares one picture with the product.
func (p *Product) measure(w *Worker, picture []byte) (*Measurement, error) {
	_, _, f, err := w.Open(picture)
	if err != nil {
		return nil, err
	}
	req, files := p.request(MatchFeatures(p.features, f))
	m, err := w.Compare(req, files...)
	if err == nil && !m.Aligned {
		err = fmt.Errorf("%w: %s", ErrNotShown, m.Reason)
	}
	return m, err
}

// Enrol learns from genuine captures what is normal for every region. It replaces
// what was learnt before; known fakes must be added first, since their margins are
// learnt from the same captures.
func (p *Product) Enrol(ctx context.Context, pool *Pool, captures [][]byte) error {
	type sample struct {
		structure, detail, shift []float64
		lab                      [3][]float64
	}
	samples := map[string]*sample{}
	margins := make([][]float64, len(p.Fakes))
	for i, picture := range captures {
		var m *Measurement
		err := pool.With(ctx, func(w *Worker) (err error) {
			m, err = p.measure(w, picture)
			return err
		})
		if err != nil {
			return fmt.Errorf("enrol %s: capture %d: %w", p.ID, i+1, err)
		}
		for name, rm := range m.Regions {
			if rm.Hidden != "" {
				return fmt.Errorf("enrol %s: capture %d: %s: %w: %s", p.ID, i+1, name, ErrNotShown, rm.Hidden)
			}
			s := samples[name]
			if s == nil {
				s = &sample{}
				samples[name] = s
			}
			s.structure = append(s.structure, fisher(rm.ZNCC))
			s.detail = append(s.detail, fisher(rm.Worst))
			s.shift = append(s.shift, rm.ShiftPx)
			for k := range 3 {
				s.lab[k] = append(s.lab[k], rm.Lab[k])
			}
		}
		for k, fm := range m.Fakes {
			margins[k] = append(margins[k], fm.Fake-fm.Genuine)
		}
	}
	p.Captures = len(captures)
	for name, s := range samples {
		n := Normal{Structure: spread(s.structure), Detail: spread(s.detail), Shift: spread(s.shift)}
		for k := range 3 {
			n.Lab[k] = spread(s.lab[k])
		}
		p.Normal[name] = n
	}
	for k := range p.Fakes {
		p.Fakes[k].Margin = spread(margins[k])
	}
	return nil
}

// AddFake cuts a known counterfeit feature from a picture of a counterfeit.
func (p *Product) AddFake(ctx context.Context, pool *Pool, region, name string, picture []byte) error {
	r, ok := p.Regions[region]
	if !ok {
		return fmt.Errorf("product %s has no region %q", p.ID, region)
	}
	var turned []byte
	err := pool.With(ctx, func(w *Worker) (err error) {
		if _, err = p.measure(w, picture); err == nil {
			turned, err = w.Rectify()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("known fake %q of %s: %w", name, p.ID, err)
	}
	img, err := png.Decode(bytes.NewReader(turned))
	if err != nil {
		return fmt.Errorf("known fake %q of %s: %w", name, p.ID, err)
	}
	cut := image.NewRGBA(image.Rect(0, 0, r.Rect[2], r.Rect[3]))
	draw.Draw(cut, cut.Bounds(), img, image.Pt(r.Rect[0], r.Rect[1]), draw.Src)
	var b bytes.Buffer
	if err := png.Encode(&b, cut); err != nil {
		return err
	}
	p.Fakes = append(p.Fakes, Fake{Name: name, Region: region,
		Picture: fmt.Sprintf("fakes/%s-%s.png", p.ID, lane.Sum(b.Bytes())[:8]), picture: b.Bytes()})
	return nil
}

// Write writes the pack as a folder, which then wants signing.
func (p *Pack) Write(dir string) error {
	p.Format = PackFormat
	for _, d := range []string{"faces", "fakes"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	files := map[string][]byte{}
	for i := range p.Products {
		product := &p.Products[i]
		raw, err := product.features.MarshalBinary()
		if err != nil {
			return err
		}
		files[product.Face], files[featuresFile(product.Face)] = product.face, raw
		for _, f := range product.Fakes {
			files[f.Picture] = f.picture
		}
	}
	manifest, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		return err
	}
	files["pack.json"] = append(manifest, '\n')
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}
