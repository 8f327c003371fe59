// Package risk applies what headquarters wants looked for: for now the watchlist
// of identifiers.
package risk

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/devices/label"
)

// Entry is one listed identifier.
type Entry struct {
	Scheme lane.Scheme
	Value  string
	Note   string // what the officer is to do
}

// Watchlist is the identifiers that headquarters lists. It is never changed, only
// replaced.
type Watchlist struct {
	entries map[string]Entry
	SHA256  lane.Digest
}

// normal brings a listed value into the form in which labels are read, or says why
// it can never be met.
func normal(scheme lane.Scheme, value string) (string, error) {
	value = strings.ToUpper(strings.ReplaceAll(strings.TrimSpace(value), " ", ""))
	switch scheme {
	case lane.GTIN:
		return key("gtin", value)
	case lane.SSCC:
		if len(value) == 20 {
			value = strings.TrimPrefix(value, "00") // with its application identifier
		}
		return key("sscc", value)
	case lane.S10:
		return key("s10", value)
	}
	return "", fmt.Errorf("the scheme is one of sscc, gtin, sgtin, s10, belt")
}

// key reads a value as a label of the scheme, check digit included.
func key(scheme, value string) (string, error) {
	for _, id := range label.Parse("", value, time.Time{}).Identifiers {
		if id.Scheme == scheme {
			return id.Value, nil
		}
	}
	return "", fmt.Errorf("it is no %s with a right check digit", strings.ToUpper(scheme))
}

// entry reads one row. The serial of an SGTIN and the lane's own item ids are taken
// as they stand: their case counts.
func entry(row []string) (Entry, error) {
	e := Entry{Scheme: lane.Scheme(strings.ToLower(strings.TrimSpace(row[0]))), Value: strings.TrimSpace(row[1]), Note: row[2]}
	var err error
	switch e.Scheme {
	case lane.Belt:
		if e.Value == "" {
			err = errors.New("the value is empty")
		}
	case lane.SGTIN:
		gtin, serial, ok := strings.Cut(e.Value, ".")
		if gtin, err = normal(lane.GTIN, gtin); err == nil && (!ok || serial == "") {
			err = errors.New("write GTIN, a dot and the serial number")
		}
		e.Value = gtin + "." + serial
	default:
		e.Value, err = normal(e.Scheme, e.Value)
	}
	return e, err
}

// Load reads a watchlist: CSV with the columns scheme, value and note, the first
// line naming them, lines that begin with # left out. A missing file is no error
// and no list (nil). A list with a mistake is refused whole, with every mistake
// named: half a list would be taken for the whole.
func Load(path string) (*Watchlist, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(b, []byte("\xef\xbb\xbf")))) // spreadsheets mark UTF-8
	r.Comment, r.FieldsPerRecord, r.TrimLeadingSpace = '#', 3, true
	rows, err := r.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("watchlist %s: %w; each line holds scheme,value,note, separated by commas", path, err)
	}
	if len(rows) == 0 || strings.Join(rows[0], ",") != "scheme,value,note" {
		return nil, fmt.Errorf("watchlist %s: the first line must read scheme,value,note, separated by commas", path)
	}
	w := &Watchlist{entries: map[string]Entry{}, SHA256: lane.Sum(b)}
	var mistakes []error
	for i, row := range rows[1:] {
		e, err := entry(row)
		if err != nil {
			mistakes = append(mistakes, fmt.Errorf("watchlist %s: entry %d: %s %q: %w", path, i+1, row[0], row[1], err))
			continue
		}
		w.entries[lane.Identifier{Scheme: e.Scheme, Value: e.Value}.Key()] = e
	}
	if len(mistakes) > 0 {
		return nil, errors.Join(mistakes...)
	}
	return w, nil
}

// Len is the number of entries; 0 for no list.
func (w *Watchlist) Len() int {
	if w == nil {
		return 0
	}
	return len(w.entries)
}

// Match returns the entries that the identifiers hit, in the identifiers' order.
func (w *Watchlist) Match(ids []lane.Identifier) []Entry {
	var hits []Entry
	for _, id := range ids {
		if e, ok := w.entries[id.Key()]; ok {
			hits = append(hits, e)
		}
	}
	return hits
}
