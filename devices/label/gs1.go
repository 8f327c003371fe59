package label

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

//go:embed gs1ai.tsv
var gs1Table string

// component is one part of an AI's data.
type component struct {
	set      byte // n, x, y, z
	min, max int
	optional bool
	rule     string // check, date, date0 or empty
}

// ai is one entry of the table of application identifiers.
type ai struct {
	title string
	fixed bool // predefined length: no separator follows
	parts []component
}

// table parses gs1ai.tsv once. The file is part of the program: a mistake in it
// is a mistake in the program, found by its test.
var table = sync.OnceValue(func() map[string]ai {
	t := map[string]ai{}
	for line := range strings.Lines(gs1Table) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		col := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		entry := ai{title: col[3], fixed: col[1] == "fixed"}
		for _, f := range strings.Fields(col[2]) {
			entry.parts = append(entry.parts, parseComponent(f))
		}
		first, last, isRange := strings.Cut(col[0], "-")
		if !isRange {
			t[first] = entry
			continue
		}
		from, err1 := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil {
			panic("gs1ai.tsv: " + line)
		}
		for n := from; n <= to; n++ {
			t[fmt.Sprintf("%0*d", len(first), n)] = entry
		}
	}
	return t
})

func parseComponent(f string) component {
	c := component{optional: strings.HasPrefix(f, "(")}
	f = strings.Trim(f, "()")
	f, c.rule, _ = strings.Cut(f, ":")
	c.set = f[0]
	lo, hi, isRange := strings.Cut(f[1:], "-")
	if !isRange {
		hi = lo
	}
	var err1, err2 error
	c.min, err1 = strconv.Atoi(lo)
	c.max, err2 = strconv.Atoi(hi)
	if err1 != nil || err2 != nil {
		panic("gs1ai.tsv: format " + f)
	}
	return c
}

// parseGS1 reads an element string (General Specifications 7.8). It goes on after
// a mistake as far as the structure allows, so that one bad element does not hide
// the others.
func (l *Label) parseGS1(now time.Time) {
	l.Scheme = "gs1"
	pos := 0
	for pos < len(l.Data) {
		if l.Data[pos] == GS[0] { // a leading or superfluous separator is tolerated
			pos++
			continue
		}
		id, entry, ok := lookupAI(l.Data[pos:])
		if !ok {
			l.problem("LBL_AI_UNKNOWN", "error", "", pos, "no GS1 element starts with %q", head(l.Data[pos:], 4))
			next := strings.IndexByte(l.Data[pos:], GS[0])
			if next < 0 {
				break
			}
			pos += next
			continue
		}
		start := pos + len(id)
		end := start + elementLength(entry, l.Data[start:])
		l.element(id, entry, start, end, now)
		pos = end
	}
	l.gs1Identifiers()
}

func head(s string, n int) string { return s[:min(n, len(s))] }

// lookupAI finds the AI that data starts with; AIs have 2 to 4 digits and none is
// the beginning of another.
func lookupAI(data string) (string, ai, bool) {
	for n := 2; n <= 4 && n <= len(data); n++ {
		if entry, ok := table()[data[:n]]; ok {
			return data[:n], entry, true
		}
	}
	return "", ai{}, false
}

// elementLength is how many bytes of rest are the data of an element: its
// predefined length, or up to the separator.
func elementLength(entry ai, rest string) int {
	end := strings.IndexByte(rest, GS[0])
	if end < 0 {
		end = len(rest)
	}
	if entry.fixed {
		n := 0
		for _, c := range entry.parts {
			n += c.max
		}
		end = min(end, n)
	}
	return end
}

func (l *Label) element(id string, entry ai, start, end int, now time.Time) {
	value := l.Data[start:end]
	for _, e := range l.Elements {
		if e.ID == id && e.Value != value {
			l.problem("LBL_CONFLICT", "error", id, start, "element (%s) %s stands twice with different values", id, entry.title)
		}
	}
	l.Elements = append(l.Elements, Element{id, entry.title, value, start, end})
	pos := start
	for _, c := range entry.parts {
		n := min(c.max, end-pos)
		if n < c.min && !(n == 0 && c.optional) {
			l.problem("LBL_LENGTH", "error", id, pos, "element (%s) %s is too short: %q", id, entry.title, value)
			return
		}
		l.checkComponent(id, entry.title, c, pos, pos+n, now)
		pos += n
	}
	if pos < end {
		l.problem("LBL_LENGTH", "error", id, pos, "element (%s) %s is too long by %d characters: a separator may be missing", id, entry.title, end-pos)
	}
}

// cset82 and cset39 are the GS1 character sets of General Specifications 7.11.
const (
	cset82 = "!\"%&'()*+,-./0123456789:;<=>?ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
	cset39 = "#-/0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	cset64 = "-0123456789=ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
)

var charsets = map[byte]string{'n': "0123456789", 'x': cset82, 'y': cset39, 'z': cset64}

func (l *Label) checkComponent(id, title string, c component, start, end int, now time.Time) {
	value := l.Data[start:end]
	for i := range len(value) {
		if strings.IndexByte(charsets[c.set], value[i]) < 0 {
			l.problem("LBL_CHARSET", "error", id, start+i, "element (%s) %s holds %q, which is not allowed there", id, title, value[i])
			return
		}
	}
	switch {
	case value == "":
	case c.rule == "check":
		if want := CheckDigit(value[:len(value)-1]); want != value[len(value)-1] {
			l.problem("LBL_CHECKDIGIT", "error", id, end-1, "the check digit of (%s) %s %s is %c, it should be %c", id, title, value, value[len(value)-1], want)
		}
	case c.rule == "date" || c.rule == "date0":
		if _, ok := Date(value, c.rule == "date0", now); !ok {
			l.problem("LBL_DATE_ILLEGAL", "error", id, start, "element (%s) %s: %s is no date in the form YYMMDD", id, title, value)
		}
	}
}

// Date reads YYMMDD. With day0, day 00 means the last day of the month. The
// century follows General Specifications 7.12: at most 49 years back or 50 ahead
// of now.
func Date(yymmdd string, day0 bool, now time.Time) (time.Time, bool) {
	if len(yymmdd) != 6 || !digitsPattern.MatchString(yymmdd) {
		return time.Time{}, false
	}
	yy, _ := strconv.Atoi(yymmdd[:2])
	mm, _ := strconv.Atoi(yymmdd[2:4])
	dd, _ := strconv.Atoi(yymmdd[4:])
	year := now.Year()/100*100 + yy
	switch diff := yy - now.Year()%100; {
	case diff >= 51:
		year -= 100
	case diff <= -50:
		year += 100
	}
	if mm < 1 || mm > 12 {
		return time.Time{}, false
	}
	last := time.Date(year, time.Month(mm)+1, 0, 0, 0, 0, 0, time.UTC)
	if dd == 0 && day0 {
		return last, true
	}
	if dd < 1 || dd > last.Day() {
		return time.Time{}, false
	}
	return time.Date(year, time.Month(mm), dd, 0, 0, 0, 0, time.UTC), true
}

// gs1Identifiers derives the item's keys from elements that are sound.
func (l *Label) gs1Identifiers() {
	bad := map[string]bool{}
	for _, p := range l.Problems {
		if p.Severity == "error" {
			bad[p.Element] = true
		}
	}
	value := map[string]string{}
	for _, e := range l.Elements {
		if !bad[e.ID] {
			value[e.ID] = e.Value
		}
	}
	if v := value["00"]; v != "" {
		l.identify("sscc", v, v)
	}
	if v := value["01"]; v != "" {
		l.identify("gtin", v, v)
		if serial := value["21"]; serial != "" {
			l.identify("sgtin", v+"."+serial, v+"."+serial)
		}
	}
}
