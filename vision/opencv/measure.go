//go:build gocv_specific_modules

package opencv

import (
	"fmt"
	"image"
	"math"
	"slices"

	"gocv.io/x/gocv"

	"inspectd.org/inspectd/vision"
)

// regionSearch is how far a region may be off its place and still be found.
const regionSearch = 10

func (w *Worker) regions(out *vision.Measurement, req *vision.CompareRequest, face, faceGrey, turned *gocv.Mat, tiles []tile, fakes [][]byte) error {
	var m mats
	defer m.close()
	grey := m.new()
	if err := gocv.CvtColor(*turned, grey, gocv.ColorBGRToGray); err != nil {
		return err
	}
	reference, err := newGrid(face)
	if err != nil {
		return err
	}
	observed, err := newGrid(turned)
	if err != nil {
		return err
	}
	out.Regions = map[string]vision.RegionMeasurement{}
	bounds := image.Rect(0, 0, face.Cols(), face.Rows())
	for name, region := range req.Regions {
		r := image.Rect(region.Rect[0], region.Rect[1], region.Rect[0]+region.Rect[2], region.Rect[1]+region.Rect[3])
		if r.Empty() || !r.In(bounds) {
			return fmt.Errorf("region %s lies outside of the face", name)
		}
		rm, err := measureRegion(faceGrey, grey, r, tiles)
		if err != nil {
			return err
		}
		rm.Quad = quad(out.Homography, region.Rect)
		rm.Lab, rm.DE2000 = colourShift(reference, observed, r)
		rm.Hidden = w.hidden(rm.Quad, reference, observed, r)
		out.Regions[name] = rm
	}
	for i, fake := range req.Fakes {
		fm, err := w.fake(fake, req.Regions, fakes[i], faceGrey, grey)
		if err != nil {
			return err
		}
		out.Fakes = append(out.Fakes, fm)
	}
	return nil
}

func measureRegion(face, grey *gocv.Mat, r image.Rectangle, tiles []tile) (vision.RegionMeasurement, error) {
	var rm vision.RegionMeasurement
	score, dx, dy, textured, err := locate(face, grey, r, regionSearch)
	if err != nil {
		return rm, err
	}
	rm.ZNCC, rm.Worst = 1, 1
	if textured {
		rm.ZNCC, rm.ShiftPx = score, math.Hypot(dx, dy)
	}
	for _, t := range tiles {
		if overlap := t.rect.Intersect(r); overlap.Dx()*overlap.Dy()*2 >= tileSize*tileSize {
			rm.Worst = min(rm.Worst, t.score)
		}
	}
	return rm, nil
}

// hidden tells why a region cannot be judged: outside of the picture, or blinded
// by glare where the reference is not white.
func (w *Worker) hidden(q [4][2]float64, reference, observed *grid, r image.Rectangle) string {
	for _, p := range q {
		if p[0] < 1 || p[1] < 1 || p[0] > float64(w.photo.Cols()-2) || p[1] > float64(w.photo.Rows()-2) {
			return "it lies partly outside of the picture"
		}
	}
	if observed.white(r)-reference.white(r) > 0.25 {
		return "glare covers it"
	}
	return ""
}

// fake compares a region with a known counterfeit feature and with the genuine one.
func (w *Worker) fake(req vision.FakeRequest, regions map[string]vision.Region, file []byte, faceGrey, grey *gocv.Mat) (vision.FakeMeasurement, error) {
	var m mats
	defer m.close()
	out := vision.FakeMeasurement{Name: req.Name, Region: req.Region}
	region, ok := regions[req.Region]
	if !ok {
		return out, fmt.Errorf("known fake %q is of region %q, which the face does not have", req.Name, req.Region)
	}
	r := image.Rect(region.Rect[0], region.Rect[1], region.Rect[0]+region.Rect[2], region.Rect[1]+region.Rect[3])
	picture, err := decode(&m, file)
	if err != nil {
		return out, fmt.Errorf("known fake %q: %w", req.Name, err)
	}
	if picture.Cols() != r.Dx() || picture.Rows() != r.Dy() {
		return out, fmt.Errorf("known fake %q is %dx%d, its region %dx%d", req.Name, picture.Cols(), picture.Rows(), r.Dx(), r.Dy())
	}
	pictureGrey, window := m.new(), m.own(grey.Region(r.Inset(-regionSearch).Intersect(image.Rect(0, 0, grey.Cols(), grey.Rows()))))
	if err := gocv.CvtColor(*picture, pictureGrey, gocv.ColorBGRToGray); err != nil {
		return out, err
	}
	for template, score := range map[*gocv.Mat]*float64{pictureGrey: &out.Fake, m.own(faceGrey.Region(r)): &out.Genuine} {
		result, mask := m.new(), m.new()
		if err := gocv.MatchTemplate(*window, *template, result, gocv.TmCcoeffNormed, *mask); err != nil {
			return out, err
		}
		_, peak, _, _ := gocv.MinMaxLoc(*result)
		if p := float64(peak); !math.IsNaN(p) && !math.IsInf(p, 0) {
			*score = p
		}
	}
	return out, nil
}

// cell is the grid's spacing: small enough for the light to be even in it.
const cell = 16

// grid is an image reduced to the mean colours of its cells.
type grid struct {
	cols, rows int
	bgr        [][3]float64
	saturated  []float64 // share of each cell's pixels that are blown out
}

func newGrid(img *gocv.Mat) (*grid, error) {
	pix, err := img.DataPtrUint8()
	if err != nil {
		return nil, err
	}
	g := &grid{cols: img.Cols() / cell, rows: img.Rows() / cell}
	stride := img.Cols() * 3
	for cy := range g.rows {
		for cx := range g.cols {
			var sum [3]float64
			blown := 0
			for y := cy * cell; y < (cy+1)*cell; y++ {
				for x := cx * cell; x < (cx+1)*cell; x++ {
					p := pix[y*stride+3*x : y*stride+3*x+3]
					for k := range 3 {
						sum[k] += float64(p[k])
					}
					if p[0] >= 254 && p[1] >= 254 && p[2] >= 254 {
						blown++
					}
				}
			}
			for k := range sum {
				sum[k] /= cell * cell
			}
			g.bgr = append(g.bgr, sum)
			g.saturated = append(g.saturated, float64(blown)/(cell*cell))
		}
	}
	return g, nil
}

// each calls fn for the cells that lie wholly inside r, or wholly outside of it,
// with the cell's place in the image, -0.5 to 0.5.
func (g *grid) each(r image.Rectangle, inside bool, fn func(i int, u, v float64)) {
	for cy := range g.rows {
		for cx := range g.cols {
			c := image.Rect(cx*cell, cy*cell, (cx+1)*cell, (cy+1)*cell)
			if inside && c.In(r) || !inside && c.Intersect(r).Empty() {
				fn(cy*g.cols+cx, float64(cx)/float64(g.cols)-0.5, float64(cy)/float64(g.rows)-0.5)
			}
		}
	}
}

func (g *grid) white(r image.Rectangle) float64 {
	sum, n := 0.0, 0
	g.each(r, true, func(i int, _, _ float64) { sum += g.saturated[i]; n++ })
	if n == 0 {
		return 0
	}
	return sum / float64(n)
}

// colourShift is the mean colour of a region minus the reference's in CIELAB,
// after the light was fitted on everything else: log gain as a second-order
// polynomial of the place, with gamma, robustly, per channel. The region under
// test is left out, or it would explain itself away.
func colourShift(reference, observed *grid, r image.Rectangle) ([3]float64, float64) {
	var want, got [3]float64
	n := 0.0
	var models [3][]float64
	for k := range 3 {
		models[k] = fitLight(reference, observed, r, k)
	}
	reference.each(r, true, func(i int, u, v float64) {
		n++
		for k := range 3 {
			want[k] += reference.bgr[i][k]
			got[k] += math.Exp(undo(models[k], math.Log(observed.bgr[i][k]+1), u, v)) - 1
		}
	})
	if n == 0 {
		return [3]float64{}, 0
	}
	for k := range 3 {
		want[k], got[k] = want[k]/n, got[k]/n
	}
	a, b := lab(want), lab(got)
	return [3]float64{b[0] - a[0], b[1] - a[1], b[2] - a[2]}, de2000(a, b)
}

// terms are the basis of the light model: place, and the reference's own value
// (gamma).
func terms(u, v, logRef float64) [7]float64 {
	return [7]float64{1, u, v, u * u, u * v, v * v, logRef}
}

// fitLight fits log(observed) by reweighted least squares.
func fitLight(reference, observed *grid, r image.Rectangle, k int) []float64 {
	type sample struct {
		t [7]float64
		y float64
	}
	var samples []sample
	reference.each(r, false, func(i int, u, v float64) {
		if observed.saturated[i] < 0.1 && observed.bgr[i][k] > 1 {
			samples = append(samples, sample{terms(u, v, math.Log(reference.bgr[i][k]+1)), math.Log(observed.bgr[i][k] + 1)})
		}
	})
	if len(samples) == 0 {
		return []float64{0, 0, 0, 0, 0, 0, 1}
	}
	// Begin with the median gain, which half of the face may not move, and let the
	// model bend while patches that differ (another ink, a missing seal) lose their
	// say: Cauchy weights on an ever smaller scale.
	gains := make([]float64, len(samples))
	for i, s := range samples {
		gains[i] = s.y - s.t[6]
	}
	slices.Sort(gains)
	model := []float64{gains[len(gains)/2], 0, 0, 0, 0, 0, 1}
	for _, scale := range []float64{0.15, 0.08, 0.04, 0.03, 0.03, 0.03} {
		var normal [7][8]float64
		for _, s := range samples {
			e := s.y
			for a := range 7 {
				e -= model[a] * s.t[a]
			}
			weight := 1 / (1 + (e/scale)*(e/scale))
			for a := range 7 {
				for b := range 7 {
					normal[a][b] += weight * s.t[a] * s.t[b]
				}
				normal[a][7] += weight * s.t[a] * s.y
			}
		}
		solved, ok := solve(normal)
		if !ok {
			return model
		}
		model = solved[:]
	}
	return model
}

// undo takes the light off an observed log value: what the reference would be.
func undo(model []float64, logObserved, u, v float64) float64 {
	t := terms(u, v, 0)
	for a := range 6 {
		logObserved -= model[a] * t[a]
	}
	return logObserved / max(model[6], 0.2)
}

func solve(m [7][8]float64) ([7]float64, bool) {
	for i := range 7 {
		m[i][i] += 1e-9
	}
	for c := range 7 {
		best := c
		for r := c + 1; r < 7; r++ {
			if math.Abs(m[r][c]) > math.Abs(m[best][c]) {
				best = r
			}
		}
		m[c], m[best] = m[best], m[c]
		if math.Abs(m[c][c]) < 1e-12 {
			return [7]float64{}, false
		}
		for r := range 7 {
			if r == c {
				continue
			}
			f := m[r][c] / m[c][c]
			for k := c; k < 8; k++ {
				m[r][k] -= f * m[c][k]
			}
		}
	}
	var out [7]float64
	for i := range 7 {
		out[i] = m[i][7] / m[i][i]
	}
	return out, true
}
