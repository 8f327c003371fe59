// Package artwork draws fictional medicine packs and photographs them by
// simulation, for tests, demonstrations and measurements. No brand, text or mark
// in it exists; nothing in it is a photograph of anything.
package artwork

import (
	"image"
	"image/color"
	"image/draw"
	"math"
	"math/rand/v2"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/gofont/goitalic"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
	"golang.org/x/image/vector"
)

// The face of a pack, 125 mm by 80 mm at 8 pixels a millimetre.
const (
	FaceWidth  = 1000
	FaceHeight = 640
	MMPerPx    = 0.125
)

// Product is a fictional product.
type Product struct {
	ID       string // e.g. "velmaris-20"
	Brand    string
	Name     string
	Strength string
	GTIN     string // 14 digits
	Hue      color.RGBA
	Petals   int // of the brand's mark
	Holder   string
}

// Products is the fictional range. GTINs lie in the prefix 952 that GS1 keeps for
// demonstrations.
func Products() []Product {
	return []Product{
		{"velmaris-20", "VELMARIS", "Orestatin", "20 mg", "09520001000010", color.RGBA{0, 96, 168, 255}, 5, "Velmaris Laboratories"},
		{"velmaris-40", "VELMARIS", "Orestatin", "40 mg", "09520001000027", color.RGBA{200, 80, 20, 255}, 5, "Velmaris Laboratories"},
		{"corvexa-10", "CORVEXA", "Lindaprol", "10 mg", "09520002000019", color.RGBA{20, 130, 80, 255}, 7, "Corvexa Pharma"},
		{"sanoquill-500", "SANOQUILL", "Amoxeril", "500 mg", "09520003000018", color.RGBA{150, 30, 60, 255}, 3, "Sanoquill"},
	}
}

// Find returns the product with an id, false if there is none.
func Find(id string) (Product, bool) {
	for _, p := range Products() {
		if p.ID == id {
			return p, true
		}
	}
	return Product{}, false
}

// Tamper is how a counterfeit differs from the genuine pack.
type Tamper struct {
	Logo   bool    `yaml:"logo"`    // the mark redrawn: another number of petals, blunter
	Colour float64 `yaml:"colour"`  // shift of the band's colour, 0 to 1
	NoSeal bool    `yaml:"no_seal"` // the guilloche seal is missing
}

// Regions are the named rectangles of the face, in pixels: x, y, width, height.
func (p Product) Regions() map[string]Region {
	return map[string]Region{
		"logo":     {"logo", [4]int{40, 40, 150, 150}},
		"brand":    {"text", [4]int{210, 50, 420, 75}},
		"name":     {"text", [4]int{60, 290, 470, 90}},
		"strength": {"text", [4]int{60, 385, 260, 75}},
		"band":     {"colour", [4]int{20, 480, 560, 45}},
		"seal":     {"seal", [4]int{790, 60, 160, 160}},
	}
}

// Region is a named part of the face.
type Region struct {
	Kind string // logo, text, colour, seal
	Rect [4]int
}

// Draw paints the flat face of the pack.
func (p Product) Draw(t Tamper) *image.RGBA {
	img := image.NewRGBA(image.Rect(0, 0, FaceWidth, FaceHeight))
	draw.Draw(img, img.Bounds(), image.NewUniform(color.RGBA{250, 250, 247, 255}), image.Point{}, draw.Src)
	fill(img, color.RGBA{225, 230, 235, 255}, rect(0, 0, FaceWidth, 14), rect(0, FaceHeight-14, FaceWidth, 14))
	band := p.Hue
	if t.Colour > 0 {
		band = shift(band, t.Colour)
	}
	fill(img, band, polygon(pt(20, 480), pt(600, 480), pt(560, 525), pt(20, 525)))
	fill(img, lighten(band, 0.55), polygon(pt(620, 480), pt(980, 480), pt(980, 525), pt(580, 525)))
	p.mark(img, t.Logo)
	write(img, gobold.TTF, 62, p.Hue, 212, 112, p.Brand)
	write(img, goitalic.TTF, 22, grey(90), 214, 150, "care that reaches")
	write(img, gobold.TTF, 84, grey(25), 60, 360, p.Name)
	write(img, goregular.TTF, 64, p.Hue, 60, 445, p.Strength)
	write(img, goregular.TTF, 26, grey(40), 340, 445, "film-coated tablets")
	write(img, goregular.TTF, 22, color.RGBA{255, 255, 255, 255}, 40, 512, "30 tablets  -  for oral use")
	for i, line := range []string{
		"Each tablet contains " + p.Strength + " of " + p.Name + " as calcium salt.",
		"Contains lactose. Read the package leaflet before use.",
		"Keep out of the sight and reach of children. Store below 25 degrees.",
	} {
		write(img, goregular.TTF, 17, grey(60), 40, 560+22*i, line)
	}
	tablets(img, p.Hue)
	if !t.NoSeal {
		seal(img, p)
	}
	return img
}

// mark is the brand's flower. The counterfeit has two petals more and blunter ones.
func (p Product) mark(img *image.RGBA, altered bool) {
	n, sharp := p.Petals, 0.42
	if altered {
		n, sharp = p.Petals+2, 0.26
	}
	cx, cy, r := 115.0, 115.0, 72.0
	for i := range n {
		a := 2*math.Pi*float64(i)/float64(n) - math.Pi/2
		tip := pt(cx+r*math.Cos(a), cy+r*math.Sin(a))
		left := pt(cx+r*0.5*math.Cos(a-sharp), cy+r*0.5*math.Sin(a-sharp))
		right := pt(cx+r*0.5*math.Cos(a+sharp), cy+r*0.5*math.Sin(a+sharp))
		c := p.Hue
		if i%2 == 1 {
			c = lighten(p.Hue, 0.3)
		}
		fill(img, c, polygon(pt(cx, cy), left, tip, right))
	}
	fill(img, color.RGBA{250, 250, 247, 255}, circle(cx, cy, 14))
	fill(img, p.Hue, circle(cx, cy, 8))
}

// seal is a rosette of fine lines, as security printing has it.
func seal(img *image.RGBA, p Product) {
	cx, cy := 870.0, 140.0
	fill(img, color.RGBA{214, 219, 205, 255}, circle(cx, cy, 76))
	for _, c := range []struct {
		amp, freq, phase float64
		col              color.RGBA
	}{{10, 12, 0, color.RGBA{150, 120, 40, 255}}, {14, 18, 1, color.RGBA{60, 100, 110, 255}}, {8, 9, 2, color.RGBA{130, 60, 90, 255}}} {
		var line []point
		for i := 0; i <= 720; i++ {
			a := float64(i) * math.Pi / 360
			r := 52 + c.amp*math.Sin(c.freq*a+c.phase)
			line = append(line, pt(cx+r*math.Cos(a), cy+r*math.Sin(a)))
		}
		stroke(img, c.col, 2.4, line)
	}
	fill(img, p.Hue, circle(cx, cy, 26))
	write(img, gobold.TTF, 18, color.RGBA{255, 255, 255, 255}, int(cx)-17, int(cy)+7, "VX9")
}

func tablets(img *image.RGBA, hue color.RGBA) {
	for row := range 3 {
		for col := range 5 {
			x, y := 640+float64(col)*66, 275+float64(row)*62
			fill(img, color.RGBA{205, 208, 212, 255}, circle(x, y, 27))
			fill(img, lighten(hue, 0.7), circle(x-2, y-2, 21))
			fill(img, grey(150), rect(int(x)-16, int(y)-1, 30, 2))
		}
	}
}

type point struct{ x, y float32 }

func pt(x, y float64) point { return point{float32(x), float32(y)} }

func grey(v uint8) color.RGBA { return color.RGBA{v, v, v, 255} }

func lighten(c color.RGBA, f float64) color.RGBA {
	up := func(v uint8) uint8 { return v + uint8(float64(255-v)*f) }
	return color.RGBA{up(c.R), up(c.G), up(c.B), 255}
}

// shift moves a colour towards another hue of like lightness, as a wrong ink does.
func shift(c color.RGBA, f float64) color.RGBA {
	mix := func(a, b uint8) uint8 { return uint8(float64(a)*(1-f) + float64(b)*f) }
	return color.RGBA{mix(c.R, c.B), mix(c.G, c.R), mix(c.B, c.G), 255}
}

func rect(x, y, w, h int) []point {
	return polygon(pt(float64(x), float64(y)), pt(float64(x+w), float64(y)), pt(float64(x+w), float64(y+h)), pt(float64(x), float64(y+h)))
}

func polygon(p ...point) []point { return p }

func circle(cx, cy, r float64) []point {
	var out []point
	for i := range 64 {
		a := 2 * math.Pi * float64(i) / 64
		out = append(out, pt(cx+r*math.Cos(a), cy+r*math.Sin(a)))
	}
	return out
}

// fill paints shapes; the rasterizer covers only their bounding box.
func fill(img *image.RGBA, c color.RGBA, shapes ...[]point) {
	box := bounds(shapes).Intersect(img.Bounds())
	if box.Empty() {
		return
	}
	r := vector.NewRasterizer(box.Dx(), box.Dy())
	ox, oy := float32(box.Min.X), float32(box.Min.Y)
	for _, s := range shapes {
		r.MoveTo(s[0].x-ox, s[0].y-oy)
		for _, p := range s[1:] {
			r.LineTo(p.x-ox, p.y-oy)
		}
		r.ClosePath()
	}
	r.Draw(img, box, image.NewUniform(c), image.Point{})
}

func bounds(shapes [][]point) image.Rectangle {
	var box image.Rectangle
	for _, s := range shapes {
		for _, p := range s {
			x, y := int(p.x), int(p.y)
			box = box.Union(image.Rect(x-1, y-1, x+2, y+2))
		}
	}
	return box
}

func stroke(img *image.RGBA, c color.RGBA, width float64, line []point) {
	var quads [][]point
	for i := 1; i < len(line); i++ {
		a, b := line[i-1], line[i]
		dx, dy := float64(b.x-a.x), float64(b.y-a.y)
		n := math.Hypot(dx, dy)
		if n == 0 {
			continue
		}
		ox, oy := float32(-dy/n*width/2), float32(dx/n*width/2)
		quads = append(quads, []point{{a.x + ox, a.y + oy}, {b.x + ox, b.y + oy}, {b.x - ox, b.y - oy}, {a.x - ox, a.y - oy}})
	}
	fill(img, c, quads...)
}

// write draws text with its baseline at y. The fonts are part of the program: that
// they parse is no matter of input.
func write(img *image.RGBA, ttf []byte, size float64, c color.RGBA, x, y int, text string) {
	f, err := opentype.Parse(ttf)
	if err != nil {
		panic(err)
	}
	face, err := opentype.NewFace(f, &opentype.FaceOptions{Size: size, DPI: 72, Hinting: font.HintingNone})
	if err != nil {
		panic(err)
	}
	defer face.Close()
	d := font.Drawer{Dst: img, Src: image.NewUniform(c), Face: face, Dot: fixed.P(x, y)}
	d.DrawString(text)
}

// XRay draws the attenuation image of a parcel that holds a blister of 15 cells,
// of which filled hold a tablet: Beer-Lambert with photon noise, 16 bits.
func XRay(filled int, seed uint64) *image.Gray16 {
	rng := rand.New(rand.NewPCG(seed, 77))
	const w, h = 720, 420
	depth := make([]float64, w*h)
	add := func(x0, y0, x1, y1 int, d float64) {
		for y := y0; y < y1; y++ {
			for x := x0; x < x1; x++ {
				depth[y*w+x] += d
			}
		}
	}
	add(60, 50, w-60, h-50, 0.12)
	add(60, 50, w-60, 56, 0.4)
	add(60, h-56, w-60, h-50, 0.4)
	add(150, 100, w-150, h-100, 0.08)
	for i := range min(filled, 15) {
		cx, cy := 200+float64(i%5)*80, 145+float64(i/5)*65
		for y := int(cy) - 26; y <= int(cy)+26; y++ {
			for x := int(cx) - 26; x <= int(cx)+26; x++ {
				if r := math.Hypot(float64(x)-cx, float64(y)-cy); r < 25 {
					depth[y*w+x] += 0.75 * math.Sqrt(1-r*r/625)
				}
			}
		}
	}
	img := image.NewGray16(image.Rect(0, 0, w, h))
	for i, d := range depth {
		photons := 20000 * math.Exp(-d)
		v := (photons + rng.NormFloat64()*math.Sqrt(photons)) / 20000 * 60000
		img.SetGray16(i%w, i/w, color.Gray16{Y: uint16(min(max(v, 0), 65535))})
	}
	return img
}
