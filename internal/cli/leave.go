package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"barque.dev/internal/node"
)

const (
	// defaultDrain is how long pods may take to go elsewhere unless told otherwise.
	defaultDrain = 10 * time.Minute
	// endTimeout bounds the end of a process that has left.
	endTimeout = time.Minute
)

func newLeave(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Take this machine out of its cluster for good: drain it, hand over what it does, end its process",
		Long: `Leave takes the machine on which it is run, a server or an agent, out of its cluster for good.

Its node takes no new pods, and those that it has are evicted as PodDisruptionBudgets permit; pods of DaemonSets end with
the machine. A server then hands leadership and the virtual IP over, finishes the requests that it has, and gives up its
vote, unless those that stay would be no quorum. Its Node object goes, and its process ends. The data directory stays,
marked, until --purge removes it; while it is there, the machine does not come back by itself.`,
		Example: `  sudo barque leave
  sudo barque leave --data-dir /srv/barque --timeout 1h
  sudo barque leave --purge                  # also later, on a machine that has left`,
		Args: noArgs,
	}
	var dir string
	var r node.LeaveRequest
	var purge bool
	flags := cmd.Flags()
	flags.StringVar(&dir, "data-dir", "", "this machine's `DIR`; by default "+defaultServerDir+" or "+defaultAgentDir+", whichever there is")
	flags.DurationVar(&r.Drain, "timeout", defaultDrain, "how long the pods may take to go elsewhere; when it is over, the machine stays")
	flags.BoolVar(&r.Bare, "force", false, "evict pods too that belong to no controller: nobody makes them again")
	flags.BoolVar(&purge, "purge", false, "remove the data directory afterwards")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if r.Drain <= 0 {
			return errUsage{fmt.Errorf("--timeout %v: give a positive time such as 10m", r.Drain)}
		}
		dir, err := ownDir(dir)
		if err != nil {
			return err
		}
		return leave(cmd.Context(), s, dir, r, purge)
	}
	return cmd
}

// leave has the machine leave, unless it has done so, waits for its process to end, and removes its data if that is wanted.
func leave(ctx context.Context, s Streams, dir string, r node.LeaveRequest, purge bool) error {
	heard := func(text string) { _, _ = fmt.Fprintln(s.Out, text) }
	err := node.Leave(ctx, dir, r, heard)
	switch {
	case purge && errors.Is(err, node.ErrLeft):
	case errors.Is(err, node.ErrNotRunning):
		return fmt.Errorf("%w: start it, so that it can leave in good order; if it can't be started, run `barque server remove NAME` on another server, and for an agent `kubectl delete node NAME`", err)
	case err != nil:
		return err
	}
	ending, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if err := node.AwaitEnd(ending, dir); err != nil {
		return err
	}
	if purge {
		if err := node.Purge(dir); err != nil {
			return err
		}
		heard("its data is removed")
	} else {
		heard("its data stays in " + dir + ": `barque leave --purge` removes it")
	}
	heard("this machine has left the cluster")
	return nil
}

// ownDir is this machine's data directory.
func ownDir(given string) (string, error) {
	candidates := []string{given}
	if given == "" {
		candidates = []string{defaultServerDir, defaultAgentDir}
	}
	for _, dir := range candidates {
		if exists(filepath.Join(dir, "role")) {
			return filepath.Abs(dir)
		}
	}
	if given != "" {
		return "", fmt.Errorf("--data-dir %s is not the data directory of a barque: name the one that it was started with", given)
	}
	return "", errors.New("no barque was found on this machine: name its data directory with --data-dir")
}
