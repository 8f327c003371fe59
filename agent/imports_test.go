package agent

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "inspectd.org/inspectd/"

// ours says which of our packages a package may import. The line of data runs one
// way: cmd, agent, then what it moves data through, then nouns and leaves.
var ours = map[string][]string{
	"agent/lane":          {},
	"agent/evidence":      {},
	"devices/label":       {},
	"devices/spectrum":    {},
	"devices":             {"agent/lane", "devices/label", "devices/spectrum"},
	"queue":               {"agent/lane", "agent/evidence"},
	"vision":              {"agent/lane", "agent/evidence"},
	"vision/artwork":      {},
	"vision/opencv":       {"vision"},
	"agent/risk":          {"agent/lane", "devices/label"},
	"agent/checks":        {"agent/lane", "agent/risk", "vision"},
	"agent/upstream":      {"agent/evidence", "queue"},
	"agent/console":       {"agent/lane", "agent/upstream", "devices", "queue", "vision"},
	"agent":               {"agent/lane", "agent/evidence", "agent/checks", "agent/risk", "agent/upstream", "agent/console", "devices", "queue", "vision"},
	"testdata":            {},
	"agent/simulate":      {"agent", "agent/lane", "agent/evidence", "agent/upstream", "devices", "devices/label", "queue", "testdata", "vision", "vision/artwork"},
	"cmd/inspectd":        {"agent", "agent/lane", "agent/evidence", "agent/console", "agent/simulate", "queue", "vision"},
	"cmd/inspectd-vision": {"vision", "vision/opencv"},
}

// owner says which packages may import a library, and why nobody else may.
var owner = []struct {
	library  string
	packages []string
	reason   string
}{
	{"github.com/eclipse/paho.mqtt.golang", []string{"devices"}, "its traps are handled in one place"},
	{"github.com/mochi-mqtt/server", []string{"devices"}, "brokers and sessions belong together"},
	{"go.etcd.io/bbolt", []string{"queue"}, "slices of a transaction must not leave the package"},
	{"github.com/nats-io/nats.go", []string{"agent/upstream", "agent/simulate"}, "every publish goes through compare-and-append; headquarters is simulated"},
	{"github.com/nats-io/nats-server", []string{"agent/simulate"}, "the daemon's path starts no server"},
	{"gocv.io/x/gocv", []string{"vision/opencv"}, "C++ must not run in the daemon"},
	{"C", []string{}, "cgo is gocv's alone"},
	{"github.com/rs/zerolog/log", []string{}, "loggers are passed, there is no global one"},
	{"github.com/elastic/go-seccomp-bpf", []string{"cmd/inspectd-vision"}, "only the worker locks itself in"},
	{"go.yaml.in/yaml", []string{"agent", "agent/simulate"}, "one configuration, one scenario format"},
	{"github.com/spf13/cobra", []string{"cmd/inspectd"}, "commands live in cmd"},
	{"github.com/prometheus/client_golang", []string{"agent/console"}, "metrics are one of the console's doors"},
}

// TestImports holds every package to the rules above.
func TestImports(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "-tags", "gocv_specific_modules,gocv_features2d,gocv_calib3d",
		"./agent/...", "./cmd/...", "./devices/...", "./queue/...", "./testdata", "./vision/...")
	cmd.Dir = ".."
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for dec := json.NewDecoder(out); ; n++ {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		checkImports(t, strings.TrimPrefix(p.ImportPath, module), p.Imports)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if n != len(ours) {
		t.Errorf("%d packages, the rules name %d", n, len(ours))
	}
}

func checkImports(t *testing.T, name string, imports []string) {
	allowed, ok := ours[name]
	if !ok {
		t.Errorf("package %s has no rule: say what it may import", name)
	}
	for _, i := range imports {
		if own, is := strings.CutPrefix(i, module); is && !slices.Contains(allowed, own) {
			t.Errorf("%s may not import %s: the line of data runs one way", name, own)
		}
		for _, o := range owner {
			if (i == o.library || strings.HasPrefix(i, o.library+"/")) && !slices.Contains(o.packages, name) {
				t.Errorf("%s may not import %s: %s", name, i, o.reason)
			}
		}
	}
}
