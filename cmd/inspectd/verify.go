package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"inspectd.org/inspectd/queue"
)

func verifyCommand(c *common) *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Check chain, signatures, evidence and every count of a lane's data",
		Long: "Checks every stored value, that the counts add up, that every observation is in exactly\n" +
			"one inspection, the chain of events with its signatures, and the digest of every piece of\n" +
			"evidence. Asks the running daemon; with --data it reads a data folder that is not in use.",
		Example: "  inspectd verify\n  inspectd verify --data /media/disk/inspectd",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := &queue.Verdict{}
			var err error
			if cmd.Flags().Changed("data") {
				v, err = queue.Verify(c.data)
			} else {
				err = c.ask(cmd.Context(), "/api/v1/verify", v)
			}
			if errors.Is(err, queue.ErrLocked) {
				return cured(exitTryAgain, err, "leave --data out to ask the running daemon (--socket names it)")
			}
			if err != nil {
				return err
			}
			if c.json {
				err = writeJSON(cmd.OutOrStdout(), v)
			} else {
				printVerdict(cmd, v)
			}
			if err == nil && len(v.Violations) > 0 {
				err = &exitError{exitNo, fmt.Errorf("%d violations", len(v.Violations))}
			}
			return err
		},
	}
}

func printVerdict(cmd *cobra.Command, v *queue.Verdict) {
	print(cmd, "Lane %s/%s, key %s\n", v.Lane.Site, v.Lane.ID, v.Key)
	print(cmd, "  %d observations, %d messages in quarantine\n", v.Observations, v.Quarantined)
	print(cmd, "  %d inspections, %d reports\n", v.Inspections, v.Reports)
	print(cmd, "  %d events, %d of them confirmed by headquarters; chain head %s\n", v.Events, v.Confirmed, v.Head)
	print(cmd, "  %d pieces of evidence\n", v.Evidence)
	for _, text := range v.Violations {
		print(cmd, "  VIOLATION  %s\n", text)
	}
	if len(v.Violations) == 0 {
		print(cmd, "Everything holds: checksums, counts, chain, signatures and evidence.\n")
	}
}
