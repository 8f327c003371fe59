package devices

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	broker "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
)

// Broker is an MQTT broker inside the process, for demonstrations and tests. It
// keeps sessions in memory and lets everybody in, so it listens on loopback only.
type Broker struct {
	server *broker.Server
	addr   string
}

// StartBroker starts a broker on a loopback address; port 0 picks a free one.
func StartBroker(addr string) (*Broker, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("start the broker on %q: %w", addr, err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("start the broker on %q: it has no log-in, so only a loopback address such as 127.0.0.1 will do", addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("start the broker: %w", err)
	}
	caps := broker.NewDefaultServerCapabilities()
	// What the broker cannot hold it drops without telling the sender.
	caps.MaximumInflight, caps.MaximumClientWritesPending = 65000, 65000
	caps.ReceiveMaximum = 65000
	s := broker.New(&broker.Options{Capabilities: caps, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := s.AddHook(new(auth.AllowHook), nil); err != nil {
		return nil, err
	}
	if err := s.AddListener(listeners.NewNet("lane", l)); err != nil {
		return nil, err
	}
	if err := s.Serve(); err != nil {
		return nil, fmt.Errorf("start the broker: %w", err)
	}
	return &Broker{s, l.Addr().String()}, nil
}

// Addr is the host and port the broker listens on.
func (b *Broker) Addr() string { return b.addr }

// Close stops the broker. Its sessions are gone.
func (b *Broker) Close() error { return b.server.Close() }

// Publisher is the device's side of MQTT: it publishes at QoS 1 and waits for the
// broker's acknowledgement, as devices do. Demonstrations and tests use it.
type Publisher struct{ client mqtt.Client }

// publishTimeout is how long a device waits for its PUBACK.
const publishTimeout = 10 * time.Second

// DialPublisher connects a device to the broker at addr (host:port).
func DialPublisher(addr, clientID string) (*Publisher, error) {
	o := mqtt.NewClientOptions().AddBroker("tcp://" + addr).SetClientID(clientID).SetProtocolVersion(4)
	c := mqtt.NewClient(o)
	if t := c.Connect(); !t.WaitTimeout(publishTimeout) || t.Error() != nil {
		return nil, fmt.Errorf("connect %s to the broker at %s: %w", clientID, addr, t.Error())
	}
	return &Publisher{c}, nil
}

// Publish sends one message and returns when the broker has acknowledged it.
func (p *Publisher) Publish(topic string, payload []byte) error {
	return p.wait(p.client.Publish(topic, 1, false, payload), topic)
}

// PublishRetained sets the retained state of a topic.
func (p *Publisher) PublishRetained(topic string, payload []byte) error {
	return p.wait(p.client.Publish(topic, 1, true, payload), topic)
}

func (p *Publisher) wait(t mqtt.Token, topic string) error {
	if !t.WaitTimeout(publishTimeout) {
		return fmt.Errorf("publish to %s: no acknowledgement within %s", topic, publishTimeout)
	}
	return t.Error()
}

// Close ends the connection.
func (p *Publisher) Close() { p.client.Disconnect(250) }
