package vision

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"inspectd.org/inspectd/agent/evidence"
	"inspectd.org/inspectd/agent/lane"
)

// PackFormat is the version of pack.json that this program reads.
const PackFormat = 1

// MinCaptures is how many genuine captures a product needs before its checks may
// raise findings. With fewer they only advise: nobody knows yet what normal is.
const MinCaptures = 8

// Pack is a signed folder of one rights holder: genuine references and known
// counterfeit features.
type Pack struct {
	Format   int       `json:"format"`
	ID       string    `json:"id"`
	Holder   string    `json:"holder"`
	Version  string    `json:"version"`
	Products []Product `json:"products"`

	// SHA256 names this version of the folder: the digest of its signed list of files.
	SHA256 lane.Digest `json:"-"`
}

// Product is one product with one face.
type Product struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	GTINs    []string          `json:"gtins"` // 14 digits
	Face     string            `json:"face"`  // file of the genuine face, PNG
	MMPerPx  float64           `json:"mm_per_px"`
	Regions  map[string]Region `json:"regions"`
	Captures int               `json:"captures"` // genuine captures behind Normal
	Normal   map[string]Normal `json:"normal"`   // per region: what genuine captures measure
	Fakes    []Fake            `json:"fakes,omitempty"`

	features *Features
	face     []byte
}

// Normal is what genuine captures of a region measure: mean and standard
// deviation of each quantity.
type Normal struct {
	Structure Spread    `json:"structure"` // Fisher z of the region's correlation
	Detail    Spread    `json:"detail"`    // Fisher z of its worst tile
	Shift     Spread    `json:"shift"`     // pixels of the face
	Lab       [3]Spread `json:"lab"`
}

// Spread is the mean and standard deviation of a quantity over genuine captures.
type Spread struct {
	Mean float64 `json:"mean"`
	SD   float64 `json:"sd"`
}

// Fake is a known counterfeit feature.
type Fake struct {
	Name    string `json:"name"`
	Region  string `json:"region"`
	Picture string `json:"picture"` // file, PNG, as large as the region
	// Margin is the spread, over genuine captures, of correlation with the fake minus
	// correlation with the genuine feature.
	Margin Spread `json:"margin"`

	picture []byte
}

// featuresFile is the face's features beside its picture, with the extractor's
// version in its name: descriptors of another extractor match nothing.
func featuresFile(face string) string { return strings.TrimSuffix(face, ".png") + ".orb1" }

// Packs are the packs a lane uses, swapped as a whole and never changed.
type Packs struct {
	List []*Pack
	// Digest changes when any of the packs does; it is part of the key under which
	// answers about images are kept.
	Digest lane.Digest
}

// LoadPacks reads every pack below dir that a trusted key has signed. What cannot
// be used is returned as errors beside the packs that can.
func LoadPacks(dir string, trusted []ed25519.PublicKey) (*Packs, []error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return &Packs{Digest: lane.Sum(nil)}, nil
	}
	if err != nil {
		return &Packs{Digest: lane.Sum(nil)}, []error{err}
	}
	packs := &Packs{}
	var problems []error
	var names []string
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		p, err := loadPack(filepath.Join(dir, e.Name()), trusted)
		if err != nil {
			problems = append(problems, fmt.Errorf("pack %s is not used: %w", e.Name(), err))
			continue
		}
		packs.List = append(packs.List, p)
		names = append(names, string(p.SHA256))
	}
	packs.Digest = lane.Sum([]byte(strings.Join(names, "\n")))
	return packs, problems
}

func loadPack(dir string, trusted []ed25519.PublicKey) (*Pack, error) {
	sum, err := evidence.VerifyFolder(dir, trusted)
	if err != nil {
		return nil, err
	}
	p, err := ReadPack(dir)
	if err != nil {
		return nil, err
	}
	p.SHA256 = lane.Digest(sum)
	return p, nil
}

// ReadPack reads a pack without regard to its signature, for building one.
func ReadPack(dir string) (*Pack, error) {
	b, err := os.ReadFile(filepath.Join(dir, "pack.json"))
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	p := &Pack{}
	if err := dec.Decode(p); err != nil {
		return nil, fmt.Errorf("pack.json: %w", err)
	}
	if p.Format != PackFormat {
		return nil, fmt.Errorf("pack.json has format %d, this program reads %d", p.Format, PackFormat)
	}
	for i := range p.Products {
		if err := p.Products[i].load(dir); err != nil {
			return nil, fmt.Errorf("product %s: %w", p.Products[i].ID, err)
		}
	}
	return p, nil
}

// load reads and checks the files of a product. A pack is signed, yet its numbers
// go into loops and pictures: each must make sense.
func (p *Product) load(dir string) (err error) {
	if p.face, err = readInside(dir, p.Face); err != nil {
		return err
	}
	size, err := png.DecodeConfig(bytes.NewReader(p.face))
	if err != nil {
		return fmt.Errorf("%s: %w", p.Face, err)
	}
	if size.Width > 4000 || size.Height > 4000 {
		return fmt.Errorf("%s is %dx%d, a face is at most 4000x4000", p.Face, size.Width, size.Height)
	}
	raw, err := readInside(dir, featuresFile(p.Face))
	if err != nil {
		return err
	}
	p.features = new(Features)
	if err := p.features.UnmarshalBinary(raw); err != nil {
		return fmt.Errorf("%s: %w", featuresFile(p.Face), err)
	}
	for name, r := range p.Regions {
		if r.Rect[0] < 0 || r.Rect[1] < 0 || r.Rect[2] < 8 || r.Rect[3] < 8 || r.Rect[0]+r.Rect[2] > size.Width || r.Rect[1]+r.Rect[3] > size.Height {
			return fmt.Errorf("region %s lies outside of the face", name)
		}
		if _, ok := p.Normal[name]; !ok && p.Captures > 0 {
			return fmt.Errorf("region %s was never measured", name)
		}
	}
	for i := range p.Fakes {
		f := &p.Fakes[i]
		if _, ok := p.Regions[f.Region]; !ok {
			return fmt.Errorf("known fake %q is of region %q, which the face does not have", f.Name, f.Region)
		}
		if f.picture, err = readInside(dir, f.Picture); err != nil {
			return err
		}
	}
	return nil
}

// readInside reads a file that must lie inside dir.
func readInside(dir, name string) ([]byte, error) {
	if !filepath.IsLocal(name) {
		return nil, fmt.Errorf("%q points outside of the pack", name)
	}
	return os.ReadFile(filepath.Join(dir, name))
}

// HasGTIN reports whether the product carries one of the GTINs.
func (p *Product) HasGTIN(gtins []string) bool {
	return slices.ContainsFunc(p.GTINs, func(g string) bool { return slices.Contains(gtins, g) })
}

// Known returns the names of the products that carry one of the GTINs.
func (p *Packs) Known(gtins []string) (names []string) {
	for _, pack := range p.List {
		for i := range pack.Products {
			if pack.Products[i].HasGTIN(gtins) {
				names = append(names, pack.Products[i].Name)
			}
		}
	}
	return names
}
