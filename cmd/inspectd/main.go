// Inspectd is the daemon of a customs inspection lane, and its commands.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"inspectd.org/inspectd/agent"
	"inspectd.org/inspectd/queue"
)

// version is set by the build.
var version = "0.1.0-dev"

// Exit statuses, those of sysexits(3) where it has one.
const (
	exitNo          = 1  // ran to the end, and the answer is no
	exitUsage       = 64 // the command line makes no sense
	exitUnavailable = 69 // the daemon cannot be reached
	exitIO          = 74 // reading or writing failed
	exitTryAgain    = 75 // something is in use
	exitConfig      = 78 // the configuration is wrong; systemd must not restart on it
)

// exitError ends the program with a status of its own.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// cured is an error with what to do about it, which is printed on a line of its
// own.
func cured(status int, err error, cure string) error {
	return &exitError{status, fmt.Errorf("%w\nnext: %s", err, cure)}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := rootCommand().ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "inspectd:", err)
	os.Exit(status(err))
}

func status(err error) int {
	var exit *exitError
	var config *agent.ConfigError
	switch {
	case errors.As(err, &exit):
		return exit.status
	case errors.As(err, &config):
		return exitConfig
	case strings.HasPrefix(err.Error(), "unknown command"):
		return exitUsage
	case errors.Is(err, queue.ErrLocked):
		return exitTryAgain
	case errors.Is(err, queue.ErrFinal), errors.Is(err, queue.ErrFull), errors.Is(err, queue.ErrCorrupt):
		return exitIO
	}
	return exitNo
}

// common are the flags that several commands share.
type common struct {
	config, data, socket string
	json                 bool
}

func rootCommand() *cobra.Command {
	c := &common{}
	root := &cobra.Command{
		Use:   "inspectd",
		Short: "The daemon of a customs inspection lane",
		Long: "inspectd collects X-ray images, scans, photographs and test results of one inspection\n" +
			"lane, checks them, and forwards what it finds, signed and exactly once. It recommends;\n" +
			"an officer decides.\n\nStart here:  inspectd simulate lane    a whole lane on this machine\n" +
			"             inspectd status           is this lane working?",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return cured(exitUsage, err, cmd.CommandPath()+" --help")
	})
	flags := root.PersistentFlags()
	flags.StringVarP(&c.config, "config", "c", "/etc/inspectd/inspectd.yaml", "configuration file")
	flags.StringVar(&c.data, "data", "/var/lib/inspectd", "data folder")
	flags.StringVar(&c.socket, "socket", "/run/inspectd/inspectd.sock", "socket of the running daemon")
	flags.BoolVar(&c.json, "json", false, "print JSON")
	root.AddCommand(runCommand(c), initCommand(c), statusCommand(c), verifyCommand(c), simulateCommand())
	root.CompletionOptions.HiddenDefaultCmd = true
	return root
}
