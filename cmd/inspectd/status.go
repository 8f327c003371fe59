package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"inspectd.org/inspectd/agent/console"
)

func statusCommand(c *common) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Is this lane working?",
		Example: "  inspectd status\n  inspectd status --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st := &console.Status{}
			if err := c.ask(cmd.Context(), "/api/v1/status", st); err != nil {
				return err
			}
			if c.json {
				if err := writeJSON(cmd.OutOrStdout(), st); err != nil {
					return err
				}
			} else {
				printStatus(cmd, st, time.Now())
			}
			if st.State != "ready" {
				return &exitError{exitNo, errors.New("this lane is not ready")}
			}
			return nil
		},
	}
}

func printStatus(cmd *cobra.Command, st *console.Status, now time.Time) {
	head := fmt.Sprintf("Lane %s/%s", st.Lane.Site, st.Lane.ID)
	if st.Name != "" {
		head += fmt.Sprintf(" %q", st.Name)
	}
	state := strings.ToUpper(strings.ReplaceAll(st.State, "-", " "))
	if n := len(st.Problems); n > 0 {
		state += fmt.Sprintf(", %d to look at", n)
	}
	print(cmd, "%s    %s\n  running for %s, inspectd %s\n\n", head, state, now.Sub(st.Since).Round(time.Second), st.Version)

	s := st.Store
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 3, ' ', 0)
	fmt.Fprintf(w, "  Broker\t%s\t%s\n", yes(st.MQTT.Connected, "connected", "not connected"), st.MQTT.Broker)
	fmt.Fprintf(w, "  Messages\t%d received\t%d stored, %d repeats, %d in quarantine\n", s.Received, s.Stored, s.Duplicates, s.Quarantined)
	fmt.Fprintf(w, "  Items\t%d\t%d observations wait to be placed\n", s.Inspections, s.Stored-s.Correlated)
	fmt.Fprintf(w, "  Events\t%d sealed\t%d wait for headquarters, %d pieces of evidence wait\n", s.Events, s.Waiting, s.Uploads)
	fmt.Fprintf(w, "  Upstream\t%s\t%s\n", st.Upstream.State, st.Upstream.Server)
	fmt.Fprintf(w, "  Pictures\t%s\t%s\n", yes(st.Vision.Available, "examined", "not examined"), visionLine(st))
	fmt.Fprintf(w, "  Watchlist\t%d entries\t\n", st.Watchlist)
	fmt.Fprintf(w, "  Store\t%d KiB\t%.1f GiB free on the disk\n", s.FileBytes>>10, float64(s.FreeBytes)/(1<<30))
	w.Flush()

	print(cmd, "\n")
	fmt.Fprintf(w, "  DEVICE\tKIND\tSTATE\tLAST MESSAGE\tSTORED\tREPEATS\tREFUSED\n")
	for _, d := range st.Devices {
		last := "never"
		if !d.Last.IsZero() {
			last = now.Sub(d.Last).Round(time.Second).String() + " ago"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%d\t%d\t%d\n", d.ID, d.Kind, d.State, last, d.Stored, d.Duplicates, d.Quarantined)
	}
	w.Flush()
	for _, p := range st.Problems {
		print(cmd, "\n  %s %s  %s\n            %s\n", yes(p.Severity == "error", "ERROR  ", "warning"), p.Code, p.Text, p.Cure)
	}
}

func visionLine(st *console.Status) string {
	var packs []string
	for _, p := range st.Vision.Packs {
		packs = append(packs, fmt.Sprintf("pack %s version %s", p.ID, p.Version))
	}
	line := strings.Join(packs, ", ")
	if len(packs) == 0 {
		line = "no reference pack is installed"
	}
	if st.Vision.OpenCV != "" {
		line += fmt.Sprintf(" (OpenCV %s; %s)", st.Vision.OpenCV, strings.Join(st.Vision.Layers, ", "))
	}
	return strings.TrimSpace(line)
}

func yes(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}
