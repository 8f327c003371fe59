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

	"inspectd.org/inspectd/agent/lane"
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

// schemes that a list may name.
var schemes = map[lane.Scheme]bool{lane.SSCC: true, lane.GTIN: true, lane.SGTIN: true, lane.S10: true, lane.Belt: true}

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
	r := csv.NewReader(bytes.NewReader(b))
	r.Comment, r.FieldsPerRecord, r.TrimLeadingSpace = '#', 3, true
	rows, err := r.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("watchlist %s: %w", path, err)
	}
	if len(rows) == 0 || strings.Join(rows[0], ",") != "scheme,value,note" {
		return nil, fmt.Errorf("watchlist %s: the first line must read scheme,value,note", path)
	}
	w := &Watchlist{entries: map[string]Entry{}, SHA256: lane.Sum(b)}
	var mistakes []error
	for i, row := range rows[1:] {
		e := Entry{lane.Scheme(row[0]), row[1], row[2]}
		if !schemes[e.Scheme] || e.Value == "" {
			mistakes = append(mistakes, fmt.Errorf("watchlist %s: entry %d: %q %q: the scheme is one of sscc, gtin, sgtin, s10, belt, and the value is not empty", path, i+1, row[0], row[1]))
			continue
		}
		if e.Scheme == lane.GTIN && len(e.Value) < 14 {
			e.Value = strings.Repeat("0", 14-len(e.Value)) + e.Value
		}
		w.entries[lane.Identifier{Scheme: e.Scheme, Value: e.Value}.Key()] = e
	}
	if len(mistakes) > 0 {
		return nil, errors.Join(mistakes...)
	}
	return w, nil
}

// Len is the number of entries.
func (w *Watchlist) Len() int { return len(w.entries) }

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
