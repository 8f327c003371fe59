// Package spectrum reads spectra in JCAMP-DX (McDonald and Wilks, Applied
// Spectroscopy 42(1), 1988; JCAMP-DX 5.01, IUPAC 1999). It is pure and imports
// nothing of ours.
package spectrum

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
)

// Spectrum is the first data block of a file.
type Spectrum struct {
	Title    string
	DataType string
	XUnits   string
	YUnits   string
	X, Y     []float64 // of equal length; a missing ordinate is NaN
	Warnings []string
}

// ErrFormat is returned for what is no JCAMP-DX file or uses a form this package
// does not read.
var ErrFormat = errors.New("not a JCAMP-DX spectrum this program reads")

// MaxPoints bounds what a file may hold: a few bytes of DUP form can claim any
// number of points.
const MaxPoints = 1 << 20

// record is one labelled data record: ##LABEL= value lines.
type record struct {
	label string
	value string   // the rest of the label's own line
	lines []string // the lines after it
	line  int      // number of the label's line, from 1
}

// Read reads the first block of data of a JCAMP-DX file. Deviations that lose no
// data are warnings; a file whose points cannot be trusted is an error.
func Read(data []byte) (*Spectrum, error) {
	s := &Spectrum{}
	header := map[string]string{}
	blocks := 0
	for _, r := range records(data) {
		switch r.label {
		case "XYDATA", "XYPOINTS", "PEAKTABLE":
			blocks++
			if blocks > 1 {
				continue
			}
			if err := s.readData(r, header); err != nil {
				return nil, err
			}
			if err := s.finite(r.line); err != nil {
				return nil, err
			}
		case "NTUPLES", "DATATABLE":
			return nil, fmt.Errorf("%w: line %d: NTUPLES data", ErrFormat, r.line)
		default:
			if blocks == 0 {
				header[r.label] = r.value
			}
		}
	}
	if blocks == 0 {
		return nil, fmt.Errorf("%w: no ##XYDATA=, ##XYPOINTS= or ##PEAK TABLE=", ErrFormat)
	}
	if blocks > 1 {
		s.warn("the file holds %d blocks of data; the first is read", blocks)
	}
	s.Title, s.DataType = header["TITLE"], header["DATATYPE"]
	s.XUnits, s.YUnits = header["XUNITS"], header["YUNITS"]
	return s, nil
}

// finite refuses points that factors or steps carried beyond any number.
func (s *Spectrum) finite(line int) error {
	for i := range s.X {
		if math.IsInf(s.X[i], 0) || math.IsNaN(s.X[i]) || math.IsInf(s.Y[i], 0) {
			return fmt.Errorf("%w: line %d: point %d is beyond any number", ErrFormat, line, i+1)
		}
	}
	return nil
}

func (s *Spectrum) warn(format string, args ...any) {
	s.Warnings = append(s.Warnings, fmt.Sprintf(format, args...))
}

// records splits a file into labelled data records. Labels compare without
// spaces, '-', '/', '_' and case (JCAMP-DX 4.24, 3.2); "$$" begins a comment. Text
// that is not UTF-8 is Latin-1, as older instruments write.
func records(data []byte) []record {
	var out []record
	for n, line := range strings.Split(toUTF8(data), "\n") {
		line, _, _ = strings.Cut(line, "$$")
		line = strings.TrimRight(line, " \t\r")
		if rest, ok := strings.CutPrefix(strings.TrimLeft(line, " \t"), "##"); ok {
			label, value, _ := strings.Cut(rest, "=")
			out = append(out, record{label: normalLabel(label), value: strings.TrimSpace(value), line: n + 1})
		} else if len(out) > 0 {
			last := &out[len(out)-1]
			last.lines = append(last.lines, line)
		}
	}
	return out
}

func normalLabel(s string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(" \t-/_", r) {
			return -1
		}
		return unicode.ToUpper(r)
	}, s)
}

func toUTF8(data []byte) string {
	s := string(data)
	if strings.ToValidUTF8(s, "") == s {
		return s
	}
	var b strings.Builder
	for _, c := range data {
		b.WriteRune(rune(c))
	}
	return b.String()
}

func (s *Spectrum) readData(r record, header map[string]string) error {
	form := strings.Map(func(c rune) rune {
		if c == ' ' {
			return -1
		}
		return unicode.ToUpper(c)
	}, r.value)
	switch {
	case strings.HasPrefix(form, "(X++(Y..Y))"):
		return s.readEquidistant(r, header)
	case strings.HasPrefix(form, "(XY..XY)"):
		return s.readPairs(r, header)
	}
	return fmt.Errorf("%w: line %d: data form %q", ErrFormat, r.line, r.value)
}

// number reads a header number; a missing one is def.
func number(header map[string]string, label string, def float64) (float64, error) {
	v, ok := header[label]
	if !ok {
		return def, nil
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return 0, fmt.Errorf("%w: ##%s= %q is no number", ErrFormat, label, v)
	}
	return f, nil
}

func (s *Spectrum) readPairs(r record, header map[string]string) error {
	xf, err1 := number(header, "XFACTOR", 1)
	yf, err2 := number(header, "YFACTOR", 1)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	for i, line := range r.lines {
		fields := strings.FieldsFunc(line, func(c rune) bool { return unicode.IsSpace(c) || c == ',' || c == ';' })
		if len(fields)%2 != 0 {
			return fmt.Errorf("%w: line %d: a pair is incomplete", ErrFormat, r.line+i+1)
		}
		for j := 0; j < len(fields); j += 2 {
			x, err1 := strconv.ParseFloat(fields[j], 64)
			y, err2 := ordinate(fields[j+1])
			if err := errors.Join(err1, err2); err != nil || math.IsNaN(x) || math.IsInf(x, 0) {
				return fmt.Errorf("%w: line %d: %q %q is no pair of numbers", ErrFormat, r.line+i+1, fields[j], fields[j+1])
			}
			s.X, s.Y = append(s.X, x*xf), append(s.Y, y*yf)
		}
	}
	return s.checkCount(header)
}

// ordinate reads a number; "?" is a missing one.
func ordinate(f string) (float64, error) {
	if f == "?" {
		return math.NaN(), nil
	}
	v, err := strconv.ParseFloat(f, 64)
	if err == nil && (math.IsNaN(v) || math.IsInf(v, 0)) {
		err = strconv.ErrRange
	}
	return v, err
}

// readEquidistant reads (X++(Y..Y)): each line begins with its abscissa, its
// ordinates follow in any of the AFFN and ASDF forms.
func (s *Spectrum) readEquidistant(r record, header map[string]string) error {
	first, err1 := number(header, "FIRSTX", math.NaN())
	last, err2 := number(header, "LASTX", math.NaN())
	xf, err3 := number(header, "XFACTOR", 1)
	yf, err4 := number(header, "YFACTOR", 1)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	var ys []float64
	var lineX []float64 // abscissa at the start of each line
	var lineAt []int    // index of the line's first ordinate
	endsInDIF := false
	for i, line := range r.lines {
		if strings.TrimSpace(line) == "" {
			continue
		}
		x, vals, dif, err := decodeLine(line)
		if err != nil {
			return fmt.Errorf("line %d: %w", r.line+i+1, err)
		}
		if endsInDIF && len(vals) > 0 {
			// The first ordinate of a line repeats the last one of a line in DIF form
			// (JCAMP-DX 4.24, 5.8.3): a check that nothing was lost between them.
			if vals[0] != ys[len(ys)-1] {
				s.warn("line %d: Y check fails: %g does not repeat %g", r.line+i+1, vals[0], ys[len(ys)-1])
			} else {
				vals = vals[1:]
				x = math.NaN() // the abscissa belongs to the repeated point
			}
		}
		lineX, lineAt = append(lineX, x), append(lineAt, len(ys))
		ys = append(ys, vals...)
		endsInDIF = dif
		if len(ys) > MaxPoints {
			return fmt.Errorf("%w: more than %d points", ErrFormat, MaxPoints)
		}
	}
	if len(ys) == 0 {
		return fmt.Errorf("%w: line %d: no ordinates", ErrFormat, r.line)
	}
	if math.IsNaN(first) {
		first = lineX[0] * xf
	}
	delta, err := s.spacing(header, first, last, len(ys))
	if err != nil {
		return err
	}
	for i, y := range ys {
		s.X, s.Y = append(s.X, first+float64(i)*delta), append(s.Y, y*yf)
	}
	for i, x := range lineX {
		want := first + float64(lineAt[i])*delta
		if !math.IsNaN(x) && math.Abs(x*xf-want) > math.Abs(delta) {
			s.warn("X check fails: a line begins at %g, its points at %g", x*xf, want)
			break
		}
	}
	return s.checkCount(header)
}

func (s *Spectrum) spacing(header map[string]string, first, last float64, n int) (float64, error) {
	if !math.IsNaN(last) && n > 1 {
		return (last - first) / float64(n-1), nil
	}
	d, err := number(header, "DELTAX", math.NaN())
	if err == nil && math.IsNaN(d) && n > 1 {
		err = fmt.Errorf("%w: neither ##LASTX= nor ##DELTAX=", ErrFormat)
	}
	return d, err
}

func (s *Spectrum) checkCount(header map[string]string) error {
	if len(s.Y) == 0 {
		return fmt.Errorf("%w: no points", ErrFormat)
	}
	n, err := number(header, "NPOINTS", float64(len(s.Y)))
	if err != nil {
		s.warn("##NPOINTS= is no number")
	} else if int(n) != len(s.Y) {
		s.warn("##NPOINTS= says %g, the file holds %d", n, len(s.Y))
	}
	return nil
}

// The pseudo-digits of ASDF (JCAMP-DX 4.24, 5.7): the first character of a number
// carries its sign and first digit and tells its form.
const (
	sqzPositive = "@ABCDEFGHI" // 0 to 9
	sqzNegative = "abcdefghi"  // -1 to -9
	difPositive = "%JKLMNOPQR" // 0 to 9
	difNegative = "jklmnopqr"  // -1 to -9
	dupDigits   = "STUVWXYZs"  // 1 to 9
)

// decodeLine decodes one line of (X++(Y..Y)): its abscissa and ordinates, and
// whether its last ordinate was in DIF form.
func decodeLine(line string) (x float64, ys []float64, endsInDIF bool, err error) {
	tokens := tokenize(line)
	if len(tokens) == 0 {
		return 0, nil, false, fmt.Errorf("%w: no abscissa", ErrFormat)
	}
	if x, err = strconv.ParseFloat(tokens[0], 64); err != nil || math.IsNaN(x) || math.IsInf(x, 0) {
		return 0, nil, false, fmt.Errorf("%w: %q is no abscissa", ErrFormat, tokens[0])
	}
	step := 0.0 // what a DUP repeats when the last ordinate was a difference
	for _, tok := range tokens[1:] {
		form, v, err := value(tok)
		if err != nil {
			return 0, nil, false, err
		}
		switch form {
		case 'd':
			if len(ys) == 0 {
				return 0, nil, false, fmt.Errorf("%w: a difference has no ordinate before it", ErrFormat)
			}
			step, endsInDIF = v, true
			ys = append(ys, ys[len(ys)-1]+v)
		case 'u':
			if len(ys) == 0 || v < 1 || v > MaxPoints || len(ys)+int(v) > MaxPoints {
				return 0, nil, false, fmt.Errorf("%w: repeat count %q", ErrFormat, tok)
			}
			for range int(v) - 1 {
				next := ys[len(ys)-1]
				if endsInDIF {
					next += step
				}
				ys = append(ys, next)
			}
		default:
			step, endsInDIF = 0, false
			ys = append(ys, v)
		}
	}
	return x, ys, endsInDIF, nil
}

// value reads one token: a plain or squeezed ordinate ('y'), a difference ('d') or
// a repeat count ('u').
func value(tok string) (form byte, v float64, err error) {
	digits := func(set string, base int) (string, bool) {
		i := strings.IndexByte(set, tok[0])
		if i < 0 {
			return "", false
		}
		return strconv.Itoa(i+base) + tok[1:], true
	}
	form = 'y'
	text := tok
	if s, ok := digits(sqzPositive, 0); ok {
		text = s
	} else if s, ok := digits(sqzNegative, 1); ok {
		text = "-" + s
	} else if s, ok := digits(difPositive, 0); ok {
		form, text = 'd', s
	} else if s, ok := digits(difNegative, 1); ok {
		form, text = 'd', "-"+s
	} else if s, ok := digits(dupDigits, 1); ok {
		form, text = 'u', s
	}
	if v, err = ordinate(text); err != nil {
		return 0, 0, fmt.Errorf("%w: %q is no ordinate", ErrFormat, tok)
	}
	return form, v, nil
}

// tokenize splits a line at blanks, commas, signs and pseudo-digits. An 'E' that
// an exponent follows belongs to the number (as in 1.5E+03): the other reading,
// SQZ 5, has no sign behind it.
func tokenize(line string) []string {
	var tokens []string
	start := -1
	flush := func(end int) {
		if start >= 0 {
			tokens = append(tokens, line[start:end])
		}
		start = -1
	}
	isPseudo := func(c byte) bool {
		return strings.IndexByte(sqzPositive, c) >= 0 || strings.IndexByte(sqzNegative, c) >= 0 ||
			strings.IndexByte(difPositive, c) >= 0 || strings.IndexByte(difNegative, c) >= 0 || strings.IndexByte(dupDigits, c) >= 0
	}
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case c == ' ' || c == '\t' || c == ',' || c == ';':
			flush(i)
		case (c == 'E' || c == 'e') && start >= 0 && i+1 < len(line) && (line[i+1] == '+' || line[i+1] == '-'):
			i++ // keep the exponent's sign
		case c == '+' || c == '-' || c == '?' || isPseudo(c):
			flush(i)
			start = i
		case start < 0:
			start = i
		}
	}
	flush(len(line))
	return tokens
}
