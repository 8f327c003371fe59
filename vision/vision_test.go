package vision_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/devices"
	"inspectd.org/inspectd/vision"
	"inspectd.org/inspectd/vision/artwork"
)

// newPool starts real workers; where there are none, the test says so.
func newPool(t testing.TB, opts vision.PoolOptions) *vision.Pool {
	t.Helper()
	if opts.Program == "" {
		opts.Program = os.Getenv("INSPECTD_VISION")
	}
	if _, err := os.Stat(opts.Program); err != nil {
		if os.Getenv("INSPECTD_REQUIRE") == "all" {
			t.Fatalf("the vision worker is not built: %v", err)
		}
		t.Skip("SKIP no vision worker: set INSPECTD_VISION to bin/inspectd-vision, or run 'make test'")
	}
	opts.Log, opts.Timeout = zerolog.Nop(), time.Minute
	p := vision.NewPool(opts)
	t.Cleanup(p.Close)
	return p
}

func fictional(t testing.TB) *vision.Packs {
	t.Helper()
	pack, err := vision.ReadPack("../testdata/packs/fictional")
	if err != nil {
		t.Fatal(err)
	}
	return &vision.Packs{List: []*vision.Pack{pack}}
}

func examine(t testing.TB, packs *vision.Packs, pool *vision.Pool, picture []byte) (a *vision.Analysis, pictures []vision.Picture) {
	t.Helper()
	err := pool.With(context.Background(), func(w *vision.Worker) (err error) {
		a, pictures, err = packs.Examine(w, picture)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return a, pictures
}

func photograph(product string, tamper artwork.Tamper, seed uint64) []byte {
	p, ok := artwork.Find(product)
	if !ok {
		panic(product)
	}
	return artwork.JPEG(artwork.Photograph(p.Draw(tamper), seed))
}

// candidate returns what an analysis says of a product.
func candidate(a *vision.Analysis, product string) *vision.Candidate {
	for i := range a.Candidates {
		if a.Candidates[i].Product == product {
			return &a.Candidates[i]
		}
	}
	return nil
}

// failed are the checks of a candidate that failed.
func failed(c *vision.Candidate) []string {
	var out []string
	for _, check := range c.Checks {
		if check.Outcome == lane.Fail {
			out = append(out, check.Name)
		}
	}
	return out
}

// TestPacksOnPhotographs: genuine packs pass every check, altered ones fail at the
// altered region and nowhere else, and an overlay shows it.
func TestPacksOnPhotographs(t *testing.T) {
	pool, packs := newPool(t, vision.PoolOptions{}), fictional(t)
	for _, c := range []struct {
		product string
		tamper  artwork.Tamper
		want    []string
	}{
		{"velmaris-20", artwork.Tamper{}, nil},
		{"corvexa-10", artwork.Tamper{}, nil},
		{"velmaris-20", artwork.Tamper{Logo: true}, []string{"vision/logo", "vision/fake/blunt petals"}},
		{"sanoquill-500", artwork.Tamper{NoSeal: true}, []string{"vision/seal", "vision/seal-colour"}},
		{"velmaris-40", artwork.Tamper{Colour: 0.3}, []string{"vision/band-colour"}},
	} {
		t.Run(fmt.Sprintf("%s %+v", c.product, c.tamper), func(t *testing.T) {
			a, pictures := examine(t, packs, pool, photograph(c.product, c.tamper, 42))
			got := candidate(a, c.product)
			if got == nil || !got.Judged() {
				t.Fatalf("the product was not recognised: %+v", a)
			}
			if f := failed(got); !slices.Equal(f, c.want) {
				t.Errorf("failed %v, want %v", f, c.want)
			}
			if (got.Overlay != nil) != (c.want != nil) {
				t.Errorf("overlay %v", got.Overlay)
			}
			for _, p := range pictures {
				if lane.Sum(p.Bytes) != p.Evidence.SHA256 {
					t.Error("an overlay has another digest than it is kept under")
				}
				if _, err := jpeg.DecodeConfig(bytes.NewReader(p.Bytes)); err != nil {
					t.Error("overlay:", err)
				}
			}
			if again, _ := examine(t, packs, pool, photograph(c.product, c.tamper, 42)); !equalJSON(t, a, again) {
				t.Error("the same picture was judged differently")
			}
		})
	}
}

func equalJSON(t *testing.T, a, b any) bool {
	t.Helper()
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}

// TestStrangePictures: what shows no known product is no candidate that was judged.
func TestStrangePictures(t *testing.T) {
	pool, packs := newPool(t, vision.PoolOptions{}), fictional(t)
	noise := image.NewGray(image.Rect(0, 0, 800, 600))
	for i := range noise.Pix {
		noise.Pix[i] = byte(i * i >> 3)
	}
	for name, picture := range map[string][]byte{
		"nothing":     artwork.PNG(image.NewGray(image.Rect(0, 0, 640, 480))),
		"noise":       artwork.PNG(noise),
		"one pixel":   artwork.PNG(image.NewGray(image.Rect(0, 0, 1, 1))),
		"an X-ray":    artwork.PNG(artwork.XRay(15, 1)),
		"a thin line": artwork.PNG(image.NewGray(image.Rect(0, 0, 4000, 2))),
	} {
		a, _ := examine(t, packs, pool, picture)
		for _, c := range a.Candidates {
			if c.Judged() {
				t.Errorf("%s was judged as %s", name, c.Product)
			}
		}
	}
	if st := pool.Status(); st.Restarts != 0 {
		t.Errorf("%+v", st)
	}
}

// TestHostilePictures: what cannot be decoded is refused by a worker that stays
// well, and memory stays bounded.
func TestHostilePictures(t *testing.T) {
	pool, packs := newPool(t, vision.PoolOptions{Workers: 1}), fictional(t)
	whole := photograph("velmaris-20", artwork.Tamper{}, 1)
	bomb := artwork.PNG(image.NewGray(image.Rect(0, 0, 12000, 12000)))
	for name, picture := range map[string][]byte{
		"empty": {}, "text": []byte("hello"), "magic only": whole[:3], "a PNG magic": []byte("\x89PNG\r\n\x1a\n"),
		"bomb of 144 megapixels": bomb, "DICOM magic": append(make([]byte, 128), "DICM"...),
	} {
		a, _ := examine(t, packs, pool, picture)
		if a.Failed == "" || a.Code != "IMG_QUALITY" {
			t.Errorf("%s: %+v", name, a)
		}
	}
	if a, _ := examine(t, packs, pool, whole); a.Failed != "" || pool.Status().Restarts != 0 {
		t.Errorf("%+v %+v", a, pool.Status())
	}
}

// TestSandbox: the worker is locked in by every layer this kernel has.
func TestSandbox(t *testing.T) {
	pool := newPool(t, vision.PoolOptions{})
	if err := pool.Probe(context.Background()); err != nil {
		t.Fatal(err)
	}
	st := pool.Status()
	if !st.Available || !slices.Contains(st.Layers, "seccomp") || !slices.Contains(st.Layers, "rlimits") || st.OpenCV == "" {
		t.Errorf("%+v", st)
	}
}

// TestWorkerMissing: without a worker the answer says so, and says how.
func TestWorkerMissing(t *testing.T) {
	pool := vision.NewPool(vision.PoolOptions{Program: "/nowhere/inspectd-vision", Log: zerolog.Nop()})
	if err := pool.Probe(context.Background()); !errors.Is(err, vision.ErrNoWorker) {
		t.Errorf("%v", err)
	}
	if st := pool.Status(); st.Available || st.Error == "" {
		t.Errorf("%+v", st)
	}
}

// badWorker is a program that says Hello and then misbehaves.
func badWorker(t *testing.T, then string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "worker")
	// Eight bytes of header, then the JSON of a Hello, on descriptor 3.
	script := "#!/bin/sh\nprintf '\\000\\000\\000\\002\\000\\000\\000\\000{}' >&3\n" + then + "\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestWorkerCrash: a worker that dies, hangs or talks nonsense costs one answer, is
// ended, and counted.
func TestWorkerCrash(t *testing.T) {
	for name, c := range map[string]struct {
		script  string
		timeout time.Duration
		want    error
	}{
		"dies":                  {"exit 1", time.Minute, vision.ErrWorkerDied},
		"answers with nonsense": {"head -c 12 <&3 >/dev/null; head -c 100000 /dev/zero | tr '\\000' x >&3", time.Minute, vision.ErrWorkerDied},
		"hangs":                 {"exec sleep 600", 200 * time.Millisecond, vision.ErrWorkerLate},
	} {
		t.Run(name, func(t *testing.T) {
			pool := vision.NewPool(vision.PoolOptions{Program: badWorker(t, c.script), Timeout: c.timeout, Log: zerolog.Nop()})
			defer pool.Close()
			err := pool.With(context.Background(), func(w *vision.Worker) error {
				_, _, _, err := w.Open([]byte("picture"))
				return err
			})
			if !errors.Is(err, c.want) || pool.Status().Restarts != 1 {
				t.Errorf("%v, %+v", err, pool.Status())
			}
		})
	}
}

// TestWorkerLies: an answer that leaves out what was asked, or holds numbers that
// cannot be, is no answer: neither a finding nor a pass comes of it.
func TestWorkerLies(t *testing.T) {
	req := vision.CompareRequest{Regions: map[string]vision.Region{"logo": {}}, Fakes: []vision.FakeRequest{{Name: "f", Region: "logo"}}}
	for name, answer := range map[string]string{
		"no regions":       `{"measured":{"aligned":true}}`,
		"no fakes":         `{"measured":{"aligned":true,"regions":{"logo":{"zncc":1,"worst":1}}}}`,
		"another region":   `{"measured":{"aligned":true,"regions":{"nose":{}},"fakes":[{"name":"f"}]}}`,
		"correlation of 7": `{"measured":{"aligned":true,"regions":{"logo":{"zncc":7}},"fakes":[{"name":"f"}]}}`,
		"another fake":     `{"measured":{"aligned":true,"regions":{"logo":{}},"fakes":[{"name":"g"}]}}`,
	} {
		frame := fmt.Sprintf(`\000\000\000\%03o\000\000\000\000`, len(answer))
		pool := vision.NewPool(vision.PoolOptions{Program: badWorker(t, "head -c 8 <&3 >/dev/null; printf '"+frame+"%s' '"+answer+"' >&3; exec sleep 60"), Log: zerolog.Nop()})
		err := pool.With(context.Background(), func(w *vision.Worker) error {
			_, err := w.Compare(req)
			return err
		})
		if !errors.Is(err, vision.ErrWorkerDied) {
			t.Errorf("%s: %v", name, err)
		}
		pool.Close()
	}
}

// TestPackRefused: a pack that is changed, unsigned, or makes no sense is not used.
func TestPackRefused(t *testing.T) {
	fresh := func() string {
		dir := t.TempDir()
		if err := os.CopyFS(filepath.Join(dir, "p"), os.DirFS("../testdata/packs/fictional")); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	if packs, problems := vision.LoadPacks(fresh(), nil); len(packs.List) != 0 || len(problems) != 1 {
		t.Errorf("an unsigned pack was used: %v", problems)
	}
	if packs, problems := vision.LoadPacks(filepath.Join(t.TempDir(), "none"), nil); len(packs.List) != 0 || len(problems) != 0 {
		t.Errorf("no packs at all: %v", problems)
	}
	for old, replacement := range map[string]string{
		`"format": 1`:                     `"format": 9`,
		`"holder"`:                        `"owner"`,
		`"face": "faces/velmaris-20.png"`: `"face": "../../../etc/passwd"`,
		`"region": "logo"`:                `"region": "nose"`,
		"      480,\n":                    "      4800,\n",
	} {
		dir := filepath.Join(fresh(), "p")
		b, err := os.ReadFile(filepath.Join(dir, "pack.json"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(b, []byte(old)) {
			t.Fatalf("pack.json holds no %s", old)
		}
		os.WriteFile(filepath.Join(dir, "pack.json"), bytes.Replace(b, []byte(old), []byte(replacement), 1), 0o644)
		if _, err := vision.ReadPack(dir); err == nil {
			t.Errorf("a pack with %s was read", replacement)
		}
	}
}

// TestFewCaptures: a pack from too few captures advises and raises nothing.
func TestFewCaptures(t *testing.T) {
	pool, packs := newPool(t, vision.PoolOptions{}), fictional(t)
	for i := range packs.List[0].Products {
		packs.List[0].Products[i].Captures = vision.MinCaptures - 1
	}
	a, _ := examine(t, packs, pool, photograph("velmaris-20", artwork.Tamper{Logo: true}, 3))
	c := candidate(a, "velmaris-20")
	if c == nil || len(failed(c)) > 0 || !strings.Contains(c.Checks[0].Text, "Advice only") {
		t.Errorf("%+v", c)
	}
}

// FuzzFrame: whatever a worker sends, reading it ends in a value or an error, and
// allocates no more than the protocol allows.
func FuzzFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02\x00\x00\x00\x01{}x"))
	f.Add([]byte("\xff\xff\xff\xff\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x10\x00\x00\x00\x00{\"measured\":{\"a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir, err := os.MkdirTemp("", "frame")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/s", Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if c, err := net.Dial("unix", dir+"/s"); err == nil {
				c.Write(data)
				c.Close()
			}
		}()
		c, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var resp vision.Response
		blob, _, err := vision.ReadFrame(c, &resp)
		if err == nil {
			new(vision.Features).UnmarshalBinary(blob) //nolint:errcheck // it may refuse, it may not panic
		}
	})
}

// entry is a line of the manifest of a set of real pictures.
type entry struct {
	path   string
	labels struct {
		Role    string            `json:"role"`
		Split   string            `json:"split"`
		Kind    string            `json:"kind"`
		Regions map[string][4]int `json:"regions"`
	}
}

// TestVisionSet runs on real pictures when INSPECTD_VISION_SET names a folder with
// a manifest.tsv. It reports rates with their n; it fails where genuine packs alarm
// too often or plain tampering is missed.
func TestVisionSet(t *testing.T) {
	set := os.Getenv("INSPECTD_VISION_SET")
	if set == "" {
		t.Skip("SKIP no real pictures were judged: set INSPECTD_VISION_SET to a folder with a manifest.tsv")
	}
	pool := newPool(t, vision.PoolOptions{})
	packs := map[string][]entry{}
	for _, e := range manifest(t, set) {
		top, rest, _ := strings.Cut(e.path, "/")
		switch top {
		case "tamper":
			pack, _, _ := strings.Cut(rest, "/")
			packs[pack] = append(packs[pack], e)
		case "hostile":
			hostileFile(t, pool, filepath.Join(set, e.path))
		}
	}
	genuine, alarms := 0, 0
	hits, tries := map[string]int{}, map[string]int{}
	for _, name := range sortedNames(packs) {
		g, a := judgeSet(t, pool, set, packs[name], hits, tries)
		genuine, alarms = genuine+g, alarms+a
	}
	t.Logf("genuine captures %d, with an alarm %d", genuine, alarms)
	for _, kind := range sortedNames(tries) {
		t.Logf("%-10s found %d of %d", kind, hits[kind], tries[kind])
	}
	if genuine > 0 && alarms*20 > genuine {
		t.Errorf("%d of %d genuine captures alarm", alarms, genuine)
	}
	for _, kind := range []string{"noseal", "color6", "shift2"} {
		if hits[kind]*10 < tries[kind]*9 {
			t.Errorf("%s: only %d of %d found", kind, hits[kind], tries[kind])
		}
	}
}

func sortedNames[V any](m map[string]V) []string {
	var names []string
	for k := range m {
		names = append(names, k)
	}
	slices.Sort(names)
	return names
}

func manifest(t *testing.T, set string) []entry {
	t.Helper()
	f, err := os.Open(filepath.Join(set, "manifest.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []entry
	for lines := bufio.NewScanner(f); lines.Scan(); {
		col := strings.Split(lines.Text(), "\t")
		if len(col) < 5 || col[0] == "path" {
			continue
		}
		e := entry{path: col[0]}
		if json.Unmarshal([]byte(col[4]), &e.labels) == nil {
			out = append(out, e)
		}
	}
	return out
}

func hostileFile(t *testing.T, pool *vision.Pool, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := devices.ProbeImage(b); err == nil && info.Damage == "" {
		t.Errorf("%s was taken for a whole picture", path)
	}
	before := pool.Status().Restarts
	pool.With(context.Background(), func(w *vision.Worker) error { _, _, _, err := w.Open(b); return err }) //nolint:errcheck // refusing is right
	if pool.Status().Restarts != before {
		t.Errorf("%s ended a worker", path)
	}
}

// judgeSet enrols one pack of the set and judges its other pictures.
func judgeSet(t *testing.T, pool *vision.Pool, set string, entries []entry, hits, tries map[string]int) (genuine, alarms int) {
	t.Helper()
	ctx := context.Background()
	read := func(e entry) []byte {
		b, err := os.ReadFile(filepath.Join(set, e.path))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	pack := &vision.Pack{ID: "set", Version: "1"}
	var product *vision.Product
	var captures [][]byte
	for _, e := range entries {
		switch {
		case e.labels.Role == "reference":
			img, err := jpeg.Decode(bytes.NewReader(read(e)))
			if err != nil {
				t.Fatal(err)
			}
			var face bytes.Buffer
			png.Encode(&face, img)
			regions := map[string]vision.Region{}
			for name, r := range e.labels.Regions {
				regions[name] = vision.Region{Kind: name, Rect: r}
			}
			// The middle of the face: what no named region covers.
			regions["face"] = vision.Region{Kind: "colour", Rect: [4]int{img.Bounds().Dx() / 8, img.Bounds().Dy() / 8, img.Bounds().Dx() * 3 / 4, img.Bounds().Dy() * 3 / 4}}
			if product, err = pack.AddProduct(ctx, pool, vision.Product{ID: "p", Name: "p", MMPerPx: 0.1, Regions: regions}, face.Bytes()); err != nil {
				t.Fatal(err)
			}
		case e.labels.Role == "genuine" && e.labels.Split == "enrol":
			captures = append(captures, read(e))
		}
	}
	if err := product.Enrol(ctx, pool, captures); err != nil {
		t.Fatal(entries[0].path, err)
	}
	packs := &vision.Packs{List: []*vision.Pack{pack}}
	for _, e := range entries {
		test := e.labels.Role == "genuine" && e.labels.Split == "test"
		if !test && e.labels.Role != "tamper" {
			continue
		}
		a, _ := examine(t, packs, pool, read(e))
		c := candidate(a, "p")
		alarm := c != nil && len(failed(c)) > 0
		if test {
			genuine++
			if alarm {
				alarms++
				t.Logf("%s alarms: %v", e.path, failed(c))
			}
			continue
		}
		tries[e.labels.Kind]++
		if alarm {
			hits[e.labels.Kind]++
		}
	}
	return genuine, alarms
}

// TestCampaign measures the rates of false alarms and of detection on drawn packs
// that no pack was learnt from, INSPECTD_CAMPAIGN pictures of each product and kind.
func TestCampaign(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("INSPECTD_CAMPAIGN"))
	if err != nil {
		t.Skip("SKIP rates were not measured: set INSPECTD_CAMPAIGN to a number of pictures")
	}
	pool, packs := newPool(t, vision.PoolOptions{}), fictional(t)
	for _, kind := range []struct {
		name   string
		tamper artwork.Tamper
	}{{"genuine", artwork.Tamper{}}, {"logo redrawn", artwork.Tamper{Logo: true}}, {"colour, a fifth of the way to another ink", artwork.Tamper{Colour: 0.2}}, {"seal missing", artwork.Tamper{NoSeal: true}}} {
		judged, alarms := 0, 0
		for i, p := range artwork.Products() {
			face := p.Draw(kind.tamper)
			for k := range n {
				a, _ := examine(t, packs, pool, artwork.JPEG(artwork.Photograph(face, uint64(1_000_000*(i+1)+k))))
				c := candidate(a, p.ID)
				if c == nil || !c.Judged() {
					continue
				}
				judged++
				if len(failed(c)) > 0 {
					alarms++
				}
			}
		}
		t.Logf("%-45s %d pictures, %d judged, %d with a failed check", kind.name, n*len(artwork.Products()), judged, alarms)
	}
}

// BenchmarkExamine is one photograph of two megapixels through the worker, with
// identification, comparison and overlay.
func BenchmarkExamine(b *testing.B) {
	pool, packs := newPool(b, vision.PoolOptions{Workers: 1}), fictional(b)
	picture := photograph("velmaris-20", artwork.Tamper{Logo: true}, 5)
	examine(b, packs, pool, picture)
	for b.Loop() {
		examine(b, packs, pool, picture)
	}
}

// TestWorkerByHand: the worker started by hand says what it is.
func TestWorkerByHand(t *testing.T) {
	newPool(t, vision.PoolOptions{}) // there is one
	out, err := exec.Command(os.Getenv("INSPECTD_VISION")).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 64 || !bytes.Contains(out, []byte("nothing to run by hand")) {
		t.Errorf("%v: %s", err, out)
	}
}
