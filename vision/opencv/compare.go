//go:build gocv_specific_modules

package opencv

import (
	"fmt"
	"image"
	"image/color"
	"math"
	"slices"

	"gocv.io/x/gocv"

	"inspectd.org/inspectd/vision"
)

// Gates of the alignment. Below them the answer is "cannot judge", never "fake".
const (
	minInliers  = 15
	minTiles    = 12
	maxResidual = 1.5 // median, pixels of the face
	minScale    = 0.5 // photograph pixels per face pixel
)

// magsac is OpenCV's USAC_MAGSAC, for which gocv has no name.
const magsac gocv.HomographyMethod = 38

// mat3 is a homography, row by row.
type mat3 [9]float64

func (h mat3) apply(x, y float64) (float64, float64) {
	w := h[6]*x + h[7]*y + h[8]
	return (h[0]*x + h[1]*y + h[2]) / w, (h[3]*x + h[4]*y + h[5]) / w
}

func (h mat3) mul(g mat3) (out mat3) {
	for r := range 3 {
		for c := range 3 {
			for k := range 3 {
				out[3*r+c] += h[3*r+k] * g[3*k+c]
			}
		}
	}
	return out
}

func (h mat3) mat(m *mats) (*gocv.Mat, error) {
	mat := m.own(gocv.NewMatWithSize(3, 3, gocv.MatTypeCV64F))
	p, err := mat.DataPtrFloat64()
	copy(p, h[:])
	return mat, err
}

// compare aligns the open photograph with a face and measures its regions.
func (w *Worker) compare(req *vision.CompareRequest, faceFile []byte, fakes [][]byte) (*vision.Measurement, error) {
	var m mats
	defer m.close()
	face, err := decode(&m, faceFile)
	if err != nil {
		return nil, fmt.Errorf("reference face: %w", err)
	}
	faceGrey := m.new()
	if err := gocv.CvtColor(*face, faceGrey, gocv.ColorBGRToGray); err != nil {
		return nil, err
	}
	out := &vision.Measurement{}
	h, inliers, err := fit(req.Pairs, 4)
	if err != nil {
		return nil, err
	}
	out.Inliers = inliers
	if inliers < minInliers {
		out.Reason = fmt.Sprintf("only %d points match, %d are needed", inliers, minInliers)
		return out, nil
	}
	if reason := plausible(h, face.Cols(), face.Rows()); reason != "" {
		out.Reason = reason
		return out, nil
	}
	var fits []tile
	for _, search := range []int{8, 4} {
		turned, err := w.rectify(h, face.Cols(), face.Rows())
		if err != nil {
			return nil, err
		}
		if fits, err = matchTiles(faceGrey, turned, search); err != nil {
			return nil, err
		}
		var pairs []vision.Pair
		for _, t := range fits {
			if t.score > 0.6 {
				pairs = append(pairs, vision.Pair{Face: t.centre, Photo: t.found})
			}
		}
		if len(pairs) < minTiles {
			out.Agreement = agreement(fits)
			out.Reason = fmt.Sprintf("only %d patches of the face are found again, %d are needed", len(pairs), minTiles)
			return out, nil
		}
		correction, n, err := fit(pairs, 2)
		if err != nil {
			return nil, err
		}
		if n >= minTiles {
			h = h.mul(correction)
		}
	}
	turned, err := w.rectify(h, face.Cols(), face.Rows())
	if err != nil {
		return nil, err
	}
	if fits, err = matchTiles(faceGrey, turned, 3); err != nil {
		return nil, err
	}
	out.Homography, out.Agreement, out.ResidualPx = h, agreement(fits), residual(fits)
	if out.ResidualPx > maxResidual {
		out.Reason = fmt.Sprintf("the face does not lie flat: patches are %.1f px off their place", out.ResidualPx)
		return out, nil
	}
	out.Aligned = true
	return out, w.regions(out, req, face, faceGrey, turned, fits, fakes)
}

// fit finds the homography from face to photograph that most pairs agree on.
func fit(pairs []vision.Pair, threshold float64) (mat3, int, error) {
	if len(pairs) < 4 {
		return mat3{}, 0, nil
	}
	var m mats
	defer m.close()
	src := make([]gocv.Point2f, len(pairs))
	dst := make([]gocv.Point2f, len(pairs))
	for i, p := range pairs {
		src[i] = gocv.Point2f{X: float32(p.Face[0]), Y: float32(p.Face[1])}
		dst[i] = gocv.Point2f{X: float32(p.Photo[0]), Y: float32(p.Photo[1])}
	}
	sv, dv := gocv.NewPoint2fVectorFromPoints(src), gocv.NewPoint2fVectorFromPoints(dst)
	defer sv.Close()
	defer dv.Close()
	mask := m.new()
	h := m.own(gocv.FindHomography(*m.own(gocv.NewMatFromPoint2fVector(sv, true)), *m.own(gocv.NewMatFromPoint2fVector(dv, true)),
		magsac, threshold, mask, 2000, 0.995))
	if h.Empty() || h.Rows() != 3 || h.Cols() != 3 {
		return mat3{}, 0, nil
	}
	values, err := h.DataPtrFloat64()
	if err != nil {
		return mat3{}, 0, err
	}
	inliers := 0
	for _, b := range mask.ToBytes() {
		inliers += int(b)
	}
	var out mat3
	copy(out[:], values)
	for _, v := range out {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return mat3{}, 0, nil
		}
	}
	return out, inliers, nil
}

// plausible checks that the face lands as a convex, unmirrored quadrilateral of
// sensible size.
func plausible(h mat3, width, height int) string {
	q := quad(h, [4]int{0, 0, width, height})
	var sides []float64
	for i := range q {
		a, b, c := q[i], q[(i+1)%4], q[(i+2)%4]
		if (b[0]-a[0])*(c[1]-b[1])-(b[1]-a[1])*(c[0]-b[0]) <= 0 {
			return "the matching points do not form a pack seen from its front"
		}
		sides = append(sides, math.Hypot(b[0]-a[0], b[1]-a[1]))
	}
	if min(sides[0], sides[2])*4 < max(sides[0], sides[2]) || min(sides[1], sides[3])*4 < max(sides[1], sides[3]) {
		return "the pack is seen at too flat an angle"
	}
	if (sides[0]+sides[2])/2 < minScale*float64(width) {
		return "the pack is too small in the picture to be judged"
	}
	return ""
}

func quad(h mat3, r [4]int) [4][2]float64 {
	x, y, w, ht := float64(r[0]), float64(r[1]), float64(r[2]), float64(r[3])
	var q [4][2]float64
	for i, p := range [4][2]float64{{x, y}, {x + w, y}, {x + w, y + ht}, {x, y + ht}} {
		q[i][0], q[i][1] = h.apply(p[0], p[1])
	}
	return q
}

// rectify turns the photograph onto the face's frame and keeps the result.
func (w *Worker) rectify(h mat3, width, height int) (*gocv.Mat, error) {
	var m mats
	defer m.close()
	hm, err := h.mat(&m)
	if err != nil {
		return nil, err
	}
	turned := w.open.new()
	err = gocv.WarpPerspectiveWithParams(*w.photo, turned, *hm, image.Pt(width, height),
		gocv.InterpolationLinear|gocv.WarpInverseMap, gocv.BorderConstant, color.RGBA{})
	w.face = turned
	return turned, err
}

// tile is a textured patch of the face and where it was found.
type tile struct {
	rect   image.Rectangle
	centre [2]float64
	found  [2]float64
	score  float64 // ZNCC at its best place
}

const (
	tileSize = 48
	tileStep = 40
	texture  = 8 // standard deviation of grey values from which a patch can be placed
)

// matchTiles looks for every textured patch of the face near its own place.
func matchTiles(face, turned *gocv.Mat, search int) ([]tile, error) {
	var m mats
	defer m.close()
	grey := m.new()
	if err := gocv.CvtColor(*turned, grey, gocv.ColorBGRToGray); err != nil {
		return nil, err
	}
	var tiles []tile
	for y := search; y+tileSize+search <= face.Rows(); y += tileStep {
		for x := search; x+tileSize+search <= face.Cols(); x += tileStep {
			r := image.Rect(x, y, x+tileSize, y+tileSize)
			score, dx, dy, ok, err := locate(face, grey, r, search)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			c := [2]float64{float64(x) + tileSize/2, float64(y) + tileSize/2}
			tiles = append(tiles, tile{rect: r, centre: c, found: [2]float64{c[0] + dx, c[1] + dy}, score: score})
		}
	}
	return tiles, nil
}

// locate finds the patch r of a in b within +-search pixels, to a fraction of a
// pixel. ok is false for a patch without texture.
func locate(a, b *gocv.Mat, r image.Rectangle, search int) (score, dx, dy float64, ok bool, err error) {
	window := r.Inset(-search).Intersect(image.Rect(0, 0, b.Cols(), b.Rows()))
	if r.Empty() || !r.In(image.Rect(0, 0, a.Cols(), a.Rows())) || window.Dx() < r.Dx() || window.Dy() < r.Dy() {
		return 0, 0, 0, false, nil
	}
	var m mats
	defer m.close()
	patch := m.own(a.Region(r))
	mean, dev := m.new(), m.new()
	if err := gocv.MeanStdDev(*patch, mean, dev); err != nil {
		return 0, 0, 0, false, err
	}
	if dev.GetDoubleAt(0, 0) < texture {
		return 0, 0, 0, false, nil
	}
	result, mask := m.new(), m.new()
	if err := gocv.MatchTemplate(*m.own(b.Region(window)), *patch, result, gocv.TmCcoeffNormed, *mask); err != nil {
		return 0, 0, 0, false, err
	}
	_, peak, _, at := gocv.MinMaxLoc(*result)
	if math.IsNaN(float64(peak)) || math.IsInf(float64(peak), 0) {
		return 0, 0, 0, true, nil // a flat window correlates with nothing
	}
	px, py := subpixel(result, at)
	return float64(peak), float64(window.Min.X-r.Min.X) + px, float64(window.Min.Y-r.Min.Y) + py, true, nil
}

// subpixel refines a peak with a parabola through its neighbours.
func subpixel(result *gocv.Mat, at image.Point) (float64, float64) {
	refine := func(prev, peak, next float64) float64 {
		d := prev - 2*peak + next
		if d >= 0 {
			return 0
		}
		return min(max((prev-next)/(2*d), -0.5), 0.5)
	}
	v := func(dx, dy int) float64 { return float64(result.GetFloatAt(at.Y+dy, at.X+dx)) }
	x, y := float64(at.X), float64(at.Y)
	if at.X > 0 && at.X < result.Cols()-1 {
		x += refine(v(-1, 0), v(0, 0), v(1, 0))
	}
	if at.Y > 0 && at.Y < result.Rows()-1 {
		y += refine(v(0, -1), v(0, 0), v(0, 1))
	}
	return x, y
}

// agreement is the share of textured patches that correlate: the score that tells
// a product from its siblings, which the count of matching points does not.
func agreement(tiles []tile) float64 {
	if len(tiles) == 0 {
		return 0
	}
	n := 0
	for _, t := range tiles {
		if t.score > 0.7 {
			n++
		}
	}
	return float64(n) / float64(len(tiles))
}

func residual(tiles []tile) float64 {
	var d []float64
	for _, t := range tiles {
		if t.score > 0.6 {
			d = append(d, math.Hypot(t.found[0]-t.centre[0], t.found[1]-t.centre[1]))
		}
	}
	if len(d) == 0 {
		return math.MaxFloat32
	}
	slices.Sort(d)
	return d[len(d)/2]
}
