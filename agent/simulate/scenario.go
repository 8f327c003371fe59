package simulate

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/devices"
	"inspectd.org/inspectd/devices/label"
	"inspectd.org/inspectd/testdata"
	"inspectd.org/inspectd/vision/artwork"
)

// Scenario is a story of one item: what devices send, and the reports it must end
// in.
type Scenario struct {
	Name        string     `yaml:"-"`
	Title       string     `yaml:"title"`
	Steps       []Step     `yaml:"steps"`
	Expect      []Expected `yaml:"expect"`
	Quarantined int        `yaml:"quarantined"` // messages of it that must be refused
}

// Step is one message of a device, or a wait. In text and json these stand for
// values of the run: {run}, {s10}, {belt}, {serial}, {gs}.
type Step struct {
	Device string         `yaml:"device"`
	Item   string         `yaml:"item"` // fills {item} of the device's topic
	Text   string         `yaml:"text"`
	JSON   map[string]any `yaml:"json"`
	Photo  *Photo         `yaml:"photo"`
	XRay   *XRay          `yaml:"xray"`
	// WaitReport waits until headquarters has this revision of the item's report.
	WaitReport int `yaml:"wait_report"`
}

// Photo is a photograph of a pack.
type Photo struct {
	Product string         `yaml:"product"`
	Tamper  artwork.Tamper `yaml:"tamper"`
	Keep    float64        `yaml:"keep"` // share of the file that arrives; 0 means all
}

// XRay is an X-ray image of a parcel.
type XRay struct {
	Filled int `yaml:"filled"` // cells of 15 that hold a tablet
}

// Expected is a report that must come. Findings are compared as a set.
type Expected struct {
	Revision       int                 `yaml:"revision"`
	Recommendation lane.Recommendation `yaml:"recommendation"`
	Findings       []ExpectedFinding   `yaml:"findings"`
}

// ExpectedFinding is a finding by its check and one of its codes.
type ExpectedFinding struct {
	Check string    `yaml:"check"`
	Code  lane.Code `yaml:"code"`
}

// Scenarios reads all scenarios, by name.
func Scenarios() ([]*Scenario, error) {
	files, err := fs.Glob(testdata.Files, "scenarios/*.yaml")
	if err != nil {
		return nil, err
	}
	var list []*Scenario
	for _, f := range files {
		b, err := fs.ReadFile(testdata.Files, f)
		if err != nil {
			return nil, err
		}
		s := &Scenario{Name: strings.TrimSuffix(path.Base(f), ".yaml")}
		if err := yaml.Load(b, s, yaml.WithKnownFields()); err != nil {
			return nil, fmt.Errorf("scenario %s: %w", s.Name, err)
		}
		list = append(list, s)
	}
	return list, nil
}

// Run is one playing of a scenario: its number makes the item's identifiers and
// pictures its own.
type Run struct {
	Number uint64
	values *strings.Replacer
	s10    string
}

// NewRun makes the values of run number n.
func NewRun(n uint64) *Run {
	serial := fmt.Sprintf("%08d", n%100_000_000)
	s10 := "RB" + serial + string(label.S10CheckDigit(serial)) + "GB"
	return &Run{Number: n, s10: s10, values: strings.NewReplacer("{run}", fmt.Sprintf("run-%d", n), "{s10}", s10,
		"{belt}", fmt.Sprintf("belt-%d", n), "{serial}", fmt.Sprintf("SN%010d", n*7919%10_000_000_000), "{gs}", label.GS)}
}

// Item is the parcel number of the run's item.
func (r *Run) Item() string { return r.s10 }

// Play sends the messages of a scenario, each acknowledged by the broker before
// the next, and returns when the last one is.
func (l *Lane) Play(ctx context.Context, s *Scenario, run *Run) error {
	for i, step := range s.Steps {
		if err := l.step(ctx, step, run); err != nil {
			return fmt.Errorf("scenario %s, step %d: %w", s.Name, i+1, err)
		}
	}
	return nil
}

func (l *Lane) step(ctx context.Context, step Step, run *Run) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if step.WaitReport > 0 {
		return l.HQ.Wait(ctx, "the report of "+run.Item(), func() bool { return l.HQ.Report(run.Item(), step.WaitReport) != nil })
	}
	payload, err := step.payload(run)
	if err != nil {
		return err
	}
	topic := strings.ReplaceAll(Devices()[step.Device].Topic, "{item}", run.values.Replace(step.Item))
	p, err := l.publisher(step.Device)
	if err != nil {
		return err
	}
	return p.Publish(topic, payload)
}

func (s Step) payload(run *Run) ([]byte, error) {
	switch {
	case s.JSON != nil:
		b, err := json.Marshal(replaced(s.JSON, run))
		return b, err
	case s.Photo != nil:
		product, ok := artwork.Find(s.Photo.Product)
		if !ok {
			return nil, fmt.Errorf("there is no product %q", s.Photo.Product)
		}
		b := artwork.JPEG(artwork.Photograph(product.Draw(s.Photo.Tamper), run.Number))
		if s.Photo.Keep > 0 {
			b = b[:int(float64(len(b))*s.Photo.Keep)]
		}
		return b, nil
	case s.XRay != nil:
		return artwork.PNG(artwork.XRay(s.XRay.Filled, run.Number)), nil
	}
	return []byte(run.values.Replace(s.Text)), nil
}

// replaced fills the values of a run into every string of a JSON document.
func replaced(v any, run *Run) any {
	switch v := v.(type) {
	case string:
		return run.values.Replace(v)
	case map[string]any:
		out := map[string]any{}
		for k, x := range v {
			out[k] = replaced(x, run)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = replaced(x, run)
		}
		return out
	}
	return v
}

// Check waits for the reports that a scenario must end in and compares them.
func (l *Lane) Check(ctx context.Context, s *Scenario, run *Run) error {
	for _, want := range s.Expect {
		var r *lane.Report
		err := l.HQ.Wait(ctx, fmt.Sprintf("revision %d of the report of %s", want.Revision, run.Item()), func() bool {
			r = l.HQ.Report(run.Item(), want.Revision)
			return r != nil
		})
		if err != nil {
			return fmt.Errorf("scenario %s: %w", s.Name, err)
		}
		if err := want.compare(r); err != nil {
			return fmt.Errorf("scenario %s, revision %d: %w", s.Name, want.Revision, err)
		}
	}
	return l.HQ.Err()
}

func (want Expected) compare(r *lane.Report) error {
	if r.Recommendation != want.Recommendation {
		return fmt.Errorf("recommends %s, expected %s; reasons: %+v", r.Recommendation, want.Recommendation, r.Reasons)
	}
	for _, f := range r.Findings {
		if !slices.ContainsFunc(want.Findings, func(w ExpectedFinding) bool { return w.Check == f.Check && slices.Contains(f.Codes, w.Code) }) {
			return fmt.Errorf("unexpected finding %s %v: %s", f.Check, f.Codes, f.Text)
		}
	}
	for _, w := range want.Findings {
		if !slices.ContainsFunc(r.Findings, func(f lane.Finding) bool { return w.Check == f.Check && slices.Contains(f.Codes, w.Code) }) {
			return fmt.Errorf("finding %s %s is missing", w.Check, w.Code)
		}
	}
	return nil
}

// Devices are the devices of the simulated lane.
func Devices() map[string]devices.Device {
	return map[string]devices.Device{
		"scan-in":   {Profile: "label/text", Name: "Scanner at the infeed", Topic: "lane/01/scan-in/data"},
		"xray-1":    {Profile: "xray/image", Name: "X-ray tunnel", Topic: "lane/01/xray-1/{item}"},
		"cam-pack":  {Profile: "camera/image", Name: "Packaging camera", Topic: "lane/01/cam-pack/{item}"},
		"scan-pack": {Profile: "label/json", Name: "Scanner for packs", Topic: "lane/01/scan-pack/result"},
		"raman-1":   {Profile: "forensic/json", Name: "Raman handheld", Topic: "lane/01/raman-1/result", Availability: "on-demand"},
		"scan-out":  {Profile: "label/text", Name: "Scanner at the outfeed", Topic: "lane/01/scan-out/data"},
	}
}
