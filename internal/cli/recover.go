package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"barque.dev/internal/node"
)

// recoverTimeout bounds a recovery, the server's start included.
const recoverTimeout = 5 * time.Minute

func newRecover(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Make a cluster of this server alone out of what it has, when most servers are lost for good",
		Long: `Recover is for the day on which most servers are lost for good, so that those which are left have no quorum and
answer no write. Run it on one of them: on the one whose log ends last, which --dry-run shows. The higher term is later,
and of the same term the higher index.

The server goes on as a cluster of its own, with everything that it has. The other servers are dropped. Those that still run,
or that come back, find that out, move their old data aside and join anew by themselves. Changes that only lost servers had
are lost; the revision rises by a thousand million, so that whoever watches begins anew rather than with what was lost.

The server may run, and then does this by itself, or be stopped.`,
		Example: `  sudo barque recover --dry-run      # on each survivor: which one has the most?
  sudo barque recover`,
		Args: noArgs,
	}
	var dir, level string
	var yes, dry, force bool
	flags := cmd.Flags()
	flags.StringVar(&dir, "data-dir", defaultServerDir, "this server's `DIR`")
	flags.BoolVar(&yes, "yes", false, "do not ask")
	flags.BoolVar(&dry, "dry-run", false, "only say what it would mean")
	flags.BoolVar(&force, "force", false, "recover although most servers answer, and could elect a leader")
	flags.StringVar(&level, "log-level", "warn", "debug, info, warn or error")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log, err := newLogger(s.Err, level)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), recoverTimeout)
		defer cancel()
		dir, err := ownDir(dir)
		if err != nil {
			return err
		}
		plan, err := node.PlanRecovery(ctx, dir)
		if err != nil {
			return err
		}
		printPlan(s.Out, plan)
		if err := mayRecover(plan, force); err != nil || dry {
			return err
		}
		if !yes && !confirmed(s) {
			return errors.New("nothing was changed; answer yes, or give --yes, to recover")
		}
		err = node.Recover(ctx, dir, log, func(text string) { _, _ = fmt.Fprintln(s.Out, text) })
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(s.Out, "recovered: server %s is the cluster now; start the others, or add new ones with `barque token create`\n", plan.Server)
		return err
	}
	return cmd
}

func mayRecover(plan *node.RecoverPlan, force bool) error {
	switch {
	case plan.Begun:
		return nil
	case plan.Quorum:
		return errors.New("the cluster has a quorum: there is nothing to recover")
	case len(plan.Dropped) == 0:
		return errors.New("this server is a cluster of its own already: start it")
	case plan.Majority() && !force:
		return errors.New("most servers answer and can elect a leader: start this one if it is stopped, wait a minute, and see their logs; --force recovers all the same")
	}
	return nil
}

// printPlan says what a recovery means.
func printPlan(w io.Writer, plan *node.RecoverPlan) {
	_, _ = fmt.Fprintf(w, "The log of server %s ends at %v (revision %d or later); it was last written to %s.\n",
		plan.Server, plan.Log, plan.Revision, ago(plan.LastWrite, time.Now()))
	if plan.Begun {
		_, _ = fmt.Fprintln(w, "A recovery of this server has begun and was interrupted. It can only be finished: here, or by starting the server.")
	}
	if len(plan.Dropped) == 0 || plan.Quorum {
		return
	}
	_, _ = fmt.Fprintln(w, "It would go on alone, and these servers would be dropped:")
	t := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	for _, m := range plan.Dropped {
		state := "does not answer"
		if m.Answers {
			state = "answers, and joins anew by itself"
		}
		name := m.Name
		if name == "" {
			name = "(never started)"
		}
		_, _ = fmt.Fprintf(t, "  %s\t%s\t%s\n", name, m.Peer, state)
	}
	_ = t.Flush()
	_, _ = fmt.Fprintln(w, `What they acknowledged and this server never heard of is lost. If the log of another server that is left ends
later, at a higher term or at the same term and a higher index, recover there.
Those that do not answer must be off for good, or come back where they reach this server: a majority of them elsewhere would be a second cluster.`)
}

// ago is a time as people say it.
func ago(at, now time.Time) string {
	if at.IsZero() {
		return "at a time that can't be told"
	}
	return fmt.Sprintf("at %s, %v ago", at.Local().Format(time.DateTime), max(0, now.Sub(at)).Round(time.Second))
}

func confirmed(s Streams) bool {
	_, _ = fmt.Fprint(s.Out, "Recover? [yes/no] ")
	answer, _ := bufio.NewReader(s.In).ReadString('\n')
	return strings.EqualFold(strings.TrimSpace(answer), "yes")
}
