package devices

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"reflect"
	"strings"
	"testing"
	"time"

	"inspectd.org/inspectd/agent/lane"
)

var configured = map[string]Device{
	"scan":   {Profile: "label/text", Topic: "lane/scan/data"},
	"scan-j": {Profile: "label/json", Topic: "lane/scan-j/data"},
	"cam":    {Profile: "camera/image", Topic: "lane/cam/{item}/{capture}"},
	"xray":   {Profile: "xray/image", Topic: "lane/xray/{item}/{plane}", Limits: Limits{MaxMessage: 1 << 20}},
	"raman":  {Profile: "forensic/json", Topic: "lane/raman/data", Availability: "on-demand"},
	"ftir":   {Profile: "forensic/jcamp", Topic: "lane/ftir/{item}"},
}

func registry(t testing.TB) *Registry {
	r, problems := NewRegistry(configured)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return r
}

var arrived = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

func message(topic string, payload []byte) *Message {
	return &Message{Topic: topic, Payload: payload, QoS: 1, PacketID: 1, Received: arrived}
}

func pngFile(t testing.TB, img image.Image) []byte {
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func grey16() *image.Gray16 {
	img := image.NewGray16(image.Rect(0, 0, 40, 30))
	for i := range 1200 {
		img.SetGray16(i%40, i/40, color.Gray16{Y: uint16(i * 50)})
	}
	return img
}

func jpegFile(t testing.TB) []byte {
	var b bytes.Buffer
	if err := jpeg.Encode(&b, grey16(), nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// header is a PNG that claims a size and ends.
func header(w, h uint32) []byte {
	chunk := append([]byte("IHDR"), binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, w), h)...)
	chunk = append(chunk, 8, 2, 0, 0, 0)
	b := append(bytes.Clone(pngMagic), 0, 0, 0, 13)
	b = append(b, chunk...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(chunk))
}

// TestDecode reads one message of each profile.
func TestDecode(t *testing.T) {
	r := registry(t)
	read := func(topic string, payload []byte) *lane.Observation {
		t.Helper()
		d := r.Decode(message(topic, payload))
		if d.Observation == nil {
			t.Fatalf("%s: %s %s", topic, d.Code, d.Reason)
		}
		if e := d.Observation.Evidence[0]; e.SHA256 != lane.Sum(payload) || e.Size != int64(len(payload)) {
			t.Errorf("%s: evidence %+v", topic, e)
		}
		return d.Observation
	}
	o := read("lane/scan/data", []byte("]C0RB473124829GB\r\n"))
	if o.Label.AIM != "]C0" || o.Label.Data != "RB473124829GB" || o.Identifiers[0].Key() != "s10:RB473124829GB" || o.Kind != lane.Label {
		t.Errorf("%+v", o)
	}
	o = read("lane/scan-j/data", []byte(`{"id":"S1-000123","time":"2026-11-23T09:59:59.5Z","item":"belt-88","aim":"]d2","data":"010950600013435221A"}`))
	if o.MessageID != "S1-000123" || o.Observed.Nanosecond() != 5e8 || len(o.Identifiers) != 3 || o.Identifiers[2].Key() != "belt:belt-88" {
		t.Errorf("%+v", o)
	}
	o = read("lane/scan-j/data", []byte(`{"data_base64":"XUMxMDAwMDYxNDE0MTEyMzQ1Njc4OTA="}`)) // ]C1 and an SSCC
	if o.Label.AIM != "]C1" || o.Identifiers[0].Scheme != lane.SSCC {
		t.Errorf("%+v", o)
	}
	o = read("lane/cam/RB473124829GB/7", jpegFile(t))
	if o.Image.Width != 40 || o.Image.Damage != "" || o.Capture != "7" || o.Identifiers[0].Key() != "s10:RB473124829GB" || !o.Image.Lossy {
		t.Errorf("%+v %+v", o, o.Image)
	}
	o = read("lane/xray/belt-1/he", pngFile(t, grey16()))
	if o.Image.Depth != 16 || o.Image.Plane != "he" || o.Evidence[0].MediaType != "image/png" {
		t.Errorf("%+v", o.Image)
	}
	o = read("lane/raman/data", []byte(`{"id":"R7-55","item":"RB473124829GB","technique":"raman","device":{"make":"M","model":"R7","calibration":{"status":"valid"}},
		"result":{"verdict":"fail","score":{"value":0.41,"metric":"hqi","scale":1,"better":"higher"},"threshold":0.95,"hits":[{"name":"starch","score":0.9}]},
		"spectrum":{"jcamp":"##TITLE=x\n##FIRSTX=1\n##LASTX=3\n##XYDATA=(X++(Y..Y))\n1 5 6 7\n##END="}}`))
	if o.Test.Verdict != "fail" || *o.Test.Threshold != 0.95 || o.Test.BestHit != "starch" || o.Test.Spectrum.Points != 3 || o.Test.Instrument != "M R7" {
		t.Errorf("%+v", o.Test)
	}
	o = read("lane/ftir/belt-1", []byte("##TITLE=x\n##XYPOINTS=(XY..XY)\n1,2 3,4\n##END="))
	if o.Test.Verdict != "" || o.Test.Spectrum.Points != 2 {
		t.Errorf("%+v", o.Test)
	}
}

// TestRefused: bad input is refused with a code and a reason; nothing panics.
func TestRefused(t *testing.T) {
	r := registry(t)
	for _, c := range []struct {
		name, topic string
		payload     []byte
		code        lane.Code
		reason      string
	}{
		{"unknown topic", "lane/nobody", []byte("x"), "MSG_UNKNOWN", "lane/nobody"},
		{"nothing", "lane/scan/data", nil, "MSG_EMPTY", ""},
		{"only a line end", "lane/scan/data", []byte("\r\n"), "MSG_EMPTY", ""},
		{"label of 17 KiB", "lane/scan/data", bytes.Repeat([]byte("x"), 17<<10), "MSG_OVERSIZE", "16KiB"},
		{"beyond the device's own limit", "lane/xray/a/b", make([]byte, 1<<20+1), "MSG_OVERSIZE", "1MiB"},
		{"label in no UTF-8", "lane/scan/data", []byte("\xff\xfe"), "MSG_DECODE", "UTF-8"},
		{"JSON in no UTF-8", "lane/scan-j/data", []byte("{\"data\":\"\xff\"}"), "MSG_DECODE", "UTF-8"},
		{"no JSON", "lane/scan-j/data", []byte("{"), "MSG_DECODE", "byte"},
		{"wrong type", "lane/scan-j/data", []byte(`{"id":7}`), "MSG_DECODE", `"id"`},
		{"no object", "lane/scan-j/data", []byte(`[1]`), "MSG_DECODE", "array"},
		{"no data", "lane/scan-j/data", []byte(`{"id":"1"}`), "MSG_EMPTY", "data"},
		{"no time", "lane/scan-j/data", []byte(`{"data":"x","time":"yesterday"}`), "MSG_DECODE", "yesterday"},
		{"a time that leaves its year in UTC", "lane/scan-j/data", []byte(`{"data":"x","time":"9999-12-31T23:59:59-12:00"}`), "MSG_DECODE", "no year"},
		{"a time before the first year", "lane/scan-j/data", []byte(`{"data":"x","time":"0000-01-01T00:00:00+12:00"}`), "MSG_DECODE", "no year"},
		{"bad base64", "lane/scan-j/data", []byte(`{"data_base64":"?"}`), "MSG_DECODE", "base64"},
		{"a page for a picture", "lane/cam/a/b", []byte("<html>"), "MSG_DECODE", "neither PNG nor JPEG"},
		{"verdict of no kind", "lane/raman/data", []byte(`{"result":{"verdict":"maybe"}}`), "MSG_DECODE", "maybe"},
		{"deep JSON", "lane/raman/data", []byte(strings.Repeat(`{"a":`, 20000)), "MSG_DECODE", ""},
		{"id of 40 KiB", "lane/scan-j/data", []byte(`{"data":"x","id":"` + strings.Repeat("x", 40<<10) + `"}`), "MSG_DECODE", "40960"},
		{"item of a long topic", "lane/cam/" + strings.Repeat("x", 40<<10) + "/1", jpegFile(t), "MSG_DECODE", "item"},
		{"no spectrum", "lane/ftir/a", []byte("hello"), "MSG_DECODE", "JCAMP"},
	} {
		d := r.Decode(message(c.topic, c.payload))
		if d.Observation != nil || d.Code != c.code || !strings.Contains(d.Reason, c.reason) {
			t.Errorf("%s: %+v", c.name, d)
		}
	}
	m := message("lane/cam/a/b", []byte("head"))
	m.Oversize = &Oversize{Size: 1 << 28, SHA256: lane.Sum(nil)}
	if d := r.Decode(m); d.Code != "MSG_OVERSIZE" || d.Device != "cam" {
		t.Errorf("%+v", d)
	}
}

// TestDamagedImages: a damaged image belongs to its item and says what is wrong.
func TestDamagedImages(t *testing.T) {
	r := registry(t)
	whole, photo := pngFile(t, grey16()), jpegFile(t)
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	for name, c := range map[string]struct {
		file []byte
		code lane.Code
	}{
		"PNG without pixels":  {append(bytes.Clone(header(256, 256)), 0, 0, 0, 0, 'I', 'E', 'N', 'D', 0xae, 0x42, 0x60, 0x82), "IMG_INCOMPLETE"},
		"JPEG without pixels": {append(bytes.Clone(photo[:bytes.Index(photo, []byte{0xff, 0xda})]), 0xff, 0xd9), "IMG_INCOMPLETE"},
		"PNG cut":             {whole[:len(whole)/2], "IMG_INCOMPLETE"},
		"PNG without IEND":    {whole[:len(whole)-12], "IMG_INCOMPLETE"},
		"PNG with a bit off":  {flipped, "IMG_INCOMPLETE"},
		"PNG magic only":      {pngMagic, "IMG_INCOMPLETE"},
		"PNG 60000 x 60000":   {header(60000, 60000), "IMG_QUALITY"},
		"PNG 2^31 wide":       {header(1<<31, 1), "IMG_QUALITY"},
		"PNG 0 x 0":           {header(0, 0), "IMG_QUALITY"},
		"JPEG cut":            {photo[:len(photo)/2], "IMG_INCOMPLETE"},
		"JPEG cut to a crumb": {photo[:10], "IMG_INCOMPLETE"},
		"JPEG without EOI":    {photo[:len(photo)-2], "IMG_INCOMPLETE"},
		"JPEG without frame":  {[]byte{0xff, 0xd8, 0xff, 0xd9}, "IMG_INCOMPLETE"},
	} {
		d := r.Decode(message("lane/cam/belt-1/1", c.file))
		if d.Observation == nil || d.Observation.Image.Code != c.code || d.Observation.Image.Damage == "" {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

// TestClocks: a device in 1970, and a lane in 1970, are noted and harm nothing.
func TestClocks(t *testing.T) {
	r := registry(t)
	note := func(m *Message) (string, lane.ClockState) {
		o := r.Decode(m).Observation
		if len(o.Notes) == 0 {
			return "", o.Clock
		}
		return string(o.Notes[0].Code), o.Clock
	}
	old := message("lane/scan-j/data", []byte(`{"data":"x","time":"1970-01-01T00:00:07Z"}`))
	if code, clock := note(old); code != "CUS_CLOCK" || clock != lane.ClockUnsynced {
		t.Errorf("device in 1970: %q %s", code, clock)
	}
	future := message("lane/scan-j/data", []byte(`{"data":"x","time":"2031-01-01T00:00:07Z"}`))
	if code, _ := note(future); code != "CUS_CLOCK" {
		t.Errorf("device in 2031: %q", code)
	}
	ours := message("lane/scan-j/data", []byte(`{"data":"x","time":"2026-11-23T10:00:00Z"}`))
	ours.Received = time.Unix(7, 0)
	if code, clock := note(ours); code != "CUS_CLOCK" || clock != lane.ClockInsane {
		t.Errorf("lane in 1970: %q %s", code, clock)
	}
	loose := message("lane/scan/data", []byte("x"))
	loose.QoS = 0
	if code, _ := note(loose); code != "CUS_NO_QOS" {
		t.Errorf("QoS 0: %q", code)
	}
}

// TestRegistry reports every mistake of a configuration.
func TestRegistry(t *testing.T) {
	_, problems := NewRegistry(map[string]Device{
		"Cam 1":  {Profile: "camera/image", Topic: "a"},
		"typo":   {Profile: "camera/imgae", Topic: "b", Availability: "sometimes"},
		"wild":   {Profile: "label/text", Topic: "lane/#"},
		"none":   {Profile: "label/text"},
		"first":  {Profile: "label/text", Topic: "lane/{item}/x"},
		"second": {Profile: "label/text", Topic: "lane/7/{id}"},
	})
	got := map[string]bool{}
	for _, p := range problems {
		got[p.Device+"."+p.Key] = true
	}
	for _, want := range []string{"Cam 1.", "typo.profile", "typo.availability", "wild.topic", "none.topic", "second.topic"} {
		if !got[want] {
			t.Errorf("%s was not reported: %v", want, problems)
		}
	}
	if len(problems) != 6 {
		t.Errorf("%d problems: %v", len(problems), problems)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{"512KiB": 512 << 10, "48MiB": 48 << 20, "20GiB": 20 << 30} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want || s.String() != text {
			t.Errorf("%s: %d %s %v", text, s, s, err)
		}
	}
	for _, text := range []string{"48", "48MB", "MiB", "-1MiB", "1.5GiB"} {
		if err := new(Size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%s was read", text)
		}
	}
}

// FuzzDecode: whatever a device sends, decoding ends in an observation or a reason,
// never in a panic, gives the same again, and survives JSON.
func FuzzDecode(f *testing.F) {
	r := registry(f)
	topics := []string{"lane/scan/data", "lane/scan-j/data", "lane/cam/a/b", "lane/xray/a/b", "lane/raman/data", "lane/ftir/a", "x"}
	f.Add(uint8(0), []byte("]d2010950600013435210A"))
	f.Add(uint8(1), []byte(`{"id":"1","data":"x","time":"2026-03-01T10:00:00Z"}`))
	f.Add(uint8(2), jpegFile(f))
	f.Add(uint8(3), pngFile(f, grey16()))
	f.Add(uint8(4), []byte(`{"result":{"verdict":"pass","score":{"value":1e308}},"spectrum":{"jcamp":"##XYDATA=(X++(Y..Y))"}}`))
	f.Add(uint8(5), []byte("##XYPOINTS=(XY..XY)\n1,2"))
	f.Fuzz(func(t *testing.T, topic uint8, payload []byte) {
		m := message(topics[int(topic)%len(topics)], payload)
		d := r.Decode(m)
		if (d.Observation == nil) == (d.Code == "") || d.Code != "" && d.Reason == "" {
			t.Fatalf("%+v", d)
		}
		if !reflect.DeepEqual(d, r.Decode(m)) {
			t.Fatal("the same message was read differently")
		}
		if d.Observation != nil {
			if _, err := json.Marshal(d.Observation); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzProbeImage: no file makes the probe panic, and none beyond the limits is
// called whole.
func FuzzProbeImage(f *testing.F) {
	f.Add(jpegFile(f))
	f.Add(pngFile(f, grey16()))
	f.Add(header(60000, 60000))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := ProbeImage(b)
		if err == nil && info.Damage == "" && (info.Width < 1 || info.Height < 1 || info.Width*info.Height > MaxPixels) {
			t.Fatalf("%+v", info)
		}
	})
}
