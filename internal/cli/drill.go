package cli

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"barque.dev/internal/drill"
	"barque.dev/internal/drill/fault"
	"barque.dev/internal/node"
)

func newDrill(s Streams) *cobra.Command {
	long := `Starts a cluster of its own on this machine, lets clients write, read, list and watch through the virtual
IP and through every server while faults strike, and checks that nothing they were told turns out wrong: no
acknowledged write is lost, every answer fits one order of events, no watch misses, repeats or reorders an event,
all servers end with the same objects. It measures for how long nothing was written and read at the virtual IP,
and takes the cluster away again. It exits with 1 if a rule was violated, and says how to repeat it.

The same seed gives the same faults in the same order. Faults:
`
	for _, k := range fault.Kinds() {
		long += fmt.Sprintf("  %-18s %s\n", k.Name, k.Title)
	}
	cmd := &cobra.Command{
		Use:   "drill",
		Short: "Let faults strike a cluster of its own, and check that nothing is lost",
		Long:  long,
		Example: `  sudo barque drill                                                    # all faults, five minutes
  sudo barque drill --seed 7 --duration 1h --report /tmp/drill-7
  sudo barque drill --faults kill-leader,cut-leader --duration 10m
  sudo barque drill --workloads --duration 30m                         # with pods, on every machine`,
		Args: noArgs,
	}
	var o drill.Options
	var level string
	flags := cmd.Flags()
	flags.Uint64Var(&o.Seed, "seed", 0, "`number` that the order of faults follows from; a random one unless given")
	flags.DurationVar(&o.Duration, "duration", 5*time.Minute, "for how long new faults strike; each kind strikes once at least")
	flags.StringSliceVar(&o.Faults, "faults", nil, "`LIST` of faults that strike; all unless given")
	flags.StringVar(&o.Report, "report", "", "`DIR` that the report is written to; a new one, drill-TIME, unless given")
	flags.BoolVar(&o.Workloads, "workloads", false, "let Deployments, StatefulSets, Jobs and Services change meanwhile, and check what controllers and nodes do about them")
	flags.IntVar(&o.Servers, "servers", 3, "`number` of masters, 3 to 9")
	flags.StringVar(&o.Dir, "dir", drill.DefaultDir, "`DIR` that holds the drill's cluster while it lasts")
	flags.StringVar(&level, "log-level", "warn", "debug, info, warn or error")
	configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if o.Duration < 0 {
			return errUsage{fmt.Errorf("--duration %v: give a time of 0 or more", o.Duration)}
		}
		if _, err := fault.Choose(o.Faults); err != nil {
			return errUsage{fmt.Errorf("--faults: %w", err)}
		}
		if o.Log, err = newLogger(s.Err, level); err != nil {
			return err
		}
		if o.Program, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		if !cmd.Flags().Changed("seed") {
			o.Seed = randomSeed()
		}
		if o.Report == "" {
			o.Report = "drill-" + time.Now().UTC().Format("20060102-150405")
		}
		o.Version, _ = node.Versions()
		o.Progress = progress(s.Out)
		o.Progress("drill of seed %d", o.Seed)
		return drill.Run(cmd.Context(), o)
	}
	return cmd
}

// randomSeed is short enough to be typed.
func randomSeed() uint64 {
	var raw [2]byte
	_, _ = rand.Read(raw[:]) // never fails
	return uint64(binary.NativeEndian.Uint16(raw[:]))
}
