package simulate

import (
	"context"
	"fmt"

	"inspectd.org/inspectd/vision"
	"inspectd.org/inspectd/vision/artwork"
)

// Seeds of the pictures a pack is learnt from, far from those of runs.
const (
	seedCaptures = 9_000_000_000
	seedFake     = 9_100_000_000
	captures     = 12
)

// DrawPack draws the demonstration's reference pack into dir and learns from
// simulated genuine captures what is normal. The same program and the same OpenCV
// draw the same pack.
func DrawPack(ctx context.Context, pool *vision.Pool, dir string) error {
	pack := &vision.Pack{ID: "fictional", Holder: "Fictional Rights Holders", Version: "1"}
	for i, p := range artwork.Products() {
		regions := map[string]vision.Region{}
		for name, r := range p.Regions() {
			regions[name] = vision.Region{Kind: r.Kind, Rect: r.Rect}
		}
		face := p.Draw(artwork.Tamper{})
		product, err := pack.AddProduct(ctx, pool, vision.Product{ID: p.ID, Name: fmt.Sprintf("%s %s %s", p.Brand, p.Name, p.Strength),
			GTINs: []string{p.GTIN}, MMPerPx: artwork.MMPerPx, Regions: regions}, artwork.PNG(face))
		if err != nil {
			return err
		}
		base := uint64(i) * 1000
		fake := artwork.JPEG(artwork.Photograph(p.Draw(artwork.Tamper{Logo: true}), seedFake+base))
		if err := product.AddFake(ctx, pool, "logo", "blunt petals", fake); err != nil {
			return err
		}
		var pictures [][]byte
		for k := range uint64(captures) {
			pictures = append(pictures, artwork.JPEG(artwork.Photograph(face, seedCaptures+base+k)))
		}
		if err := product.Enrol(ctx, pool, pictures); err != nil {
			return err
		}
	}
	return pack.Write(dir)
}
