package spectrum

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

func file(body string, n int) string {
	return fmt.Sprintf("##TITLE= test\r\n##JCAMP-DX= 4.24 $$ comment\r\n##DATA TYPE= RAMAN SPECTRUM\r\n##XUNITS= 1/CM\r\n##YUNITS= ARBITRARY UNITS\r\n"+
		"##FIRSTX= 400\r\n##LASTX= %d\r\n##XFACTOR= 1\r\n##YFACTOR= 1\r\n##NPOINTS= %d\r\n##XYDATA= (X++(Y..Y))\r\n%s\r\n##END=\r\n", 400+n-1, n, body)
}

// TestForms reads the same nine ordinates in every form of the standard; the
// encodings follow its own table of an example line (JCAMP-DX 4.24, table VI).
func TestForms(t *testing.T) {
	want := []float64{1, 2, 3, 3, 2, 1, 0, -1, -2, -3}
	for name, body := range map[string]string{
		"AFFN, spaces":     "400 1 2 3 3 2 1 0 -1 -2 -3",
		"PAC":              "400+1+2+3+3+2+1+0-1-2-3",
		"SQZ":              "400ABCCBA@abc",
		"DIF":              "400AJJ%jjjjjj",
		"DIFDUP":           "400AJT%jX",
		"mixed lines":      "400 1 2 3\n403 3 2 1 0\n407 -1 -2 -3",
		"DIF with Y check": "400AJJ%\n403Cjjjjjj",
	} {
		s, err := Read([]byte(file(body, len(want))))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !slices.Equal(s.Y, want) || len(s.Warnings) > 0 || s.X[0] != 400 || s.X[9] != 409 {
			t.Errorf("%s: X %v Y %v warnings %v", name, s.X, s.Y, s.Warnings)
		}
	}
}

func TestDeviations(t *testing.T) {
	for name, c := range map[string]struct{ in, warning string }{
		"wrong NPOINTS": {strings.Replace(file("400 1 2 3", 3), "##NPOINTS= 3", "##NPOINTS= 9", 1), "NPOINTS"},
		"Y check":       {file("400AJ\n401Ej", 4), "Y check"},
		"X check":       {file("400 1 2\n480 3 4", 4), "X check"},
		"two blocks":    {file("400 1 2", 2) + file("400 1 2", 2), "2 blocks"},
	} {
		s, err := Read([]byte(c.in))
		if err != nil || len(s.Warnings) == 0 || !strings.Contains(s.Warnings[0], c.warning) {
			t.Errorf("%s: %v %+v", name, err, s)
		}
	}
	for name, in := range map[string]string{
		"empty": "", "text": "hello", "no data": "##TITLE= x\n##END=", "form": "##XYDATA= (XYW..XYW)\n1 2 3", "half a pair": "##XYPOINTS= (XY..XY)\n1 2 3",
		"difference first": file("400J1", 2), "letters": file("400 1 x", 2), "infinite": file("400 1E+999", 1), "repeat bomb": file("400AS9999999999", 2), "many repeats": file("400A"+strings.Repeat(" Z99999", 2000), 2),
		"factor beyond numbers": "##XFACTOR=1E+10\n##XYPOINTS=(XY..XY)\n1e308,1\n", "axis beyond numbers": "##FIRSTX=-1E+308\n##LASTX=1E+308\n##XYDATA=(X++(Y..Y))\n1 2 3\n",
		"ntuples": "##NTUPLES= X\n",
	} {
		if s, err := Read([]byte(in)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: read as %+v, %v", name, s, err)
		}
	}
}

func TestPairsAndMissing(t *testing.T) {
	s, err := Read([]byte("##Title= Stra\xdfe\n##X_UNITS= NANOMETERS\n##XYPOINTS= (XY..XY)\n1500, 0.5; 1510, ?\n1520,0.25\n##END="))
	if err != nil || s.Title != "Straße" || s.XUnits != "NANOMETERS" || len(s.X) != 3 || !math.IsNaN(s.Y[1]) || s.Y[2] != 0.25 {
		t.Errorf("%+v, %v", s, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(file("400ABCCBA@abc", 10)))
	f.Add([]byte(file("400AJT%jX", 10)))
	f.Add([]byte(file("4.0E+02 1.5E-3 2", 2)))
	f.Add([]byte("##PEAK TABLE= (XY..XY)\n1,2 3,4"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Read(data)
		if err != nil {
			return
		}
		if len(s.X) != len(s.Y) || len(s.Y) == 0 || len(s.Y) > MaxPoints*2 {
			t.Fatalf("%d abscissas, %d ordinates", len(s.X), len(s.Y))
		}
		for i := range s.X {
			if math.IsNaN(s.X[i]) || math.IsInf(s.X[i], 0) || math.IsInf(s.Y[i], 0) {
				t.Fatalf("point %d is %g, %g", i, s.X[i], s.Y[i])
			}
		}
	})
}
