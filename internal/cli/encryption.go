package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"barque.dev/internal/encryption"
	"barque.dev/internal/node"
)

func newEncryption(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "encryption",
		Short: "Encryption at rest: status, rotate, rewrite, disable, config",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errUsage{fmt.Errorf("barque encryption has no subcommand %q", args[0])}
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(
		newEncryptionStatus(s),
		newEncryptionChange(s, "rotate", encryption.PathRotate, "Add a key, use it once all servers have it, and write all Secrets again with it"),
		newEncryptionChange(s, "rewrite", encryption.PathRewrite, "Write everything again that is not as the configurations in use say; all servers must have the same ones"),
		newEncryptionChange(s, "disable", encryption.PathDisable, "Write Secrets as plain text from now on; `barque encryption rotate` turns it on again"),
		newEncryptionConfig(s),
	)
	return cmd
}

func newEncryptionStatus(s Streams) *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Show the keys, who has them, and what stands under which", Args: noArgs}
	var a access
	a.flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return callEncryption(cmd.Context(), a, "GET", encryption.PathStatus, s.Out)
	}
	return cmd
}

func newEncryptionChange(s Streams, name, path, short string) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Args: noArgs}
	var a access
	a.flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return callEncryption(cmd.Context(), a, "POST", path, s.Out)
	}
	return cmd
}

// callEncryption asks a server for something, and prints how things stand then.
func callEncryption(ctx context.Context, a access, verb, path string, w io.Writer) error {
	client, config, err := a.client()
	if err != nil {
		return err
	}
	data, err := client.Discovery().RESTClient().Verb(verb).AbsPath(path).DoRaw(ctx)
	if err != nil {
		if text := strings.TrimSpace(string(data)); text != "" && !strings.HasPrefix(text, "{") {
			return fmt.Errorf("the cluster at %s refuses: %s", config.Host, text)
		}
		return fmt.Errorf("ask the cluster at %s about encryption: %w", config.Host, err)
	}
	var status encryption.Status
	if err := json.Unmarshal(data, &status); err != nil {
		return fmt.Errorf("read what %s answers: %w", config.Host, err)
	}
	return printEncryption(w, status)
}

func printEncryption(w io.Writer, status encryption.Status) error {
	t := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	writes := status.Writes
	if writes == "" {
		writes = "none: Secrets are written as plain text"
	}
	_, _ = fmt.Fprintf(t, "key in use\t%s\n", writes)
	if status.Next != "" {
		_, _ = fmt.Fprintf(t, "next key\t%s, waits for %s\n", status.Next, strings.Join(status.Waits, ", "))
	}
	if status.File != "" {
		_, _ = fmt.Fprintf(t, "configuration\t%s %s\n", status.File, status.FileHash)
	}
	if status.Rewriting {
		_, _ = fmt.Fprint(t, "rewriting\teverything that is stale, on request\n")
	}
	_, _ = fmt.Fprint(t, "\nKEY\tSTATE\tOBJECTS\tCREATED\n")
	for _, k := range status.Keys {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%d\t%s\n", k.Name, k.State, k.Objects, k.Created.Local().Format("2006-01-02 15:04:05"))
	}
	_, _ = fmt.Fprint(t, "\nSERVER\tHAS\n")
	for _, server := range status.Servers {
		has := strings.Join(server.Keys, ", ")
		if has == "" {
			has = "none: it does not know of encryption, or has not come yet"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\n", server.Name, has)
	}
	_, _ = fmt.Fprint(t, "\nIN ETCD\tUNDER\tOBJECTS\n")
	for _, r := range status.Resources {
		for _, label := range slices.Sorted(maps.Keys(r.Values)) {
			_, _ = fmt.Fprintf(t, "%s\t%s\t%d\n", r.Prefix, label, r.Values[label])
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if status.Problem != "" {
		return fmt.Errorf("the encryption keys can't be used: %s", status.Problem)
	}
	return nil
}

func newEncryptionConfig(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print the EncryptionConfiguration with which a stock kube-apiserver reads the Secrets; it holds the keys",
		Example: `  sudo barque encryption config --data-dir /var/lib/barque-server > keys.yaml
  kube-apiserver --encryption-provider-config keys.yaml …`,
		Args: noArgs,
	}
	var dir string
	cmd.Flags().StringVar(&dir, "data-dir", defaultServerDir, "`DIR` of a server of the cluster, on this machine")
	cmd.RunE = func(*cobra.Command, []string) error {
		text, err := node.EncryptionConfiguration(dir)
		if err != nil {
			return err
		}
		_, err = s.Out.Write(text)
		return err
	}
	return cmd
}
