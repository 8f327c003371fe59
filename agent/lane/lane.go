// Package lane holds the nouns of an inspection lane: observations, inspections,
// checks, findings and reports, the table of reason codes, and the pure rules
// that group observations into inspections.
//
// It performs no I/O, reads no clock and imports nothing of ours, so that what
// a report means can be read, tested and audited here alone.
package lane

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"regexp"
	"time"
)

// Lane names one lane machine. Both tokens become part of subjects and topics.
type Lane struct {
	Site string `json:"site" yaml:"site"` // e.g. "nlrtm"
	ID   string `json:"id" yaml:"id"`     // e.g. "lane-03", unique within the site
}

// Source is the lane's CloudEvents source, the name its chain is bound to.
func (l Lane) Source() string { return "/insp/" + l.Site + "/" + l.ID }

var token = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

// ValidToken reports whether s may name a site, a lane or a device:
// 1 to 32 characters of a-z, 0-9 and '-'.
func ValidToken(s string) bool { return token.MatchString(s) }

// Kind is what a device measures.
type Kind string

// The kinds of device a lane has.
const (
	XRay     Kind = "xray"
	Label    Kind = "label"
	Camera   Kind = "camera"
	Forensic Kind = "forensic"
)

// ClockState tells how far a wall-clock time may be trusted.
type ClockState string

// Clock states. A time labelled anything but ClockSynced only labels; order
// always comes from the arrival sequence.
const (
	ClockSynced   ClockState = "synced"
	ClockUnsynced ClockState = "unsynced"
	ClockInsane   ClockState = "insane" // the machine's clock shows a time before the software was built
)

// Digest is a SHA-256 in lower-case hexadecimal; it names evidence.
type Digest string

// Sum returns the digest of b.
func Sum(b []byte) Digest {
	h := sha256.Sum256(b)
	return Digest(hex.EncodeToString(h[:]))
}

var hexDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Valid reports whether d has the form of a SHA-256.
func (d Digest) Valid() bool { return hexDigest.MatchString(string(d)) }

// crockford is the alphabet of ULIDs: no I, L, O or U, so that ids survive being
// read aloud.
var crockford = base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding)

// DeriveID makes an id of 26 characters (130 bits) from what it identifies.
// Ids are derived, never drawn, so that repeating a step after a crash gives the
// same id. Parts are length-prefixed: ("ab","c") and ("a","bc") differ.
func DeriveID(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s,", len(p), p)
	}
	return crockford.EncodeToString(h.Sum(nil))[:26]
}

// Evidence is bytes kept unchanged, named by their SHA-256.
type Evidence struct {
	SHA256    Digest `json:"sha256"`
	MediaType string `json:"media_type"`
	Size      int64  `json:"size"`
	Role      string `json:"role"` // original, he, le, overlay...
}

// Scheme is the naming system of an identifier.
type Scheme string

// Identifier schemes.
const (
	SSCC  Scheme = "sscc"
	GTIN  Scheme = "gtin"
	SGTIN Scheme = "sgtin" // GTIN and serial: "<gtin14>.<serial>"
	S10   Scheme = "s10"
	Belt  Scheme = "belt" // the lane's own item id, as devices report it
)

// Unique reports whether one identifier of this scheme belongs to one item only.
// A GTIN does not: every pack of a product carries the same.
func (s Scheme) Unique() bool { return s == SSCC || s == SGTIN || s == S10 }

// Identifier is a key of the item in normal form; Raw is the form that was read.
type Identifier struct {
	Scheme Scheme `json:"scheme"`
	Value  string `json:"value"`
	Raw    string `json:"raw,omitempty"`
}

// Key is the identifier as one string, for indexes.
func (i Identifier) Key() string { return string(i.Scheme) + ":" + i.Value }

// Problem is something wrong with an input, as one reason code, the place and
// one sentence an officer understands.
type Problem struct {
	Code     Code   `json:"code"`
	Severity string `json:"severity"`          // error or warning
	Element  string `json:"element,omitempty"` // e.g. the GS1 application identifier
	Position int    `json:"position"`          // byte offset into the data
	Text     string `json:"text"`
}

// LabelRead is what a scanner read and what it says.
type LabelRead struct {
	AIM      string    `json:"aim,omitempty"` // AIM symbology identifier, e.g. "]d2"
	Data     string    `json:"data"`
	Scheme   string    `json:"scheme"` // gs1, gtin, sscc, s10, opaque
	Problems []Problem `json:"problems,omitempty"`
}

// ImageTaken describes an image; its pixels are evidence.
type ImageTaken struct {
	MediaType string  `json:"media_type"`
	Width     int     `json:"width"`
	Height    int     `json:"height"`
	Depth     int     `json:"depth"`               // bits per sample
	MMPerPx   float64 `json:"mm_per_px,omitempty"` // 0 when the device does not tell
	Plane     string  `json:"plane,omitempty"`     // view or energy, from topic or record
	Damage    string  `json:"damage,omitempty"`    // why the file is incomplete, empty when whole
	Lossy     bool    `json:"lossy,omitempty"`     // JPEG
	Code      Code    `json:"code,omitempty"`      // reason code of Damage
}

// TestResult is the result record of a forensic instrument, as it reported it.
type TestResult struct {
	Technique   string      `json:"technique"`
	Instrument  string      `json:"instrument,omitempty"`
	Calibration Calibration `json:"calibration"`
	Method      string      `json:"method,omitempty"`
	Verdict     string      `json:"verdict"` // pass, fail, inconclusive; empty when the device gives none
	Score       *Score      `json:"score,omitempty"`
	Threshold   *float64    `json:"threshold,omitempty"`
	BestHit     string      `json:"best_hit,omitempty"`
	Spectrum    *Spectrum   `json:"spectrum,omitempty"`
}

// Calibration is the state of an instrument's calibration as it reports it.
type Calibration struct {
	Status string `json:"status,omitempty"` // valid, expired, failed; empty when not told
	Time   string `json:"time,omitempty"`
}

// Spectrum sums up a spectrum that was read; its points stay in the evidence.
type Spectrum struct {
	Title    string   `json:"title,omitempty"`
	XUnits   string   `json:"x_units,omitempty"`
	YUnits   string   `json:"y_units,omitempty"`
	Points   int      `json:"points"`
	FirstX   float64  `json:"first_x"`
	LastX    float64  `json:"last_x"`
	Warnings []string `json:"warnings,omitempty"`
}

// Observation is one decoded message of one device.
type Observation struct {
	ID        string     `json:"id"`
	Seq       uint64     `json:"seq"` // arrival order on this lane, without gaps; orders everything
	Device    string     `json:"device"`
	Kind      Kind       `json:"kind"`
	MessageID string     `json:"message_id,omitempty"` // the device's own id of this message
	Topic     string     `json:"topic"`
	QoS       byte       `json:"qos"`
	Authentic string     `json:"authenticated"` // how the device was known: device, broker, no
	Item      string     `json:"item,omitempty"`
	Capture   string     `json:"capture,omitempty"`
	Observed  *time.Time `json:"observed,omitempty"` // the device's clock; nil when it tells none
	Received  time.Time  `json:"received"`           // this machine's clock
	Clock     ClockState `json:"clock"`
	// Elapsed is the lane's own running time at arrival. It never goes back, not
	// even across restarts or clock changes; silence is measured with it.
	Elapsed     time.Duration `json:"elapsed_ns"`
	Identifiers []Identifier  `json:"identifiers,omitempty"`
	Label       *LabelRead    `json:"label,omitempty"`
	Image       *ImageTaken   `json:"image,omitempty"`
	Test        *TestResult   `json:"test,omitempty"`
	Evidence    []Evidence    `json:"evidence"`
	Notes       []Problem     `json:"notes,omitempty"` // oddities of transport and time, none of which speaks against the goods
}

// Original is the evidence as the device sent it.
func (o *Observation) Original() Evidence { return o.Evidence[0] }
