//go:build gocv_specific_modules

package opencv

import (
	"math"
	"testing"

	"inspectd.org/inspectd/vision/artwork"
)

// TestDE2000 follows pairs of the published test data of Sharma, Wu and Dalal
// (2005), table 1.
func TestDE2000(t *testing.T) {
	for _, c := range []struct {
		a, b [3]float64
		want float64
	}{
		{[3]float64{50, 2.6772, -79.7751}, [3]float64{50, 0, -82.7485}, 2.0425},
		{[3]float64{50, 0, 0}, [3]float64{50, -1, 2}, 2.3669},
		{[3]float64{50, 2.49, -0.001}, [3]float64{50, -2.49, 0.0011}, 7.2195},
		{[3]float64{60.2574, -34.0099, 36.2677}, [3]float64{60.4626, -34.1751, 39.4387}, 1.2644},
		{[3]float64{2.0776, 0.0795, -1.135}, [3]float64{0.9033, -0.0636, -0.5514}, 0.9082},
	} {
		if got := de2000(c.a, c.b); math.Abs(got-c.want) > 1e-4 {
			t.Errorf("de2000(%v, %v) = %.4f, want %.4f", c.a, c.b, got, c.want)
		}
	}
}

func TestLab(t *testing.T) {
	white, red := lab([3]float64{255, 255, 255}), lab([3]float64{0, 0, 255})
	if math.Abs(white[0]-100) > 0.01 || math.Abs(white[1]) > 0.02 || math.Abs(red[0]-53.24) > 0.05 || math.Abs(red[1]-80.09) > 0.1 || math.Abs(red[2]-67.2) > 0.1 {
		t.Errorf("white %v red %v", white, red)
	}
}

// BenchmarkFloor is the bare work on one photograph of two megapixels: decoding and
// features, in this process, without worker and comparison.
func BenchmarkFloor(b *testing.B) {
	p := artwork.Products()[0]
	picture := artwork.JPEG(artwork.Photograph(p.Draw(artwork.Tamper{Logo: true}), 5))
	w := NewWorker()
	defer w.Close()
	for b.Loop() {
		if _, _, err := w.openImage(picture); err != nil {
			b.Fatal(err)
		}
	}
}
