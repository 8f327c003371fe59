package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/agent/simulate"
	"inspectd.org/inspectd/vision"
)

func simulateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "simulate", Short: "A lane without hardware, for demonstrations and tests"}
	cmd.AddCommand(simulateLaneCommand(), simulatePackCommand())
	return cmd
}

// laneFlags are the flags of 'simulate lane'.
type laneFlags struct {
	dir, mqtt, nats, listen, metrics, worker, scenario, log string
	seed                                                    uint64
	duration                                                time.Duration
}

func simulateLaneCommand() *cobra.Command {
	f := &laneFlags{}
	cmd := &cobra.Command{
		Use:   "lane",
		Short: "Run a whole lane: broker, headquarters, devices, and the real agent between them",
		Long: "Runs a broker, a NATS server with its streams, scripted devices, and the real agent with its\n" +
			"worker, all on loopback and without log-in. Ctrl-C and SIGTERM end it.",
		Example: "  inspectd simulate lane\n  inspectd simulate lane --scenario counterfeit-pack --for 30s",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return simulateLane(cmd, f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "", "where everything is kept (default: a new temporary folder, removed at the end)")
	flags.StringVar(&f.mqtt, "mqtt", "127.0.0.1:0", "address of the broker; port 0 picks a free one")
	flags.StringVar(&f.nats, "nats", "127.0.0.1:0", "address of the NATS server")
	flags.StringVar(&f.listen, "listen", "127.0.0.1:0", "address of the page")
	flags.StringVar(&f.metrics, "metrics", "127.0.0.1:0", "address of metrics and health")
	flags.StringVar(&f.worker, "worker", "", "path of inspectd-vision (default: beside this program)")
	flags.StringVar(&f.scenario, "scenario", "", "play only this scenario")
	flags.StringVar(&f.log, "log", "warn", "log level of the agent")
	flags.Uint64Var(&f.seed, "seed", 1, "number of the first run; makes identifiers and pictures")
	flags.DurationVar(&f.duration, "for", 0, "end after this time (default: run until Ctrl-C)")
	return cmd
}

func simulateLane(cmd *cobra.Command, f *laneFlags) error {
	ctx := cmd.Context()
	scenarios, err := chosen(f.scenario)
	if err != nil {
		return err
	}
	if f.dir == "" {
		dir, err := os.MkdirTemp("", "inspectd-lane-*")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		f.dir = dir
	}
	l, err := simulate.Start(ctx, simulate.Options{Dir: f.dir, MQTT: f.mqtt, NATS: f.nats, Listen: f.listen, Metrics: f.metrics,
		Worker: f.worker, Version: version, Log: newLogger(f.log, "console", os.Stderr),
		Tell: func(r *lane.Report) { print(cmd, "%s\n", reportLine(r)) }})
	if err != nil {
		return err
	}
	page, metrics := l.Agent.Addresses()
	print(cmd, "Page      http://%s\nBroker    mqtt://%s\nNATS      %s\nMetrics   http://%s/metrics\nCommands  inspectd status --socket %s\nCtrl-C ends it.\n\n",
		page, l.Broker.Addr(), l.NATS.URL(), metrics, filepath.Join(f.dir, "inspectd.sock"))
	if f.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.duration)
		defer cancel()
	}
	err = playAll(ctx, l, scenarios, f.seed)
	if err = errors.Join(err, l.Stop()); err == nil {
		print(cmd, "Stopped.\n")
	}
	return err
}

// breath is the pause between items: quick in the first round, so that everything
// is there to look at, calm after it.
func breath(round int) time.Duration {
	if round == 0 {
		return 500 * time.Millisecond
	}
	return 10 * time.Second
}

func playAll(ctx context.Context, l *simulate.Lane, scenarios []*simulate.Scenario, seed uint64) error {
	for round := 0; ; round++ {
		for _, s := range scenarios {
			if err := l.Play(ctx, s, simulate.NewRun(seed)); err != nil && ctx.Err() == nil {
				return err
			}
			seed++
			select {
			case <-ctx.Done():
				return nil
			case err := <-l.Done():
				return fmt.Errorf("the agent ended: %w", err)
			case <-time.After(breath(round)):
			}
		}
	}
}

func chosen(name string) ([]*simulate.Scenario, error) {
	all, err := simulate.Scenarios()
	if err != nil || name == "" {
		return all, err
	}
	var names []string
	for _, s := range all {
		if s.Name == name {
			return []*simulate.Scenario{s}, nil
		}
		names = append(names, s.Name)
	}
	return nil, cured(exitUsage, fmt.Errorf("there is no scenario %q", name), "choose one of "+strings.Join(names, ", "))
}

func reportLine(r *lane.Report) string {
	item := r.Inspection
	for _, id := range r.Identifiers {
		if id.Scheme == lane.S10 {
			item = id.Value
		}
	}
	line := fmt.Sprintf("%s  %s  revision %d  %-14s score %3d", r.Closed.Local().Format("15:04:05"), item, r.Revision, r.Recommendation, r.Score)
	if len(r.Findings) == 0 && r.Recommendation != "none" {
		for _, c := range r.Checks {
			if c.Outcome == lane.Inconclusive && len(c.Codes) > 0 {
				line += fmt.Sprintf("\n            %-8s %v  %s", "unclear", c.Codes, c.Text)
			}
		}
	}
	for _, f := range r.Findings {
		line += fmt.Sprintf("\n            %-8s %v  %s", f.Strength, f.Codes, f.Text)
	}
	return line
}

func simulatePackCommand() *cobra.Command {
	var worker string
	cmd := &cobra.Command{
		Use:     "pack DIR",
		Short:   "Draw the demonstration's reference pack anew",
		Example: "  inspectd simulate pack testdata/packs/fictional",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if worker == "" {
				self, err := os.Executable()
				if err != nil {
					return err
				}
				worker = filepath.Join(filepath.Dir(self), "inspectd-vision")
			}
			pool := vision.NewPool(vision.PoolOptions{Program: worker, Workers: 1, Log: zerolog.Nop()})
			defer pool.Close()
			return simulate.DrawPack(cmd.Context(), pool, args[0])
		},
	}
	cmd.Flags().StringVar(&worker, "worker", "", "path of inspectd-vision (default: beside this program)")
	return cmd
}
