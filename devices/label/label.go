// Package label reads what a scanner read: AIM symbology identifiers, GS1
// element strings, EAN/UPC numbers, SSCC and UPU S10. It is pure and imports
// nothing of ours; its reason codes are plain strings of the LBL_ family.
package label

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// GS is the separator that a scanner sends for FNC1 inside an element string.
const GS = "\x1d"

// Element is one data element: its identifier and data, and where it stood.
type Element struct {
	ID    string `json:"id"` // application identifier
	Title string `json:"title"`
	Value string `json:"value"`
	Start int    `json:"start"` // byte offsets of the value in the data
	End   int    `json:"end"`
}

// Identifier is a key of the item in normal form.
type Identifier struct {
	Scheme string `json:"scheme"` // sscc, gtin, sgtin, s10
	Value  string `json:"value"`
	Raw    string `json:"raw"`
}

// Problem is one thing wrong with a label.
type Problem struct {
	Code     string `json:"code"`
	Severity string `json:"severity"` // error or warning
	Element  string `json:"element"`
	Position int    `json:"position"` // byte offset
	Text     string `json:"text"`
}

// Label is what one symbol says. Positions are byte offsets into Data.
type Label struct {
	AIM         string       `json:"aim"`
	Scheme      string       `json:"scheme"` // gs1, gtin, sscc, s10, opaque
	Elements    []Element    `json:"elements"`
	Identifiers []Identifier `json:"identifiers"`
	Problems    []Problem    `json:"problems"`
	Valid       bool         `json:"valid"` // no problem is an error
	Data        string       `json:"-"`
}

func (l *Label) problem(code, severity, element string, position int, format string, args ...any) {
	l.Problems = append(l.Problems, Problem{code, severity, element, position, fmt.Sprintf(format, args...)})
}

// aimPattern is an AIM symbology identifier, ISO/IEC 15424: ']', a code
// character, and a modifier.
var aimPattern = regexp.MustCompile(`^\][A-Za-z][0-9A-Za-z]`)

// SplitAIM separates a leading AIM symbology identifier from the data.
func SplitAIM(scan string) (aim, data string) {
	if m := aimPattern.FindString(scan); m != "" {
		return m, scan[len(m):]
	}
	return "", scan
}

// gs1AIM are the identifiers of symbols that start with FNC1 and hold a GS1
// element string: GS1-128, DataBar and composite, GS1 DataMatrix, GS1 QR, GS1
// DotCode and GS1 Aztec, with and without ECI.
var gs1AIM = map[string]bool{"]C1": true, "]e0": true, "]d2": true, "]d5": true, "]d8": true,
	"]Q3": true, "]Q4": true, "]J1": true, "]z1": true, "]z4": true}

var (
	s10Pattern    = regexp.MustCompile(`^[A-Z]{2}[0-9]{9}[A-Z]{2}$`)
	digitsPattern = regexp.MustCompile(`^[0-9]+$`)
)

// Parse reads the data of one symbol. aim may be empty; then the content decides.
// now settles the century of dates (GS1 General Specifications 7.12). Text that
// is no standard code is opaque and valid.
func Parse(aim, data string, now time.Time) *Label {
	l := &Label{AIM: aim, Data: data, Elements: []Element{}, Identifiers: []Identifier{}, Problems: []Problem{}}
	switch {
	case gs1AIM[aim]:
		l.parseGS1(now)
	case aim == "]E0" || aim == "]E4" || aim == "]E3":
		l.parseEAN()
	case aim == "]I1" && len(data) == 14:
		l.parseGTIN()
	default:
		l.classify(now)
	}
	if aim == "" && l.Scheme != "opaque" {
		l.problem("LBL_AIM_MISSING", "warning", "", 0, "the scanner sent no symbology identifier; the kind of code was told from its content")
	}
	l.Valid = true
	for _, p := range l.Problems {
		l.Valid = l.Valid && p.Severity != "error"
	}
	return l
}

// classify tells the kind of code from its content alone. A number that merely
// has the length of a key is one only if its check digit is right: without a
// symbology identifier, digits may be anything.
func (l *Label) classify(now time.Time) {
	d := l.Data
	switch {
	case s10Pattern.MatchString(d):
		l.parseS10()
	case strings.HasPrefix(d, "00") && len(d) == 20 && l.AIM == "" && keyOK(d[2:]):
		l.parseGS1(now)
	case strings.HasPrefix(d, "01") && len(d) > 16 && l.AIM == "" && keyOK(d[2:16]):
		l.parseGS1(now)
	case l.AIM == "" && len(d) == 18 && keyOK(d):
		l.Scheme = "sscc"
		l.identify("sscc", d, d)
	case l.AIM == "" && (len(d) == 8 || len(d) == 12 || len(d) == 13 || len(d) == 14) && keyOK(d):
		l.parseGTIN()
	default:
		l.Scheme = "opaque"
	}
}

func (l *Label) identify(scheme, value, raw string) {
	l.Identifiers = append(l.Identifiers, Identifier{scheme, value, raw})
}

// CheckDigit is the GS1 check digit of the digits of body (General
// Specifications 7.9.1): weights 3 and 1 from the right. body must be digits.
func CheckDigit(body string) byte {
	sum := 0
	for i := range len(body) {
		d := int(body[len(body)-1-i] - '0')
		if i%2 == 0 {
			d *= 3
		}
		sum += d
	}
	return byte('0' + (10-sum%10)%10)
}

// keyOK reports whether s is digits that end in their GS1 check digit.
func keyOK(s string) bool {
	return len(s) > 1 && digitsPattern.MatchString(s) && CheckDigit(s[:len(s)-1]) == s[len(s)-1]
}

// parseEAN reads EAN-13, UPC-A, UPC-E (which scanners send as 13 digits), EAN-8,
// and drops a 2- or 5-digit add-on.
func (l *Label) parseEAN() {
	want := 13
	if l.AIM == "]E4" {
		want = 8
	}
	main := l.Data
	if l.AIM == "]E3" && len(main) > 13 {
		main = main[:13]
	}
	if !digitsPattern.MatchString(main) || (len(main) != want && len(main) != 12) {
		l.Scheme = "gtin"
		l.problem("LBL_LENGTH", "error", "", 0, "an %s code has %d digits, this one reads %q", l.AIM, want, main)
		return
	}
	l.gtin(main)
}

func (l *Label) parseGTIN() { l.gtin(l.Data) }

func (l *Label) gtin(digits string) {
	l.Scheme = "gtin"
	if !digitsPattern.MatchString(digits) {
		l.problem("LBL_CHARSET", "error", "", 0, "a GTIN has digits only, this one reads %q", digits)
		return
	}
	l.Elements = append(l.Elements, Element{"01", "GTIN", digits, 0, len(digits)})
	if want := CheckDigit(digits[:len(digits)-1]); want != digits[len(digits)-1] {
		l.problem("LBL_CHECKDIGIT", "error", "01", len(digits)-1, "the check digit of GTIN %s is %c, it should be %c", digits, digits[len(digits)-1], want)
		return
	}
	l.identify("gtin", strings.Repeat("0", 14-len(digits))+digits, digits)
}

// s10Weights are the weights of UPU standard S10, section 4.
var s10Weights = [8]int{8, 6, 4, 2, 3, 5, 9, 7}

// S10CheckDigit is the check digit of the eight digits of an S10 identifier.
func S10CheckDigit(serial string) byte {
	sum := 0
	for i, w := range s10Weights {
		sum += w * int(serial[i]-'0')
	}
	switch c := 11 - sum%11; c {
	case 10:
		return '0'
	case 11:
		return '5'
	default:
		return byte('0' + c)
	}
}

func (l *Label) parseS10() {
	d := l.Data
	l.Scheme = "s10"
	l.Elements = append(l.Elements, Element{"S10", "UPU S10 ITEM IDENTIFIER", d, 0, len(d)})
	if want := S10CheckDigit(d[2:10]); want != d[10] {
		l.problem("LBL_CHECKDIGIT", "error", "S10", 10, "the check digit of postal item %s is %c, it should be %c", d, d[10], want)
		return
	}
	l.identify("s10", d, d)
}
