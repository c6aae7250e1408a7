// Package cli is the command line: subcommands, flags and what they print. It is the only
// place that parses flags. Errors are one sentence that says what to do, on standard error,
// with exit code 1 (2 for a wrong command line).
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
)

// Streams are where the commands read and write.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// errUsage marks an error of the command line itself.
type errUsage struct{ error }

func (e errUsage) Unwrap() error { return e.error }

// Main runs one command line and returns the exit code.
func Main(ctx context.Context, args []string, s Streams) int {
	root := newRoot(s)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var usage errUsage
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"):
		_, _ = fmt.Fprintf(s.Err, "barque: %s; see `barque help`\n", oneLine(err))
		return 2
	default:
		_, _ = fmt.Fprintf(s.Err, "barque: %s\n", oneLine(err))
		return 1
	}
}

// oneLine folds an error into one line.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func newRoot(s Streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "barque",
		Short: "A highly available container platform that speaks the Kubernetes API",
		Long: `Barque turns a handful of machines into a highly available cluster that speaks the
Kubernetes API. Every server is a master; any of them may be lost.

Try it on this machine alone:   sudo barque up
Found a cluster:                sudo barque server --data-dir /var/lib/barque-server
Add machines to it:             sudo barque token create, then what it prints`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return errUsage{err} })
	root.AddCommand(
		newUp(s), newDown(s), newStatus(s),
		newServer(s), newAgent(s), newMachine(s),
		newToken(s), newKubeconfig(s), newKubectl(s), newImage(s), newVersion(s),
	)
	return root
}

// noArgs refuses arguments with a usage error.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return errUsage{fmt.Errorf("%s takes no argument, but %q was given", cmd.CommandPath(), args[0])}
	}
	return nil
}

// newLogger logs to w at a level named debug, info, warn or error.
func newLogger(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, errUsage{fmt.Errorf("--log-level %q: choose debug, info, warn or error", level)}
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
}
