package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"inspectd.org/inspectd/agent"
)

func runCommand(c *common) *cobra.Command {
	return &cobra.Command{
		Use:     "run",
		Short:   "Run the daemon in the foreground; systemd runs this",
		Example: "  inspectd run --config lane.yaml --data ./data --socket ./inspectd.sock",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := agent.LoadConfig(c.config)
			if err != nil {
				return &exitError{exitConfig, err}
			}
			log := newLogger(cfg.Logging.Level, cfg.Logging.Output, os.Stderr)
			// Installed before anything else, so that an early SIGHUP does not kill.
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			d, err := agent.New(cfg, agent.Options{Data: c.data, Socket: c.socket, Version: version, Log: log})
			if err != nil {
				return err
			}
			go func() {
				for range hup {
					log.Info().Msg("reading packs and control files again")
					d.Reload()
				}
			}()
			page, metrics := d.Addresses()
			log.Info().Str("page", "http://"+page).Str("metrics", "http://"+metrics+"/metrics").Msg("inspectd " + version)
			return d.Run(cmd.Context())
		},
	}
}

// newLogger writes for people on a terminal and JSON elsewhere, unless told.
func newLogger(level, output string, w *os.File) zerolog.Logger {
	l, err := zerolog.ParseLevel(level)
	if err != nil {
		l = zerolog.InfoLevel
	}
	info, err := w.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	var out io.Writer = w
	if output == "console" || output == "auto" && terminal {
		out = zerolog.ConsoleWriter{Out: w, TimeFormat: "15:04:05", NoColor: !terminal || os.Getenv("NO_COLOR") != ""}
	}
	return zerolog.New(out).Level(l).With().Timestamp().Logger()
}

func print(cmd *cobra.Command, format string, args ...any) {
	fmt.Fprintf(cmd.OutOrStdout(), format, args...)
}
