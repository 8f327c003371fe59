package agent

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"

	"inspectd.org/inspectd/agent/lane"
)

var codeLiteral = regexp.MustCompile(`"((?:LBL|IMG|FOR|RISK|CUS|SYS|MSG)_[A-Z_]+)"`)

// TestEveryCodeIsKnown: a code that is used anywhere stands in the table, and the
// other way round. One that did not would weigh nothing, and its finding would be
// lost without a word.
func TestEveryCodeIsKnown(t *testing.T) {
	used := map[lane.Code]bool{}
	err := fs.WalkDir(os.DirFS(".."), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, "lane/codes.go") {
			return err
		}
		b, err := os.ReadFile("../" + path)
		for _, m := range codeLiteral.FindAllSubmatch(b, -1) {
			code := lane.Code(m[1])
			used[code] = true
			if _, ok := lane.Codes[code]; !ok {
				t.Errorf("%s uses %s, which the table does not know", path, code)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for code := range lane.Codes {
		if !used[code] {
			t.Errorf("nothing uses %s", code)
		}
	}
}
