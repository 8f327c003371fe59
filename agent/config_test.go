package agent

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestSample: the commented sample loads, names every key there is, and its values
// are the defaults wherever it says so.
func TestSample(t *testing.T) {
	c, err := LoadConfig("../configs/inspectd.yaml")
	if err != nil {
		t.Fatal(err)
	}
	d := DefaultConfig()
	for key, pair := range map[string][2]any{
		"mqtt.connect.max_packet": {c.MQTT.Connect.MaxPacket, d.MQTT.Connect.MaxPacket},
		"correlation.close_after": {c.Correlation.CloseAfter, d.Correlation.CloseAfter},
		"correlation.late_for":    {c.Correlation.LateFor, d.Correlation.LateFor},
		"vision.workers":          {c.Vision.Workers, d.Vision.Workers},
		"vision.timeout":          {c.Vision.Timeout, d.Vision.Timeout},
		"queue.keep_free":         {c.Queue.KeepFree, d.Queue.KeepFree},
		"upstream.stream":         {c.Upstream.Stream, d.Upstream.Stream},
		"console.listen":          {c.Console.Listen, d.Console.Listen},
		"metrics.listen":          {c.Metrics.Listen, d.Metrics.Listen},
		"logging":                 {c.Logging, d.Logging},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("%s is %v in the sample, its default is %v", key, pair[0], pair[1])
		}
	}
	unset(t, reflect.ValueOf(*c), "")
}

// unset reports keys that the sample does not name.
func unset(t *testing.T, v reflect.Value, path string) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
			if tag != "-" && v.Type().Field(i).Name != "Credential" {
				unset(t, v.Field(i), path+"."+tag)
			}
		}
	case reflect.Map: // the devices: some key may be missing in one of them
	default:
		if v.IsZero() {
			t.Errorf("the sample does not name %s", path)
		}
	}
}

func TestMinimal(t *testing.T) {
	if _, err := LoadConfig("../configs/minimal.yaml"); err != nil {
		t.Error(err)
	}
}

// TestMistakes: every mistake of a file is reported in one pass, with its place or
// its key.
func TestMistakes(t *testing.T) {
	minimal, err := os.ReadFile("../configs/minimal.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		old, replacement string
		want             []string
	}{
		"unknown key":                {"profile:", "profle:", []string{"profle"}},
		"two at once":                {"version: 1\nlane: { site: nlrtm", "version: one\nlane: { siet: nlrtm", []string{"siet", "one"}},
		"no YAML":                    {"upstream:", "upstream: [", []string{""}},
		"wrong version":              {"version: 1", "version: 7", []string{"version"}},
		"site":                       {"nlrtm", "Rotterdam!", []string{"lane.site"}},
		"no broker":                  {"url: mqtt://127.0.0.1:1883", "", []string{"mqtt.connect.url"}},
		"profile and headquarters":   {"label/text", "label/txt", []string{"devices.scan-in.profile"}},
		"device that does not exist": {"upstream:", "correlation: { open_on: [scan-im] }\nupstream:", []string{"scan-im"}},
		"TLS":                        {"mqtt://", "mqtts://", []string{"does not speak TLS"}},
		"TLS to NATS":                {"nats://", "tls://", []string{"does not speak TLS"}},
		"packet below message":       {"connect: {", "connect: { max_packet: 1KiB,", []string{"max_packet"}},
		"page for everybody":         {"upstream:", "console: { listen: \"0.0.0.0:80\" }\nupstream:", []string{"console.listen"}},
		"duration without unit":      {"upstream:", "correlation: { close_after: 30 }\nupstream:", []string{"duration: write"}},
		"size without unit":          {"upstream:", "queue: { keep_free: 30 }\nupstream:", []string{"30"}},
	} {
		text := strings.Replace(string(minimal), c.old, c.replacement, 1)
		_, mistakes := ParseConfig([]byte(text))
		all := (&ConfigError{"x", mistakes}).Error()
		if len(mistakes) < len(c.want) {
			t.Errorf("%s: %d mistakes: %v", name, len(mistakes), mistakes)
		}
		for _, w := range c.want {
			if !strings.Contains(all, w) {
				t.Errorf("%s: %q is not named in %s", name, w, all)
			}
		}
	}
}

// FuzzConfig: no file makes reading it panic, and none is both wrong and accepted.
func FuzzConfig(f *testing.F) {
	for _, name := range []string{"inspectd", "minimal"} {
		b, err := os.ReadFile("../configs/" + name + ".yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, mistakes := ParseConfig(b); c == nil || len(mistakes) == 0 && c.Version != 1 {
			t.Fatalf("%+v", c)
		}
	})
}
