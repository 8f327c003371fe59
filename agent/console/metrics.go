package console

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics reads the lane's status at each scrape. Counters come from the store, so
// they survive restarts.
type metrics struct{ s *Server }

func newMetrics(s *Server) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(metrics{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("inspectd_"+name, help, labels, nil)
}

var (
	descBuild     = desc("build_info", "Version of the program.", "version", "opencv_version")
	descReady     = desc("ready", "1 while goods may be inspected on this lane.")
	descReceived  = desc("device_messages_total", "Messages by device and what became of them.", "device", "kind", "result")
	descLast      = desc("device_last_message_timestamp_seconds", "When the device last sent something.", "device", "kind")
	descItems     = desc("items_opened_total", "Inspections opened.")
	descEvents    = desc("events_total", "Events sealed into the chain.")
	descQueue     = desc("queue_messages", "Events and evidence that upstream has not confirmed.", "class")
	descOldest    = desc("queue_oldest_message_timestamp_seconds", "When the oldest waiting event was sealed.")
	descStore     = desc("store_file_bytes", "Size of the database.")
	descFree      = desc("store_free_bytes", "Room on the disk that holds the store.")
	descConnected = desc("upstream_connected", "1 while there is a connection to headquarters.")
	descReopened  = desc("upstream_reopened_total", "Events sent again because the server had lost them.")
	descBroker    = desc("mqtt_connected", "1 while there is a connection to the broker.")
	descDropped   = desc("mqtt_broker_dropped_messages", "Messages the broker says it gave up since the lane watches.")
	descWorker    = desc("vision_worker_up", "1 while pictures can be examined.")
	descRestarts  = desc("vision_worker_restarts_total", "Workers ended after a crash or time-out.")
	descProblems  = desc("problems", "Problems that somebody should look at.", "severity")
)

func (m metrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

func (m metrics) Collect(ch chan<- prometheus.Metric) {
	st, err := m.s.opts.Status()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descReady, err)
		return
	}
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) { send(d, prometheus.GaugeValue, v, labels...) }
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		send(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(descBuild, 1, st.Version, st.Vision.OpenCV)
	gauge(descReady, truth(st.State == "ready"))
	for _, d := range st.Devices {
		count(descReceived, d.Stored, d.ID, string(d.Kind), "stored")
		count(descReceived, d.Duplicates, d.ID, string(d.Kind), "duplicate")
		count(descReceived, d.Quarantined, d.ID, string(d.Kind), "quarantined")
		if !d.Last.IsZero() {
			gauge(descLast, float64(d.Last.Unix()), d.ID, string(d.Kind))
		}
	}
	count(descItems, uint64(st.Store.Inspections))
	count(descEvents, st.Store.Events)
	gauge(descQueue, float64(st.Store.Waiting), "event")
	gauge(descQueue, float64(st.Store.Uploads), "image")
	if st.Store.OldestWait != nil {
		gauge(descOldest, float64(st.Store.OldestWait.Unix()))
	}
	gauge(descStore, float64(st.Store.FileBytes))
	gauge(descFree, float64(st.Store.FreeBytes))
	gauge(descConnected, truth(st.Upstream.Connected))
	count(descReopened, st.Upstream.Reopened)
	gauge(descBroker, truth(st.MQTT.Connected))
	gauge(descDropped, float64(st.MQTT.BrokerDropped))
	gauge(descWorker, truth(st.Vision.Available))
	count(descRestarts, uint64(st.Vision.Restarts))
	errors := 0
	for _, p := range st.Problems {
		if p.Severity == "error" {
			errors++
		}
	}
	gauge(descProblems, float64(errors), "error")
	gauge(descProblems, float64(len(st.Problems)-errors), "warning")
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
