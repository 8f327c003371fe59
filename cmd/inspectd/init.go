package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"inspectd.org/inspectd/agent/evidence"
	"inspectd.org/inspectd/agent/lane"
	"inspectd.org/inspectd/queue"
)

func initCommand(c *common) *cobra.Command {
	var l lane.Lane
	cmd := &cobra.Command{
		Use:     "init --site SITE --lane LANE",
		Short:   "Make the data folder and the key of a lane, once",
		Example: "  inspectd init --data ./data --site nlrtm --lane lane-03",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if l.Site == "" || l.ID == "" {
				return cured(exitUsage, errors.New("which lane is this? Site and lane are needed"), "inspectd init --site nlrtm --lane lane-03")
			}
			if err := queue.Create(c.data, l); err != nil {
				return err
			}
			key, err := evidence.ReadKey(filepath.Join(c.data, "keys", "lane.pem"))
			if err != nil {
				return err
			}
			print(cmd, "Lane %s/%s has its data folder %s and key %s.\n", l.Site, l.ID, c.data, key.ID())
			fmt.Fprintf(cmd.ErrOrStderr(), "next: give %s to headquarters, and put the public keys whose packs you trust into %s\n",
				filepath.Join(c.data, "keys", "lane.pem.pub"), filepath.Join(c.data, "keys", "trust"))
			return nil
		},
	}
	cmd.Flags().StringVar(&l.Site, "site", "", "site of the lane, a-z 0-9 -")
	cmd.Flags().StringVar(&l.ID, "lane", "", "id of the lane, unique within the site")
	return cmd
}
