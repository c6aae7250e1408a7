package cli

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"barque.dev/internal/cluster/join"
)

func newToken(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Tokens with which machines join: create, list, delete",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errUsage{fmt.Errorf("barque token has no subcommand %q", args[0])}
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(newTokenCreate(s), newTokenList(s), newTokenDelete(s))
	return cmd
}

func newTokenCreate(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create a token, and print how to use it",
		Example: `  sudo barque token create
  sudo barque token create --usage agent --ttl 1h --description "rack 4"`,
		Args: noArgs,
	}
	var a access
	var ttl time.Duration
	var role, description string
	a.flags(cmd.Flags())
	cmd.Flags().DurationVar(&ttl, "ttl", join.DefaultTTL, "how long the token is good; 0 is for ever")
	cmd.Flags().StringVar(&role, "usage", "any", "what may join with it: `server`, agent or any")
	cmd.Flags().StringVar(&description, "description", "", "a `note` for `barque token list`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		usages, ok := map[string][]join.Usage{
			"server": {join.UsageServer}, "agent": {join.UsageAgent}, "any": {join.UsageServer, join.UsageAgent},
		}[role]
		if !ok {
			return errUsage{fmt.Errorf("--usage %q: choose server, agent or any", role)}
		}
		if ttl < 0 {
			return errUsage{fmt.Errorf("--ttl %v: give a positive time, or 0 for ever", ttl)}
		}
		client, config, err := a.client()
		if err != nil {
			return err
		}
		hash, err := join.HashOfPEM(config.CAData)
		if err != nil {
			return fmt.Errorf("the kubeconfig's CA: %w", err)
		}
		token, err := join.Create(cmd.Context(), client, join.CreateOptions{CAHash: hash, Usages: usages, TTL: ttl, Description: description}, time.Now())
		if err != nil {
			return err
		}
		host := config.Host
		if u, err := url.Parse(config.Host); err == nil {
			host = u.Scheme + "://" + u.Host
		}
		_, _ = fmt.Fprintln(s.Out, token)
		if role != "agent" {
			_, _ = fmt.Fprintf(s.Err, "\nAdd a server:  sudo barque server --data-dir %s --join %s --token %s\n", defaultServerDir, host, token)
		}
		if role != "server" {
			_, _ = fmt.Fprintf(s.Err, "Add an agent:  sudo barque agent --data-dir %s --server %s --token %s\n", defaultAgentDir, host, token)
		}
		return nil
	}
	return cmd
}

func newTokenList(s Streams) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the tokens that are good", Args: noArgs}
	var a access
	a.flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, _, err := a.client()
		if err != nil {
			return err
		}
		tokens, err := join.List(cmd.Context(), client, time.Now())
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(s.Out, 0, 4, 3, ' ', 0)
		_, _ = fmt.Fprintln(w, "ID\tUSAGES\tEXPIRES\tDESCRIPTION")
		for _, t := range tokens {
			expires := "never"
			if !t.Expires.IsZero() {
				expires = t.Expires.Local().Format(time.DateTime)
			}
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", t.ID, usageNames(t.Usages), expires, t.Description)
		}
		return w.Flush()
	}
	return cmd
}

func usageNames(usages []join.Usage) string {
	names := make([]string, 0, len(usages))
	for _, u := range usages {
		names = append(names, string(u))
	}
	return strings.Join(names, ",")
}

func newTokenDelete(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "delete ID",
		Short: "Revoke a token",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errUsage{errors.New("barque token delete needs one token's id, as `barque token list` shows it")}
			}
			return nil
		},
	}
	var a access
	a.flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, _, err := a.client()
		if err != nil {
			return err
		}
		if err := join.Delete(cmd.Context(), client, args[0]); err != nil {
			return err
		}
		_, err = fmt.Fprintf(s.Out, "token %s is revoked\n", args[0])
		return err
	}
	return cmd
}
