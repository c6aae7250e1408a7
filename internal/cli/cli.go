// Package cli is the command line: subcommands, flags and what they print. It is the only
// place that parses flags. Errors are one sentence that says what to do, on standard error,
// with exit code 1 (2 for a wrong command line, 78 on a machine that has left its cluster, which a
// supervisor must not start again).
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"barque.dev/internal/node"
)

// Streams are where the commands read and write.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// exitLeft is EX_CONFIG of sysexits(3): starting again does not help.
const exitLeft = 78

// Main runs one command line and returns the exit code.
func Main(ctx context.Context, args []string, s Streams) int {
	root := newRoot(s)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var usage errUsage
	var exit errExit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case errors.As(err, &usage):
		_, _ = fmt.Fprintf(s.Err, "barque: %s\n", oneLine(err))
		return 2
	case errors.Is(err, node.ErrLeft):
		_, _ = fmt.Fprintf(s.Err, "barque: %s\n", oneLine(err))
		return exitLeft
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
Kubernetes API. Every server is a master; any of them may be lost.`,
		Example: `  sudo barque up                                             # a cluster of three masters on this machine
  sudo barque server --data-dir /var/lib/barque-server       # found a cluster on real machines
  sudo barque token create                                   # then, on others, what it prints
  sudo barque kubectl get nodes`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(flagError)
	root.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return errUsage{fmt.Errorf("there is no command %q: `barque help` lists what there is", args[0])}
		}
		return nil
	}
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	root.AddCommand(
		newUp(s), newDown(s), newStatus(s), newDrill(s),
		newServer(s), newAgent(s), newMachine(s), newLeave(s), newRecover(s), newSnapshot(s), newUpgrade(s),
		newToken(s), newCerts(s), newAccountKey(s), newEncryption(s), newKubeconfig(s), newKubectl(s), newImage(s), newVersion(s),
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
	handler := slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})
	routeKlog.Do(func() { klog.SetSlogLogger(slog.New(fromKlog{handler})) })
	return slog.New(handler), nil
}
