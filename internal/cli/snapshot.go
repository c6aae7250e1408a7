package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"barque.dev/internal/cluster/snapshot"
	"barque.dev/internal/node"
	"barque.dev/internal/store/etcd"
)

func newSnapshot(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Snapshots of the cluster: save, list, verify, history, restore",
		Long: `Snapshots hold the state of the cluster and its keys: a cluster all of whose servers are lost is made again
of one. Servers take them by themselves (barque server --snapshot-every). Whoever has one has the cluster.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errUsage{fmt.Errorf("barque snapshot has no subcommand %q", args[0])}
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(newSnapshotSave(s), newSnapshotList(s), newSnapshotVerify(s), newSnapshotHistory(s), newSnapshotRestore(s))
	return cmd
}

// oneFile takes one argument, a snapshot.
func oneFile(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return errUsage{fmt.Errorf("%s needs one snapshot: name its file, or s3://BUCKET/KEY", cmd.CommandPath())}
	}
	return nil
}

func newSnapshotSave(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "save",
		Short: "Take a snapshot now, which stays on the server until you remove it, or comes here",
		Example: `  sudo barque snapshot save
  sudo barque snapshot save --to /mnt/backup
  sudo barque snapshot save --to s3://backups/prod/ --s3-endpoint https://minio.example:9000`,
		Args: noArgs,
	}
	var a access
	var to, scratch string
	var in elsewhere
	a.flags(cmd.Flags())
	cmd.Flags().StringVar(&to, "to", "", "`FILE` on this machine, a directory, or s3://BUCKET/PREFIX/, instead of the server's --snapshot-dir")
	cmd.Flags().StringVar(&scratch, "scratch", "", "`DIR` that has room for a snapshot on its way to a bucket; by default "+fetchedTo)
	in.flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		_, config, err := a.client()
		if err != nil {
			return err
		}
		if to != "" {
			path, m, err := saveSnapshot(cmd.Context(), config, to, scratch, &in)
			if err != nil {
				return err
			}
			_, _ = fmt.Fprintln(s.Out, path)
			_, err = fmt.Fprintf(s.Err, "revision %d, of server %s%s\n", m.Revision, m.Server, ifBehind(m))
			return err
		}
		var info snapshot.Info
		if err := askSnapshots(cmd.Context(), config, "POST", snapshot.PathSave(longPaths), 0, &info); err != nil {
			return err
		}
		_, err = fmt.Fprintf(s.Out, "%s on %s, revision %d\n", filepath.Join(info.Dir, info.File), info.Server, info.Revision)
		return err
	}
	return cmd
}

// ifBehind is what has to be known of a snapshot that was taken without a quorum.
func ifBehind(m snapshot.Manifest) string {
	if m.Behind {
		return "; there was no quorum: what other servers acknowledged last may be missing"
	}
	return ""
}

func newSnapshotList(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [s3://BUCKET/PREFIX/]",
		Short: "List the snapshots on all servers, or, when none runs, in a directory or a bucket",
		Example: `  sudo barque snapshot list
  sudo barque snapshot list --dir /var/lib/barque-server/snapshots
  barque snapshot list s3://backups/prod/ --s3-endpoint https://minio.example:9000`,
		Args: atMostABucket,
	}
	var a access
	var dir string
	var in elsewhere
	a.flags(cmd.Flags())
	in.flags(cmd.Flags())
	cmd.Flags().StringVar(&dir, "dir", "", "`DIR` on this machine that holds snapshots")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return in.list(cmd.Context(), s.Out, args[0])
		}
		if dir == "" {
			return listSnapshots(cmd.Context(), a, s.Out)
		}
		list, err := snapshot.List(dir)
		if err != nil {
			return err
		}
		return printSnapshots(s.Out, list)
	}
	return cmd
}

func printSnapshots(w io.Writer, list []snapshot.Info) error {
	t := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "TAKEN\tBY\tREVISION\tMIB\tFILE")
	for _, i := range list {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%d\t%.1f\t%s\n", i.Time.Local().Format(time.DateTime), i.Server, i.Revision, float64(i.Bytes)/(1<<20), i.File)
	}
	return t.Flush()
}

// withScratch calls f with an empty directory, below dir or, if that is "", beside the file.
func withScratch(dir, file string, f func(scratch string) error) error {
	if dir == "" {
		dir = filepath.Dir(file)
	}
	scratch, err := os.MkdirTemp(dir, ".snapshot-*")
	if err != nil {
		return fmt.Errorf("there must be room for what is in the snapshot (%w): name a directory with --scratch", err)
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	return f(scratch)
}

const scratchUsage = "`DIR` that has room for what is in the snapshot; by default the one in which it is, for one in a bucket " + fetchedTo

func newSnapshotVerify(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Look whether a cluster can be made of a snapshot: checksums, keys, and every object",
		Example: `  sudo barque snapshot verify backup.tar
  barque snapshot verify s3://backups/prod/barque-20261123T200000Z-1a2b3c4d-r41977-auto-a.tar --s3-endpoint https://minio.example:9000`,
		Args: oneFile,
	}
	var dir string
	var in elsewhere
	in.flags(cmd.Flags())
	cmd.Flags().StringVar(&dir, "scratch", "", scratchUsage)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return in.withFile(cmd.Context(), dir, args[0], func(file, scratch string) error {
			c, err := node.CheckSnapshot(cmd.Context(), file, scratch)
			if err != nil {
				return err
			}
			return describeSnapshot(s.Out, c)
		})
	}
	return cmd
}

func describeSnapshot(w io.Writer, c *snapshot.Contents) error {
	t := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	if m := c.Manifest; m != nil {
		_, _ = fmt.Fprintf(t, "taken\t%s by %s%s\n", m.Time.Local().Format(time.DateTime), m.Server, ifBehind(*m))
		_, _ = fmt.Fprintf(t, "cluster\t%s, Barque %s, Kubernetes API %s\n", m.Cluster, m.Version, m.Kubernetes)
	} else {
		_, _ = fmt.Fprintln(t, "taken\tby etcd's tools: it holds no keys of the cluster")
	}
	_, _ = fmt.Fprintf(t, "revision\t%d, history from %d\n", c.Info.Revision, max(1, c.Info.Compacted))
	_, _ = fmt.Fprintf(t, "keys\t%d\n", c.Info.Keys)
	if len(c.Info.Alarms) > 0 {
		_, _ = fmt.Fprintf(t, "alarms\t%s\n", strings.Join(c.Info.Alarms, ", "))
	}
	return t.Flush()
}

func newSnapshotHistory(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "history FILE",
		Short: "Show what was changed in the minutes before a snapshot: for barque snapshot restore --at",
		Example: `  sudo barque snapshot history backup.tar --of /registry/deployments/shop/
  sudo barque snapshot restore backup.tar --at 41977 --data-dir /var/lib/barque-server   # as it was after that change`,
		Args: oneFile,
	}
	var dir, of string
	var in elsewhere
	in.flags(cmd.Flags())
	cmd.Flags().StringVar(&dir, "scratch", "", scratchUsage)
	cmd.Flags().StringVar(&of, "of", "", "show only keys that contain this `TEXT`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return in.withFile(cmd.Context(), dir, args[0], func(file, scratch string) error {
			c, err := node.CheckSnapshot(cmd.Context(), file, scratch)
			if err != nil {
				return err
			}
			t := tabwriter.NewWriter(s.Out, 0, 4, 3, ' ', 0)
			_, _ = fmt.Fprintln(t, "REVISION\tTIME\tWHAT\tKEY")
			times, err := snapshot.ReadTimes(cmd.Context(), c.Database)
			if err != nil {
				return err
			}
			err = etcd.History(cmd.Context(), c.Database, func(change etcd.Change) error {
				if strings.Contains(change.Key, of) {
					_, _ = fmt.Fprintf(t, "%d\t%s\t%s\t%s\n", change.Revision, clockOf(times.Of(change.Revision)), verbOf(change.Version), change.Key)
				}
				return nil
			})
			return errors.Join(err, t.Flush())
		})
	}
	return cmd
}

// clockOf is the time of a day; "-" if it is not known.
func clockOf(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(time.TimeOnly)
}

// verbOf says what a change made, by the version of the key after it.
func verbOf(version int64) string {
	switch version {
	case 0:
		return "deleted"
	case 1:
		return "created"
	}
	return "changed"
}

func newSnapshotRestore(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore FILE --data-dir DIR",
		Short: "Make the data directory of a cluster's first server from a snapshot; nothing is started",
		Long: `Makes the data directory of a server that is a cluster of its own, from a snapshot of Barque's, or one that
etcdctl, kubeadm's users or k3s made of a cluster with etcd. Stop all servers of the old cluster before: with their
old data they are a cluster still, with the same keys. The others join the new one with empty data directories.`,
		Example: `  sudo barque snapshot restore backup.tar --data-dir /var/lib/barque-server
  sudo barque snapshot restore /mnt/k3s/on-demand-1764 --data-dir /var/lib/barque-server
  sudo barque snapshot restore s3://backups/prod/barque-….tar --s3-endpoint https://minio.example:9000 --data-dir /var/lib/barque-server`,
		Args: oneFile,
	}
	o := node.RestoreOptions{}
	var scratch, at string
	var in elsewhere
	in.flags(cmd.Flags())
	cmd.Flags().StringVar(&scratch, "scratch", "", "`DIR` that has room for a snapshot that is fetched from a bucket; by default "+fetchedTo)
	cmd.Flags().StringVar(&o.DataDir, "data-dir", "", "`DIR` that holds the server's data then")
	cmd.Flags().StringVar(&at, "at", "", "go back to a `REVISION` in the snapshot's history, or to a time in it, such as \"2026-03-01 14:05:00\" or in RFC 3339 (barque snapshot history)")
	cmd.Flags().BoolVar(&o.Replace, "replace", false, "the directory may hold a server's data, which is moved aside within it")
	cmd.Flags().StringVar(&o.KeysDir, "keys", "", "`DIR` with the cluster's keys, pki of any of its servers, for a snapshot of etcd's tools of a Barque cluster")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if o.DataDir == "" {
			return errUsage{errors.New("--data-dir is missing: name the directory that shall hold the server's data")}
		}
		if err := parseAt(at, &o); err != nil {
			return err
		}
		return in.fetched(cmd.Context(), scratch, args[0], func(file string) error {
			o.File, o.Now = file, time.Now()
			r, err := node.Restore(cmd.Context(), o)
			if err != nil {
				return err
			}
			return describeRestored(s.Out, o, r)
		})
	}
	return cmd
}

// parseAt takes a revision, or a time.
func parseAt(at string, o *node.RestoreOptions) (err error) {
	if at == "" {
		return nil
	}
	if o.At, err = strconv.ParseInt(at, 10, 64); err == nil && o.At > 0 {
		return nil
	}
	o.At = 0
	for _, layout := range []string{time.RFC3339, time.DateTime, "2006-01-02 15:04"} {
		if o.AtTime, err = time.ParseInLocation(layout, at, time.Local); err == nil {
			return nil
		}
	}
	return errUsage{fmt.Errorf("--at %q: give a revision that `barque snapshot history` shows, or a time such as %q", at, time.Now().Format(time.DateTime))}
}

func describeRestored(w io.Writer, o node.RestoreOptions, r *node.Restored) error {
	_, _ = fmt.Fprintf(w, "%s holds the cluster as it was at revision %d", o.DataDir, r.Revision)
	if m := r.Manifest; m != nil {
		_, _ = fmt.Fprintf(w, ", from the snapshot of %s%s", m.Time.Local().Format(time.DateTime), ifBehind(*m))
	}
	_, _ = fmt.Fprintln(w)
	if r.Aside != "" {
		_, _ = fmt.Fprintf(w, "What was there before is in %s.\n", r.Aside)
	}
	_, _ = fmt.Fprintf(w, "\nOn every other server: stop it, and move its --data-dir away.\nStart this one:        sudo barque server --data-dir %s …, with the flags that it had before\n", o.DataDir)
	if r.Manifest == nil {
		_, _ = fmt.Fprintln(w, "                       and the old cluster's --cluster-cidr, --service-cidr and --cluster-dns")
	}
	if r.NewKeys {
		_, _ = fmt.Fprintln(w, "                       It makes new keys: certificates, kubeconfigs and tokens of the old cluster are not known any more;\n                       if its Secrets were encrypted, give --encryption-provider-config with its file")
	}
	_, err := fmt.Fprintln(w, "Then add the others:   sudo barque token create")
	return err
}

// listSnapshots asks every server.
func listSnapshots(ctx context.Context, a access, w io.Writer) error {
	statuses, silent, err := snapshotStatuses(ctx, a)
	if err != nil {
		return err
	}
	var list []snapshot.Info
	seen := map[string]bool{}
	var problems []string
	for _, st := range statuses {
		for _, i := range st.Snapshots {
			if !seen[i.File] { // servers may share a directory
				seen[i.File] = true
				list = append(list, i)
			}
		}
		list = append(list, inRemote(st, seen)...)
		problems = append(problems, problemsOf(st)...)
	}
	sortNewest(list)
	if err := printSnapshots(w, list); err != nil {
		return err
	}
	for _, st := range statuses {
		_, _ = fmt.Fprintf(w, "%s keeps them in %s; it takes one every %s and keeps %d%s\n", st.Server, st.Dir, st.Every, st.Keep, andThere(st))
	}
	for _, name := range silent {
		problems = append(problems, fmt.Sprintf("%s does not answer: see `barque status`, and list what it has there with --dir", name))
	}
	if len(problems) > 0 {
		return errors.New(strings.Join(problems, "; "))
	}
	return nil
}
