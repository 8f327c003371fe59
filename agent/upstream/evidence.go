package upstream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"inspectd.org/inspectd/queue"
)

// uploads is how many pieces of evidence one round looks at.
const uploads = 4096

// uploadAll uploads evidence whose event upstream holds, until ctx ends. A piece
// that cannot be uploaded does not hold up the others.
func (l *Link) uploadAll(ctx context.Context) {
	for attempt := 0; ctx.Err() == nil; {
		changed := l.store.Changed()
		due, err := l.store.PendingUploads(uploads)
		for _, u := range due {
			if ctx.Err() != nil {
				return
			}
			err = errors.Join(err, l.upload(ctx, u))
			if !l.nc.IsConnected() {
				break
			}
		}
		l.uploadFailed(err)
		if err == nil {
			attempt = 0
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		attempt++
		select {
		case <-time.After(min(30*time.Second, 500*time.Millisecond<<min(attempt, 6))):
		case <-ctx.Done():
		}
	}
}

// uploadFailed tells why evidence waits, or that none does.
func (l *Link) uploadFailed(err error) {
	text := ""
	if err != nil {
		text, _, _ = strings.Cut(err.Error(), "\n") // the first of them
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if text != "" && text != l.status.Upload {
		l.log.Warn().Str("reason", text).Msg("evidence waits")
	}
	l.status.Upload = text
}

// upload puts one piece of evidence into the object store under <lane>/<sha256>.
// An object of that name with the right digest is the same object; it is never
// overwritten.
func (l *Link) upload(ctx context.Context, u queue.Upload) error {
	data, err := l.store.Evidence(u.Digest)
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	start := time.Now()
	bucket, err := l.js.ObjectStore(ctx, l.cfg.Evidence)
	if err != nil {
		return l.explain(start, fmt.Errorf("object store %s: %w", l.cfg.Evidence, err))
	}
	sum := sha256.Sum256(data)
	want := "SHA-256=" + base64.URLEncoding.EncodeToString(sum[:])
	name := l.lane + "/" + string(u.Digest)
	info, err := bucket.GetInfo(ctx, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		info, err = bucket.Put(ctx, jetstream.ObjectMeta{Name: name}, bytes.NewReader(data))
	}
	if err != nil {
		return l.explain(start, fmt.Errorf("object %s: %w", name, err))
	}
	if info.Digest != want || info.Size != uint64(len(data)) {
		return fmt.Errorf("object %s there has digest %s, here %s", name, info.Digest, want)
	}
	if err := l.store.Uploaded(u.Digest); err != nil {
		return err
	}
	l.mu.Lock()
	l.status.Uploaded++
	l.mu.Unlock()
	return nil
}
