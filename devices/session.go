package devices

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/rs/zerolog"
)

// Connect is the configuration of the connection to an existing broker.
type Connect struct {
	URL       string `yaml:"url"`        // mqtt://host:1883
	ClientID  string `yaml:"client_id"`  // empty: inspectd-<site>-<lane>
	Username  string `yaml:"username"`   // empty: no log-in
	MaxPacket Size   `yaml:"max_packet"` // larger messages are kept in part only, see MSG_OVERSIZE
}

// DefaultMaxPacket holds the largest message that any profile takes by default.
const DefaultMaxPacket Size = 64 << 20

// SessionOptions configure a Session.
type SessionOptions struct {
	Connect
	Password string
	Filters  []string // subscriptions, at QoS 1
	// NewSession is called when the broker has no session for this client, before
	// its first message, and returns the number of the new one. The messages of one
	// session have packet identifiers that mean something together.
	NewSession func() uint64
	// Session is the number of the last session.
	Session uint64
	Log     zerolog.Logger
}

// handOver is how many messages wait between the network and the store. It is
// above what brokers keep in flight; payload memory is bounded by that window.
const handOver = 4096

// droppedTopic is where Mosquitto counts messages it gave up.
const droppedTopic = "$SYS/broker/publish/messages/dropped"

// Session is the lane's session with its broker: one client id, kept across
// connections, so that the broker holds what comes while the lane is away. The
// PUBACK of a message is sent by whoever took it from Messages, in order.
type Session struct {
	opts     SessionOptions
	client   mqtt.Client
	messages chan Message
	ready    chan struct{} // closed once the subscriptions are in force for the first time

	mu      sync.Mutex
	conn    *boundedConn // the connection in use
	session uint64
	overrun bool // a message was turned away: take none until the next connection
	status  SessionStatus
}

// SessionStatus is what people are told of the session.
type SessionStatus struct {
	Connected     bool      `json:"connected"`
	Broker        string    `json:"broker"`
	Since         time.Time `json:"since"`           // of the present state
	Error         string    `json:"error,omitempty"` // last reason for being without connection
	Lost          int       `json:"connections_lost"`
	Refused       []string  `json:"refused,omitempty"`        // filters the broker does not grant
	Retained      uint64    `json:"retained_ignored"`         // retained messages: state, never observations
	RetainedTopic string    `json:"retained_topic,omitempty"` // of the last of them
	ShortLived    int       `json:"short_lived"`              // connections in a row that ended within seconds
	Overruns      int       `json:"overruns"`                 // times the lane could not keep up and let the broker wait
	// BrokerDropped is how many messages the broker says it gave up since this
	// session began to watch. Any number but 0 is loss before the lane.
	BrokerDropped int64 `json:"broker_dropped"`

	droppedBase int64 // -1 before the first reading
}

// CheckURL checks the address of a broker.
func CheckURL(address string) error {
	u, err := url.Parse(address)
	switch {
	case err == nil && (u.Scheme == "mqtts" || u.Scheme == "ssl" || u.Scheme == "tls"):
		return fmt.Errorf("%q: this version does not speak TLS to the broker; write mqtt://host:1883", address)
	case err != nil || u.Host == "" || u.Scheme != "mqtt" && u.Scheme != "tcp":
		return fmt.Errorf("%q is no address of a broker; write mqtt://host:1883", address)
	}
	return nil
}

// NewSession prepares a session; Run begins it.
func NewSession(opts SessionOptions) (*Session, error) {
	u, err := url.Parse(opts.URL)
	if err != nil {
		return nil, err
	}
	if err := CheckURL(opts.URL); err != nil {
		return nil, err
	}
	if opts.MaxPacket == 0 {
		opts.MaxPacket = DefaultMaxPacket
	}
	s := &Session{opts: opts, session: opts.Session, messages: make(chan Message, handOver), ready: make(chan struct{})}
	s.status = SessionStatus{Broker: u.Host, Since: time.Now(), Error: "not connected yet", droppedBase: -1}
	s.client = mqtt.NewClient(s.clientOptions(u.Host))
	return s, nil
}

func (s *Session) clientOptions(host string) *mqtt.ClientOptions {
	o := mqtt.NewClientOptions()
	o.AddBroker("tcp://" + host)
	o.SetClientID(s.opts.ClientID).SetUsername(s.opts.Username).SetPassword(s.opts.Password)
	o.SetProtocolVersion(4)  // no silent second attempt with MQTT 3.1
	o.SetCleanSession(false) // the broker keeps what comes while we are away
	o.SetOrderMatters(true)
	o.SetAutoAckDisabled(true)
	o.SetKeepAlive(30 * time.Second).SetPingTimeout(30 * time.Second)
	o.SetConnectTimeout(10 * time.Second)
	o.SetConnectRetry(true).SetConnectRetryInterval(2 * time.Second)
	o.SetAutoReconnect(true).SetMaxReconnectInterval(30 * time.Second)
	o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return s.open(host) })
	// The only handler: a message that no handler takes would never be acked, and a
	// persistent session delivers before any Subscribe call.
	o.SetDefaultPublishHandler(s.handle)
	o.SetOnConnectHandler(s.onConnect)
	o.SetConnectionLostHandler(func(_ mqtt.Client, err error) { s.onLost(err) })
	o.SetReconnectingHandler(func(mqtt.Client, *mqtt.ClientOptions) {
		// Lanes of one site lose their broker together; they shall not return together.
		time.Sleep(rand.N(time.Second))
	})
	return o
}

func (s *Session) open(host string) (net.Conn, error) {
	raw, err := (&net.Dialer{Timeout: 10 * time.Second}).Dial("tcp", host)
	if err == nil {
		var c *boundedConn
		if c, err = newBoundedConn(raw, int(s.opts.MaxPacket), s.onConnack); err == nil {
			s.mu.Lock()
			s.conn, s.overrun = c, false
			s.mu.Unlock()
			return c, nil
		}
	}
	s.mu.Lock()
	s.status.Error = err.Error()
	s.mu.Unlock()
	return nil, err
}

func (s *Session) onConnack(present bool) {
	if present {
		return
	}
	n := s.opts.NewSession()
	s.mu.Lock()
	s.session = n
	s.mu.Unlock()
}

// Run connects, and stays connected until ctx ends.
func (s *Session) Run(ctx context.Context) error {
	s.client.Connect() // retries for ever; its token is of no use
	<-ctx.Done()
	s.client.Disconnect(250)
	return ctx.Err()
}

// Messages are what the broker delivers, in order.
func (s *Session) Messages() <-chan Message { return s.messages }

// Ready is closed once the broker has taken the subscriptions for the first time.
func (s *Session) Ready() <-chan struct{} { return s.ready }

// Status tells how the session stands.
func (s *Session) Status() SessionStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// onConnect subscribes again at every connection: the broker may have lost the
// session, and the client would not say so.
func (s *Session) onConnect(c mqtt.Client) {
	filters := map[string]byte{droppedTopic: 0}
	for _, f := range s.opts.Filters {
		filters[f] = 1
	}
	token := c.SubscribeMultiple(filters, nil).(*mqtt.SubscribeToken)
	if !token.WaitTimeout(30*time.Second) || token.Error() != nil {
		err := errors.Join(errors.New("the broker did not answer the subscription"), token.Error())
		s.breakOff(err)
		return
	}
	var refused []string
	for filter, code := range token.Result() {
		if code == 0x80 && filter != droppedTopic {
			refused = append(refused, filter)
			s.opts.Log.Error().Str("filter", filter).Msg("the broker refuses this subscription: give the lane's user the right to read it")
		}
	}
	s.mu.Lock()
	s.status.Refused = refused
	s.status.Connected, s.status.Since, s.status.Error = true, time.Now(), ""
	select {
	case <-s.ready:
	default:
		close(s.ready)
	}
	s.mu.Unlock()
	s.opts.Log.Info().Str("broker", s.status.Broker).Int("subscriptions", len(filters)-1).Msg("connected to the broker")
}

// shortLived is how long a connection lasts at most that a second client of the same
// id takes over: each takes it from the other as soon as it is back.
const shortLived = 15 * time.Second

func (s *Session) onLost(err error) {
	s.mu.Lock()
	if s.status.Connected && time.Since(s.status.Since) > shortLived {
		s.status.ShortLived = 0
	}
	s.status.ShortLived++
	s.status.Connected, s.status.Since, s.status.Error = false, time.Now(), err.Error()
	s.status.Lost++
	s.mu.Unlock()
	s.opts.Log.Warn().Err(err).Msg("connection to the broker lost")
}

func (s *Session) breakOff(err error) {
	s.mu.Lock()
	c := s.conn
	s.mu.Unlock()
	if c != nil {
		c.breakOff(err)
	}
}

// handle only hands over. It runs on the client's one router goroutine, behind
// which ping answers wait: whoever blocks here loses the link, gets the same
// messages again, and never comes past them.
func (s *Session) handle(_ mqtt.Client, m mqtt.Message) {
	if m.Topic() == droppedTopic {
		s.brokerDropped(string(m.Payload()))
		m.Ack()
		return
	}
	if m.Retained() {
		// Every resubscription delivers retained messages again, without DUP. They are
		// the state of a topic, not something that happened.
		s.mu.Lock()
		s.status.Retained++
		s.status.RetainedTopic = m.Topic()
		s.mu.Unlock()
		m.Ack()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.overrun {
		return // unacked: comes again, in order, with the next connection
	}
	msg := Message{Topic: m.Topic(), QoS: m.Qos(), Dup: m.Duplicate(), PacketID: m.MessageID(),
		Session: s.session, Received: time.Now(), Ack: m.Ack}
	msg.Payload, msg.Oversize = s.conn.unmark(m.Payload())
	select {
	case s.messages <- msg:
	default:
		// The store does not keep up. Let the broker hold the rest: break off, keep
		// the session, and come back.
		s.overrun = true
		s.status.Overruns++
		s.conn.breakOff(errors.New("the lane cannot keep up; the broker holds the messages"))
	}
}

func (s *Session) brokerDropped(payload string) {
	n, err := strconv.ParseInt(strings.TrimSpace(payload), 10, 64)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.droppedBase < 0 || n < s.status.droppedBase { // first reading, or the broker restarted
		s.status.droppedBase = n
	}
	dropped := n - s.status.droppedBase
	if dropped > s.status.BrokerDropped {
		s.opts.Log.Error().Int64("messages", dropped).Msg("the broker gave up messages before the lane could take them: raise its queue limits")
	}
	s.status.BrokerDropped = dropped
}
