package label

import (
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)

// TestParse reads labels as scanners send them. Keys and check digits are the
// worked examples of the GS1 General Specifications and of UPU S10.
func TestParse(t *testing.T) {
	for _, c := range []struct {
		name, aim, data string
		scheme          string
		ids             string // scheme:value, space separated
		problems        string // code@position, space separated
	}{
		{"medicine, EU FMD", "]d2", "01095060001343521727123110ABC123" + GS + "21SN123456789", "gs1",
			"gtin:09506000134352 sgtin:09506000134352.SN123456789", ""},
		{"order of elements is free", "]d2", "0109504000059101" + "2112345678p901" + GS + "101234567p" + GS + "17141120", "gs1",
			"gtin:09504000059101 sgtin:09504000059101.12345678p901", ""},
		{"logistic label", "]C1", "00006141411234567890", "gs1", "sscc:006141411234567890", ""},
		{"leading separator", "]C1", GS + "00006141411234567890", "gs1", "sscc:006141411234567890", ""},
		{"EAN-13", "]E0", "9506000134352", "gtin", "gtin:09506000134352", ""},
		{"UPC-A as 12 digits", "]E0", "416000336108", "gtin", "gtin:00416000336108", ""},
		{"EAN-8", "]E4", "02345673", "gtin", "gtin:00000002345673", ""},
		{"ITF-14", "]I1", "09504000059101", "gtin", "gtin:09504000059101", ""},
		{"postal item", "]C0", "RB473124829GB", "s10", "s10:RB473124829GB", ""},
		{"postal item, check digit 5 for 11", "", "EE000000005US", "s10", "s10:EE000000005US", "LBL_AIM_MISSING@0"},
		{"no identifier, 13 digits", "", "9506000134352", "gtin", "gtin:09506000134352", "LBL_AIM_MISSING@0"},
		{"no identifier, SSCC", "", "006141411234567890", "sscc", "sscc:006141411234567890", "LBL_AIM_MISSING@0"},
		{"thirteen digits that are no GTIN", "", "9506000134353", "opaque", "", ""},
		{"free text", "]C0", "PO 4711/b", "opaque", "", ""},
		{"no content", "", "", "opaque", "", ""},

		{"GTIN with a wrong check digit", "]d2", "0109506000134353" + "21A", "gs1", "", "LBL_CHECKDIGIT@15"},
		{"EAN-13 with a wrong check digit", "]E0", "9506000134353", "gtin", "", "LBL_CHECKDIGIT@12"},
		{"postal item with a wrong check digit", "]C0", "RB473124828GB", "s10", "", "LBL_CHECKDIGIT@10"},
		{"SSCC with a wrong check digit", "]C1", "00006141411234567891", "gs1", "", "LBL_CHECKDIGIT@19"},
		{"read cut off", "]d2", "01095060001343", "gs1", "", "LBL_LENGTH@2"},
		{"separator lost after the lot", "]d2", "010950600013435210ABC12317271231000000000000", "gs1",
			"gtin:09506000134352", "LBL_LENGTH@38"},
		{"date that does not exist", "]d2", "0109506000134352" + "17270231", "gs1", "gtin:09506000134352", "LBL_DATE_ILLEGAL@18"},
		{"day 00 is the end of the month", "]d2", "0109506000134352" + "17270200", "gs1", "gtin:09506000134352", ""},
		{"unknown AI", "]d2", "0109506000134352" + "05XX" + GS + "21A", "gs1", "gtin:09506000134352 sgtin:09506000134352.A", "LBL_AI_UNKNOWN@16"},
		{"forbidden character", "]d2", "0109506000134352" + "10A B", "gs1", "gtin:09506000134352", "LBL_CHARSET@19"},
		{"the same element twice, different", "]d2", "0109506000134352" + "10A" + GS + "10B", "gs1", "gtin:09506000134352", "LBL_CONFLICT@22"},
		{"the same element twice, equal", "]d2", "0109506000134352" + "10A" + GS + "10A", "gs1", "gtin:09506000134352", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := Parse(c.aim, c.data, now)
			var ids, problems []string
			for _, id := range l.Identifiers {
				ids = append(ids, id.Scheme+":"+id.Value)
			}
			wantValid := true
			for _, p := range l.Problems {
				problems = append(problems, p.Code+"@"+itoa(p.Position))
				wantValid = wantValid && p.Severity != "error"
			}
			if got := strings.Join(ids, " "); got != c.ids {
				t.Errorf("identifiers %q, want %q", got, c.ids)
			}
			if got := strings.Join(problems, " "); got != c.problems {
				t.Errorf("problems %q, want %q (%v)", got, c.problems, l.Problems)
			}
			if l.Scheme != c.scheme || l.Valid != wantValid {
				t.Errorf("scheme %q valid %v, want %q %v", l.Scheme, l.Valid, c.scheme, wantValid)
			}
		})
	}
}

func itoa(n int) string {
	if n >= 10 {
		return itoa(n/10) + string(rune('0'+n%10))
	}
	return string(rune('0' + n))
}

// TestTable holds the AI table to what is known of it: the predefined-length AIs
// of General Specifications 7.8.5, and no AI that begins another.
func TestTable(t *testing.T) {
	if n := len(table()); n != 541 {
		t.Errorf("%d application identifiers, want 541", n)
	}
	lengths := map[string]int{"00": 20, "01": 16, "02": 16, "03": 16, "11": 8, "12": 8, "13": 8, "15": 8, "16": 8, "17": 8, "20": 4}
	for id, entry := range table() {
		for n := 2; n < len(id); n++ {
			if _, ok := table()[id[:n]]; ok {
				t.Errorf("AI %s begins with AI %s", id, id[:n])
			}
		}
		if !entry.fixed {
			continue
		}
		n := len(id)
		for _, c := range entry.parts {
			n += c.max
		}
		want, ok := lengths[id]
		switch {
		case ok:
		case strings.HasPrefix(id, "31"), strings.HasPrefix(id, "32"), strings.HasPrefix(id, "33"), strings.HasPrefix(id, "34"), strings.HasPrefix(id, "35"), strings.HasPrefix(id, "36"):
			want = 10
		case strings.HasPrefix(id, "41"):
			want = 16
		}
		if n != want {
			t.Errorf("AI %s has predefined length %d, want %d", id, n, want)
		}
	}
}

// TestCentury follows the sliding window of General Specifications 7.12.
func TestCentury(t *testing.T) {
	for in, want := range map[string]string{
		"271231": "2027-12-31", "260301": "2026-03-01", "760101": "2076-01-01", "770101": "1977-01-01", "991231": "1999-12-31", "280200": "2028-02-29",
	} {
		got, ok := Date(in, true, now)
		if !ok || got.Format(time.DateOnly) != want {
			t.Errorf("Date(%s) = %v %v, want %s", in, got, ok, want)
		}
	}
}

// FuzzParse holds Parse to its promises on any input: it never panics, and every
// position lies inside the data.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"]d201095060001343521727123110ABC123" + GS + "21SN1", "]C100006141411234567890", "RB473124829GB", "9506000134352", "]E39506000134352 12", "]d2\x1d\x1d01", "]d28003\xff\x00", "]I11", "]E4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, scan string) {
		aim, data := SplitAIM(scan)
		l := Parse(aim, data, now)
		for _, p := range l.Problems {
			if p.Position < 0 || p.Position > len(data) || p.Code == "" || p.Text == "" {
				t.Fatalf("problem %+v of %q", p, data)
			}
		}
		for _, e := range l.Elements {
			if data[e.Start:e.End] != e.Value {
				t.Fatalf("element %+v of %q", e, data)
			}
		}
		for _, id := range l.Identifiers {
			if id.Scheme == "gtin" && !keyOK(id.Value) {
				t.Fatalf("identifier %+v has a wrong check digit", id)
			}
		}
	})
}
