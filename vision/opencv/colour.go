//go:build gocv_specific_modules

package opencv

import "math"

// lab converts 8-bit sRGB, given as blue, green, red, to CIELAB under D65
// (IEC 61966-2-1, CIE 15).
func lab(bgr [3]float64) [3]float64 {
	var lin [3]float64 // red, green, blue
	for i := range 3 {
		c := min(max(bgr[2-i]/255, 0), 1)
		if c <= 0.04045 {
			lin[i] = c / 12.92
		} else {
			lin[i] = math.Pow((c+0.055)/1.055, 2.4)
		}
	}
	x := (0.4124564*lin[0] + 0.3575761*lin[1] + 0.1804375*lin[2]) / 0.95047
	y := 0.2126729*lin[0] + 0.7151522*lin[1] + 0.0721750*lin[2]
	z := (0.0193339*lin[0] + 0.1191920*lin[1] + 0.9503041*lin[2]) / 1.08883
	f := func(t float64) float64 {
		if t > 216.0/24389 {
			return math.Cbrt(t)
		}
		return (24389.0/27*t + 16) / 116
	}
	return [3]float64{116*f(y) - 16, 500 * (f(x) - f(y)), 200 * (f(y) - f(z))}
}

// de2000 is the CIEDE2000 colour difference (CIE 142; Sharma, Wu and Dalal, Color
// Research and Application 30(1), 2005).
func de2000(a, b [3]float64) float64 {
	rad := math.Pi / 180
	c1, c2 := math.Hypot(a[1], a[2]), math.Hypot(b[1], b[2])
	cm7 := math.Pow((c1+c2)/2, 7)
	g := 0.5 * (1 - math.Sqrt(cm7/(cm7+math.Pow(25, 7))))
	a1, a2 := (1+g)*a[1], (1+g)*b[1]
	c1, c2 = math.Hypot(a1, a[2]), math.Hypot(a2, b[2])
	hue := func(x, y float64) float64 {
		if x == 0 && y == 0 {
			return 0
		}
		return math.Mod(math.Atan2(y, x)/rad+360, 360)
	}
	h1, h2 := hue(a1, a[2]), hue(a2, b[2])
	dh, hm := h2-h1, h1+h2
	switch {
	case c1*c2 == 0:
		dh = 0
	case math.Abs(h1-h2) <= 180:
		hm /= 2
	case hm < 360:
		hm = (hm + 360) / 2
	default:
		hm = (hm - 360) / 2
	}
	if c1*c2 != 0 && dh > 180 {
		dh -= 360
	} else if c1*c2 != 0 && dh < -180 {
		dh += 360
	}
	dl, dc := b[0]-a[0], c2-c1
	dH := 2 * math.Sqrt(c1*c2) * math.Sin(dh*rad/2)
	lm, cm := (a[0]+b[0])/2, (c1+c2)/2
	t := 1 - 0.17*math.Cos((hm-30)*rad) + 0.24*math.Cos(2*hm*rad) + 0.32*math.Cos((3*hm+6)*rad) - 0.20*math.Cos((4*hm-63)*rad)
	sl := 1 + 0.015*(lm-50)*(lm-50)/math.Sqrt(20+(lm-50)*(lm-50))
	sc, sh := 1+0.045*cm, 1+0.015*cm*t
	cm7 = math.Pow(cm, 7)
	rt := -2 * math.Sqrt(cm7/(cm7+math.Pow(25, 7))) * math.Sin(60*rad*math.Exp(-((hm-275)/25)*((hm-275)/25)))
	return math.Sqrt((dl/sl)*(dl/sl) + (dc/sc)*(dc/sc) + (dH/sh)*(dH/sh) + rt*(dc/sc)*(dH/sh))
}
