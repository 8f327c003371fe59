package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"time"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/queue"
)

// view is everything the page shows.
type view struct {
	Status     *Status
	Items      []row
	Item       *detail
	Quarantine []*queue.Quarantine
	Orphans    []*lane.Observation
}

// row is an inspection in the list.
type row struct {
	ID, Title, Time string
	Badge           badge
	Findings        int
	Selected        bool
}

// badge tells a recommendation by word, sign and colour.
type badge struct{ Class, Sign, Word string }

// detail is the inspection that is looked at.
type detail struct {
	*Item
	Title    string
	Badge    badge
	Pictures []picture
}

// picture is an image of the item, or one that explains a finding.
type picture struct {
	SHA256 lane.Digest
	Title  string
}

var words = map[lane.Recommendation]badge{
	"none":           {"ok", "✓", "Nothing found"},
	"document_check": {"look", "!", "Check documents"},
	"rescan":         {"look", "↻", "Scan again"},
	"retest":         {"look", "↻", "Test again"},
	"open_inspect":   {"stop", "▲", "Open and inspect"},
	"lab_sample":     {"stop", "▲", "Take a laboratory sample"},
}

func badgeOf(it *Item) badge {
	switch {
	case it.Report == nil && len(it.Inspection.Raised) > 0:
		return badge{"stop", "▲", "Finding"}
	case it.Report == nil:
		return badge{"open", "…", "In progress"}
	}
	if b, ok := words[it.Report.Recommendation]; ok {
		return b
	}
	return badge{"stop", "▲", strings.ReplaceAll(string(it.Report.Recommendation), "_", " ")}
}

// title is what people call an item: its parcel number, else its product, else its
// id.
func title(in *lane.Inspection) string {
	for _, s := range []lane.Scheme{lane.S10, lane.SSCC, lane.Belt, lane.GTIN} {
		for _, id := range in.Identifiers {
			if id.Scheme == s {
				return strings.ToUpper(string(s)) + " " + id.Value
			}
		}
	}
	return in.ID[:8]
}

var funcs = template.FuncMap{
	"clock":   func(t time.Time) string { return t.Local().Format("15:04:05") },
	"upper":   func(v any) string { return strings.ToUpper(fmt.Sprint(v)) },
	"short":   func(d lane.Digest) string { return string(d[:min(8, len(d))]) },
	"mib":     func(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) },
	"gib":     func(n int64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) },
	"join":    func(v []string) string { return strings.Join(v, ", ") },
	"meaning": func(c lane.Code) string { return lane.Codes[c].Text },
	"cure":    func(c lane.Code) string { return lane.Codes[c].Cure },
	"value":   func(v float64) string { return fmt.Sprintf("%.4g", v) },
	"limit":   func(v *float64) string { return fmt.Sprintf("%.4g", *v) },
}

func (s *Server) view(selected string) (*view, error) {
	st, err := s.opts.Status()
	if err != nil {
		return nil, err
	}
	v := &view{Status: st}
	items, err := s.items()
	if err != nil {
		return nil, err
	}
	for _, it := range items.Items {
		if selected == "" {
			selected = it.Inspection.ID
		}
		in := it.Inspection
		v.Items = append(v.Items, row{ID: in.ID, Title: title(in), Time: in.Opened.Local().Format("15:04:05"),
			Badge: badgeOf(it), Findings: len(in.Raised), Selected: in.ID == selected})
		if in.ID == selected {
			v.Item = newDetail(it)
		}
	}
	if v.Item == nil && selected != "" {
		if in, err := s.opts.Store.Inspection(selected); err == nil {
			it, err := s.item(in)
			if err != nil {
				return nil, err
			}
			v.Item = newDetail(it)
		}
	}
	if v.Quarantine, err = s.opts.Store.Quarantined(5); err != nil {
		return nil, err
	}
	v.Orphans, err = s.opts.Store.Orphans(5)
	return v, err
}

func newDetail(it *Item) *detail {
	d := &detail{Item: it, Title: title(it.Inspection), Badge: badgeOf(it)}
	if it.Report == nil {
		return d
	}
	add := func(sha lane.Digest, text string) {
		if !slices.ContainsFunc(d.Pictures, func(p picture) bool { return p.SHA256 == sha }) {
			d.Pictures = append(d.Pictures, picture{sha, text})
		}
	}
	// What explains a finding comes before what was merely taken.
	for _, f := range it.Report.Findings {
		if strings.HasPrefix(f.Check, "vision/") && len(f.Evidence) > 1 {
			add(f.Evidence[1], "Camera, what differs is marked")
		}
	}
	for _, o := range it.Report.Observations {
		for _, e := range o.Evidence {
			if strings.HasPrefix(e.MediaType, "image/") {
				add(e.SHA256, o.Device)
			}
		}
	}
	return d
}

func (s *Server) servePage(w http.ResponseWriter, r *http.Request) {
	v, err := s.view(r.URL.Query().Get("item"))
	var b bytes.Buffer
	if err == nil {
		err = s.page.Execute(&b, v)
	}
	if err != nil {
		s.opts.Log.Error().Err(err).Msg("the page cannot be drawn")
		http.Error(w, "The page cannot be drawn: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(b.Bytes()) //nolint:errcheck // a reader who went away needs no answer
}

// fragments are the parts of the page that change, by the id of their element. The
// same templates draw the page and its updates.
var fragments = []string{"top", "items", "item", "side"}

// refresh is how often a page is redrawn at most, and the pace of pings.
const (
	refresh = 300 * time.Millisecond
	ping    = 10 * time.Second
)

// serveEvents sends the changing parts of the page whenever something was stored,
// and every few seconds in any case, so that the page knows its age.
func (s *Server) serveEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	rc := http.NewResponseController(w)
	last := map[string]string{}
	for {
		changed := s.opts.Store.Changed()
		if err := s.sendChanges(w, rc, r.URL.Query().Get("item"), last); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-time.After(refresh):
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		case <-time.After(ping - refresh):
		}
	}
}

func (s *Server) sendChanges(w http.ResponseWriter, rc *http.ResponseController, item string, last map[string]string) error {
	v, err := s.view(item)
	if err != nil {
		return err
	}
	parts := map[string]string{}
	for _, name := range fragments {
		var b bytes.Buffer
		if err := s.page.ExecuteTemplate(&b, name, v); err != nil {
			return err
		}
		if last[name] != b.String() {
			last[name], parts[name] = b.String(), b.String()
		}
	}
	data, err := json.Marshal(parts)
	if err != nil {
		return err
	}
	// A reader that does not keep up is cut off; it comes back by itself.
	if err := rc.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "event: parts\ndata: %s\n\n", data); err != nil {
		return err
	}
	return rc.Flush()
}
