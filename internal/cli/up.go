package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"barque.dev/internal/local"
)

// upTimeout bounds `barque up` on a slow machine; an aim of 10 s leaves it far away.
const upTimeout = 5 * time.Minute

func newUp(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a whole cluster on this machine, heal it, or make it larger",
		Example: `  sudo barque up                          # three masters, with a sample application
  sudo barque up --servers 5 --agents 2   # larger: what runs goes on
  sudo barque down`,
		Args: noArgs,
	}
	var o local.Options
	var noSample bool
	var level string
	flags := cmd.Flags()
	flags.IntVar(&o.Servers, "servers", 3, "`number` of masters")
	flags.IntVar(&o.Agents, "agents", 0, "`number` of machines that only run pods")
	flags.StringVar(&o.Dir, "dir", local.DefaultDir, "`DIR` that holds the cluster")
	flags.BoolVar(&noSample, "no-sample", false, "do not deploy the sample application")
	flags.StringSliceVar(&o.ServerFlags, "server-flag", nil, "further `flag` for every server, such as --log-level=debug")
	flags.StringVar(&level, "log-level", "warn", "debug, info, warn or error")
	configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), upTimeout)
		defer cancel()
		var err error
		if o.Log, err = newLogger(s.Err, level); err != nil {
			return err
		}
		if o.Program, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		o.Progress = progress(s.Out)
		cluster, err := local.Up(ctx, o)
		if err != nil {
			return err
		}
		if err := cluster.WaitNodes(ctx, o.Progress); err != nil {
			return err
		}
		url := ""
		if !noSample {
			if url, err = cluster.DeploySample(ctx, o.Progress); err != nil {
				return err
			}
		}
		return printUp(s.Out, cluster, url)
	}
	return cmd
}

// progress prints lines with the time since the command began.
func progress(w io.Writer) func(string, ...any) {
	start := time.Now()
	return func(format string, args ...any) {
		_, _ = fmt.Fprintf(w, "%6.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
}

func printUp(w io.Writer, c *local.Cluster, sample string) error {
	dirFlag := ""
	if c.Dir != local.DefaultDir {
		dirFlag = " --dir " + c.Dir
	}
	_, err := fmt.Fprintf(w, `
The cluster is up: %d machines behind %s.
  kubeconfig       %s
`, len(c.Machines), c.VIPURL(), c.Kubeconfig())
	if err == nil && sample != "" {
		_, err = fmt.Fprintf(w, "  sample           %s\n", sample)
	}
	if err != nil {
		return err
	}
	program := os.Args[0]
	_, err = fmt.Fprintf(w, "\nWhat next:\n  export KUBECONFIG=%s\n", c.Kubeconfig())
	for _, next := range [][2]string{
		{"kubectl get nodes,pods -A -o wide", "(or: " + program + " kubectl …)"},
		{program + " status" + dirFlag, "who leads, who runs what, health"},
		{program + " down" + dirFlag, "remove every trace"},
	} {
		if err == nil {
			_, err = fmt.Fprintf(w, "  %-40s %s\n", next[0], next[1])
		}
	}
	return err
}

func newDown(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove the cluster that `barque up` runs, with every trace",
		Args:  noArgs,
	}
	dir := cmd.Flags().String("dir", local.DefaultDir, "`DIR` that holds the cluster")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
		defer cancel()
		return local.Down(ctx, *dir, progress(s.Out))
	}
	return cmd
}

func newStatus(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the members, who leads, who runs what, and health",
		Args:  noArgs,
	}
	dir := cmd.Flags().String("dir", local.DefaultDir, "`DIR` of a cluster of \"barque up\"")
	var a access
	a.flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
		defer cancel()
		if _, err := a.path(); a.kubeconfig == "" && (err != nil || cmd.Flags().Changed("dir") || exists(filepath.Join(*dir, "cluster.yaml"))) {
			return local.PrintStatus(ctx, *dir, s.Out)
		}
		return printStatus(ctx, a, s.Out)
	}
	return cmd
}
