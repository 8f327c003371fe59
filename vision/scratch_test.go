package vision_test

import (
	"bytes"
	"context"
	"fmt"
	"image/png"
	"testing"
	"time"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/vision"
	"inspectd.org/inspectd/vision/artwork"
)

func TestScratch(t *testing.T) {
	pool := vision.NewPool(vision.PoolOptions{Program: "/work/main/bin/inspectd-vision"})
	defer pool.Close()
	ctx := context.Background()
	pack := &vision.Pack{ID: "demo", Holder: "x", Version: "1"}
	for _, p := range artwork.Products()[:2] {
		face := p.Draw(artwork.Tamper{})
		var b bytes.Buffer
		png.Encode(&b, face)
		regions := map[string]vision.Region{}
		for n, r := range p.Regions() {
			regions[n] = vision.Region{Kind: r.Kind, Rect: r.Rect}
		}
		prod, err := pack.AddProduct(ctx, pool, vision.Product{ID: p.ID, Name: p.Name, GTINs: []string{p.GTIN}, MMPerPx: artwork.MMPerPx, Regions: regions}, b.Bytes())
		if err != nil {
			t.Fatal(err, pool.Status())
		}
		fake := artwork.JPEG(artwork.Photograph(p.Draw(artwork.Tamper{Logo: true}), 999))
		if err := prod.AddFake(ctx, pool, "logo", "blunt petals", fake); err != nil {
			t.Fatal(err)
		}
		var caps [][]byte
		for i := range 10 {
			caps = append(caps, artwork.JPEG(artwork.Photograph(face, uint64(1000+i))))
		}
		s := time.Now()
		if err := prod.Enrol(ctx, pool, caps); err != nil {
			t.Fatal(err)
		}
		fmt.Println("enrol", time.Since(s))
	}
	for k, n := range pack.Products[0].Normal {
		fmt.Printf("%-9s %+v\n", k, n)
	}
	fmt.Println(pool.Status())
	dir := t.TempDir()
	pack.Write(dir)
	pk, err := vision.ReadPack(dir)
	if err != nil {
		t.Fatal(err)
	}
	packs := &vision.Packs{List: []*vision.Pack{pk}}
	for _, tm := range []artwork.Tamper{{}, {Colour: 0.15}, {Colour: 0.6}, {Logo: true, Colour: 0.6, NoSeal: true}} {
		for seed := range 3 {
			img := artwork.JPEG(artwork.Photograph(artwork.Products()[0].Draw(tm), uint64(5000+seed)))
			s := time.Now()
			a, pics, err := packs.Examine(ctx, pool, img)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Println(tm, seed, time.Since(s), len(pics))
			for _, c := range a.Candidates {
				fmt.Printf("   %s agree %.2f misfit %.2f %s:", c.Product, c.Agreement, c.Misfit, c.Reason)
				for _, ch := range c.Checks {
					if ch.Outcome != lane.Pass {
						fmt.Printf(" %s(%v)", ch.Name, ch.Codes)
					}
				}
				fmt.Println()
			}
		}
	}
}
