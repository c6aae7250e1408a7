package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"barque.dev/internal/local"
	"barque.dev/internal/node"
	"barque.dev/internal/runtime/images"
)

// target is which containerds an image command speaks to.
type target struct {
	socket, dataDir, dir string
}

func (t *target) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.dataDir, "data-dir", "", "the `DIR` of this machine's server or agent")
	cmd.Flags().StringVar(&t.socket, "socket", "", "a containerd's `SOCKET` on this machine")
	cmd.Flags().StringVar(&t.dir, "dir", local.DefaultDir, "`DIR` of a cluster of \"barque up\"; all of its machines are meant unless --data-dir or --socket is given")
}

// machines are the containerds that are meant: their names, and their sockets by name.
func (t *target) machines() (names []string, sockets map[string]string, err error) {
	if t.socket != "" {
		return []string{t.socket}, map[string]string{t.socket: t.socket}, nil
	}
	dataDir := t.dataDir
	c, err := local.Load(t.dir)
	if dataDir == "" && errors.Is(err, os.ErrNotExist) {
		for _, dir := range []string{defaultServerDir, defaultAgentDir} {
			if dataDir == "" && exists(dir) {
				dataDir = dir
			}
		}
	}
	switch {
	case dataDir != "":
		socket, err := node.ContainerdSocket(dataDir)
		return []string{dataDir}, map[string]string{dataDir: socket}, err
	case errors.Is(err, os.ErrNotExist):
		return nil, nil, fmt.Errorf("there is no cluster of `barque up` in %s: name a server's or an agent's --data-dir", t.dir)
	case err != nil:
		return nil, nil, err
	}
	sockets = map[string]string{}
	for _, m := range c.Machines {
		if m.Left() {
			continue
		}
		if sockets[m.Name], err = m.ContainerdSocket(); err != nil {
			return nil, nil, err
		}
		names = append(names, m.Name)
	}
	return names, sockets, nil
}

// each calls f with the images of every containerd that is meant, and its name.
func (t *target) each(f func(name string, store *images.Store) error) error {
	order, sockets, err := t.machines()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range order {
		if err := withStore(sockets[name], func(s *images.Store) error { return f(name, s) }); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func withStore(socket string, f func(*images.Store) error) error {
	store, err := images.Open(socket)
	if err != nil {
		return err
	}
	return errors.Join(f(store), store.Close())
}

func newImage(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Images on the machines: import, list, remove",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errUsage{fmt.Errorf("barque image has no subcommand %q", args[0])}
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(newImageImport(s), newImageList(s), newImageRemove(s))
	return cmd
}

// someArgs wants at least one argument.
func someArgs(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return errUsage{fmt.Errorf("%s needs %s", cmd.CommandPath(), what)}
		}
		return nil
	}
}

func newImageImport(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import ARCHIVE…",
		Short: "Import OCI or Docker archives on every machine",
		Example: `  docker save myapp:1 -o myapp.tar && barque image import myapp.tar      # a cluster of "barque up"
  barque image import myapp.tar --data-dir /var/lib/barque-agent         # one real machine`,
		Args: someArgs("the file of an OCI archive or of `docker save`"),
	}
	var t target
	t.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, arg := range args {
			if info, err := os.Stat(arg); err != nil || info.IsDir() {
				return fmt.Errorf("there is no archive %s: name the file of an OCI archive or of `docker save`", arg)
			}
		}
		return t.each(func(name string, store *images.Store) error {
			for _, arg := range args {
				f, err := os.Open(filepath.Clean(arg))
				if err != nil {
					return err
				}
				names, err := store.Import(cmd.Context(), f)
				_ = f.Close()
				if err != nil {
					return fmt.Errorf("import %s: %w", arg, err)
				}
				for _, image := range names {
					_, _ = fmt.Fprintf(s.Out, "%s: imported %s\n", name, image.Name)
				}
			}
			return nil
		})
	}
	return cmd
}

func newImageList(s Streams) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the images of every machine", Args: noArgs}
	var t target
	t.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		w := tabwriter.NewWriter(s.Out, 0, 4, 3, ' ', 0)
		header := "MACHINE\tIMAGE\tSIZE\n"
		err := t.each(func(name string, store *images.Store) error {
			list, err := store.List(cmd.Context())
			if err == nil {
				_, _ = fmt.Fprint(w, header)
				header = ""
			}
			for _, image := range list {
				_, _ = fmt.Fprintf(w, "%s\t%s\t%.1f MB\n", name, image.Name, float64(image.Size)/1e6)
			}
			return err
		})
		return errors.Join(err, w.Flush())
	}
	return cmd
}

func newImageRemove(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove IMAGE…",
		Short: "Remove images from every machine",
		Args:  someArgs("the name of an image, as `barque image list` shows it"),
	}
	var t target
	t.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return t.each(func(name string, store *images.Store) error {
			for _, arg := range args {
				if err := store.Remove(cmd.Context(), arg); err != nil {
					return fmt.Errorf("remove %s: %w", arg, err)
				}
				_, _ = fmt.Fprintf(s.Out, "%s: removed %s\n", name, arg)
			}
			return nil
		})
	}
	return cmd
}
