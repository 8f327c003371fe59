// Package console is the lane's HTTP API behind two doors: the Unix socket for
// commands, and a page on a loopback address for the people at the lane.
package console

import (
	"time"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/agent/upstream"
	"inspectd.org/inspectd/devices"
	"inspectd.org/inspectd/queue"
	"inspectd.org/inspectd/vision"
)

// Status is how the lane stands: inspectd.status/v1.
type Status struct {
	Schema    string                `json:"schema"`
	Lane      lane.Lane             `json:"lane"`
	Name      string                `json:"name,omitempty"`
	State     string                `json:"state"` // ready, or not-ready: goods cannot be inspected now
	Since     time.Time             `json:"since"`
	Version   string                `json:"version"`
	Devices   []Device              `json:"devices"`
	MQTT      devices.SessionStatus `json:"mqtt"`
	Vision    Vision                `json:"vision"`
	Store     *queue.Stats          `json:"store"`
	Watchlist int                   `json:"watchlist_entries"`
	Upstream  upstream.Status       `json:"upstream"`
	Problems  []Problem             `json:"problems"`
}

// Device is how one device stands.
type Device struct {
	ID    string    `json:"id"`
	Name  string    `json:"name,omitempty"`
	Kind  lane.Kind `json:"kind"`
	State string    `json:"state"` // online, idle, silent, never
	queue.DeviceStats
}

// Vision is how the image checks stand.
type Vision struct {
	vision.PoolStatus
	Packs []Pack `json:"packs"`
}

// Pack is an installed reference pack.
type Pack struct {
	ID       string `json:"id"`
	Version  string `json:"version"`
	Products int    `json:"products"`
}

// Problem is something that somebody should look at, with what to do.
type Problem struct {
	Code     string `json:"code"`
	Severity string `json:"severity"` // error or warning
	Text     string `json:"text"`
	Cure     string `json:"cure"`
}
