package evidence

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// manifestName is the signed list of a folder's files.
const manifestName = "MANIFEST.json"

type manifest struct {
	Files map[string]string `json:"files"` // slash-separated path to SHA-256
	Key   string            `json:"key,omitempty"`
	Sig   string            `json:"sig,omitempty"` // over manifestStatement
}

func manifestStatement(files map[string]string) []byte {
	b := []byte("inspectd folder v1\n")
	for _, name := range slices.Sorted(maps.Keys(files)) {
		b = fmt.Appendf(b, "%s  %s\n", files[name], name)
	}
	return b
}

// ErrUntrusted is returned when a folder's signature is by none of the trusted keys.
var ErrUntrusted = errors.New("not signed by a key this lane trusts")

// SignFolder hashes every regular file below dir and writes the signed list.
func SignFolder(dir string, key *Key) error {
	files, err := hashFolder(os.DirFS(dir))
	if err != nil {
		return fmt.Errorf("sign %s: %w", dir, err)
	}
	m := manifest{Files: files, Key: key.ID(),
		Sig: base64.StdEncoding.EncodeToString(ed25519.Sign(key.private, manifestStatement(files)))}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestName), append(b, '\n'), 0o644)
}

// VerifyFolder checks that dir holds exactly the files of its list, unchanged,
// and that one of the trusted keys signed it. It returns the digest of the list,
// which names this version of the folder.
func VerifyFolder(dir string, trusted []ed25519.PublicKey) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return "", fmt.Errorf("verify %s: %w", dir, err)
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return "", fmt.Errorf("verify %s: %s: %w", dir, manifestName, err)
	}
	sig, err := base64.StdEncoding.DecodeString(m.Sig)
	if err != nil {
		return "", fmt.Errorf("verify %s: signature: %w", dir, err)
	}
	statement := manifestStatement(m.Files)
	if !slices.ContainsFunc(trusted, func(k ed25519.PublicKey) bool { return ed25519.Verify(k, statement, sig) }) {
		return "", fmt.Errorf("verify %s (signed with key %s): %w", dir, m.Key, ErrUntrusted)
	}
	files, err := hashFolder(os.DirFS(dir))
	if err != nil {
		return "", fmt.Errorf("verify %s: %w", dir, err)
	}
	for name, sum := range m.Files {
		if files[name] != sum {
			return "", fmt.Errorf("verify %s: %s is missing or changed", dir, name)
		}
	}
	for name := range files {
		if _, ok := m.Files[name]; !ok {
			return "", fmt.Errorf("verify %s: %s is not in the signed list", dir, name)
		}
	}
	sum := sha256.Sum256(statement)
	return hex.EncodeToString(sum[:]), nil
}

func hashFolder(dir fs.FS) (map[string]string, error) {
	files := map[string]string{}
	err := fs.WalkDir(dir, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path == manifestName {
			return err
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s is no regular file", path)
		}
		b, err := fs.ReadFile(dir, path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		files[path] = hex.EncodeToString(sum[:])
		return nil
	})
	return files, err
}
