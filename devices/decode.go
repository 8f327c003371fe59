package devices

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/devices/label"
	"inspectd.org/inspectd/devices/spectrum"
)

// Message is what MQTT delivered.
type Message struct {
	Topic    string
	Payload  []byte
	QoS      byte
	Dup      bool
	Retained bool
	PacketID uint16
	Session  uint64    // number of the broker session it came in
	Received time.Time // with Go's monotonic reading
	Oversize *Oversize // set when the payload was too large to take in; Payload is its beginning

	// Ack sends the PUBACK. It may be lost with its connection; then the broker
	// delivers the message again.
	Ack func()
}

// Oversize describes a payload beyond what the session takes in.
type Oversize struct {
	Size   int64       // bytes it had
	SHA256 lane.Digest // of all of them
}

// Decoded is the outcome of decoding: an observation, or why there is none.
type Decoded struct {
	Device      string // empty when no device is configured for the topic
	Observation *lane.Observation
	Code        lane.Code // reason of refusal
	Reason      string
}

// RefuseError refuses a message with a code.
type RefuseError struct {
	Code   lane.Code
	Reason string
}

func (e *RefuseError) Error() string { return string(e.Code) + ": " + e.Reason }

func refuse(code lane.Code, format string, args ...any) error {
	return &RefuseError{code, fmt.Sprintf(format, args...)}
}

// builtAfter is a time before which no correct clock can be.
var builtAfter = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// decoder reads one message into o.
type decoder struct {
	m      *Message
	device Device
	fields map[string]string
	o      *lane.Observation
}

// Decode reads a message with the profile of its device. It is pure: the same
// message always gives the same observation, whatever the bytes.
func (r *Registry) Decode(m *Message) Decoded {
	id, fields, ok := r.Match(m.Topic)
	if !ok {
		return Decoded{Code: "MSG_UNKNOWN", Reason: "no device is configured for topic " + m.Topic}
	}
	d := &decoder{m: m, device: r.devices[id], fields: fields}
	err := d.run(r.Limit(id), id)
	var refusal *RefuseError
	if errors.As(err, &refusal) {
		return Decoded{Device: id, Code: refusal.Code, Reason: refusal.Reason}
	}
	if err != nil {
		return Decoded{Device: id, Code: "MSG_DECODE", Reason: err.Error()}
	}
	return Decoded{Device: id, Observation: d.o}
}

func (d *decoder) run(limit Size, id string) error {
	m := d.m
	switch {
	case m.Oversize != nil:
		return refuse("MSG_OVERSIZE", "%d bytes (SHA-256 %s), more than mqtt.connect.max_packet; %d bytes of it are kept", m.Oversize.Size, m.Oversize.SHA256, len(m.Payload))
	case len(m.Payload) == 0:
		return refuse("MSG_EMPTY", "no content")
	case int64(len(m.Payload)) > int64(limit):
		return refuse("MSG_OVERSIZE", "%d bytes, the device may send %s", len(m.Payload), limit)
	}
	d.o = &lane.Observation{
		Device: id, Kind: d.device.Kind(), Topic: m.Topic, QoS: m.QoS, Authentic: "no",
		Item: d.fields["item"], Capture: d.fields["capture"], MessageID: d.fields["id"],
		Received: m.Received.UTC().Round(0), Clock: lane.ClockUnsynced,
		Evidence: []lane.Evidence{{SHA256: lane.Sum(m.Payload), MediaType: "application/octet-stream", Size: int64(len(m.Payload)), Role: "original"}},
	}
	if m.Received.Before(builtAfter) {
		d.o.Clock = lane.ClockInsane
		d.note("CUS_CLOCK", "this machine's clock shows "+m.Received.UTC().Format(time.DateOnly))
	}
	if m.QoS == 0 {
		d.note("CUS_NO_QOS", "sent with QoS 0: nobody notices when such a message is lost")
	}
	if err := profiles[d.device.Profile].decode(d); err != nil {
		return err
	}
	for name, v := range map[string]string{"id": d.o.MessageID, "item": d.o.Item, "capture": d.o.Capture} {
		if len(v) > maxName {
			return refuse("MSG_DECODE", "the %s is %d bytes long, at most %d make sense", name, len(v), maxName)
		}
	}
	d.itemIdentifier()
	return nil
}

// maxName bounds what devices call messages and items: names become keys.
const maxName = 256

func (d *decoder) note(code lane.Code, text string) {
	d.o.Notes = append(d.o.Notes, lane.Problem{Code: code, Severity: "warning", Text: text})
}

// mediaType names the kind of bytes that the payload is.
func (d *decoder) mediaType(t string) { d.o.Evidence[0].MediaType = t }

// itemIdentifier makes the item that the device names an identifier: a parcel
// number when it is one, else the lane's own item id.
func (d *decoder) itemIdentifier() {
	if d.o.Item == "" {
		return
	}
	id := lane.Identifier{Scheme: lane.Belt, Value: d.o.Item}
	for _, found := range label.Parse("", d.o.Item, d.m.Received).Identifiers {
		if s := lane.Scheme(found.Scheme); s.Unique() {
			id = lane.Identifier{Scheme: s, Value: found.Value, Raw: found.Raw}
		}
	}
	d.o.Identifiers = append(d.o.Identifiers, id)
}

// deviceTime reads the device's own time. A clock that cannot be right is noted;
// what it said is kept.
func (d *decoder) deviceTime(text string) error {
	if text == "" {
		return nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return refuse("MSG_DECODE", "time %.40q is not in the form 2026-03-01T10:00:04Z", text)
	}
	t = t.UTC()
	if t.Year() < 1 || t.Year() > 9999 { // in UTC it leaves what RFC 3339 can say
		return refuse("MSG_DECODE", "time %.40q is in no year a clock can show", text)
	}
	d.o.Observed = &t
	if d.o.Clock != lane.ClockInsane && (t.Before(builtAfter) || t.After(d.m.Received.Add(24*time.Hour))) {
		d.note("CUS_CLOCK", "the device's clock shows "+t.Format(time.DateTime)+" UTC")
	}
	return nil
}

// parseJSON reads exactly one JSON document.
func parseJSON(payload []byte, v any) error {
	if !utf8.Valid(payload) {
		return refuse("MSG_DECODE", "the text is not UTF-8")
	}
	if err := json.Unmarshal(payload, v); err != nil {
		var syntax *json.SyntaxError
		var kind *json.UnmarshalTypeError
		switch {
		case errors.As(err, &syntax):
			return refuse("MSG_DECODE", "not JSON: byte %d: %v", syntax.Offset, syntax)
		case errors.As(err, &kind):
			return refuse("MSG_DECODE", "field %q holds a JSON %s, expected %s", kind.Field, kind.Value, kind.Type)
		}
		return refuse("MSG_DECODE", "%v", err)
	}
	return nil
}

func (d *decoder) labelText() error {
	d.mediaType("text/plain")
	if !utf8.Valid(d.m.Payload) {
		return refuse("MSG_DECODE", "the text is not UTF-8")
	}
	// Scanners end a read with CR, LF or both.
	aim, data := label.SplitAIM(strings.TrimRight(string(d.m.Payload), "\r\n"))
	if data == "" {
		return refuse("MSG_EMPTY", "the scan holds no characters")
	}
	d.label(aim, data)
	return nil
}

type labelRecord struct {
	ID         string `json:"id"`
	Time       string `json:"time"`
	Item       string `json:"item"`
	AIM        string `json:"aim"`
	Data       string `json:"data"`
	DataBase64 string `json:"data_base64"`
}

func (d *decoder) labelJSON() error {
	d.mediaType("application/json")
	var rec labelRecord
	if err := parseJSON(d.m.Payload, &rec); err != nil {
		return err
	}
	data := rec.Data
	if rec.DataBase64 != "" {
		b, err := base64.StdEncoding.DecodeString(rec.DataBase64)
		if err != nil {
			return refuse("MSG_DECODE", "data_base64: %v", err)
		}
		if !utf8.Valid(b) {
			return refuse("MSG_DECODE", "data_base64 holds text that is not UTF-8")
		}
		data = string(b)
	}
	if data == "" {
		return refuse("MSG_EMPTY", "the record holds neither data nor data_base64")
	}
	if err := d.common(rec.ID, rec.Time, rec.Item); err != nil {
		return err
	}
	aim := rec.AIM
	if aim == "" {
		aim, data = label.SplitAIM(data)
	}
	d.label(aim, data)
	return nil
}

// common takes over the fields that every record has.
func (d *decoder) common(id, deviceTime, item string) error {
	if id != "" {
		d.o.MessageID = id
	}
	if item != "" {
		d.o.Item = item
	}
	return d.deviceTime(deviceTime)
}

func (d *decoder) label(aim, data string) {
	l := label.Parse(aim, data, d.m.Received)
	read := &lane.LabelRead{AIM: l.AIM, Data: data, Scheme: l.Scheme}
	for _, p := range l.Problems {
		read.Problems = append(read.Problems, lane.Problem{Code: lane.Code(p.Code), Severity: p.Severity, Element: p.Element, Position: p.Position, Text: p.Text})
	}
	for _, id := range l.Identifiers {
		d.o.Identifiers = append(d.o.Identifiers, lane.Identifier{Scheme: lane.Scheme(id.Scheme), Value: id.Value, Raw: id.Raw})
	}
	d.o.Label = read
}

type forensicRecord struct {
	ID        string `json:"id"`
	Time      string `json:"time"`
	Item      string `json:"item"`
	Technique string `json:"technique"`
	Device    struct {
		Make        string           `json:"make"`
		Model       string           `json:"model"`
		Serial      string           `json:"serial"`
		Calibration lane.Calibration `json:"calibration"`
	} `json:"device"`
	Method struct {
		ID      string `json:"id"`
		Version string `json:"version"`
	} `json:"method"`
	Result struct {
		Verdict   string   `json:"verdict"`
		Score     *score   `json:"score"`
		Threshold *float64 `json:"threshold"`
		Hits      []struct {
			Name string `json:"name"`
		} `json:"hits"`
	} `json:"result"`
	Spectrum struct {
		JCAMP string `json:"jcamp"`
	} `json:"spectrum"`
}

type score struct {
	Value  *float64 `json:"value"`
	Metric string   `json:"metric"`
	Scale  float64  `json:"scale"`
	Better string   `json:"better"`
}

func (d *decoder) forensicJSON() error {
	d.mediaType("application/json")
	var rec forensicRecord
	if err := parseJSON(d.m.Payload, &rec); err != nil {
		return err
	}
	if err := d.common(rec.ID, rec.Time, rec.Item); err != nil {
		return err
	}
	switch rec.Result.Verdict {
	case "pass", "fail", "inconclusive", "":
	default:
		return refuse("MSG_DECODE", "result.verdict is %.40q, expected pass, fail or inconclusive", rec.Result.Verdict)
	}
	t := &lane.TestResult{
		Technique:   rec.Technique,
		Instrument:  strings.Join(strings.Fields(rec.Device.Make+" "+rec.Device.Model+" "+rec.Device.Serial), " "),
		Calibration: rec.Device.Calibration,
		Method:      strings.TrimSpace(rec.Method.ID + " " + rec.Method.Version),
		Verdict:     rec.Result.Verdict, Threshold: rec.Result.Threshold,
	}
	if s := rec.Result.Score; s != nil && s.Value != nil {
		t.Score = &lane.Score{Value: *s.Value, Metric: s.Metric, Scale: s.Scale, Better: s.Better}
	}
	if len(rec.Result.Hits) > 0 {
		t.BestHit = rec.Result.Hits[0].Name
	}
	if rec.Spectrum.JCAMP != "" {
		// A spectrum that cannot be read does not void the verdict beside it.
		sum, err := summarise([]byte(rec.Spectrum.JCAMP))
		if err != nil {
			d.note("MSG_DECODE", "spectrum.jcamp: "+err.Error())
		}
		t.Spectrum = sum
	}
	d.o.Test = t
	return nil
}

func (d *decoder) forensicJCAMP() error {
	d.mediaType("chemical/x-jcamp-dx")
	sum, err := summarise(d.m.Payload)
	if err != nil {
		return refuse("MSG_DECODE", "%v", err)
	}
	d.o.Test = &lane.TestResult{Spectrum: sum}
	return nil
}

func summarise(data []byte) (*lane.Spectrum, error) {
	s, err := spectrum.Read(data)
	if err != nil {
		return nil, err
	}
	n := len(s.X)
	return &lane.Spectrum{Title: s.Title, XUnits: s.XUnits, YUnits: s.YUnits, Points: n,
		FirstX: s.X[0], LastX: s.X[n-1], Warnings: s.Warnings}, nil
}
