package agent

import (
	"fmt"
	"slices"
	"time"

	"inspectd.org/inspectd/agent/console"
	"inspectd.org/inspectd/agent/upstream"
	"inspectd.org/inspectd/devices"
)

// Status gathers how the lane stands.
func (d *Daemon) Status() (*console.Status, error) {
	stats, err := d.store.Stats()
	if err != nil {
		return nil, err
	}
	ref := d.reference.Load()
	s := &console.Status{Schema: "inspectd.status/v1", Lane: d.store.Lane(), Name: d.cfg.Lane.Name, State: "ready",
		Since: d.started, Version: d.opts.Version, MQTT: d.session.Status(), Store: stats, Upstream: d.link.Status(),
		Vision: console.Vision{PoolStatus: d.pool.Status(), Packs: []console.Pack{}}, Problems: []console.Problem{}}
	s.Watchlist = ref.watchlist.Len()
	for _, p := range ref.packs.List {
		s.Vision.Packs = append(s.Vision.Packs, console.Pack{ID: p.ID, Version: p.Version, Products: len(p.Products)})
	}
	for _, id := range d.registry.IDs() {
		cfg, _ := d.registry.Device(id)
		s.Devices = append(s.Devices, console.Device{ID: id, Name: cfg.Name, Kind: cfg.Kind(),
			State: deviceState(cfg, stats.Devices[id].Last, time.Now()), DeviceStats: stats.Devices[id]})
	}
	d.problems(s, ref)
	return s, nil
}

// silentAfter is how many missed heartbeats make a device silent.
const silentAfter = 3

// fresh is how long a refused message is news.
const fresh = time.Hour

func deviceState(cfg devices.Device, last, now time.Time) string {
	switch {
	case last.IsZero():
		return "never"
	case cfg.Heartbeat > 0 && now.Sub(last) > silentAfter*cfg.Heartbeat:
		return "silent"
	case cfg.Heartbeat > 0 || now.Sub(last) < time.Minute:
		return "online"
	}
	return "idle"
}

// problems lists what somebody should look at. Whatever keeps goods from being
// inspected also makes the lane not ready; headquarters being away does not.
func (d *Daemon) problems(s *console.Status, ref *reference) {
	add := func(code, severity, cure, format string, args ...any) {
		s.Problems = append(s.Problems, console.Problem{Code: code, Severity: severity, Text: fmt.Sprintf(format, args...), Cure: cure})
		if severity == "error" {
			s.State = "not-ready"
		}
	}
	d.mu.Lock()
	full := d.full
	d.mu.Unlock()
	if full != nil {
		add("QUE009", "error", "Free space on that disk. Intake goes on by itself; nothing is lost, the broker holds the messages.", "%v", full)
	}
	if !s.MQTT.Connected {
		add("MQT001", "error", "Is the broker running, and mqtt.connect.url right? The lane keeps trying.", "No connection to the broker at %s: %s", s.MQTT.Broker, s.MQTT.Error)
	}
	for _, f := range s.MQTT.Refused {
		add("MQT015", "error", "Give the lane's user the right to read this topic in the broker's access list.", "The broker refuses the subscription to %s", f)
	}
	if s.MQTT.ShortLived >= 3 {
		add("MQT017", "warning", "Does another program, or another lane with a copied configuration, use the same client id? Set mqtt.connect.client_id.", "The broker ended the last %d connections within seconds", s.MQTT.ShortLived)
	}
	if s.MQTT.Retained > 0 {
		add("MQT025", "warning", "Switch off 'retain' in the device: retained messages are the state of a topic and are not taken as observations.", "%d retained messages were passed over; the last on %s", s.MQTT.Retained, s.MQTT.RetainedTopic)
	}
	if s.MQTT.BrokerDropped > 0 {
		add("MQT020", "warning", "Raise the broker's queue limits: see configs/mosquitto-inspectd.conf.", "The broker gave up %d messages before the lane could take them", s.MQTT.BrokerDropped)
	}
	for _, dev := range s.Devices {
		if dev.State == "silent" {
			add("DEV014", "warning", "Is it switched on? Its network light?", "%s: no message for %s", dev.ID, time.Since(dev.Last).Round(time.Second))
		}
		if dev.QoS0 > 0 {
			add("DEV016", "warning", "Set the device to QoS 1: nobody notices when one of these is lost.", "%s sent %d messages without delivery guarantee (QoS 0)", dev.ID, dev.QoS0)
		}
		if dev.LastRefusal != nil && time.Since(dev.RefusedAt) < fresh {
			add("DEV021", "warning", "Compare the device's settings with its profile. The bytes are kept.",
				"%s sent something unreadable %s ago: %s %s (so far %d refused, %d images damaged)", dev.ID,
				time.Since(dev.RefusedAt).Round(time.Second), dev.LastRefusal.Code, dev.LastRefusal.Reason, dev.Quarantined, dev.Damaged)
		}
	}
	if unknown := s.Store.Devices["?"]; unknown.Quarantined > 0 && time.Since(unknown.RefusedAt) < fresh {
		add("DEV030", "warning", "Add the device to the configuration, or give its topic to another program.", "%d messages came on topics of no configured device; the last: %s", unknown.Quarantined, unknown.LastRefusal.Reason)
	}
	cameras := slices.ContainsFunc(s.Devices, func(dev console.Device) bool { return dev.Kind == "camera" })
	if cameras && !s.Vision.Available && s.Vision.Error != "" {
		add("VIS001", "warning", "Install inspectd-vision beside inspectd, or set vision.worker. Until then every picture's check says inconclusive.", "Pictures are not examined: %s", s.Vision.Error)
	}
	for _, err := range ref.problems {
		add("VIS010", "warning", "Install a pack that is whole and signed by a key in the trust folder, then send the daemon SIGHUP (kill -HUP).", "%v", err)
	}
	if ref.listError != nil {
		add("CTL010", "warning", fmt.Sprintf("Correct the file, then send the daemon SIGHUP (kill -HUP). Until then a list of %d entries is in force.", ref.watchlist.Len()), "The watchlist is not used: %v", ref.listError)
	}
	if s.Upstream.Upload != "" && s.Upstream.Connected {
		add("NAT006", "warning", "Show this message to headquarters. Evidence is kept here and sent when it is mended.", "%d pieces of evidence wait: %s", s.Store.Uploads, s.Upstream.Upload)
	}
	switch s.Upstream.State {
	case upstream.Cloned:
		add("NAT020", "warning", "Either another machine runs with a copy of this data folder, or a lane of this name was set up anew. Ask headquarters; a new lane needs a new id.", "Events are held back for good: %s", s.Upstream.Error)
	case upstream.Refused:
		add("NAT004", "warning", "Show this message to headquarters. Events are kept here and sent when it is mended.", "Headquarters does not take events: %s", s.Upstream.Error)
	case upstream.Connecting:
		if s.Store.Waiting > 0 {
			add("NAT001", "warning", "Check the network to headquarters. Events are kept here and sent when it is back.", "Headquarters is not reachable; %d events wait: %s", s.Store.Waiting, s.Upstream.Error)
		}
	}
}
