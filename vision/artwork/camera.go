package artwork

import (
	"bytes"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"math"
	"math/rand/v2"
)

// The photograph's size: 2 megapixels.
const (
	photoWidth  = 1632
	photoHeight = 1224
)

// Photograph takes a picture of a pack's face as a lane camera would: from a
// slight angle, turned, in uneven light, a little out of focus, with sensor noise.
// The same seed gives the same picture.
func Photograph(face *image.RGBA, seed uint64) *image.RGBA {
	rng := rand.New(rand.NewPCG(seed, 20))
	vary := func(span float64) float64 { return (rng.Float64()*2 - 1) * span }
	inverse := pose(face.Bounds(), vary)
	light := newLight(vary)
	blur := 0.5 + 0.35*rng.Float64()

	n := photoWidth * photoHeight
	planes := [3][]float64{make([]float64, n), make([]float64, n), make([]float64, n)}
	table := tableTexture(rng)
	for y := range photoHeight {
		for x := range photoWidth {
			i := y*photoWidth + x
			u, v := inverse.apply(float64(x), float64(y))
			c, on := sample(face, u, v)
			if !on {
				c = table(x, y)
			}
			for ch := range 3 {
				planes[ch][i] = c[ch] * light.at(ch, x, y)
			}
		}
	}
	out := image.NewRGBA(image.Rect(0, 0, photoWidth, photoHeight))
	for ch := range 3 {
		smooth(planes[ch], photoWidth, photoHeight, blur)
	}
	for i := range n {
		c := color.RGBA{A: 255}
		for ch, dst := range []*uint8{&c.R, &c.G, &c.B} {
			*dst = uint8(min(max(planes[ch][i]+rng.NormFloat64()*2.2, 0), 255))
		}
		out.SetRGBA(i%photoWidth, i/photoWidth, c)
	}
	return out
}

// JPEG encodes a picture as the lane camera does.
func JPEG(img image.Image) []byte {
	var b bytes.Buffer
	if err := jpeg.Encode(&b, img, &jpeg.Options{Quality: 90}); err != nil {
		panic(err) // a bytes.Buffer takes everything
	}
	return b.Bytes()
}

// PNG encodes a picture without loss.
func PNG(img image.Image) []byte {
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		panic(err) // a bytes.Buffer takes everything
	}
	return b.Bytes()
}

// pose places the face in the picture and returns the way back from picture to
// face coordinates.
func pose(face image.Rectangle, vary func(float64) float64) homography {
	angle := vary(14) * math.Pi / 180
	scale := 1.15 + vary(0.07)
	cx, cy := photoWidth/2+vary(60), photoHeight/2+vary(50)
	tiltX, tiltY := vary(0.09), vary(0.09)
	corners := [4][2]float64{}
	w, h := float64(face.Dx()), float64(face.Dy())
	for i, c := range [4][2]float64{{0, 0}, {w, 0}, {w, h}, {0, h}} {
		x, y := (c[0]-w/2)*scale, (c[1]-h/2)*scale
		x, y = x*math.Cos(angle)-y*math.Sin(angle), x*math.Sin(angle)+y*math.Cos(angle)
		k := 1 / (1 + tiltX*x/700 + tiltY*y/700)
		corners[i] = [2]float64{cx + x*k, cy + y*k}
	}
	return solve(corners, [4][2]float64{{0, 0}, {w, 0}, {w, h}, {0, h}})
}

type light struct {
	gain   [3]float64
	gx, gy float64
	vign   float64
}

func newLight(vary func(float64) float64) light {
	return light{gain: [3]float64{0.9 + vary(0.05), 0.9 + vary(0.04), 0.9 + vary(0.05)}, gx: vary(0.12), gy: vary(0.12), vign: 0.1 + vary(0.05)}
}

func (l light) at(ch, x, y int) float64 {
	u, v := float64(x)/photoWidth-0.5, float64(y)/photoHeight-0.5
	return l.gain[ch] * (1 + l.gx*u + l.gy*v - l.vign*(u*u+v*v))
}

// tableTexture is the surface beneath the pack: dark and mottled.
func tableTexture(rng *rand.Rand) func(x, y int) [3]float64 {
	a, b, c := 20+rng.Float64()*30, rng.Float64()*6, rng.Float64()*6
	return func(x, y int) [3]float64 {
		m := 58 + 7*math.Sin(float64(x)/a+b) + 6*math.Sin(float64(y)/(a*0.7)+c)
		return [3]float64{m, m * 0.98, m * 0.94}
	}
}

// sample reads the face between pixels; false outside of it.
func sample(face *image.RGBA, u, v float64) ([3]float64, bool) {
	b := face.Bounds()
	if u < 0 || v < 0 || u >= float64(b.Dx()-1) || v >= float64(b.Dy()-1) {
		return [3]float64{}, false
	}
	x, y := int(u), int(v)
	fx, fy := u-float64(x), v-float64(y)
	var out [3]float64
	for _, n := range [4]struct {
		dx, dy int
		w      float64
	}{{0, 0, (1 - fx) * (1 - fy)}, {1, 0, fx * (1 - fy)}, {0, 1, (1 - fx) * fy}, {1, 1, fx * fy}} {
		p := face.Pix[face.PixOffset(x+n.dx, y+n.dy):]
		for ch := range 3 {
			out[ch] += float64(p[ch]) * n.w
		}
	}
	return out, true
}

// smooth blurs a plane with a Gaussian.
func smooth(p []float64, w, h int, sigma float64) {
	const radius = 3
	var kernel [2*radius + 1]float64
	sum := 0.0
	for i := range kernel {
		d := float64(i - radius)
		kernel[i] = math.Exp(-d * d / (2 * sigma * sigma))
		sum += kernel[i]
	}
	for i := range kernel {
		kernel[i] /= sum
	}
	// Along rows into tmp, then along columns back.
	tmp := make([]float64, len(p))
	for y := range h {
		row := p[y*w : (y+1)*w]
		for x := range w {
			acc := 0.0
			for k, weight := range kernel {
				acc += row[min(max(x+k-radius, 0), w-1)] * weight
			}
			tmp[y*w+x] = acc
		}
	}
	for y := range h {
		for x := range w {
			acc := 0.0
			for k, weight := range kernel {
				acc += tmp[min(max(y+k-radius, 0), h-1)*w+x] * weight
			}
			p[y*w+x] = acc
		}
	}
}

// homography maps points of one plane to another, row by row.
type homography [9]float64

func (h homography) apply(x, y float64) (float64, float64) {
	w := h[6]*x + h[7]*y + h[8]
	return (h[0]*x + h[1]*y + h[2]) / w, (h[3]*x + h[4]*y + h[5]) / w
}

// solve finds the homography that takes four points to four others, by Gaussian
// elimination of the eight linear equations.
func solve(from, to [4][2]float64) homography {
	var m [8][9]float64
	for i := range 4 {
		x, y, u, v := from[i][0], from[i][1], to[i][0], to[i][1]
		m[2*i] = [9]float64{x, y, 1, 0, 0, 0, -u * x, -u * y, u}
		m[2*i+1] = [9]float64{0, 0, 0, x, y, 1, -v * x, -v * y, v}
	}
	for c := range 8 {
		best := c
		for r := c + 1; r < 8; r++ {
			if math.Abs(m[r][c]) > math.Abs(m[best][c]) {
				best = r
			}
		}
		m[c], m[best] = m[best], m[c]
		for r := range 8 {
			if r == c {
				continue
			}
			f := m[r][c] / m[c][c]
			for k := c; k < 9; k++ {
				m[r][k] -= f * m[c][k]
			}
		}
	}
	h := homography{8: 1}
	for i := range 8 {
		h[i] = m[i][8] / m[i][i]
	}
	return h
}
