package lane

import (
	"fmt"
	"time"
)

// Outcome is the answer of a Check. The zero value is Inconclusive: a check that
// could not run never reads as a pass.
type Outcome int

// Outcomes.
const (
	Inconclusive Outcome = iota
	Pass
	Fail
)

var outcomeNames = [...]string{"inconclusive", "pass", "fail"}

func (o Outcome) String() string { return outcomeNames[o] }

// MarshalText writes pass, fail or inconclusive.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads what MarshalText writes; anything else is an error.
func (o *Outcome) UnmarshalText(b []byte) error {
	for i, n := range outcomeNames {
		if n == string(b) {
			*o = Outcome(i)
			return nil
		}
	}
	return fmt.Errorf("outcome %q is none of pass, fail, inconclusive", b)
}

// Score is a measured value with what it means.
type Score struct {
	Value  float64 `json:"value"`
	Metric string  `json:"metric"`          // e.g. zncc, hqi, sigma
	Scale  float64 `json:"scale,omitempty"` // the best or full-scale value, when the metric has one
	Better string  `json:"better"`          // higher or lower
}

// Reference says what an item was compared with.
type Reference struct {
	Pack    string `json:"pack"`
	Version string `json:"version"`
	SHA256  Digest `json:"sha256"`
}

// Algorithm names the method of a check and its version.
type Algorithm struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Check is one question asked of an Inspection, and its answer.
type Check struct {
	Name           string       `json:"name"` // e.g. vision/logo, label/scan-in, consistency/product
	Outcome        Outcome      `json:"outcome"`
	Text           string       `json:"text"` // one sentence: what was asked and what came out
	Score          *Score       `json:"score,omitempty"`
	Threshold      *float64     `json:"threshold,omitempty"`
	FalseAlarmRate *float64     `json:"false_alarm_rate,omitempty"` // per genuine item, where known
	Region         [][2]float64 `json:"region,omitempty"`           // corners in pixels of the first evidence
	Codes          []Code       `json:"codes,omitempty"`
	Reference      *Reference   `json:"reference,omitempty"`
	Algorithm      *Algorithm   `json:"algorithm,omitempty"`
	Evidence       []Digest     `json:"evidence,omitempty"`
}

// Strength says how much a Finding weighs.
type Strength string

// Strengths.
const (
	Suspect Strength = "suspect"
	High    Strength = "high"
)

// Finding is a Check that spoke against the goods. It is raised once, may be
// withdrawn, and is never deleted.
type Finding struct {
	ID       string   `json:"id"`
	Check    string   `json:"check"`
	Strength Strength `json:"strength"`
	Codes    []Code   `json:"codes"`
	Text     string   `json:"text"`
	Evidence []Digest `json:"evidence"`
}

// Reason is one entry of the explanation of a score.
type Reason struct {
	Code   Code   `json:"code"`
	Check  string `json:"check"`
	Weight int    `json:"weight"`
	Text   string `json:"text"`
}

// ObservationRef is an Observation as a Report cites it.
type ObservationRef struct {
	ID            string     `json:"id"`
	Device        string     `json:"device"`
	Kind          Kind       `json:"kind"`
	Observed      *time.Time `json:"observed,omitempty"`
	Received      time.Time  `json:"received"`
	Clock         ClockState `json:"clock"`
	QoS           byte       `json:"qos"`
	Authenticated string     `json:"authenticated"`
	Evidence      []Evidence `json:"evidence"`
	Notes         []Problem  `json:"notes,omitempty"`
}

// Report is what a whole Inspection amounts to at one revision. Immutable.
type Report struct {
	Inspection     string           `json:"inspection"`
	Revision       int              `json:"revision"`
	Lane           Lane             `json:"lane"`
	Identifiers    []Identifier     `json:"identifiers"`
	Opened         time.Time        `json:"opened"`
	Closed         time.Time        `json:"closed"`
	Complete       bool             `json:"complete"`
	Missing        []Kind           `json:"missing,omitempty"`
	Recommendation Recommendation   `json:"recommendation"`
	Score          int              `json:"score"` // 0 to 100
	Reasons        []Reason         `json:"reasons"`
	Findings       []Finding        `json:"findings"`
	Checks         []Check          `json:"checks"`
	Observations   []ObservationRef `json:"observations"`
	ConfigSHA256   Digest           `json:"config_sha256"`
	Software       string           `json:"software"`
}

// Recommendation is what the daemon proposes to the officer, who decides.
type Recommendation string

// recommendations in order of weight; a report carries the heaviest that applies.
var recommendations = []Recommendation{
	"none", "document_check", "rescan", "open_inspect", "retest", "lab_sample",
	"consult_rights_holder", "propose_suspension", "propose_ex_officio",
	"propose_small_consignment", "hold_safety", "hold_evidence",
}

// Rank is the place of r in the order of recommendations, -1 if it is none of them.
func (r Recommendation) Rank() int {
	for i, v := range recommendations {
		if v == r {
			return i
		}
	}
	return -1
}
