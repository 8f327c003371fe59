// Package devices turns the MQTT traffic of lane devices into observations: the
// session with the broker, the registry of configured devices, and the decoders
// of their payloads. Decoding is pure: no clock, no network.
package devices

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"inspectd.org/inspectd/agent/lane"
)

// Device is the configuration of one source.
type Device struct {
	Profile      string        `yaml:"profile"`      // how to read its messages; see Profiles
	Name         string        `yaml:"name"`         // shown to people
	Topic        string        `yaml:"topic"`        // filter; each {name} matches one level and becomes a field
	Heartbeat    time.Duration `yaml:"heartbeat"`    // how often it sends of its own accord; 0 when only used by hand
	Availability string        `yaml:"availability"` // always (default) or on-demand: silence is no fault
	Limits       Limits        `yaml:"limits"`
}

// Limits bound what one device may send.
type Limits struct {
	MaxMessage Size `yaml:"max_message"` // 0 means the profile's default
}

// Size is a number of bytes, written with its unit: 512KiB, 48MiB, 20GiB.
type Size int64

// UnmarshalText reads a size with its unit.
func (s *Size) UnmarshalText(b []byte) error {
	text := string(b)
	for i, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if digits, ok := strings.CutSuffix(text, unit); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 32)
			if err != nil || n < 0 {
				break
			}
			*s = Size(n) << (10 * (i + 1))
			return nil
		}
	}
	return fmt.Errorf("%q is no size: write a whole number and KiB, MiB or GiB, for example 48MiB", text)
}

func (s Size) String() string {
	for i, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if n := Size(1) << (10 * (4 - i)); s >= n && s%n == 0 {
			return fmt.Sprintf("%d%s", s/n, unit)
		}
	}
	return fmt.Sprintf("%dB", int64(s))
}

// OnDemand reports whether silence of the device is normal.
func (d Device) OnDemand() bool { return d.Availability == "on-demand" }

// Kind is what the device measures, told by its profile.
func (d Device) Kind() lane.Kind {
	kind, _, _ := strings.Cut(d.Profile, "/")
	return lane.Kind(kind)
}

// profile is how to read the messages of a device.
type profile struct {
	maxMessage Size // default limit
	decode     func(*decoder) error
}

var profiles = map[string]profile{
	"label/text":     {16 << 10, (*decoder).labelText},
	"label/json":     {64 << 10, (*decoder).labelJSON},
	"camera/image":   {32 << 20, (*decoder).image},
	"xray/image":     {48 << 20, (*decoder).image},
	"forensic/json":  {8 << 20, (*decoder).forensicJSON},
	"forensic/jcamp": {8 << 20, (*decoder).forensicJCAMP},
}

// Profiles are the names of the known profiles, sorted.
func Profiles() []string { return slices.Sorted(maps.Keys(profiles)) }

// Problem is a mistake in the configuration of a device.
type Problem struct {
	Device, Key string // e.g. "cam-pack", "topic"
	Text        string
}

// Registry knows the configured devices and which topic belongs to which.
type Registry struct {
	devices map[string]Device
	filters map[string][]string // device id -> topic levels
}

// NewRegistry checks the configuration of all devices and reports every mistake.
func NewRegistry(configured map[string]Device) (*Registry, []Problem) {
	r := &Registry{devices: configured, filters: map[string][]string{}}
	var problems []Problem
	bad := func(id, key, format string, args ...any) {
		problems = append(problems, Problem{id, key, fmt.Sprintf(format, args...)})
	}
	for _, id := range slices.Sorted(maps.Keys(configured)) {
		d := configured[id]
		if !lane.ValidToken(id) {
			bad(id, "", "a device id is 1 to 32 characters of a-z, 0-9 and '-'")
		}
		if _, ok := profiles[d.Profile]; !ok {
			bad(id, "profile", "unknown profile %q; profiles are: %s", d.Profile, strings.Join(Profiles(), ", "))
		}
		if d.Availability != "" && d.Availability != "always" && !d.OnDemand() {
			bad(id, "availability", "%q is neither always nor on-demand", d.Availability)
		}
		levels := strings.Split(d.Topic, "/")
		if err := checkFilter(d.Topic, levels); err != nil {
			bad(id, "topic", "%v", err)
			continue
		}
		for other, have := range r.filters {
			if overlap(have, levels) {
				bad(id, "topic", "overlaps the topic of %s: one message would belong to both", other)
			}
		}
		r.filters[id] = levels
	}
	return r, problems
}

func placeholder(level string) (name string, ok bool) {
	if len(level) > 2 && level[0] == '{' && level[len(level)-1] == '}' {
		return level[1 : len(level)-1], true
	}
	return "", false
}

func checkFilter(topic string, levels []string) error {
	if topic == "" {
		return fmt.Errorf("a topic is needed, for example lane/03/scan-in/data")
	}
	for _, l := range levels {
		if _, ok := placeholder(l); !ok && (l == "" || strings.ContainsAny(l, "+#{}$\x00")) {
			return fmt.Errorf("level %q: a level is plain text or one {name}", l)
		}
	}
	return nil
}

// overlap reports whether some topic matches both filters.
func overlap(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		_, pa := placeholder(a[i])
		_, pb := placeholder(b[i])
		if !pa && !pb && a[i] != b[i] {
			return false
		}
	}
	return true
}

// Filters are the MQTT subscriptions of all devices, sorted.
func (r *Registry) Filters() []string {
	var out []string
	for _, levels := range r.filters {
		filter := slices.Clone(levels)
		for i, l := range filter {
			if _, ok := placeholder(l); ok {
				filter[i] = "+"
			}
		}
		out = append(out, strings.Join(filter, "/"))
	}
	slices.Sort(out)
	return out
}

// Match finds the device a topic belongs to, and the fields the topic carries.
func (r *Registry) Match(topic string) (id string, fields map[string]string, ok bool) {
	levels := strings.Split(topic, "/")
	for id, filter := range r.filters {
		if !overlap(filter, levels) {
			continue
		}
		fields = map[string]string{}
		for i, l := range filter {
			if name, ok := placeholder(l); ok {
				fields[name] = levels[i]
			}
		}
		return id, fields, true
	}
	return "", nil, false
}

// Limit is the largest message the device may send.
func (r *Registry) Limit(id string) Size {
	d := r.devices[id]
	if d.Limits.MaxMessage > 0 {
		return d.Limits.MaxMessage
	}
	return profiles[d.Profile].maxMessage
}

// Device returns the configuration of a device.
func (r *Registry) Device(id string) (Device, bool) {
	d, ok := r.devices[id]
	return d, ok
}

// IDs are the ids of all devices, sorted.
func (r *Registry) IDs() []string { return slices.Sorted(maps.Keys(r.devices)) }

// Expected are the kinds of which every item needs an observation: those of the
// devices that are always there.
func (r *Registry) Expected() []lane.Kind {
	var kinds []lane.Kind
	for _, id := range r.IDs() {
		if d := r.devices[id]; !d.OnDemand() && !slices.Contains(kinds, d.Kind()) {
			kinds = append(kinds, d.Kind())
		}
	}
	return kinds
}
