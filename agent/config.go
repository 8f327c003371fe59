// Package agent runs one lane: it composes the configuration, assembles the parts
// by hand and moves data along the line, from the broker to headquarters.
package agent

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/agent/upstream"
	"inspectd.org/inspectd/devices"
)

// Config is the whole configuration of a lane, as configs/inspectd.yaml describes
// it.
type Config struct {
	Version int `yaml:"version"`
	Lane    struct {
		Site string `yaml:"site"`
		ID   string `yaml:"id"`
		Name string `yaml:"name"`
	} `yaml:"lane"`
	MQTT struct {
		Connect struct {
			devices.Connect `yaml:",inline"`
			Password        Secret `yaml:"password"`
		} `yaml:"connect"`
	} `yaml:"mqtt"`
	Devices     map[string]devices.Device `yaml:"devices"`
	Correlation struct {
		OpenOn     []string      `yaml:"open_on"`
		CloseOn    []string      `yaml:"close_on"`
		CloseAfter time.Duration `yaml:"close_after"`
		LateFor    time.Duration `yaml:"late_for"`
	} `yaml:"correlation"`
	Vision struct {
		Worker  string        `yaml:"worker"`
		Workers int           `yaml:"workers"`
		Timeout time.Duration `yaml:"timeout"`
		Packs   string        `yaml:"packs"`
	} `yaml:"vision"`
	Checks struct {
		Control string `yaml:"control"`
	} `yaml:"checks"`
	Queue struct {
		KeepFree devices.Size `yaml:"keep_free"`
	} `yaml:"queue"`
	Upstream struct {
		Servers     []string `yaml:"servers"`
		Credentials Secret   `yaml:"credentials"`
		Stream      string   `yaml:"stream"`
		Images      struct {
			Store string `yaml:"store"`
		} `yaml:"images"`
		Trust string `yaml:"trust"`
	} `yaml:"upstream"`
	Console struct {
		Listen string `yaml:"listen"`
	} `yaml:"console"`
	Metrics struct {
		Listen string `yaml:"listen"`
	} `yaml:"metrics"`
	Logging struct {
		Level  string `yaml:"level"`
		Output string `yaml:"output"`
	} `yaml:"logging"`

	// SHA256 is the digest of the file, which every report names.
	SHA256 lane.Digest `yaml:"-"`
}

// Secret says where a secret is; it never holds one.
type Secret struct {
	Credential string `yaml:"credential"` // delivered by systemd, LoadCredential=
	File       string `yaml:"file"`
}

// Path is the file that holds the secret, empty when none is configured.
func (s Secret) Path() string {
	if s.Credential != "" {
		return filepath.Join(os.Getenv("CREDENTIALS_DIRECTORY"), s.Credential)
	}
	return s.File
}

func (s Secret) read() (string, error) {
	if s.Path() == "" {
		return "", nil
	}
	b, err := os.ReadFile(s.Path())
	return strings.TrimRight(string(b), "\r\n"), err
}

// DefaultConfig holds the value of every key that a file leaves out.
func DefaultConfig() *Config {
	c := &Config{}
	c.MQTT.Connect.MaxPacket = devices.DefaultMaxPacket
	c.Correlation.CloseAfter = 45 * time.Second
	c.Correlation.LateFor = 12 * time.Hour
	c.Vision.Workers = 2
	c.Vision.Timeout = 5 * time.Second
	c.Queue.KeepFree = 1 << 30
	c.Upstream.Stream = upstream.DefaultStream
	c.Console.Listen = "127.0.0.1:7780"
	c.Metrics.Listen = "127.0.0.1:9780"
	c.Logging.Level = "info"
	c.Logging.Output = "auto"
	return c
}

// Mistake is one thing wrong with a configuration.
type Mistake struct {
	Line, Column int    // 0 when it is about the file as a whole
	Key          string // path of the key, e.g. devices.cam-pack.topic
	Text         string
}

func (m Mistake) String() string {
	switch {
	case m.Line > 0:
		return fmt.Sprintf("line %d, column %d: %s", m.Line, m.Column, m.Text)
	case m.Key != "":
		return m.Key + ": " + m.Text
	}
	return m.Text
}

var (
	notFound  = regexp.MustCompile("^field (.*) not found in type .*$")
	construct = regexp.MustCompile("^cannot construct !![a-z]+ `(.*)` into (.*)$")
)

// plain turns a message of the YAML library into one for people who do not
// programme.
func plain(message string) string {
	if m := notFound.FindStringSubmatch(message); m != nil {
		return fmt.Sprintf("unknown key %q", m[1])
	}
	m := construct.FindStringSubmatch(message)
	if m == nil {
		return message
	}
	want := "a group of keys"
	switch {
	case m[2] == "time.Duration":
		want = "a duration: write a number with its unit, for example 30s, 5m or 12h"
	case m[2] == "int":
		want = "a whole number"
	case m[2] == "string":
		want = "a text"
	case strings.HasPrefix(m[2], "[]"):
		want = "a list: write [a, b]"
	}
	return fmt.Sprintf("%q is not %s", m[1], want)
}

// ConfigError lists every mistake of a configuration file.
type ConfigError struct {
	Path     string
	Mistakes []Mistake
}

func (e *ConfigError) Error() string {
	lines := make([]string, len(e.Mistakes))
	for i, m := range e.Mistakes {
		lines[i] = "  " + m.String()
	}
	return fmt.Sprintf("%s cannot be used:\n%s", e.Path, strings.Join(lines, "\n"))
}

// LoadConfig reads and checks a configuration file. Its error is a *ConfigError
// when the file was read but is wrong: it names every mistake at once.
func LoadConfig(path string) (*Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w (name another file with --config)", err)
	}
	c, mistakes := ParseConfig(b)
	if len(mistakes) > 0 {
		return nil, &ConfigError{path, mistakes}
	}
	return c, nil
}

// ParseConfig reads a configuration, strictly: an unknown key is a mistake.
func ParseConfig(b []byte) (*Config, []Mistake) {
	c := DefaultConfig()
	var mistakes []Mistake
	var list *yaml.LoadErrors
	err := yaml.Load(b, c, yaml.WithKnownFields())
	switch {
	case errors.As(err, &list):
		for _, e := range list.Errors {
			mistakes = append(mistakes, Mistake{Line: e.Mark.Line, Column: e.Mark.Column, Text: plain(e.Message)})
		}
	case err != nil:
		mistakes = append(mistakes, Mistake{Text: "the file is no YAML: " + strings.TrimPrefix(err.Error(), "go-yaml load error in ")})
	}
	if len(mistakes) == 0 {
		mistakes = c.check()
	}
	c.SHA256 = lane.Sum(b)
	return c, mistakes
}

func (c *Config) check() []Mistake {
	var out []Mistake
	bad := func(key, format string, args ...any) {
		out = append(out, Mistake{Key: key, Text: fmt.Sprintf(format, args...)})
	}
	if c.Version != 1 {
		bad("version", "is %d; this program reads version 1", c.Version)
	}
	for key, v := range map[string]string{"lane.site": c.Lane.Site, "lane.id": c.Lane.ID} {
		if !lane.ValidToken(v) {
			bad(key, "%q is not 1 to 32 characters of a-z, 0-9 and '-'", v)
		}
	}
	if c.MQTT.Connect.URL == "" {
		bad("mqtt.connect.url", "is needed, for example mqtt://127.0.0.1:1883")
	} else if err := devices.CheckURL(c.MQTT.Connect.URL); err != nil {
		bad("mqtt.connect.url", "%v", err)
	}
	for _, server := range c.Upstream.Servers {
		if u, err := url.Parse(server); err != nil || u.Host == "" || u.Scheme != "nats" {
			bad("upstream.servers", "%q: write nats://host:4222 (this version does not speak TLS to NATS)", server)
		}
	}
	if len(c.Upstream.Servers) == 0 {
		bad("upstream.servers", "is needed, for example [nats://nats.example:4222]")
	}
	registry, problems := devices.NewRegistry(c.Devices)
	for _, p := range problems {
		bad(strings.TrimSuffix("devices."+p.Device+"."+p.Key, "."), "%s", p.Text)
	}
	if len(c.Devices) == 0 {
		bad("devices", "none is configured, so nothing would ever arrive")
	}
	for key, list := range map[string][]string{"correlation.open_on": c.Correlation.OpenOn, "correlation.close_on": c.Correlation.CloseOn} {
		for _, id := range list {
			if dev, ok := registry.Device(id); ok && dev.Kind() != lane.Label {
				bad(key, "names device %q, which is no scanner", id)
			} else if !ok {
				bad(key, "names device %q, which does not exist; devices are: %s", id, strings.Join(registry.IDs(), ", "))
			}
		}
	}
	for _, id := range registry.IDs() {
		if limit := registry.Limit(id); limit > c.MQTT.Connect.MaxPacket {
			bad("mqtt.connect.max_packet", "is %s, but %s may send messages of %s", c.MQTT.Connect.MaxPacket, id, limit)
		}
	}
	if c.Correlation.CloseAfter < time.Second {
		bad("correlation.close_after", "%s is too short: at least 1s", c.Correlation.CloseAfter)
	}
	for key, addr := range map[string]string{"console.listen": c.Console.Listen, "metrics.listen": c.Metrics.Listen} {
		if host, _, err := net.SplitHostPort(addr); err != nil || !net.ParseIP(host).IsLoopback() {
			bad(key, "%q: only a loopback address such as 127.0.0.1:7780 will do; the page has no log-in", addr)
		}
	}
	if !slices.Contains([]string{"trace", "debug", "info", "warn", "error"}, c.Logging.Level) {
		bad("logging.level", "%q is none of trace, debug, info, warn, error", c.Logging.Level)
	}
	if !slices.Contains([]string{"auto", "console", "json"}, c.Logging.Output) {
		bad("logging.output", "%q is none of auto, console, json", c.Logging.Output)
	}
	slices.SortStableFunc(out, func(a, b Mistake) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// linger is how long an item whose closing scan has come waits for what is still
// missing: the time a large picture takes on a slow network.
const linger = 3 * time.Second

// rules are the correlation rules of the configuration.
func (c *Config) rules(registry *devices.Registry) lane.Rules {
	return lane.Rules{OpenOn: c.Correlation.OpenOn, CloseOn: c.Correlation.CloseOn,
		CloseAfter: c.Correlation.CloseAfter, Linger: linger, LateFor: c.Correlation.LateFor, Expected: registry.Expected()}
}
