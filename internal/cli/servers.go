package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/node"
)

func newServerList(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the servers, who leads, who votes, and how many may be lost",
		Example: "  barque server list", Args: noArgs,
	}
	var a access
	a.flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var list membership.List
		if err := askServers(cmd.Context(), a, "GET", membership.PathServers, nil, &list); err != nil {
			return err
		}
		t := tabwriter.NewWriter(s.Out, 0, 4, 3, ' ', 0)
		_, _ = fmt.Fprintln(t, "NAME\tROLE\tANSWERS\tPEER\tID")
		for _, m := range list.Servers {
			name, answers := m.Name, "yes"
			if name == "" {
				name = "-"
			}
			if !m.Answers {
				answers = "no"
			}
			_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", name, roleOf(m), answers, m.Peer, m.ID)
		}
		if err := t.Flush(); err != nil {
			return err
		}
		_, err := fmt.Fprintf(s.Out, "\n%s\n", outlook(list))
		return err
	}
	return cmd
}

func roleOf(m membership.Server) string {
	switch {
	case m.Leader:
		return "leader"
	case m.Learner && (m.Name == "" || m.Witness != ""):
		return "joining"
	case m.Learner:
		return "standby"
	case m.Witness != "":
		return "witness"
	}
	return "voter"
}

// standbys counts the servers that could take a voter's place.
func standbys(list membership.List) (n int) {
	for _, m := range list.Servers {
		if roleOf(m) == "standby" && m.Answers {
			n++
		}
	}
	return n
}

// outlook says what the cluster bears.
func outlook(list membership.List) string {
	dead := "servers that are gone stay members until `barque server remove`"
	if list.Grace > 0 {
		dead = fmt.Sprintf("one that no other reaches for %v is removed by itself", list.Grace.Round(time.Second))
	}
	if n := standbys(list); n > 0 && list.Grace > 0 && list.Replace > 0 {
		dead = fmt.Sprintf("a voter that no other reaches for %v is replaced by one of %d on standby", min(list.Grace, list.Replace).Round(time.Second), n)
	}
	switch {
	case list.Spare < 0:
		return "there is no quorum: start the servers that are down, or see `barque recover --help`"
	case list.Spare == 0:
		return "no server that answers may be lost; " + dead
	case list.Spare == 1:
		return "one server that answers may be lost; " + dead
	}
	return fmt.Sprintf("%d servers that answer may be lost; %s", list.Spare, dead)
}

// removalFlags say when servers that are silent are removed.
func removalFlags(flags *pflag.FlagSet, cfg *node.ServerConfig) {
	flags.DurationVar(&cfg.RemoveDeadAfter, "remove-dead-after", node.DefaultRemoveDead,
		"how long no server may reach another one until that is removed from the cluster, if a quorum of the others is well; 0 for never")
	flags.DurationVar(&cfg.ReplaceDeadAfter, "replace-dead-after", node.DefaultReplaceDead,
		"how long that is for one that votes, when a server without a vote can take its place; 0 for as long as otherwise")
	flags.BoolVar(&cfg.HastyRemoval, "hasty-removal", false, "let --remove-dead-after and --replace-dead-after be as short as tests need them")
	_ = flags.MarkHidden("hasty-removal")
}

func newServerRemove(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a server that is lost for good out of the cluster; one that lives leaves by `barque leave`",
		Example: `  barque server remove server-2
  barque server remove server-2 --force      # it answers, but can't be helped`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errUsage{errors.New("barque server remove needs one server's name, as `barque server list` shows it")}
			}
			return nil
		},
	}
	var a access
	var force bool
	a.flags(cmd.Flags())
	cmd.Flags().BoolVar(&force, "force", false, "remove it although it answers: it ends at once, and its node is not drained")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var done membership.Removed
		err := askServers(cmd.Context(), a, "POST", membership.PathRemove, membership.Removal{Name: args[0], Force: force}, &done)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(s.Out, "server %s is no member any more\n", args[0])
		for _, note := range done.Notes {
			_, _ = fmt.Fprintln(s.Out, note)
		}
		return nil
	}
	return cmd
}

// askServers asks a server about the cluster's servers.
func askServers(ctx context.Context, a access, verb, path string, in, out any) error {
	client, config, err := a.client()
	if err != nil {
		return err
	}
	request := client.Discovery().RESTClient().Verb(verb).AbsPath(path)
	if in != nil {
		body, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode the question: %w", err)
		}
		request = request.SetHeader("Content-Type", "application/json").Body(body)
	}
	data, err := request.DoRaw(ctx)
	if err != nil {
		if text := strings.TrimSpace(string(data)); text != "" && !strings.HasPrefix(text, "{") {
			return fmt.Errorf("the cluster at %s refuses: %s", config.Host, text)
		}
		return fmt.Errorf("ask the cluster at %s for its servers: %w", config.Host, err)
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("read what %s answers: %w", config.Host, err)
	}
	return nil
}
