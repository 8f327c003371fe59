package evidence

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const source = "/insp/demo/lane-01"

// chain seals n events in commits of the given sizes.
func chain(t *testing.T, key *Key, sizes ...int) []*Event {
	t.Helper()
	head := Genesis(source, key.Public())
	var all []*Event
	for _, n := range sizes {
		var commit []*Event
		for range n {
			seq := uint64(len(all) + len(commit) + 1)
			commit = append(commit, &Event{Source: source, Epoch: 1, Sequence: seq, ID: fmt.Sprint("id", seq), Type: "org.inspectd.lane.changed.v1",
				Time: time.Unix(1_800_000_000, int64(seq)), Recorded: time.Unix(1_800_000_001, 0), Data: fmt.Appendf(nil, `{"n":%d}`, seq)})
		}
		var err error
		if head, err = SealCommit(key, head, commit); err != nil {
			t.Fatal(err)
		}
		all = append(all, commit...)
	}
	return all
}

func newKey(t *testing.T) *Key {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func verify(key ed25519.PublicKey, events []*Event) error {
	c := NewChain(source, key)
	for _, e := range events {
		if err := c.Next(e); err != nil {
			return err
		}
	}
	return nil
}

// TestChain: commits of any size verify, event by event and as a whole, also after
// a journey as message headers; each carries few digests.
func TestChain(t *testing.T) {
	key := newKey(t)
	events := chain(t, key, 1, 3, 16, 17, 100)
	for i, e := range events {
		h := e.Headers()
		back, err := FromHeaders(func(k string) string {
			if v := h[k]; len(v) > 0 {
				return v[0]
			}
			return ""
		}, e.Data)
		if err != nil {
			t.Fatal(err)
		}
		if len(e.Seal.Path) > MaxPath {
			t.Errorf("event %d carries %d digests", e.Sequence, len(e.Seal.Path))
		}
		if err := back.Verify(key.Public()); err != nil {
			t.Errorf("event %d by itself: %v", e.Sequence, err)
		}
		events[i] = back
	}
	if err := verify(key.Public(), events); err != nil {
		t.Error(err)
	}
}

// TestTampering: whatever is changed, left out, put in or turned round shows, at
// the right place.
func TestTampering(t *testing.T) {
	key, other := newKey(t), newKey(t)
	for name, c := range map[string]struct {
		change func([]*Event) []*Event
		at     uint64
	}{
		"content":        {func(e []*Event) []*Event { e[4].Data = []byte(`{"n":99}`); return e }, 5},
		"time":           {func(e []*Event) []*Event { e[4].Time = e[4].Time.Add(time.Hour); return e }, 5},
		"subject":        {func(e []*Event) []*Event { e[4].Subject = "x"; return e }, 5},
		"epoch":          {func(e []*Event) []*Event { e[4].Epoch = 7; return e }, 5},
		"signature":      {func(e []*Event) []*Event { e[4].Seal.Sig[0] ^= 1; return e }, 4}, // shared by the commit 4 to 6
		"left out":       {func(e []*Event) []*Event { return append(e[:3:3], e[4:]...) }, 4},
		"turned round":   {func(e []*Event) []*Event { e[3], e[4] = e[4], e[3]; return e }, 4},
		"put in twice":   {func(e []*Event) []*Event { return append(e[:4:4], e[3:]...) }, 5},
		"path cut":       {func(e []*Event) []*Event { e[3].Seal.Path = e[3].Seal.Path[:1]; return e }, 4},
		"another's seal": {func(e []*Event) []*Event { return chain(t, other, 3, 3, 3) }, 1},
	} {
		events := c.change(chain(t, key, 3, 3, 3))
		var broken *BreakError
		if err := verify(key.Public(), events); !errors.As(err, &broken) || broken.Sequence != c.at {
			t.Errorf("%s: %v, want a break at event %d", name, err, c.at)
		}
	}
}

func TestKeyFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lane.pem")
	key := newKey(t)
	if err := key.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("private key has mode %v", info.Mode())
	}
	back, err := ReadKey(path)
	public, err2 := ReadPublicKey(path + ".pub")
	if err != nil || err2 != nil || back.ID() != key.ID() || KeyID(public) != key.ID() {
		t.Errorf("%v %v", err, err2)
	}
	if err := newKey(t).WriteFile(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("a key was overwritten: %v", err)
	}
	if _, err := ReadKey(path + ".pub"); err == nil {
		t.Error("a public key was read as a private one")
	}
}

func TestFolder(t *testing.T) {
	key := newKey(t)
	trusted := []ed25519.PublicKey{newKey(t).Public(), key.Public()}
	fresh := func() string {
		dir := t.TempDir()
		os.MkdirAll(filepath.Join(dir, "sub"), 0o755)
		os.WriteFile(filepath.Join(dir, "a.txt"), []byte("a"), 0o644)
		os.WriteFile(filepath.Join(dir, "sub", "b.txt"), []byte("b"), 0o644)
		if err := SignFolder(dir, key); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dir := fresh()
	sum, err := VerifyFolder(dir, trusted)
	if err != nil || len(sum) != 64 {
		t.Fatalf("%q %v", sum, err)
	}
	if _, err := VerifyFolder(dir, trusted[:1]); !errors.Is(err, ErrUntrusted) {
		t.Errorf("a stranger's folder: %v", err)
	}
	for want, change := range map[string]func(dir string){
		"missing or changed":     func(dir string) { os.WriteFile(filepath.Join(dir, "a.txt"), []byte("x"), 0o644) },
		"missing or changed ":    func(dir string) { os.Remove(filepath.Join(dir, "sub", "b.txt")) },
		"not in the signed list": func(dir string) { os.WriteFile(filepath.Join(dir, "c.txt"), nil, 0o644) },
		"no regular file":        func(dir string) { os.Symlink("/etc/passwd", filepath.Join(dir, "link")) },
	} {
		dir := fresh()
		change(dir)
		if _, err := VerifyFolder(dir, trusted); err == nil || !strings.Contains(err.Error(), strings.TrimSpace(want)) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
