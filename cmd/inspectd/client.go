package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

// ask gets a document from the running daemon.
func (c *common) ask(ctx context.Context, path string, v any) error {
	client := http.Client{Timeout: 5 * time.Minute, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", c.socket)
		}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://inspectd"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return c.unreachable(err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the daemon answers: %s", strings.TrimSpace(string(body)))
	}
	return json.Unmarshal(body, v)
}

func (c *common) unreachable(err error) error {
	var op *net.OpError
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return cured(exitUnavailable, fmt.Errorf("no daemon answers on %s", c.socket),
			"is it running? Start it with 'inspectd run', or name its socket with --socket")
	case errors.Is(err, syscall.EACCES):
		return cured(77, fmt.Errorf("you may not open %s", c.socket), "run this as a member of the group that owns the socket")
	case errors.As(err, &op):
		return cured(exitUnavailable, fmt.Errorf("the daemon on %s does not answer: %w", c.socket, op.Err), "inspectd status --socket PATH")
	}
	return cured(exitUnavailable, fmt.Errorf("the daemon on %s does not answer: %w", c.socket, err), "look at the daemon's log")
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	return enc.Encode(v)
}
