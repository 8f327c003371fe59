package agent

import (
	"context"
	"errors"
	"time"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/devices"
	"inspectd.org/inspectd/queue"
)

// A group of messages that is committed together.
const (
	groupMessages = 256
	groupBytes    = 64 << 20
)

// retryFull is how often intake looks whether a full disk has room again.
const retryFull = time.Second

// ingest takes messages in order, stores them in groups and acknowledges them, in
// order, once their group is synced. It takes what is waiting and never waits for
// more: a lone message commits at once.
func (d *Daemon) ingest(ctx context.Context, l *loop) error {
	tick := time.NewTicker(pulse)
	defer tick.Stop()
	for {
		l.beat()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case m := <-d.session.Messages():
			if err := d.take(ctx, l, collect(m, d.session.Messages())); err != nil {
				return err
			}
		}
	}
}

// collect adds to first what is already waiting behind it.
func collect(first devices.Message, waiting <-chan devices.Message) []devices.Message {
	group := []devices.Message{first}
	size := len(first.Payload)
	for len(group) < groupMessages && size < groupBytes {
		select {
		case m := <-waiting:
			group = append(group, m)
			size += len(m.Payload)
		default:
			return group
		}
	}
	return group
}

// take stores one group and acknowledges it. While the disk is full it holds the
// group, unacknowledged, and tries again.
func (d *Daemon) take(ctx context.Context, l *loop, group []devices.Message) error {
	arrivals := make([]queue.Arrival, len(group))
	for i := range group {
		arrivals[i] = d.arrival(&group[i])
	}
	for {
		l.beat()
		_, err := d.store.Accept(arrivals)
		if err == nil {
			break
		}
		if !errors.Is(err, queue.ErrFull) {
			return err
		}
		d.setFull(err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryFull):
		}
	}
	d.setFull(nil)
	for _, m := range group {
		m.Ack()
	}
	return nil
}

// arrival decodes a message. What cannot be decoded is kept all the same.
func (d *Daemon) arrival(m *devices.Message) queue.Arrival {
	dec := d.registry.Decode(m)
	a := queue.Arrival{Topic: m.Topic, Device: dec.Device, PacketID: m.PacketID, Dup: m.Dup, Session: m.Session,
		Received: m.Received, Payload: queue.Blob{Bytes: m.Payload}, Observation: dec.Observation}
	if dec.Observation != nil {
		a.Payload.Digest = dec.Observation.Original().SHA256 // large pictures are hashed once
	} else {
		a.Payload.Digest = lane.Sum(m.Payload)
		a.Refusal = &queue.Refusal{Code: dec.Code, Reason: dec.Reason}
		d.log.Warn().Str("topic", m.Topic).Str("device", dec.Device).Str("code", string(dec.Code)).Str("reason", dec.Reason).Msg("message quarantined")
	}
	return a
}

func (d *Daemon) setFull(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if (err == nil) != (d.full == nil) {
		if err != nil {
			d.log.Error().Err(err).Msg("intake stands still; nothing is acknowledged, the broker holds the messages")
		} else {
			d.log.Info().Msg("there is room again; intake goes on")
		}
	}
	d.full = err
}
